"""What a grid of samples shows: whether they are as many images as they seem."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from poise.stability.incident import Sign
from poise.stability.spread import pair_distances

_SHARE = 0.25  # of the training images' distance
_EQUAL = 0.02  # of the training images' distance; nearer ones are the same picture
_CONTRAST = 4.0  # least standard deviation within an image, in bytes; paler ones are not yet images


class DiversityCollapse:
    """Samples that resemble each other far more than training images do.

    Pairs of one class are compared with pairs of one class, so that few classes do not look like
    collapse. A run that has hardly begun draws pale, alike images; it is judged by the second rule
    (equal pictures) alone until its samples were diverse once or half of it is over.
    """

    def __init__(
        self, images: NDArray[np.uint8], labels: NDArray[np.int64] | None, total_images: int
    ) -> None:
        """
        Args:
            images: training images [N, ...]; some hundred are enough.
            labels: their classes [N], or None.
            total_images: images seen at the end of the run.
        """
        self._total = total_images
        distances = pair_distances(images)
        kept = None if labels is None else labels[:: max(1, -(-len(images) // len(distances)))]
        self._within = _mean(distances, _pairs(kept, len(distances), within=True))
        self._all = _mean(distances, _pairs(None, len(distances), within=False))
        self._diverse, self._last = False, 0

    def look(
        self, images: NDArray[np.uint8], labels: Sequence[int] | None, images_seen: int
    ) -> list[Sign]:
        """Signs of one grid.

        Args:
            images: samples [N, H, W, C], each from its own seed.
            labels: the classes that were asked for [N], or None.
            images_seen: of the run.
        """
        since, self._last = self._last, images_seen
        if len(images) < 2:
            return []
        rows = None if labels is None else np.asarray(labels)
        distances = pair_distances(images)
        own = _pairs(rows, len(distances), within=True)
        usual = self._within
        if not own.any():
            own, usual = _pairs(None, len(distances), within=False), self._all
        if not usual > 0:
            return []
        ratio = _mean(distances, own) / usual
        contrast = float(np.median(images.reshape(len(images), -1).std(axis=1)))
        alike = ((distances < _EQUAL * usual) & own).any(axis=1).mean()
        equal = alike >= 0.5 and contrast > _CONTRAST
        known = self._diverse or images_seen >= self._total / 2
        self._diverse = self._diverse or ratio > 2 * _SHARE
        if not equal and not (known and ratio < _SHARE):
            return []
        return [self._sign(images_seen, since, ratio, float(alike), equal=bool(equal))]

    def _sign(
        self, images_seen: int, since: int, ratio: float, alike: float, *, equal: bool
    ) -> Sign:
        text = (
            f"{alike:.0%} of the samples are the same picture as another one, though each has its "
            "own seed."
            if equal
            else f"Samples lie only {ratio:.0%} as far apart as training images of the same class."
        )
        return Sign(
            "diversity-collapse",
            "critical" if equal else "warning",
            images_seen,
            since,
            text,
            {"distance_ratio": ratio, "alike": alike},
        )

    def state(self) -> dict[str, int | bool]:
        """Plain data, for a checkpoint."""
        return {"diverse": self._diverse, "last": self._last}

    def restore(self, state: dict[str, int | bool]) -> None:
        """Take over what `state` gave."""
        self._diverse, self._last = bool(state["diverse"]), int(state["last"])


def _pairs(labels: NDArray[np.int64] | None, count: int, *, within: bool) -> NDArray[np.bool_]:
    """Which pairs count, [N, N]; without classes all are of one."""
    pairs = ~np.eye(count, dtype=bool)
    return pairs if labels is None or not within else pairs & (labels[:, None] == labels[None])


def _mean(distances: NDArray[np.float64], pairs: NDArray[np.bool_]) -> float:
    return float(distances[pairs].mean()) if pairs.any() else math.nan
