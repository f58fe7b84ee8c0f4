"""Numbers that are not finite, told apart by where they appear first."""

from typing import Any

import numpy as np

from poise.stability.detectors.detector import Pace, named, spoken
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading


class NonFinite:
    """Weights, gradients or what lies before the loss; input is told by `data.InputFaults`."""

    def __init__(self, facts: Facts) -> None:
        self._names = facts.names
        self._row = 0  # updates in a row that were left out for this
        self._since = 0
        self._pace = Pace(16)

    def look(self, reading: Reading) -> list[Sign]:
        """At once: the weights first, for everything after them follows from them."""
        left_out = bool({"loss", "gradient"} & reading.reasons)
        healthy = bool(np.isfinite(reading.before).all() and np.isfinite(reading.after).all())
        if healthy and (not left_out or "input" in reading.reasons):
            self._row = 0
            return []
        if not self._row:
            self._since = reading.images_seen - reading.batch
        self._row += 1
        if not healthy:
            kind = "weights-damaged"
        else:
            kind = "non-finite-activation" if "loss" in reading.reasons else "non-finite-gradient"
        # each of the first three is an event; after that one in sixteen
        if not self._pace.due(kind, reading.step) and self._row > 3:
            return []
        if kind == "weights-damaged":
            return [self._weights(reading)]
        return [self._gradient(reading) if kind == "non-finite-gradient" else self._loss(reading)]

    def _weights(self, reading: Reading) -> Sign:
        at_start = ~np.isfinite(np.asarray(reading.before))
        where = at_start if at_start.any() else ~np.isfinite(np.asarray(reading.after))
        culprit = named(self._names, where)
        when = "before" if at_start.any() else "after"
        return Sign(
            cause="weights-damaged",
            severity="critical",
            images_seen=reading.images_seen,
            since=self._since,
            sentence=f"Weights of {spoken(culprit)} were not finite {when} the update.",
            evidence={"tensors": culprit["count"], "when": when, "updates": self._row},
            culprit=culprit,
        )

    def _gradient(self, reading: Reading) -> Sign:
        where = ~np.isfinite(np.asarray(reading.grad_norms))
        total = len(self._names)
        if not where.any():  # each norm is finite, their sum is not
            where = np.asarray(reading.grad_norms) == np.max(reading.grad_norms)
        culprit = named(self._names, where)
        everywhere = culprit["count"] == total
        return Sign(
            cause="non-finite-gradient",
            severity="critical" if self._row >= 3 else "warning",
            images_seen=reading.images_seen,
            since=self._since,
            sentence=f"The loss was finite ({reading.loss:.3g}), but the gradient of "
            f"{spoken(culprit)} was not: backward only. The update was left out.",
            evidence={
                "tensors": culprit["count"],
                "of": total,
                "updates": self._row,
                "examine": everywhere,
            },
            culprit=culprit,
        )

    def _loss(self, reading: Reading) -> Sign:
        bad = int((~np.isfinite(np.asarray(reading.image_error))).sum())
        return Sign(
            cause="non-finite-activation",
            severity="critical" if self._row >= 3 else "warning",
            images_seen=reading.images_seen,
            since=self._since,
            sentence=f"The loss was not finite ({bad} of {reading.batch} images), though input and "
            "weights were. The update was left out.",
            evidence={"images": bad, "of": reading.batch, "updates": self._row, "examine": True},
        )

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {"row": self._row, "since": self._since, "pace": self._pace.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._row, self._since = int(state["row"]), int(state["since"])
        self._pace.restore(state["pace"])
