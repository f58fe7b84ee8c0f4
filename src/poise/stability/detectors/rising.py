"""An error that rises and stays: in all noise bands, or in one."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.course import Course, Point
from poise.stability.detectors.detector import Floats, Pace, floats, listed
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_SPAN = 24
_RULES = (  # updates, ln of the mean rise over them, share of them that is raised by a third
    (5, math.log(30.0), 1.0),
    (8, math.log(6.0), 1.0),
    (_SPAN, math.log(1.6), 0.85),
)
_LOCKED = 4  # updates in a row that the gate stopped: weights that stand still cannot heal
_LOCKED_RISE = math.log(5.0)
_MOST_BANDS = 0.6
_USELESS = 0.9  # the weighted error of an output without information is 1
_LEARNED = 0.75
_DEAD = 16
_RATES = 64  # updates whose rates are compared
_FASTER = 4.0  # times the usual size of an update


class Rising:
    """Names an error that is up in most bands and does not heal: `divergence`.

    `lr-too-high` where updates have grown as well, or where the error has come to stand near 1:
    the network has become useless. A bump that falls back within 20 updates is left alone.
    """

    def __init__(self, facts: Facts, course: Course) -> None:
        self._course = course
        self._levels: list[float] = []
        self._bands: Floats = np.zeros((_SPAN, 2, course.bands))  # excess and images; a ring
        self._taken = 0
        self._locked = 0
        self._errors: list[float] = []  # weighted, of the last updates
        self._lowest = math.inf  # mean of so many in a row, at best
        self._ratios: list[float] = []
        self._rates: list[float] = []  # as used
        self._pace = Pace(100)

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if reading.update_ratio is not None and math.isfinite(reading.update_ratio):
            self._ratios = [*self._ratios[-31:], reading.update_ratio]
        self._rates = [*self._rates[1 - _RATES :], reading.used_lr]
        if not math.isfinite(point.level):
            return []
        # one absurd batch must not carry sixteen
        self._errors = [*self._errors[1 - _DEAD :], min(reading.error, 3.0)]
        if not point.ready:
            return []
        self._levels = [*self._levels[1 - _SPAN :], point.level]
        self._bands[self._taken % _SPAN] = point.sums, point.numbers
        self._taken += 1
        self._locked = self._locked + 1 if "error-spike" in reading.reasons else 0
        return self._dead(reading) or self._diverging(reading, point)

    def _diverging(self, reading: Reading, point: Point) -> list[Sign]:
        if point.level < math.log(1.3):
            return []
        levels = np.array(self._levels)
        for span, rise, share in _RULES:
            recent = levels[-span:]
            mean = float(recent.mean())
            if len(recent) < span or mean < max(rise, 8 * point.spread / math.sqrt(span)):
                continue
            if (recent > rise / 3).mean() >= share and not _healing(recent):
                return self._sign(reading, span, mean)
        if self._locked >= _LOCKED:
            mean = float(levels[-self._locked :].mean())
            if mean >= _LOCKED_RISE:
                return self._sign(reading, self._locked, mean)
        return []

    def _raised(self, span: int, least: float) -> tuple[int, int]:
        """Noise bands whose mean excess over the last updates is above `least`; bands watched."""
        at = (self._taken - 1 - np.arange(span)) % _SPAN
        sums, numbers = self._bands[at].sum(axis=0)
        watched = numbers >= 3
        raised = sums[watched] > least * numbers[watched]
        return int(raised.sum()), int(watched.sum())

    def _sign(self, reading: Reading, span: int, rise: float) -> list[Sign]:
        span = min(span, _SPAN)
        raised, watched = self._raised(span, 0.4 * rise)
        if raised < _MOST_BANDS * max(watched, 1):
            return []
        faster = self._faster()
        cause = "lr-too-high" if faster >= _FASTER else "divergence"
        if not self._pace.due(cause, reading.step):
            return []
        also = f", and updates are {faster:.3g} times as large" if cause == "lr-too-high" else ""
        return [
            Sign(
                cause=cause,
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - span * reading.batch,
                sentence=f"The error is {math.exp(rise):.3g} times what it was for {span} updates, "
                f"in {raised} of {watched} noise bands{also}, and is not healing.",
                evidence={
                    "factor": math.exp(rise),
                    "updates": span,
                    "bands": raised,
                    "bands_watched": watched,
                    "update_factor": faster,
                    "left_out_in_a_row": self._locked,
                    "examine": True,
                },
            )
        ]

    def _faster(self) -> float:
        """The last updates, by size or by rate, against the usual ones; 1: not known."""
        rate = self._rates[-1] / max(min(self._rates), 1e-12) if len(self._rates) > 1 else 1.0
        if len(self._ratios) < 6:
            return rate
        usual = float(np.median(self._ratios[:-2]))
        return max(rate, max(self._ratios[-2:]) / usual if usual > 0 else 1.0)

    def _dead(self, reading: Reading) -> list[Sign]:
        if len(self._errors) < _DEAD:
            return []
        mean = sum(self._errors) / _DEAD
        self._lowest = min(self._lowest, mean)
        fell = self._lowest <= _LEARNED and mean >= 1.2 * self._lowest
        if mean < _USELESS or not fell or mean > 2:
            return []
        # a bump of the training itself ends before nearly all of them are high
        raised, watched = self._raised(_DEAD, math.log(1.15))
        if sorted(self._errors)[_DEAD // 5] < 0.75 or raised < _MOST_BANDS * max(watched, 1):
            return []
        if not self._pace.due("dead", reading.step):
            return []
        return [
            Sign(
                cause="lr-too-high",
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - _DEAD * reading.batch,
                sentence=f"The weighted error is {mean:.3g} over {_DEAD} updates and was "
                f"{self._lowest:.3g}: at 1 the network's output carries no information.",
                evidence={
                    "error": mean,
                    "lowest": self._lowest,
                    "updates": _DEAD,
                    "update_factor": self._faster(),
                    "examine": True,
                },
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "levels": list(self._levels),
            "bands": listed(self._bands),
            "taken": self._taken,
            "locked": self._locked,
            "errors": list(self._errors),
            "lowest": None if math.isinf(self._lowest) else self._lowest,
            "ratios": list(self._ratios),
            "rates": list(self._rates),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._rates = [float(x) for x in state["rates"]]
        self._levels = [float(x) for x in state["levels"]]
        self._bands, self._taken = floats(state["bands"]), int(state["taken"])
        self._locked = int(state["locked"])
        self._errors = [float(x) for x in state["errors"]]
        self._lowest = math.inf if state["lowest"] is None else float(state["lowest"])
        self._ratios = [float(x) for x in state["ratios"]]
        self._pace.restore(state["pace"])


def _healing(levels: Floats) -> bool:
    """Whether the last third is clearly lower than the highest stretch of three."""
    top = float(np.convolve(levels, np.full(3, 1 / 3), "valid").max())
    return float(levels[-max(2, len(levels) // 3) :].mean()) < 0.7 * top


_WINDOWS = (8, 16, 32, 64)  # updates
_EVERY = 4  # updates between two looks
_RISES = ((6, math.log(8.0)), (16, math.log(3.0)))  # images in the band, least mean rise
_NORMAL = math.log(1.5)  # of the other bands
_RAISED = math.log(2.0)  # of a neighbour
_KNOWN = 48  # images behind a band's running error


class OneBand:
    """Names one noise band, or neighbours, whose error rose while the others' did not.

    All bands are compared over the same updates; also over those that were left out.
    """

    def __init__(self, facts: Facts, course: Course) -> None:
        self._course, self._centres = course, facts.centres
        self._half = 0.5 * math.log(facts.centres[1] / facts.centres[0])
        self._ring: Floats = np.zeros((_WINDOWS[-1], 2, course.bands))  # excess, images
        self._taken = 0
        self._pace = Pace()

    def see(self, reading: Reading, point: Point) -> list[Sign]:
        """One reading with its place in the course."""
        if not math.isfinite(point.level) or not point.ready:
            return []
        self._ring[self._taken % len(self._ring)] = point.sums, point.numbers
        self._taken += 1
        if self._taken % _EVERY:
            return []
        for span in _WINDOWS:
            if span > self._taken:
                break
            found = self._judge(reading, span)
            if found:
                return found
        return []

    def _judge(self, reading: Reading, span: int) -> list[Sign]:
        last = self._taken % len(self._ring)
        rows = self._ring[last - span : last] if last >= span else None
        if rows is None:  # the ring begins anew within the window
            rows = self._ring[(self._taken - 1 - np.arange(span)) % len(self._ring)]
        sums, numbers = rows.sum(axis=0)
        means = sums / np.maximum(numbers, 1)
        if means.max() < _RISES[-1][1]:
            return []
        known = (self._course.seen() >= _KNOWN) & (numbers > 0)
        least = np.where(numbers >= _RISES[1][0], _RISES[1][1], _RISES[0][1])
        noise = 5 * self._course.deviation() / np.sqrt(np.maximum(numbers, 1))
        high = known & (numbers >= _RISES[0][0]) & (means > np.maximum(least, noise))
        if not high.any():
            return []
        return self._group(reading, span, high, means, np.where(known, numbers, 0))

    def _group(
        self,
        reading: Reading,
        span: int,
        high: NDArray[np.bool_],
        means: Floats,
        numbers: Floats,
    ) -> list[Sign]:
        """The band and its raised neighbours, if they are few and the others are as before."""
        first = last = int(np.argmax(np.where(high, means, -np.inf)))
        while first > 0 and means[first - 1] > _RAISED:
            first -= 1
        while last + 1 < len(means) and means[last + 1] > _RAISED:
            last += 1
        weights = numbers.copy()
        weights[first : last + 1] = 0
        if last - first + 1 > len(means) // 2 or weights.sum() < _RISES[0][0]:
            return []
        others = float((means * weights).sum() / weights.sum())
        if others > _NORMAL or not self._pace.due("band", reading.step):
            return []
        images = int(numbers[first : last + 1].sum())
        return [self._sign(reading, span, (first, last), float(means[high].max()), others, images)]

    def _sign(
        self,
        reading: Reading,
        span: int,
        bands: tuple[int, int],
        rise: float,
        others: float,
        images: int,
    ) -> Sign:
        first, last = bands
        low = 0.0 if first == 0 else self._centres[first] * math.exp(-self._half)
        open_end = last == len(self._centres) - 1
        high = None if open_end else self._centres[last] * math.exp(self._half)
        place = f"from {low:.3g} on" if high is None else f"from {low:.3g} to {high:.3g}"
        return Sign(
            cause="broken-band",
            severity="warning",
            images_seen=reading.images_seen,
            since=max(0, reading.images_seen - span * reading.batch),
            sentence=f"At noise levels {place} the error is {math.exp(rise):.3g} times what it "
            f"was, over {images} images; at the others it is as before. The learning rate is not "
            "to blame.",
            evidence={
                "factor": math.exp(rise),
                "others": math.exp(others),
                "images": images,
                "updates": span,
            },
            culprit={"bands": list(range(first, last + 1)), "sigma": [low, high]},
        )

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {"ring": listed(self._ring), "taken": self._taken, "pace": self._pace.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._ring, self._taken = floats(state["ring"]), int(state["taken"])
        self._pace.restore(state["pace"])
