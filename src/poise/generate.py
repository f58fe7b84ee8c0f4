"""Many images from a denoiser, each from its own seed, in batches that do not change them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.data.batches import to_uint8
from poise.diffusion.formulations import Formulation
from poise.diffusion.multistep import SOLVERS, solve
from poise.diffusion.sampler import noise_schedule
from poise.runtime import generator_at
from poise.settings import SamplingConfig

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_PAD = 8  # batches are padded to a multiple: a batch of one takes other kernels and rounds apart


def initial_noise(
    seed: int, indices: Sequence[int], shape: tuple[int, int, int], stream: str = "image"
) -> Tensor:
    """Standard normal [B, C, H, W]; row i depends on `seed`, `indices[i]` and `stream` alone."""
    return torch.stack(
        [torch.randn(shape, generator=generator_at(seed, i, stream)) for i in indices]
    )


def sampling_levels(settings: SamplingConfig, formulation: Formulation) -> Tensor:
    """The levels to visit, falling, then 0: those of the settings that the network learned."""
    low = max(settings.sigma_min, formulation.sigma_min)
    high = min(settings.sigma_max, formulation.sigma_max)
    rho = settings.rho or SOLVERS[settings.solver].default_rho
    levels = formulation.nearest(noise_schedule(settings.steps, low, high, rho)[:-1])
    kept = levels.unique().flip(0)  # type: ignore[no-untyped-call]
    return torch.cat([kept, levels.new_zeros(1)])


@torch.no_grad()
def generate(
    denoise: Denoise,
    *,
    count: int,
    shape: tuple[int, int, int],
    labels: Sequence[int] | None,
    settings: SamplingConfig,
    seed: int,
    levels: Tensor | None = None,
    latents: bool = False,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[Any]:
    """Draw `count` images.

    Args:
        denoise: `(x, sigma [], labels [B] or None) -> clean images`.
        count: how many.
        shape: channels, height, width.
        labels: class index of each image, or None.
        settings: solver, steps and noise levels.
        seed: image i depends on `seed`, i and its label alone.
        levels: noise levels of `sampling_levels`; None: those of the settings.
        latents: give what was drawn as it is, not as pixels.
        device: where the network is.
        progress: called with images done and `count`.

    Returns:
        [count, C, H, W], uint8; latents as they are, in fp32.
    """
    images = np.empty((count, *shape), np.float32 if latents else np.uint8)
    for start in range(0, count, settings.batch):
        stop = min(start + settings.batch, count)
        indices = list(range(start, start + math.ceil((stop - start) / _PAD) * _PAD))
        noise = initial_noise(seed, indices, shape).to(device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        padded = None if labels is None else [labels[min(i, count - 1)] for i in indices]
        rows = None if padded is None else torch.tensor(padded, device=device)
        x = solve(
            settings.solver,
            lambda x, sigma, rows=rows: denoise(x, sigma, rows),  # type: ignore[misc]
            noise,
            num_steps=settings.steps,
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
            rho=settings.rho,
            levels=levels,
            churn=settings.churn,
            churn_min=settings.churn_min,
            churn_max=settings.churn_max,
            churn_noise=settings.churn_noise,
            fresh=lambda step, indices=indices: initial_noise(  # type: ignore[misc]
                seed, indices, shape, f"churn {step}"
            ).to(device),
        )[: stop - start]
        images[start:stop] = (x if latents else to_uint8(x)).cpu().numpy()
        if progress is not None:
            progress(stop, count)
    return images
