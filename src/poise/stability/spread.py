"""How far apart images lie from each other, as one number."""

import numpy as np
from numpy.typing import NDArray

_MOST = 512  # images that are compared; more are thinned out evenly


def spread(images: NDArray[np.uint8]) -> float:
    """Mean distance of all pairs: root mean square difference per pixel value, 0 to 255.

    Args:
        images: [N, H, W, C] or any other shape of N bytes arrays; at most 512, evenly chosen, are
            compared. Fewer than two have no distance: nan.
    """
    distances = pair_distances(images)
    upper = distances[np.triu_indices(len(distances), 1)]
    return float(upper.mean()) if len(upper) else float("nan")


def pair_distances(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean square differences of all pairs, [N, N] with N at most 512."""
    step = max(1, -(-len(images) // _MOST))
    x = images[::step].reshape(len(images[::step]), -1).astype(np.float64)
    if not len(x):
        return np.zeros((0, 0))
    square = (x * x).sum(axis=1)
    # bytes are whole numbers, so that equal images have a distance of exactly zero
    gap = np.maximum(square[:, None] + square[None] - 2 * (x @ x.T), 0)
    distances: NDArray[np.float64] = np.sqrt(gap / x.shape[1])
    return distances
