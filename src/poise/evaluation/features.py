"""Images -> feature vectors in which samples and real images are compared.

Scores in different feature spaces are not comparable, so each extractor carries a name and a digest
that belong beside every score.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data.imageset import Subset
from poise.errors import DataError, UsageError, nearest
from poise.evaluation.extractors.fixed import Pixels, RandomConv


class FeatureExtractor(Protocol):
    """The seam for other feature networks.

    Attributes:
        name: what the scores are labelled with.
        digest: short hash of everything that decides the features.
        resizer: how images are brought to the network's size; "none" where it takes any.
    """

    name: str
    digest: str
    resizer: str

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 or float64 [B, D], on the images' device."""
        ...


PRETRAINED = ("inception", "dinov2", "clip")
FEATURES = ("pixels", "random_conv", "domain", *PRETRAINED)
_SMALL = 16  # pixels of a side up to which the pixels themselves are the features


def features_named(name: str, resolution: int) -> str:
    """The feature space that `name` stands for; auto is pixels up to 16x16 and random_conv above.

    Raises:
        UsageError: an unknown name.
    """
    if name == "auto":
        return "pixels" if resolution <= _SMALL else "random_conv"
    if name in FEATURES:
        return name
    known = ("auto", *FEATURES)
    raise UsageError(
        f"unknown features {name!r}",
        expected=f"one of {', '.join(known)}",
        remedy=nearest(name, known),
    )


def build_features(name: str, resolution: int, weights: Path | None = None) -> FeatureExtractor:
    """The extractor called `name` that needs no training images.

    Args:
        name: auto, pixels, random_conv, inception, dinov2 or clip.
        resolution: side of the images, which decides what auto is.
        weights: a file, or a folder of Hugging Face's, with the weights of a pretrained network;
            None: this user's caches, else a download.

    Raises:
        UsageError: an unknown name, or domain, which must be trained first.
        PoiseError: no weights are to be had, or they are not of this network.
    """
    name = features_named(name, resolution)
    if name == "pixels":
        return Pixels()
    if name == "random_conv":
        return RandomConv()
    if name == "domain":
        raise UsageError(
            "The features 'domain' are trained on a data set first.",
            expected="an evaluation with training images",
        )
    from poise.evaluation.extractors.pretrained import pretrained

    return pretrained(name, weights)


def extract(
    extractor: FeatureExtractor,
    images: NDArray[np.uint8] | Subset | torch.Tensor,
    batch: int = 256,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Features of all images.

    Args:
        extractor: the feature space.
        images: uint8 [N, C, H, W].
        batch: images per call; changes speed and memory, and features by float32 rounding only.
        device: where the network works.
        progress: called with images done and their number.

    Returns:
        float64 [N, D].

    Raises:
        DataError: images that are not uint8 [N, C, H, W] or none; features that are not finite.
    """
    if images.ndim != 4 or len(images) == 0 or images.dtype not in (np.uint8, torch.uint8):
        raise DataError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}",
            expected="at least one image as uint8 [N, C, H, W]",
        )
    parts: list[NDArray[np.float64]] = []
    with torch.inference_mode():
        for start in range(0, len(images), batch):
            x = images[start : start + batch]
            x = x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x))
            f = extractor(x.to(device)).to("cpu", torch.float64).numpy()
            _refuse_non_finite(f, extractor.name, start)
            parts.append(f)
            if progress is not None:
                progress(min(start + batch, len(images)), len(images))
    return np.concatenate(parts)


def _refuse_non_finite(f: NDArray[np.float64], name: str, start: int) -> None:
    bad: Sequence[int] = np.flatnonzero(~np.isfinite(f).all(1)).tolist()
    if bad:
        raise DataError(
            f"the {name!r} features of image {start + bad[0]} (and {len(bad) - 1} more of its "
            "batch) are not finite",
            expected="finite numbers",
            remedy="check the weights of the feature extractor",
        )
