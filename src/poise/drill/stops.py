"""Tampers of the system drills: a signal at a bad moment, a resource that fails for a while."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from poise.data.batches import Batch
from poise.diffusion.loss import denoising_loss
from poise.journal import Journal
from poise.training.loop import StepRecord, TrainState

_LOOK = 0.0005  # seconds between two looks at what the run is doing


@dataclass
class Stopper:
    """Sends SIGTERM to this process, once.

    It comes inside the network's work of an update, or while something else is being done.
    """

    at: int  # updates made before it, counted over sessions
    phase: str = "step"  # of the journal; "step": during update number `at`, counted from 0
    part: int = 0  # of the batch, where it is trained in parts
    sent: bool = False
    sent_at: int = 0  # the update in which it came, counted from 1
    _updates: int = 0
    _parts: int = 0
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Take a seat in the loss, or beside the journal."""
        self._over.set()
        if self.sent:
            return
        if self.phase == "step":
            self._sit_in(state)
        else:
            self._over = threading.Event()
            watch = threading.Thread(target=self._wait, args=(journal, self._over), daemon=True)
            watch.start()

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came."""
        try:
            for record in records:
                self._updates, self._parts = self._updates + 1, 0
                yield record
        finally:
            if self.phase == "step":
                self._over.set()

    def close(self) -> None:
        """No signal comes from now on."""
        self.sent = True
        self._over.set()

    def _sit_in(self, state: TrainState) -> None:
        loss_of = state.loss or denoising_loss

        def loss(*given: Any) -> Any:
            if not self.sent and self._updates >= self.at and self._parts >= self.part:
                self._send()
            self._parts += 1
            return loss_of(*given)

        state.loss = loss

    def _wait(self, journal: Journal, over: threading.Event) -> None:
        while not over.wait(_LOOK):
            if not self.sent and self._updates >= self.at and journal.phase == self.phase:
                self._send()
                return

    def _send(self) -> None:
        self.sent = True
        self.sent_at = self._updates + (self.phase == "step")
        os.kill(os.getpid(), signal.SIGTERM)


@dataclass
class ForAWhile:
    """Breaks something before an update, and mends it after some more or before the last one."""

    at: int  # updates made before it breaks
    duration: int | None  # updates until it is mended; None: as long as can be
    damage: Callable[[Journal], None]
    mend: Callable[[], None]
    _updates: int = 0
    _broken: bool = False
    _done: bool = False
    _state: TrainState | None = None
    _journal: Journal | None = None

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Remember what to break."""
        self._state, self._journal = state, journal

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came."""
        while True:
            self._change()
            record = next(records, None)
            if record is None:
                return
            self._updates += 1
            yield record

    def close(self) -> None:
        """Mend what is broken."""
        if self._broken:
            self._broken, self._done = False, True
            self.mend()

    def _change(self) -> None:
        assert self._state is not None and self._journal is not None, "begin() comes first"
        training = self._journal.job.config.training
        last = self._state.images_seen >= training.images - training.batch
        over = self.duration is not None and self._updates >= self.at + self.duration
        if over or last:
            self.close()
        elif self._updates >= self.at and not self._broken and not self._done:
            self._broken = True
            self.damage(self._journal)


@dataclass
class NoMemory:
    """Raises MemoryError inside one forward pass."""

    at: int  # updates made before it
    raised: bool = False
    _updates: int = 0

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Take a seat in the loss."""
        loss_of = state.loss or denoising_loss

        def loss(*given: Any) -> Any:
            if not self.raised and self._updates >= self.at:
                self.raised = True
                raise MemoryError("a fire drill: there is no memory for this update")
            return loss_of(*given)

        state.loss = loss

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came."""
        for record in records:
            self._updates += 1
            yield record

    def close(self) -> None:
        """Nothing is left to mend."""
