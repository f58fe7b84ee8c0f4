"""What a cause of trouble is: one name, and the words that go with it."""

from dataclasses import dataclass

from poise.stability.incident import Severity


@dataclass(frozen=True)
class Cause:
    """One thing that can go wrong, as the guard, the doctor and the guide name it."""

    name: str  # in events.jsonl: small letters and hyphens
    title: str
    looks: str  # what can be seen from outside
    why: str
    does: str  # what Poise does, with stability.policy = "repair" where that matters
    do: str  # what the user can do
    specificity: int  # 0 to 9; where several signs come together, the highest names the incident
    first_severity: Severity
