"""What probes show of the learning: memorisation, classes that are ignored, damaged averages."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.probes_history import History, deviation, jitter, logs, middle
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.probes import Probe
from poise.stability.reading import Reading

_WINDOW = 4  # probes that must agree


class Memorisation:
    """Training images get better while held-out ones get worse.

    Both are asked with the same noise at every probe, so that what is common to both, such as the
    noise of the weights, falls out of their ratio. Besides the fixed training images, those that
    were just trained on count: they are what is memorised where a run sees only few of its images.
    """

    _RISE, _FALL = 0.015, 0.05  # least changes of log errors: held-out up, the gap down
    _PARTING = 0.15  # fall of the gap that is enough while held-out images hardly improve

    def __init__(self, facts: Facts) -> None:
        self._centres = np.log(np.asarray(facts.centres, float))
        self._sums, self._counts = np.zeros(len(self._centres)), np.zeros(len(self._centres))
        self._rows: list[dict[str, Any]] = []  # one for each probe
        self._told_at = -1

    def read(self, reading: Reading) -> None:
        """Take in the errors of an update's own images."""
        error = np.asarray(reading.image_error, float)
        good = np.isfinite(error) & (error > 0)
        if not reading.applied or not good.any():
            return
        sigma = np.log(np.asarray(reading.sigma, float)[good])
        band = np.abs(sigma[:, None] - self._centres).argmin(axis=1)
        np.add.at(self._sums, band, np.log(error[good]))
        np.add.at(self._counts, band, 1)

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        val, train = logs(probe.val), logs(probe.train)
        stream = self._stream()
        if val is None or train is None:
            return []
        self._rows.append(
            {
                "seen": probe.images_seen,
                "val": val,
                "train": train,
                "stream": stream,
                "levels": list(probe.levels),
            }
        )
        self._rows = self._rows[-200:]
        return self._judge(probe)

    def _stream(self) -> float | None:
        """Mean log error of the middle bands since the last probe, each band alike."""
        inner = slice(len(self._centres) // 4, -(len(self._centres) // 4) or None)
        counts, sums = self._counts[inner].copy(), self._sums[inner].copy()
        self._sums[:], self._counts[:] = 0, 0
        return float((sums / counts).mean()) if len(counts) and (counts >= 8).all() else None

    def _judge(self, probe: Probe) -> list[Sign]:
        rows = self._rows
        if len(rows) < 2 * _WINDOW:
            return []
        level = np.array([row["val"] for row in rows]).mean(axis=1)
        train = np.array([row["train"] for row in rows]).mean(axis=1)
        stream = np.array([math.nan if r["stream"] is None else r["stream"] for r in rows])
        # the stream's errors are means over an interval, at whose two ends the others were asked
        between = (level + np.concatenate([level[:1], level[:-1]])) / 2
        gaps = {"probe": train - level, "stream": stream - between}
        best = _best_window(level[:-_WINDOW])
        rise = float(level[-_WINDOW:].mean() - level[best : best + _WINDOW].mean())
        if rise >= max(self._RISE, 4 * jitter(level.tolist()) / math.sqrt(_WINDOW / 2)):
            falls = {kind: _fall(gap, best) for kind, gap in gaps.items()}
            kind = max(falls, key=lambda k: falls[k])
            if falls[kind] >= self._FALL:
                return self._sign(probe, best, rise, kind, falls[kind])
        back = len(rows) - 3 * _WINDOW
        if back < 0:
            return []
        fall = _fall(gaps["stream"], back)
        rise = float(level[-_WINDOW:].mean() - level[back : back + _WINDOW].mean())
        progress = float((stream[back : back + _WINDOW] - stream[-_WINDOW:]).mean())
        # what was just trained on runs away from what was not, faster than that improves
        if fall >= max(self._PARTING, -rise) and progress > 0:
            return self._sign(probe, back, rise, "stream", fall)
        return []

    def _sign(self, probe: Probe, then: int, rise: float, kind: str, fall: float) -> list[Sign]:
        """One sign for each parting; it is over when the gap closes, which no memory does."""
        since = int(self._rows[then + _WINDOW - 1]["seen"])
        if since <= self._told_at:
            return []
        self._told_at = probe.images_seen
        sigma, bands = _bands(self._rows, then)
        seen = "training images" if kind == "probe" else "the images just trained on"
        how = "got worse by" if rise > 0 else "got better by no more than"
        return [
            Sign(
                "memorisation",
                "warning",
                probe.images_seen,
                since,
                f"Held-out images have {how} {abs(math.expm1(rise)):.1%} since {since:,} images, "
                f"while the error of {seen} fell by {-math.expm1(-fall):.1%} against theirs (fixed "
                f"training images most at noise level {sigma:.2g}): the run memorises its images.",
                {"val_rise": rise, "gap_fall": fall, "of": kind, "gap_by_level": bands},
                {"band": sigma},
            )
        ]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "rows": [dict(row) for row in self._rows],
            "sums": self._sums.tolist(),
            "counts": self._counts.tolist(),
            "told_at": self._told_at,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._rows = [dict(row) for row in state["rows"]]
        self._sums, self._counts = np.array(state["sums"]), np.array(state["counts"])
        self._told_at = int(state["told_at"])


def _best_window(level: NDArray[np.float64]) -> int:
    """Where the lowest mean of `_WINDOW` values in a row begins."""
    means = np.convolve(level, np.ones(_WINDOW) / _WINDOW, mode="valid")
    return int(means.argmin())


def _fall(gap: NDArray[np.float64], then: int) -> float:
    """How far a gap fell since the window at `then`; 0 where its noise could have done that."""
    before, now = gap[then : then + _WINDOW], gap[-_WINDOW:]
    if not (np.isfinite(now).all() and np.isfinite(before).all()):
        return 0.0
    fall = float(np.median(before) - np.median(now))
    noise = jitter(gap[np.isfinite(gap)].tolist())
    sure = fall > 4 * noise / math.sqrt(_WINDOW / 2) and now.max() < before.min()
    return fall if sure else 0.0


def _bands(rows: list[dict[str, Any]], then: int) -> tuple[float, dict[str, float]]:
    """The noise level at which training and held-out images moved apart most, and all levels."""
    gap = np.array([np.subtract(row["train"], row["val"]) for row in rows])
    fall = gap[then : then + _WINDOW].mean(axis=0) - gap[-_WINDOW:].mean(axis=0)
    levels = np.array(rows[-1]["levels"])
    by_level = {float(s): float(fall[levels == s].mean()) for s in dict.fromkeys(levels.tolist())}
    worst = max(by_level, key=lambda s: by_level[s])
    return worst, {f"{s:.4g}": fall for s, fall in by_level.items()}


class ConditionIgnored:
    """The output stops to depend on the class, though it did."""

    _CLEAR, _SHARE = 0.01, 0.1  # an effect that is clear; what is left of it where it is lost

    def __init__(self, facts: Facts) -> None:
        self._history, self._seen = History(), History()
        self._low = 0  # probes in a row

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        effect = probe.condition
        if effect is None or not math.isfinite(effect):
            return []
        earlier = sorted(self._history[""])
        seen = self._seen[""]
        if len(earlier) < 3 or earlier[-2] < self._CLEAR:
            self._note(probe, effect)
            return []
        highest = earlier[-2]  # not the one highest, which may be a stray
        lost = effect < self._SHARE * highest
        self._low = self._low + 1 if lost else 0
        if not lost:
            self._note(probe, effect)
            return []
        # the lost ones stay out of the history; nothing at all is sure at once
        if self._low != (1 if effect < 1e-3 * highest else 2):
            return []
        self._low = 2
        return [
            Sign(
                "condition-ignored",
                "critical",
                probe.images_seen,
                int(seen[-1]),
                f"Swapping the classes changes the output by {effect:.2%}; it was {highest:.1%}: "
                "the network no longer hears which class it is asked for.",
                {"effect": effect, "highest": highest},
            )
        ]

    def _note(self, probe: Probe, effect: float) -> None:
        self._history.add("", effect)
        self._seen.add("", probe.images_seen)

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "history": self._history.state(),
            "seen": self._seen.state(),
            "low": self._low,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._history.restore(state["history"])
        self._seen.restore(state["seen"])
        self._low = int(state["low"])


class AverageHealth:
    """Averages of the weights that are damaged, or so long that they lag behind."""

    _JUMP = math.log(2)  # of the error against the raw weights', between two probes
    _LAG = 0.1

    def __init__(self, facts: Facts) -> None:
        self._total = facts.total_images
        self._profiles = facts.profiles
        self._gaps, self._seen = History(), History()
        self._told: list[str] = []

    def look(self, probe: Probe) -> list[Sign]:
        """Signs of this probe."""
        raw = logs(probe.val)
        if raw is None:
            return []  # then the averages are not the news
        signs = []
        for name, errors in probe.ema.items():
            gaps = logs(errors)
            gap = math.inf if gaps is None else float(np.mean(np.subtract(gaps, raw)))
            earlier = self._gaps[name][-8:]
            jumped = len(earlier) >= 3 and gap - middle(earlier) > max(
                self._JUMP, 8 * deviation(earlier)
            )
            if gap == math.inf or (jumped and gap > self._JUMP):
                signs += self._damaged(probe, name, gap)
                continue
            self._told = [n for n in self._told if n != name]
            self._gaps.add(name, gap)
            self._seen.add(name, probe.images_seen)
        return signs + self._too_long(probe)

    def _damaged(self, probe: Probe, name: str, gap: float) -> list[Sign]:
        if name in self._told:
            return []
        self._told.append(name)
        seen = self._seen[name]
        how = "is not finite" if gap == math.inf else f"is {math.exp(gap):.1f} times as large"
        return [
            Sign(
                "ema-damaged",
                "critical",
                probe.images_seen,
                int(seen[-1]) if seen else 0,
                f"The error of the average {name} {how}; the weights themselves are healthy.",
                # a finite error can have other causes: the network may have changed under it
                {"factor": None if gap == math.inf else math.exp(gap), "inferred": gap < math.inf},
                {"averages": [name]},
            )
        ]

    def _too_long(self, probe: Probe) -> list[Sign]:
        """All averages are worse than the raw weights, late, at each look, and ever more so."""
        if probe.images_seen < self._total / 2 or "too-long" in self._told or not self._profiles:
            return []
        late = {name: self._gaps[name][-_WINDOW:] for name in self._profiles}
        for name, gaps in late.items():
            seen = self._seen[name][-_WINDOW:]
            if len(gaps) < _WINDOW or seen[0] < self._total / 3:
                return []
            widening = middle(gaps[2:]) > 1.25 * middle(gaps[:2])
            if min(gaps) < self._LAG or not widening:
                return []
        self._told.append("too-long")
        name, gaps = min(late.items(), key=lambda item: item[1][-1])
        return [
            Sign(
                "ema-too-long",
                "warning",
                probe.images_seen,
                int(self._seen[name][-_WINDOW]),
                f"Every average of the weights is worse than the weights themselves, the best of "
                f"them, {name}, by {math.expm1(gaps[-1]):.0%}, and the gap widens: they look back "
                "too far.",
                {"gap": gaps[-1], "gap_before": gaps[0]},
                {"averages": list(late)},
            )
        ]

    def state(self) -> dict[str, Any]:
        """Plain data, for a checkpoint."""
        return {
            "gaps": self._gaps.state(),
            "seen": self._seen.state(),
            "told": list(self._told),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        self._gaps.restore(state["gaps"])
        self._seen.restore(state["seen"])
        self._told = list(state["told"])
