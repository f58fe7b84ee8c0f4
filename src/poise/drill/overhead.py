"""What the guard costs: the same training with it and without it, taking turns in one process.

Whatever else the machine does hits both alike. Time is taken from record to record, so what is
compared is updates, with everything that happens between them.
"""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from poise.console import Screen
from poise.data.batches import Batch
from poise.drill.ground import Ground
from poise.journal import Journal
from poise.settings import Config
from poise.training.loop import StepRecord, TrainState

_TURN = 10  # updates made at a time
_WARM = 2  # turns of each that are not counted: first calls are slow
_ROUNDS = 4


class Turns:
    """Lets two threads work one after the other, never at once."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._turn = 0
        self._gone: set[int] = set()
        self._stopped = False

    def wait(self, who: int) -> None:
        """Return when it is the turn of `who`, 0 or 1.

        Raises:
            KeyboardInterrupt: the two were told to stop.
        """

        def ready() -> bool:
            return self._stopped or self._turn == who or 1 - who in self._gone

        with self._condition:
            self._condition.wait_for(ready)
        if self._stopped:
            raise KeyboardInterrupt

    def stop(self) -> None:
        """Both end when their next turn begins."""
        with self._condition:
            self._stopped = True
            self._condition.notify_all()

    def give(self, who: int) -> None:
        """`who` has worked enough for now."""
        with self._condition:
            self._turn = 1 - who
            self._condition.notify_all()

    def leave(self, who: int) -> None:
        """`who` is done for good; the other one need not wait any more."""
        with self._condition:
            self._gone.add(who)
            self._turn = 1 - who
            self._condition.notify_all()


def updates_of_overhead(probe_every: int) -> int:
    """Updates that the measurement makes, with the guard and again without."""
    return _TURN * (_WARM + _ROUNDS * _turns_per_round(probe_every))


def measure_overhead(ground: Ground, config: Config) -> float | None:
    """How much longer an update takes with the guard than without; 0.02: two percent.

    Args:
        ground: what runs have in common.
        config: the settings with the guard, of `updates_of_overhead` updates.

    Raises:
        TrainingError: one of the two did not come to its end.
    """
    stability = config.stability.model_copy(update={"policy": "off"})
    both = config, config.model_copy(update={"stability": stability})
    updates = config.training.images // config.training.batch

    def work(name: str, settings: Config) -> Callable[[Stopwatch], object]:
        job = ground.job(ground.folder(name, whole=True), settings)
        return lambda watch: ground.learn(job, Screen(quiet=True), tamper=watch)

    works = work("overhead-guarded", both[0]), work("overhead-plain", both[1])
    try:
        guarded, plain = interleave(works, updates=updates, tick=ground.tick)
    finally:
        ground.throw_away("overhead-")
    return share(guarded, plain, _turns_per_round(config.stability.probe_every))


def _turns_per_round(probe_every: int) -> int:
    """So many that each round holds as many probes as any other."""
    return max(1, -(-probe_every // _TURN))


@dataclass
class Stopwatch:
    """A tamper that changes nothing, gives up its turn now and then, and keeps its own time."""

    turns: Turns
    who: int
    updates: int
    tick: Callable[[], None] = lambda: None
    laps: list[float] = field(default_factory=list)  # seconds of each turn

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Nothing."""

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came, a turn at a time."""
        self.turns.wait(self.who)
        began = time.perf_counter()
        for count, record in enumerate(records, start=1):
            yield record
            self.tick()
            if count % _TURN == 0:
                self.laps.append(time.perf_counter() - began)
                if count < self.updates:
                    self.turns.give(self.who)
                    self.turns.wait(self.who)
                began = time.perf_counter()


def interleave(
    works: tuple[Callable[[Stopwatch], object], Callable[[Stopwatch], object]],
    *,
    updates: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[float], list[float]]:
    """Run both works in turns; seconds of the turns of each.

    Args:
        works: each makes `updates` updates with the stopwatch as its tamper.
        updates: of each; a multiple of ten.
        tick: called after each update of either.

    Raises:
        Exception: the first that a work raised.
    """
    turns = Turns()
    failures: list[BaseException] = []
    watches = tuple(Stopwatch(turns, who, updates, tick) for who in (0, 1))

    def work(who: int) -> None:
        try:
            turns.wait(who)
            works[who](watches[who])
        except BaseException as error:  # passed on to the one who asked
            failures.append(error)
        finally:
            turns.leave(who)

    threads = [threading.Thread(target=work, args=(who,), daemon=True) for who in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        turns.stop()
        raise
    if failures:
        raise failures[0]
    return watches[0].laps, watches[1].laps


def share(guarded: list[float], plain: list[float], per_round: int) -> float | None:
    """How much longer guarded updates take; the median over rounds.

    Args:
        guarded, plain: seconds of turns, in their order.
        per_round: turns that make a round: long enough that each round holds one probe.

    Returns:
        0.02 for two percent; None where there is not one whole round after the warm-up.
    """
    count = min(len(guarded), len(plain))
    starts = range(_WARM, count - per_round + 1, per_round)
    ratios = [sum(guarded[i : i + per_round]) / sum(plain[i : i + per_round]) - 1 for i in starts]
    return statistics.median(ratios) if ratios else None
