"""Adam's second moment against the gradients that made it: an exact invariant."""

from typing import Any

import numpy as np

from poise.stability.detectors.detector import (
    Floats,
    Pace,
    Thread,
    floats,
    listed,
    named,
    spoken,
)
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_RELATIVE = 1e-3  # float32 sums of many small squares are far nearer
_SMALLEST = 1e-30  # squares below underflow


class SecondMoment:
    """The sum of v must be b2 v + (1 - b2) |g|^2 after an applied update, and stand still else.

    Where something changes the gradients on their way to Adam only b2 v remains, as a lower bound.
    v too small makes the next updates too large (Wortsman et al. 2023, StableAdamW, Section 4).
    """

    def __init__(self, facts: Facts) -> None:
        self._names, self._exact = facts.names, facts.exact_moments
        self._beta = None if facts.betas is None else facts.betas[1]
        self._expected: Floats = np.full(len(facts.names), np.nan)
        self._same: Floats = np.full(len(facts.names), np.nan)  # v of the last update
        self._floor: Floats = np.full(len(facts.names), np.nan)
        self._thread, self._pace = Thread(), Pace(50)

    def look(self, reading: Reading) -> list[Sign]:
        """Compare the moments before this update with what the last one must have left."""
        if self._beta is None or not len(reading.moments):
            return []
        now = np.asarray(reading.moments, np.float64)
        found = self._judge(reading, now) if self._thread.follows(reading) else []
        squares = np.asarray(reading.grad_norms, np.float64) ** 2
        self._same = now
        kept = now * self._beta
        self._expected = kept + (1 - self._beta) * squares if reading.applied else now
        self._floor = kept if reading.applied else now
        return found

    def _judge(self, reading: Reading, now: Floats) -> list[Sign]:
        if self._exact:
            fine = np.abs(now - self._expected) <= _RELATIVE * self._expected + _SMALLEST
        else:
            fine = now >= self._floor * (1 - _RELATIVE) - _SMALLEST
        if fine.all():
            return []
        # not stepped at all: a weight without gradient, or one the optimiser has lost
        off = ~fine & np.isfinite(self._expected) & (now != self._same)
        if not off.any() or not self._pace.due("lag", reading.step):
            return []
        return [self._sign(reading, now, off)]

    def _sign(self, reading: Reading, now: Floats, off: np.ndarray[Any, Any]) -> Sign:
        was = self._expected[off] if self._exact else self._floor[off]
        g2 = np.asarray(reading.grad_norms, np.float64)[off] ** 2
        v = now[off]
        lost = bool((~np.isfinite(v) | (v == 0)).any())
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            factors = (v / was)[np.isfinite(v) & (was > 0)]
            sizes = np.sqrt(g2 / v)
        factor = float(np.median(factors)) if len(factors) else 0.0
        sizes = sizes[np.isfinite(sizes)]
        rms = float(sizes.max()) if len(sizes) else None
        culprit = named(self._names, off)
        what = "is lost" if lost else f"is {factor:.3g} times what its gradients make it"
        shown = "" if rms is None else f" (RMS {rms:.3g}; about 1 is usual)"
        effect = "too large" if lost or factor < 1 else "too small"
        return Sign(
            cause="second-moment-lag",
            severity="critical" if factor < 0.3 and not lost else "warning",
            images_seen=reading.images_seen,
            since=reading.images_seen - reading.batch,
            sentence=f"Adam's second moment of {spoken(culprit)} {what}{shown}: "
            f"updates become {effect}.",
            evidence={"factor": factor, "rms": rms, "lost": lost, "tensors": culprit["count"]},
            culprit=culprit,
        )

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "expected": listed(self._expected),
            "same": listed(self._same),
            "floor": listed(self._floor),
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._expected, self._same = floats(state["expected"]), floats(state["same"])
        self._floor = floats(state["floor"])
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])
