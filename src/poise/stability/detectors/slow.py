"""What shows over many updates: oscillation, an error that barely falls, a plateau."""

import math
from typing import Any

import numpy as np

from poise.stability.detectors.course import Point
from poise.stability.detectors.detector import Floats, Pace, floats, listed
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_SPAN = 64
_EVERY = 8  # updates between two looks
_CYCLES = 4  # fewer in the span are a bump
_TONE = 0.6  # share of the power in one tone; noise has about 0.2
_LOUD = 3.0  # times the usual deviation
_LEAST = 0.25  # of the logarithm


class Oscillation:
    """Names an error or gradient norm that swings at one period: `oscillation`.

    The power of the last 64 levels by frequency: more than half of it in one tone, and three
    times the usual deviation. Noise has neither, and a bump has no tone.
    """

    def __init__(self, facts: Facts) -> None:
        self._ring: Floats = np.zeros((2, _SPAN))
        self._filled = self._count = 0
        self._usual: Floats = np.full(2, np.nan)  # running deviation of each over a span
        self._window: Floats = np.hanning(_SPAN + 1)[:-1]
        self._pace = Pace()

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if not (point.ready and math.isfinite(point.level) and math.isfinite(point.norm)):
            return []
        self._ring[:, self._filled % _SPAN] = point.level, point.norm
        self._filled += 1
        self._count += 1
        if self._filled < _SPAN or self._count % _EVERY:
            return []
        at = (self._filled + np.arange(_SPAN)) % _SPAN
        values = self._ring[:, at]
        values = values - values.mean(axis=1, keepdims=True)
        deviation = values.std(axis=1)
        usual = np.where(np.isnan(self._usual), deviation, self._usual)
        found = self._judge(reading, values, deviation, usual)
        # slowly and never by much: an oscillation must not become usual
        self._usual = usual * np.exp(np.clip(np.log((deviation + 1e-9) / (usual + 1e-9)), -1, 0.02))
        return found

    def _judge(
        self, reading: Reading, values: Floats, deviation: Floats, usual: Floats
    ) -> list[Sign]:
        loud = (deviation > _LOUD * usual) & (deviation > _LEAST)
        if not loud.any():
            return []
        power = np.abs(np.fft.rfft(values * self._window, axis=1)) ** 2
        total = power[:, 1:].sum(axis=1)
        tone = power[:, 1:].copy()
        tone[:, 1:] += power[:, 1:-1]
        tone[:, :-1] += power[:, 2:]  # the window spreads a tone over three
        tone[:, : _CYCLES - 1] = 0
        best = tone.argmax(axis=1)
        share = tone.max(axis=1) / (total + 1e-30)
        hit = loud & (share > _TONE)
        if not hit.any() or not self._pace.due("oscillation", reading.step):
            return []
        kind = int(np.flatnonzero(hit)[0])
        period = _SPAN / (int(best[kind]) + 1)
        what = ("error", "gradient norm")[kind]
        swing = math.exp(float(deviation[kind]) * math.sqrt(8.0))
        return [
            Sign(
                cause="oscillation",
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - _SPAN * reading.batch,
                sentence=f"The {what} swings by a factor of {swing:.3g} with a period of "
                f"{period:.3g} updates, {deviation[kind] / usual[kind]:.3g} times its usual noise.",
                evidence={
                    "signal": what,
                    "period": period,
                    "swing": swing,
                    "tone": float(share[kind]),
                    "factor": float(deviation[kind] / usual[kind]),
                },
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "ring": listed(self._ring),
            "filled": self._filled,
            "count": self._count,
            "usual": listed(self._usual),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._ring, self._usual = floats(state["ring"]), floats(state["usual"])
        self._filled, self._count = int(state["filled"]), int(state["count"])
        self._pace.restore(state["pace"])


_OVERSHOT, _NOTHING, _LARGE = 80, 0.95, 0.025  # updates, share of the first error, |change|/|w|
_TINY = 1e-4  # |change| / |weights| of one update
_BARELY = 0.9  # of the first error
_BLOCK = 512  # updates averaged
_BLOCKS = 4  # without a lower one
_FIRST = 16
_TRIED = 120  # updates


class Progress:
    """Names updates too small to learn from (`slow-convergence`), and a standstill (`plateau`)."""

    def __init__(self, facts: Facts) -> None:
        self._warmup, self._total = facts.warmup_images, facts.total_images
        self._first: list[float] = []
        self._recent = math.nan  # running error
        self._ratios: list[float] = []
        self._largest = 0.0
        self._updates = 0
        self._block: list[float] = [0.0, 0.0, 0.0]  # sum, sum of squares, number of ln(error)
        self._best = math.inf
        self._since_best = 0
        self._pace = Pace(1000)

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if not (reading.applied and math.isfinite(reading.error) and reading.error > 0):
            return []
        self._updates += 1
        if len(self._first) < _FIRST:
            self._first.append(reading.error)
        off = reading.error - self._recent
        self._recent = reading.error if math.isnan(self._recent) else self._recent + off / 32
        if reading.update_ratio is not None and math.isfinite(reading.update_ratio):
            self._ratios = [*self._ratios[-7:], reading.update_ratio]
            self._largest = max(self._largest, reading.update_ratio)
        return self._overshot(reading) or self._slow(reading) + self._plateau(reading)

    def _overshot(self, reading: Reading) -> list[Sign]:
        """Large updates from the start, and nothing learned by them."""
        first = min(1.0, sum(self._first) / len(self._first))
        early = self._updates < _OVERSHOT or reading.images_seen < self._warmup
        if early or self._recent < _NOTHING * first or self._largest < _LARGE:
            return []
        if not self._pace.due("overshot", reading.step):
            return []
        return [
            Sign(
                cause="lr-too-high",
                severity="critical",
                images_seen=reading.images_seen,
                since=0,
                sentence=f"After {self._updates} updates the error is still {self._recent:.3g}, "
                f"and they changed the weights by up to {self._largest:.1%} each: too far.",
                evidence={
                    "error": self._recent,
                    "first": first,
                    "largest_update": self._largest,
                    "lr": reading.used_lr,
                },
            )
        ]

    def _slow(self, reading: Reading) -> list[Sign]:
        if self._updates < _TRIED or reading.images_seen < self._warmup or len(self._ratios) < 4:
            return []
        # a network starts at about 1; a start far above that falls whatever the rate
        first = min(1.0, sum(self._first) / len(self._first))
        if self._recent < _BARELY * first:
            return []
        ratio = float(np.median(self._ratios))
        if ratio >= _TINY:
            return []
        if not self._pace.due("slow", reading.step):
            return []
        return [
            Sign(
                cause="slow-convergence",
                severity="warning",
                images_seen=reading.images_seen,
                since=0,
                sentence=f"After {self._updates} updates the error is {self._recent:.3g} and began "
                f"at {first:.3g}; one update changes the weights by {ratio:.1e} of their size.",
                evidence={
                    "update_ratio": ratio,
                    "error": self._recent,
                    "first": first,
                    "lr": reading.used_lr,
                },
            )
        ]

    def _plateau(self, reading: Reading) -> list[Sign]:
        log = math.log(reading.error)
        self._block = [self._block[0] + log, self._block[1] + log * log, self._block[2] + 1]
        if self._block[2] < _BLOCK:
            return []
        total, squares, n = self._block
        self._block = [0.0, 0.0, 0.0]
        mean = total / n
        noise = math.sqrt(max(squares / n - mean * mean, 0.0) / n)
        if mean < self._best - 2 * noise:
            self._best, self._since_best = mean, 0
            return []
        self._since_best += 1
        late = reading.images_seen > 0.8 * self._total
        if self._since_best < _BLOCKS or late or not self._pace.due("plateau", reading.step):
            return []
        updates = self._since_best * _BLOCK
        return [
            Sign(
                cause="plateau",
                severity="info",
                images_seen=reading.images_seen,
                since=reading.images_seen - updates * reading.batch,
                sentence=f"The training error has not fallen for {updates} updates; it is "
                f"{math.exp(mean):.4g} and was {math.exp(self._best):.4g} at best.",
                evidence={
                    "updates": updates,
                    "error": math.exp(mean),
                    "best": math.exp(self._best),
                },
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "first": list(self._first),
            "recent": None if math.isnan(self._recent) else self._recent,
            "ratios": list(self._ratios),
            "largest": self._largest,
            "updates": self._updates,
            "block": list(self._block),
            "best": None if math.isinf(self._best) else self._best,
            "since_best": self._since_best,
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._first = [float(x) for x in state["first"]]
        self._recent = math.nan if state["recent"] is None else float(state["recent"])
        self._ratios = [float(x) for x in state["ratios"]]
        self._largest = float(state["largest"])
        self._updates, self._since_best = int(state["updates"]), int(state["since_best"])
        self._block = [float(x) for x in state["block"]]
        self._best = math.inf if state["best"] is None else float(state["best"])
        self._pace.restore(state["pace"])
