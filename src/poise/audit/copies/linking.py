"""Near copies in groups: candidates by hash, proved by direct comparison, joined by union-find.

A group is no chain: every member resembles the most connected one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.audit.copies.candidates import Pairs, Progress, close_pairs, resemblance
from poise.audit.copies.hashing import ORIENTATIONS, Hashes, hash_thumbs, turned_spectra
from poise.audit.copies.near import NEAR, distances

# Up to so many pictures: bits of the hash that may differ, and the least cosine of the transforms.
# The cost grows with the square of the number, so the net is wider where it is cheap.
_NETS = (
    *((3_000, 22, 0.45), (10_000, 20, 0.55), (30_000, 18, 0.6)),
    *((150_000, 16, 0.65), (2**62, 11, 0.7)),
)
_STILL_KIN = 0.45  # distance at which members of one component still belong together
_DOUBTFUL = (NEAR, 0.35, 0.42)  # distances of pairs that are alike and no copies
_POWERS = (2.5, 12.0)  # of the distance, that their density may grow with
_WRONG = 0.1  # share of pairs that may be no copies, by an estimate that is too high
_OF_USUAL = 0.6  # distance of copies in units of the usual distance of two pictures
_PAIRS_FOR_USUAL = 512
_VERY_SURE = 0.03  # distance of copies whatever else is in the set
_SAMPLE = 256  # rows by which the number of pairs is foretold
_AFFORDABLE = 30_000  # pairs to compare, and two for each picture
_TIGHTEST = 0.85  # the cosine is not raised above that
_BATCH = 1 << 15  # pairs that are proved together
_Edges = NDArray[np.int64]


@dataclass(frozen=True)
class Pictures:
    """Thumbnails [M, 32, 32, 3], and hashes of those of the `rows` [N] that have structure."""

    thumbs: NDArray[np.uint8]
    rows: NDArray[np.int64]
    hashes: Hashes

    @classmethod
    def of(cls, thumbs: NDArray[np.uint8], rows: NDArray[np.int64]) -> "Pictures":
        """Hash rows of thumbnails; without copying them, they may be a file."""
        hashes = hash_thumbs(thumbs, rows)
        kept = np.flatnonzero(hashes.hashable)
        return cls(thumbs, rows[kept], hashes.only(kept))

    def apart(self, pairs: Pairs) -> NDArray[np.float32]:
        """Distances of pairs of positions in `rows`."""
        rows = Pairs(self.rows[pairs.first], self.rows[pairs.second], pairs.orientation)
        return distances(self.thumbs, rows)


def near_groups(
    pictures: Pictures, progress: Progress | None = None
) -> tuple[list[list[int]], list[list[int]]]:
    """Positions in `rows` of near copies in any of the eight flips and quarter turns, two or more.

    Returns:
        Groups of pictures that resemble each other, and the families that they were cut from.
    """
    edges = _edges(pictures, progress)
    families = _components(edges, len(pictures.rows))
    groups = [g for members in families for g in _unchained(members, edges, pictures)]
    return groups, [members.tolist() for members in families]


def net(count: int) -> tuple[int, float]:
    """Bits that may differ and the least cosine among so many pictures."""
    return next((reach, cosine) for most, reach, cosine in _NETS if count <= most)


def _edges(pictures: Pictures, progress: Progress | None) -> _Edges:
    """Proved pairs [E, 2]. Pairs that very sure ones have already joined are not compared."""
    count = len(pictures.rows)
    together = np.arange(count)
    reach, cosine = net(count)
    cosine = _affordable(pictures.hashes, reach, cosine)
    compared = np.zeros((0, 2), np.int64)
    apart = np.zeros(0, np.float32)
    found = close_pairs(pictures.hashes.codes, reach, progress)
    for pairs in _batches(found, pictures.hashes, cosine):
        pairs = pairs.where(together[pairs.first] != together[pairs.second])
        distance = pictures.apart(pairs)
        close = distance <= _DOUBTFUL[-1]
        both = np.stack([pairs.first[close], pairs.second[close]], axis=1)
        compared = np.concatenate([compared, both])
        apart = np.concatenate([apart, distance[close]])
        if (distance <= _VERY_SURE).any():
            together = _joined(compared[apart <= _VERY_SURE], count)
    order = np.argsort(apart, kind="stable")
    compared, first = np.unique(compared[order], axis=0, return_index=True)
    apart = apart[order][first]  # of several orientations the closest
    limit = min(_limit(apart), _OF_USUAL * _usual_distance(pictures))
    edges: _Edges = compared[apart <= limit]
    return edges


def _usual_distance(pictures: Pictures) -> float:
    """The median distance of two pictures: about 0.9, less where all are alike, such as pages."""
    count = len(pictures.rows)
    if count < 3:
        return 1.0
    step = np.arange(_PAIRS_FOR_USUAL)
    first = (step * 7919) % count
    second = (first + 1 + (step * 104_729) % (count - 1)) % count
    pairs = _best_turns(np.minimum(first, second), np.maximum(first, second), pictures.hashes)
    return float(np.median(pictures.apart(pairs)))


def _affordable(hashes: Hashes, reach: int, cosine: float) -> float:
    """The least cosine, raised where the set is so uniform that too many pairs would be compared.

    Judged by a sample of the rows, in all orientations, against all others.
    """
    rows = np.arange(0, len(hashes.codes), max(1, len(hashes.codes) // _SAMPLE))
    alike = []
    for start in range(0, len(rows), 32):
        some = rows[start : start + 32]
        for k in range(ORIENTATIONS):
            turned = turned_spectra(hashes.spectra[some], k).reshape(len(some), -1)
            cosines = turned @ hashes.spectra.reshape(len(hashes.spectra), -1).T
            close = np.bitwise_count(hashes.codes[some, k, None] ^ hashes.codes[:, 0]) <= reach
            alike.append(cosines[close & (cosines >= cosine)])
    values = np.sort(np.concatenate([*alike, np.zeros(0, np.float32)]))[::-1]
    affordable = int(
        (_AFFORDABLE + 2 * len(hashes.codes)) * 2 * len(rows) / max(1, len(hashes.codes))
    )
    if len(values) <= affordable:
        return cosine
    return float(min(max(values[affordable], cosine), _TIGHTEST))


def _limit(apart: NDArray[np.float32]) -> float:
    """The distance up to which pairs of this set are copies and not only of one kind.

    Where pictures resemble each other by nature (digits, faces, bricks), their distances run on
    below `NEAR`. The pairs just above it tell how many: their density is continued as a power of
    the distance, and the limit is where one pair in ten would be such
    a one. In truth fewer are: copies are among those just above, too.
    """
    low, middle, high = _DOUBTFUL
    inner = int(((apart > low) & (apart <= middle)).sum())
    outer = int(((apart > middle) & (apart <= high)).sum())
    growth = np.log((outer + 1) / (inner + 1)) / np.log((middle + high) / (low + middle))
    power = 1 + float(np.clip(growth, *_POWERS))
    scale = (inner + outer) / (high**power - low**power)
    steps = np.linspace(0, NEAR, 29)
    unrelated = scale * steps**power
    copies = np.searchsorted(np.sort(apart), steps, side="right")
    fine = (unrelated <= _WRONG * copies) | (unrelated < 0.5)
    return float(steps[np.flatnonzero(fine)[-1]])


def _batches(found: Iterable[Pairs], hashes: Hashes, cosine: float) -> Iterable[Pairs]:
    """Candidates with a cosine of at least that, many at a time."""
    waiting: list[Pairs] = []
    number = 0
    for pairs in found:
        waiting.append(pairs.where(resemblance(hashes, pairs) >= cosine))
        number += len(waiting[-1])
        if number >= _BATCH:
            yield Pairs.joined(waiting)
            waiting, number = [], 0
    yield Pairs.joined(waiting)


def _joined(edges: _Edges, count: int) -> NDArray[np.int64]:
    """The component of each row [count]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(edges), np.int8)
    graph = coo_array((ones, (edges[:, 0], edges[:, 1])), shape=(count, count))
    labels: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return labels


def _components(edges: _Edges, count: int) -> list[NDArray[np.int64]]:
    """Rows of each component of two or more, ascending."""
    rows = np.unique(edges)
    if not len(rows):
        return []
    labels = _joined(edges, count)[rows]
    order = np.argsort(labels, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(labels[order])) + 1)


def _unchained(members: NDArray[np.int64], edges: _Edges, pictures: Pictures) -> list[list[int]]:
    """A component as groups around their most connected member; who only chains is let go."""
    groups = []
    while len(members) > 1:
        inner = edges[np.isin(edges, members).all(axis=1)]
        degrees = np.bincount(np.searchsorted(members, inner.ravel()), minlength=len(members))
        middle = members[int(np.argmax(degrees))]
        proved = np.isin(members, inner[(inner == middle).any(axis=1)])
        unsure = np.flatnonzero(~proved & (members != middle))
        pairs = _best_turns(np.full(len(unsure), middle), members[unsure], pictures.hashes)
        proved[unsure] = pictures.apart(pairs) <= _STILL_KIN
        proved |= members == middle
        if proved.sum() > 1:
            groups.append(members[proved].tolist())
        members = members[~proved]
    return groups


def _best_turns(first: NDArray[np.int64], second: NDArray[np.int64], hashes: Hashes) -> Pairs:
    """Pairs in the orientation in which their hashes are closest."""
    apart = np.bitwise_count(hashes.codes[first] ^ hashes.codes[second, :1])
    return Pairs(first, second, apart.argmin(axis=1).astype(np.int64))
