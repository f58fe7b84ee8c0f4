"""Other people's measures of copying, each with the same measure of real images.

They say how far a model copies as a whole; which samples are copies is said by `memorisation`. None
has a value that is good everywhere, hence the real one beside it.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.distances import Features
from poise.evaluation.estimate import Estimate, share_error
from poise.evaluation.likelihood import feature_likelihood
from poise.evaluation.memorisation import Neighbours, Surroundings
from poise.runtime import generator_at

_ALPHA = 0.5  # Carlini et al. 2023, for CIFAR-10
_CELLS = 3
_DIMENSIONS = 64  # of the features that cells are found in
_FITTED = 10_000  # training images that cells are found from, at most
_FEWEST = 20  # samples and held-out images that a cell needs


def novelty(
    near: Surroundings, train: Features, val: Features | None, samples: Features
) -> dict[str, tuple[Estimate, float | None]]:
    """carlini_copies, authentic, and with held-out images c_t, fld and fld_gap.

    Args:
        near: what `surroundings` found for these features.
        train: [views * N, D].
        val: [V, D] or None.
        samples: [M, D].

    Returns:
        name -> the estimate, and the value of real images in the samples' place: held-out images
        (for c_t one half of them against the other), or left-out training images without such.
    """
    found: dict[str, tuple[Estimate, float | None]] = {
        "carlini_copies": (carlini_copies(near.samples), carlini_copies(near.real).value),
        "authentic": (authentic(near, near.samples), authentic(near, near.real).value),
    }
    if val is None or near.held_out is None:
        return found
    d, d_val = near.samples.distances[:, 0], near.held_out.distances[:, 0]
    images = train[: near.images]
    cells, cells_val = cells_of(images, samples, val)
    half = _halved(len(val))
    found["c_t"] = (
        copying_score(d, d_val, cells, cells_val),
        copying_score(d_val[half], d_val[~half], cells_val[half], cells_val[~half]).value,
    )
    likelihood = feature_likelihood(images, val, samples)
    found["fld"] = (likelihood.fld, 0.0)
    found["fld_gap"] = (likelihood.gap, likelihood.real_gap)
    return found


def carlini_copies(near: Neighbours) -> Estimate:
    """Share of images with |x - x1| <= alpha * mean_j |x - xj| over the 50 nearest training images.

    Carlini et al. 2023, section 5.1, with alpha 0.5. The mean includes the nearest one, as in
    public implementations. An image that the training set holds many times hides its copies.
    """
    d = near.distances
    finite = np.isfinite(d)
    mean = np.where(finite, d, 0).sum(1) / finite.sum(1)
    return _share(d[:, 0] <= _ALPHA * mean)


def authentic(near: Surroundings, queries: Neighbours) -> Estimate:
    """Share of images farther from their nearest training image than that from its nearest other.

    Alaa et al. 2022, AuthPct. It is not 1/2 for a perfect model: it grows with the dimension.
    Counted are the images whose nearest training image is one of `near.rows`, all of them up to
    5,000 training images; the value is nan if there are none.
    """
    own = np.full(near.images, np.nan)
    own[near.rows] = near.left_out.distances[:, 0]
    of_nearest = own[queries.indices[:, 0] % near.images]
    known = ~np.isnan(of_nearest)
    return _share(queries.distances[known, 0] > of_nearest[known])


def copying_score(
    d: NDArray[np.float64],
    d_val: NDArray[np.float64],
    cells: NDArray[np.int64],
    cells_val: NDArray[np.int64],
) -> Estimate:
    """C_T of Meehan et al. 2020, eq. 3: far below 0 is copying, far above 0 is missing the data.

    Mann and Whitney's z of the distances of samples over those of held-out images to their nearest
    training image, in each cell; the mean over cells weighted by held-out images. A cell counts
    if it holds 20 samples and 20 held-out images; nan if none does.

    Args:
        d, d_val: distances of samples [M] and of held-out images [V].
        cells, cells_val: the cell that each lies in.
    """
    from scipy.stats import rankdata

    z, weights, by_samples = [], [], []
    for cell in np.unique(cells_val):
        q, p = d[cells == cell], d_val[cells_val == cell]
        m, n = len(q), len(p)
        if min(m, n) < _FEWEST:
            continue
        u = rankdata(np.concatenate([q, p]))[:m].sum() - m * (m + 1) / 2
        z.append((u - m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12))
        weights.append(n)
        by_samples.append(n / (m + n))  # part of the variance that the samples cause
    if not z:
        return Estimate(float("nan"))
    w, part = np.array(weights) / sum(weights), np.array(by_samples)
    return Estimate(
        float(w @ np.array(z)),
        float(np.sqrt(w**2 @ part)),
        float(np.sqrt(w**2 @ (1 - part))),
    )


def cells_of(train: Features, *queries: Features) -> list[NDArray[np.int64]]:
    """The cell 0, 1 or 2 of each row of the queries: k-means of the training features [N, D].

    At most 10,000 training images are used, chosen by a fixed seed, in their first 64 principal
    directions.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    rows = torch.randperm(len(train), generator=generator_at(0, len(train), "cells"))[:_FITTED]
    x = train[rows.sort().values.numpy()]
    mean = x.mean(0)
    directions = np.eye(x.shape[1])
    if x.shape[1] > _DIMENSIONS:
        directions = np.linalg.eigh((x - mean).T @ (x - mean))[1][:, -_DIMENSIONS:]
    points = (x - mean) @ directions
    cells = KMeans(min(_CELLS, len(np.unique(points, axis=0))), n_init=3, random_state=0)
    with threadpool_limits(1):  # the order of a sum must not depend on their number
        fitted = cells.fit(points)
    return [fitted.predict((q - mean) @ directions).astype(np.int64) for q in queries]


def _halved(count: int) -> NDArray[np.bool_]:
    """Which of `count` images are in the first half, drawn by a fixed seed."""
    order = torch.randperm(count, generator=generator_at(0, count, "halves")).numpy()
    return np.asarray(order < count // 2)


def _share(hits: NDArray[np.bool_]) -> Estimate:
    """A share with its binomial standard error; nan of nothing."""
    if not len(hits):
        return Estimate(float("nan"))
    share = float(hits.mean())
    return Estimate(share, share_error(share, len(hits)))
