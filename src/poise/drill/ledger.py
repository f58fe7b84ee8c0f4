"""What is done of a drill, on disk: one file for each run, so that none is made twice."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from poise.artifacts import read_json, write_json
from poise.drill.kind import Fault
from poise.errors import UsageError


@dataclass(frozen=True)
class Ledger:
    """Results by key."""

    folder: Path

    @classmethod
    def opened(cls, root: Path, plan: dict[str, Any]) -> "Ledger":
        """The ledger of a drill's folder.

        Raises:
            UsageError: the folder is that of a drill with another plan.
        """
        path = root / "plan.json"
        if path.exists() and read_json(path) != json.loads(json.dumps(plan)):
            raise UsageError(
                f"{root} holds a drill with other images, settings or lengths.",
                expected="the same drill, to go on with it",
                remedy="Give --keep another folder.",
            )
        write_json(path, plan)
        return cls(root / "results")

    def once(self, key: str, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What `act` gives, or gave in an earlier session."""
        path = self.folder / f"{key}.json"
        if path.exists():
            known: dict[str, Any] = read_json(path)
            return known
        row = act()
        write_json(path, row)
        return row

    def forget(self, key: str) -> None:
        """It has to be done again."""
        (self.folder / f"{key}.json").unlink(missing_ok=True)


def key_of(faults: Sequence[Fault]) -> str:
    """A file name for a run with these faults; other parameters give another one."""
    text = json.dumps([asdict(fault) for fault in faults], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return f"{'+'.join(fault.kind for fault in faults)[:80]}-{digest}"
