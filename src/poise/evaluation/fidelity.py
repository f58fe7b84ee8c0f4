"""How close the distribution of samples is to the real one: Fréchet and kernel distances.

Both take features [N, D], not images, and are deterministic.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.distances import Features, blocks, check_features


def moments(features: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean [D] and unbiased covariance [D, D] (divided by N - 1) of features [N, D], float64.

    Raises:
        DataError: fewer than two rows, or values that are not finite.
    """
    check_features(given=features)
    # In float64 throughout, and the mean is subtracted before the products: no cancellation.
    m = features.mean(0, dtype=np.float64)
    x = torch.from_numpy(features - m)
    S = x.T @ x / (len(x) - 1)
    return m, S.numpy()


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of Gaussians fitted to a [N, D] and b [M, D] (Heusel et al. 2017, eq. 6).

        FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^.5 S2 S1^.5)^.5

    The square root is taken by symmetric eigendecomposition, which has no imaginary part. Biased
    upwards for few rows: compare it with the same figure for real images at the same sizes.

    Returns:
        A number >= 0 in squared feature units; rounding below zero is clipped.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(first=a, second=b)
    (m1, S1), (m2, S2) = moments(a), moments(b)
    L, Q = torch.linalg.eigh(torch.from_numpy(S1))
    root = (Q * L.clamp(min=0).sqrt()) @ Q.T
    product = root @ torch.from_numpy(S2) @ root
    # Symmetric in exact arithmetic only; eigvalsh would read one triangle.
    L12 = torch.linalg.eigvalsh((product + product.T) / 2)
    trace = float(L12.clamp(min=0).sqrt().sum())
    fd = float(np.square(m1 - m2).sum() + np.trace(S1) + np.trace(S2)) - 2 * trace
    return max(fd, 0.0)


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared MMD of a [N, D] and b [M, D] with k(x, y) = (x.y / D + 1)^3.

    The estimator of Bińkowski et al. 2018 (KID) over the full sets instead of random subsets:
    deterministic and of smaller variance. Slightly negative values are legitimate.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(first=a, second=b)
    x, y = (torch.from_numpy(np.asarray(f, np.float64)) for f in (a, b))
    n, m = len(x), len(y)
    within = (_kernel_sum(x, x) - _kernel_trace(x)) / (n * (n - 1))
    within += (_kernel_sum(y, y) - _kernel_trace(y)) / (m * (m - 1))
    return within - 2 * _kernel_sum(x, y) / (n * m)


def _kernel_sum(x: torch.Tensor, y: torch.Tensor) -> float:
    """Sum of k over all pairs."""
    total = 0.0
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            k = (x[rows] @ y[columns].T).div_(x.shape[1]).add_(1)
            total += float((k * k).mul_(k).sum())
    return total


def _kernel_trace(x: torch.Tensor) -> float:
    """Sum of k(x_i, x_i)."""
    return float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum())
