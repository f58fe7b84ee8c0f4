"""Precision, recall, density, coverage, realism and rarity from nearest-neighbour balls.

A ball reaches from a point to its k-th nearest neighbour in its own set; a point is not its own
neighbour. A point lies inside a ball if its distance is smaller than the radius. Distances that
differ by rounding alone count as equal, so that a copy of the image that sets a radius lies outside
the ball whatever the blocks.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import UsageError
from poise.evaluation import distances
from poise.evaluation.distances import (
    Features,
    blocks,
    centre,
    check_neighbours,
    halves,
    neighbour_radii,
    neighbours,
    within,
)
from poise.evaluation.estimate import Estimate
from poise.runtime import generator_at

GROUPS = 20  # of the jackknife

Values = NDArray[np.float64]


def precision_recall_density_coverage(
    real: Features, fake: Features, k: int = 5
) -> dict[str, float]:
    """The values of `coverage_estimates`."""
    return {name: e.value for name, e in coverage_estimates(real, fake, k).items()}


def coverage_estimates(real: Features, fake: Features, k: int = 5) -> dict[str, Estimate]:
    """Four shares from balls that reach to each point's k-th nearest neighbour of its own set.

    Precision and recall: Kynkäänniemi et al. 2019; density and coverage: Naeem et al. 2020.

    The standard errors are delete-group jackknives over 20 fixed random groups of either set, from
    the same pass over the distances. Radii are not recomputed without a group, but for density's
    and coverage's `reference_error`, where a ball that had neighbours in the group then reaches to
    its (k + 1)-th. Errors of shares close to 0 or 1 come out up to 2.5 times too large.

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
    check_neighbours(real, fake, k)
    x, y = centre(real, fake)
    x, y = x[_order(len(x), "real")], y[_order(len(y), "fake")]
    near, index = neighbours(x, min(k + 1, len(x) - 1))
    r_x, r_next = within(x, near[:, k - 1])[:, None], within(x, near[:, -1])[:, None]
    r_y = within(y, neighbour_radii(y, k))
    L, R = halves(x)[0], halves(y)[1]
    around_fake = np.zeros((len(y), GROUPS), np.int64)  # real balls of each group around each fake
    around_real = np.zeros((len(x), GROUPS), np.int64)  # fake balls of each group around each real
    held = np.zeros((len(x), GROUPS), np.int64)  # fakes of each group in each real ball
    reach = np.zeros(len(x), np.int64)  # fakes nearer than a real image's (k + 1)-th neighbour
    for g, rows in _pieces(len(x)):
        for h, columns in _pieces(len(y)):
            d2 = L[rows] @ R[columns].T
            inside = (d2 < r_x[rows]).numpy()
            around_fake[columns, g] += np.count_nonzero(inside, axis=0)
            held[rows, h] += np.count_nonzero(inside, axis=1)
            reach[rows] += np.count_nonzero((d2 < r_next[rows]).numpy(), axis=1)
            around_real[rows, h] += np.count_nonzero((d2 < r_y[columns]).numpy(), axis=1)
    precision, precision_fake, precision_real = _share(around_fake)
    recall, recall_real, recall_fake = _share(around_real)
    coverage, _, coverage_fake = _share(held)
    per_fake = around_fake.sum(1) / k
    density_real, coverage_real = _reference_errors(held.sum(1), reach, index[:, :k].numpy())
    least_fake, least_real = (math.sqrt(2) / len(z) for z in (y, x))  # as of any share
    return {
        "precision": Estimate(precision, max(precision_fake, least_fake), precision_real),
        "recall": Estimate(recall, recall_fake, max(recall_real, least_real)),
        "density": Estimate(
            float(per_fake.mean()), _rows_error(per_fake), density_real / (k * len(y))
        ),
        "coverage": Estimate(coverage, coverage_fake, max(coverage_real, least_real)),
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


def realism(real: Features, fake: Features, k: int = 3) -> Values:
    """How well each fake lies within the real images (Kynkäänniemi et al. 2019, eq. 3).

    The largest radius / distance over the real balls whose radius is at most the median: 1 or more
    inside such a ball, inf at a real image itself.

    Args:
        real: [N, D].
        fake: [M, D].
        k: the neighbour that sets the radius, below N and M.

    Returns:
        [M], above 0.

    Raises:
        UsageError: k out of range.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_neighbours(real, fake, k)
    x, y = centre(real, fake)
    r2 = neighbour_radii(x, k)
    kept = r2 <= r2.median()
    x, r2 = x[kept], r2[kept]
    L, R = halves(x)[0], halves(y)[1]
    found = []
    for columns in blocks(len(y)):
        best = y.new_full((columns.stop - columns.start,), -1)
        index = torch.zeros(len(best), dtype=torch.int64)
        for rows in blocks(len(x)):
            d2 = (L[rows] @ R[columns].T).clamp_(min=torch.finfo(torch.float64).tiny)
            ratio, i = (r2[rows, None] / d2).max(0)
            closer = ratio > best
            best = torch.where(closer, ratio, best)
            index = torch.where(closer, i + rows.start, index)
        # Differences of the winners: the product form leaves rounding where 0 is the truth.
        d = torch.linalg.vector_norm(y[columns] - x[index], dim=1)
        found.append(torch.where(d > 0, r2[index].sqrt() / d, torch.inf))
    return torch.cat(found).numpy()


def rarity(real: Features, fake: Features, k: int = 3) -> Values:
    """How sparse the real images are around each fake (Han et al. 2023).

    The smallest radius of the real balls that hold the fake; large for unusual images.

    Args:
        real: [N, D].
        fake: [M, D].
        k: the neighbour that sets the radius, below N and M.

    Returns:
        [M], in units of feature distance; nan for fakes outside all balls.

    Raises:
        UsageError: k out of range.
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_neighbours(real, fake, k)
    x, y = centre(real, fake)
    r2 = neighbour_radii(x, k)
    inner = within(x, r2)
    L, R = halves(x)[0], halves(y)[1]
    smallest = y.new_full((len(y),), torch.inf)
    for rows in blocks(len(x)):
        for columns in blocks(len(y)):
            inside = L[rows] @ R[columns].T < inner[rows, None]
            around = torch.where(inside, r2[rows, None], torch.inf).amin(0)
            smallest[columns] = smallest[columns].minimum(around)
    return smallest.sqrt().where(smallest < torch.inf, torch.nan).numpy()


def rarity_summary(scores: Values) -> dict[str, float]:
    """Of rarities [M]: median of those inside (nan if none is) and share outside, 0 to 1."""
    inside = scores[~np.isnan(scores)]
    median = float(np.median(inside)) if len(inside) else math.nan
    return {"median": median, "outside": 1 - len(inside) / len(scores)}


def _order(n: int, stream: str) -> torch.Tensor:
    """The fixed permutation that decides which of n rows form a jackknife group."""
    return torch.randperm(n, generator=generator_at(0, n, f"jackknife {stream}"))


def _bounds(n: int) -> list[int]:
    """Where the groups of n rows in a row begin, and n; groups are empty if n < `GROUPS`."""
    return [n * g // GROUPS for g in range(GROUPS + 1)]


def _pieces(n: int) -> Iterator[tuple[int, slice]]:
    """Slices of at most `ROWS` rows that cover range(n), each within one group, with the group."""
    bounds = _bounds(n)
    for g in range(GROUPS):
        for start in range(bounds[g], bounds[g + 1], distances.ROWS):
            yield g, slice(start, min(start + distances.ROWS, bounds[g + 1]))


def _share(counts: NDArray[np.int64]) -> tuple[float, float, float]:
    """Share of rows with any count [n, GROUPS]; errors from the rows and from the counted set."""
    total = counts.sum(1)
    without = (total[:, None] > counts).mean(0)  # a group of the counted set left out
    return float((total > 0).mean()), _rows_error(total > 0), _jackknife(without)


def _reference_errors(
    held: NDArray[np.int64], reach: NDArray[np.int64], index: NDArray[np.int64]
) -> tuple[float, float]:
    """Errors from the real images of the sum of `held` and of the share of balls that hold any.

    Args:
        held: fakes in each ball [N].
        reach: fakes nearer than the next neighbour [N].
        index: the k neighbours of each real image [N, k].
    """
    n = len(held)
    group = np.repeat(np.arange(GROUPS), np.diff(_bounds(n)))
    own = group[:, None] == np.arange(GROUPS)
    missing = np.zeros((n, GROUPS), np.int64)  # neighbours that go with each group
    np.add.at(missing, (np.arange(n)[:, None], group[index]), 1)
    # Each missing neighbour is taken to let in as many fakes as the first.
    sums = np.where(own, 0, held[:, None] + missing * (reach - held)[:, None]).sum(0)
    covered = np.where(missing > 0, reach[:, None], held[:, None]) > 0
    return _jackknife(sums), _jackknife(np.average(covered, 0, ~own))


def _rows_error(values: NDArray[np.generic]) -> float:
    """Standard error of the mean of values [n]: the jackknife over groups of rows."""
    v = values.astype(np.float64)
    bounds = _bounds(len(v))
    sums = np.array([v[a:b].sum() for a, b in itertools.pairwise(bounds)])
    return _jackknife((v.sum() - sums) / (len(v) - np.diff(bounds)))


def _jackknife(without: Values) -> float:
    """Standard error from the values [GROUPS] with one group left out each."""
    return math.sqrt((len(without) - 1) * float(without.var()))
