"""The verdict in three groups, and what to do next as commands that the command line takes."""

import html
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import build, edit
from synthetic_scores import copier, memoriser, scores
from typer.main import get_command

from poise.artifacts import RunDir, append_jsonl, write_json
from poise.cli import app
from poise.report.finding import Finding
from poise.report.folder import read_run
from poise.report.page import visible
from poise.report.report import write_report
from poise.report.steps import again, next_steps, place
from poise.report.verdict import findings

TRAIN = ["poise", "train", "my photos", "--run", "runs/a b", "--set", "training.lr=0.02"]
TREE: Any = get_command(app)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = build(tmp_path / "run", rows=40)
    edit(made.run, source="my photos", command=[*TRAIN, "--budget=4m", "--no-preflight"])
    return made


def steps_of(run: RunDir) -> list[Any]:
    files = read_run(run)
    return next_steps(files, findings(files))


def verdict_of(run: RunDir) -> list[str]:
    """The three groups as a reader sees them."""
    page = write_report(run).read_text("utf-8")
    part = page[page.index('<section id="verdict">') : page.index('<section id="samples">')]
    words = " ".join(html.unescape(re.sub(r"<[^>]+>", " ", part)).split())
    return re.split("What is good|What is weak or open|What to do next", words)[1:]


def parses(command: str) -> None:
    words = shlex.split(command)
    assert words[0] == "poise"
    if words[1] in TREE.commands:
        TREE.commands[words[1]].make_context(words[1], words[2:])


def test_what_is_good_is_said_beside_what_is_broken(run: RunDir) -> None:
    edit(run.run, status="stopped")
    good, weak, steps = verdict_of(run)
    assert "Every figure is near that of real images" in good and "Weak" not in good
    assert weak.split()[:5] == ["Broken", "The", "guard", "stopped", "the"] and "Good" not in weak
    assert steps.index("poise doctor 'runs/a b'") < steps.index("poise audit 'my photos'")


def test_what_a_study_trained_is_gone_on_with_as_a_study(run: RunDir) -> None:
    """Its command names the folder of the study, and its settings stand in the record."""
    edit(run.run, command=["poise", "tune", "my photos", "--run", "runs/a b/", "--space", "quick"])
    write_json(
        run.root / "tuning.json",
        {
            "plan": {"overrides": {"data.resolution": 16}},
            "best": {
                "settings": {"training.lr": 0.01, "training.decay": "cosine"},
                "free": {"weights": "0.1", "sampling.steps": 12},
            },
        },
    )
    edit(run.run, status="stopped")
    write_json(run.scores("test"), copier())
    commands = [step.command for step in steps_of(run) if step.command]
    assert "poise doctor 'runs/a b/best'" in commands
    longer = next(command for command in commands if command.startswith("poise train"))
    head = "poise train 'my photos' --run 'runs/a b-next' --preset nano --set data.resolution=16 "
    sets = "--set training.lr=0.01 --set training.decay=cosine --set sampling.steps=12 "
    assert longer.startswith(head + sets)
    assert not [command for command in commands if "train" in command and "--resume" in command]
    for command in commands:
        parses(command)


def test_remedies_come_in_the_order_of_weight_and_once(run: RunDir) -> None:
    write_json(run.scores("test"), copier())
    steps = steps_of(run)
    assert [s.command for s in steps] == [
        "poise doctor 'runs/a b'",
        "poise audit 'my photos'",
        "poise train 'my photos' --run 'runs/a b-next' --set training.lr=0.02 --budget 4m "
        "--no-preflight --set model.dropout=0.1",
        "poise ema sweep 'runs/a b'",
        "poise guide 'runs/a b'",
        "poise tune 'my photos' --budget 2h",
    ]
    assert not any("Train longer" in step.what for step in steps)
    assert len({step.what for step in steps}) == len(steps) <= 8


def test_a_setting_in_a_remedy_is_in_its_command(run: RunDir) -> None:
    write_json(run.scores("test"), memoriser())
    told = next(step for step in steps_of(run) if "model.dropout" in step.what)
    assert told.command.endswith(
        "--set training.lr=0.02 --budget 4m --no-preflight --set model.dropout=0.1"
    )


def test_an_interrupted_run_is_resumed(run: RunDir) -> None:
    edit(run.run, status="interrupted")
    first = steps_of(run)[0]
    assert first.command == "poise train 'my photos' --run 'runs/a b' --resume"


def test_what_was_done_is_not_proposed_again(run: RunDir) -> None:
    def commands() -> str:
        return "\n".join(step.command for step in steps_of(run))

    run.log("events").unlink()
    edit(run.audit, warnings=[])
    before = commands()
    assert "ema sweep" in before and "guide" in before and "--split test" not in before
    write_json(run.choices, {"weights": {"name": "raw"}, "guidance": {"strength": 2.0}})
    run.scores("test").unlink()
    after = commands()
    assert "ema sweep" not in after and "guide" not in after
    assert after.endswith("poise evaluate 'runs/a b' --split test")
    for path in (run.scores("val"), run.choices):
        path.unlink()
    assert "poise evaluate 'runs/a b'" in commands().split("\n")


@pytest.mark.parametrize("status", ["finished", "failed", "stopped", "interrupted", "running"])
@pytest.mark.parametrize("record", [scores, copier, memoriser])
def test_every_command_is_one_that_the_command_line_takes(
    run: RunDir, status: str, record: Any
) -> None:
    edit(run.run, status=status)
    write_json(run.scores("test"), record())
    commands = [step.command for step in steps_of(run) if step.command]
    assert commands or status == "running"
    for command in commands:
        parses(command)


NAMES = st.text(min_size=1, max_size=20).filter(lambda name: not name.startswith("-"))


@given(NAMES, NAMES)
def test_any_name_stays_one_word(source: str, folder: str) -> None:
    run = {"source": source, "command": ["poise", "train", source, "--run", folder]}
    words = shlex.split(again(run, "--images", "5"))
    end = visible(visible(folder).rstrip("/\\") + "-next")
    assert words == ["poise", "train", visible(source), "--run", end, "--images", "5"]
    assert shlex.split(place(run)) == [visible(folder)]


def test_without_a_command_the_folder_is_called_run(run: RunDir) -> None:
    edit(run.run, command=None)
    assert "RUN stands for the folder of this run." in verdict_of(run)[2]
    assert again(read_run(run).run) == "poise train 'my photos' --run RUN-next --preset nano"


def test_sizes_that_kept_growing_are_said(run: RunDir) -> None:
    def of_sizes() -> list[Finding]:
        return [f for f in findings(read_run(run)) if "second half" in f.sentence]

    assert of_sizes() == []
    for i in range(1, 9):
        row = {"images_seen": 50_000 * i, "activation_rms_highest": 1.0 + i, "weight_rms": 1.0}
        append_jsonl(run.log("magnitudes"), row)
    (found,) = of_sizes()
    assert "activations to 1.80 times" in found.sentence and "weights" not in found.sentence
    files = read_run(run)
    level = [{**row, "activation_rms_highest": 2.0} for row in files.magnitudes]
    (good,) = [f for f in findings(replace(files, magnitudes=level)) if "second half" in f.sentence]
    assert good.sentence.startswith("Activations and weights kept their size")


def test_warnings_of_the_preflight_are_findings_and_on_the_page(run: RunDir) -> None:
    checks = [{"name": "disk", "verdict": "warn", "sentence": "The disk is nearly full."}]
    write_json(run.root / "preflight.json", {"checks": [*checks, "odd"]})
    assert "Note Before training: The disk is nearly full." in verdict_of(run)[1]
    assert "<td" in write_report(run).read_text("utf-8").split("Checks before training")[1]
