"""One call from three sets of images to all scores, each beside its value for real images."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import DataError
from poise.evaluation.coverage import precision_recall_density_coverage
from poise.evaluation.distances import Features
from poise.evaluation.features import FeatureExtractor, extract
from poise.evaluation.fidelity import frechet_distance, kernel_distance
from poise.evaluation.memorisation import copy_report
from poise.runtime import generator_at

Images = NDArray[np.uint8]

FEWEST = 10  # images below which no figure means anything
_FEW = 100  # images below which figures are mostly chance
_BETTER = {
    "frechet_distance": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "density": "higher",
    "coverage": "higher",
    "nearest_train_distance": "match",
}


def score(
    samples: Images,
    reference: Images,
    train: Images,
    *,
    extractor: FeatureExtractor,
    k: int = 5,
    flips: bool = False,
) -> dict[str, Any]:
    """All scores of samples against held-out images, and of real images in the same role.

    "real" is what a perfect model would get at these sizes: training images, as many as there
    are samples, chosen by a fixed seed, take the samples' place; for nearest_train_distance, the
    reference images do. A score is good when it is near its "real" value, not when it is 0 or 1.

    Args:
        samples: generated images, uint8 [M, C, H, W].
        reference: real images the model has not seen (validation or test), uint8 [N, C, H, W].
        train: the images it was trained on, uint8 [T, C, H, W].
        extractor: the feature space.
        k: neighbours of precision, recall, density and coverage.
        flips: also search mirrored training images for copies; for models trained with flips.

    Returns:
        metrics: name -> {value, real, n: [M, N], better: "lower" | "higher" | "match"}.
        copying: see `memorisation.copy_report`; flagged_train_indices count training images,
            mirrored or not.
        features: {name, digest, dimensions}.
        warnings: sentences about what weakens the figures.
        Everything is finite and JSON.

    Raises:
        DataError: fewer than 10 images in a set, or sets of different sizes or channels.
        UsageError: k not below the number of images of each set.
    """
    _check(sample=samples, reference=reference, training=train)
    chosen = _subset(len(train), len(samples))
    f, f_ref, f_train = (extract(extractor, images) for images in (samples, reference, train))
    values = compare(f, f_ref, k)
    real = compare(f_train[chosen], f_ref, k)
    if flips:
        mirrored = extract(extractor, np.ascontiguousarray(train[..., ::-1]))
        f_train = np.concatenate([f_train, mirrored])
    copying = copy_report(f_train, f_ref, f)
    copying["flagged_train_indices"] = [i % len(train) for i in copying["flagged_train_indices"]]
    for pair in copying["closest"]:
        pair["train"] %= len(train)
    values["nearest_train_distance"] = copying["samples"]["median"]
    real["nearest_train_distance"] = copying["val"]["median"]
    n = [len(samples), len(reference)]
    D = f.shape[1]
    return {
        "metrics": {
            name: {"value": values[name], "real": real[name], "n": n, "better": better}
            for name, better in _BETTER.items()
        },
        "copying": copying,
        "features": {"name": extractor.name, "digest": extractor.digest, "dimensions": D},
        "warnings": _warnings(n[0], n[1], len(train), D, copying),
    }


def _check(**sets: Images) -> None:
    shape = None
    for name, images in sets.items():
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"{name} images of shape {images.shape} and type {images.dtype}",
                expected="uint8 [N, C, H, W]",
            )
        if len(images) < FEWEST:
            raise DataError(
                f"{len(images)} {name} images",
                expected=f"at least {FEWEST}, better {_FEW} and more",
                remedy=f"provide more {name} images",
            )
        if shape not in (None, images.shape[1:]):
            raise DataError(
                f"{name} images of shape {images.shape[1:]} beside samples of shape {shape}",
                expected="one number of channels, height and width for all sets",
                remedy="compare with the dataset that the model was trained on",
            )
        shape = images.shape[1:]


def _subset(n: int, size: int) -> NDArray[np.int64]:
    """`size` different indices below n (all n if fewer), ascending, always the same ones."""
    order = torch.randperm(n, generator=generator_at(0, size, "evaluation"))
    return order[:size].sort().values.numpy()


def compare(f: Features, f_ref: Features, k: int) -> dict[str, float]:
    return {
        "frechet_distance": frechet_distance(f, f_ref),
        "kernel_distance": kernel_distance(f, f_ref),
        **precision_recall_density_coverage(f_ref, f, k),
    }


def _warnings(M: int, N: int, T: int, D: int, copying: dict[str, Any]) -> list[str]:
    """Plain sentences on M samples, N reference and T training images in D dimensions."""
    found = []
    for count, name in ((M, "samples"), (N, "reference images")):
        if count < _FEW:
            found.append(f"Only {count} {name}: below {_FEW}, every score is mostly chance.")
        if count <= D:
            found.append(
                f"{count} {name} for {D} feature dimensions: the Fréchet distance is far too high; "
                "compare it with its real value only, or rely on the kernel distance."
            )
    if T < M:
        found.append(
            f"Only {T} training images for {M} samples: the real values come from fewer images "
            "than the scores."
        )
    if copying["median_ratio"] is None:
        found.append(
            "Most reference images are training images too: copies cannot be told from novelty."
        )
    if copying["detectable_from"] > max(M / 10, 1):
        found.append(
            f"With {N} reference images the copy test needs at least {copying['detectable_from']} "
            f"copies among {M} samples to flag any."
        )
    return found
