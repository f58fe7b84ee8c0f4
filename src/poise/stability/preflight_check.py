"""One answer of the preflight: what was looked at, what is to be done about it, and the numbers."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from poise.data.batches import Batch

Verdict = Literal["ok", "warn", "refuse", "changed", "skipped"]


@dataclass(frozen=True)
class Check:
    """The answer of one check."""

    name: str
    verdict: Verdict  # refuse: the run should not start; changed: a setting was, said in `sentence`
    sentence: str  # for a person
    numbers: dict[str, Any] = field(default_factory=dict)  # plain data

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Pace:
    """How long an update takes on this machine: a part for itself, and a part for each image."""

    update: float  # seconds
    image: float  # seconds

    def seconds(self, images: int, updates: int = 1) -> float:
        """Of `updates` updates of `images` images each."""
        return updates * (self.update + images * self.image)

    def largest(self, seconds: float, updates: int, sizes: tuple[int, ...]) -> int | None:
        """The first of `sizes`, in their order, whose updates fit the time."""
        return next((n for n in sizes if self.seconds(n, updates) <= seconds), None)


def part_of(batch: Batch, start: int, count: int) -> Batch:
    """`count` images from `start` on, from the first again after the last."""
    rows = (torch.arange(count) + start) % len(batch.images)
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(batch.images[rows], labels, batch.indices[rows])


def mib(count: float) -> str:
    """Bytes for people: `312 MiB` or `4.1 GiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
