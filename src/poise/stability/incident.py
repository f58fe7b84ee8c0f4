"""What the guard says: a sign is what one detector saw, an incident what was made of it.

One incident is one line of events.jsonl.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "critical"]


@dataclass(frozen=True)
class Sign:
    """What one detector saw at one update; several signs can have one cause."""

    cause: str  # a name of `causes.CAUSES`
    severity: Severity
    images_seen: int  # of the update that showed it
    since: int  # images seen when it probably began; at most images_seen
    sentence: str  # for a person, with the numbers that matter
    evidence: dict[str, Any] = field(default_factory=dict)  # numbers by name, plain data
    culprit: dict[str, Any] = field(default_factory=dict)  # files, tensors, layers, band, rank


@dataclass(frozen=True)
class Incident:
    """A sign that was believed, with what was done about it and what that cost."""

    sign: Sign
    action: str  # none, skip, quarantine, rollback, ...
    cost: dict[str, Any] = field(default_factory=dict)  # images, updates, seconds
    also: tuple[str, ...] = ()  # other causes seen at the same time, weaker

    def row(self) -> dict[str, Any]:
        """As a line of events.jsonl."""
        s = self.sign
        return {
            "images_seen": s.images_seen,
            "severity": s.severity,
            "kind": s.cause,
            "cause": s.cause,
            "message": s.sentence,
            "evidence": s.evidence,
            "culprit": s.culprit,
            "action": self.action,
            "cost": self.cost,
            "also": list(self.also),
        }
