"""The Python front door; the command line calls nothing else."""

from poise.api.data import audit_images, prepare_images
from poise.api.runs import Run, dry_run, load, train, train_job
from poise.api.scores import (
    compare,
    evaluate_pairs,
    evaluate_samples,
    make_reference,
    verdict_lines,
)
from poise.api.speed import measure_data_speed, measure_score_speed, measure_speed
from poise.api.tuning import folder_of, tune, tune_request

__all__ = [
    "Run",
    "audit_images",
    "compare",
    "dry_run",
    "evaluate_pairs",
    "evaluate_samples",
    "folder_of",
    "load",
    "make_reference",
    "measure_data_speed",
    "measure_score_speed",
    "measure_speed",
    "prepare_images",
    "train",
    "train_job",
    "tune",
    "tune_request",
    "verdict_lines",
]
