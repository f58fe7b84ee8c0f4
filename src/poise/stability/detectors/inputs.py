"""Images and labels that must not be trained on: what they are, which files, since when."""

import math
import posixpath
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.stability.detectors.detector import Floats, Pace, Thread
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading

_CAUSES = {"non-finite": "non-finite-input", "range": "out-of-range-data", "label": "bad-label"}
_WORDS = {"non-finite": "are not finite", "range": "lie outside 0 to 255", "label": "no class has"}
_REMEMBERED = 2000  # indices kept of good images, and of bad ones for each reason
_NAMED = 8  # files in a sign
_BATCHES = 10
_LASTING = 3  # of the last batches: it is there for good
_SIMILAR = 3  # bad images from which a shard is guessed


class InputFaults:
    """Names bad images (`non-finite-input`, `out-of-range-data`, `bad-label`) with their files."""

    def __init__(self, facts: Facts) -> None:
        self._file = facts.file_names
        self._good: deque[int] = deque(maxlen=_REMEMBERED)
        self._bad: dict[str, list[int]] = {reason: [] for reason in _CAUSES}
        self._recent: dict[str, list[int]] = {reason: [0] * _BATCHES for reason in _CAUSES}
        self._since: dict[str, int] = {}
        self._thread, self._pace = Thread(), Pace(16)

    def look(self, reading: Reading) -> list[Sign]:
        """Every batch with a bad image that is new; known ones again now and then."""
        self._thread.follows(reading)
        bad = reading.inputs.bad
        if not bad.any():
            self._good.extend(reading.indices.tolist())
            for recent in self._recent.values():
                recent.append(0)
                del recent[0]
            return []
        if not self._since:
            self._good.clear()  # what was good before says nothing about what broke
        self._good.extend(reading.indices[~bad].tolist())
        reasons = np.array(reading.inputs.reasons)
        found = []
        for reason in _CAUSES:
            where = reasons == reason
            self._recent[reason] = [*self._recent[reason][1:], int(where.any())]
            if where.any():
                found += self._sign(reading, reason, reading.indices[where])
        return found

    def _sign(self, reading: Reading, reason: str, indices: NDArray[np.int64]) -> list[Sign]:
        known = self._bad[reason]
        new = sorted(set(indices.tolist()) - set(known))
        known += new[: max(0, _REMEMBERED - len(known))]
        if reason not in self._since:
            self._since[reason] = reading.images_seen - reading.batch
        if not self._pace.due(reason, reading.step) and not new:
            return []
        batches = sum(self._recent[reason])
        lasting = batches >= _LASTING
        files = [self._file(i) for i in indices[:_NAMED].tolist()]
        shard = self._shard(known)
        more = len(indices) - 1
        start = f"{len(indices)} of {reading.batch} images ({files[0]}" + (
            f" and {more} more)" if more else ")"
        )
        start = f"The labels of {start} are ones that" if reason == "label" else start
        stretch = f", in {batches} of the last {_BATCHES} batches" if batches > 1 else ""
        place = "" if not shard else f"; all seen so far lie in {_spoken(shard)}"
        return [
            Sign(
                cause=_CAUSES[reason],
                severity="critical" if lasting else "warning",
                images_seen=reading.images_seen,
                since=self._since[reason] if lasting else reading.images_seen - reading.batch,
                sentence=f"{start} {_WORDS[reason]}{stretch}{place}.",
                evidence={
                    "images": len(indices),
                    "of": reading.batch,
                    "batches": batches,
                    "for_good": lasting,
                    "known": len(known),
                    "low": _plain(reading.inputs.low),
                    "high": _plain(reading.inputs.high),
                },
                culprit={"files": files, "indices": indices.tolist()}
                | ({"shard": shard} if shard else {}),
            )
        ]

    def _shard(self, bad: list[int]) -> dict[str, Any]:
        """A stretch of indices, or a folder, that holds all bad images and no good one; or {}."""
        if len(bad) < _SIMILAR:
            return {}
        shard: dict[str, Any] = {}
        first, last = min(bad), max(bad)
        good = np.fromiter(self._good, np.int64)
        if len(good) >= _SIMILAR and not ((good >= first) & (good <= last)).any():
            shard = {"first": first, "last": last}
        folders = [posixpath.dirname(self._file(i).replace("\\", "/")) for i in bad]
        folder = posixpath.commonpath(folders) if all(folders) and _alike(folders) else ""
        near = [self._file(i).replace("\\", "/") for i in good[-64:].tolist()]
        if folder and near and not any(name.startswith(folder + "/") for name in near):
            shard["folder"] = folder
        return shard

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "good": list(self._good),
            "bad": {k: list(v) for k, v in self._bad.items()},
            "recent": {k: list(v) for k, v in self._recent.items()},
            "since": dict(self._since),
            "thread": self._thread.state(),
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._good = deque((int(i) for i in state["good"]), maxlen=_REMEMBERED)
        self._bad = {k: [int(i) for i in v] for k, v in state["bad"].items()}
        self._recent = {k: [int(i) for i in v] for k, v in state["recent"].items()}
        self._since = {k: int(v) for k, v in state["since"].items()}
        self._thread.restore(state["thread"])
        self._pace.restore(state["pace"])


_SPREADS = 256  # batches that make up what is usual
_PRIMED = 32
_UP, _DOWN = math.log(3.0), math.log(6.0)
_IN_A_ROW = 3


class ValueRange:
    """Names batches whose spread of values is far from what it was: `out-of-range-data`.

    For numbers without a range (latents) a batch that is far too wide tells at once; far too
    narrow, in any kind of data, has to last: pixels divided by 255, or another scale of latents.
    """

    def __init__(self, facts: Facts) -> None:
        self._file = facts.file_names
        self._logs: list[float] = []  # ln(high - low) of ordinary batches
        self._middle, self._limit = 0.0, math.inf
        self._narrow = self._taken = 0
        self._pace = Pace(16)

    def look(self, reading: Reading) -> list[Sign]:
        """Compare the spread of one batch with the median of the last ones."""
        low, high = reading.inputs.low, reading.inputs.high
        if not (math.isfinite(high - low) and high > low) or reading.inputs.bad.any():
            return []
        log = math.log(high - low)
        off = log - self._middle
        ready = len(self._logs) >= _PRIMED
        wide = ready and off > max(_UP, self._limit) and (low < -1 or high > 256)
        narrow = ready and -off > max(_DOWN, self._limit) and not reading.inputs.flat.all()
        self._narrow = self._narrow + 1 if narrow else 0
        if not (wide or narrow):
            self._take(log)
        if not (wide or self._narrow >= _IN_A_ROW) or not self._pace.due("spread", reading.step):
            return []
        usual, factor = math.exp(self._middle), math.exp(off)
        rows = 1 if wide else self._narrow
        files = [self._file(i) for i in reading.indices[:_NAMED].tolist()]
        return [
            Sign(
                cause="out-of-range-data",
                severity="critical",
                images_seen=reading.images_seen,
                since=reading.images_seen - rows * reading.batch,
                sentence=f"The batch spans {high - low:.3g} and not about {usual:.3g}: its numbers "
                f"are {factor:.3g} times as wide as they were.",
                evidence={"spread": high - low, "usual": usual, "factor": factor},
                culprit={"files": files, "indices": reading.indices.tolist()},
            )
        ]

    def _take(self, log: float) -> None:
        self._logs = [*self._logs[1 - _SPREADS :], log]
        self._taken += 1
        # the medians move slowly: they are taken anew once in 16 batches
        if self._taken == _PRIMED or self._taken % 16 == 0:
            values: Floats = np.array(self._logs)
            self._middle = float(np.median(values))
            spread = float(np.median(np.abs(values - self._middle)))
            self._limit = 8 * 1.4826 * spread

    def state(self) -> dict[str, Any]:
        """As `Detector.state`."""
        return {
            "logs": list(self._logs),
            "middle": self._middle,
            "limit": None if math.isinf(self._limit) else self._limit,
            "counts": [self._narrow, self._taken],
            "pace": self._pace.state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """As `Detector.restore`."""
        self._logs = [float(x) for x in state["logs"]]
        self._middle = float(state["middle"])
        self._narrow, self._taken = (int(n) for n in state["counts"])
        self._limit = math.inf if state["limit"] is None else float(state["limit"])
        self._pace.restore(state["pace"])


def _alike(folders: list[str]) -> bool:
    """Whether a common path can be asked for: all absolute or none."""
    return len({folder.startswith("/") for folder in folders}) == 1


def _spoken(shard: dict[str, Any]) -> str:
    if "folder" in shard:
        return f"the folder {shard['folder']}"
    return f"the images {shard['first']} to {shard['last']}"


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
