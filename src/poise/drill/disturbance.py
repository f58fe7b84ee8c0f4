"""Faults at work in a training, through the one door that it has for them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from poise.data.batches import Batch
from poise.drill.data_faults import DATA_FAULTS, book_wait
from poise.drill.dynamics import DYNAMICS
from poise.drill.faults import KINDS, Fault
from poise.drill.place import Effect, Place, Start
from poise.drill.state_faults import STATE_FAULTS
from poise.journal import Journal
from poise.training.loop import StepRecord, TrainState

STARTS: dict[str, Start] = DATA_FAULTS | DYNAMICS | STATE_FAULTS  # in the order they act


@dataclass
class _Timed:
    """One fault with its time."""

    fault: Fault
    effect: Effect | None = None  # while it lasts
    began: int = 0
    over: bool = False

    def before(self, place: Place, number: int) -> None:
        """Begin, go on or end, before update `number` (from 0) is made."""
        fault = self.fault
        if self.effect is not None and fault.over(number):
            self.effect.stop()
            self.effect, self.over = None, True
        if self.effect is None and not self.over and number >= fault.at:
            if fault.over(number):  # its time went by while the session was not running
                self.over = True
                return
            self.effect, self.began = STARTS[fault.kind](place, fault), number
        if self.effect is not None:
            self.effect.step(number - self.began)

    def restart(self) -> None:
        """A session ended in the midst of it: what is configured or lies in data comes back."""
        if self.effect is None:
            return
        self.effect.stop()
        self.effect = None
        lies_in_data = "share" in self.fault.used and self.fault.kind in DATA_FAULTS
        returns = KINDS[self.fault.kind].returns and self.fault.duration is None
        self.over = not (lies_in_data or returns)


@dataclass
class Disturbance:
    """Some faults in one run; a `Tamper`.

    Updates are counted from 0 at the first session and never back, so that a fault that is over
    does not come again when the guard takes the run back.
    """

    faults: list[Fault]  # those of settings alone have nothing to do here
    updates: int = field(default=0, init=False)  # made so far
    _timed: list[_Timed] = field(init=False)
    _place: Place | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        order = list(STARTS)
        mine = [fault for fault in self.faults if fault.kind in STARTS]
        self._timed = [_Timed(fault) for fault in sorted(mine, key=lambda f: order.index(f.kind))]

    def begin(self, state: TrainState, journal: Journal) -> None:
        """A session begins: what a restart mends is mended."""
        self._place = Place(state, journal)
        for timed in self._timed:
            timed.restart()

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches, each as the faults of its update leave it."""
        for batch in stream:
            started = time.perf_counter()
            for timed in self._timed:
                if timed.effect is not None:
                    batch = timed.effect.batch(batch, self.updates)
            book_wait(stream, time.perf_counter() - started)
            yield batch

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they are; between two of them faults begin and end."""
        self._before()
        for record in records:
            self.updates += 1
            yield record
            self._before()

    def _before(self) -> None:
        assert self._place is not None, "begin() comes first"
        for timed in self._timed:
            timed.before(self._place, self.updates)
