"""Weights change in updates and nowhere else, and every update changes them: exact invariants."""

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.detector import (
    Pace,
    Thread,
    bits,
    floats,
    floats_of,
    listed,
    named,
    spoken,
)
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_STILL = 12  # applied updates in a row
_TREMOR = 1e-3  # of a tensor's usual change: rounding
_SLOWEST = 1e-6  # below this rate rounding may hide what an update does
_ROUNDING = 2.0**-6  # relative; coarser than bfloat16 rounds a sum
_NEARLY_ALL = 0.8  # share of the tensors that makes it a matter of number format
_RESOLVED = 5e-5  # of |change| / |weights|


class Untouched:
    """Names weights that changed between two updates (`weights-damaged`).

    Small changes of most tensors after each update are rounding: `precision-stagnation`.
    """

    def __init__(self, facts: Facts) -> None:
        self._names = facts.names
        self._before = self._after = np.zeros(len(facts.names), np.uint32)
        self._rounded = 0  # readings in a row with small changes nearly everywhere
        self._held: list[dict[str, Any]] = []
        self._thread, self._pace = Thread(), Pace(50)
        self._told: list[int] = []  # tensors of the last sign

    def look(self, reading: Reading) -> list[Sign]:
        """Compare the weights before this update with those after the last."""
        if not len(reading.before):
            return []
        before, after = bits(reading.before), bits(reading.after)
        found: list[Sign] = []
        if self._thread.follows(reading):
            changed = before != self._after
            if changed.any() or self._rounded:
                found = self._judge(reading, before, changed)
        else:
            self._rounded, self._held = 0, []
        self._before, self._after = before, after
        return found

    def _judge(
        self, reading: Reading, before: NDArray[np.uint32], changed: NDArray[np.bool_]
    ) -> list[Sign]:
        back = changed & (before == self._before)  # the last update was undone: see Stale
        now, was = floats_of(before), floats_of(self._after)
        damaged = changed & ~back & np.isfinite(now)
        if not damaged.any():
            return self._release()
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.abs(now - was)
            relative = size[damaged] / (np.abs(was[damaged]) + 1e-3)
        if changed.mean() >= _NEARLY_ALL and np.median(relative) < _ROUNDING:
            self._rounded += 1
            if self._rounded == 1:
                # the first alone could be damage as well: said when the next does not follow
                self._held = [asdict(s) for s in self._damage(reading, damaged, size, relative)]
            return self._rounding(reading, changed, relative) if self._rounded > 2 else []
        return self._release() + self._damage(reading, damaged, size, relative)

    def _release(self) -> list[Sign]:
        """What was held back, if no rounding followed."""
        held = self._held if 0 < self._rounded < 3 else []
        self._rounded, self._held = 0, []
        return [Sign(**s) for s in held]

    def _damage(
        self,
        reading: Reading,
        damaged: NDArray[np.bool_],
        size: NDArray[np.float64],
        relative: NDArray[np.float64],
    ) -> list[Sign]:
        at = np.flatnonzero(damaged)
        new = not set(at.tolist()) <= set(self._told)
        if not self._pace.due("damaged", reading.step) and not new:
            return []
        self._told = at.tolist()
        order = at[np.argsort(-size[at])]
        culprit = named(self._names, order)
        worst = float(size[order[0]])
        return [
            Sign(
                cause="weights-damaged",
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - reading.batch,
                sentence=f"Something other than an update changed {spoken(culprit)}: its sum "
                f"moved by {worst:.3g} between two updates.",
                evidence={
                    "change": worst,
                    "relative": float(np.median(relative)),
                    "tensors": culprit["count"],
                },
                culprit=culprit,
            )
        ]

    def _rounding(
        self, reading: Reading, changed: NDArray[np.bool_], relative: NDArray[np.float64]
    ) -> list[Sign]:
        if not self._pace.due("rounded", reading.step):
            return []
        culprit = named(self._names, changed)
        return [
            Sign(
                cause="precision-stagnation",
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - 3 * reading.batch,
                sentence=f"After each update {culprit['count']} tensors are rounded by about "
                f"{np.median(relative):.1e} of their sums: small updates are lost.",
                evidence={"relative": float(np.median(relative)), "tensors": culprit["count"]},
                culprit=culprit,
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "before": self._before.tolist(),
            "after": self._after.tolist(),
            "rounded": self._rounded,
            "held": list(self._held),
            "told": list(self._told),
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._before = np.array(state["before"], np.uint32)
        self._after = np.array(state["after"], np.uint32)
        self._rounded, self._told = int(state["rounded"]), list(state["told"])
        self._held = [dict(s) for s in state["held"]]
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])


class Stale:
    """Names weights that updates do not move: `stale-layer`, or `precision-stagnation` of most.

    An update counts by what the next one starts from, so weights that are put back count as still.
    """

    def __init__(self, facts: Facts) -> None:
        size = len(facts.names)
        self._names, self._forced = facts.names, np.array(facts.forced, bool)
        self._before = np.zeros(size, np.uint32)
        self._after = np.zeros(size, np.uint32)
        self._moments = np.zeros(size, np.uint32)
        self._had = np.zeros(size, bool)  # a gradient in the last update
        self._counted = False  # the last update was applied, at a rate that shows
        self._usual = np.zeros(size)  # |change| of the sum over the rate, of updates that showed
        self._still = np.zeros(size, np.int64)
        self._pulled = np.zeros(size, np.int64)  # of these, with a gradient
        self._handled = np.zeros(size, np.int64)  # of these, with a second moment that moved
        self._returned = np.zeros(size, np.int64)  # of these, moved by the step and put back
        self._moved = np.zeros(size, bool)  # ever
        self._told: list[int] = []
        self._ratio = 0.0  # |change| / |weights| when it was last measured
        self._thread, self._pace = Thread(), Pace()

    def look(self, reading: Reading) -> list[Sign]:
        """Compare where this update starts with where the last one started."""
        if not len(reading.before):
            return []
        before, moments = bits(reading.before), bits(reading.moments)
        if self._thread.follows(reading) and self._counted:
            self._count(before, moments, reading.used_lr)
        self._before, self._after, self._moments = before, bits(reading.after), moments
        self._counted = reading.applied and reading.used_lr > _SLOWEST
        norms = np.asarray(reading.grad_norms)
        # below a millionth of the whole a gradient is rounding, as before a normalisation
        with np.errstate(invalid="ignore"):
            self._had = norms > 1e-6 * reading.grad_norm
        self._ratio = self._ratio if reading.update_ratio is None else reading.update_ratio
        long = self._still >= _STILL
        # below this a sum over a tensor does not resolve what an update does
        return self._judge(reading, long) if long.any() and self._ratio > _RESOLVED else []

    def _count(self, before: NDArray[np.uint32], moments: NDArray[np.uint32], rate: float) -> None:
        # forced normalisation moves a weight that stands still by its rounding
        change = np.abs(floats_of(before) - floats_of(self._before)) / max(rate, _SLOWEST)
        still = (before == self._before) | (change < _TREMOR * self._usual)
        shown = ~still & np.isfinite(change)
        first = np.where(self._usual == 0, change, self._usual)
        self._usual = np.where(shown, 0.95 * first + 0.05 * change, self._usual)
        if not still.any():
            self._returned[:] = 0
            self._still[:] = 0
            self._pulled[:] = 0
            self._handled[:] = 0
            self._moved[:] = True
            return
        self._moved |= ~still
        self._still = (self._still + 1) * still
        self._pulled = (self._pulled + self._had) * still
        stepped = np.abs(floats_of(self._after) - floats_of(self._before)) / max(rate, _SLOWEST)
        self._returned = (self._returned + (stepped > _TREMOR * self._usual)) * still
        self._handled = (self._handled + (moments != self._moments)) * still

    def _judge(self, reading: Reading, long: NDArray[np.bool_]) -> list[Sign]:
        back = 2 * self._returned >= self._still
        pulled, handled = 2 * self._pulled >= self._still, 2 * self._handled >= self._still
        # rows of one weight are +-1 for ever once normalised: handled, never moved, by design
        design = ~self._moved & (~pulled | (self._forced & handled))
        stale = long & ~design
        if not stale.any():
            return []
        at = np.flatnonzero(stale).tolist()
        if set(at) <= set(self._told) and not self._pace.due("stale", reading.step):
            return []
        self._pace.due("stale", reading.step)
        self._told = at
        culprit = named(self._names, stale)
        updates = int(self._still[stale].min())
        # the optimiser has moved their second moments, so it did what it could
        most = bool((handled & ~back)[stale].all())
        why = "too small for the number format" if most else "not applied to them"
        return [
            Sign(
                cause="precision-stagnation" if most else "stale-layer",
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - updates * reading.batch,
                sentence=f"{culprit['count']} of {len(self._names)} tensors ({spoken(culprit)}) "
                f"have not changed in {updates} updates: what is learned is {why}.",
                evidence={
                    "updates": updates,
                    "tensors": culprit["count"],
                    "with_gradient": int((stale & pulled).sum()),
                    "update_ratio": reading.update_ratio,
                },
                culprit=culprit,
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "before": self._before.tolist(),
            "moments": self._moments.tolist(),
            "had": self._had.tolist(),
            "counted": self._counted,
            "after": self._after.tolist(),
            "returned": self._returned.tolist(),
            "usual": listed(self._usual),
            "ratio": self._ratio,
            "still": self._still.tolist(),
            "pulled": self._pulled.tolist(),
            "handled": self._handled.tolist(),
            "moved": self._moved.tolist(),
            "told": list(self._told),
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._before = np.array(state["before"], np.uint32)
        self._moments = np.array(state["moments"], np.uint32)
        self._had, self._moved = np.array(state["had"], bool), np.array(state["moved"], bool)
        self._counted, self._told = bool(state["counted"]), list(state["told"])
        self._after = np.array(state["after"], np.uint32)
        self._returned = np.array(state["returned"], np.int64)
        self._usual, self._ratio = floats(state["usual"]), float(state["ratio"])
        self._still = np.array(state["still"], np.int64)
        self._pulled = np.array(state["pulled"], np.int64)
        self._handled = np.array(state["handled"], np.int64)
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])
