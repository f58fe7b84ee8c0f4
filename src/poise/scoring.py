"""Samples of a run's newest snapshot against held-out images, written as scores-SPLIT.json."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import RunDir, write_json
from poise.console import Screen
from poise.data.dataset import Dataset
from poise.errors import DataError
from poise.evaluation.evaluate import FEWEST, score
from poise.evaluation.features import build_features, extract
from poise.journal import Prepared, log_event
from poise.pictures import save_grid
from poise.runtime import generator_at, seed_at
from poise.sampling import Model, chosen_model, draw

_LEAST = 100  # scores of fewer samples say little
_TRIAL = 512  # images from which the time of feature extraction is estimated
_REPORT_SECONDS = 4.0
_DISTANCES = 1.6  # features and distances take this much of the features alone, as seen on CIFAR-10
_SHOWN = 100  # samples on one grid
_PAIRS = 8  # shown beside their nearest training image


def evaluate(
    job: Prepared, screen: Screen, *, split_name: str, count: int | None
) -> dict[str, Any]:
    """Sample the newest snapshot, score it against a split, write scores and the closest pairs.

    Args:
        job: the run with its data.
        screen: where progress is shown.
        split_name: "val" or "test"; every use of the test split is recorded in events.jsonl.
        count: samples to draw; None: as the settings say, within what is left of a budget.
    """
    started = time.monotonic()
    members = getattr(job.splits, split_name)
    if len(members) < FEWEST:
        raise DataError(
            f"The {split_name} split holds {len(members)} images.",
            expected=f"at least {FEWEST} to compare with",
            remedy="set data.split to give it a share, or add images.",
        )
    model = chosen_model(job.run)
    count = count or _affordable(job, model)
    seed = seed_at(job.config.seed, 0, "evaluation") % 2**31
    labels = labels_like(job.dataset, members, count, seed)
    with screen.bar("sampling", count) as bar:
        samples = draw(model, count, labels, seed, progress=bar.show)
    screen.say(f"scoring {count} samples against {len(members):,} images of the {split_name} split")
    extractor = build_features(job.config.evaluation.features, job.facts.resolution)
    train = job.dataset.images[job.splits.train]
    result = score(
        samples,
        job.dataset.images[members],
        train,
        extractor=extractor,
        k=job.config.evaluation.neighbours,
        flips=job.config.data.flip == "on",
    )
    _save_pairs(job.run, samples, train, result["copying"])
    _save_first(job.run, samples, labels)
    record = {
        "split": split_name,
        "samples": count,
        **model.describe(),
        "seed": seed,
        "data": job.dataset.fingerprint,
        **result,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(job.run.scores(split_name), record)
    if split_name == "test":
        log_event(
            job.run,
            model.snapshot.images_seen,
            "info",
            "test_split",
            "Scored against the test split.",
        )
    return record


def scoring_seconds(job: Prepared) -> float:
    """How long features and distances of an evaluation take, estimated from a few images."""
    trial = job.splits.train[:_TRIAL]
    extractor = build_features(job.config.evaluation.features, job.facts.resolution)
    images = job.dataset.images[trial]
    extract(extractor, images)  # the first call is several times slower than those that follow
    started = time.monotonic()
    extract(extractor, images)
    per_image = (time.monotonic() - started) / len(trial)
    mirrored = 2 if job.config.data.flip == "on" else 1
    samples = job.config.evaluation.samples or 0
    images_in_all = mirrored * len(job.splits.train) + len(job.splits.val) + samples
    return _DISTANCES * per_image * images_in_all


def _affordable(job: Prepared, model: Model) -> int:
    """The samples of the settings, fewer where the rest of a wall-clock budget asks for it."""
    wanted = job.config.evaluation.samples
    assert wanted is not None
    if job.clock.budget is None:
        return wanted
    trial = job.config.sampling.batch
    labels = [0] * trial if job.facts.label_names else None
    started = time.monotonic()
    draw(model, trial, labels, 0)
    per_image = (time.monotonic() - started) / trial
    left = job.clock.left() - _REPORT_SECONDS - scoring_seconds(job)
    return max(min(_LEAST, wanted), min(wanted, int(left / per_image)))


def labels_like(
    dataset: Dataset, members: NDArray[np.int64], count: int, seed: int
) -> list[int] | None:
    """Class labels in the proportions of the split."""
    if dataset.labels is None:
        return None
    generator = generator_at(seed, 0, "labels")
    chosen = torch.randint(len(members), (count,), generator=generator).numpy()
    return [int(label) for label in dataset.labels[members[chosen]]]


def _save_first(run: RunDir, samples: NDArray[np.uint8], labels: list[int] | None) -> None:
    """The first samples as one grid, in the order of their classes."""
    order = np.arange(min(len(samples), _SHOWN))
    if labels is not None:
        order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    save_grid(run.samples / "scored.png", samples[order], columns=10)


def _save_pairs(
    run: RunDir, samples: NDArray[np.uint8], train: NDArray[np.uint8], copying: dict[str, Any]
) -> None:
    """The samples that lie closest to a training image, each above that image."""
    pairs = copying["closest"][:_PAIRS]
    if pairs:
        rows = [samples[p["sample"]] for p in pairs] + [train[p["train"]] for p in pairs]
        save_grid(run.samples / "closest.png", np.stack(rows), columns=len(pairs))
