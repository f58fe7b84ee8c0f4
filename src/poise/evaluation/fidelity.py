"""How close the distribution of samples is to the real one: the Fréchet distance and its errors.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1^.5 S2 S1^.5)^.5

With any factor S2 = L L', the eigenvalues of M = L' S1 L are those under the root, so that one
factor and one symmetric eigenproblem are enough and nothing has an imaginary part. Everything is
float64 and deterministic.
"""

import itertools
import math

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError, UsageError
from poise.evaluation.distances import Features, blocks, check_features
from poise.evaluation.estimate import Estimate
from poise.evaluation.moments import Moments
from poise.runtime import generator_at

_EPSILON = float(np.finfo(np.float64).eps)
_POINTS = 15  # sizes that FD_inf is extrapolated from
_START = 5000  # the smallest of them, where there are samples enough
_FEWEST = 2 * _POINTS  # samples for so many different sizes


def frechet_distance(a: Features, b: Features) -> float:
    """Fréchet distance of Gaussians fitted to a [N, D] and b [M, D] (Heusel et al. 2017, eq. 6).

    Biased upwards for few rows: compare it with the same figure for real images at the same sizes,
    or with `frechet_bias`.

    Returns:
        A number >= 0 in squared feature units; rounding below zero is clipped.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(first=a, second=b)
    return frechet_between(Moments.of(a), Moments.of(b))


def frechet_between(a: Moments, b: Moments) -> float:
    """`frechet_distance` of sets of which only the moments are known.

    Raises:
        DataError: different D, or moments of a single row.
    """
    _check_moments(a, b)
    return max(_distance(a, b, _factor(b)), 0.0)


def frechet_estimate(samples: Features, reference: Features | Moments) -> Estimate:
    """Fréchet distance of samples [M, D] and a reference [N, D], with its standard errors.

    By the delta method: a row x of the samples moves the distance by psi(x) / M, where

        psi(x) = 2 (m1 - m2).(x - m1) + (x - m1)' (I - T) (x - m1) - its mean,

    T S1 T = S2 is the optimal map between the Gaussians, and the standard error is that of the
    mean of psi; likewise for the reference. These are errors of the distance at these sizes, not
    of the bias that both sizes bring, see `frechet_bias`. Near equality psi vanishes to first
    order: the errors are only of the right magnitude there, and the bias, not chance, is the floor.

    Args:
        samples: [M, D].
        reference: [N, D], or its moments alone; then the reference error is not known.

    Returns:
        The value >= 0. An error is nan for a set that has no more rows than dimensions: it holds
        no covariance, and the distance means little.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    if isinstance(reference, Moments):
        a, b = Moments.of(samples), reference
    else:
        check_features(samples=samples, reference=reference)
        a, b = Moments.of(samples), Moments.of(reference)
    _check_moments(a, b)
    lam, forth, back = _maps(a, _factor(b))
    value = max(_assembled(a, b, lam), 0.0)
    samples_error = _error(_influence(samples, a, b, forth), samples.shape[1])
    if isinstance(reference, Moments):
        return Estimate(value, samples_error)
    return Estimate(value, samples_error, _error(_influence(reference, b, a, back), len(b.mean)))


def frechet_bias(covariance: NDArray[np.float64], n1: float, n2: float) -> float:
    """What the Fréchet distance of two finite sets of one Gaussian is above 0, to first order.

        (1 / n1 + 1 / n2) [sum_i l_i + 1/2 sum_ij l_i l_j (1 + d_ij) / (l_i + l_j)]

    with the eigenvalues l of the covariance; d_ij is 1 where i = j. Features are no Gaussians: take
    it as the height of the floor, about.

    Args:
        covariance: [D, D], or its eigenvalues [D].
        n1: rows of one set; infinite if its moments are exact.
        n2: rows of the other.

    Raises:
        UsageError: sizes below 1.
        DataError: neither a square matrix nor eigenvalues, or numbers that are not finite.
    """
    if not min(n1, n2) >= 1:
        raise UsageError(f"sets of {n1} and {n2} rows", expected="at least one row in each")
    square = covariance.ndim == 2 and covariance.shape[0] == covariance.shape[1]
    if not (square or covariance.ndim == 1) or not np.isfinite(covariance).all():
        raise DataError(
            f"a covariance of shape {covariance.shape}",
            expected="finite numbers, [D, D] or the eigenvalues [D]",
        )
    given = torch.from_numpy(np.asarray(covariance, np.float64))
    lam = (torch.linalg.eigvalsh(given) if square else given).clamp(min=0)
    lam = lam[lam > 0]
    pairs = torch.outer(lam, lam) / (lam[:, None] + lam)
    total = lam.sum() + (pairs.sum() + pairs.diagonal().sum()) / 2
    return float(total) * (1 / n1 + 1 / n2)


def frechet_infinite(samples: Features, reference: Moments, seed: int = 0) -> Estimate:
    """The Fréchet distance that endless samples would have: FD_inf (Chong & Forsyth 2020).

    The distance of 15 nested subsets, in a seeded order and of evenly spaced sizes up to all M, is
    fitted by a line against 1 / size; the value is its intercept. That removes the bias of the
    samples, not the one of the reference. The smallest subset has 5,000 rows; of fewer than 10,000
    samples, as many as a tenth of them but no less than 2 D, where the bias is still a line, and
    no more than half.

    Args:
        samples: [M, D], at least 30 rows.
        reference: moments of the real features.
        seed: of the order in which samples enter the subsets.

    Returns:
        The intercept, which may be negative, and its standard error from the samples by the delta
        method of `frechet_estimate`, of which it shares what is said about near equality.

    Raises:
        DataError: different D, fewer than 30 rows, or values that are not finite.
    """
    check_features(samples=samples)
    n, D = samples.shape
    if n < _FEWEST:
        raise DataError(f"{n} samples", expected=f"at least {_FEWEST} to extrapolate from")
    start = min(_START, n // 2, max(2 * D, n // 10))
    sizes = np.linspace(start, n, _POINTS).astype(int)
    order = torch.randperm(n, generator=generator_at(seed, n, "frechet-infinite")).numpy()
    part = Moments.of(samples[order[:start]])
    _check_moments(part, reference)
    L = _factor(reference)
    values = [_distance(part, reference, L)]
    for first, last in itertools.pairwise(sizes):
        part = part.merged(Moments.streamed([samples[order[first:last]]]))
        values.append(_distance(part, reference, L))
    # The intercept is a weighted sum of the values; a row counts in every subset that holds it.
    u = 1 / sizes - np.mean(1 / sizes)
    weights = 1 / _POINTS - u * np.mean(1 / sizes) / np.square(u).sum()
    shares = np.cumsum((weights / sizes)[::-1])[::-1]
    spread = math.sqrt(float(np.diff(sizes, prepend=0) @ np.square(shares)))
    psi = _influence(samples, part, reference, _maps(part, L)[1])
    return Estimate(float(weights @ values), _error(psi, D) * math.sqrt(n) * spread)


def _check_moments(a: Moments, b: Moments) -> None:
    for moments in (a, b):
        if moments.count is not None and moments.count < 2:
            raise DataError("the moments of a single row", expected="at least two rows")
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"features of {len(a.mean)} dimensions beside a reference of {len(b.mean)}",
            expected="one feature space for all sets",
            remedy="extract all sets with the same extractor and resolution",
        )


def _factor(moments: Moments) -> torch.Tensor:
    """L [D, R] of full rank R with L L' = S, up to rounding."""
    S = torch.from_numpy(moments.covariance)
    L: torch.Tensor
    L, failed = torch.linalg.cholesky_ex(S)
    if failed:
        lam, Q = torch.linalg.eigh(S)
        keep = lam >= lam[-1].clamp(min=0) * len(lam) * _EPSILON
        L = Q[:, keep] * lam[keep].sqrt()
    return L


def _sandwich(a: Moments, L: torch.Tensor) -> torch.Tensor:
    """M = L' S1 L [R, R]."""
    M = L.T @ torch.from_numpy(a.covariance) @ L
    return (M + M.T) / 2  # symmetric in exact arithmetic only; one triangle would be read


def _distance(a: Moments, b: Moments, L: torch.Tensor) -> float:
    return _assembled(a, b, torch.linalg.eigvalsh(_sandwich(a, L)))


def _assembled(a: Moments, b: Moments, lam: torch.Tensor) -> float:
    """The distance from the eigenvalues of M, ascending; below 0 by rounding at most.

    A set of n rows has a covariance of rank n - 1: what is beyond is rounding, and not small under
    the root.
    """
    rank = min(m.count - 1 for m in (a, b) if m.count) if a.count or b.count else len(lam)
    traces = float(np.square(a.mean - b.mean).sum() + a.covariance.trace() + b.covariance.trace())
    return traces - 2 * float(lam[-rank:].clamp(min=0).sqrt().sum())


def _maps(a: Moments, L: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The eigenvalues of M, ascending, and the optimal maps between a and the set of factor L.

    T = L M^-.5 L' takes a to the other set, S1 L M^-1.5 L' S1 the other set to a; pseudo-inverses
    where M has no full rank. Each comes as W [D, R] with T = W W'.
    """
    lam, V = torch.linalg.eigh(_sandwich(a, L))
    keep = lam > lam[-1].clamp(min=0) * len(lam) * _EPSILON
    forth = L @ V[:, keep] * lam[keep].pow(-0.25)
    back = torch.from_numpy(a.covariance) @ forth * lam[keep].pow(-0.5)
    return lam, forth, back


def _influence(x: Features, own: Moments, other: Moments, W: torch.Tensor) -> torch.Tensor:
    """psi [N] of rows x [N, D], which have the moments `own`; W W' is the map to the other set."""
    m, way = torch.from_numpy(own.mean), torch.from_numpy(own.mean - other.mean)
    parts = []
    for rows in blocks(len(x)):
        z = torch.from_numpy(x[rows].astype(np.float64)) - m
        parts.append(2 * z @ way + z.square().sum(1) - (z @ W).square().sum(1))
    psi = torch.cat(parts)
    return psi - psi.mean()


def _error(psi: torch.Tensor, D: int) -> float:
    """Standard error of the mean of psi [N]; nan for as few rows as dimensions."""
    return float(psi.std()) / math.sqrt(len(psi)) if len(psi) > D else math.nan
