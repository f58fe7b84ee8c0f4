"""Does the model copy? Distances of samples to the training set, judged by held-out images.

Held-out images are the yardstick: a novel sample should be as far from the training set as they
are. That holds only if the splits share no near-duplicates, so deduplicate first.
"""

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.distances import Features, blocks, centre, check_features, squared

Q = 0.1  # bound on the expected share of false alarms among flagged samples

# Features of one image differ by float32 rounding between batches, about 1e-7 of their size.
_SAME = 1e-5

_CLOSEST = 16  # pairs listed for people to look at


def nearest(train: Features, queries: Features) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The nearest row of train [N, D] for each row of queries [M, D].

    Returns:
        distances [M], exactly 0 for identical rows, and indices into train [M], the lowest on ties.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(train=train, queries=queries)
    x, y = centre(train, queries)
    indices = []
    for rows in blocks(len(y)):
        best = y.new_full((rows.stop - rows.start,), torch.inf)
        index = torch.zeros(len(best), dtype=torch.int64)
        for columns in blocks(len(x)):
            d2, i = squared(y[rows], x[columns]).min(1)
            closer = d2 < best
            best = torch.where(closer, d2, best)
            index = torch.where(closer, i + columns.start, index)
        indices.append(index)
    index = torch.cat(indices)
    # Differences of the winners: the product form above leaves rounding where 0 is the truth.
    return torch.linalg.vector_norm(y - x[index], dim=1).numpy(), index.numpy()


def copy_report(train: Features, val: Features, samples: Features) -> dict[str, Any]:
    """How close samples come to the training set, beside held-out real images.

    Each sample's conformal p-value is p = (1 + #{val distances <= its distance}) / (n_val + 1),
    and Benjamini and Hochberg's step-up rule at q = 0.1 flags samples. The p-values share one
    set of held-out images, so the false discovery rate is held approximately.

    Args:
        train: [N, D]; may contain mirrored images too, to find mirrored copies.
        val: real images the model has not seen, [V, D].
        samples: [M, D].

    Returns:
        samples, val: {median, q05, q01} of the distance to the nearest training image.
        median_ratio: samples' median over val's; far below 1 is copying. None if val's is 0,
            which means that the splits share images.
        suspicious: samples closer than 99 % of val; suspicious_expected: M/100, their number if
            nothing is copied.
        flagged: number of samples the test calls copies; flagged_indices: which, nearest first;
            flagged_train_indices: the training row that each resembles.
        closest: the 16 samples nearest to a training image: {sample, train, distance}.
        detectable_from: fewest copies that the test can flag at these sizes.
        exact_duplicates: samples whose features are those of a training image, up to rounding.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(train=train, val=val, samples=samples)
    d, index = nearest(train, samples)
    d_val, _ = nearest(train, val)
    p = conformal_p(d_val, d)
    flagged = benjamini_hochberg(p, Q)
    flagged = flagged[np.argsort(d[flagged], kind="stable")]
    summary, summary_val = _summary(d), _summary(d_val)
    order = np.argsort(d, kind="stable")[:_CLOSEST]
    scale = float(np.sqrt(train.var(0).sum()))
    median_val = summary_val["median"]
    return {
        "samples": summary,
        "val": summary_val,
        "median_ratio": summary["median"] / median_val if median_val > _SAME * scale else None,
        "suspicious": int((d < summary_val["q01"]).sum()),
        "suspicious_expected": len(d) / 100,
        "q": Q,
        "flagged": len(flagged),
        "flagged_indices": flagged.tolist(),
        "flagged_train_indices": index[flagged].tolist(),
        "closest": [
            {"sample": int(i), "train": int(index[i]), "distance": float(d[i])} for i in order
        ],
        "detectable_from": math.ceil(len(d) / (Q * (len(d_val) + 1))),
        "exact_duplicates": int((d <= _SAME * scale).sum()),
    }


def conformal_p(calibration: NDArray[np.float64], d: NDArray[np.float64]) -> NDArray[np.float64]:
    """p-values [M] of distances d [M] against those of novel images, calibration [V]."""
    at_most = np.searchsorted(np.sort(calibration), d, side="right")
    return np.asarray((1 + at_most) / (len(calibration) + 1), np.float64)


def benjamini_hochberg(p: NDArray[np.float64], q: float) -> NDArray[np.int64]:
    """Indices, ascending, of the p-values [M] rejected at false discovery rate q (1995)."""
    order = np.sort(p)
    passed = np.flatnonzero(order <= q * np.arange(1, len(p) + 1) / len(p))
    if not len(passed):
        return np.empty(0, np.int64)
    return np.flatnonzero(p <= order[passed[-1]])


def _summary(d: NDArray[np.float64]) -> dict[str, float]:
    q01, q05, median = np.quantile(d, (0.01, 0.05, 0.5))
    return {"median": float(median), "q05": float(q05), "q01": float(q01)}
