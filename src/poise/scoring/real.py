"""Samples, the real images beside them, and the feature space in which they are compared."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.console import Screen
from poise.data.imageset import Subset
from poise.errors import UsageError
from poise.evaluation.cache import cache_folder, cached_extract, content_hash
from poise.evaluation.extractors.domain import Encoder, cached_encoder, train_encoder
from poise.evaluation.features import (
    FeatureExtractor,
    build_features,
    extract,
    features_named,
)
from poise.evaluation.panel import subset_of
from poise.settings import EvaluationConfig

Images = NDArray[np.uint8] | Subset
Labels = NDArray[np.int64]

SEARCHED = 100_000  # training images that are searched for copies at most, mirrored ones included


@dataclass(frozen=True)
class Samples:
    """What a model made.

    Attributes:
        images: uint8 [M, C, H, W].
        labels: the class that was asked of each [M]; None: none was, or it is not known.
    """

    images: Images
    labels: Labels | None = None


@dataclass(frozen=True)
class Real:
    """Real images.

    Attributes:
        reference: what samples are compared with, uint8 [N, C, H, W].
        labels: their classes [N]; None: there are none.
        train: what the model was trained on; None: not known. Then the reference itself is searched
            for copies.
        train_labels: their classes.
        names: of the classes; empty: there are none.
        split: what the reference is.
        data: hash of the data.
        flips: whether images may be mirrored and still show the same.
        mirrored: whether mirrored copies are looked for too.
        resized: how the images were brought to the samples' side; "none" if they had it.
    """

    reference: Images
    labels: Labels | None
    train: Images | None
    train_labels: Labels | None
    names: tuple[str, ...]
    split: str
    data: str
    flips: bool = False
    mirrored: bool = True
    resized: str = "none"

    def learnable(self) -> tuple[Images, Labels | None]:
        """What an encoder is trained on: half of the reference if there is nothing else."""
        if self.train is not None:
            return self.train, self.train_labels
        rows = np.setdiff1d(np.arange(len(self.reference)), self.unlearnt())
        return self.reference[rows], None if self.labels is None else self.labels[rows]

    def unlearnt(self) -> NDArray[np.int64]:
        """Indices of the reference images that an encoder has not been trained on."""
        N = len(self.reference)
        return np.arange(N) if self.train is not None else subset_of(N, N - N // 2)

    def searched(self) -> tuple[Subset, Labels | None]:
        """What copies are looked for among: the training images, or a part of very many."""
        if self.train is None:
            return Subset(self.reference, np.arange(len(self.reference))), self.labels
        most = SEARCHED // 2 if self.mirrored else SEARCHED
        rows = subset_of(len(self.train), min(most, len(self.train)))
        labels = self.train_labels
        return Subset(self.train, rows), None if labels is None else labels[rows]


def space_of(
    real: Real, settings: EvaluationConfig, screen: Screen, *, probe: bool = False
) -> tuple[FeatureExtractor, Encoder | None]:
    """The feature space of the settings, and a network that knows the classes where it is wanted.

    It is trained once on these images and kept in the cache; without classes, or with
    `encoder_images` at 0, there is none.

    Args:
        real: the images.
        settings: feature space, and how long the network may learn.
        screen: where progress is shown.
        probe: whether the classes are asked about.

    Raises:
        UsageError: domain features without leave to train a network.
        PoiseError: weights of a pretrained network are not to be had.
    """
    side = int(real.reference.shape[2])
    images, labels = real.learnable()
    domain = features_named(settings.features, side) == "domain"
    if domain and settings.encoder_images == 0:
        raise UsageError(
            "Domain features come from a network that evaluation.encoder_images = 0 forbids.",
            expected="another feature space, or a number of images that it may see",
        )
    encoder = None
    if domain or (probe and settings.encoder_images != 0 and labels is not None):
        known = labels if len(real.names) > 1 else None
        if domain or known is not None:
            encoder = _encoder(images, known, real, settings, screen)
    if domain:
        assert encoder is not None
        return encoder, encoder if encoder.num_classes else None
    weights = None if settings.feature_weights is None else Path(settings.feature_weights)
    return build_features(settings.features, side, weights), encoder


def _encoder(
    images: Images, labels: Labels | None, real: Real, settings: EvaluationConfig, screen: Screen
) -> Encoder:
    sha = hashlib.sha256(content_hash(images).encode())
    sha.update(b"" if labels is None else labels.tobytes())
    sha.update(f"{settings.encoder_images} {real.flips} {real.names!r}".encode())

    def make() -> Encoder:
        with screen.bar("learning what these images show", 1) as bar:
            return train_encoder(
                images,
                labels,
                len(real.names),
                images_seen=settings.encoder_images,
                flips=real.flips,
                progress=bar.show,
            )

    return cached_encoder(cache_folder() / "encoders", sha.hexdigest()[:32], make)


def features_of(
    extractor: FeatureExtractor, images: Any, screen: Screen, what: str
) -> NDArray[np.float64]:
    """Features [N, D], from the cache where they are known; on a CUDA device if there is one."""
    with screen.bar(f"features of {what}", len(images)) as bar:
        return cached_extract(extractor, images, device=_device(), progress=bar.show)


def fresh_features(extractor: FeatureExtractor, images: Any) -> NDArray[np.float64]:
    """Features [N, D] of samples that nobody will ask for again."""
    return extract(extractor, images, device=_device())


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
