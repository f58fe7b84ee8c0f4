"""Trainings of a few updates on planted pictures in memory, for tests of what watches them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from poise.artifacts import DataFacts, RunDir, load_tensors, read_jsonl, write_bytes, write_json
from poise.budget import Clock
from poise.config import resolve, to_toml
from poise.console import Screen
from poise.data.batches import Batch
from poise.data.imageset import Dataset
from poise.data.splits import Splits
from poise.journal import Journal, Prepared
from poise.learning.learn import learn
from poise.learning.session import Tamper
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import StepRecord, TrainState

BATCH, CLASSES, TRAIN, VAL = 8, 3, 64, 16
UPDATES, BETWEEN = 16, 4  # of a run; between two checkpoints
IMAGES = UPDATES * BATCH


def configured(**more: object) -> Config:
    """The smallest network; two underscores in a name stand for the dot."""
    settings: dict[str, object] = {
        "model.architecture": "mp_dit",
        "model.channels": 8,
        "model.channels_per_head": 8,
        "model.depth": 1,
        "model.patch": 4,
        "data.augment": "none",
        "data.flip": "off",
        "training.batch": BATCH,
        "training.images": IMAGES,
        "training.warmup": 0.1,
        "training.ema_stds": [0.1],
        "training.precision": "fp32",
        "training.compile": "off",
        "sampling.steps": 2,
        "validation.images": 8,
        "cadence.logs": UPDATES // 2,
        "cadence.checkpoints": UPDATES // BETWEEN,
        "cadence.validations": 1,
        "cadence.grids": 1,
        "cadence.snapshots": 2,
        "stability.probe_every": 6,
        "stability.preflight": False,
    }
    return resolve(None, settings | {k.replace("__", "."): v for k, v in more.items()})


@cache
def pictures() -> Dataset:
    """Four random squares each."""
    count = TRAIN + 2 * VAL
    squares = np.random.default_rng(0).integers(30, 225, (count, 1, 2, 2), np.uint8)
    return Dataset(
        images=squares.repeat(4, axis=2).repeat(4, axis=3),
        labels=np.arange(count) % CLASSES,
        label_names=("a", "b", "c"),
        names=tuple(f"{i}.png" for i in range(count)),
        hashes=tuple(str(i) for i in range(count)),
        given_splits=(None,) * count,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={"8x8": count},
        modes={"L": count},
    )


def job(root: Path, config: Config | None = None) -> Prepared:
    """A run about to train, or to go on, in `root`."""
    config, run, data = config or configured(), RunDir(root), pictures()
    write_bytes(run.config, to_toml(config).encode())
    write_json(run.run, {"status": "running"})
    order = np.arange(len(data))
    parts = Splits(order[:TRAIN], order[TRAIN : TRAIN + VAL], order[TRAIN + VAL :], ())
    facts = DataFacts(8, 1, data.label_names, 0.5)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    return Prepared(run, config, data, parts, facts, runtime, Clock(None))


def train(root: Path, config: Config | None = None, tamper: Tamper | None = None) -> int:
    """One session of the run in `root`, from whatever lies there to its end."""
    return learn(job(root, config), Screen(quiet=True), tamper=tamper)


@dataclass
class Disturb:
    """A tamper. It counts updates from 0 on, on and on over rollbacks."""

    batch: Callable[[int, Batch], Batch] = lambda at, batch: batch  # of update `at`
    before: Callable[[int, TrainState], Any] = lambda at, state: None  # update `at`
    made: int = 0  # updates
    sessions: int = 0

    def begin(self, state: TrainState, journal: Journal) -> None:
        self.state, self.journal = state, journal
        self.sessions += 1

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for batch in stream:
            self.before(self.made, self.state)
            yield self.batch(self.made, batch)

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        for record in records:
            self.made += 1
            yield record


def nan_pixel(at: int) -> Disturb:
    """One pixel of one image of update `at` is not a number."""

    def spoil(now: int, batch: Batch) -> Batch:
        if now != at:
            return batch
        images = batch.images.float()
        images[2, 0, 3, 3] = torch.nan
        return Batch(images, batch.labels, batch.indices)

    return Disturb(batch=spoil)


def nan_weight(*at: int) -> Disturb:
    """One weight is not a number from update `at` on."""

    def spoil(now: int, state: TrainState) -> None:
        if now in at:
            with torch.no_grad():
                next(w for w in state.denoiser.parameters() if w.ndim > 1).view(-1)[0] = torch.nan

    return Disturb(before=spoil)


def events(root: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The lines of events.jsonl, all or of one kind."""
    rows = read_jsonl(root / "events.jsonl")
    return [row for row in rows if kind is None or row["kind"] == kind]


def newest(root: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The last checkpoint: its tensors, its plain data."""
    return load_tensors(RunDir(root).checkpoint_files()[-1])


def differences(one: Path, other: Path, *logs: str) -> list[str]:
    """What the ends of two runs do not have in common, bit by bit; `logs` are compared as well."""
    found = [log for log in logs if (one / log).read_bytes() != (other / log).read_bytes()]
    (ours, a), (theirs, b) = newest(one), newest(other)
    found += sorted(ours.keys() ^ theirs.keys())
    found += [k for k in ("images_seen", "step", "lr_scale") if a[k] != b[k]]
    return found + [
        k for k in ours if k in theirs and ours[k].numpy().tobytes() != theirs[k].numpy().tobytes()
    ]
