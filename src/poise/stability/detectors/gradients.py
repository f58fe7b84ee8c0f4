"""Gradients of single tensors that vanish or explode against their own past."""

import math
from typing import Any

import numpy as np

from poise.stability.detectors.course import Point
from poise.stability.detectors.detector import Floats, Pace, bits, floats, listed, named, spoken
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_UPDATES = 8  # over which a change has to last
_PRIMED = 100  # updates before anything is judged
_EARLY = 64  # updates before an outlier is one
_REACH = 256  # updates over which the running mean reaches back
_DRIFT = 128  # updates over which all gradients together are compared
_CHANGE = math.log(30.0)
_DEVIATIONS = 8.0
_LONE = (math.log(100.0), 12.0)  # of a single tensor
_SMALLEST = 1e-20


class TensorGradients:
    """Running mean and deviation of each ln |g|; the last 8 against them.

    `vanishing-gradients` and `exploding-gradients` by factors of 30 that the error of the same
    updates does not explain. Weights that do not move are left to the stale ones.
    """

    def __init__(self, facts: Facts) -> None:
        size = len(facts.names)
        self._names = facts.names
        self._mean: Floats = np.zeros(size)
        self._spread: Floats = np.zeros(size)  # mean absolute deviation
        self._ring: Floats = np.zeros((_UPDATES, size))  # distance from the mean
        self._explained: Floats = np.zeros(_UPDATES)  # by the error
        self._common: list[float] = []  # median ln |g| of the last updates
        self._count = self._taken = 0
        self._pace = Pace()

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if not len(reading.grad_norms) or not math.isfinite(reading.grad_norm):
            return []
        log = np.log(np.maximum(np.asarray(reading.grad_norms, np.float64), _SMALLEST))
        off = log - self._mean
        far = bool(max(off.max(), -off.min()) > _CHANGE / 2)
        found: list[Sign] = []
        if self._count >= _PRIMED:
            found = self._judge(reading, point, off, far)
        if reading.applied:
            self._learn(log, off, far)
        return found or self._drifting(reading, point, float(np.median(log)))

    def _drifting(self, reading: Reading, point: Point, common: float) -> list[Sign]:
        """All gradients together, against those of some hundred updates before."""
        if self._count < _EARLY:
            return []
        self._common = [*self._common[1 - _DRIFT :], common]
        if len(self._common) < _DRIFT // 2:
            return []
        late, early = self._common[-_UPDATES:], self._common[: _DRIFT // 4]
        change = float(np.median(late) - np.median(early))
        cause = "exploding-gradients" if change > 0 else "vanishing-gradients"
        grew = abs(change) - max(0.0, math.copysign(1, change) * _explained(point))
        steady = min(abs(x - float(np.median(early))) for x in late) > _CHANGE / 2
        if grew < _CHANGE or not steady or not self._pace.due(cause, reading.step):
            return []
        words = "risen to" if change > 0 else "fallen to"
        return [
            Sign(
                cause=cause,
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - len(self._common) * reading.batch,
                sentence=f"The gradients of all tensors together have {words} "
                f"{math.exp(change):.2g} times what they were {len(self._common)} updates ago, "
                "which the error does not explain.",
                evidence={"factor": math.exp(change), "updates": len(self._common)},
                culprit={"tensors": [], "count": len(self._names)},
            )
        ]

    def _learn(self, log: Floats, off: Floats, far: bool) -> None:
        # gradients change fast at first: those are soon forgotten, and none is an outlier
        rate: Floats | float = 1 / min(max(self._count / 4, 8.0), _REACH)
        if self._count == 0:
            self._mean = log
        elif not far:
            self._mean += rate * off
            self._spread += rate * (np.abs(off) - self._spread)
        else:
            if self._count >= _EARLY:
                rate = rate * np.where(np.abs(off) > _CHANGE / 2, 0.05, 1.0)
            # tensors whose gradients begin at 0, as behind a gain of 0, start when they wake
            asleep = self._mean <= math.log(_SMALLEST) + 1
            self._mean = np.where(asleep, log, self._mean + rate * off)
            self._spread += rate * (np.where(asleep, 0.0, np.abs(off)) - self._spread)
        self._count += 1

    def _judge(self, reading: Reading, point: Point, off: Floats, far: bool) -> list[Sign]:
        slot = self._taken % _UPDATES
        self._ring[slot] = off
        self._explained[slot] = _explained(point)
        self._taken += 1
        if self._taken < _UPDATES or not far:
            return []
        means = self._ring.sum(axis=0) / _UPDATES
        if max(means.max(), -means.min()) < _CHANGE:
            return []
        for sign, cause in ((-1, "vanishing-gradients"), (1, "exploding-gradients")):
            found = self._changed(reading, sign, cause, means)
            if found:
                return found
        return []

    def _changed(self, reading: Reading, sign: int, cause: str, means: Floats) -> list[Sign]:
        explained = max(0.0, sign * float(self._explained.mean()))
        amount = sign * means - explained
        all_along = (sign * self._ring).min(axis=0) > _CHANGE / 2
        width = np.maximum(1.25 * self._spread, 0.1)
        alive = self._mean > math.log(_SMALLEST) + 5  # there was a gradient to lose
        where = all_along & alive & (amount >= np.maximum(_CHANGE, _DEVIATIONS * width))
        if sign < 0:
            where &= bits(reading.before) != bits(reading.after)
        count = int(where.sum())
        sure = (amount[where] >= np.maximum(_LONE[0], _LONE[1] * width[where])).any()
        if not count or (count == 1 and len(where) > 8 and not sure):
            return []
        if not self._pace.due(cause, reading.step):
            return []
        at = np.flatnonzero(where)
        order = at[np.argsort(-amount[at], kind="stable")]
        culprit = named(self._names, order)
        culprit["blocks"] = list(dict.fromkeys(_block(self._names[i]) for i in at))[:12]
        if sign < 0 and all("label" in self._names[i] for i in at.tolist()):
            cause = "condition-ignored"  # nothing is learned of the classes any more
        factor = math.exp(float(np.median(means[where])))
        words = "fallen to" if sign < 0 else "risen to"
        return [
            Sign(
                cause=cause,
                severity="critical" if count >= 0.5 * len(where) else "warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - _UPDATES * reading.batch,
                sentence=f"The gradients of {spoken(culprit)} have {words} {factor:.2g} times what "
                f"they were, for {_UPDATES} updates.",
                evidence={
                    "factor": factor,
                    "tensors": count,
                    "of": len(where),
                    "explained_by_error": math.exp(float(self._explained.mean())),
                    "first_to_last": _first_to_last(reading.grad_norms),
                },
                culprit=culprit,
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "mean": listed(self._mean),
            "spread": listed(self._spread),
            "ring": listed(self._ring),
            "explained": listed(self._explained),
            "common": list(self._common),
            "count": self._count,
            "taken": self._taken,
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._mean, self._spread = floats(state["mean"]), floats(state["spread"])
        self._ring, self._explained = floats(state["ring"]), floats(state["explained"])
        self._common = [float(x) for x in state["common"]]
        self._count, self._taken = int(state["count"]), int(state["taken"])
        self._pace.restore(state["pace"])


def _explained(point: Point) -> float:
    """ln of the factor by which the batch's errors are off, the largest counting most."""
    if not math.isfinite(point.level):
        return 0.0
    return float(np.log(np.exp(np.clip(point.excess, -50, 50)).mean()))


def _block(name: str) -> str:
    """The part of the network that a weight belongs to."""
    parts = name.split(".")
    return ".".join(parts[: max(1, len(parts) - 2)])


def _first_to_last(norms: np.ndarray[Any, Any]) -> float | None:
    """Gradient norms of the first quarter of the tensors over those of the last (medians)."""
    quarter = max(1, len(norms) // 4)
    first, last = float(np.median(norms[:quarter])), float(np.median(norms[-quarter:]))
    return first / last if last > 0 and math.isfinite(first / last) else None
