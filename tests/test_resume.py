"""Stopped and resumed equals never stopped, bit by bit, whoever stops it and when."""

import json
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import tiny

from poise.artifacts import load_tensors, read_json


def train(root: Path, *more: str) -> subprocess.Popen[str]:
    return tiny.start("train", "digits", "--run", str(root), *more)


def begin(root: Path) -> subprocess.Popen[str]:
    return train(root, "--images", str(tiny.IMAGES), *tiny.set_options())


def wait_until(process: subprocess.Popen[str], root: Path, images: int) -> None:
    """Return as soon as the log says that `images` were seen."""
    while tiny.images_logged(root) < images:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)


def test_the_comparison_sees_a_single_bit(undisturbed: Path, tmp_path: Path) -> None:
    from shutil import copytree

    import torch

    from poise.artifacts import save_tensors

    other = copytree(undisturbed, tmp_path / "run")
    assert tiny.differences(undisturbed, other) == []
    last = sorted((other / "checkpoints").iterdir())[-1]
    tensors, meta = load_tensors(last)
    name = next(name for name in tensors if name.startswith("adam/exp_avg/"))
    changed = tensors[name].clone()
    changed.view(torch.int32).reshape(-1)[0] ^= 1
    save_tensors(last, {**tensors, name: changed}, meta)
    assert tiny.differences(undisturbed, other) == [name]


def test_killed_three_times_equals_the_undisturbed_run(undisturbed: Path, tmp_path: Path) -> None:
    root, moments = tmp_path / "run", random.Random(1)
    targets = sorted(moments.randrange(100, tiny.IMAGES - 300) for _ in range(3))
    process = begin(root)
    for target in targets:
        wait_until(process, root, target)
        time.sleep(moments.random() * 0.02)
        process.kill()
        code, output = tiny.finish(process)
        assert code == -signal.SIGKILL, output
        assert read_json(root / "run.json")["status"] == "running"
        process = train(root, "--resume")
    code, output = tiny.finish(process)
    assert code == 0, output
    assert "resumed at" in output
    assert tiny.differences(undisturbed, root) == []


def test_interrupted_by_signals_equals_the_undisturbed_run(
    undisturbed: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    process = begin(root)
    for target, number in ((400, signal.SIGINT), (1200, signal.SIGTERM)):
        wait_until(process, root, target)
        process.send_signal(number)
        code, output = tiny.finish(process)
        assert code == 130, output
        assert signal.Signals(number).name in output
        assert "the state is saved" in output
        assert "Traceback" not in output
        assert read_json(root / "run.json")["status"] == "interrupted"
        saved = sorted((root / "checkpoints").iterdir())[-1]
        _, meta = load_tensors(saved)
        assert meta["images_seen"] >= target
        assert f"{meta['images_seen']:,} images" in output
        process = train(root, "--resume")
    code, output = tiny.finish(process)
    assert code == 0, output
    assert tiny.differences(undisturbed, root) == []
    resumed = [
        row
        for row in map(json.loads, (root / "events.jsonl").read_text().splitlines())
        if row["kind"] == "resumed"
    ]
    assert len(resumed) == 2


@pytest.mark.parametrize("name", ["metrics", "validation"])
def test_nothing_is_logged_twice(undisturbed: Path, name: str) -> None:
    """7 validations do not divide 2000 images: the last one due and the one at the end meet."""
    rows = [json.loads(line) for line in (undisturbed / f"{name}.jsonl").read_text().splitlines()]
    keys = [(row["images_seen"], row.get("weights")) for row in rows]
    assert len(keys) == len(set(keys))
    assert keys[-1][0] == (tiny.IMAGES if name == "validation" else keys[-1][0])
