"""The smallest run that still does everything, shared by the tests and scripts/kill_and_resume."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from poise import cli
from poise.artifacts import load_tensors

SETTINGS = {
    "model.channels": 8,
    "model.channels_per_head": 8,
    "model.attn_resolutions": [4],
    "training.batch": 32,
    "training.warmup": 0.1,
    "sampling.steps": 3,
    "evaluation.samples": 20,
    "validation.images": 16,
    "cadence.checkpoints": 15,
    "cadence.validations": 3,
    "cadence.grids": 2,
    "stability.preflight": False,
}
IMAGES = 2000  # no multiple of the batch


def set_options(**changes: object) -> list[str]:
    """SETTINGS as `--set` options; two underscores in a name of `changes` stand for the dot."""
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def call(*args: str) -> int:
    """The command line in this process; its exit code."""
    before, sys.argv = sys.argv, ["poise", *args]
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before
    return 0


def start(*args: str) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", "from poise.cli import main; main()", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and everything it printed."""
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def images_logged(root: Path) -> int:
    """Images seen by the last whole line of metrics.jsonl; -1 without one."""
    with contextlib.suppress(OSError, IndexError, ValueError, KeyError):
        lines = (root / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return int(json.loads(whole[-1])["images_seen"])
    return -1


def differences(one: Path, other: Path) -> list[str]:
    """What two run folders do not have in common, bit by bit, apart from clocks."""
    found = [
        f"no {name}"
        for name in ("report.html", "scores-val.json")
        if (one / name).exists() and not (other / name).exists()
    ]
    for name in ("metrics.jsonl", "validation.jsonl", "config.toml", "splits.json"):
        if (one / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    found += _tree(
        one / "samples", other / "samples", lambda a, b: a.read_bytes() != b.read_bytes()
    )
    found += _tree(one / "snapshots", other / "snapshots", _tensors_differ)
    last = [sorted((root / "checkpoints").glob("*.safetensors"))[-1] for root in (one, other)]
    if last[0].name != last[1].name:
        return [*found, f"last checkpoint {last[0].name} and {last[1].name}"]
    (ours, meta), (theirs, other_meta) = load_tensors(last[0]), load_tensors(last[1])
    if ours.keys() != theirs.keys() or meta["step"] != other_meta["step"]:
        found.append("names of the tensors, or the step")
    found += [name for name in ours if not same_bits(ours[name], theirs.get(name))]
    return found


def _tree(one: Path, other: Path, differ: Callable[[Path, Path], bool]) -> list[str]:
    names = [sorted(path.name for path in folder.iterdir()) for folder in (one, other)]
    if names[0] != names[1]:
        return [f"{one.name}/: {names[0]} and {names[1]}"]
    return [f"{one.name}/{name}" for name in names[0] if differ(one / name, other / name)]


def _tensors_differ(one: Path, other: Path) -> bool:
    """Not by bytes: the safetensors library orders its header as it likes."""
    (ours, meta), (theirs, other_meta) = load_tensors(one), load_tensors(other)
    same = all(same_bits(ours[name], theirs.get(name)) for name in ours)
    return not (same and meta == other_meta and ours.keys() == theirs.keys())


def same_bits(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """Equal in type, shape and every bit; NaN equals NaN."""
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    flat = one.contiguous().reshape(-1).view(torch.uint8)
    return torch.equal(flat, other.contiguous().reshape(-1).view(torch.uint8))
