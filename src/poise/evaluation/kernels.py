"""How close the distribution of samples is to the real one: kernel distances (squared MMD).

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y)

over all pairs, in float64 and in blocks; within a set every pair is computed once.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from poise.errors import DataError, UsageError
from poise.evaluation.distances import Features, blocks, centre, check_features, squared
from poise.evaluation.estimate import Estimate
from poise.runtime import generator_at

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # [A, D], [B, D] -> [A, B]

CMMD_WIDTH = 10.0  # standard deviation of the kernel on features of length 1
CMMD_SCALE = 1000.0


def kernel_distance(a: Features, b: Features) -> float:
    """Unbiased squared MMD of a [N, D] and b [M, D] with k(x, y) = (x.y / D + 1)^3.

    The estimator of Bińkowski et al. 2018 (KID) over the full sets instead of random subsets:
    deterministic and of smaller variance. Slightly negative values are legitimate.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(first=a, second=b)
    return _unbiased(_tensor(a), _tensor(b)).value


def kernel_estimate(samples: Features, reference: Features) -> Estimate:
    """`kernel_distance` of samples [M, D] and a reference [N, D], with its standard errors.

    By Hájek's projections: the standard error of a set is that of the mean of

        h(x) = 2 (mean of k(x, x') over the other rows x' - mean of k(x, y) over the other set).

    Near equality h vanishes, and what is left in the errors is noise of the right order.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(samples=samples, reference=reference)
    return _unbiased(_tensor(samples), _tensor(reference))


def kernel_subsets(
    samples: Features, reference: Features, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """KID as it is published: over random subsets of both sets, drawn without replacement.

    Args:
        samples: [M, D].
        reference: [N, D].
        subsets: how many.
        size: rows of each; the size of the smaller set if that has fewer.
        seed: of the choice.

    Returns:
        Mean and standard deviation (divided by `subsets`) over the subsets. The latter is no
        standard error: it says how much a smaller set varies.

    Raises:
        UsageError: no subset, or fewer than two rows in each.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    if subsets < 1 or size < 2:
        raise UsageError(f"{subsets} subsets of {size}", expected="1 or more of at least 2 rows")
    check_features(samples=samples, reference=reference)
    x, y = _tensor(samples), _tensor(reference)
    size = min(size, len(x), len(y))
    values = []
    for number in range(subsets):
        g = generator_at(seed, number, "kernel-subsets")
        chosen = [f[torch.randperm(len(f), generator=g)[:size]] for f in (x, y)]
        values.append(_unbiased(*chosen).value)
    return float(np.mean(values)), float(np.std(values))


def rbf_distance(
    samples: Features, reference: Features, width: float, *, biased: bool = False
) -> Estimate:
    """Squared MMD with k(x, y) = exp(-|x - y|^2 / (2 width^2)), with standard errors.

    Args:
        samples: [M, D].
        reference: [N, D].
        width: standard deviation of the kernel, in feature units.
        biased: count each row's kernel with itself, which is 1: that adds (1 - mean k) / N for
            each set.

    Raises:
        UsageError: a width that is not above 0.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    if not 0 < width < math.inf:
        raise UsageError(f"a kernel of width {width}", expected="a number above 0")
    check_features(samples=samples, reference=reference)

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return squared(a, b).mul_(-0.5 / width**2).exp_()

    x, y = centre(samples, reference)
    return _mmd(x, y, k, diagonal=1.0 if biased else None)


def cmmd(samples: Features, reference: Features, *, biased: bool = True) -> Estimate:
    """CMMD (Jayasumana et al. 2024): 1000 times the squared MMD of features of length 1.

    The kernel is Gaussian with a width of 10, nearly linear on the unit sphere.

    Args:
        samples: [M, D], of any length; the published features are those of CLIP ViT-L/14 at 336.
        reference: [N, D].
        biased: as published, about 1000 (1 / M + 1 / N) (1 - mean k) too high; False takes that
            off, and values below 0 are legitimate then.

    Raises:
        DataError: different D, fewer than two rows, a row of zeros, or values that are not finite.
    """
    check_features(samples=samples, reference=reference)
    unit = []
    for name, f in (("samples", samples), ("reference", reference)):
        lengths = np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True)
        if not lengths.all():
            raise DataError(
                f"{name} features with a row of zeros", expected="rows with a direction"
            )
        unit.append(f / lengths)
    mmd = rbf_distance(unit[0], unit[1], CMMD_WIDTH, biased=biased)
    return Estimate(
        CMMD_SCALE * mmd.value, CMMD_SCALE * mmd.samples_error, CMMD_SCALE * mmd.reference_error
    )


def _tensor(features: Features) -> torch.Tensor:
    return torch.from_numpy(np.asarray(features, np.float64))


def _unbiased(x: torch.Tensor, y: torch.Tensor) -> Estimate:
    one = x.new_ones(())

    def k(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.addmm(one, a, b.T, alpha=1 / a.shape[1]).pow_(3)

    return _mmd(x, y, k, diagonal=None)


def _mmd(x: torch.Tensor, y: torch.Tensor, k: Kernel, diagonal: float | None) -> Estimate:
    """Squared MMD with Hájek's errors; `diagonal` is k(x, x) where that counts, else None."""
    n, m = len(x), len(y)
    cross_x, cross_y = _between(x, y, k)
    value, errors = -2 * float(cross_x.sum()) / (n * m), []
    for f, cross, others in ((x, cross_x, m), (y, cross_y, n)):
        N, within = len(f), _within(f, k)
        total = float(within.sum())
        value += total / (N * (N - 1)) if diagonal is None else (total / N + diagonal) / N
        h = 2 * (within / (N - 1) - cross / others)
        errors.append(float(h.std()) / math.sqrt(N))
    return Estimate(value, *errors)


def _between(x: torch.Tensor, y: torch.Tensor, k: Kernel) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of k(x_i, y_j) over j [N] and over i [M]."""
    over_y, over_x = x.new_zeros(len(x)), x.new_zeros(len(y))
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            block = k(x[rows], y[columns])
            over_y[rows] += block.sum(1)
            over_x[columns] += block.sum(0)
    return over_y, over_x


def _within(x: torch.Tensor, k: Kernel) -> torch.Tensor:
    """Sums of k(x_i, x_j) over all j other than i [N]."""
    sums = x.new_zeros(len(x))
    for rows in blocks(len(x)):
        for columns in blocks(len(x)):
            if columns.start < rows.start:
                continue
            block = k(x[rows], x[columns])
            if rows == columns:
                block.fill_diagonal_(0)
            else:
                sums[columns] += block.sum(0)
            sums[rows] += block.sum(1)
    return sums
