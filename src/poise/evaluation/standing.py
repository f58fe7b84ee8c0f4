"""Which of several scored snapshots is best, by several metrics and never by one alone.

Each metric ranks the snapshots; the lowest mean rank is best, and of equals the later one. Two
distances between distributions, one share for fidelity, one for diversity, and the error on
held-out images have one voice each. Snapshots whose samples are copies do not stand for election
while there are others.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

VOICES = {  # name, and whether more is better
    "frechet_distance": False,
    "kernel_distance": False,
    "precision": True,
    "coverage": True,
    "validation_error": False,
}
_FEWEST = 2  # snapshots between which there is a choice
_LATER = 2  # snapshots that must all be worse before a run is called past its best
_CLEAR = 2.0  # standard errors of a difference beyond which it is no chance
# Relative differences that count as none where no standard error is known: the error on held-out
# images is measured on the same noise each time, a Fréchet distance of few samples is mostly bias.
_ALIKE = {"validation_error": 0.02}
_ALIKE_ELSE = 0.1
_COPYING = 0.02  # share of samples flagged beyond which it is no false alarm
_MAJORITY = 3  # voices of five

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Standing:
    """The best snapshot so far.

    Attributes:
        images_seen: where it was taken.
        weights: which of its weights were scored.
        ranks: mean rank of each snapshot, in the order of the rows; 1 is best.
        turned: whether the two newest snapshots, both after it, are clearly worse in most metrics.
        worse: the metrics in which they are.
        passed: whether the newest alone is.
    """

    images_seen: int
    weights: str
    ranks: tuple[float, ...]
    turned: bool
    worse: tuple[str, ...]
    passed: bool

    def sentence(self) -> str:
        """What was found, for people."""
        if not self.turned:
            return f"By several metrics the snapshot at {self.images_seen:,} images is best."
        names = ", ".join(name.replace("_", " ") for name in self.worse)
        return (
            f"The snapshot at {self.images_seen:,} images is best by several metrics together; "
            f"the newest ones are clearly worse in {names}."
        )


def standing(rows: Sequence[Row]) -> Standing | None:
    """The best of scored snapshots; None for fewer than two.

    Args:
        rows: lines of scores.jsonl, oldest first: images_seen, weights, values, errors (standard
            errors, where known) and copies.
    """
    if len(rows) < _FEWEST:
        return None
    ranks = np.mean([_ranks(rows, name, more) for name, more in VOICES.items()], axis=0)
    eligible = [i for i, row in enumerate(rows) if not _copies(row)] or range(len(rows))
    best = min(eligible, key=lambda i: (round(float(ranks[i]), 9), -i))
    later = rows[best + 1 :][-_LATER:]
    worse = [
        name
        for name in VOICES
        if len(later) == _LATER and all(_is_worse(row, rows[best], name) for row in later)
    ]
    return Standing(
        int(rows[best]["images_seen"]),
        str(rows[best]["weights"]),
        tuple(float(rank) for rank in ranks),
        len(worse) >= _MAJORITY,
        tuple(worse),
        sum(_is_worse(rows[-1], rows[best], name) for name in VOICES) >= _MAJORITY,
    )


def ranked(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The mean rank of each scored snapshot: [{images_seen, rank}]; empty for fewer than two."""
    found = standing(rows)
    ranks = () if found is None else found.ranks
    pairs = zip(rows, ranks, strict=False)
    return [{"images_seen": row["images_seen"], "rank": rank} for row, rank in pairs]


def _ranks(rows: Sequence[Row], name: str, more: bool) -> list[float]:
    """From 1 for the best; equals share the mean of their ranks, and what is not known is last."""
    values = [_value(row, name) for row in rows]
    cost = np.array([math.inf if v is None else -v if more else v for v in values])
    return [float((cost < c).sum() + ((cost == c).sum() + 1) / 2) for c in cost]


def _copies(row: Row) -> bool:
    """Whether more samples are copies than the false alarms that the test allows itself."""
    return float(row.get("copies", 0)) > max(1.0, _COPYING * float(row.get("samples", 0)))


def _is_worse(row: Row, best: Row, name: str) -> bool:
    now, then = _value(row, name), _value(best, name)
    if now is None or then is None:
        return False
    excess = then - now if VOICES[name] else now - then
    known = [e for r in (row, best) if (e := _value(r, name, "errors")) is not None]
    alike = _ALIKE.get(name, _ALIKE_ELSE)
    margin = _CLEAR * math.hypot(*known) if len(known) == 2 else alike * abs(then)
    return excess > margin


def _value(row: Row, name: str, key: str = "values") -> float | None:
    value = row.get(key, {}).get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
