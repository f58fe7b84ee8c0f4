"""Samples of a run's newest snapshot against held-out images, written as scores-SPLIT.json."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import read_jsonl, write_json
from poise.console import Screen
from poise.data.dataset import Dataset
from poise.data.imageset import Subset
from poise.errors import DataError
from poise.evaluation.evaluate import FEWEST
from poise.evaluation.extractors.domain import train_encoder
from poise.evaluation.features import PRETRAINED, build_features, extract, features_named
from poise.journal import Prepared, log_event
from poise.runtime import generator_at, seed_at
from poise.sampling import Model, chosen_model, draw
from poise.scoring.curves import denoising_record
from poise.scoring.judge import judge
from poise.scoring.real import Real, Samples
from poise.scoring.sheets import save_sheets
from poise.settings import EvaluationConfig

_LEAST = 100  # scores of fewer samples say little
_TRIAL = 512  # images from which the time of feature extraction is estimated
_REPORT_SECONDS = 4.0
_DISTANCES = 1.6  # features and distances take this much of the features alone, as seen on CIFAR-10
_MOST = 2000  # samples that are drawn unasked


def evaluate(
    job: Prepared,
    screen: Screen,
    *,
    split_name: str,
    count: int | None,
    settings: EvaluationConfig | None = None,
) -> dict[str, Any]:
    """Sample the newest snapshot, score it against a split, write scores and sheets.

    Args:
        job: the run with its data.
        screen: where progress is shown.
        split_name: "val" or "test"; every use of the test split is recorded in events.jsonl.
        count: samples to draw; None: as the settings say, within what is left of a budget.
        settings: of the evaluation; None: the run's.
    """
    started = time.monotonic()
    settings = settings or job.config.evaluation
    real = real_of(job, split_name)
    if len(real.reference) < FEWEST:
        raise DataError(
            f"The {split_name} split holds {len(real.reference)} images.",
            expected=f"at least {FEWEST} to compare with",
            remedy="set data.split to give it a share, or add images.",
        )
    model = chosen_model(job.run)
    count = count or _affordable(job, model)
    if split_name == "test":
        record_touch(job, model, screen)
    seed = seed_at(job.config.seed, 0, "evaluation") % 2**31
    labels = labels_like(job.dataset, getattr(job.splits, split_name), count, seed)
    with screen.bar("sampling", count) as bar:
        images = draw(model, count, labels, seed, progress=bar.show)
    screen.say(
        f"scoring {count} samples against {len(real.reference):,} images of the {split_name} split"
    )
    samples = Samples(images, None if labels is None else np.array(labels, np.int64))
    about = {**model.describe(), "seed": seed}
    judged = judge(samples, real, settings, about, screen)
    save_sheets(job.run.samples, samples, real, judged)
    denoising, metrics = denoising_record(job, model, split_name, about, screen)
    record = {
        "split": split_name,
        "samples": count,
        **about,
        "data": job.dataset.fingerprint,
        **judged.record,
        "metrics": {**judged.record["metrics"], **metrics},
        "denoising": denoising,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(job.run.scores(split_name), record)
    return record


def real_of(job: Prepared, split_name: str) -> Real:
    """The images of a run that its samples are compared with."""
    members, train = getattr(job.splits, split_name), job.splits.train
    labels = job.dataset.labels
    return Real(
        reference=Subset(job.dataset.images, members),
        labels=None if labels is None else labels[members],
        train=Subset(job.dataset.images, train),
        train_labels=None if labels is None else labels[train],
        names=job.dataset.label_names,
        split=split_name,
        data=job.dataset.fingerprint,
        flips=job.config.data.flip == "on",
        mirrored=job.config.data.flip == "on",
    )


def check_features(job: Prepared) -> None:
    """Find the weights of a pretrained feature network before the training, not after it.

    Raises:
        PoiseError: there are none.
    """
    settings = job.config.evaluation
    if settings.features in PRETRAINED:
        weights = None if settings.feature_weights is None else Path(settings.feature_weights)
        build_features(settings.features, job.facts.resolution, weights)


def settings_afterwards(job: Prepared, **changes: Any) -> EvaluationConfig:
    """The evaluation settings of a run once no training waits: the encoder may learn in full."""
    settings = job.config.evaluation
    learning = 0 if settings.encoder_images == 0 else None  # 0: never
    return EvaluationConfig.model_validate(
        {**settings.model_dump(), "encoder_images": learning, **changes}
    )


def fitting_count(reference: int) -> int:
    """Samples to draw where nobody says: as many as there are real images, 100 to 2,000."""
    return max(_LEAST, min(reference, _MOST))


def scoring_seconds(job: Prepared) -> float:
    """How long an evaluation takes beside its samples, estimated from a few images."""
    settings, trial = job.config.evaluation, job.splits.train[:_TRIAL]
    images, labels = job.dataset.images[trial], job.dataset.labels
    seconds = 0.0
    learning = settings.encoder_images or 0
    domain = features_named(settings.features, job.facts.resolution) == "domain"
    if learning and (labels is not None or domain):
        known = None if labels is None else labels[trial]
        spent = []
        for seen in (_TRIAL, 2 * _TRIAL):  # the difference is free of what comes once
            started = time.monotonic()
            train_encoder(images, known, len(job.facts.label_names), images_seen=seen, flips=False)
            spent.append(time.monotonic() - started)
        seconds += max(spent[1] - spent[0], 0) / _TRIAL * learning + spent[0]
    if not domain:
        weights = None if settings.feature_weights is None else Path(settings.feature_weights)
        extractor = build_features(settings.features, job.facts.resolution, weights)
        extract(extractor, images)  # the first call is several times slower than those that follow
        started = time.monotonic()
        extract(extractor, images)
        per_image = (time.monotonic() - started) / len(trial)
        mirrored = 2 if job.config.data.flip == "on" else 1
        in_all = mirrored * len(job.splits.train) + len(job.splits.val) + (settings.samples or 0)
        seconds += _DISTANCES * per_image * in_all
    return seconds


def record_touch(job: Prepared, model: Model, screen: Screen) -> None:
    """Write down that the test split is used: what is chosen on it is no test any more."""
    rows = read_jsonl(job.run.log("events"))
    times = 1 + sum(row.get("kind") == "test_split" for row in rows)
    seen, words = model.snapshot.images_seen, "Scored against the test split"
    if times == 1:
        log_event(job.run, seen, "info", "test_split", f"{words}, for the first time.")
        return
    message = (
        f"{words}, for time {times}. Choices that were made after an earlier look at it make its "
        "figures too good."
    )
    log_event(job.run, seen, "warning", "test_split", message)
    screen.say(f"note: {message}")


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
