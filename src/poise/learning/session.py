"""The stream of batches of a session: what is left out of it, and the door for fire drills."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from poise.data.batches import Batch
from poise.journal import Journal
from poise.training.inputs import check_inputs
from poise.training.loop import StepRecord, TrainState


class Tamper(Protocol):
    """Somebody who disturbs a training on purpose: a fire drill. Nothing else uses this door."""

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Called at the start of each session: after a start, a resume or a rollback."""

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they reach the loop."""

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records; between two of them anything may be changed."""


@dataclass
class Quarantine:
    """Images that are not trained on any more; a good one of the same batch takes their place.

    So a position in the stream means the same whatever was left out, and resuming stays exact.
    """

    num_classes: int
    limit: float | None  # as `check_inputs` takes it
    images: set[int] = field(default_factory=set)  # data set indices
    screened: set[str] = field(default_factory=set)  # kinds looked for in every batch
    found: set[int] = field(default_factory=set)  # images that screening added

    def pass_on(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches with bad images replaced; one without any good image is passed as it is."""
        for batch in stream:
            yield self._cleaned(batch) if self.images or self.screened else batch

    def _cleaned(self, batch: Batch) -> Batch:
        indices = batch.indices.tolist()
        bad = torch.tensor([i in self.images for i in indices])
        if self.screened:
            check = check_inputs(batch, num_classes=self.num_classes, limit=self.limit)
            seen = [
                reason in self.screened or (flat and "flat" in self.screened)
                for reason, flat in zip(check.reasons, check.flat.tolist(), strict=True)
            ]
            bad |= torch.tensor(seen)
            fresh = {i for i, hit in zip(indices, seen, strict=True) if hit} - self.images
            self.images |= fresh
            self.found |= fresh
        good = (~bad).nonzero()[:, 0]
        if not bad.any() or not len(good):
            return batch
        rows = torch.arange(len(indices))
        rows[bad] = good[torch.arange(int(bad.sum())) % len(good)]
        labels = None if batch.labels is None else batch.labels[rows]
        return Batch(batch.images[rows], labels, batch.indices[rows])

    def state(self) -> dict[str, Any]:
        """As plain data, for a checkpoint."""
        return {
            "images": sorted(self.images),
            "screened": sorted(self.screened),
            "found": sorted(self.found),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self.images = set(state["images"])
        self.screened = set(state["screened"])
        self.found = set(state["found"])
