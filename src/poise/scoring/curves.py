"""How well a run's network denoises images it has seen and images it has not, by noise level."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.console import Screen
from poise.data.batches import to_unit
from poise.evaluation.denoising import (
    Band,
    Gap,
    denoising_curves,
    gap_summary,
    generalisation_gap,
    noise_levels,
    trivial_error,
)
from poise.evaluation.estimate import Estimate
from poise.evaluation.metric import Metric, finite
from poise.journal import Prepared
from poise.runtime import generator_at
from poise.sampling import Model

_MOST = 256  # images of each split
_CALLS = 4096  # images times levels denoised at most for each split, beyond the fewest images
_FEWEST = 64
_FEW = 32  # images whose mean over noise levels is mostly chance


def denoising_record(
    job: Prepared, model: Model, split_name: str, protocol: Mapping[str, Any], screen: Screen
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Curves of training images, validation images and, if it is the split, test images.

    Args:
        job: the run with its data.
        model: whose denoiser is asked, without guidance.
        split_name: what the scores are made against; the test split is not touched unasked.
        protocol: what each metric must carry.
        screen: where progress is shown.

    Returns:
        sigmas, curves, baseline (the error of the best constant scaling), gap and largest as plain
        data; and metrics of the whole curves as `Metric.to_json` gives them.
    """
    settings = job.config.validation
    sigmas = noise_levels(settings.bands, settings.sigma_min, settings.sigma_max)
    names = ["train", "val"] if split_name == "val" else ["train", "val", "test"]
    splits = {name: _some(job, name) for name in names if len(getattr(job.splits, name)) > 1}
    curves: dict[str, list[Band]] = {}
    with screen.bar("denoising", len(splits)) as bar:
        for name, pair in splits.items():
            curves |= denoising_curves(
                model.snapshot.denoiser,
                {name: pair},
                sigmas.to(job.runtime.device),
                seed=job.config.seed,
                sigma_data=job.facts.sigma_data,
            )
            bar.show(len(curves))
    metrics: dict[str, Metric] = {}
    for name, bands in curves.items():
        metrics |= _means(name, bands, len(splits[name][0]), job.facts.sigma_data)
    gaps: list[Gap] = []
    if split_name in curves and "train" in curves:
        gaps = generalisation_gap(curves, split_name)
        metrics |= _gap_metric(gaps, splits, split_name)
    record = {
        "sigmas": sigmas.tolist(),
        "images": {name: len(pair[0]) for name, pair in splits.items()},
        "curves": {name: [_band(band) for band in bands] for name, bands in curves.items()},
        "baseline": [trivial_error(s, job.facts.sigma_data) for s in sigmas.tolist()],
        "held_out": split_name,
        "gap": [_gap(gap) for gap in gaps],
        "significant": gap_summary(gaps).significant,
    }
    common = {**protocol, "data": job.dataset.fingerprint, "guidance": None}
    return record, {name: metric.to_json(common) for name, metric in metrics.items()}


def _some(job: Prepared, name: str) -> tuple[Tensor, Tensor | None]:
    """Images of a split in [-1, 1] and their labels, always the same ones."""
    members: NDArray[np.int64] = getattr(job.splits, name)
    levels = job.config.validation.bands
    count = max(_FEWEST, min(_MOST, _CALLS // levels))
    order = torch.randperm(len(members), generator=generator_at(job.config.seed, 0, name))
    chosen = np.sort(members[order[:count].numpy()])
    device, labels = job.runtime.device, job.dataset.labels
    images = to_unit(torch.from_numpy(job.dataset.images[chosen])).to(device)
    return images, None if labels is None else torch.from_numpy(labels[chosen]).to(device)


def _means(split: str, bands: Sequence[Band], count: int, sigma_data: float) -> dict[str, Metric]:
    """Means over the noise levels. Levels share images: their errors are added, not pooled."""
    noisy = {
        "error": ("loss", "lower", 1.0),  # the weight makes the error of the best scaling 1
        "psnr": ("psnr", "higher", None),
        "ssim": ("ssim", "higher", None),
    }
    if all(band.ms_ssim is not None for band in bands):  # sides above 160 pixels
        noisy["ms_ssim"] = ("ms_ssim", "higher", None)
    found = {}
    for short, (key, better, trivial) in noisy.items():
        rows = [getattr(band, key) for band in bands]
        value = float(np.mean([row.value for row in rows]))
        error = float(np.mean([row.samples_error for row in rows]))
        found[f"denoising_{short}_{split}"] = Metric(
            Estimate(value, samples_error=error),
            None,
            (count, count),
            "denoising",
            "lower" if better == "lower" else "higher",
            _few(count, split),
            own={"levels": len(rows), "mean_over": "noise levels", "best_scaling": trivial},
        )
    return found


def _gap_metric(
    gaps: Sequence[Gap], splits: Mapping[str, tuple[Tensor, Tensor | None]], split_name: str
) -> dict[str, Metric]:
    largest = gap_summary(gaps).largest
    if largest is None:
        return {}
    ratio = largest.ratio
    counts = len(splits["train"][0]), len(splits[split_name][0])
    mark = _few(min(counts), "training or held-out")
    if not math.isfinite(ratio.value):
        mark = "The error on training images is 0: they are known by heart."
        ratio = replace(ratio, value=math.nan)
    return {
        "generalisation_gap": Metric(
            ratio,
            0.0,
            counts,
            "denoising",
            "lower",
            mark,
            {"at_sigma": largest.sigma, "levels": len(gaps), "largest_over": "noise levels"},
        )
    }


def _few(count: int, what: str) -> str:
    return "" if count >= _FEW else f"Only {count} {what} images: the figure is mostly chance."


def _band(band: Band) -> dict[str, Any]:
    row: dict[str, Any] = {"sigma": band.sigma}
    for key in ("loss", "mse", "psnr", "ssim", "ms_ssim"):
        estimate = getattr(band, key)
        if estimate is not None:
            row[key] = finite(estimate.value)
            row[f"{key}_error"] = finite(estimate.samples_error)
    return row


def _gap(gap: Gap) -> dict[str, Any]:
    low, high = gap.ratio.interval()
    return {
        "sigma": gap.sigma,
        "ratio": finite(gap.ratio.value),
        "low": finite(low),
        "high": finite(high),
        "significant": bool(gap.significant),
    }
