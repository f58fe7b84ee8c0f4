"""From features and images of samples and real images to a record of all scores, as plain data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.classes import Answers
from poise.evaluation.coverage import (
    coverage_estimates,
    precision_recall_density_coverage,
    realism,
)
from poise.evaluation.detail import detail_estimate
from poise.evaluation.distances import Features
from poise.evaluation.diversity import groups
from poise.evaluation.estimate import CONFIDENCE, Estimate
from poise.evaluation.fidelity import frechet_distance, frechet_estimate
from poise.evaluation.kernels import kernel_distance, kernel_estimate
from poise.evaluation.memorisation import Surroundings, copies, surroundings
from poise.evaluation.metric import METRICS, Metric, finite, named
from poise.evaluation.moments import Moments
from poise.evaluation.novelty import novelty
from poise.evaluation.panel import (
    FEW,
    Side,
    Sides,
    diversity,
    few,
    fidelity,
    median_error,
    rank_mark,
    subset_of,
)
from poise.runtime import generator_at

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]

FEWEST = 10  # images below which no figure means anything
_FEWEST_OF_CLASS = 50  # images of a class, on either side, to score it by itself


@dataclass(frozen=True)
class Judged:
    """What an evaluation found.

    Attributes:
        record: plain data; everything that is shown or kept.
        realism: of each sample [M]: how well it lies within the real images.
        missed: indices of reference images of kinds that the samples miss, for people to look at.
        nearest: the searched image that is nearest to each sample [M].
    """

    record: dict[str, Any]
    realism: NDArray[np.float64]
    missed: NDArray[np.int64]
    nearest: NDArray[np.int64]


@dataclass(frozen=True)
class Compared:
    """All that an evaluation compares.

    Attributes:
        samples: what a model made.
        reference: real images; held out if `train` is there.
        train: what the model was trained on; None: not known, the reference is searched for copies.
        mirrored: features of the searched images mirrored; None: mirrored copies are not sought.
        labels: the class asked of each sample; None: not known.
        reference_labels, train_labels: classes of real images; None: there are none.
        names: of the classes.
        learnt: whether the features were learnt from the training images, which then show them as
            no other images do and cannot stand in for samples.
        unsearched: training images beyond those in `train`, among which no copy is looked for.
    """

    samples: Side
    reference: Side
    train: Side | None = None
    mirrored: Features | None = None
    labels: Labels | None = None
    reference_labels: Labels | None = None
    train_labels: Labels | None = None
    names: tuple[str, ...] = ()
    learnt: bool = False
    unsearched: int = 0

    def sides(self) -> Sides:
        """With real images in the samples' place: training images, else some of the reference.

        The reference is divided like samples to reference, since shares depend on that ratio, but
        neither part gets less than a quarter.
        """
        M, N = len(self.samples), len(self.reference)
        if self.train is not None and not self.learnt:
            stand_in = self.train.take(subset_of(len(self.train), M))
            return Sides(self.samples, self.reference, stand_in, self.reference)
        order = torch.randperm(N, generator=generator_at(0, N, "halves")).numpy()
        size = min(max(round(N * M / (M + N)), N // 4), N - N // 4)
        one, other = np.sort(order[:size]), np.sort(order[size:])
        return Sides(
            self.samples, self.reference, self.reference.take(one), self.reference.take(other)
        )


def evaluate_all(
    compared: Compared,
    *,
    k: int,
    answers: Answers | None,
    features: Mapping[str, Any],
    protocol: Mapping[str, Any],
) -> Judged:
    """Every metric that these sets allow.

    Args:
        compared: features, and images where they are known.
        k: neighbours of precision, recall, density and coverage.
        answers: what a network with classes says of the images; None: there is none.
        features: name, digest, resizer, dimensions; for the record.
        protocol: what each metric must carry.

    Raises:
        UsageError: k not below the number of images of each set.
    """
    sides = compared.sides()
    samples, reference = sides.samples.features, sides.reference.features
    near = _surroundings(compared)
    copying = {
        **_copying(near),
        "searched": "reference" if compared.train is None else "training",
        "repeated": _repeated(compared.samples),
    }
    kinds = groups(reference, samples)
    found = {**fidelity(sides, k), **diversity(sides, kinds), **_novelty(compared, near, copying)}
    if answers is not None:
        found |= answers.metrics(sides.n)
    record = {
        "features": dict(features),
        "metrics": {name: found[name].to_json(protocol) for name in METRICS if name in found},
        "per_class": per_class(compared, k),
        "classes": None if answers is None else answers.to_json(),
        "labels": _labels(compared),
        "groups": {
            "reference": kinds.reference.tolist(),
            "samples": kinds.samples.tolist(),
            "under": np.flatnonzero(kinds.under).tolist(),
            "over": np.flatnonzero(kinds.over).tolist(),
        },
        "copying": copying,
        "warnings": _warnings(compared, copying),
    }
    return Judged(
        record,
        realism(reference, samples),
        kinds.nearest[kinds.under],
        near.samples.indices[:, 0] % near.images,
    )


def moments_alone(
    f: Features, moments: Moments, features: Mapping[str, Any], protocol: Mapping[str, Any]
) -> Judged:
    """The Fréchet distance of samples [M, D] to moments that some tool has kept of real images.

    Nothing else can be had from moments: no real value, no error of the reference, no copies.
    """
    n = (len(f), moments.count)
    told = "Only moments of the real images are known: no value of real images stands beside it."
    mark = " ".join(part for part in (few(n) or rank_mark(n, f.shape[1]), told) if part)
    value = frechet_estimate(f, moments)
    record = {
        "features": dict(features),
        "metrics": {
            "frechet_distance": named("frechet_distance", value, None, n, mark).to_json(protocol)
        },
        "per_class": None,
        "classes": None,
        "groups": None,
        "copying": {},
        "warnings": [told],
    }
    nobody = np.zeros(0, np.int64)
    return Judged(record, np.full(len(f), np.nan), nobody, nobody)


def compare(f: Features, f_ref: Features, k: int) -> dict[str, float]:
    """The few metrics that choices are made by: samples [M, D] against real images [N, D]."""
    return {
        "frechet_distance": frechet_distance(f, f_ref),
        "kernel_distance": kernel_distance(f, f_ref),
        **precision_recall_density_coverage(f_ref, f, k),
    }


def few_metrics(samples: Side, reference: Side, near: Surroundings, k: int) -> dict[str, Any]:
    """What is followed while a run trains: quick metrics with their errors, and copies.

    Args:
        samples, reference: with their images.
        near: what lies around the samples.
        k: neighbours of precision, recall, density and coverage.

    Returns:
        values, errors (standard errors from the samples): name -> number, None where not known;
        copies: how many samples the test flags.
    """
    f, f_ref = samples.features, reference.features
    distances = near.samples.distances[:, 0]
    found = {
        "frechet_distance": frechet_estimate(f, f_ref),
        "kernel_distance": kernel_estimate(f, f_ref),
        **coverage_estimates(f_ref, f, k),
        "nearest_train_distance": Estimate(float(np.median(distances)), median_error(distances)),
    }
    if samples.images is not None and reference.images is not None:
        found["fine_detail"] = detail_estimate(samples.images, reference.images)
    return {
        "values": {name: finite(e.value) for name, e in found.items()},
        "errors": {name: finite(e.samples_error) for name, e in found.items()},
        "copies": copies(near)["flagged"],
    }


def _surroundings(compared: Compared) -> Surroundings:
    searched = compared.reference if compared.train is None else compared.train
    views = [searched.features] + ([] if compared.mirrored is None else [compared.mirrored])
    return surroundings(
        np.concatenate(views) if len(views) > 1 else searched.features,
        None if compared.train is None else compared.reference.features,
        compared.samples.features,
        len(views),
    )


def _copying(near: Surroundings) -> dict[str, Any]:
    """The copy test; training rows count images, mirrored or not."""
    copying = copies(near)
    rows = copying["flagged_train_indices"]
    copying["flagged_train_indices"] = [i % near.images for i in rows]
    for pair in copying["closest"]:
        pair["train"] %= near.images
    return copying


def _novelty(
    compared: Compared, near: Surroundings, copying: Mapping[str, Any]
) -> dict[str, Metric]:
    """All metrics of copying, with the reasons to doubt them."""
    val = None if compared.train is None else compared.reference.features
    train = (compared.reference if compared.train is None else compared.train).features
    n = (len(compared.samples), near.images)
    distances = near.samples.distances[:, 0]
    weak = ""
    if _blind(copying, n[0]):
        weak = f"Fewer than {copying['detectable_from']} copies cannot be found at these counts."
    low, high = copying["share_low"], copying["share_high"]
    share = Estimate(copying["share"], (high - low) / (2 * CONFIDENCE))
    own = {
        "calibrated_by": copying["calibration"],
        "false_discovery_rate": copying["q"],
        "mirrored": compared.mirrored is not None,
    }
    found = {
        "nearest_train_distance": named(
            "nearest_train_distance",
            Estimate(copying["samples"]["median"], median_error(distances)),
            copying["val"]["median"],
            n,
            few((n[0], near.images)),
        ),
        "copies": replace(named("copies", share, 0.0, n, weak, **own), exact=(low, high)),
    }
    for name, (estimate, real) in novelty(near, train, val, compared.samples.features).items():
        mark = few((n[0], n[1] if val is None else len(val)))
        if math.isnan(estimate.value):
            mark = "Too few images for this figure."
        found[name] = named(name, estimate, real, n, mark)
    return found


def _blind(copying: Mapping[str, Any], samples: int) -> bool:
    """Whether so many copies are needed for the test to flag one that it proves little."""
    return bool(copying["detectable_from"] > max(samples / 10, 1))


def _repeated(samples: Side) -> int | None:
    """Samples that are pixel by pixel the same as an earlier one; None without images."""
    if samples.images is None:
        return None
    return len(samples) - len({samples.images[i].tobytes() for i in range(len(samples))})


def _labels(compared: Compared) -> dict[str, Any] | None:
    """How many samples and real images bear each class's label; None where either has none."""
    labels, real, K = compared.labels, compared.reference_labels, len(compared.names)
    if labels is None or real is None:
        return None
    return {
        "names": list(compared.names),
        "samples": np.bincount(labels, minlength=K).tolist(),
        "reference": np.bincount(real, minlength=K).tolist(),
    }


def per_class(compared: Compared, k: int) -> list[dict[str, Any]] | None:
    """Distances and shares of each class by itself; None where classes are not known."""
    labels, real_labels = compared.labels, compared.reference_labels
    if labels is None or real_labels is None:
        return None
    rows, fewest = [], max(_FEWEST_OF_CLASS, k + 1)
    for number, name in enumerate(compared.names):
        own, real = np.flatnonzero(labels == number), np.flatnonzero(real_labels == number)
        row: dict[str, Any] = {
            "name": name,
            "samples": len(own),
            "reference": len(real),
            "metrics": {},
            "mark": "",
        }
        if min(len(own), len(real)) < fewest:
            row["mark"] = f"Fewer than {fewest} samples or real images."
        else:
            f, f_ref = compared.samples.features[own], compared.reference.features[real]
            estimates = {
                "kernel_distance": kernel_estimate(f, f_ref),
                **coverage_estimates(f_ref, f, k),
            }
            stand_in = _class_stand_in(compared, number, len(own), fewest)
            known = None if stand_in is None else compare(stand_in, f_ref, k)
            for metric, estimate in estimates.items():
                low, high = estimate.interval()
                row["metrics"][metric] = {
                    "value": finite(estimate.value),
                    "real": None if known is None else finite(known[metric]),
                    "low": finite(low),
                    "high": finite(high),
                }
        rows.append(row)
    return rows


def _class_stand_in(compared: Compared, number: int, size: int, fewest: int) -> Features | None:
    """Training images of a class in its samples' place; None where there are too few."""
    if compared.train is None or compared.train_labels is None or compared.learnt:
        return None
    rows = np.flatnonzero(compared.train_labels == number)
    if len(rows) < fewest:
        return None
    return compared.train.features[rows[subset_of(len(rows), size)]]


def _warnings(compared: Compared, copying: Mapping[str, Any]) -> list[str]:
    """Plain sentences about what weakens the figures as a whole."""
    M, N = len(compared.samples), len(compared.reference)
    found = []
    for count, name in ((M, "samples"), (N, "reference images")):
        if count < FEW:
            found.append(f"Only {count} {name}: below {FEW}, every score is mostly chance.")
    if compared.train is None:
        found.append(
            "No training images are known: copies are looked for among the reference images, and "
            "real values come from one part of them against the rest."
        )
    elif compared.unsearched:
        found.append(
            f"Copies were looked for among {len(compared.train):,} training images; "
            f"{compared.unsearched:,} more were not searched."
        )
    if compared.train is not None and len(compared.train) < M:
        found.append(
            f"Only {len(compared.train)} training images for {M} samples: the real values come "
            "from fewer images than the scores."
        )
    if copying["median_ratio"] is None:
        found.append(
            "Most reference images are training images too: copies cannot be told from novelty."
        )
    if _blind(copying, M):
        found.append(
            f"With {N} reference images the copy test needs at least {copying['detectable_from']} "
            f"copies among {M} samples to flag any."
        )
    return found
