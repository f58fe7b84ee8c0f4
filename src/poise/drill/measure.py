"""How good the weights of a finished run are, measured from its files alone.

Whatever was done to the run while it trained, hooks included, does not reach this far.
"""

import math

import numpy as np
import torch

from poise.artifacts import RunDir, load_tensors
from poise.build import Snapshot, load_snapshot
from poise.data.batches import to_unit
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.evaluation.denoising import denoising_error, noise_levels
from poise.runtime import generator_at

_IMAGES = 256


def validation_error(run: RunDir, dataset: Dataset, splits: Splits) -> float:
    """Denoising error of held-out images by the best weights of the newest snapshot.

    The mean over all noise levels of the settings, with the same images and the same noise for
    every run; the lowest of the raw and the averaged weights, infinite where none is finite.

    Args:
        run: holds a snapshot.
        dataset: the images as they are trained on.
        splits: up to 256 images of its validation side are measured.
    """
    path = run.snapshot_files()[-1]
    names = load_tensors(path)[1]["weights"]
    errors = [_error_of(load_snapshot(path, name), dataset, splits) for name in names]
    return min((error for error in errors if math.isfinite(error)), default=math.inf)


def _error_of(model: Snapshot, dataset: Dataset, splits: Splits) -> float:
    order = torch.randperm(len(splits.val), generator=generator_at(0, 0, "drill"))
    members = np.sort(splits.val[order[:_IMAGES].numpy()])
    device, settings = model.runtime.device, model.config.validation
    images = to_unit(torch.from_numpy(dataset.images[members])).to(device)
    labels = dataset.labels
    bands = denoising_error(
        model.denoiser,
        images,
        None if labels is None else torch.from_numpy(labels[members]).to(device),
        noise_levels(settings.bands, settings.sigma_min, settings.sigma_max).to(device),
        seed=0,
        sigma_data=model.facts.sigma_data,
    )
    return sum(band.loss for band in bands) / len(bands)
