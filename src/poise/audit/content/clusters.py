"""Groups of pictures that look alike, and a flat map of them.

Everything is decided by the vectors and the names alone: the same set gives the same groups and
the same map, however the work was divided.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float32]

_FEWEST, _MOST = 4, 40  # clusters
_KEPT = 32  # principal components
_SEED = 0
_MAP_ITERATIONS = 500
_STANDARD = 1.4826  # times the median absolute deviation: a standard deviation, if Gaussian
_LEAST_SPREAD = 0.25  # of logarithms: below a factor of about 3 nothing is unusual
_FAR = 3.0  # robust standard deviations
_JUDGED = 5  # images before the width of a cluster means something


@dataclass(frozen=True)
class Clusters:
    """Groups of n described images.

    Attributes:
        of: int64 [n], the cluster of each image, 0 the largest.
        distance: float64 [n], from each image to the centre of its cluster.
    """

    of: NDArray[np.int64]
    distance: NDArray[np.float64]

    @property
    def count(self) -> int:
        return int(self.of.max()) + 1 if len(self.of) else 0


def stable_order(names: Sequence[str]) -> NDArray[np.int64]:
    """Positions of `names` in an order that looks random and depends on the names alone.

    A sample of any size is a beginning of this order: samples of two sizes are nested, and a name
    that is added moves no other.
    """
    keys = [hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=8) for name in names]
    digests = [key.digest() for key in keys]
    return np.array(sorted(range(len(names)), key=lambda i: (digests[i], names[i])), np.int64)


def usual_count(images: int) -> int:
    """How many clusters a set of `images` gets: sqrt(n / 2), from 4 to 40, at most one each."""
    return min(max(_FEWEST, min(_MOST, round(float(np.sqrt(images / 2))))), images)


def components(features: Features, most: int = _KEPT) -> NDArray[np.float64]:
    """The first principal components [N, at most `most`] of features [N, D]."""
    f = np.asarray(features, np.float32)
    mean = f.mean(0, dtype=np.float64)
    # Over D x D, which is small, instead of N x D. The shift is applied to the covariance, so
    # that no centred copy is needed.
    second = (f.T @ f).astype(np.float64) / len(f) - np.outer(mean, mean)
    _, vectors = np.linalg.eigh(second)
    v = vectors[:, ::-1][:, :most]
    # The sign of an eigenvector is arbitrary: its largest entry is made positive.
    v = v * np.sign(v[np.abs(v).argmax(0), np.arange(v.shape[1])])
    found: NDArray[np.float64] = f @ v.astype(np.float32) - mean @ v
    return found


def find_clusters(features: Features, count: int | None = None) -> Clusters:
    """k-means (Lloyd 1982, in small batches: Sculley 2010) on principal components, fixed seed.

    Args:
        features: float32 [N, D].
        count: how many clusters; None: by the number of images. Fewer come out where images
            coincide.
    """
    if len(features) == 0:
        return Clusters(np.zeros(0, np.int64), np.zeros(0))
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    x = components(features)
    different = len(np.unique(np.round(x, 6), axis=0))
    k = max(1, min(count or usual_count(len(x)), different))
    with threadpool_limits(1):  # the order of a sum must not depend on the number of threads
        means = MiniBatchKMeans(k, random_state=_SEED, n_init=3, batch_size=1024).fit(x)
        raw = means.predict(x)
    distance = np.linalg.norm(x - means.cluster_centers_[raw], axis=1)
    sizes = np.bincount(raw, minlength=k)
    ranks = np.empty(k, np.int64)
    ranks[np.argsort(-sizes, kind="stable")] = np.arange(k)
    return Clusters(ranks[raw], distance)


def cluster_of(features: Features) -> NDArray[np.int64]:
    """The cluster of every image, int64 [N], 0 the largest; for balance where there are no labels.

    Args:
        features: float32 [N, D] of the images to balance, broken ones left out.
    """
    return find_clusters(features).of


def cluster_kinds(clusters: Clusters) -> list[str]:
    """For each cluster "near-empty", "crowded" or "usual", against the median cluster.

    Robust: logarithms of size and of width (mean distance to the centre) are compared with their
    medians in units of the median absolute deviation, which a few odd clusters cannot move.
    """
    k = clusters.count
    sizes = np.bincount(clusters.of, minlength=k)
    widths = np.bincount(clusters.of, clusters.distance, minlength=k) / np.maximum(sizes, 1)
    by_size = _robust(np.log(np.maximum(sizes, 1)))
    by_width = _robust(np.log(np.maximum(widths, 1e-3)))
    by_width = np.where(sizes >= _JUDGED, by_width, 0)
    kinds = []
    for size, width in zip(by_size, by_width, strict=True):
        if size < -_FAR or (width > _FAR and size <= _FAR):
            kinds.append("near-empty")
        else:
            kinds.append("crowded" if size > _FAR or width < -_FAR else "usual")
    return kinds


def _robust(x: NDArray[Any]) -> NDArray[np.float64]:
    middle = np.median(x) if len(x) else 0.0
    spread = _STANDARD * np.median(np.abs(x - middle)) if len(x) else 1.0
    scores: NDArray[np.float64] = (x - middle) / max(float(spread), _LEAST_SPREAD * _STANDARD)
    return scores


def flat_map(features: Features) -> NDArray[np.float64]:
    """Two coordinates in [0, 1] for each of N images so that alike images lie together.

    t-SNE (van der Maaten & Hinton 2008) started from the first two principal components; these
    alone below 30 images.

    Args:
        features: float32 [N, D]; N up to about 1,500 (3 s).

    Returns:
        float64 [N, 2].
    """
    if len(features) == 0:
        return np.zeros((0, 2))
    x = components(features)
    if x.shape[1] < 2:
        x = np.pad(x, ((0, 0), (0, 2 - x.shape[1])))
    xy = x[:, :2]
    spread = float(xy[:, 0].std())
    if len(x) >= 30 and spread > 1e-6:
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits

        start = (xy / spread * 1e-4).astype(np.float32)
        with threadpool_limits(1):
            model = TSNE(
                init=start,
                perplexity=min(30.0, (len(x) - 1) / 3),
                max_iter=_MAP_ITERATIONS,
                random_state=_SEED,
                n_jobs=1,
            )
            xy = model.fit_transform(x.astype(np.float32)).astype(np.float64)
    low, high = xy.min(0), xy.max(0)
    return np.where(high > low, (xy - low) / np.maximum(high - low, 1e-12), 0.5)
