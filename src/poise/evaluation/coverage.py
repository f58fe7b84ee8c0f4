"""Precision, recall, density and coverage from nearest-neighbour balls."""

import math

import torch

from poise.errors import UsageError
from poise.evaluation.distances import (
    Features,
    blocks,
    centre,
    check_features,
    neighbour_radii,
    squared,
)


def precision_recall_density_coverage(
    real: Features, fake: Features, k: int = 5
) -> dict[str, float]:
    """Four shares from balls that reach to each point's k-th nearest neighbour of its own set.

    Precision and recall: Kynkäänniemi et al. 2019; density and coverage: Naeem et al. 2020. A
    point lies inside a ball if its distance is strictly smaller than the radius, as in Naeem's
    code; a point is not its own neighbour.

    Args:
        real: [N, D].
        fake: [M, D].
        k: the neighbour that sets the radius, below N and M.

    Returns:
        precision: share of fakes inside some real ball, 0 to 1.
        recall: share of reals inside some fake ball, 0 to 1.
        density: real balls that hold a fake, on average, divided by k; about 1 for equal
            distributions, unbounded above.
        coverage: share of real balls that hold a fake, 0 to 1.
        Precision and recall of real against real fall far below 1 in many dimensions.

    Raises:
        UsageError: k out of range.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(real=real, fake=fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise UsageError(
            f"k = {k} neighbours for {len(real)} real and {len(fake)} fake images",
            expected="at least 1 and fewer than the images of either set",
            remedy="lower the number of neighbours or take more images",
        )
    x, y = centre(real, fake)
    r_x, r_y = neighbour_radii(x, k), neighbour_radii(y, k)
    balls = torch.zeros(len(y), dtype=torch.int64)  # real balls around each fake
    recalled = torch.zeros(len(x), dtype=torch.bool)
    covered = torch.zeros(len(x), dtype=torch.bool)
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            d2 = squared(x[rows], y[columns])
            inside = d2 < r_x[rows, None]
            balls[columns] += inside.sum(0)
            covered[rows] |= inside.any(1)
            recalled[rows] |= (d2 < r_y[None, columns]).any(1)
    return {
        "precision": float((balls > 0).double().mean()),
        "recall": float(recalled.double().mean()),
        "density": float(balls.double().mean()) / k,
        "coverage": float(covered.double().mean()),
    }


def coverage_null(n: int, m: int, k: int) -> float:
    """Expected coverage of n real by m fake images of the same distribution, in any dimension.

        1 - prod_{j<k} (n - 1 - j) / (n - 1 + m - j)

    The complement is the chance that the k nearest of the n - 1 + m other points are all real.

    Raises:
        UsageError: sizes below 1, or k not below n.
    """
    if m < 1 or not 1 <= k < n:
        raise UsageError(
            f"n = {n}, m = {m}, k = {k}", expected="m at least 1 and k from 1 to n - 1"
        )
    return 1 - math.prod((n - 1 - j) / (n - 1 + m - j) for j in range(k))
