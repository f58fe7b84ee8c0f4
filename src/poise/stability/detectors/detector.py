"""The seam of all detectors, and what their states are made of."""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from poise.stability.incident import Sign
from poise.stability.reading import Reading

Floats = NDArray[np.float64]
_NAMED = 12  # names in one sign; the count says how many there are


class Detector(Protocol):
    """Sees every update once, in order; its state is plain JSON and continues exactly."""

    def look(self, reading: Reading) -> list[Sign]:
        """What this update shows."""

    def state(self) -> dict[str, Any]:
        """Numbers, lists and dicts that JSON keeps exactly."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""


class Pace:
    """When a lasting state is said again: at once, and then every so many updates."""

    def __init__(self, every: int = 200) -> None:
        """
        Args:
            every: updates between two signs of the same key.
        """
        self._every = every
        self._last: dict[str, int] = {}

    def due(self, key: str, step: int) -> bool:
        """Whether `key` may be said at this step; if so, it counts as said."""
        last = self._last.get(key)
        # a step before the last sign: the run was rolled back, and what is seen is seen anew
        if last is not None and last <= step < last + self._every:
            return False
        self._last[key] = step
        return True

    def state(self) -> dict[str, int]:
        """The steps of the last signs."""
        return dict(self._last)

    def restore(self, state: dict[str, int]) -> None:
        """Go on from `state`."""
        self._last = {key: int(step) for key, step in state.items()}


class Thread:
    """Whether a reading follows the one before without a gap."""

    def __init__(self) -> None:
        self._end = -1

    def follows(self, reading: Reading) -> bool:
        """True unless this is the first reading, or the first after a rollback or a jump."""
        joined = reading.images_seen - reading.batch == self._end
        self._end = reading.images_seen
        return joined

    def state(self) -> int:
        """Images seen by the last reading; -1 before any."""
        return self._end

    def restore(self, state: int) -> None:
        """Go on from `state`."""
        self._end = int(state)


def bits(values: ArrayLike) -> NDArray[np.uint32]:
    """float32 numbers as their bits, so that equal means equal, NaN included."""
    return np.ascontiguousarray(values, np.float32).view(np.uint32)


def floats_of(pattern: NDArray[np.uint32]) -> Floats:
    """The numbers behind `bits`."""
    return pattern.view(np.float32).astype(np.float64)


def listed(values: NDArray[Any]) -> list[Any]:
    """An array as JSON keeps it; what is not finite becomes None."""
    if values.dtype.kind != "f" or bool(np.isfinite(values).all()):
        plain: list[Any] = values.tolist()
        return plain
    if values.ndim > 1:
        return [listed(row) for row in values]
    return [x if math.isfinite(x) else None for x in values.tolist()]


def floats(values: list[Any]) -> Floats:
    """What `listed` made of an array; None becomes NaN."""
    return np.array(values, np.float64)


def named(names: tuple[str, ...], which: NDArray[Any]) -> dict[str, Any]:
    """A culprit: the tensors at these positions (or where the mask is true), and how many."""
    at = np.flatnonzero(which) if which.dtype == np.bool_ else which
    return {"tensors": [names[i] for i in at[:_NAMED].tolist()], "count": len(at)}


def spoken(culprit: dict[str, Any]) -> str:
    """The tensors of a culprit in a sentence: the first, and how many more."""
    first, more = culprit["tensors"][0], culprit["count"] - 1
    return first if not more else f"{first} and {more} more"
