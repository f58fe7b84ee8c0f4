"""Stopped and resumed equals never stopped, bit by bit, whoever stops it and when."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from poise import pipeline
from poise.artifacts import load_tensors, read_json, read_jsonl, save_tensors
from poise.errors import Interrupted
from poise.journal import Journal
from poise.training.loop import StepRecord

BEGIN = ["--images", str(tiny.IMAGES), *tiny.set_options()]


def train(root: Path, *more: str) -> int:
    return tiny.call("train", "digits", "--run", str(root), *more)


def wait_until(process: subprocess.Popen[str], root: Path, images: int) -> None:
    """Return as soon as the log says that `images` were seen."""
    while tiny.images_logged(root) < images:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def unfinished(run: Path, to: Path) -> Path:
    """A copy of a finished run as it was after its last checkpoint but one."""
    shutil.copytree(run, to)
    sorted((to / "checkpoints").iterdir())[-1].unlink()
    info = read_json(to / "run.json")
    (to / "run.json").write_text(json.dumps(info | {"status": "running"}))
    return to


def test_the_comparison_sees_a_single_bit(undisturbed: Path, tmp_path: Path) -> None:
    other = shutil.copytree(undisturbed, tmp_path / "run")
    assert tiny.differences(undisturbed, other) == []
    last = sorted((other / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(last)
    name = next(name for name in tensors if name.startswith("optimizer/exp_avg/"))
    changed = tensors[name].clone()
    changed.view(torch.int32).reshape(-1)[0] ^= 1
    save_tensors(last, {**tensors, name: changed}, meta)
    assert tiny.differences(undisturbed, other) == [name]


def test_killed_three_times_equals_the_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    root, moments = tmp_path / "run", random.Random(1)
    options = BEGIN
    for target in sorted(moments.randrange(100, tiny.IMAGES - 200) for _ in range(3)):
        process = tiny.start("train", "digits", "--run", str(root), *options)
        wait_until(process, root, target)
        time.sleep(moments.random() * 0.02)
        process.kill()
        code, output = tiny.finish(process)
        assert code == -signal.SIGKILL, output
        assert read_json(root / "run.json")["status"] == "running"
        options = ["--resume"]
    assert train(root, "--resume") == 0
    assert [row["kind"] for row in read_jsonl(root / "events.jsonl")].count("resumed") >= 1
    assert tiny.differences(undisturbed, root) == []


def test_interrupted_by_signals_equals_the_undisturbed_run(
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, note = tmp_path / "run", Journal.note
    due: list[tuple[int, int]] = []

    def note_and_signal(self: Journal, record: StepRecord) -> None:
        note(self, record)
        if due and record.images_seen >= due[0][0]:
            os.kill(os.getpid(), due.pop()[1])

    monkeypatch.setattr(Journal, "note", note_and_signal)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    options = BEGIN
    for target, number in ((400, signal.SIGINT), (1200, signal.SIGTERM)):
        due.append((target, number))
        assert train(root, *options) == 130
        said = capsys.readouterr().err
        assert f"Stopped by {signal.Signals(number).name}" in said
        assert "Traceback" not in said
        assert read_json(root / "run.json")["status"] == "interrupted"
        _, meta = load_tensors(sorted((root / "checkpoints").iterdir())[-1])
        assert target <= meta["images_seen"] < target + 32
        assert f"{meta['images_seen']:,} images; the state is saved" in said
        options = ["--resume"]
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert train(root, "--resume") == 0
    assert tiny.differences(undisturbed, root) == []
    assert [row["kind"] for row in read_jsonl(root / "events.jsonl")].count("resumed") == 2


@pytest.mark.parametrize("moment", ["validate", "snapshot", "checkpoint"])
def test_a_crash_at_the_end_of_training_equals_the_undisturbed_run(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """After the last update: between what is written last, or before the scores."""
    root = unfinished(undisturbed, tmp_path / "run")
    act = getattr(Journal, moment)

    def act_and_crash(self: Journal) -> None:
        act(self)
        if self.state.images_seen == tiny.IMAGES:
            raise Interrupted("Killed here.")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, moment, act_and_crash)
        assert train(root, "--resume") == 130
    assert train(root, "--resume") == 0
    assert tiny.differences(undisturbed, root) == []


@pytest.mark.parametrize("stage", ["evaluate", "write_report"])
def test_a_crash_after_training_leaves_a_run_that_can_be_finished(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    root = unfinished(undisturbed, tmp_path / "run")
    for name in ("report.html", "scores-val.json"):
        (root / name).unlink()

    def crash(*_: object, **__: object) -> None:
        raise Interrupted("Killed here.")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, stage, crash)
        assert train(root, "--resume") == 130
    assert train(root, "--resume") == 0
    assert tiny.differences(undisturbed, root) == []


@pytest.mark.parametrize("name", ["metrics", "validation"])
def test_nothing_is_logged_twice(undisturbed: Path, name: str) -> None:
    """3 validations do not divide 2000 images: the last one due and the one at the end meet."""
    rows = read_jsonl(undisturbed / f"{name}.jsonl")
    keys = [(row["images_seen"], row.get("weights")) for row in rows]
    assert len(keys) == len(set(keys))
    if name == "validation":
        assert keys[-1][0] == tiny.IMAGES


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize(
    "damage",
    [flip, lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(b"")],
    ids=["flipped", "truncated", "empty"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(
    undisturbed: Path, tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = shutil.copytree(undisturbed, tmp_path / "run")
    info = read_json(root / "run.json")
    (root / "run.json").write_text(json.dumps(info | {"status": "running"}))
    *_, before, last = sorted((root / "checkpoints").iterdir())
    damage(last)
    assert train(root, "--resume") == 0
    events = read_jsonl(root / "events.jsonl")
    (named,) = [row for row in events if row["kind"] == "damaged-checkpoint"]
    assert last.name in named["message"]
    assert named["images_seen"] == int(before.stem)
    assert tiny.differences(undisturbed, root) == []


def test_without_a_whole_checkpoint_the_run_stops_and_says_so(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = unfinished(undisturbed, tmp_path / "run")
    kept = sorted((root / "checkpoints").iterdir())
    for path in kept:
        flip(path)
    logs = (root / "metrics.jsonl").read_bytes()
    assert train(root, "--resume") == 1
    said = capsys.readouterr().err
    assert "No checkpoint of this run is whole" in said
    assert all(path.name in said for path in kept)
    assert (root / "metrics.jsonl").read_bytes() == logs
