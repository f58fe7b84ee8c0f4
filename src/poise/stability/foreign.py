"""Logs that others wrote: CSV, JSON lines, or JSON, with a loss and perhaps a gradient norm.

Names of columns are guessed; what is read is data alone, with limits on everything that grows.
"""

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from poise.errors import DataError, UsageError
from poise.report.page import visible
from poise.report.words import listed

_LARGEST = 512 * 2**20  # bytes of a file
_LONGEST = 2**20  # bytes of a line
_MOST_COLUMNS, _MOST_ROWS = 2_000, 2_000_000
_NUMBERS = re.compile(r"[^a-z0-9]+")
_KNOWN = {
    "loss": "loss train_loss training_loss loss_train loss_total total_loss train_total_loss "
    "train_loss_step train_loss_epoch loss_step step_loss mean_loss avg_loss running_loss lm_loss "
    "diffusion_loss mse_loss train_mse objective nll error train_error value",
    "grad_norm": "grad_norm gradient_norm train_grad_norm train_gradient_norm gradnorm "
    "global_grad_norm train_global_grad_norm global_gradient_norm total_norm grad_norm_total gnorm "
    "total_grad_norm grad_l2_norm grad_2_0_norm_total unclipped_grad_norm grad gradient grads_norm",
    "lr": "lr learning_rate train_lr train_learning_rate lr_0 lr_adam lr_adamw lr_group_0 rate "
    "learningrate current_lr",
    "step": "step global_step train_global_step trainer_global_step steps iteration iterations "
    "iter train_step update updates num_updates images_seen kimg progress_kimg batch",
    "epoch": "epoch train_epoch epochs",
    "val_loss": "val_loss valid_loss validation_loss eval_loss test_loss loss_val loss_eval "
    "val_loss_epoch val_error dev_loss",
}


@dataclass(frozen=True)
class Column:
    """One quantity over the rows."""

    name: str  # as it is in the file
    values: npt.NDArray[np.float64]  # [N]; NaN where nothing was logged or it was not finite
    broken: npt.NDArray[np.bool_]  # [N]; something was logged, and it was not finite

    def rows(self) -> npt.NDArray[np.int64]:
        """Where there is a finite value."""
        return np.flatnonzero(np.isfinite(self.values))


@dataclass(frozen=True)
class Log:
    """A training log: columns by meaning, and the step of every row."""

    unit: str  # of x: step, epoch, images or row
    x: npt.NDArray[np.float64]  # [N], rising
    columns: dict[str, Column]  # loss, grad_norm, lr, val_loss; only those that were found
    notes: tuple[str, ...] = ()
    resumed: tuple[float, ...] = ()  # where the log went back in time, in the unit of x


def read_log(path: Path) -> Log:
    """Read a log of somebody else's training.

    Raises:
        UsageError: no such file, or a kind that is not read.
        DataError: no loss in it, or no numbers.
    """
    if not path.is_file():
        raise UsageError(f"There is no file {path}.", expected="a run folder, or a CSV or JSON log")
    if path.stat().st_size > _LARGEST:
        raise DataError(f"{path} has more than {_LARGEST >> 20} MiB.", expected="a training log")
    with path.open("rb") as file:
        head = file.read(4096)
    if b"\0" in head or "tfevents" in path.name:
        raise UsageError(
            f"{path} is not text.",
            expected="CSV, JSON lines, or JSON",
            remedy="TensorBoard and W&B export a run as CSV.",
        )
    notes: list[str] = []
    rows = list(_rows(path, notes))
    if len(rows) >= _MOST_ROWS:
        notes.append(f"Only the first {_MOST_ROWS:,} rows were read.")
    return log_of(rows, str(path), notes)


def log_of(rows: list[dict[str, Any]], name: str, notes: Iterable[str] = ()) -> Log:
    """Rows of mixed names as a log.

    Raises:
        DataError: no loss among the columns.
    """
    names: dict[str, None] = {}
    for row in rows:
        if len(names) < _MOST_COLUMNS:
            names.update(dict.fromkeys(row))
    found = {meaning: _named(list(names), meaning) for meaning in _KNOWN}
    columns = {
        meaning: _column(rows, own)
        for meaning, own in found.items()
        if own is not None and meaning not in ("step", "epoch")
    }
    columns = {m: c for m, c in columns.items() if len(c.rows()) or c.broken.any()}
    if "loss" not in columns:
        shown = listed([visible(n, 40) for n in names], 12) or "none"
        raise DataError(
            f"No column of {name} is known as a loss; its columns: {shown}.",
            expected="a column named loss, train_loss or the like, with numbers",
            remedy="Rename the column to loss.",
        )
    return _in_time(rows, found, columns, list(notes))


def _in_time(
    rows: list[dict[str, Any]],
    found: dict[str, str | None],
    columns: dict[str, Column],
    notes: list[str],
) -> Log:
    """The rows as time ran: what was done again after a resume counts as it was the last time."""
    unit, x = "row", np.arange(len(rows), dtype=np.float64)
    for meaning in ("step", "epoch"):
        own = found[meaning]
        given = _column(rows, own).values if own is not None else x[:0]
        known = np.isfinite(given)
        if len(given) and known.mean() > 0.5 and len(np.unique(given[known])) > 0.2 * known.sum():
            unit = "images" if own == "images_seen" else meaning
            order = np.maximum.accumulate(np.where(known, np.arange(len(given)), 0))
            x = np.where(np.isfinite(given[order]), given[order], given[known][0])
            break
    back = np.flatnonzero(np.diff(x) < 0) + 1
    kept = np.ones(len(x), dtype=bool)
    resumed: list[float] = []
    start = float(x[0]) if len(x) else 0.0
    restarts = sum(x[i] <= start + 0.02 * (x[:i].max() - start) for i in back)
    if unit != "row" and restarts > 1:  # a counter within each epoch is no time
        unit, x, back = "row", np.arange(len(rows), dtype=np.float64), back[:0]
    for i in back[:1000]:
        kept[:i] &= x[:i] < x[i]
        resumed.append(float(x[i]))
    if resumed:
        notes.append(f"The log goes back in time {len(resumed)} times; the last account counts.")
    columns = {m: Column(c.name, c.values[kept], c.broken[kept]) for m, c in columns.items()}
    return Log(unit, x[kept], columns, tuple(notes), tuple(resumed))


def _named(names: list[str], meaning: str) -> str | None:
    """The column that means this: the best known name, else one that looks like it."""
    plain = {name: _NUMBERS.sub("_", name.lower()).strip("_") for name in names}
    for known in _KNOWN[meaning].split():
        for name, own in plain.items():
            if own == known:
                return name
    held_out = re.compile(r"(^|_)(val|valid|validation|eval|test|dev)(_|$)")
    for name, own in plain.items():
        held = bool(held_out.search(own))
        if meaning == "val_loss" and held and own.endswith("loss"):
            return name
        if meaning == "loss" and not held and (own.endswith("loss") or own.startswith("loss_")):
            return name
        if meaning == "grad_norm" and "grad" in own and "norm" in own:
            return name
        if meaning == "lr" and (own.startswith("lr_") or "learning_rate" in own):
            return name
    return None


def _column(rows: list[dict[str, Any]], name: str) -> Column:
    values = np.full(len(rows), math.nan)
    broken = np.zeros(len(rows), dtype=bool)
    for i, row in enumerate(rows):
        value = _number(row.get(name))
        if value is not None:
            broken[i] = not math.isfinite(value)
            values[i] = value if math.isfinite(value) else math.nan
    return Column(name, values, broken)


def _number(value: Any) -> float | None:
    """A number, also as text; None for nothing and for everything else."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if not isinstance(value, str) or not value.strip() or len(value) > 64 or "_" in value:
        return None
    try:
        return float(value)  # "nan" and "inf" too
    except ValueError:
        return None


def _rows(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        first = file.read(4096).lstrip()[:1]
    if first not in "{[" or not first:
        yield from _csv(path, notes)
        return
    whole = _whole_json(path)
    if whole is not None:
        yield from whole
        return
    skipped = 0
    for line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            skipped += bool(line.strip())
            continue
        if isinstance(row, dict):
            yield dict(_flat(row))
    if skipped:
        notes.append(f"{skipped} lines could not be read and were left out.")


def _whole_json(path: Path) -> list[dict[str, Any]] | None:
    """A file that is one JSON value: a list of rows, columns, or a trainer's state; else None."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return None
    if isinstance(value, dict):
        inner = next((value[k] for k in ("log_history", "history", "logs") if k in value), value)
        if isinstance(inner, dict) and any(isinstance(v, list) for v in inner.values()):
            lists = {k: v for k, v in inner.items() if isinstance(v, list)}
            most = min(max(map(len, lists.values())), _MOST_ROWS)
            return [{k: v[i] for k, v in lists.items() if i < len(v)} for i in range(most)]
        value = inner if isinstance(inner, list) else [inner]
    return [dict(_flat(row)) for row in value[:_MOST_ROWS] if isinstance(row, dict)]


def _flat(row: dict[str, Any], above: str = "", depth: int = 3) -> Iterator[tuple[str, Any]]:
    for key, value in list(row.items())[:_MOST_COLUMNS]:
        if isinstance(value, dict) and depth:
            yield from _flat(value, f"{above}{key}/", depth - 1)
        else:
            yield f"{above}{key}"[:200], value


def _lines(path: Path) -> Iterator[str]:
    """Lines of bearable length; the rest of a longer one is passed over."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        for _ in range(_MOST_ROWS):
            line = file.readline(_LONGEST)
            if not line:
                return
            part = line
            while part and not part.endswith("\n"):
                part = file.readline(_LONGEST)
            yield line.replace("\0", "")


def _csv(path: Path, notes: list[str]) -> Iterator[dict[str, Any]]:
    lines = (line for line in _lines(path) if line.strip() and not line.startswith("#"))
    head = next(lines, "")
    sign = max(",;\t ", key=lambda s: (head.count(s) > 0) * (2 if s != " " else 1))
    csv.field_size_limit(_LONGEST)
    cells = next(csv.reader([head], delimiter=sign), [])[:_MOST_COLUMNS]
    names = [cell.strip().strip('"')[:200] for cell in cells]
    if names and all(_number(name) is not None for name in names):
        usual = {1: ["loss"], 2: ["step", "loss"], 3: ["step", "loss", "grad_norm"]}
        names = usual.get(len(cells), ["step", "loss", "grad_norm", "lr"])
        notes.append(f"The file has no header; its columns were taken as {', '.join(names)}.")
        yield dict(zip(names, cells, strict=False))
    reader = csv.reader(lines, delimiter=sign, skipinitialspace=True)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue
        if sign == ";" or sign == "\t":
            row = [re.sub(r"^(-?\d+),(\d+)", r"\1.\2", cell) for cell in row]
        yield dict(zip(names, row, strict=False))
