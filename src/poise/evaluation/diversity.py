"""How many kinds of images there are, and which kinds the samples lack."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError, UsageError
from poise.evaluation.distances import (
    Features,
    blocks,
    centre,
    check_features,
    squared,
)
from poise.evaluation.estimate import Estimate

_SMALLEST = 1e-12  # eigenvalue of a matrix of trace 1
_PER_GROUP = 20  # reference images
_MOST_GROUPS = 50
_LEVEL = 0.05  # chance that any group differs though the distributions do not
_SEED = 0


def vendi(features: Features, q: float = 1) -> Estimate:
    """The effective number of different images (Friedman and Dieng 2023).

    With L the eigenvalues of the mean of x x^T over the features x, scaled to unit norm:
    exp(-sum L ln L), and (sum L^q)^(1 / (1 - q)) for other orders q; q = 2 is 1 / sum L^2 and gives
    rare kinds less weight. From 1 (all alike) to min(N, D).

    It grows with N: compare sets of equal N only. Features are not centred here; a mean far from 0,
    as that of non-negative features, makes all images alike.

    Args:
        features: [N, D].
        q: the order, above 0.

    Returns:
        The number, with `samples_error` from the influence of each image on the entropy.

    Raises:
        UsageError: q not above 0.
        DataError: fewer than two rows, a row of zeros, or values that are not finite.
    """
    check_features(given=features)
    if not 0 < q < math.inf:
        raise UsageError(f"order q = {q} of the Vendi score", expected="a number above 0")
    x = torch.from_numpy(np.asarray(features, np.float64))
    norms = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    if not bool((norms > 0).all()):
        raise DataError("a feature vector of zeros", expected="features with a direction")
    x = x / norms
    n = len(x)
    # [N, N] only if it is the smaller one; both have the same eigenvalues above 0.
    L, U = torch.linalg.eigh((x.T @ x if n > x.shape[1] else x @ x.T) / n)
    kept = L > _SMALLEST
    L, U = L[kept], U[:, kept]
    # Square of each image's part in each direction, [N, K] a block at a time.
    if n > x.shape[1]:
        parts = ((x[rows] @ U).square_() for rows in blocks(n))
    else:
        parts = ((U[rows].square() * (n * L)) for rows in blocks(n))
    if q == 1:
        # d exp(H) = exp(H) dH, and an image changes H by -x^T ln(S) x - H.
        value = float(torch.exp(-(L * L.log()).sum()))
        slope, derivative = value, -L.log()
    else:
        total = float((L**q).sum())
        value = total ** (1 / (1 - q))
        slope, derivative = value / (1 - q) / total, q * L ** (q - 1)
    influence = torch.cat([p @ derivative for p in parts])
    return Estimate(value, abs(slope) * float(influence.std()) / math.sqrt(n))


@dataclass(frozen=True)
class Groups:
    """Groups of alike reference images, largest first, and the samples that fall into them.

    Attributes:
        reference: reference images in each group [K].
        samples: samples in each group [K].
        z: standardised difference of the samples' and the reference's shares [K].
        different: whether the shares differ significantly [K]; the number of statistically
            different bins of Richardson and Weiss 2018 is their count.
        under: different, and the samples' share is below half of the reference's [K].
        over: different, and the samples' share is above one and a half of the reference's [K].
        nearest: the reference image nearest to each group's centre [K].
    """

    reference: NDArray[np.int64]
    samples: NDArray[np.int64]
    z: NDArray[np.float64]
    different: NDArray[np.bool_]
    under: NDArray[np.bool_]
    over: NDArray[np.bool_]
    nearest: NDArray[np.int64]


def groups(reference: Features, samples: Features, k: int | None = None) -> Groups:
    """Which kinds of real images are missing among samples, or too frequent; needs no labels.

    k-means groups the reference; each sample belongs to the nearest centre. Shares are compared by
    two-proportion z-tests at 5 % for all groups together (Bonferroni). Reference images are held
    against centres without them: a centre is nearer to its own images than to others like them. The
    reference chose the groups, and those it happened to fill too little may be merged: `different`
    and `over` cry wolf more often than in 5 % of comparisons, and `under` too in many dimensions
    with few images: see what real images get at the same counts.

    Args:
        reference: [N, D].
        samples: [M, D].
        k: the number of groups at most, up to N; by default N // 20 from 2 to 50.

    Raises:
        UsageError: k out of range.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(reference=reference, samples=samples)
    n, m = len(reference), len(samples)
    k = min(max(n // _PER_GROUP, 2), _MOST_GROUPS) if k is None else k
    if not 1 <= k <= n:
        raise UsageError(f"{k} groups of {n} reference images", expected=f"from 1 to {n}")
    x, y = centre(reference, samples)
    c = torch.from_numpy(_centres(x.numpy(), k))
    own, other = _assign_members(x, c), _assign(y, c)
    a, b = (np.bincount(i, minlength=k) for i in (own, other))
    order = np.argsort(-a, kind="stable")
    order = order[a[order] > 0]  # fewer different images than groups leave some empty
    a, b = a[order], b[order]
    pooled = (a + b) / (n + m)
    spread = np.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))
    z = np.divide(b / m - a / n, spread, out=np.zeros(len(a)), where=spread > 0)
    different = np.abs(z) > float(torch.special.ndtri(torch.tensor(1 - _LEVEL / 2 / len(a))))
    return Groups(
        reference=a,
        samples=b,
        z=z,
        different=different,
        under=different & (b / m < 0.5 * a / n),
        over=different & (b / m > 1.5 * a / n),
        nearest=_assign(c[order], x),
    )


def _centres(x: Features, k: int) -> Features:
    """Centres of k groups of x [N, D] by seeded k-means, [k, D]."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        # One thread: the order of a sum must not depend on their number. The warning is of fewer
        # different images than groups.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(k, random_state=_SEED, n_init=1).fit(x)
    return np.asarray(fitted.cluster_centers_, np.float64)


def _assign(x: torch.Tensor, c: torch.Tensor) -> NDArray[np.int64]:
    """The nearest row of c [K, D] for each row of x [N, D], the lowest on ties."""
    return torch.cat([squared(x[rows], c).argmin(1) for rows in blocks(len(x))]).numpy()


def _assign_members(x: torch.Tensor, c: torch.Tensor) -> NDArray[np.int64]:
    """As `_assign` of the rows x [N, D] whose means are c, as if each had not been in its mean.

    Without one of n members, a mean is further from it by the factor n / (n - 1).
    """
    own = torch.from_numpy(_assign(x, c))
    counts = own.bincount(minlength=len(c)).double()
    factor = (counts / (counts - 1)).square().nan_to_num()  # inf for a lone member
    found = []
    for rows in blocks(len(x)):
        d2, i = squared(x[rows], c), own[rows, None]
        d2.scatter_(1, i, d2.gather(1, i) * factor[i])
        found.append(d2.argmin(1))
    return torch.cat(found).numpy()
