"""Pictures that features call the same although their pixels do not line up: only very sure pairs.

What is sure is learnt from the set. The nearest neighbours of a sample tell how close different
pictures come; a pair must be far closer than that, and each must be the other's nearest.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

_SAMPLE = 1000
_FEWEST = 50  # pictures; fewer do not tell how close different ones come
_MOST = 100_000  # pictures; beyond, the search would take longer than all else
_BLOCK = 2048
_DIRECTIONS = 32  # of greatest variance; a distance within them is never above the whole one
_OUTLYING = 4.5  # robust standard deviations of the logarithm below the usual distance
_SHARE = 0.001  # of different pictures that may lie within the reach
_CEILING = 0.05  # squared distance (2 minus twice the cosine) that is never exceeded
_Floats = NDArray[np.float32]


def alike_by_features(
    features: _Floats, rows: NDArray[np.int64], known: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Pairs of positions in `rows` that are surely alike and in no group together, ascending.

    Args:
        features: [M, D] of unit length.
        rows: [N], those to compare. With fewer than 50 or more than 100,000 none is sure.
        known: groups of positions that other means have found.
    """
    if not _FEWEST <= len(rows) <= _MOST:
        return []
    features = features[rows]
    group = np.arange(len(features)) + len(known)
    for number, members in enumerate(known):
        group[list(members)] = number
    reach = _sure_reach(features, group)
    nearest = np.full(len(features), -1)
    least = np.full(len(features), np.inf)
    for first, second, squared in _within(features, reach):
        other = group[first] != group[second]
        for a, b, d in zip(first[other], second[other], squared[other], strict=True):
            for here, there in ((a, b), (b, a)):
                if d < least[here]:
                    nearest[here], least[here] = there, d
    paired = np.flatnonzero(nearest >= 0)
    mutual = paired[nearest[nearest[paired]] == paired]
    return [[int(i), int(nearest[i])] for i in mutual if i < nearest[i]]


def _sure_reach(features: _Floats, group: NDArray[np.int64]) -> float:
    """The squared distance below which different pictures practically never come."""
    step = max(1, len(features) // _SAMPLE)
    sample = np.arange(0, len(features), step)[:_SAMPLE]
    squared = np.full(len(sample), np.inf)
    for start in range(0, len(features), _BLOCK):
        block = slice(start, start + _BLOCK)
        apart = 2 - 2 * (features[sample] @ features[block].T)
        apart[group[sample][:, None] == group[block]] = np.inf
        squared = np.minimum(squared, apart.min(axis=1))
    logs = np.log(np.maximum(squared[np.isfinite(squared)], 1e-9))
    middle = np.median(logs)
    spread = 1.4826 * np.median(np.abs(logs - middle))
    reach = float(np.exp(middle - _OUTLYING * spread))
    return min(reach, float(np.exp(np.quantile(logs, _SHARE))), _CEILING)


def _within(
    features: _Floats, reach: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], _Floats]]:
    """Pairs first < second at most so far apart, with their squared distances, in batches."""
    centre = features.mean(axis=0)
    step = max(1, len(features) // (4 * _SAMPLE))
    _, _, directions = np.linalg.svd(features[::step] - centre, full_matrices=False)
    points = (features - centre) @ directions[:_DIRECTIONS].T
    half = (points**2).sum(axis=1) / 2
    for start in range(0, len(points), _BLOCK):
        rows = slice(start, start + _BLOCK)
        for left in range(start, len(points), _BLOCK):
            columns = slice(left, left + _BLOCK)
            # |p - q|^2 <= reach, written so that one comparison is left
            room = half[columns] - reach / 2 - 1e-5
            close = points[rows] @ points[columns].T >= half[rows, None] + room
            # Many times faster than np.nonzero of the table itself.
            first, second = np.divmod(np.flatnonzero(close.ravel()), close.shape[1])
            first, second = first + start, second + left
            ahead = first < second
            first, second = first[ahead], second[ahead]
            squared = ((features[first] - features[second]) ** 2).sum(axis=1)
            sure = squared <= reach
            yield first[sure], second[sure], squared[sure]
