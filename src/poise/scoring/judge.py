"""Samples against real images: features, every metric, copies, classes; a record of plain data."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.evaluation.cache import cache_folder, cached_extract, content_hash
from poise.evaluation.classes import Answers
from poise.evaluation.conditioning import examine_classes
from poise.evaluation.evaluate import FEWEST, Compared, Judged, evaluate_all, moments_alone
from poise.evaluation.extractors.domain import Encoder, cached_encoder, train_encoder
from poise.evaluation.extractors.inception import Inception
from poise.evaluation.features import FeatureExtractor, build_features, features_named
from poise.evaluation.panel import FEW, Side, subset_of
from poise.evaluation.reference import Reference
from poise.settings import EvaluationConfig

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


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

    def learnable(self) -> tuple[Images, Labels | None]:
        """What an encoder is trained on: half of the reference if there is nothing else."""
        if self.train is not None:
            return self.train, self.train_labels
        rows = np.setdiff1d(np.arange(len(self.reference)), self.unlearnt())
        return self.reference[rows], None if self.labels is None else self.labels[rows]

    def unlearnt(self) -> NDArray[np.int64]:
        """Indices of the reference images that an encoder has not been trained on."""
        N = len(self.reference)
        if self.train is not None:
            return np.arange(N)
        return subset_of(N, N - N // 2)


def judge(
    samples: Samples,
    real: Real,
    settings: EvaluationConfig,
    protocol: Mapping[str, Any],
    screen: Screen,
) -> Judged:
    """Every metric of `samples` against `real`.

    Args:
        samples: at least 10 images.
        real: at least 10 images of the same shape.
        settings: feature space, neighbours, how long an encoder may learn.
        protocol: what else each metric must carry: sampler, seed, weights.
        screen: where progress is shown.

    Raises:
        DataError: too few images, or of different shapes.
    """
    _check(samples=samples.images, reference=real.reference, training=real.train)
    encoder = encoder_of(real, settings, screen)
    extractor = extractor_of(real, settings, encoder)
    compared = _compared(samples, real, extractor, screen)
    with screen.bar("comparing", 1):
        return evaluate_all(
            compared,
            k=settings.neighbours,
            answers=_answers(compared, real, extractor, encoder),
            features=_described(extractor, compared.samples),
            protocol={
                **protocol,
                **_protocol(extractor, int(samples.images.shape[2])),
                "reference": real.split,
                "data": real.data,
            },
        )


def judge_features(
    samples: Samples,
    reference: Reference,
    settings: EvaluationConfig,
    protocol: Mapping[str, Any],
    screen: Screen,
) -> Judged:
    """What can be said of samples against a file of statistics: no images, no classes.

    Raises:
        UsageError: the file is of other features than the settings name.
    """
    side = int(samples.images.shape[2])
    weights = None if settings.feature_weights is None else Path(settings.feature_weights)
    name = reference.about.get("features") if settings.features == "auto" else settings.features
    extractor = build_features(str(name or "auto"), side, weights)
    known = reference.about.get("features_digest")
    f = features_of(extractor, samples.images, screen, "samples")
    if known not in (None, extractor.digest) or f.shape[1] != len(reference.moments.mean):
        raise UsageError(
            f"The reference holds {reference.about.get('features', 'unknown')} features of "
            f"{len(reference.moments.mean)} dimensions ({known or 'no digest'}), and these are "
            f"{extractor.name} of {f.shape[1]} ({extractor.digest}).",
            expected="the same network with the same weights",
            remedy="Name it with --features, or make the reference anew: poise reference SOURCE",
        )
    about = {**protocol, **_protocol(extractor, side), "reference": reference.about.get("split")}
    about["data"] = reference.about.get("data")
    described = _described(extractor, Side(f))
    if reference.features is None:
        return moments_alone(f, reference.moments, described, about)
    return evaluate_all(
        Compared(Side(f, samples.images), Side(reference.features)),
        k=settings.neighbours,
        answers=None,
        features=described,
        protocol=about,
    )


def _compared(
    samples: Samples, real: Real, extractor: FeatureExtractor, screen: Screen
) -> Compared:
    """Features of everything that is compared."""
    train = None
    if real.train is not None:
        train = Side(features_of(extractor, real.train, screen, "training images"), real.train)
    mirrored = None
    if real.mirrored:
        searched = np.asarray((real.reference if real.train is None else real.train)[:])
        turned = np.ascontiguousarray(searched[..., ::-1])
        mirrored = features_of(extractor, turned, screen, "mirrored images")
    return Compared(
        Side(features_of(extractor, samples.images, screen, "samples"), samples.images),
        Side(features_of(extractor, real.reference, screen, "real images"), real.reference),
        train,
        mirrored,
        samples.labels,
        real.labels,
        real.train_labels,
        real.names,
    )


def _answers(
    compared: Compared, real: Real, extractor: FeatureExtractor, encoder: Encoder | None
) -> Answers | None:
    """What the probe of these classes says, or else a network with classes of its own."""
    samples = compared.samples.images
    assert samples is not None
    if encoder is not None and encoder.num_classes:
        rows = real.unlearnt()  # it is too sure of images that it has learnt
        classified, unlearnt = encoder.classify(samples), encoder.classify(real.reference[rows])
        found = examine_classes(
            classified,
            unlearnt,
            real.names,
            asked=compared.labels,
            labels=None if real.labels is None else real.labels[rows],
        )
        return Answers(
            f"class probe {encoder.digest}",
            classified,
            unlearnt[subset_of(len(unlearnt), len(samples))],
            found,
            encoder.accuracy,
        )
    if isinstance(extractor, Inception):
        ours, real_ones = compared.samples.features, compared.sides().stand_in.features
        return Answers(
            f"{extractor.name} {extractor.digest}",
            extractor.logits(ours),
            extractor.logits(real_ones),
        )
    return None


def features_of(
    extractor: FeatureExtractor, images: Images, screen: Screen | None, what: str
) -> NDArray[np.float64]:
    """Features [N, D], from the cache where they are known."""
    if screen is None:
        return cached_extract(extractor, images)
    with screen.bar(f"features of {what}", len(images)) as bar:
        return cached_extract(extractor, images, progress=bar.show)


def _protocol(extractor: FeatureExtractor, side: int) -> dict[str, Any]:
    return {
        "features": extractor.name,
        "features_digest": extractor.digest,
        "resizer": extractor.resizer,
        "resolution": side,
        "dtype": "float64",
    }


def _described(extractor: FeatureExtractor, samples: Side) -> dict[str, Any]:
    return {
        "name": extractor.name,
        "digest": extractor.digest,
        "resizer": extractor.resizer,
        "dimensions": samples.features.shape[1],
    }


def _check(**sets: Images | None) -> None:
    """
    Raises:
        DataError: fewer images than mean anything, or sets of different shapes.
    """
    shape = None
    for name, images in sets.items():
        if images is None:
            continue
        if images.ndim != 4 or images.dtype != np.uint8:
            raise DataError(
                f"{name} images of shape {images.shape} and type {images.dtype}",
                expected="uint8 [N, C, H, W]",
            )
        if len(images) < FEWEST:
            raise DataError(
                f"{len(images)} {name} images",
                expected=f"at least {FEWEST}, better {FEW} and more",
                remedy=f"provide more {name} images",
            )
        if shape not in (None, images.shape[1:]):
            raise DataError(
                f"{name} images of shape {images.shape[1:]} beside samples of shape {shape}",
                expected="one number of channels, height and width for all sets",
                remedy="compare with the data set that the model was trained on",
            )
        shape = images.shape[1:]


def encoder_of(real: Real, settings: EvaluationConfig, screen: Screen) -> Encoder | None:
    """The network that tells the classes apart, or gives the domain features; learnt once.

    None where nobody asks for it: without classes and with other features, or by the settings.
    """
    images, labels = real.learnable()
    wanted = features_named(settings.features, int(images.shape[2])) == "domain"
    if settings.encoder_images == 0 or (not wanted and (labels is None or len(real.names) < 2)):
        return None
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


def extractor_of(
    real: Real, settings: EvaluationConfig, encoder: Encoder | None
) -> FeatureExtractor:
    """The feature space of the settings."""
    resolution = int(real.reference.shape[2])
    if features_named(settings.features, resolution) == "domain" and encoder is not None:
        return encoder
    weights = None if settings.feature_weights is None else Path(settings.feature_weights)
    return build_features(settings.features, resolution, weights)
