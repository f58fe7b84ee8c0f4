"""Trainings of some seconds' hundredths, in memory, for tests of the guard and of the journal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

BATCH, CLASSES, COUNT = 8, 3, 96
UPDATES = 24
BETWEEN = 4  # updates between two checkpoints


def configured(**more: object) -> Config:
    """The smallest network; two underscores in a name stand for the dot."""
    settings: dict[str, object] = {
        "model.channels": 8,
        "model.channels_per_head": 8,
        "model.channel_mult": [1],
        "model.attn_resolutions": [],
        "data.augment": "none",
        "data.flip": "off",
        "training.batch": BATCH,
        "training.images": UPDATES * BATCH,
        "training.warmup": 0.1,
        "training.precision": "fp32",
        "training.compile": "off",
        "sampling.steps": 2,
        "evaluation.samples": 20,
        "validation.images": 8,
        "cadence.logs": 8,
        "cadence.checkpoints": UPDATES // BETWEEN,
        "cadence.validations": 3,
        "cadence.grids": 2,
        "cadence.snapshots": 2,
        "stability.preflight": False,
    }
    return resolve(None, settings | {k.replace("__", "."): v for k, v in more.items()})


@cache
def pictures() -> Dataset:
    """Stripes whose direction and width are the class, with a random phase and some noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    y, x = np.mgrid[:8, :8]
    waves = np.stack([x, y, x + y])[labels] * (0.8 + 0.3 * labels)[:, None, None]
    clean = np.sin(waves + rng.uniform(0, 6.3, COUNT)[:, None, None])
    images = 127.5 + 90 * clean + rng.normal(0, 6, clean.shape)
    return Dataset(
        images=images.clip(0, 255).astype(np.uint8)[:, None],
        labels=labels.astype(np.int64),
        label_names=("a", "b", "c"),
        names=tuple(f"{i}.png" for i in range(COUNT)),
        hashes=tuple(str(i) for i in range(COUNT)),
        given_splits=(None,) * COUNT,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={"8x8": COUNT},
        modes={"L": COUNT},
    )


def splits() -> Splits:
    """64 images to train on."""
    order = np.arange(COUNT)
    return Splits(order[:64], order[64:80], order[80:], ())


def job(root: Path, config: Config | None = None) -> Prepared:
    """A run about to train, or to go on, in `root`."""
    config, run = config or configured(), RunDir(root)
    write_bytes(run.config, to_toml(config).encode())
    write_json(run.run, {"status": "running"})
    facts = DataFacts(8, 1, ("a", "b", "c"), 0.5)
    runtime = Runtime(torch.device("cpu"), torch.float32)
    return Prepared(run, config, pictures(), splits(), facts, runtime, Clock(None))


@dataclass
class Disturb:
    """A tamper; updates are counted from 0, on over rollbacks."""

    batch: Callable[[int, Batch], Batch] = lambda at, batch: batch
    after: Callable[[int, TrainState], Any] = lambda at, state: None  # between two updates
    start: Callable[[int, TrainState, Journal], Any] = lambda at, state, journal: None
    updates: int = 0  # records that came
    sessions: int = 0
    journal: Journal | None = field(default=None, repr=False)
    state: TrainState | None = field(default=None, repr=False)
    drawn: int = 0

    def begin(self, state: TrainState, journal: Journal) -> None:
        self.state, self.journal, self.sessions = state, journal, self.sessions + 1
        self.start(self.updates, state, journal)

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        for batch in stream:
            yield self.batch(self.updates, batch)

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        for record in records:
            yield record
            self.updates += 1
            assert self.state is not None
            self.after(self.updates, self.state)


def train(root: Path, config: Config | None = None, tamper: Tamper | None = None) -> int:
    """A session of the run in `root`, from whatever lies there."""
    return learn(job(root, config), Screen(quiet=True), tamper=tamper)


def events(root: Path, cause: str | None = None) -> list[dict[str, Any]]:
    """Lines of events.jsonl; of one cause or kind."""
    rows = read_jsonl(root / "events.jsonl")
    return [r for r in rows if cause is None or r["kind"] == cause]


def last(root: Path) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint."""
    return load_tensors(RunDir(root).checkpoint_files()[-1])[0]
