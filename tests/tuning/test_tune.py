"""Whole studies on real digits, small: from images to a trained run, interrupted, killed, wrong."""

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import tiny

from poise.api import load
from poise.artifacts import read_json
from poise.console import Screen
from poise.learning.learn import learn
from poise.tuning.begin import Request, settle_plan
from poise.tuning.desk import Errand
from poise.tuning.ground import open_ground
from poise.tuning.trial import Trials, proxy_of

SPACE = """
training.lr = { times = [0.3, 3], log = true }
diffusion.P_mean = { low = -1.2, high = 0.4 }
weights = { choices = ["raw", 0.1] }
sampling.steps = { choices = [3, 4] }
[study]
samples = 20
"""
TWO_RUNGS = "rungs = [0.333, 1]\n"  # most of a study's time goes into what it looks at
SETTINGS = {
    **{key: value for key, value in tiny.SETTINGS.items() if not key.startswith("cadence")},
    "training.threads": 1,
    "model.channel_mult": [1],
    "model.attn_resolutions": [8],
}
OPTIONS = [part for k, v in SETTINGS.items() for part in ("--set", f"{k}={v}")]


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.toml"
    path.write_text(SPACE + TWO_RUNGS, encoding="utf-8")
    return path


def words(root: Path, space: Path, *more: str) -> list[str]:
    given = ["--space", str(space), "--images", "600", "--seeds", "1", *more]
    return ["tune", "digits", "--run", str(root), *given, *OPTIONS]


def states(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in read_json(root / "study.json")["trials"]:
        key = f"{row['role']} {row['state']}"
        found[key] = found.get(key, 0) + 1
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, space: Path) -> Path:
    root = tmp_path_factory.mktemp("study") / "run"
    assert tiny.call(*words(root, space, "--trials", "7")) == 0
    return root


def check_a_study_ends_with_a_trained_run_and_a_page(study: Path) -> None:
    record = read_json(study / "study.json")
    assert record["status"] == "finished"
    assert len([t for t in record["trials"] if t["role"] != "repeat"]) == 7
    assert sum(t["state"] == "stopped" for t in record["trials"]) >= 3
    assert [t["number"] for t in record["trials"]] == list(range(len(record["trials"])))
    complete = [t for t in record["trials"] if t["state"] == "complete"]
    assert all(t["values"]["frechet_distance"] > 0 for t in complete)
    assert all(t["cost_s"] > 0 for t in record["trials"])
    assert len(record["best"]["sentences"]) == 3
    assert (study / "study.html").stat().st_size > 100_000
    info = read_json(study / "best" / "run.json")
    assert info["status"] == "finished"
    assert read_json(study / "best" / "tuning.json") == record
    assert not (study / "store").exists()
    assert not list((study / "workers").iterdir())


def test_what_a_finished_study_holds(
    study: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One test, so that the study is made once, however many processes share the tests."""
    check_a_study_ends_with_a_trained_run_and_a_page(study)
    check_the_best_settings_are_those_of_the_last_training(study)
    check_free_settings_are_tried_on_trained_models(study)
    check_the_record_is_json_that_others_read(study)
    check_what_a_study_was_begun_with_stays(study, space, tmp_path, capsys)
    check_a_study_that_is_over_stays_as_it_is(study, space)


def check_the_best_settings_are_those_of_the_last_training(study: Path) -> None:
    best = read_json(study / "study.json")["best"]
    config = (study / "best" / "config.toml").read_text(encoding="utf-8")
    for name, value in best["settings"].items():
        leaf = name.rpartition(".")[2]
        assert f"\n{leaf} = {value}\n" in config
    images = load(study / "best").sample(4, seed=1)
    assert images.shape == (4, 8, 8, 1)


def check_free_settings_are_tried_on_trained_models(study: Path) -> None:
    rows = read_json(study / "study.json")["trials"]
    tried = [t for t in rows if t["role"] == "search" and t["state"] == "complete"]
    assert tried
    for row in tried:
        assert 2 <= len(row["tried"]) <= 4
        assert row["free"].keys() <= {"weights", "sampling.steps"}


def check_a_study_that_is_over_stays_as_it_is(study: Path, space: Path) -> None:
    before = read_json(study / "study.json")["trials"]
    assert tiny.call(*words(study, space, "--resume")) == 0
    assert read_json(study / "study.json")["trials"] == before


def check_what_a_study_was_begun_with_stays(
    study: Path, space: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert tiny.call(*words(study, space, "--resume", "--storage", other)) == 2
    assert "begun with --storage left open" in capsys.readouterr().err
    assert tiny.call(*words(study, space, "--resume", "--set", "model.dropout=0.2")) == 2
    assert "begun with --set model.dropout left open, not 0.2" in capsys.readouterr().err
    assert tiny.call(*words(study, space, "--resume", "--sampler", "random")) == 2
    assert "begun with --sampler gp" in capsys.readouterr().err
    assert tiny.call(*words(study, space)) == 2
    assert "already holds a study" in capsys.readouterr().err


@pytest.mark.slow
def test_more_trials_may_be_asked_for(study: Path, tmp_path: Path, space: Path) -> None:
    root = tmp_path / "run"
    shutil.copytree(study, root)
    before = read_json(root / "study.json")
    assert tiny.call(*words(root, space, "--resume", "--trials", "9")) == 0
    after = read_json(root / "study.json")
    assert len([t for t in after["trials"] if t["role"] != "repeat"]) == 9
    assert after["trials"][: len(before["trials"])] == before["trials"]
    assert after["status"] == "finished"
    config = (root / "best" / "config.toml").read_text(encoding="utf-8")
    assert f"\nlr = {after['best']['settings']['training.lr']}\n" in config
    changed = after["best"]["settings"] != before["best"]["settings"]
    assert (root / "best-1").exists() == changed  # what was trained before is kept


def test_a_paused_trial_is_the_one_that_was_never_stopped(tmp_path: Path) -> None:
    space = tmp_path / "three-rungs.toml"
    space.write_text(SPACE, encoding="utf-8")
    request = Request(
        "digits", tmp_path / "a", space=str(space), trials=2, images=300, overrides=SETTINGS
    )
    plan = settle_plan(request, Screen(quiet=True))
    errand = {"role": "search", "settings": {"training.lr": 0.02}, "free": {}, "seed": 0}
    ends = {}
    for name, rungs in (("a", [(0, -1), (1, 0), (2, 1)]), ("b", [(2, -1)])):
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        trials = Trials(open_ground(plan, root, Screen(quiet=True)))
        done = [trials(Errand(3, rung=to, reached=at, **errand)) for to, at in rungs]  # type: ignore[arg-type]
        ends[name] = (done[-1].values, [p for outcome in done for p in outcome.proxy])
        assert done[-1].images_seen == done[-1].images == 288  # nine times a batch of 32
    assert ends["a"] == ends["b"]
    halfway = open_ground(plan, tmp_path / "b", Screen(quiet=True))
    learn(halfway.prepared(4, {"training.lr": 0.02}, 0), Screen(quiet=True), until=160)
    again = Trials(halfway)(Errand(4, rung=2, reached=-1, **errand))  # type: ignore[arg-type]
    assert (again.values, list(again.proxy)) == ends["a"]  # also where it was interrupted
    whole = open_ground(plan, tmp_path / "c", Screen(quiet=True))
    job = whole.prepared(3, {"training.lr": 0.02}, 0)
    learn(job, Screen(quiet=True))
    assert proxy_of(job.run, 288, job.facts.sigma_data) == ends["a"][1][-1]
    last = job.run.snapshot_files()[-1]
    assert not tiny._tensors_differ(
        last, tmp_path / "a" / "trials" / "0003" / "snapshots" / last.name
    )


def test_a_trial_that_diverges_says_why(tmp_path: Path, space: Path) -> None:
    wild = {**SETTINGS, "model.ladder": "A", "training.lr": 300.0, "training.optimizer": "sgd"}
    request = Request("digits", tmp_path, space=str(space), trials=2, images=3000, overrides=wild)
    plan = settle_plan(request, Screen(quiet=True))
    trials = Trials(open_ground(plan, tmp_path, Screen(quiet=True)))
    outcome = trials(Errand(0, "search", {}, {}, 1, -1, 0))
    assert outcome.ended == "diverged"
    assert outcome.values is None
    assert len(outcome.diagnosis) > 20


def test_a_folder_of_another_trial_is_not_gone_on_with(tmp_path: Path, space: Path) -> None:
    request = Request(
        "digits", tmp_path, space=str(space), trials=2, images=600, overrides=SETTINGS
    )
    plan = settle_plan(request, Screen(quiet=True))
    ground = open_ground(plan, tmp_path, Screen(quiet=True))
    ground.prepared(0, {"training.lr": 0.01}, 0)
    outcome = Trials(ground)(Errand(0, "search", {"training.lr": 0.02}, {}, 1, -1, 0))
    assert outcome.ended == "failed" and "another study" in outcome.diagnosis


def test_settings_that_contradict_are_a_failed_trial(tmp_path: Path, space: Path) -> None:
    request = Request(
        "digits", tmp_path, space=str(space), trials=2, images=600, overrides=SETTINGS
    )
    plan = settle_plan(request, Screen(quiet=True))
    trials = Trials(open_ground(plan, tmp_path, Screen(quiet=True)))
    outcome = trials(
        Errand(
            0,
            "search",
            {"training.grad_clip": "norm", "training.grad_normalise": True},
            {},
            1,
            -1,
            0,
        )
    )
    assert outcome.ended == "failed"
    assert "grad_normalise" in outcome.diagnosis


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_or_killed_it_goes_on(tmp_path: Path, space: Path, how: signal.Signals) -> None:
    root = tmp_path / "run"
    given = ["--trials", "5", "--metric", "validation_error"]
    process = tiny.start(*words(root, space, *given))
    deadline = time.monotonic() + 90
    while not list(root.glob("trials/0002/checkpoints/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    code, output = tiny.finish(process)
    assert code == (130 if how == signal.SIGTERM else -signal.SIGKILL), output
    if how == signal.SIGTERM:
        assert read_json(root / "study.json")["status"] == "interrupted"
    assert tiny.call(*words(root, space, "--resume", *given)) == 0
    record = read_json(root / "study.json")
    assert record["status"] == "finished"
    searched = [t for t in record["trials"] if t["role"] != "repeat"]
    assert [t["number"] for t in searched] == list(range(5))


@pytest.mark.slow
def test_two_workers_share_a_study(tmp_path: Path, space: Path) -> None:
    root, quick = tmp_path / "run", ["--metric", "validation_error"]
    assert tiny.call(*words(root, space, "--trials", "6", "--workers", "2", *quick)) == 0
    record = read_json(root / "study.json")
    assert record["status"] == "finished"
    assert record["plan"]["workers"] == 2
    assert len([t for t in record["trials"] if t["role"] != "repeat"]) == 6


BAD: list[tuple[list[str], str]] = [
    (["--metric", "fid"], "There is no metric 'fid'"),
    (["--sampler", "bayes"], "does not know 'bayes'"),
    (["--workers", "0"], "--workers 0"),
    (["--storage", "postgresql://a:secret@127.0.0.1:1/x"], "***"),
    (["--storage", "nosuch://x"], "nosuch"),
    (["--engine", "slurm"], "slurm"),
    (["--space", "nowhere.toml"], "nowhere.toml"),
    (["--preset", "huge"], "huge"),
    (["--trials", "0"], "--trials 0"),
    (["--set", "training.rl=1"], "training.lr"),
    (["--set", "evaluation.features=inception"], "inception"),
]


@pytest.mark.parametrize(("more", "told"), BAD)
def test_what_is_wrong_is_said_before_any_training(
    tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str], more: list[str], told: str
) -> None:
    root = tmp_path / "run"
    assert tiny.call(*words(root, space, "--trials", "3", *more)) in (1, 2)
    message = capsys.readouterr().err
    assert told in message
    assert "secret" not in message
    assert not (root / "trials").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("training.rl = { times = [0.1, 10] }", "training.lr"),
        ("training.lr = { low = 0.1, high = 0.01 }", "training.lr"),
        ("evaluation.samples = { low = 10, high = 100 }", "evaluation.samples"),
    ],
)
def test_a_wrong_space_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, told: str
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text, encoding="utf-8")
    assert tiny.call(*words(tmp_path / "run", path, "--trials", "3")) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "run" / "trials").exists()


def test_a_budget_without_room_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["tune", "digits", "--run", str(tmp_path / "run"), "--space", "quick", "--budget"]
    assert tiny.call(*given, "0.5s", *OPTIONS) == 2
    assert "A budget of" in capsys.readouterr().err
    assert tiny.call(*given, "60s", "--images", "50M", *OPTIONS) == 2
    told = capsys.readouterr().err
    assert "the 50,000,000 images of --images take" in told and "h" in told
    assert not (tmp_path / "run" / "trials").exists()


def test_no_end_is_refused(tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.call(*words(tmp_path / "run", space)) == 2
    assert "--budget" in capsys.readouterr().err


def check_the_record_is_json_that_others_read(study: Path) -> None:
    def refuse(name: str) -> Any:
        raise AssertionError(name)

    text = (study / "study.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=refuse)  # neither NaN nor Infinity
