"""Row D6: names of files, classes and runs that are markup, codes of a terminal, or ways out.

Every field of the two pages is escaped in `report/test_report.py` and `audit/test_page.py`, of the
doctor in `stability/test_doctor.py`. Here the names go the whole way from a folder to what is
printed and written.
"""

import csv
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tiny
from attacks import CLOSING, CODES, TAG, photos, tree
from hypothesis import given
from hypothesis import strategies as st

from poise import pipeline
from poise.arguments import free_run_folder
from poise.artifacts import RunDir, append_jsonl, read_jsonl
from poise.budget import Clock
from poise.console import Screen, inert
from poise.pictures import save_samples
from poise.report.report import write_report

OUT = "../../x"
LABELS = (TAG, "</script><script>alert(1)</script>", OUT, "$(touch canary)")
OBEYED = ("Cc", "Cf", "Cs", "Zl", "Zp")


@dataclass(frozen=True)
class Told:
    """What two commands left and said."""

    root: Path
    said: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """A folder of hostile names, audited and prepared; what was printed, by a file's eyes."""
    root = tmp_path_factory.mktemp("names")
    for name in (f"{TAG}{CODES}", CLOSING, "plain"):
        folder = photos(root / "set" / name, 14)
        for number, path in enumerate(sorted(folder.iterdir())[:3]):
            path.rename(folder / f"{number} {TAG}{CODES}{CLOSING}.png")
        (folder / f"broken {CODES}{TAG}.png").write_bytes(b"no picture")
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("typer.echo", lambda text="", **_: lines.append(str(text)))
        assert (
            tiny.call("audit", str(root / "set"), "--out", str(root / "a"), "--workers", "1") == 0
        )
        assert tiny.call("prepare", str(root / "set"), str(root / "p"), "--workers", "1") == 0
    return Told(root, "\n".join(lines))


def controls(text: str) -> set[str]:
    """What a terminal, or a reader of names, would obey; new lines are the page's own."""
    return {sign for sign in text if unicodedata.category(sign) in OBEYED} - {"\n"}


@pytest.mark.parametrize("page", ["a/audit.html", "p/prepare.html"])
def test_pages_hold_hostile_names_as_inert_text(told: Told, page: str) -> None:
    text = (told.root / page).read_text("utf-8")
    text = re.sub(r"<script>.{100000,}?</script>", "", text, flags=re.S)  # plotly's own code
    assert TAG not in text and CLOSING not in text and "<script>alert" not in text
    assert controls(text) == set()
    assert "&lt;img src=x onerror=alert(1)&gt;" in text


def test_what_the_commands_print_is_inert(told: Told) -> None:
    assert TAG in told.said  # names are told, markup means nothing to a terminal
    assert not re.search(r"^Done\. Report: fake", told.said, re.M)
    assert controls(told.said) == set()


def test_names_reach_json_as_data(told: Told) -> None:
    for path in told.root.rglob("*.json*"):
        assert not controls(path.read_text("utf-8")) - {"\u202e"}
    dropped = json.loads((told.root / "p" / "splits.json").read_text("utf-8"))["dropped"]
    assert any(row["path"].endswith(f"broken {CODES}{TAG}.png") for row in dropped)


def test_files_stay_in_the_folders_that_were_named(told: Told) -> None:
    ours = {path for path in tree(told.root) if not path.startswith("set")}
    assert {path.split("/")[0] for path in ours} == {"a", "p"}
    assert not any(part in path for path in ours for part in ("onerror", "script", ".."))


def test_a_run_is_begun_with_hostile_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = photos(tmp_path / f"set {CODES}", 48)
    bad = f"bad {CODES}.png"
    (source / bad).write_bytes(b"no picture")
    with (source / "metadata.csv").open("w", newline="") as file:
        rows = [(f"{n:02d}.png", LABELS[n % len(LABELS)]) for n in range(48)]
        csv.writer(file).writerows([("file_name", "label"), *rows, (bad, LABELS[0])])
    before = tree(tmp_path)
    root = tmp_path / "run"
    job = pipeline.Job(str(source), root, images=64, overrides=dict(tiny.SETTINGS))
    made = pipeline.prepare(job, Screen(), Clock(None))
    err = capsys.readouterr().err
    assert set(made.facts.label_names) == set(LABELS)
    assert "unreadable" in err and controls(err) == set()
    assert not re.search(r"^Done\. Report: fake", err, re.M)
    made_here = tree(tmp_path) - before
    assert {path.split("/")[0] for path in made_here} == {"run"}
    assert all(re.fullmatch(r"run(/[a-z]+\.[a-z]+)?", path) for path in made_here)


def test_the_report_of_a_run_with_hostile_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "report")
    import synthetic_run

    run = synthetic_run.build(tmp_path / f"run {TAG}")
    synthetic_run.edit(run.audit, classes=dict.fromkeys(LABELS, 3), warnings=[*LABELS])
    facts = json.loads(run.run.read_text("utf-8"))
    facts["data"]["label_names"] = [*LABELS]
    run.run.write_text(json.dumps(facts | {"source": OUT + TAG, "preset": LABELS[1]}))
    for kind in LABELS:
        row = {"images_seen": 1, "severity": "error", "kind": kind, "message": kind}
        append_jsonl(run.log("events"), row)
    page = write_report(run)
    text = page.read_text("utf-8")
    assert page.parent == run.root and TAG not in text and LABELS[1] not in text
    assert text.count("&lt;img src=x") > 3


def test_one_row_of_a_log_is_one_line_of_plain_signs(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    rows = [{"images_seen": 1, "message": CODES + TAG, CODES: "\u2028"}] * 3
    for row in rows:
        append_jsonl(run.log("events"), row)
    content = run.log("events").read_bytes()
    assert content.isascii() and content.count(b"\n") == 3 and b"\x1b" not in content
    assert read_jsonl(run.log("events")) == rows


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_obeys_no_name(
    terminal: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poise.console._PLAIN_SECONDS", -1.0)
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    screen, name = Screen(), f"[bold]{CODES}[/bold][/none]"
    screen.say(name)
    with screen.bar(name, 3) as bar:
        bar.show(1, note=name)
    err = capsys.readouterr().err
    assert "[bold]" in err and "\\u001b[31m" in err
    assert "\x1b[31m" not in err and "\x1b]0" not in err and "\u202e" not in err
    assert not re.search(r"^Done\. Report: fake", err, re.M)


@given(st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=40))
def test_inert_text_holds_nothing_to_obey_and_loses_nothing(text: str) -> None:
    shown = inert(text)
    assert not {sign for sign in shown if unicodedata.category(sign) in OBEYED}
    if "\\" not in text:
        assert re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), shown) == text


@pytest.mark.parametrize("source", [OUT, f"/tmp/{TAG}", CODES, "..", "/", "a b/ü.zip", "$(reboot)"])
def test_the_folder_of_a_run_lies_below_runs(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = free_run_folder(source)
    assert re.fullmatch(r"runs/[A-Za-z0-9_-]+-001", str(folder))


def test_samples_are_numbered_whatever_their_classes_are_called(tmp_path: Path) -> None:
    out = tmp_path / "new"
    images = np.zeros((len(LABELS), 3, 4, 4), np.uint8)
    save_samples(out, images, list(range(len(LABELS))), LABELS)
    assert tree(tmp_path) == {"new", "new/labels.csv", *(f"new/{i:06d}.png" for i in range(4))}
    with (out / "labels.csv").open(newline="") as file:
        assert tuple(row["name"] for row in csv.DictReader(file)) == LABELS
