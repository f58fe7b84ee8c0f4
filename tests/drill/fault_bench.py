"""A training small enough to be disturbed in every way, and the story of what happened."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch, batches
from poise.data.dataset import Dataset
from poise.data.prefetch import Feed
from poise.drill.disturbance import Disturbance
from poise.drill.kind import Fault
from poise.drill.place import Place
from poise.runtime import Runtime, generator_at
from poise.settings import Config
from poise.training.loop import StepRecord, TrainState, steps, weights_of

BATCH, CLASSES, TRAIN = 8, 3, 40
AT = 2  # of most faults here


def config_of(architecture: str) -> Config:
    settings = {
        "model.architecture": architecture,
        "model.channels": 8,
        "model.channels_per_head": 8,
        "model.channel_mult": [1],
        "model.attn_resolutions": [],
        "model.depth": 3,
        "training.batch": BATCH,
        "training.images": 1000,
        "training.lr": 0.01,
        "training.warmup": 0.0,
        "data.augment": "none",
        "data.flip": "off",
    }
    return resolve(None, settings)


@cache
def _dataset(channels: int) -> Any:
    generator = generator_at(0, 0, "pictures")
    coarse = torch.randint(40, 215, (TRAIN + 10, channels, 2, 2), generator=generator)
    images = coarse.to(torch.uint8).repeat_interleave(4, 2).repeat_interleave(4, 3).numpy()
    labels = np.arange(TRAIN + 10) % CLASSES
    return SimpleNamespace(images=images, labels=labels)


class Bench:
    """A training small enough to be run for every kind, with a door for the tamper."""

    def __init__(self, *faults: Fault, architecture: str = "edm2", channels: int = 1) -> None:
        self.config, self.dataset = config_of(architecture), _dataset(channels)
        facts = DataFacts(8, channels, ("a", "b", "c"), 0.4)
        denoiser = build_denoiser(self.config, facts, Runtime(torch.device("cpu"), torch.float32))
        with torch.no_grad():  # gains start at zero, behind which layers hear nothing
            for name, weight in denoiser.named_parameters():
                if weight.ndim == 0 or "out_conv.weight" in name or "conv1.weight" in name:
                    weight.add_(0.1)
        self.state = TrainState.fresh(denoiser, self.config.training)
        self.state.ema.update(BATCH, BATCH)
        splits = SimpleNamespace(train=np.arange(TRAIN))
        job = SimpleNamespace(dataset=self.dataset, splits=splits, config=self.config)
        self.drawn: list[dict[str, Any]] = []
        self.journal: Any = SimpleNamespace(job=job, draw=self._draw)
        self.tamper = Disturbance(list(faults))
        self.batches: list[Batch] = []
        self.feed: Feed | None = None

    def _draw(self, denoise: Any, **asked: Any) -> Any:
        self.drawn.append(asked)
        rows = [0] * asked["count"] if asked["labels"] is None else asked["labels"]
        return np.stack([np.full((1, 8, 8), 10 * row + i) for i, row in enumerate(rows)])

    def session(self) -> Iterator[StepRecord]:
        """Updates from the state's position on, as a start, a resume or a rollback makes them."""
        self.tamper.begin(self.state, self.journal)
        dataset = cast(Dataset, self.dataset)
        plain = batches(
            dataset, np.arange(TRAIN), batch=BATCH, seed=0, start=self.state.images_seen
        )
        self.feed = Feed(plain)

        def seen() -> Iterator[Batch]:
            for batch in self.tamper.stream(cast(Iterator[Batch], self.feed)):
                self.batches.append(batch)
                yield batch

        return self.tamper.records(steps(self.state, seen(), self.config, until=10**6))

    def weights(self) -> dict[str, torch.Tensor]:
        return {k: w.detach().clone() for k, w in weights_of(self.state.denoiser).items()}

    def averages(self) -> list[dict[str, torch.Tensor]]:
        return [{k: w.clone() for k, w in a.items()} for a in self.state.ema.profiles.values()]

    def place(self) -> Place:
        return Place(self.state, self.journal)


@dataclass
class Story:
    """What happened: entry i is update i, taken while the record is in the consumer's hands."""

    bench: Bench
    records: list[StepRecord] = field(default_factory=list)
    weights: list[dict[str, torch.Tensor]] = field(default_factory=list)  # after update i
    averages: list[list[dict[str, torch.Tensor]]] = field(default_factory=list)
    grads: list[dict[str, torch.Tensor]] = field(default_factory=list)
    notes: list[Any] = field(default_factory=list)

    @property
    def batches(self) -> list[Batch]:
        return self.bench.batches


def tell(
    *faults: Fault, updates: int = 5, note: Callable[[Bench], Any] = lambda b: None, **options: Any
) -> Story:
    """Run so many updates with the faults."""
    story = Story(Bench(*faults, **options))
    bench = story.bench
    for record in bench.session():
        story.records.append(record)
        story.weights.append(bench.weights())
        story.averages.append(bench.averages())
        story.grads.append(
            {
                k: w.grad.clone()
                for k, w in weights_of(bench.state.denoiser).items()
                if w.grad is not None
            }
        )
        story.notes.append(note(bench))
        if len(story.records) == updates:
            break
    return story


@cache
def healthy() -> Story:
    return tell()


def same_until(story: Story, update: int) -> bool:
    """Whether all went as in the undisturbed run before this update, bit by bit."""
    return all(
        torch.equal(story.weights[i][k], healthy().weights[i][k])
        for i in range(update)
        for k in story.weights[i]
    )


def left_out(story: Story) -> list[int]:
    """Updates that were not applied."""
    return [i for i, r in enumerate(story.records) if not r.applied]


def rates(story: Story) -> list[float]:
    """The rate of each update, relative to the schedule."""
    return [r.used_lr / r.schedule_lr for r in story.records]


def nan_entries(averages: list[dict[str, torch.Tensor]]) -> list[int]:
    """How many numbers of each profile are NaN."""
    return [sum(int(w.isnan().sum()) for w in profile.values()) for profile in averages]
