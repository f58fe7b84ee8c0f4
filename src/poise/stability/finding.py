"""What the doctor says: findings, worst first, each with numbers and what to do."""

from dataclasses import dataclass, field
from typing import Any

from poise.report.page import visible
from poise.stability.causes import CAUSES
from poise.stability.incident import Severity

_ORDER: tuple[Severity, ...] = ("critical", "warning", "info")
_MOST = 20  # items of one list, and entries of one piece of evidence
_LONGEST = 400  # signs of one text


@dataclass(frozen=True)
class Finding:
    """One thing that went wrong, or is worth a word."""

    cause: str  # a name of `causes.CAUSES`, or the kind of an event that has none
    severity: Severity
    since: float | None  # in the unit of the log; None: no moment can be named
    sentence: str
    evidence: dict[str, Any] = field(default_factory=dict)
    do: str = ""  # empty: what the catalogue says

    def to_json(self) -> dict[str, Any]:
        """As plain data; whatever came out of a file is cleaned."""
        known = CAUSES.get(self.cause)
        return {
            "cause": visible(self.cause, 60),
            "severity": self.severity,
            "since": self.since,
            "sentence": visible(self.sentence, _LONGEST),
            "evidence": clean(self.evidence),
            "do": visible(self.do or (known.do if known else ""), 2 * _LONGEST),
        }


@dataclass(frozen=True)
class Diagnosis:
    """Everything the doctor has to say about one run or log."""

    about: str  # one sentence: what was read
    state: str  # finished, running, interrupted, failed, killed, unknown; log for a foreign log
    unit: str  # of `since`: images, step, row, epoch
    findings: list[Finding]  # worst first
    notes: tuple[str, ...] = ()  # what else was seen, with nothing wrong in it

    @property
    def status(self) -> str:
        """`healthy`, or the worst severity among the findings: `warning` or `critical`."""
        worst = [f.severity for f in self.findings if f.severity != "info"]
        return "healthy" if not worst else min(worst, key=_ORDER.index)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "about": visible(self.about, _LONGEST),
            "state": self.state,
            "status": self.status,
            "unit": self.unit,
            "findings": [finding.to_json() for finding in self.findings],
            "notes": [visible(note, _LONGEST) for note in self.notes],
        }


def in_order(findings: list[Finding]) -> list[Finding]:
    """Worst first; then the more specific cause; then the earlier one."""

    def rank(finding: Finding) -> tuple[int, int, float]:
        known = CAUSES.get(finding.cause)
        since = float("inf") if finding.since is None else finding.since
        return _ORDER.index(finding.severity), -(known.specificity if known else 0), since

    return sorted(findings, key=rank)


def clean(value: Any, depth: int = 3) -> Any:
    """Plain data that is safe to print and to store: short, without control characters."""
    if isinstance(value, bool) or value is None or isinstance(value, int):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict) and depth:
        shown = list(value.items())[:_MOST]
        return {visible(key, 60): clean(item, depth - 1) for key, item in shown}
    if isinstance(value, list | tuple) and depth:
        return [clean(item, depth - 1) for item in list(value)[:_MOST]]
    return visible(value)
