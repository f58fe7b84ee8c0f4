"""What the images that are drawn are like: constant, repeated, or ever the same few."""

import zlib
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc

from poise.stability.detectors.detector import Pace, Thread
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_PRIMED = 16  # readings before a rate of constant images is known
_UNLIKELY = 1e-9
_NAMED = 8


class ConstantImages:
    """Names a run of images of one colour: `constant-data`.

    The share of such images so far is the measure; a binomial tail below 1e-9 tells.
    """

    def __init__(self, facts: Facts) -> None:
        self._file = facts.file_names
        self._recent: deque[tuple[int, int]] = deque(maxlen=_PRIMED)  # flat, images
        self._flat = self._images = 0  # before these
        self._rows = 0  # readings in a row that told
        self._pace = Pace(50)

    def look(self, reading: Reading) -> list[Sign]:
        """Compare the last 1, 4 and 16 batches with all before."""
        flat = reading.inputs.flat
        count = int(flat.sum())
        if not self._rows and len(self._recent) == _PRIMED:
            old = self._recent[0]
            self._flat, self._images = self._flat + old[0], self._images + old[1]
        self._recent.append((count, reading.batch))
        if not count:
            self._rows = 0
            return []
        if self._images + sum(n for _, n in self._recent) < 2 * reading.batch * _PRIMED:
            return []
        rate = (self._flat + 1) / (self._images + 2)
        odd = self._odd(rate)
        self._rows = self._rows + 1 if odd else 0
        if not odd or not self._pace.due("constant", reading.step):
            return []
        at = np.flatnonzero(flat)
        files = [self._file(int(i)) for i in reading.indices[at[:_NAMED]]]
        return [
            Sign(
                cause="constant-data",
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - reading.batch,
                sentence=f"{count} of {reading.batch} images have one colour throughout, where "
                f"{self._flat / self._images:.2%} had before: a falling loss is no progress here.",
                evidence={
                    "flat": count,
                    "of": reading.batch,
                    "rate_before": self._flat / self._images,
                    "chance": odd,
                },
                culprit={"files": files, "indices": reading.indices[at].tolist()},
            )
        ]

    def _odd(self, rate: float) -> float:
        """The smallest chance of the last batches at this rate, if it is below 1e-9; else 0."""
        least = 1.0
        for span in (1, 4, _PRIMED):
            rows = list(self._recent)[-span:]
            k, n = sum(f for f, _ in rows), sum(m for _, m in rows)
            # P(at least k of n) of the binomial distribution
            least = min(least, float(betainc(k, n - k + 1, rate)) if k else 1.0)
        return max(least, 1e-300) if least < _UNLIKELY else 0.0

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "recent": [list(pair) for pair in self._recent],
            "totals": [self._flat, self._images, self._rows],
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._recent = deque(((int(a), int(b)) for a, b in state["recent"]), maxlen=_PRIMED)
        self._flat, self._images, self._rows = (int(x) for x in state["totals"])
        self._pace.restore(state["pace"])


_LARGEST = 2000  # images in the window
_BATCHES = 10
_FEW = 1.5  # batches' worth of different images in ten batches
_SHARE = 0.5  # of the different images that draws without replacement give
_EVERY = 8  # readings between two counts


class Repeats:
    """Names the same batches again and again, and ever the same few images.

    `repeated-batches`: most of the last 10 batches are one of the 32 before, or the 10 hold no
    more different images than 1.5 batches. `memorisation`: the last images hold far fewer
    different ones than the training set gives. Images are told apart by index and by content;
    content counts once it was seen to differ, since sets with copies exist.
    """

    def __init__(self, facts: Facts) -> None:
        self._total, self._weighted = facts.train_images, facts.weighted_draws
        self._file = facts.file_names
        self._window = min(self._total, _LARGEST)
        self._ids = np.zeros((2, self._window), np.int64)  # index, print; a ring
        self._filled = self._next = 0
        # one number for each batch, by indices and by prints
        self._batches: tuple[deque[int], deque[int]] = (deque(maxlen=32), deque(maxlen=32))
        self._again: deque[bool] = deque(maxlen=_BATCHES)
        self._best: dict[str, list[float]] = {}  # window -> best share by index, by print
        self._count = 0
        self._thread, self._pace = Thread(), Pace(100)

    def look(self, reading: Reading) -> list[Sign]:
        """Take in one batch; count now and then."""
        if not self._thread.follows(reading):
            self._filled = 0
            for batches in self._batches:
                batches.clear()
            self._again.clear()
        prints = reading.inputs.prints.astype(np.int64)
        # all constant images look alike, and are named elsewhere: there the index decides
        prints = np.where(reading.inputs.flat, -1 - reading.indices, prints)
        self._push(reading.indices, prints)
        kinds = (_mixed(reading.indices), _mixed(prints))
        self._again.append(any(k in b for k, b in zip(kinds, self._batches, strict=True)))
        for k, batches in zip(kinds, self._batches, strict=True):
            batches.append(k)
        self._count += 1
        same = self._same_batches(reading)
        if same or self._count % _EVERY:
            return same
        return self._few(reading)

    def _push(self, indices: NDArray[np.int64], prints: NDArray[np.int64]) -> None:
        size = self._window
        n = min(len(indices), size)
        at = (self._next + np.arange(n)) % size
        self._ids[0, at], self._ids[1, at] = indices[-n:], prints[-n:]
        self._next = int((self._next + n) % size)
        self._filled = min(size, self._filled + n)

    def _same_batches(self, reading: Reading) -> list[Sign]:
        if reading.batch < 4 or self._total <= 2 * reading.batch or len(self._again) < _BATCHES:
            return []
        repeated = sum(self._again)
        if 2 * repeated < _BATCHES or not self._pace.due("batches", reading.step):
            return []
        different = _BATCHES - repeated
        return [self._repeated(reading, repeated, different)]

    def _repeated(self, reading: Reading, repeated: int, different: int) -> Sign:
        return Sign(
            cause="repeated-batches",
            severity="critical",
            images_seen=reading.images_seen,
            since=reading.images_seen - _BATCHES * reading.batch,
            sentence=f"{repeated} of the last {_BATCHES} batches came before, although there are "
            f"{self._total} images to draw from.",
            evidence={
                "repeated": repeated,
                "of": _BATCHES,
                "new": different,
                "train_images": self._total,
            },
            culprit={
                "files": [self._file(i) for i in reading.indices[:_NAMED].tolist()],
                "indices": reading.indices.tolist(),
            },
        )

    def _few(self, reading: Reading) -> list[Sign]:
        """Different images in windows of several lengths."""
        spans = {self._window // 16, self._window // 4, self._window}
        spans |= {_BATCHES * reading.batch} if _BATCHES * reading.batch < self._window else set()
        # the longest only now and then: it costs most and moves slowest
        rare = self._count % (4 * _EVERY) == 0
        for span in sorted(spans):
            if span < 8 or span > self._filled or span < 8 * min(reading.batch, self._window // 8):
                continue
            if span == self._window and span > 600 and not rare:
                continue
            found = self._judge(reading, span)
            if found:
                return found
        return []

    def _judge(self, reading: Reading, span: int) -> list[Sign]:
        at = (self._next - span + np.arange(span)) % self._window
        distinct = [len(np.unique(self._ids[kind, at])) for kind in (0, 1)]
        # at worst the window lies half in one epoch and half in the next
        due = span - span**2 / (4 * self._total)
        shares = [count / due for count in distinct]
        best = self._best.setdefault(str(span), [0.0, 0.0])
        # as many prints as images, or twice as many with flips
        limits = [_SHARE, _SHARE]
        if self._weighted:
            limits[0] = 0.5 * _SHARE * best[0]
        limits[1] = min(limits[1], 0.5 * best[1])
        low = [share < limit for share, limit in zip(shares, limits, strict=True)]
        self._best[str(span)] = [max(b, s) for b, s in zip(best, shares, strict=True)]
        if not any(low):
            return []
        kind = 0 if low[0] and (not low[1] or distinct[0] <= distinct[1]) else 1
        few = distinct[kind]
        again = span <= _BATCHES * reading.batch and few <= _FEW * reading.batch
        cause = "repeated-batches" if again and few < span / 4 else "memorisation"
        if not self._pace.due(cause, reading.step):
            return []
        what = ("images", "pictures")[kind]
        return [
            Sign(
                cause=cause,
                severity="warning",
                images_seen=reading.images_seen,
                since=reading.images_seen - span,
                sentence=f"The last {span} images hold {few} different {what}, where "
                f"{due:.0f} are due from {self._total}: the network will learn them by heart.",
                evidence={
                    "window": span,
                    "distinct": few,
                    "distinct_indices": distinct[0],
                    "distinct_prints": distinct[1],
                    "expected": due,
                    "train_images": self._total,
                },
            )
        ]

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "ids": self._ids.tolist(),
            "place": [self._filled, self._next, self._count],
            "batches": [list(batches) for batches in self._batches],
            "again": list(self._again),
            "best": {k: list(v) for k, v in self._best.items()},
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._ids = np.array(state["ids"], np.int64)
        self._filled, self._next, self._count = (int(x) for x in state["place"])
        by_index, by_print = state["batches"]
        self._batches = (deque(by_index, maxlen=32), deque(by_print, maxlen=32))
        self._again = deque((bool(x) for x in state["again"]), maxlen=_BATCHES)
        self._best = {k: [float(x) for x in v] for k, v in state["best"].items()}
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])


def _mixed(values: NDArray[np.int64]) -> int:
    """One number for a set of numbers, whatever their order."""
    return zlib.crc32(np.sort(values).tobytes())
