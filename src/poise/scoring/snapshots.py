"""Scores of the snapshots of a run while it trains: one line of scores.jsonl each.

What a snapshot samples, with few images, on the validation split: all lines of one run answer the
same questions, from the same seeds. When they are due is a function of images seen alone.
"""

from typing import Any

import numpy as np

from poise.artifacts import append_jsonl, read_jsonl
from poise.console import Screen
from poise.evaluation.evaluate import FEWEST, few_metrics
from poise.evaluation.features import FeatureExtractor, features_named
from poise.evaluation.panel import Side
from poise.evaluation.standing import Standing, standing
from poise.journal import Prepared
from poise.runtime import seed_at
from poise.sampling import draw, snapshot_model
from poise.scoring.judge import Real, encoder_of, extractor_of, features_of
from poise.scoring.run import labels_like, real_of


class Watcher:
    """Scores the snapshots of one run; features of real images are computed once."""

    def __init__(self, job: Prepared) -> None:
        """
        Args:
            job: the run with its data.
        """
        self._job = job
        self._real: Real | None = None
        self._extractor: FeatureExtractor | None = None
        self._features: dict[str, Any] = {}

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

    def score(self, images_seen: int) -> Standing | None:
        """Score a snapshot, write its line, and say which of all is best now."""
        job = self._job
        model = snapshot_model(job.run.snapshot_at(images_seen))
        count = job.config.evaluation.snapshot_samples or FEWEST
        seed = seed_at(job.config.seed, 0, "snapshots") % 2**31
        labels = labels_like(job.dataset, job.splits.val, count, seed)
        images = draw(model, count, labels, seed)
        real, extractor = self._prepared()
        found = few_metrics(
            Side(features_of(extractor, images, None, ""), images),
            Side(self._features["reference"], real.reference),
            self._features["train"],
            k=job.config.evaluation.neighbours,
            views=2 if real.mirrored else 1,
        )
        row = {
            "images_seen": images_seen,
            "weights": model.snapshot.weights,
            "samples": count,
            "seed": seed,
            "features": extractor.name,
            "features_digest": extractor.digest,
            **found,
        }
        error = _validation_error(job, images_seen, model.snapshot.weights)
        row["values"]["validation_error"] = error
        append_jsonl(job.run.log("scores"), row)
        return standing(read_jsonl(job.run.log("scores")))

    def _prepared(self) -> tuple[Real, FeatureExtractor]:
        if self._real is None or self._extractor is None:
            real, settings = real_of(self._job, "val"), self._job.config.evaluation
            encoder = None
            if features_named(settings.features, self._job.facts.resolution) == "domain":
                encoder = encoder_of(real, settings, Screen(quiet=True))
            extractor = extractor_of(real, settings, encoder)
            train = real.train
            assert train is not None
            both = [train] if not real.mirrored else [train, np.ascontiguousarray(train[..., ::-1])]
            self._features = {
                "reference": features_of(extractor, real.reference, None, ""),
                "train": np.concatenate([features_of(extractor, x, None, "") for x in both]),
            }
            self._real, self._extractor = real, extractor
        return self._real, self._extractor


def _validation_error(job: Prepared, images_seen: int, weights: str) -> float | None:
    """The error of these weights at the last validation up to here."""
    rows = [
        row
        for row in read_jsonl(job.run.log("validation"))
        if row["images_seen"] <= images_seen and row["weights"] == weights
    ]
    return rows[-1]["loss"] if rows else None
