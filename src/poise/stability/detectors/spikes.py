"""A single bad batch: stopped by the gate, and what follows is as before."""

import math
from typing import Any

import numpy as np

from poise.stability.detectors.course import Point
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

SPIKES = frozenset(("error-spike", "gradient-spike"))
_AFTER = 2  # normal updates that show that it was the batch
_MOST = 4  # batches in a row; more are no single event
_SURE = math.log(6.0)  # rise of several in a row that is not a bump of the training itself
_OUTSTANDING = math.log(4.0)
_NAMED = 8


class BadBatch:
    """Names the images behind a spike once two normal updates have followed: `bad-batch`."""

    def __init__(self, facts: Facts) -> None:
        self._file = facts.file_names
        self._stopped: list[dict[str, Any]] = []
        self._normal = 0

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if not reading.applied:
            if reading.reasons <= SPIKES:
                self._stopped.append(self._noted(reading, point))
                self._normal = 0
            return []
        if not self._stopped:
            return []
        # around a bump of the training itself the applied updates are raised as well
        if not point.level < max(math.log(1.5), 4 * point.spread):
            self._stopped, self._normal = [], 0
            return []
        self._normal += 1
        if self._normal < _AFTER:
            return []
        stopped, self._stopped, self._normal = self._stopped, [], 0
        return self._sign(reading, stopped)

    def _noted(self, reading: Reading, point: Point) -> dict[str, Any]:
        excess = np.nan_to_num(point.excess, nan=-1.0)
        order = np.argsort(-excess)
        least = max(_OUTSTANDING, 0.5 * float(excess[order[0]]))
        worst = [int(i) for i in order if excess[i] >= least]
        return {
            "images_seen": reading.images_seen,
            "batch": reading.batch,
            "level": point.level if math.isfinite(point.level) else 0.0,
            "norm": point.norm if math.isfinite(point.norm) else 0.0,
            "error": "error-spike" in reading.reasons,
            "files": [self._file(int(reading.indices[i])) for i in worst[:_NAMED]],
            "indices": [int(reading.indices[i]) for i in worst],
            "factors": [math.exp(min(float(excess[i]), 80.0)) for i in worst[:_NAMED]],
            "all": reading.indices.tolist(),
        }

    def _sign(self, reading: Reading, stopped: list[dict[str, Any]]) -> list[Sign]:
        n = len(stopped)
        rise = sum(max(s["level"], s["norm"] / 2) for s in stopped) / n
        if n > _MOST or (n > 1 and rise < _SURE):
            return []
        worst = max(stopped, key=lambda s: max(s["level"], s["norm"]))
        files = [f for s in stopped for f in s["files"]][:_NAMED]
        count = sum(len(s["indices"]) for s in stopped)
        who = (
            f"{count} of {sum(s['batch'] for s in stopped)} images stand out, first {files[0]}"
            if files
            else "no single image stands out"
        )
        what = f"Error x{math.exp(worst['level']):.3g}, gradient x{math.exp(worst['norm']):.3g}"
        return [
            Sign(
                cause="bad-batch",
                severity="warning",
                images_seen=reading.images_seen,
                since=stopped[0]["images_seen"] - stopped[0]["batch"],
                sentence=f"{what} in {n} batch{'es' if n > 1 else ''} at "
                f"{worst['images_seen']} images, left out; the next two were as before. {who}.",
                evidence={
                    "batches": n,
                    "error_factor": math.exp(min(worst["level"], 80.0)),
                    "gradient_factor": math.exp(min(worst["norm"], 80.0)),
                    "image_factors": worst["factors"],
                },
                culprit={
                    "files": files,
                    "indices": [i for s in stopped for i in s["indices"]],
                    "batch_indices": [i for s in stopped for i in s["all"]],
                },
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {"stopped": [dict(s) for s in self._stopped], "normal": self._normal}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._stopped, self._normal = [dict(s) for s in state["stopped"]], int(state["normal"])
