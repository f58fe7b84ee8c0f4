"""Weights that all grow by the same share at every update, as no learning does."""

from typing import Any

import numpy as np

from poise.stability.detectors.detector import Floats, Pace, Thread, floats, listed, named, spoken
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_UPDATES = 12
_EVERY = 4  # updates between two looks
_LEAST = 1e-3  # share by which they grow at an update
_STEADY = 8.0  # mean growth over its deviation from update to update
_NORM = 1e-3  # sums below this share of the tensor's usual one say nothing of its size


class SteadyGrowth:
    """Names tensors whose sums grow together by a steady share: `weight-growth`.

    Learning moves weights up and down; a decay of the wrong sign, or a factor in the wrong place,
    multiplies them. The median growth over the tensors is then many times its own deviation over
    the last 12 updates.
    """

    def __init__(self, facts: Facts) -> None:
        size = len(facts.names)
        self._names = facts.names
        self._ring: Floats = np.zeros((_UPDATES, size))
        self._taken = 0
        self._thread, self._pace = Thread(), Pace()

    def look(self, reading: Reading) -> list[Sign]:
        """The growth of each tensor in this update, with that of those before."""
        if not len(reading.before):
            return []
        if not self._thread.follows(reading):
            self._taken = 0
        if not reading.applied:
            return []
        before = np.asarray(reading.before, np.float64)
        after = np.asarray(reading.after, np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            growth = np.where(np.abs(before) > _NORM, after / before - 1, 0.0)
        self._ring[self._taken % _UPDATES] = np.nan_to_num(growth)
        self._taken += 1
        if self._taken < _UPDATES or self._taken % _EVERY:
            return []
        mean = self._ring.mean(axis=0)
        # one tensor may well grow steadily, as Adam's first updates all point one way
        common = np.median(self._ring, axis=1)
        if common.mean() <= max(_LEAST, _STEADY * float(common.std())):
            return []
        steady = mean > common.mean() / 2
        alike = steady & (mean < 1.5 * common.mean())
        if 2 * alike.sum() < len(mean):  # a strong momentum moves each tensor at a pace of its own
            return []
        if not self._pace.due("growth", reading.step):
            return []
        culprit = named(self._names, steady)
        share = float(np.median(mean[steady]))
        left = int(np.log(65504.0) / np.log1p(share))
        return [
            Sign(
                cause="weight-growth",
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - _UPDATES * reading.batch,
                sentence=f"{spoken(culprit)} grow by {share:.2%} at every update; after {left} "
                "more a weight of 1 would not fit half precision.",
                evidence={"share": share, "tensors": culprit["count"], "steady": True},
                culprit=culprit,
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "ring": listed(self._ring),
            "taken": self._taken,
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._ring, self._taken = floats(state["ring"]), int(state["taken"])
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])
