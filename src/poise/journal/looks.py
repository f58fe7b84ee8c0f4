"""What a run looks at now and then: held-out images, sizes of activations, a grid of samples."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.budget import GRID_IMAGES
from poise.data.batches import to_unit
from poise.evaluation.denoising import denoising_error, noise_levels
from poise.generate import sampling_levels
from poise.journal.prepared import Prepared
from poise.runtime import generator_at
from poise.training.ema import profile_name
from poise.training.loop import TrainState, weights_of
from poise.training.magnitudes import activation_rms, weight_rms

_FEW = 16  # images whose activations are measured


def validate(job: Prepared, state: TrainState) -> list[dict[str, Any]]:
    """The denoising error of held-out images by noise level, a row for each set of weights."""
    settings = job.config.validation
    images, labels, probe = _probe(job)
    sigmas = noise_levels(settings.bands, settings.sigma_min, settings.sigma_max)
    rows = []
    for name, weights in weights_by_name(state).items():
        bands = denoising_error(
            denoise_with(state, weights),
            images,
            labels,
            sigmas.to(job.runtime.device),
            seed=job.config.seed,
            sigma_data=job.facts.sigma_data,
        )
        rows.append(
            {
                "images_seen": state.images_seen,
                "weights": name,
                "split": "val",
                "images": len(probe),
                "loss": sum(band.loss for band in bands) / len(bands),
                "bands": [vars(band) for band in bands],
            }
        )
    return rows


def magnitudes(job: Prepared, state: TrainState) -> dict[str, Any]:
    """Sizes of the raw weights, and of the blocks' outputs at a middle noise level."""
    images, labels, _ = _probe(job)
    images = images[:_FEW]
    sd = job.facts.sigma_data
    noise = torch.randn(images.shape, generator=generator_at(job.config.seed, 0, "middle"))
    sigma = torch.full((len(images),), sd, device=images.device)
    x = images + sd * noise.to(images.device)
    blocks = activation_rms(state.denoiser, x, sigma, None if labels is None else labels[:_FEW])
    return {
        "images_seen": state.images_seen,
        "weight_rms": weight_rms(state.denoiser).item(),
        "activation_rms": blocks.mean().item(),
        "activation_rms_highest": blocks.max().item(),
    }


def draw_grid(
    job: Prepared, state: TrainState, best: str | None, draw: Callable[..., Any]
) -> NDArray[np.uint8]:
    """Samples at fixed seeds, classes in turn, uint8 [N, H, W, C]; `best`: the weights to use."""
    names = job.facts.label_names
    labels = [i % len(names) for i in range(GRID_IMAGES)] if names else None
    named = weights_by_name(state)
    weights = named[best or list(named)[-1]]
    images: NDArray[np.uint8] = draw(
        denoise_with(state, weights),
        count=GRID_IMAGES,
        shape=(job.facts.channels, job.facts.resolution, job.facts.resolution),
        labels=labels,
        settings=job.config.sampling,
        levels=sampling_levels(job.config.sampling, state.denoiser.formulation),
        seed=job.config.seed,
        device=job.runtime.device,
    )
    return images


def weights_by_name(state: TrainState) -> dict[str, dict[str, Tensor]]:
    """All sets of weights, the widest average last."""
    profiles = {profile_name(std): w for std, w in state.ema.profiles.items()}
    return {"raw": weights_of(state.denoiser), **profiles}


def denoise_with(state: TrainState, weights: dict[str, Tensor]) -> Any:
    """A callable that runs the denoiser with other weights, without touching its own."""
    denoiser = state.denoiser

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        denoiser.eval()
        with torch.no_grad():
            result = torch.func.functional_call(denoiser, weights, (x, sigma, labels))
        assert isinstance(result, Tensor)
        return result

    return denoise


def _probe(job: Prepared) -> tuple[Tensor, Tensor | None, NDArray[np.int64]]:
    """The held-out images of all looks, in [-1, 1], with their labels and indices."""
    assert job.config.validation.images is not None
    order = generator_at(job.config.seed, 0, "probe")
    chosen = torch.randperm(len(job.splits.val), generator=order)[: job.config.validation.images]
    probe = np.sort(job.splits.val[chosen.numpy()])
    device = job.runtime.device
    images = to_unit(torch.from_numpy(job.dataset.images[probe])).to(device)
    labels = job.dataset.labels
    return images, None if labels is None else torch.from_numpy(labels[probe]).to(device), probe
