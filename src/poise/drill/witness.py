"""Somebody who stands beside a run and writes down what happened when, in updates that only go up.

The run's own clock, images seen, goes back at a rollback. The witness counts every update that was
made, and reads `events.jsonl` from outside, as a user would.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.artifacts import RunDir, read_jsonl
from poise.data.batches import Batch
from poise.journal import Journal
from poise.learning.session import Tamper
from poise.training.loop import StepRecord, TrainState


@dataclass
class Untouched:
    """A tamper that changes nothing."""

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Nothing."""

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came."""
        return records


@dataclass(frozen=True)
class Seen:
    """A line of events.jsonl and the update that it is about."""

    row: dict[str, Any]
    update: int  # counted from the start of the witness, over rollbacks; the first is 1


@dataclass
class Witness:
    """A tamper around another one; both see the same training."""

    run: RunDir
    inner: Tamper = field(default_factory=Untouched)
    tick: Callable[[], None] = lambda: None  # after every update
    updates: int = 0  # made so far, those that were undone later too
    images: int = 0  # that went into them
    events: list[Seen] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)
    _ends: dict[int, list[int]] = field(default_factory=dict)  # images seen -> updates ending there
    _left_out: list[torch.Tensor] = field(default_factory=list)  # [2] updates, images of one each
    _size: int = 0

    def __post_init__(self) -> None:
        self._known = {_key(row) for row in read_jsonl(self.run.log("events"))}

    def begin(self, state: TrainState, journal: Journal) -> None:
        """A session begins."""
        self._ends.setdefault(state.images_seen, []).append(self.updates)
        self.inner.begin(state, journal)

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, as the inner one passes them on."""
        return self.inner.stream(stream)

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """Each record is counted when it passes, and what was said about it is read afterwards."""
        for record in self.inner.records(records):
            self.updates += 1
            count = len(record.indices)
            self.images += count
            self._ends.setdefault(record.images_seen, []).append(self.updates)
            missed = (~record.applied).to(torch.int64)
            self._left_out.append(torch.stack([missed, missed * count]))
            yield record
            self.look()
            self.tick()

    def look(self) -> None:
        """Take in the lines of events.jsonl that are new since the last look."""
        path = self.run.log("events")
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        self._size = size
        for row in read_jsonl(path):
            if (key := _key(row)) not in self._known:
                self._known.add(key)
                self.events.append(Seen(row, self._update_of(int(row["images_seen"]))))

    def miss(self, updates: int, images: int) -> None:
        """Count updates that were not applied, with their images, of a run in other processes."""
        self._left_out.append(torch.tensor([updates, images]))

    def left_out(self) -> tuple[int, int]:
        """Updates that were not applied, and their images; reads the device."""
        if not self._left_out:
            return 0, 0
        updates, images = torch.stack(self._left_out).sum(0).tolist()
        return int(updates), int(images)

    def _update_of(self, images_seen: int) -> int:
        """The latest update that ended there; else the one being made."""
        return self._ends.get(images_seen, [self.updates])[-1]


def _key(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True)
