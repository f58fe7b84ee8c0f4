"""Pairs of pictures whose hashes are close in any orientation: all of them, without missing one.

Up to a certain number every pair is looked at. Beyond, only pairs that agree nearly in one of four
bands of 16 bits (M. Norouzi, A. Punjani and D. Fleet, "Fast Search in Hamming Space with
Multi-Index Hashing", 2012), which finds the same pairs.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from poise.audit.copies.hashing import ORIENTATIONS, Hashes, turned_spectra

BAND_REACH = 11  # four bands, at most 2 wrong bits in the best one
_BRUTE = 150_000  # up to so many pictures every pair is compared
_ROWS = 32
_COLUMNS = 8192
_THREADS = 2  # numpy gives the lock free while it counts bits
_HELD = 64  # jobs whose findings are held at a time
_EXPAND = 1 << 22  # pairs of one band held at a time


_Job = TypeVar("_Job")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows with first < second: turned(first, orientation) resembles second. Each [P]."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    orientation: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.first)

    def where(self, keep: "NDArray[np.bool_] | slice") -> "Pairs":
        """Those that are kept."""
        return Pairs(self.first[keep], self.second[keep], self.orientation[keep])

    @staticmethod
    def joined(parts: "list[Pairs]") -> "Pairs":
        """All in one, in order."""
        columns = [
            np.concatenate([getattr(p, name) for p in parts] or [np.zeros(0, np.int64)])
            for name in ("first", "second", "orientation")
        ]
        return Pairs(*columns)


def close_pairs(
    codes: NDArray[np.uint64], reach: int, progress: Progress | None = None
) -> Iterator[Pairs]:
    """Every pair with a Hamming distance of at most `reach` in some orientation, in batches.

    The order depends on the codes alone. A pair can come more than once: with several
    orientations, or found through several bands.

    Args:
        codes: [N, 8] from `hash_thumbs`.
        reach: above 11 every pair is compared, whatever their number.
        progress: called with the work done and the work in all, in no particular unit.
    """
    if len(codes) <= _BRUTE or reach > BAND_REACH:
        starts = range(0, len(codes), _ROWS)
        yield from _in_threads(lambda start: _every_pair(codes, start, reach), starts, progress)
        return
    masks = [m for m in range(1 << 16) if m.bit_count() <= reach // 4]
    bands = [_Band.of(codes, shift) for shift in (0, 16, 32, 48)]
    jobs = [(band, k, mask) for band in bands for k in range(ORIENTATIONS) for mask in masks]
    yield from _in_threads(lambda job: _in_band(codes, *job, reach), jobs, progress)


def resemblance(hashes: Hashes, pairs: Pairs) -> NDArray[np.float32]:
    """The cosine between the transforms of each pair, -1 to 1 [P]; finer than the hash."""
    result = np.empty(len(pairs), np.float32)
    for k in np.unique(pairs.orientation):
        at = pairs.orientation == k
        first = turned_spectra(hashes.spectra[pairs.first[at]], int(k))
        result[at] = (first * hashes.spectra[pairs.second[at]]).sum(axis=(1, 2))
    return result


def _in_threads(
    work: Callable[[_Job], list[Pairs]], jobs: Sequence[_Job], progress: Progress | None
) -> Iterator[Pairs]:
    """The findings in the order of the jobs; few are held at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        for start in range(0, len(jobs), _HELD):
            for found in pool.map(work, jobs[start : start + _HELD]):
                if found:
                    yield Pairs.joined(found)
            if progress is not None:
                progress(min(start + _HELD, len(jobs)), len(jobs))


def _every_pair(codes: NDArray[np.uint64], start: int, reach: int) -> list[Pairs]:
    """Pairs of some rows from `start` on with all rows behind them."""
    rows = codes[start : start + _ROWS]
    mixed = np.empty((len(rows), _COLUMNS), np.uint64)
    bits = np.empty((len(rows), _COLUMNS), np.uint8)
    near = np.zeros((len(rows), _COLUMNS), np.bool_)
    eights = near.reshape(-1).view(np.uint64)  # eight answers at a time: nearly all are no
    found = []
    for left in range(start, len(codes), _COLUMNS):
        columns = np.ascontiguousarray(codes[left : left + _COLUMNS, 0])
        if len(columns) < _COLUMNS:
            mixed, bits = mixed[:, : len(columns)].copy(), bits[:, : len(columns)].copy()
            near[:] = False
        for k in range(ORIENTATIONS):
            np.bitwise_xor(rows[:, k : k + 1], columns, out=mixed)
            np.bitwise_count(mixed, out=bits)
            np.less_equal(bits, reach, out=near[:, : len(columns)])
            places = np.flatnonzero(eights)[:, None] * 8 + np.arange(8)
            places = places[near.reshape(-1)[places]]
            found.append(_ordered(places // _COLUMNS + start, places % _COLUMNS + left, k))
    return [pairs for pairs in found if len(pairs)]


def _ordered(first: NDArray[np.int64], second: NDArray[np.int64], orientation: int) -> Pairs:
    ahead = first < second
    first, second = first[ahead], second[ahead]
    return Pairs(first, second, np.full(len(first), orientation))


@dataclass(frozen=True)
class _Band:
    """The rows sorted by 16 of their bits: those with value v are order[starts[v]:starts[v+1]]."""

    shift: int
    order: NDArray[np.int64]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, codes: NDArray[np.uint64], shift: int) -> "_Band":
        values = _bits(codes[:, 0], shift)
        counts = np.bincount(values, minlength=1 << 16)
        return cls(shift, np.argsort(values, kind="stable"), np.concatenate([[0], counts.cumsum()]))


def _bits(codes: NDArray[np.uint64], shift: int) -> NDArray[np.int64]:
    return ((codes >> np.uint64(shift)) & np.uint64(0xFFFF)).astype(np.int64)


def _in_band(
    codes: NDArray[np.uint64], band: _Band, orientation: int, mask: int, reach: int
) -> list[Pairs]:
    """Pairs that differ by exactly `mask` in the band, and by at most `reach` bits in all."""
    wanted = _bits(codes[:, orientation], band.shift) ^ mask
    begins, counts = band.starts[wanted], band.starts[wanted + 1] - band.starts[wanted]
    ends = counts.cumsum()
    found, row = [], 0
    while row < len(codes):
        before = ends[row] - counts[row]
        stop = max(row + 1, int(np.searchsorted(ends, before + _EXPAND, side="right")))
        number = counts[row:stop]
        first = np.repeat(np.arange(row, stop), number)
        place = np.arange(len(first)) - np.repeat(ends[row:stop] - number - before, number)
        second = band.order[np.repeat(begins[row:stop], number) + place]
        close = np.bitwise_count(codes[first, orientation] ^ codes[second, 0]) <= reach
        found.append(_ordered(first[close], second[close], orientation))
        row = stop
    return [pairs for pairs in found if len(pairs)]
