"""What probe detectors share: short histories by name, and robust figures of them."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

_SPAN = 64  # probes that are remembered


class History:
    """The last values of named series, as plain data."""

    def __init__(self, span: int = _SPAN) -> None:
        self._span = span
        self._series: dict[str, list[float]] = {}

    def __getitem__(self, name: str) -> list[float]:
        """The values so far, the oldest first; empty for an unknown name."""
        return self._series.get(name, [])

    def add(self, name: str, value: float) -> None:
        """Take in one value; one that is not finite is left out."""
        if math.isfinite(value):
            self._series[name] = [*self[name], value][-self._span :]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return dict(self._series)

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._series = {name: [float(v) for v in values] for name, values in state.items()}


def middle(values: Iterable[float]) -> float:
    """The median; values must not be empty."""
    return float(np.median(list(values)))


def deviation(values: Sequence[float]) -> float:
    """1.4826 times the median absolute deviation: the standard deviation of normal values."""
    x = np.asarray(values, float)
    return float(1.4826 * np.median(np.abs(x - np.median(x))))


def jitter(values: Sequence[float]) -> float:
    """Standard deviation of the noise around a smooth course, from second differences."""
    if len(values) < 4:
        return math.inf
    return float(1.4826 * np.median(np.abs(np.diff(values, 2))) / math.sqrt(6))


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Slope per value of a straight line, and its t statistic; at least 3 values.

    An exact line has an infinite t, a constant has 0.
    """
    y = np.asarray(values, float)
    x = np.arange(len(y)) - (len(y) - 1) / 2
    slope = float(x @ y / (x @ x))
    rest = y - y.mean() - slope * x
    error = math.sqrt(float(rest @ rest) / (len(y) - 2) / float(x @ x))
    if error <= 1e-12 * abs(slope):
        return slope, math.copysign(math.inf, slope) if slope else 0.0
    return slope, slope / error


def logs(errors: Sequence[float]) -> list[float] | None:
    """Logarithms of errors; None where one is not finite and positive."""
    whole = all(math.isfinite(e) and e > 0 for e in errors)
    return [math.log(e) for e in errors] if whole else None
