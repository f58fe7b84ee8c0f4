"""What a disturbed run shows about the guard: what it found, what it called it, at what price."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from poise.drill.kind import Fault
from poise.drill.witness import Seen

_WEIGHT = {"info": 0, "warning": 1, "critical": 2}


@dataclass(frozen=True)
class Injected:
    """A fault that was put into a run."""

    fault: Fault
    cause: str  # what it should be called
    update: int | None  # the first update that it could touch, as the witness counts; None: never


@dataclass(frozen=True)
class Outcome:
    """One fault and what came of it; one row of the table and of the JSON file."""

    kind: str
    parameters: dict[str, Any]
    detected: bool
    delay_steps: int | None  # updates from the first disturbed one to the one that showed it
    true_cause: str
    named_cause: str | None
    action: str | None
    gap: float | None  # validation error against the undisturbed run at equal images, as a share
    lost: dict[str, int]  # images and updates that were skipped or undone, in the whole run
    run: str  # faults of one run share it
    reason: str = ""  # why there is no gap, or why nothing was found
    row: str = ""  # of the fault matrix
    also: tuple[str, ...] = ()  # weaker causes that the event names
    message: str = ""  # the sentence of the event

    def to_json(self) -> dict[str, Any]:
        """As plain data; the keys that every reader knows come first."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "kind",
                    "parameters",
                    "detected",
                    "delay_steps",
                    "true_cause",
                    "named_cause",
                    "action",
                    "gap",
                    "lost",
                )
            },
            "correct": self.correct,
            "run": self.run,
            "row": self.row,
            "reason": self.reason,
            "also": list(self.also),
            "message": self.message,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Outcome":
        """What `to_json` gave."""
        given = {name: value for name, value in row.items() if name != "correct"}
        return cls(**{**given, "also": tuple(row["also"])})

    @property
    def correct(self) -> bool:
        """Whether it was found and called by its name."""
        return self.detected and self.named_cause == self.true_cause


def match(injected: Sequence[Injected], events: Sequence[Seen]) -> list[Seen | None]:
    """The event that speaks of each fault, at or after it began; None: none does.

    Alone in its run, a fault gets the first of the strongest events. Of several faults each first
    gets the event that calls it by its name; the others get the nearest event that is left.

    Args:
        injected: the faults of one run.
        events: everything that the run said, in the order in which it was said.
    """
    told = [e for e in events if _speaks(e, {i.cause for i in injected})]
    if len(injected) == 1:
        return [_strongest(_after(injected[0], told))]
    found: list[Seen | None] = [None] * len(injected)
    free = list(told)
    order = sorted(range(len(injected)), key=lambda i: injected[i].update or 0)
    for named in (True, False):
        for i in order:
            if found[i] is not None:
                continue
            late = [
                event
                for event in _after(injected[i], free)
                if not named or cause_of(event) == injected[i].cause
            ]
            if late:
                found[i] = late[0]
                free = [e for e in free if e is not late[0]]
    return found


def cause_of(event: Seen) -> str:
    """The cause that an event names."""
    return str(event.row.get("cause") or event.row.get("kind"))


def first_of(event: Seen, injected: Injected, events: Sequence[Seen]) -> Seen:
    """The first event of the same cause since the fault began: the alarm was raised then."""
    same = [e for e in _after(injected, events) if cause_of(e) == cause_of(event)]
    return min((e for e in same if _speaks(e, {injected.cause})), key=lambda e: e.update)


def delay(event: Seen, injected: Injected) -> int:
    """Updates from the first that the fault could touch to the one that the event is about."""
    assert injected.update is not None
    return max(0, event.update - injected.update)


def lost_by(
    skipped: tuple[int, int], made: tuple[int, int], kept: tuple[int, int]
) -> dict[str, int]:
    """Work that did not count: left out, or undone.

    Args:
        skipped: updates that were not applied, and their images.
        made: updates that were made, those undone too, and their images.
        kept: updates and images by which the run is further than where it began.
    """
    return {
        "images": skipped[1] + max(0, made[1] - kept[1]),
        "updates": skipped[0] + max(0, made[0] - kept[0]),
    }


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts over all faults: found, rightly named, median delay."""
    delays = sorted(o.delay_steps for o in outcomes if o.delay_steps is not None)
    total = len(outcomes)
    return {
        "faults": total,
        "detected": sum(o.detected for o in outcomes),
        "correct": sum(o.correct for o in outcomes),
        "delay_median": delays[len(delays) // 2] if delays else None,
        "delay_p90": delays[min(math.ceil(0.9 * len(delays)), len(delays)) - 1] if delays else None,
    }


def _speaks(event: Seen, causes: set[str]) -> bool:
    """A warning, or a plain line that names what was done to the run."""
    return event.row["severity"] != "info" or event.row.get("cause") in causes


def _after(injected: Injected, events: Sequence[Seen]) -> list[Seen]:
    if injected.update is None:
        return []
    return [e for e in events if e.update >= injected.update]


def _strongest(events: Sequence[Seen]) -> Seen | None:
    """The first critical one, else the first warning, else the first."""
    return max(events, key=lambda e: _WEIGHT.get(e.row["severity"], 0), default=None)
