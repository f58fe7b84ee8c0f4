"""A finding: one sentence about a run or about samples, how serious it is, what to do about it."""

from dataclasses import dataclass

BROKEN, WEAK, NOTE, GOOD = range(4)
WORDS = ("Broken", "Weak", "Note", "Good")


@dataclass(frozen=True)
class Finding:
    """One sentence; `remedy` is empty when nothing has to be done."""

    severity: int
    sentence: str
    remedy: str = ""


def worst_first(found: list[Finding]) -> list[Finding]:
    """By severity; what is equally serious keeps its order."""
    return sorted(found, key=lambda finding: finding.severity)


def serious(found: list[Finding]) -> bool:
    """Whether anything has to be done."""
    return any(finding.severity <= WEAK for finding in found)
