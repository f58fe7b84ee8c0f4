"""A run about to train, and how a line of its events is written."""

from dataclasses import dataclass
from typing import Any

from poise.artifacts import DataFacts, RunDir, append_jsonl, read_jsonl
from poise.budget import Clock
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.runtime import Runtime
from poise.settings import Config

_RECENT = 200  # events among which the same one is looked for


@dataclass(frozen=True)
class Prepared:
    """A run about to train: settings, data and facts are settled and written down."""

    run: RunDir
    config: Config
    dataset: Dataset
    splits: Splits
    facts: DataFacts
    runtime: Runtime
    clock: Clock


def log_event(
    run: RunDir, images_seen: int, severity: str, kind: str, message: str, **more: Any
) -> None:
    """One line of events.jsonl."""
    row = {"images_seen": images_seen, "severity": severity, "kind": kind, "message": message}
    log_row(run, {**row, **more})


def log_row(run: RunDir, row: dict[str, Any]) -> None:
    """One line of events.jsonl, unless it is there: a resumed run meets what it met before."""
    known = read_jsonl(run.log("events"))
    marks = ("images_seen", "kind", "message", "action", "cost")
    if not any(all(row.get(m) == old.get(m) for m in marks) for old in known[-_RECENT:]):
        append_jsonl(run.log("events"), row)
