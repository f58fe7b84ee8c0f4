"""Samples against real images: features, every metric, copies, classes; a record of plain data."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.evaluation.classes import Answers
from poise.evaluation.conditioning import Conditioning, examine_classes
from poise.evaluation.evaluate import FEWEST, Compared, Judged, evaluate_all, moments_alone
from poise.evaluation.extractors.domain import Encoder
from poise.evaluation.extractors.inception import Inception
from poise.evaluation.features import FeatureExtractor, build_features
from poise.evaluation.panel import FEW, Side, subset_of
from poise.evaluation.reference import Reference
from poise.scoring.real import Images, Real, Samples, features_of, space_of
from poise.settings import EvaluationConfig

_FEWEST_ALONE = 24  # reference images where nothing else is real
_OF_A_SIZE = ("pixels", "random_conv")  # feature spaces that differ from size to size of images


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
    if real.train is None:
        _check_divisible(real)
    extractor, encoder = space_of(real, settings, screen, probe=True)
    if isinstance(extractor, Encoder) and real.train is None:
        real = _without_learnt(real)
        _check_divisible(real)
    compared = _compared(samples, real, extractor, screen)
    with screen.bar("comparing", 1):
        return evaluate_all(
            compared,
            k=settings.neighbours,
            answers=_answers(compared, real, extractor, encoder),
            features=described(extractor, compared.samples),
            protocol={
                **protocol,
                **protocol_of(extractor),
                "resolution": int(samples.images.shape[2]),
                "reference": real.split,
                "reference_resized": real.resized,
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
        UsageError: the file is of other features than the settings name, or of images of another
            size where that matters.
    """
    side, known = int(samples.images.shape[2]), reference.about
    weights = None if settings.feature_weights is None else Path(settings.feature_weights)
    name = known.get("features") if settings.features == "auto" else settings.features
    extractor = build_features(str(name or "auto"), side, weights)
    if extractor.name in _OF_A_SIZE and known.get("resolution") not in (None, side):
        raise UsageError(
            f"The reference is of images of {known['resolution']} pixels, the samples have {side}.",
            expected=f"one side: {extractor.name} features change with it",
            remedy=f"Compare at --resolution {known['resolution']}.",
        )
    f = features_of(extractor, samples.images, screen, "samples")
    digest = known.get("features_digest")
    if digest not in (None, extractor.digest) or f.shape[1] != len(reference.moments.mean):
        raise UsageError(
            f"The reference holds {known.get('features', 'unknown')} features of "
            f"{len(reference.moments.mean)} dimensions ({digest or 'no digest'}), and these are "
            f"{extractor.name} of {f.shape[1]} ({extractor.digest}).",
            expected="the same network with the same weights",
            remedy="Name it with --features, or make the reference anew: poise reference SOURCE",
        )
    about = {
        **protocol,
        **protocol_of(extractor),
        "resolution": side,
        "reference": known.get("split"),
        "data": known.get("data"),
    }
    if reference.features is None:
        return moments_alone(f, reference.moments, described(extractor, Side(f)), about)
    return evaluate_all(
        Compared(Side(f, samples.images), Side(reference.features)),
        k=settings.neighbours,
        answers=None,
        features=described(extractor, Side(f)),
        protocol=about,
    )


def described(extractor: FeatureExtractor, samples: Side) -> dict[str, Any]:
    """A feature space, for the record."""
    return {
        "name": extractor.name,
        "digest": extractor.digest,
        "resizer": extractor.resizer,
        "dimensions": samples.features.shape[1],
    }


def protocol_of(extractor: FeatureExtractor) -> dict[str, Any]:
    """A feature space, for the protocol of each metric."""
    return {
        "features": extractor.name,
        "features_digest": extractor.digest,
        "resizer": extractor.resizer,
        "dtype": "float64",
    }


def _without_learnt(real: Real) -> Real:
    """The part of the reference that the features have not been learnt from."""
    rows = real.unlearnt()
    labels = None if real.labels is None else real.labels[rows]
    split = f"{real.split}, without the half that the features were learnt from"
    return replace(real, reference=real.reference[rows], labels=labels, split=split)


def _compared(
    samples: Samples, real: Real, extractor: FeatureExtractor, screen: Screen
) -> Compared:
    """Features of everything that is compared."""
    searched, labels = real.searched()
    train = mirrored = None
    if real.train is not None:
        train = Side(features_of(extractor, searched, screen, "training images"), searched)
    if real.mirrored:
        mirrored = features_of(extractor, searched.mirrored(), screen, "mirrored images")
    return Compared(
        Side(features_of(extractor, samples.images, screen, "samples"), samples.images),
        Side(features_of(extractor, real.reference, screen, "real images"), real.reference),
        train,
        mirrored,
        samples.labels,
        real.labels,
        None if real.train is None else labels,
        real.names,
        learnt=isinstance(extractor, Encoder),
        unsearched=0 if real.train is None else len(real.train) - len(searched),
    )


def _answers(
    compared: Compared, real: Real, extractor: FeatureExtractor, encoder: Encoder | None
) -> Answers | None:
    """What a probe says of these classes; the Inception score from Inception if it is there."""
    images = compared.samples.images
    assert images is not None
    found: Conditioning | None = None
    network, ours, theirs, accuracy = "", None, None, None
    if encoder is not None and encoder.num_classes:
        network, accuracy = f"class probe {encoder.digest}", encoder.accuracy
        # It is too sure of images that it has learnt.
        learnt_apart = isinstance(extractor, Encoder)  # what it has learnt is not in the reference
        rows = np.arange(len(real.reference)) if learnt_apart else real.unlearnt()
        ours, unlearnt = encoder.classify(images), encoder.classify(real.reference[rows])
        found = examine_classes(
            ours,
            unlearnt,
            real.names,
            asked=compared.labels,
            labels=None if real.labels is None else real.labels[rows],
        )
        theirs = unlearnt[subset_of(len(unlearnt), len(ours))]
    probe = network
    if isinstance(extractor, Inception):
        network = f"{extractor.name} {extractor.digest}"
        ours = extractor.logits(compared.samples.features)
        theirs = extractor.logits(compared.sides().stand_in.features)
    if ours is None or theirs is None:
        return None
    return Answers(network, ours, theirs, found, probe, accuracy)


def _check_divisible(real: Real) -> None:
    """
    Raises:
        DataError: too few real images to hold one part of them against the other.
    """
    if len(real.reference) < _FEWEST_ALONE:
        raise DataError(
            f"{len(real.reference)} reference images, and no training images",
            expected=f"at least {_FEWEST_ALONE}, better {FEW} and more, since one part of them is "
            "held against the other",
            remedy="Add real images, or name the training images with --train.",
        )


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
