"""Euclidean distances between rows, a block at a time: memory does not grow with N x M.

Everything is float64 and centred first: |a|^2 + |b|^2 - 2 a.b loses its digits when the features
share a large offset.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError, UsageError

Features = NDArray[np.float64]

ROWS = 512  # of a block: 2 MiB of distances stay in the cache
_ROUNDING = 1e-12  # of squared distances, relative to squared norms


def check_features(**sets: Features) -> None:
    """Refuse sets that are not finite [N, D] with one D and at least two rows.

    Raises:
        DataError: naming the set by its keyword.
    """
    width = None
    for name, f in sets.items():
        if f.ndim != 2 or len(f) < 2 or f.shape[1] == 0:
            raise DataError(
                f"{name} features of shape {f.shape}", expected="[N, D] with at least two rows"
            )
        if width not in (None, f.shape[1]):
            raise DataError(
                f"{name} features of {f.shape[1]} dimensions beside others of {width}",
                expected="one feature space for all sets",
                remedy="extract all sets with the same extractor and resolution",
            )
        if not np.isfinite(f).all():
            raise DataError(f"{name} features that are not finite", expected="finite numbers")
        width = f.shape[1]


def check_neighbours(real: Features, fake: Features, k: int) -> None:
    """Refuse sets as `check_features` does, and a k-th neighbour that they do not have.

    Raises:
        DataError: naming the set.
        UsageError: k below 1, or not below the rows of either set.
    """
    check_features(real=real, fake=fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise UsageError(
            f"k = {k} neighbours for {len(real)} real and {len(fake)} fake images",
            expected="at least 1 and fewer than the images of either set",
            remedy="lower the number of neighbours or take more images",
        )


def centre(*sets: Features) -> list[torch.Tensor]:
    """The sets [N_i, D] as float64 tensors, all shifted by the mean of the first one."""
    tensors = [torch.from_numpy(np.asarray(s, np.float64)) for s in sets]
    m = tensors[0].mean(0)
    return [t - m for t in tensors]


def halves(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """L and R [N, D + 2] of x [N, D] with L(a) R(b)^T = |a|^2 + |b|^2 - 2 a.b.

    The whole squared distance is one matrix product, with no further pass over its result;
    rounding may leave it slightly below 0.
    """
    norms, ones = x.square().sum(1, keepdim=True), x.new_ones(len(x), 1)
    return torch.cat([-2 * x, norms, ones], 1), torch.cat([x, ones, norms], 1)


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances [N, M] between the rows of a [N, D] and b [M, D], at least 0."""
    return (halves(a)[0] @ halves(b)[1].T).clamp_(min=0)


def blocks(n: int) -> Iterator[slice]:
    """Slices that cover `range(n)`, `ROWS` long."""
    for start in range(0, n, ROWS):
        yield slice(start, min(start + ROWS, n))


def neighbours(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest other rows of each row of x [N, D], nearest first.

    Returns:
        squared distances [N, k], inf where there are too few rows, and their indices [N, k].
    """
    left, right = halves(x)
    best = x.new_full((len(x), k), torch.inf), torch.zeros(len(x), k, dtype=torch.int64)
    for rows in blocks(len(x)):
        d2 = (left[rows] @ right[rows].T).fill_diagonal_(torch.inf)  # not its own neighbour
        near = d2.topk(min(k, len(d2)), largest=False)
        best[0][rows, : near.values.shape[1]] = near.values
        best[1][rows, : near.values.shape[1]] = near.indices + rows.start
        for columns in blocks(rows.start):  # a block serves its rows and, mirrored, its columns
            d2 = left[rows] @ right[columns].T
            i, j, d = _below(d2, best[0][rows, -1:])
            _enter(best, rows, i, j + columns.start, d)
            i, j, d = _below(d2, best[0][columns, -1])
            _enter(best, columns, j, i + rows.start, d)
    return best[0].clamp_(min=0), best[1]


def neighbour_radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance [N] from each row of x [N, D] to its k-th nearest other row."""
    return neighbours(x, k)[0][:, -1]


def _below(d2: torch.Tensor, bound: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Row, column and value of the entries of d2 [n, m] below the bound."""
    flat = np.flatnonzero((d2 < bound).numpy())
    i, j = np.divmod(flat, d2.shape[1])
    return torch.from_numpy(i), torch.from_numpy(j), d2.view(-1)[flat]


def _enter(
    best: tuple[torch.Tensor, torch.Tensor],
    rows: slice,
    i: torch.Tensor,
    j: torch.Tensor,
    d2: torch.Tensor,
) -> None:
    """Enter points j, at distances d2 from the i-th of `rows`, into the best of those rows."""
    distances, indices = best[0][rows], best[1][rows]
    k = distances.shape[1]
    order = d2.argsort()
    order = order[i[order].argsort(stable=True)]
    i, j, d2 = i[order], j[order], d2[order]
    rank = torch.arange(len(i)) - torch.searchsorted(i, i)
    i, j, d2, rank = (v[rank < k] for v in (i, j, d2, rank))
    near, near_indices = torch.full_like(distances, torch.inf), torch.zeros_like(indices)
    near[i, rank], near_indices[i, rank] = d2, j
    both = torch.cat([distances, near], 1).topk(k, largest=False)
    best[0][rows] = both.values
    best[1][rows] = torch.cat([indices, near_indices], 1).gather(1, both.indices)


def within(x: torch.Tensor, r2: torch.Tensor) -> torch.Tensor:
    """Squared radii r2 [N] of balls around x [N, D], smaller by what rounding may do to a distance.

    A distance in truth equal to the radius then lies outside, whatever the blocks.
    """
    return r2 - _ROUNDING * (x.square().sum(1) + r2)
