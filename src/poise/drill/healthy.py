"""False alarms: what the guard says and does where nothing is wrong."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from poise.drill.witness import Seen


@dataclass(frozen=True)
class Quiet:
    """A run in which nothing was wrong, and what was said about it all the same."""

    run: str  # its name: the undisturbed run, a seed, or a trap
    steps: int  # updates
    warnings: int  # events that only warned
    actions: int  # events after which something was done
    said: tuple[str, ...] = ()  # the sentences of both

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {**asdict(self), "said": list(self.said)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Quiet":
        """What `to_json` gave."""
        return cls(**{**row, "said": tuple(row["said"])})


def judged(run: str, steps: int, events: Iterable[Seen], trouble: str = "") -> Quiet:
    """Count what was said in a run without faults.

    Args:
        run: its name.
        steps: updates that were made in it.
        events: everything it said.
        trouble: why it did not come to its end; that counts as an action.
    """
    rows = [event.row for event in events]
    acted = [row for row in rows if _action(row)]
    warned = [r for r in rows if r["severity"] in ("warning", "critical") and not _action(r)]
    said = [f"{row.get('cause', row['kind'])}: {row['message']}" for row in (*acted, *warned)]
    ended = [trouble] if trouble and not acted else []
    return Quiet(run, steps, len(warned), len(acted) + len(ended), (*said, *ended))


def total(runs: Sequence[Quiet]) -> dict[str, Any]:
    """All of them together, also per 1,000 updates."""
    steps = sum(run.steps for run in runs)
    warnings, actions = sum(run.warnings for run in runs), sum(run.actions for run in runs)
    return {
        "steps": steps,
        "warnings": warnings,
        "actions": actions,
        "warnings_per_1000": 1000 * warnings / steps if steps else None,
        "actions_per_1000": 1000 * actions / steps if steps else None,
        "runs": [run.to_json() for run in runs],
    }


def _action(row: dict[str, Any]) -> str:
    """What was done; empty for nothing."""
    action = str(row.get("action", ""))
    return "" if action == "none" else action
