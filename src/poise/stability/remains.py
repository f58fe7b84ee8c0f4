"""What a run folder holds that nobody works on: its state, checkpoints, what is half done."""

import json
import os
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from poise.artifacts import RunDir, load_tensors, read_json
from poise.errors import ArtifactError, PoiseError
from poise.processes import is_running
from poise.report.words import is_number, listed, number, plural
from poise.stability.finding import Finding

_LARGE = 2 * 2**30  # bytes of a checkpoint that is still read whole
_LOGS = ("metrics", "timing", "validation", "magnitudes", "events")
_MOST = 64 * 2**20  # bytes of a log that are read, its end
_QUIET = 900.0  # seconds without a new line after which a run without a process number is gone

Row = dict[str, Any]


def state_of(run: RunDir, about: Row) -> str:
    """finished, running, interrupted, failed, killed or unknown.

    A run that calls itself running is killed when its process is gone, or, where no process can
    be looked for, when nothing was written for a quarter of an hour.
    """
    status = str(about.get("status"))
    if status != "running":
        return status if status in ("finished", "interrupted", "failed", "stopped") else "unknown"
    runs = is_running(_process(run))
    if runs is None:
        newest = max((p.stat().st_mtime for p in run.root.glob("*.json*")), default=0.0)
        runs = time.time() - newest < _QUIET
    return "running" if runs else "killed"


def _process(run: RunDir) -> Any:
    try:
        return read_json(run.alive)
    except ArtifactError:
        return None


def resume_command(run: RunDir, about: Row) -> str:
    """How to go on with a run."""
    source = about.get("source")
    words = ["poise", "train", str(source) if source else "SOURCE", "--run", str(run.root)]
    return shlex.join([*words, "--resume"])


def read_rows(path: Path) -> tuple[list[Row], int]:
    """Whole lines with images seen, oldest first, and how many others there were.

    A last line that was cut off is not counted: the run may be writing it.
    """
    if not path.is_file():
        return [], 0
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _MOST))
        lines = file.read().split(b"\n")
    rows: list[Row] = []
    damaged = 0
    for line in lines[size > _MOST : -1]:
        row = _row(line)
        damaged += row is None
        if row is not None:
            rows.append(row)
    last = _row(lines[-1])
    return rows + ([last] if last is not None else []), damaged


def remains(run: RunDir, about: Row, state: str, seen: int) -> Iterator[Finding]:
    """State of the run and of its checkpoints, as findings."""
    command = resume_command(run, about)
    yield from _ending(state, about, seen, command)
    good = 0
    for path in reversed(run.checkpoint_files()):
        problem = _checkpoint_problem(path)
        if problem is None:
            good += 1
            continue
        cause, sentence = problem
        yield Finding(cause, "critical", _position(path), sentence, {"file": path.name})
    yield from _left_over(run)
    if good == 0 and state in ("running", "interrupted", "failed", "killed", "stopped") and seen:
        snapshots = len(run.snapshot_files())
        sentence = f"There is no whole checkpoint to resume from; {snapshots} snapshots are left."
        do = "Sample from the newest snapshot, or start a new run in another folder."
        yield Finding("incomplete-checkpoint", "critical", seen, sentence, {}, do)


def damaged_logs(run: RunDir) -> Iterator[Finding]:
    """Logs with lines that cannot be read."""
    for name in _LOGS:
        path = run.log(name)
        try:
            damaged = read_rows(path)[1]
        except OSError as error:
            sentence = f"{path.name} cannot be read: {type(error).__name__}."
            yield Finding("log-failed", "warning", None, sentence, {"file": path.name})
            continue
        if damaged:
            sentence = f"{path.name} has {plural(damaged, 'line')} that cannot be read."
            evidence = {"file": path.name, "lines": damaged}
            yield Finding("log-failed", "warning", None, sentence, evidence)


def _ending(state: str, about: Row, seen: int, command: str) -> Iterator[Finding]:
    planned = about.get("planned_images")
    of = f" of {planned:,}" if is_number(planned) else ""
    where = f"after {seen:,}{of} images"
    if state == "interrupted":
        sentence = f"The run was interrupted {where}; its state was saved."
        yield Finding("interrupted", "info", seen, sentence, {}, f"Go on with: {command}")
    elif state == "killed":
        sentence = f"The run calls itself running, but nobody works on it; it was left {where}."
        yield Finding("killed", "critical", seen, sentence, {}, f"Go on with: {command}")
    elif state in ("failed", "stopped"):
        ended = "failed" if state == "failed" else "was stopped by the guard"
        reason = about.get("reason") or about.get("error")
        why = f": {reason}" if isinstance(reason, str) and reason else "."
        cause = about.get("cause") if isinstance(about.get("cause"), str) else "divergence"
        do = f"Change what the other findings name, then go on with: {command}"
        yield Finding(str(cause), "critical", seen, f"The run {ended} {where}{why}", {}, do)
    elif state == "unknown":
        sentence = "run.json does not say how the run stands."
        yield Finding("log-failed", "warning", None, sentence, {"status": about.get("status")})


def _checkpoint_problem(path: Path) -> tuple[str, str] | None:
    """(cause, sentence) for a checkpoint that should not be used; None for a good one."""
    try:
        if path.stat().st_size > _LARGE:
            return None
        tensors, meta = load_tensors(path)
    except (PoiseError, OSError, ValueError, RuntimeError) as error:
        said = error.found if isinstance(error, PoiseError) else type(error).__name__
        return "damaged-checkpoint", f"{path.name} cannot be used: {said}"
    if not isinstance(meta, dict) or not tensors:
        return "incomplete-checkpoint", f"{path.name} holds no state of a training."
    bad = [n for n, t in tensors.items() if t.is_floating_point() and not _finite(t)]
    weights = [name for name in bad if name.startswith(("denoiser/", "ema_"))]
    if weights:
        kind = "ema-damaged" if all(name.startswith("ema_") for name in weights) else None
        tensors_named = listed(weights, 3)
        sentence = f"{path.name} holds values that are not finite: {tensors_named}."
        return kind or "weights-damaged", sentence
    return None


def _left_over(run: RunDir) -> Iterator[Finding]:
    aside = sorted(run.checkpoints.glob("*.damaged"))
    if aside:
        names = listed([path.name for path in aside], 3)
        sentence = f"{plural(len(aside), 'damaged checkpoint')} set aside on a resume: {names}."
        yield Finding("damaged-checkpoint", "info", _position(aside[0]), sentence)
    parts = [p for pattern in (".*.part", ".tmp*") for p in run.root.rglob(pattern)]
    if parts:
        size = sum(path.stat().st_size for path in parts if path.is_file())
        sentence = (
            f"{plural(len(parts), 'file')} half written ({number(size / 2**20)} MiB): a process "
            "was stopped while it saved."
        )
        do = "Nothing: the next resume removes them, and what was saved before is whole."
        yield Finding("incomplete-checkpoint", "info", None, sentence, {}, do)


def _finite(tensor: torch.Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _position(path: Path) -> int | None:
    stem = path.name.partition(".")[0]
    return int(stem) if stem.isascii() and stem.isdecimal() else None


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line.decode("utf-8", errors="replace"))
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and is_number(row.get("images_seen")) else None
