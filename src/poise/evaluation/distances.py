"""Euclidean distances between rows, a block at a time: memory does not grow with N x M.

Everything is float64 and centred first: |a|^2 + |b|^2 - 2 a.b loses its digits when the features
share a large offset.
"""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError

Features = NDArray[np.float64]

ROWS = 2048  # of a block: 32 MiB of distances


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


def centre(*sets: Features) -> list[torch.Tensor]:
    """The sets [N_i, D] as float64 tensors, all shifted by the mean of the first one."""
    tensors = [torch.from_numpy(np.asarray(s, np.float64)) for s in sets]
    m = tensors[0].mean(0)
    return [t - m for t in tensors]


def squared(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances [N, M] between the rows of a [N, D] and b [M, D], at least 0."""
    d2 = torch.addmm(b.square().sum(1), a, b.T, alpha=-2)
    return d2.add_(a.square().sum(1)[:, None]).clamp_(min=0)


def blocks(n: int) -> Iterator[slice]:
    """Slices that cover `range(n)`, `ROWS` long."""
    for start in range(0, n, ROWS):
        yield slice(start, min(start + ROWS, n))


def neighbour_radii(x: torch.Tensor, k: int) -> torch.Tensor:
    """Squared distance [N] from each row of x [N, D] to its k-th nearest other row."""
    radii = []
    for rows in blocks(len(x)):
        best = x.new_full((rows.stop - rows.start, k), torch.inf)
        for columns in blocks(len(x)):
            d2 = squared(x[rows], x[columns])
            if rows == columns:
                d2.fill_diagonal_(torch.inf)  # a point is not its own neighbour
            near = d2.topk(min(k, d2.shape[1]), largest=False).values
            best = torch.cat([best, near], 1).topk(k, largest=False).values
        radii.append(best.amax(1))
    return torch.cat(radii)
