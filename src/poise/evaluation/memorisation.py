"""Does the model copy? Distances of samples to the training set, judged by real images.

The yardstick are images that the model could not copy: held-out ones, and training images each left
out of the search in its turn. That holds only if the splits share no near-duplicates, so
deduplicate first; near-duplicates within the training set cost power, identical ones do not.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError
from poise.evaluation.distances import Features, centre, check_features
from poise.runtime import generator_at

Q = 0.1  # bound on the expected share of false alarms among flagged samples
NEIGHBOURS = 50  # training images listed around each image
LEFT_OUT = 5000  # training images searched for among the others, at most

# Features of one image differ by float32 rounding between batches, about 1e-7 of their size.
_SAME = 1e-5

_CLOSEST = 16  # pairs listed for people to look at
_SPARE = 8  # candidates beyond those asked for, against the rounding of the float32 search
_ROWS, _COLUMNS, _CHUNK = 1024, 16384, 128  # of a block of the search; rows measured at once
_TAIL = 0.1  # share of the calibration that the tail is fitted to
_FEWEST_TAIL = 10
_SHAPE = 0.25  # of the tail: between the exponential that small balls give and hopeless
_REACH = 100  # p-values are extrapolated by no more than this factor


@dataclass(frozen=True)
class Neighbours:
    """The nearest training rows of each query, nearest first; inf where there are too few.

    Attributes:
        distances: [M, k], exactly 0 for identical rows.
        indices: rows of the training features, [M, k].
    """

    distances: NDArray[np.float64]
    indices: NDArray[np.int64]


@dataclass(frozen=True)
class Surroundings:
    """All distances to the training set that novelty is judged by, from one search.

    Attributes:
        samples: neighbours of the samples.
        held_out: neighbours of held-out images; None without such.
        left_out: neighbours of the training images `rows` among the others.
        rows: at most 5,000 training images, chosen by a fixed seed, ascending, [Q].
        images: the number of training images N; their views stand at rows i, i + N, i + 2N...
        scale: root mean square distance of the training features from their mean.
    """

    samples: Neighbours
    held_out: Neighbours | None
    left_out: Neighbours
    rows: NDArray[np.int64]
    images: int
    scale: float

    @property
    def real(self) -> Neighbours:
        """Those of real images in the samples' place."""
        return self.left_out if self.held_out is None else self.held_out

    def calibration(self) -> NDArray[np.float64]:
        """Distances of real images to their nearest training image that is not the same one.

        Of training images that are repeated, the first stands for all.
        """
        d, index = self.left_out.distances, self.left_out.indices % self.images
        same = d <= _SAME * self.scale
        first = ~(same & (index < self.rows[:, None])).any(1)
        others = np.where(same, np.inf, d).min(1)[first]
        others = np.asarray(others[np.isfinite(others)], np.float64)
        if self.held_out is None:
            return others
        return np.concatenate([self.held_out.distances[:, 0], others], dtype=np.float64)


def surroundings(
    train: Features, val: Features | None, samples: Features, views: int = 1
) -> Surroundings:
    """Search the training set once for everything that novelty needs.

    Args:
        train: [views * N, D].
        val: real images the model has not seen, [V, D]; None: there are none.
        samples: [M, D].
        views: versions of the N training images that follow one another in `train`; 2 where
            the mirrored images follow the images, in the same order.

    Raises:
        DataError: different D, fewer than two rows, values that are not finite, or training rows
            that are not views of at least two images.
    """
    given = {"train": train, "samples": samples} | ({} if val is None else {"val": val})
    check_features(**given)
    N = len(train) // views
    if N * views != len(train) or N < 2:
        raise DataError(
            f"{len(train)} training rows for {views} views",
            expected="the same number of rows for each view, at least two",
        )
    order = torch.randperm(N, generator=generator_at(0, N, "left out"))
    rows = order[:LEFT_OUT].sort().values.numpy()
    return Surroundings(
        search(train, samples, NEIGHBOURS),
        None if val is None else search(train, val, NEIGHBOURS),
        search(train, train[rows], NEIGHBOURS, own=rows, images=N),
        rows,
        N,
        float(np.sqrt(train.var(0).sum())),
    )


def around(near: Surroundings, train: Features, samples: Features) -> Surroundings:
    """The same for other samples; only they are searched for.

    Args:
        near: of the same `train`.
        train: [views * N, D].
        samples: [M, D].
    """
    check_features(train=train, samples=samples)
    return replace(near, samples=search(train, samples, NEIGHBOURS))


def search(
    train: Features,
    queries: Features,
    k: int,
    own: NDArray[np.int64] | None = None,
    images: int = 0,
) -> Neighbours:
    """The k nearest rows of train [N, D] for each of queries [M, D].

    Candidates, 8 more than asked for, are found in float32, and their distances are computed as
    differences in float64. A neighbour can be missed only if 9 others are as near as it up to
    float32 rounding of the squared features.

    Args:
        own: for each query the row of train that it is itself, [M]; that row is no neighbour,
            nor are those a multiple of `images` away, its other views.
    """
    x, y = centre(train, queries)
    scale = x.square().mean().sqrt().item() or 1.0
    a, b = (t.float().div_(scale) for t in (x, y))
    norms = torch.linalg.vector_norm(a, dim=1).square_()
    k_found = min(k, len(x))
    # Places for all answers at once: small ones kept between large temporary ones would keep the
    # allocator from giving the memory of these back.
    distances = x.new_empty(len(y), k_found)
    indices = torch.empty(len(y), k_found, dtype=torch.int64)
    gathered = x.new_empty(_CHUNK * min(k + _SPARE, len(x)), x.shape[1])
    for start in range(0, len(y), _ROWS):
        rows = slice(start, min(start + _ROWS, len(y)))
        itself = None if own is None else torch.from_numpy(own[rows])
        candidates = _candidates(a, norms, b[rows], min(k + _SPARE, len(x)), itself, images)
        for first in range(0, len(candidates), _CHUNK):
            near = candidates[first : first + _CHUNK].sort(1).values
            here = slice(start + first, start + first + len(near))
            rest = gathered[: near.numel()]
            torch.index_select(x, 0, near.reshape(-1), out=rest)
            apart = rest.view(*near.shape, -1).sub_(y[here, None])
            d = torch.linalg.vector_norm(apart, dim=2)
            if itself is not None:
                mine = near % images == itself[first : first + _CHUNK, None] % images
                d = d.masked_fill(mine, torch.inf)
            d, order = d.sort(dim=1, stable=True)
            distances[here], indices[here] = d[:, :k], near.gather(1, order)[:, :k]
    return Neighbours(distances.numpy(), indices.numpy())


def _candidates(
    a: torch.Tensor,
    norms: torch.Tensor,
    b: torch.Tensor,
    k: int,
    own: torch.Tensor | None,
    images: int,
) -> torch.Tensor:
    """Indices [m, k] of the rows of a [N, D] that are nearest to b [m, D]; norms are |a|^2."""
    best = b.new_full((len(b), k), torch.inf)
    index = torch.zeros(len(b), k, dtype=torch.int64)
    for start in range(0, len(a), _COLUMNS):
        part = a[start : start + _COLUMNS]
        d2 = torch.addmm(norms[start : start + _COLUMNS], b, part.T, alpha=-2)  # less |b|^2
        if own is not None:
            for view in range(0, len(a), images):
                column = own % images + view - start
                inside = ((column >= 0) & (column < len(part))).nonzero()[:, 0]
                d2[inside, column[inside]] = torch.inf
        near = d2.topk(min(k, d2.shape[1]), largest=False, sorted=False)
        both = torch.cat([best, near.values], 1).topk(k, largest=False, sorted=False)
        best = both.values
        index = torch.cat([index, near.indices + start], 1).gather(1, both.indices)
    return index


def copies(near: Surroundings) -> dict[str, Any]:
    """How close samples come to the training set, beside real images, and which are copies.

    Each sample's distance to its nearest training image gets a p-value, see `p_values`, from the
    distances of held-out images and of left-out training images together. Benjamini and
    Hochberg's step-up rule at q = 0.1 flags samples.

    Returns:
        samples, val: {median, q05, q01} of the distance to the nearest training image; without
            held-out images, val is of training images, each left out.
        median_ratio: samples' median over val's; far below 1 is copying. None if val's is 0,
            which means that the splits share images.
        suspicious: samples closer than 99 % of val; suspicious_expected: M/100, their number if
            nothing is copied.
        flagged: number of samples the test calls copies; flagged_indices: which, nearest first;
            flagged_train_indices: the training row that each resembles; expected_false: how many
            of them are false alarms on average, at most.
        share: flagged over M; share_low, share_high: Clopper and Pearson's 95 % interval, its
            lower end after the expected false alarms are taken off. Copies too free to be
            flagged are not in it.
        closest: the 16 samples nearest to a training image: {sample, train, distance, p}.
        detectable_from: fewest identical copies that the test can flag at these sizes.
        exact_duplicates: samples whose features are those of a training image, up to rounding.
        calibration: {held_out, left_out}, the numbers of distances that p-values come from.
    """
    d, index = near.samples.distances[:, 0], near.samples.indices[:, 0]
    calibration = near.calibration()
    tiny = _SAME * near.scale
    p = p_values(calibration, d, tiny)
    flagged = benjamini_hochberg(p, Q)
    flagged = flagged[np.argsort(d[flagged], kind="stable")]
    summary, summary_val = _summary(d), _summary(near.real.distances[:, 0])
    median_val = summary_val["median"]
    low, high = _share_interval(len(flagged), len(d))
    held_out = 0 if near.held_out is None else len(near.held_out.distances)
    smallest = p_values(calibration, np.zeros(1), tiny)[0]
    return {
        "samples": summary,
        "val": summary_val,
        "median_ratio": summary["median"] / median_val if median_val > tiny else None,
        "suspicious": int((d < summary_val["q01"]).sum()),
        "suspicious_expected": len(d) / 100,
        "q": Q,
        "flagged": len(flagged),
        "flagged_indices": flagged.tolist(),
        "flagged_train_indices": index[flagged].tolist(),
        "expected_false": Q * len(flagged),
        "share": len(flagged) / len(d),
        "share_low": low,
        "share_high": high,
        "closest": _closest(d, index, p),
        "detectable_from": math.ceil(len(d) * smallest / Q - 1e-9),
        "exact_duplicates": int((d <= tiny).sum()),
        "calibration": {"held_out": held_out, "left_out": len(calibration) - held_out},
    }


def _closest(
    d: NDArray[np.float64], index: NDArray[np.int64], p: NDArray[np.float64]
) -> list[dict[str, Any]]:
    """The pairs for people to look at, nearest first."""
    return [
        {"sample": int(i), "train": int(index[i]), "distance": float(d[i]), "p": float(p[i])}
        for i in np.argsort(d, kind="stable")[:_CLOSEST]
    ]


def p_values(
    calibration: NDArray[np.float64], d: NDArray[np.float64], tiny: float = 0.0
) -> NDArray[np.float64]:
    """p-values [M] of distances d [M] against those of real images, calibration [n].

    At or above the smallest calibration distance, p = (2 + #{calibration <= d}) / (n + 1): the
    conformal p-value and one more, because left-out training images are not quite exchangeable
    with samples. Below, it is 2 / (n + 1) times the chance that a distance below the smallest
    one is below d too, by a tail fitted to the lowest tenth: the number of images in a small ball
    grows like a power of its radius, so that the logarithm of distances has an exponential tail;
    its generalised Pareto shape is 0.25 instead of 0, as the power differs from place to place.
    This factor is never below 1/100, and is 1/100 for distances up to `tiny`, which count as 0.
    """
    n = len(calibration)
    c = np.sort(np.where(calibration <= tiny, 0.0, calibration))
    d = np.where(d <= tiny, 0.0, d)
    p = np.minimum((2 + np.searchsorted(c, d, side="right")) / (n + 1), 1.0)
    tail = min(max(_FEWEST_TAIL, int(_TAIL * n)), n - 1)
    if n == 0 or c[0] == 0 or c[tail] == c[0]:
        return np.asarray(p, np.float64)  # nothing below, or no tail to see
    with np.errstate(divide="ignore"):
        log_c, log_d = np.log(c), np.log(d)
    top = log_c[tail]
    spread = (top - log_c[:tail]).mean()

    def below(x: NDArray[np.float64]) -> NDArray[np.float64]:
        """The chance of less than x for what is below `top`."""
        chance = (1 + _SHAPE * np.maximum(top - x, 0) / spread) ** (-1 / _SHAPE)
        return np.asarray(chance, np.float64)

    ratio = np.clip(below(log_d) / below(log_c[:1]), 1 / _REACH, 1.0)
    return np.asarray(p * ratio, np.float64)


def benjamini_hochberg(p: NDArray[np.float64], q: float) -> NDArray[np.int64]:
    """Indices, ascending, of the p-values [M] rejected at false discovery rate q (1995)."""
    order = np.sort(p)
    passed = np.flatnonzero(order <= q * np.arange(1, len(p) + 1) / len(p))
    if not len(passed):
        return np.empty(0, np.int64)
    return np.flatnonzero(p <= order[passed[-1]])


def _share_interval(flagged: int, count: int) -> tuple[float, float]:
    from scipy.stats import beta

    true = int((1 - Q) * flagged)
    low = beta.ppf(0.025, true, count - true + 1) if true else 0.0
    high = beta.ppf(0.975, flagged + 1, count - flagged) if flagged < count else 1.0
    return float(low), float(high)


def _summary(d: NDArray[np.float64]) -> dict[str, float]:
    q01, q05, median = np.quantile(d, (0.01, 0.05, 0.5))
    return {"median": float(median), "q05": float(q05), "q01": float(q01)}
