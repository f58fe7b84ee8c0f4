"""What a person hears of a study while it runs: a renewed `study.json`, a line for each trial."""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.artifacts import read_json, write_json
from poise.config import values_of
from poise.console import Screen
from poise.errors import ArtifactError
from poise.tuning.desk import progress_of
from poise.tuning.ground import at_home
from poise.tuning.plan import Plan
from poise.tuning.record import study_record
from poise.tuning.schedule import ENDED
from poise.tuning.storage import spoken

if TYPE_CHECKING:
    from optuna import Study


class Progress:
    """Renews `study.json` where something has changed, and tells of trials that have ended."""

    def __init__(self, study: "Study", plan: Plan, root: Path, screen: Screen) -> None:
        self._study, self._plan, self._root, self._screen = study, plan, root, screen
        self._offset = spent_seconds(root) - time.monotonic()
        self._told: set[int] = set()
        self._seen = ""
        self._base = values_of(at_home(plan))

    def seconds(self) -> float:
        """Wall clock spent on the study, over all sessions."""
        return time.monotonic() + self._offset

    def news(self) -> None:
        """Look whether anything has changed; a disk or a storage that is away now may come back."""
        with suppress(ArtifactError), spoken():
            trials = self._study.get_trials(deepcopy=False)
            seen = str([(t.number, t.state, progress_of(t)["rung"]) for t in trials])
            if seen != self._seen:
                self._seen = seen
                self.renew()

    def renew(self, status: str = "running", phase: str = "search") -> dict[str, Any]:
        """Write `study.json` anew, and say what is new.

        Args:
            status: "running", "finished", "interrupted" or "failed".
            phase: "search" (repeats included), "final" or "done".
        """
        record = study_record(
            self._study, self._plan, self._base, status=status, phase=phase, seconds=self.seconds()
        )
        write_json(self._root / "study.json", record)
        for row in record["trials"]:
            if row["state"] in ENDED and row["number"] not in self._told:
                self._told.add(row["number"])
                self._screen.say(_line(row))
        return record


def _line(row: dict[str, Any]) -> str:
    """A trial that ended, for the terminal."""
    told = ", ".join(f"{name} {value:.4g}" for name, value in (row["values"] or {}).items())
    if not told and row["proxy"] and row["proxy"][-1][1] is not None:
        told = f"ln(error) {row['proxy'][-1][1]:.3f}"
    what = ", ".join(f"{k.rpartition('.')[2]} {_short(v)}" for k, v in row["settings"].items())
    why = f" ({row['diagnosis']})" if row["state"] in ("diverged", "failed") else ""
    return f"trial {row['number']} {row['role']} {row['state']}: {told}{why}  [{what}]"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def spent_seconds(root: Path) -> float:
    """Wall clock that a study has had so far; 0: none, or it is not known."""
    try:
        return float(read_json(root / "study.json")["seconds"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return 0.0
