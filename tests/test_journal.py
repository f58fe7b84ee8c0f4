"""What a training writes down: refused writes, foreign files, signals in the middle of a look."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import small_run as small
import torch

from poise.artifacts import RunDir, append_jsonl, read_jsonl, read_meta, save_tensors
from poise.errors import ArtifactError, Interrupted
from poise.journal import Journal, log_event, log_row, prepared
from poise.journal import journal as journals
from poise.learning import learn as learning
from poise.learning.fresh import fresh_state
from poise.learning.repair import Rate
from poise.stability.incident import Incident, Sign
from poise.training.checkpoint import save_checkpoint, save_snapshot

LOGS = ("metrics.jsonl", "validation.jsonl", "magnitudes.jsonl")
B = small.BATCH
CONFIG: dict[str, Any] = {
    "cadence__validations": 4,
    "cadence__grids": 2,
    "training__decay": "plateau",
    "training__decay_patience": 0,
    "stability__early_stop": False,
}


class Killed(BaseException):
    """Ends a session as SIGKILL does: nobody gets to say anything."""


def rising(job: Any, state: Any) -> list[dict[str, Any]]:
    """Validation rows with an error that rises, so that the plateau schedule has to act."""
    seen = state.images_seen
    bands = [{"sigma": 0.1 * 2**j, "loss": 0.5 + seen / 1000, "psnr": 1.0} for j in range(8)]
    return [
        {"images_seen": seen, "weights": name, "split": "val", "loss": 0.5 + seen / 1000}
        | {"bands": bands, "images": 8}
        for name in ("raw", "ema_0.100")
    ]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run whose rate falls after each validation but the first."""
    root = tmp_path_factory.mktemp("quiet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(journals, "validate", rising)
        assert small.train(root, small.configured(**CONFIG)) == small.IMAGES
    rates = [row["used_lr"] for row in read_jsonl(root / "metrics.jsonl")]
    assert rates[-1] < rates[3] / 2
    return root


@pytest.fixture(autouse=True)
def _rising(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journals, "validate", rising)


def train(root: Path, **more: Any) -> int:
    return small.train(root, small.configured(**CONFIG), **more)


def differences(one: Path, other: Path) -> list[str]:
    found = small.differences(one, other, *LOGS)
    for folder in ("samples", "snapshots"):
        names = [sorted(p.name for p in (root / folder).iterdir()) for root in (one, other)]
        found += [folder] if names[0] != names[1] else []
    return found


def refused(*_: object, **__: object) -> None:
    raise ArtifactError("Cannot write it: no space left.")


def bench(root: Path, **settings: object) -> Journal:
    job = small.job(root, small.configured(**settings))
    return Journal(job, fresh_state(job, lambda text: None))


# --- writes that are refused


def test_a_checkpoint_that_cannot_be_written_does_not_end_training(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = save_checkpoint

    def full(path: Path, state: Any, *more: Any) -> None:
        if state.images_seen in (32, 64):
            refused()
        save(path, state, *more)

    monkeypatch.setattr(journals, "save_checkpoint", full)
    assert train(tmp_path) == small.IMAGES
    rows = small.events(tmp_path, "disk-full")
    assert [(r["images_seen"], r["action"], r["severity"]) for r in rows] == [
        (32, "retry", "warning"),
        (64, "retry", "warning"),
    ]
    assert [r["evidence"]["times"] for r in rows] == [1, 2]
    assert rows[0]["evidence"]["free_bytes"] > 0 and "no space left" in rows[0]["message"]
    assert differences(quiet, tmp_path) == []
    assert RunDir(tmp_path).checkpoint_at(96).exists()


def test_logs_that_cannot_be_written_are_written_later(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines of that time are lost; the events are not."""
    closed: list[int] = []

    def guarded(path: Path, row: Any) -> None:
        refused() if closed else append_jsonl(path, row)

    monkeypatch.setattr(journals, "append_jsonl", guarded)
    monkeypatch.setattr(prepared, "append_jsonl", guarded)

    def window(at: int, state: Any) -> None:
        closed[:] = [1] if 5 <= at < 10 else []

    pixel = small.nan_pixel(6)
    assert train(tmp_path, tamper=small.Disturb(batch=pixel.batch, before=window)) == small.IMAGES
    rows = small.events(tmp_path)
    assert [r["images_seen"] for r in rows if r["kind"] == "non-finite-input"] == [7 * B]
    assert {r["images_seen"] for r in rows if r["kind"] == "log-failed"} == {6 * B, 8 * B, 10 * B}
    assert {r["action"] for r in rows if r["kind"] == "log-failed"} == {"retry"}
    lines = [row["images_seen"] for row in read_jsonl(tmp_path / "metrics.jsonl")]
    whole = [row["images_seen"] for row in read_jsonl(quiet / "metrics.jsonl")]
    assert lines == [n for n in whole if n not in (6 * B, 8 * B, 10 * B)]


def test_an_event_of_the_last_update_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = bench(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(prepared, "append_jsonl", refused)
        journal.incident(Incident(Sign("plateau", "info", 8, 0, "Flat."), "none"))
        journal.incident(Incident(Sign("ascent", "critical", 8, 0, "Up."), "rollback"))
        assert small.events(tmp_path) == []
        with pytest.raises(ArtifactError):
            journal.finish()
    journal.finish()
    assert [row["kind"] for row in small.events(tmp_path)] == ["plateau", "ascent"]
    journal.finish()
    assert len(small.events(tmp_path)) == 2


def test_a_disk_that_stays_full_ends_the_run_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, save = bench(tmp_path), save_checkpoint

    def again() -> None:
        journal.owed = ["checkpoint"]
        journal.catch_up()

    monkeypatch.setattr(journals, "save_checkpoint", refused)
    for _ in range(20):
        again()
    monkeypatch.setattr(journals, "save_checkpoint", save)
    again()  # one that works, and all is forgiven
    monkeypatch.setattr(journals, "save_checkpoint", refused)
    for _ in range(20):
        again()
    with pytest.raises(ArtifactError, match="no space left"):
        again()


def test_other_errors_are_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = bench(tmp_path)

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(journals, "save_snapshot", broken)
    journal.owed = ["snapshot", "checkpoint"]
    with pytest.raises(ZeroDivisionError):
        journal.catch_up()
    assert journal.owed == ["snapshot", "checkpoint"]


def test_an_event_is_written_once_by_whoever_resumes(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    sign = Sign("bad-batch", "warning", 64, 56, "Seen.")
    for _ in range(2):
        log_row(run, Incident(sign, "skip", {"images": 8}).row())
        log_event(run, 64, "info", "resumed", "Here.")
    assert len(read_jsonl(run.log("events"))) == 2
    # another decision about the same sight is another event
    log_row(run, Incident(sign, "stop").row())
    log_row(run, Incident(sign, "skip", {"images": 16}).row())
    log_event(run, 72, "info", "resumed", "Here.")
    assert len(read_jsonl(run.log("events"))) == 5


# --- files of others


def unfinished(quiet: Path, root: Path) -> Path:
    """A copy of a run without its last checkpoint."""
    shutil.copytree(quiet, root)
    RunDir(root).checkpoint_files()[-1].unlink()
    return root


def test_a_checkpoint_of_another_run_is_set_aside(quiet: Path, tmp_path: Path) -> None:
    """It is newer, whole, and of a network of the same shape: only its seed is another."""
    root = unfinished(quiet, tmp_path / "run")
    other = bench(tmp_path / "other", seed=1)
    other.state.images_seen = 10**6
    other.checkpoint()
    stranger = other.job.run.checkpoint_at(10**6)
    shutil.copy(stranger, RunDir(root).checkpoints)
    assert train(root) == small.IMAGES
    (event,) = small.events(root, "damaged-checkpoint")
    assert event["action"] == "set-aside" and event["culprit"]["files"] == [stranger.name]
    assert "belongs to another run" in event["message"]
    assert event["images_seen"] == 96
    assert (RunDir(root).checkpoints / stranger.name).with_suffix(".damaged").exists()
    assert differences(quiet, root) == []


def test_only_checkpoints_of_another_run_are_no_beginning(tmp_path: Path) -> None:
    bench(tmp_path, seed=1).checkpoint()
    journal = bench(tmp_path)
    with pytest.raises(ArtifactError, match="belongs to another run"):
        journal.restore()
    assert RunDir(tmp_path).checkpoint_at(0).exists()


def test_other_images_are_another_run(tmp_path: Path) -> None:
    job = small.job(tmp_path)
    journal = Journal(job, fresh_state(job, lambda text: None))
    changed = replace(job.dataset, hashes=("x",) * len(job.dataset))
    assert journal.lineage() == bench(tmp_path).lineage()
    assert journal.lineage() != Journal(replace(job, dataset=changed), journal.state).lineage()
    assert journal.lineage() != bench(tmp_path, model__depth=2).lineage()


def test_the_plain_data_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, {"w": torch.ones(3)}, {"kind": "checkpoint", "lineage": "x"})
    assert read_meta(path) == {"kind": "checkpoint", "lineage": "x"}
    whole = path.read_bytes()

    def written(content: bytes) -> dict[str, Any]:
        path.write_bytes(content)
        return read_meta(path)

    assert written(whole[:20]) == written(b"") == written(b"\x80\x04pickle...") == {}
    assert written((90 * 2**20).to_bytes(8, "little") + b"{") == {}
    for text in ("[" * 10**5, "[1]", "{", ""):
        header = json.dumps({"__metadata__": {"poise": text}}).encode()
        assert written(len(header).to_bytes(8, "little") + header) == {}
    assert read_meta(tmp_path / "none") == {}


# --- signals in the middle of a look


def signalled(
    monkeypatch: pytest.MonkeyPatch, name: str, at: int, number: signal.Signals = signal.SIGTERM
) -> list[str]:
    """A function of the journal in which a signal arrives, once, at so many images."""
    work: Callable[..., Any] = getattr(journals, name)
    story: list[str] = []

    def interrupted(job: Any, state: Any, *more: Any) -> Any:
        if state.images_seen == at and not story:
            story.append("begun")
            os.kill(os.getpid(), number)
            story.append("ended")
        return work(job, state, *more)

    monkeypatch.setattr(journals, name, interrupted)
    return story


@pytest.mark.parametrize(
    ("name", "phase", "at"),
    [
        ("validate", "validation", 64),
        ("draw_grid", "grid", 64),
        ("validate", "validation", small.IMAGES),
    ],
)
def test_a_signal_during_a_look_is_obeyed_and_the_look_made_up_for(
    quiet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    phase: str,
    at: int,
) -> None:
    story = signalled(monkeypatch, name, at)
    with pytest.raises(Interrupted, match=f"SIGTERM at {at} images"):
        train(tmp_path)
    assert story == ["begun"]  # and broken off at once
    (event,) = small.events(tmp_path, "interrupted")
    assert event["message"] == f"SIGTERM came during a {phase}; the state at {at} images is saved."
    assert event["cause"] == "interrupted" and event["images_seen"] == at
    meta = small.newest(tmp_path)[1]
    assert meta["images_seen"] == at and meta["owed"][0] == phase
    assert not (tmp_path / "alive.json").exists()
    assert train(tmp_path) == small.IMAGES
    assert differences(quiet, tmp_path) == []
    assert small.newest(tmp_path)[1]["owed"] == []


def test_a_signal_while_the_last_files_are_written_is_obeyed_too(
    quiet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(quiet, tmp_path / "run")
    RunDir(root).snapshot_at(small.IMAGES).unlink()
    save = save_snapshot

    def interrupted(*given: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        save(*given)

    with monkeypatch.context() as patch:
        patch.setattr(journals, "save_snapshot", interrupted)
        with pytest.raises(Interrupted):
            train(root)
    (event,) = small.events(root, "interrupted")
    assert "during a snapshot" in event["message"]
    assert RunDir(root).snapshot_at(small.IMAGES).exists()  # what was begun was ended
    assert train(root) == small.IMAGES
    # the rate of an update that does not come is no difference
    assert set(differences(quiet, root)) <= {"lr_scale"}


def test_killed_right_after_a_validation_its_verdict_still_counts(
    quiet: Path, tmp_path: Path
) -> None:
    """The checkpoint is from before the rate was lowered for what the validation found."""

    def die(at: int, state: Any) -> None:
        if at == 13:
            raise Killed

    with pytest.raises(Killed):
        train(tmp_path, tamper=small.Disturb(before=die))
    assert small.newest(tmp_path)[1]["images_seen"] == 96
    assert train(tmp_path) == small.IMAGES
    assert differences(quiet, tmp_path) == []


def test_killed_while_the_rate_rises_again_the_rise_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a rate that was cut; the factor changes with every update."""
    monkeypatch.setattr(learning, "Rate", lambda batch: Rate(batch, scale=0.5, warm_from=-B * 5))

    def die(at: int, state: Any) -> None:
        if at == 6:
            raise Killed

    config = small.configured()
    small.train(tmp_path / "one", config)
    rates = [row["lr"] for row in read_jsonl(tmp_path / "one" / "metrics.jsonl")]
    assert len(set(rates)) == len(rates)
    with pytest.raises(Killed):
        small.train(tmp_path / "two", config, small.Disturb(before=die))
    small.train(tmp_path / "two", config)
    assert small.differences(tmp_path / "one", tmp_path / "two", *LOGS) == []


def test_what_is_due_is_due_once(quiet: Path) -> None:
    for name in LOGS:
        rows = read_jsonl(quiet / name)
        keys = [(row["images_seen"], row.get("weights")) for row in rows]
        assert len(keys) == len(set(keys))
    seen = sorted({row["images_seen"] for row in read_jsonl(quiet / "validation.jsonl")})
    assert seen == [32, 64, 96, 128]
    assert [int(p.stem) for p in sorted((quiet / "samples").iterdir())] == [64, 128]


@pytest.mark.parametrize(("quiet", "proved"), [(10**9, 950), (50, 950), (10, 940), (0, 950)])
def test_a_checkpoint_has_proved_good_if_long_nothing_was_seen_after_it(
    quiet: int, proved: int
) -> None:
    """In updates of one image: at 1,000, with the last sign so many updates ago."""
    training = SimpleNamespace(batch=1)
    job = SimpleNamespace(config=SimpleNamespace(training=training))
    now = SimpleNamespace(images_seen=1000)
    journal: Any = SimpleNamespace(job=job, state=now, quiet=lambda: quiet)
    assert Journal._proved(journal) == proved
