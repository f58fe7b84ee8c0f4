"""What is usual for error and gradient norm, and how far each update is from it.

All in logarithms. An error is compared with the running error of its own noise band, so that the
noise drawn for a batch decides nothing; what is not finite or was left out changes no baseline.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.detector import Floats, floats, listed
from poise.stability.facts import Facts
from poise.stability.reading import Reading

WINDOW = 256  # updates that make up what is usual
PRIMED = 64  # updates after which anything is judged
NORMAL = 1.4826  # median absolute deviation to standard deviation
_VALUES = 256  # values over which a band's running error reaches back
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Point:
    """One update against what is usual."""

    excess: Floats  # [B], ln(error) above the running one of its band; NaN: not finite
    sums: Floats  # [bands] of the excess
    numbers: Floats  # [bands] of the images
    level: float  # mean excess, above its median; NaN: not finite
    norm: float  # ln(gradient norm) above its median; NaN: not finite
    spread: float  # standard deviation of `level`, robust
    norm_spread: float
    ready: bool  # enough was seen to judge


class Course:
    """Keeps the baselines; `take` each reading once."""

    def __init__(self, facts: Facts) -> None:
        logs = np.log(np.array(facts.centres, np.float64))
        self.bands = len(logs)
        self._edges: Floats = (logs[1:] + logs[:-1]) / 2
        self._means: Floats = np.zeros(self.bands)
        self._spreads: Floats = np.zeros(self.bands)  # mean absolute deviation
        self._counts: Floats = np.zeros(self.bands)
        self._ring: Floats = np.full((2, WINDOW), np.nan)  # mean excess, ln(gradient norm)
        self._taken = 0
        self._middle: Floats = np.zeros(2)
        self._width: Floats = np.zeros(2)

    def take(self, reading: Reading) -> Point:
        """Judge a reading, and learn from it if it was applied."""
        error = np.asarray(reading.image_error, np.float64)
        finite = np.isfinite(error)
        with np.errstate(invalid="ignore"):
            log = np.log(np.maximum(error, _SMALLEST))
        band = np.searchsorted(self._edges, np.log(np.asarray(reading.sigma, np.float64)))
        known = self._counts[band] > 0
        excess = np.where(known, log - self._means[band], 0.0)
        whole = bool(finite.all())
        if not whole:
            excess = np.where(finite, excess, np.nan)
        good = math.isfinite(reading.grad_norm) and reading.grad_norm > 0
        norm = math.log(reading.grad_norm) if good else math.nan
        mean = float(excess.mean()) if whole else math.nan
        numbers = np.bincount(band, minlength=self.bands).astype(np.float64)
        sums = np.bincount(band, weights=excess, minlength=self.bands).astype(np.float64)
        point = Point(
            excess=excess,
            sums=sums,
            numbers=numbers,
            level=mean - float(self._middle[0]),
            norm=norm - float(self._middle[1]),
            spread=float(self._width[0]),
            norm_spread=float(self._width[1]),
            ready=self._taken >= PRIMED,
        )
        if reading.applied and whole and good:
            self._learn(log, excess, band, point)
            self._keep(mean, norm)
        return point

    def deviation(self) -> Floats:
        """Standard deviation of ln(error) within each band, [bands]."""
        return self._spreads * 1.25  # of a normal distribution, from the mean deviation

    def seen(self) -> Floats:
        """Values that each band's running error is made of, [bands]."""
        return self._counts

    def _learn(self, log: Floats, excess: Floats, band: NDArray[np.int64], point: Point) -> None:
        """Move each band's running error towards its images, by at most e each."""
        suspicious = point.ready and point.level > max(0.3, 3 * point.spread)
        weight = 0.1 if suspicious else 1.0
        number = point.numbers
        first = (self._counts == 0) & (number > 0)
        if first.any():
            total = np.bincount(band, weights=log, minlength=self.bands)
            self._means[first] = total[first] / number[first]
        pull = np.bincount(band, weights=np.clip(excess, -1, 1), minlength=self.bands)
        size = np.bincount(band, weights=np.minimum(np.abs(excess), 2), minlength=self.bands)
        share = weight / (np.minimum(self._counts, _VALUES) + number + 1e-9)
        share[first] = 0
        self._means += share * pull
        self._spreads += share * (size - number * self._spreads)
        self._counts += number

    def _keep(self, mean: float, norm: float) -> None:
        self._ring[:, self._taken % WINDOW] = mean, norm
        self._taken += 1
        # medians are dear and move slowly
        if self._taken < PRIMED or self._taken % 8:
            return
        values = self._ring[:, : min(self._taken, WINDOW)]
        self._middle = np.median(values, axis=1)
        self._width = NORMAL * np.median(np.abs(values - self._middle[:, None]), axis=1)

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "means": listed(self._means),
            "spreads": listed(self._spreads),
            "counts": listed(self._counts),
            "ring": listed(self._ring),
            "taken": self._taken,
            "middle": listed(self._middle),
            "width": listed(self._width),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._means, self._spreads = floats(state["means"]), floats(state["spreads"])
        self._counts, self._ring = floats(state["counts"]), floats(state["ring"])
        self._taken = int(state["taken"])
        self._middle, self._width = floats(state["middle"]), floats(state["width"])
