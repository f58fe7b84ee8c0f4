"""What a curve of numbers does: spikes, rising, standing still, swinging. No names, no words.

Everything is measured against the curve's own noise with medians, in logarithms where all values
are positive and in differences where some are not: a signed loss has no ratios.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
_SIDE = 15  # rows on either side that a row is compared with
_FEW = 5  # rows without which nothing is judged
_MAD = 1.4826  # of a normal distribution's deviation


@dataclass(frozen=True)
class Spike:
    """Rows far above those before and those after."""

    first: int  # rows
    last: int
    top: int
    value: float
    usual: float  # around it
    sigmas: float


@dataclass(frozen=True)
class Shift:
    """A lasting change of level."""

    row: int  # where it began
    before: float
    after: float
    sigmas: float


@dataclass(frozen=True)
class Swing:
    """Ups and downs that are no noise."""

    row: int
    size: float  # typical half height, in ln or in the unit of the curve
    period: float | None  # rows; None: without one


@dataclass(frozen=True)
class Curve:
    """Finite values in the order they were logged."""

    y: Array  # [N]

    @cached_property
    def positive(self) -> bool:
        """Whether logarithms can be taken."""
        return bool(len(self.y)) and bool((self.y > 0).all())

    @cached_property
    def z(self) -> Array:
        """What is compared: ln y, or y itself where it has no logarithm."""
        return np.log(self.y) if self.positive else self.y

    @cached_property
    def residual(self) -> Array:
        """z without its level."""
        return self.z - smooth(self.z, _SIDE)

    @cached_property
    def sigma(self) -> float:
        """Deviation of one row from its level, robust."""
        if len(self.y) < _FEW:
            return 0.0
        inner = self.residual[1:-1]
        return float(_MAD * np.median(np.abs(inner - np.median(inner))))

    @cached_property
    def span(self) -> float:
        """Between low and high values of z, without the most extreme ones."""
        low, high = np.quantile(self.z, [0.05, 0.95]) if len(self.z) else (0.0, 0.0)
        return float(high - low)

    def material(self, factor: float, share: float) -> float:
        """The smallest change that matters: a factor, or a share of the span where signed."""
        return math.log(factor) if self.positive else share * self.span

    def back(self, z: float) -> float:
        """From what is compared to what was logged."""
        return math.exp(min(z, 700.0)) if self.positive else z


def smooth(z: Array, side: int) -> Array:
    """Running median, `side` rows to either side; at the ends of what there is."""
    if len(z) < 3:
        return z.copy()
    side = min(side, max(1, (len(z) - 1) // 4))
    padded = np.concatenate([z[:side][::-1], z, z[-side:][::-1]])
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * side + 1)
    return np.asarray(np.median(windows, axis=1), dtype=np.float64)


def levels(z: Array, blocks: int) -> tuple[Array, npt.NDArray[np.int64]]:
    """Medians of about `blocks` stretches, and where each begins."""
    blocks = max(1, min(blocks, len(z) // _FEW))
    edges = np.linspace(0, len(z), blocks + 1).astype(np.int64)
    parts = [np.median(z[a:b]) for a, b in pairwise(edges)]
    return np.asarray(parts, dtype=np.float64), edges[:-1]


def spikes(curve: Curve, factor: float = 1.5, sigmas: float = 8.0) -> list[Spike]:
    """Rows far above the median before and the median after them, that come back.

    Far: `sigmas` deviations, several times what the curve's own tail does, and by `factor`.
    """
    z, n = curve.z, len(curve.z)
    if n < 4 * _FEW:
        return []
    before = np.full(n, math.inf)
    after = np.full(n, math.inf)
    side = min(_SIDE, n // 4)
    windows = np.median(np.lib.stride_tricks.sliding_window_view(z, side), axis=1)
    before[side:] = windows[: n - side]
    after[: n - side] = windows[1:]
    for i in range(_FEW, side):
        before[i] = np.median(z[:i])
    for i in range(n - side, n - 3):
        after[i] = np.median(z[i + 1 :])
    around = np.maximum(before, after)
    excess = np.where(np.isfinite(around), z - around, -math.inf)
    ordered = np.sort(excess[np.isfinite(excess)])
    tail = ordered[: len(ordered) - max(_FEW, n // 20)]
    times = 3.0 if curve.positive else 10.0
    least = max(curve.material(factor, 0.15), times * float(tail[-1]) if len(tail) else 0.0)
    local = _local_sigma(curve)
    far = np.flatnonzero(excess > np.maximum(least, sigmas * local))
    found = []
    for rows in _runs(far, gap=_FEW):
        top = int(rows[np.argmax(excess[rows])])
        size = float(excess[top] / max(local[top], 1e-12))
        usual = curve.back(float(around[top]))
        found.append(Spike(int(rows[0]), int(rows[-1]), top, float(curve.y[top]), usual, size))
    return found


def rise(curve: Curve, factor: float = 2.0, sigmas: float = 6.0) -> Shift | None:
    """The level at the end, if it is far above the lowest it had; else None."""
    if len(curve.z) < 4 * _FEW:
        return None
    level, starts = levels(curve.z, 40)
    end = float(np.median(curve.z[-max(_FEW, len(curve.z) // 20) :]))
    best = int(np.argmin(level))
    up = end - float(level[best])
    local = _local_sigma(curve)
    noise_low = float(local[starts[best]])
    noise = max(noise_low, float(np.median(local[-max(4 * _SIDE, len(local) // 20) :])))
    fall = max(0.0, float(level[0] - level[best]))
    least = math.log(factor) if curve.positive else 0.5 * fall
    if up > 15 * noise and best > 0.1 * len(level):  # beyond doubt, so that less is enough
        least = max(math.log(factor) / 2.5, 0.3 * fall) if curve.positive else 0.3 * fall
    if up <= max(least, sigmas * noise) or (not curve.positive and up < 0.25 * curve.span):
        return None
    line = smooth(curve.z, 2)
    low = np.flatnonzero(line[starts[best] :] <= level[best] + 4 * noise_low)
    row = int(starts[best] + (low[-1] + 1 if len(low) else 0))
    row = min(row, len(curve.z) - 1)
    before, after = curve.back(float(level[best])), curve.back(end)
    return Shift(row, before, after, up / max(curve.sigma, 1e-12))


def bump(curve: Curve, factor: float = 2.0) -> Shift | None:
    """The highest rise of the level over the lowest before it that came back; else None."""
    if len(curve.z) < 8 * _FEW:
        return None
    line = smooth(curve.z, _SIDE)
    lowest = np.minimum.accumulate(line)
    up = line - lowest
    top = int(np.argmax(up))
    least = max(curve.material(factor, 0.5), 6 * curve.sigma)
    if up[top] <= least or up[-1] > 0.5 * up[top]:
        return None
    row = int(np.flatnonzero(up[: top + 1] <= 0.15 * up[top])[-1])
    sigmas = float(up[top]) / max(curve.sigma, 1e-12)
    return Shift(row, curve.back(float(lowest[top])), curve.back(float(line[top])), sigmas)


def standstill(curve: Curve) -> tuple[int, bool] | None:
    """(row since which the level does not move, whether it stopped abruptly); None: it moves.

    Nothing is said where the noise would hide slow progress. An abrupt stop is a fall that was
    as steep just before its end as earlier; every healthy curve flattens out before it is flat.
    """
    n = len(curve.z)
    if n < 200 or curve.sigma == 0:
        return None
    level, starts = levels(curve.z, 50)
    error = 1.25 * curve.sigma / math.sqrt(n / len(level))  # of a median
    if error > 0.02 * (1.0 if curve.positive else max(abs(float(level[-1])), 0.25 * curve.span)):
        return None
    flat = len(level)
    while flat > 0 and _flat(level[flat - 1 :], error):
        flat -= 1
    if flat > 0.6 * len(level):
        return None
    if flat == 0:
        start = float(np.median(curve.z[:3])) - float(np.median(curve.z))
        return None if abs(start) > 5 * curve.sigma else (0, False)
    if flat < 12:
        return None
    early, late = level[flat - 11] - level[flat - 6], level[flat - 6] - level[flat - 1]
    sharp = late > 0.75 * early > 0 and late > 12 * error
    return int(starts[flat]), bool(sharp)


def swings(curve: Curve) -> Swing | None:
    """A period that most of the variation follows, or noise that grew for good; else None."""
    n = len(curve.z)
    if n < 64:
        return None
    side = max(_SIDE, n // 12)
    trend = np.convolve(np.pad(curve.z, side, "reflect"), np.ones(2 * side + 1), "valid")
    moved = curve.z - trend / (2 * side + 1)
    cut = moved[n // 10 :]
    limit = 3 * 1.4826 * float(np.median(np.abs(cut - np.median(cut)))) + 1e-12
    cut = np.clip(cut, -limit, limit)
    power = np.abs(np.fft.rfft((cut - cut.mean()) * np.hanning(len(cut)))) ** 2
    power[:3] = 0
    top = int(np.argmax(power))
    share = float(power[max(0, top - 2) : top + 3].sum() / max(power.sum(), 1e-300))
    size = math.sqrt(2) * float(cut.std())
    period = len(cut) / max(top, 1)
    parts = np.asarray([part.std() for part in np.array_split(cut, 8)])
    lasting = int((parts > 0.5 * parts.max()).sum()) >= 3
    if share > 0.5 and top >= 6 and lasting and size > curve.material(1.25, 0.1):
        begin = int(np.flatnonzero(parts > 0.5 * parts.max())[0]) * len(cut) // len(parts)
        return Swing(n // 10 + begin if begin else 0, size, period)
    return _grown(curve)


def constant_since(y: Array) -> int:
    """The first row from which every value is exactly the last one."""
    other = np.flatnonzero(y != y[-1])
    return int(other[-1]) + 1 if len(other) else 0


def _grown(curve: Curve) -> Swing | None:
    """Noise that became many times larger and stayed so."""
    n = len(curve.z)
    step = max(20, n // 20)
    starts = range(0, n - step + 1, step)
    size = np.asarray([_MAD * np.median(np.abs(curve.residual[i : i + step])) for i in starts])
    if len(size) < 5:
        return None
    for i in range(3, len(size) - 1):
        usual = float(np.median(size[1:i]))
        least = max(6 * usual, curve.material(1.6, 0.15))
        if usual > 0 and (size[i:] > least).all():
            return Swing(i * step, float(np.median(size[i:])), None)
    return None


def _flat(level: Array, error: float) -> bool:
    """Whether these medians differ by no more than their own error."""
    m = len(level)
    if m < 3:
        return True
    half = m // 2
    ends = abs(float(level[:half].mean() - level[half:].mean()))
    return ends < 6 * error / math.sqrt(half) and float(np.ptp(level)) < 9 * error


def _local_sigma(curve: Curve) -> Array:
    """Noise around each row: of its stretch or of the whole, whichever is larger."""
    n, step = len(curve.z), 4 * _SIDE
    blocks = [np.median(np.abs(curve.residual[i : i + step])) for i in range(0, n, step)]
    size = _MAD * np.asarray(blocks)
    wide = np.maximum(size, np.maximum(np.append(size[1:], 0), np.append(0, size[:-1])))
    each: Array = np.repeat(wide, step)[:n].astype(np.float64)
    return np.asarray(np.maximum(each, max(curve.sigma, 1e-12)), dtype=np.float64)


def _runs(rows: npt.NDArray[np.int64], gap: int) -> list[npt.NDArray[np.int64]]:
    """Rows that lie together."""
    if not len(rows):
        return []
    return np.split(rows, np.flatnonzero(np.diff(rows) > gap) + 1)
