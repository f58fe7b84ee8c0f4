"""Scores of the snapshots of a run while it trains: one line of scores.jsonl each.

What a snapshot samples, with few images, on the validation split: all lines of one run answer the
same questions, from the same seeds. When they are due follows from the times of the snapshots.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from poise.artifacts import append_jsonl, read_jsonl
from poise.console import Screen
from poise.evaluation.distances import Features
from poise.evaluation.evaluate import FEWEST, compare, few_metrics
from poise.evaluation.features import FeatureExtractor
from poise.evaluation.memorisation import Surroundings, around, surroundings
from poise.evaluation.panel import Side, subset_of
from poise.evaluation.standing import Standing, standing
from poise.journal import Prepared
from poise.runtime import seed_at
from poise.sampling import draw, snapshot_model
from poise.scoring.real import features_of, fresh_features, space_of
from poise.scoring.run import labels_like, real_of

_QUIET = Screen(quiet=True)


@dataclass(frozen=True)
class _Beside:
    """What does not change from snapshot to snapshot."""

    extractor: FeatureExtractor
    reference: Side
    train: Features  # [views * N, D]
    near: Surroundings  # of the real images; its samples are replaced each time
    real: dict[str, float]


class Watcher:
    """Scores the snapshots of one run; features of real images are computed once."""

    def __init__(self, job: Prepared) -> None:
        """
        Args:
            job: the run with its data.
        """
        self._job = job
        self._beside: _Beside | None = None

    def due(self, images_seen: int) -> bool:
        """Whether the snapshot at `images_seen` is there, has no line yet, and should have one.

        It should when a multiple of the interval lies between it and the snapshot before it.
        """
        job, times = self._job, self._job.config.cadence.evaluations
        path = job.run.snapshot_at(images_seen)
        if not times or len(job.splits.val) < FEWEST or not path.exists():
            return False
        interval = max(1, job.config.training.images // times)
        stems = [int(p.stem) for p in job.run.snapshot_files() if p.stem.isdigit()]
        before = max((s for s in stems if s < images_seen), default=0)
        known = {row["images_seen"] for row in read_jsonl(job.run.log("scores"))}
        return images_seen // interval > before // interval and images_seen not in known

    def standing(self, images_seen: int) -> Standing | None:
        """Which snapshot is best, if the last that was scored is that at `images_seen`."""
        rows = read_jsonl(self._job.run.log("scores"))
        return standing(rows) if rows and rows[-1]["images_seen"] == images_seen else None

    def score(self, images_seen: int) -> None:
        """Score a snapshot and write its line."""
        job = self._job
        model = snapshot_model(job.run.snapshot_at(images_seen))
        count = job.config.evaluation.snapshot_samples or FEWEST
        seed = seed_at(job.config.seed, 0, "snapshots") % 2**31
        labels = labels_like(job.dataset, job.splits.val, count, seed)
        images = draw(model, count, labels, seed)
        beside = self._prepared(count)
        features = fresh_features(beside.extractor, images)
        found = few_metrics(
            Side(features, images),
            beside.reference,
            around(beside.near, beside.train, features),
            job.config.evaluation.neighbours,
        )
        row = {
            "images_seen": images_seen,
            "weights": model.snapshot.weights,
            "samples": count,
            "seed": seed,
            "features": beside.extractor.name,
            "features_digest": beside.extractor.digest,
            **found,
            "real": beside.real,
        }
        error = _validation_error(job, images_seen, model.snapshot.weights)
        row["values"]["validation_error"] = error
        append_jsonl(job.run.log("scores"), row)

    def _prepared(self, count: int) -> _Beside:
        if self._beside is None:
            real, settings = real_of(self._job, "val"), self._job.config.evaluation
            extractor, _ = space_of(real, settings, _QUIET)
            searched, _ = real.searched()
            views = [searched, searched.mirrored()] if real.mirrored else [searched]
            train = np.concatenate([features_of(extractor, x, _QUIET, "") for x in views])
            f = features_of(extractor, real.reference, _QUIET, "")
            near = surroundings(train, f, f[:2], len(views))
            stand_in = train[subset_of(near.images, count)]
            values: dict[str, Any] = compare(stand_in, f, settings.neighbours)
            values["nearest_train_distance"] = float(np.median(near.real.distances[:, 0]))
            reference = Side(f, real.reference)
            more = {"fine_detail": 1.0}
            self._beside = _Beside(extractor, reference, train, near, {**values, **more})
        return self._beside


def _validation_error(job: Prepared, images_seen: int, weights: str) -> float | None:
    """The error of these weights at the last validation up to here."""
    rows = [
        row
        for row in read_jsonl(job.run.log("validation"))
        if row["images_seen"] <= images_seen and row["weights"] == weights
    ]
    return rows[-1]["loss"] if rows else None
