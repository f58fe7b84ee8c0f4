"""Scores of runs: while they train, beside each other, over guidance and averages."""

import shutil
from pathlib import Path

import pytest
import small_run
import tiny

from poise import api
from poise.artifacts import read_json, read_jsonl
from poise.console import Screen
from poise.errors import UsageError
from poise.scoring.compare import difference
from poise.scoring.snapshots import Watcher

SCORED = ("--set", "cadence.evaluations=3", "--set", "evaluation.snapshot_samples=12")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished tiny run whose snapshots were scored; read it, do not change it."""
    root = tmp_path_factory.mktemp("scored") / "run"
    options = ["--run", str(root), "--images", str(tiny.IMAGES), *tiny.set_options(), *SCORED]
    assert tiny.call("train", "digits", *options) == 0
    return root


def test_snapshots_are_scored_while_the_run_trains(scored: Path):
    rows = read_jsonl(scored / "scores.jsonl")
    assert len(rows) == 3
    snapshots = {int(path.stem) for path in (scored / "snapshots").glob("*.safetensors")}
    validated = {row["images_seen"] for row in read_jsonl(scored / "validation.jsonl")}
    for row in rows:
        assert row["images_seen"] in snapshots and row["samples"] == 12
        assert {"frechet_distance", "precision", "coverage", "fine_detail"} <= row["values"].keys()
        assert row["values"].keys() >= row["real"].keys()
        known = any(at <= row["images_seen"] for at in validated)
        assert (row["values"]["validation_error"] is not None) == known
    page = (scored / "report.html").read_text("utf-8")
    assert "Scores over training" in page


def test_the_lines_are_the_same_on_every_repetition(scored: Path, tmp_path: Path):
    options = ["--run", "again", "--images", str(tiny.IMAGES), *tiny.set_options(), *SCORED]
    assert tiny.call("train", "digits", *options) == 0
    for name in ("scores.jsonl", "metrics.jsonl"):
        assert Path("again", name).read_bytes() == (scored / name).read_bytes()


def test_a_line_that_was_lost_is_written_on_resuming(tmp_path: Path):
    config = small_run.configured(cadence__evaluations=2, evaluation__snapshot_samples=10)
    assert small_run.train(tmp_path / "run", config) == small_run.IMAGES
    whole = (tmp_path / "run" / "scores.jsonl").read_bytes()
    assert whole.count(b"\n") == 2
    first, last = whole.splitlines(keepends=True)
    (tmp_path / "run" / "scores.jsonl").write_bytes(first)  # killed before the last was written
    small_run.train(tmp_path / "run", config)
    assert (tmp_path / "run" / "scores.jsonl").read_bytes() == first + last


def test_nothing_is_scored_where_the_share_is_too_small(tmp_path: Path, undisturbed: Path):
    assert not (undisturbed / "scores.jsonl").exists()
    job = small_run.job(tmp_path / "run", small_run.configured())
    assert not Watcher(job).due(small_run.IMAGES)


def test_a_run_past_its_best_ends_and_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Scores are planted; what the run makes of them is real."""
    plan = iter((0.5, 0.9, 0.4, 0.3, 0.2, 0.1))

    def planted(self: Watcher, images_seen: int):
        from poise.artifacts import append_jsonl
        from poise.evaluation.standing import VOICES, standing

        quality = next(plan)
        values = {n: quality if more else 1 - quality for n, more in VOICES.items()}
        log = self._job.run.log("scores")
        row = {"images_seen": images_seen, "weights": "raw", "values": values, "errors": {}}
        append_jsonl(log, row)
        return standing(read_jsonl(log))

    monkeypatch.setattr(Watcher, "score", planted)
    config = small_run.configured(cadence__evaluations=8, cadence__snapshots=8)
    seen = small_run.train(tmp_path / "run", config)
    rows = read_jsonl(tmp_path / "run" / "scores.jsonl")
    assert seen < small_run.IMAGES and len(rows) == 4
    (incident,) = small_run.events(tmp_path / "run", "samples-worse")
    assert incident["action"] == "keep-best"
    choice = read_json(tmp_path / "run" / "choices.json")["weights"]
    assert choice["images_seen"] == rows[1]["images_seen"] and choice["name"] == "raw"


def test_each_look_at_the_test_split_is_recorded(scored: Path, tmp_path: Path):
    root = shutil.copytree(scored, tmp_path / "run")
    run = api.load(root)
    run.evaluate(12, split="test")
    run.evaluate(12, split="test")
    run.evaluate(12, split="val")
    touches = [row for row in read_jsonl(root / "events.jsonl") if row["kind"] == "test_split"]
    assert [row["severity"] for row in touches] == ["info", "warning"]
    assert "time 2" in touches[1]["message"]
    assert read_json(root / "scores-test.json")["denoising"]["curves"].keys() == {
        *("train", "val", "test")
    }
    assert read_json(root / "scores-val.json")["denoising"]["curves"].keys() == {"train", "val"}


def test_runs_are_compared_on_the_same_seeds(scored: Path, undisturbed: Path, tmp_path: Path):
    assert (
        tiny.call(
            *(
                "compare",
                str(scored),
                str(undisturbed),
                "-n",
                "30",
                "--json",
                "c.json",
                "--out",
                "c",
            )
        )
        == 0
    )
    record = read_json(Path("c/comparison.json"))
    assert record["metrics"] == read_json(Path("c.json"))
    same = record["metrics"]["frechet_distance"]
    assert same["differences"][0] is None
    # both runs have the same settings and seed: the same samples
    assert same["differences"][1]["value"] == 0 and not same["differences"][1]["clear"]
    assert Path("c/comparison.html").exists() and Path("c/sheet.png").exists()


def test_a_clear_difference_is_called_one():
    def row(value: float, error: float | None):
        return {"value": value, "errors": {"samples": error, "reference": 9.0}}

    clear = difference(row(3.0, 0.3), row(1.0, 0.4))
    assert clear == {
        "value": 2.0,
        "low": pytest.approx(1.02, abs=1e-3),
        "high": pytest.approx(2.98, abs=1e-3),
        "clear": True,
    }
    vague = difference(row(1.9, 0.3), row(1.0, 0.4))
    assert vague is not None and not vague["clear"]
    unknown = difference(row(3.0, None), row(1.0, 0.4))
    assert unknown is not None and not unknown["clear"] and unknown["low"] is None


def test_runs_of_other_data_are_not_compared(scored: Path, tmp_path: Path):
    root = shutil.copytree(scored, tmp_path / "other")
    job = small_run.job(tmp_path / "small")
    from poise.artifacts import RunDir
    from poise.pipeline import reopen
    from poise.scoring.compare import compare_runs

    quiet = Screen(quiet=True)
    ours = reopen(RunDir(root), quiet)
    with pytest.raises(UsageError, match="other data"):
        compare_runs([ours, job], tmp_path / "c", quiet, count=12, seed=0, split_name="val")
    with pytest.raises(UsageError, match="One run"):
        compare_runs([ours], tmp_path / "c", quiet, count=12, seed=0, split_name="val")


def test_the_trade_off_is_drawn_and_changes_no_choice(scored: Path, tmp_path: Path):
    root = shutil.copytree(scored, tmp_path / "run")
    assert tiny.call("tradeoff", str(root), "-n", "12") == 0
    record = read_json(root / "tradeoff.json")
    strengths = {row["strength"] for row in record["rows"]}
    assert {1.0, 2.0, 3.0} <= strengths
    assert {row["weights"] for row in record["rows"]} >= {"raw", "ema_0.050", "ema_0.100"}
    assert all(0 <= row["values"]["precision"] <= 1 for row in record["rows"])
    assert not (root / "choices.json").exists()
    assert "strength" in (root / "report.html").read_text("utf-8")
    assert tiny.call("tradeoff", str(root), "-n", "5") == 2


def test_a_snapshot_that_cannot_be_scored_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from poise.errors import ArtifactError

    def refused(self: Watcher, images_seen: int) -> None:
        raise ArtifactError("Cannot write scores.jsonl: the disk is full.")

    monkeypatch.setattr(Watcher, "score", refused)
    config = small_run.configured(cadence__evaluations=2, evaluation__snapshot_samples=10)
    assert small_run.train(tmp_path / "run", config) == small_run.IMAGES
    rows = small_run.events(tmp_path / "run", "log-failed")
    assert rows and all("was not scored: Cannot write" in row["message"] for row in rows)


def test_the_best_snapshot_is_named_at_the_end(scored: Path):
    (named,) = [r for r in read_jsonl(scored / "events.jsonl") if r["kind"] == "best_snapshot"]
    assert "is best" in named["message"]


def test_weights_that_are_not_there_are_missed_before_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = [*tiny.set_options(), "--set", "evaluation.features=inception"]
    options += ["--set", "evaluation.feature_weights=nowhere.pth"]
    assert tiny.call("train", "digits", "--run", "run", "--images", "64", *options) == 1
    assert "nowhere.pth" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_mapped_images_are_scored_like_those_in_memory(tmp_path: Path):
    import numpy as np

    from poise.data.imageset import Subset
    from poise.data.store import Shards
    from poise.scoring.judge import judge
    from poise.scoring.real import Real, Samples
    from poise.settings import EvaluationConfig

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (420, 3, 8, 8), np.uint8)
    y = rng.integers(0, 2, 420)
    mapped = Shards([x[:150], x[150:300], x[300:]])
    rows = {"train": np.arange(200), "reference": np.arange(200, 320)}
    settings = EvaluationConfig(features="pixels", encoder_images=2000)
    records = []
    for images in (x, mapped):
        real = Real(
            Subset(images, rows["reference"]),
            y[rows["reference"]],
            Subset(images, rows["train"]),
            y[rows["train"]],
            ("a", "b"),
            "val",
            "d",
        )
        samples = Samples(x[320:], y[320:])
        records.append(judge(samples, real, settings, {}, Screen(quiet=True)).record)
    assert records[0] == records[1]
