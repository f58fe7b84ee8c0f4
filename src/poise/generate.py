"""Many images from a denoiser, each from its own seed, in batches that do not change them."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.config import SamplingConfig
from poise.data.batches import to_uint8
from poise.diffusion.sampler import heun
from poise.runtime import generator_at

Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]
_PAD = 8  # batches are padded to a multiple: a batch of one takes other kernels and rounds apart


def initial_noise(seed: int, indices: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal [B, C, H, W]; row i depends on `seed` and `indices[i]` alone."""
    return torch.stack(
        [torch.randn(shape, generator=generator_at(seed, i, "image")) for i in indices]
    )


@torch.no_grad()
def generate(
    denoise: Denoise,
    *,
    count: int,
    shape: tuple[int, int, int],
    labels: Sequence[int] | None,
    settings: SamplingConfig,
    seed: int,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.uint8]:
    """Draw `count` images.

    Args:
        denoise: `(x, sigma [], labels [B] or None) -> clean images`.
        count: how many.
        shape: channels, height, width.
        labels: class index of each image, or None.
        settings: steps and noise levels.
        seed: image i depends on `seed`, i and its label alone.
        device: where the network is.
        progress: called with images done and `count`.

    Returns:
        uint8 [count, C, H, W].
    """
    images = np.empty((count, *shape), np.uint8)
    for start in range(0, count, settings.batch):
        stop = min(start + settings.batch, count)
        indices = list(range(start, start + math.ceil((stop - start) / _PAD) * _PAD))
        noise = initial_noise(seed, indices, shape).to(device)
        noise = noise.contiguous(memory_format=torch.channels_last)
        rows = None
        if labels is not None:
            padded = [labels[min(i, count - 1)] for i in indices]
            rows = torch.tensor(padded, device=device)
        x = heun(
            lambda x, sigma, rows=rows: denoise(x, sigma, rows),  # type: ignore[misc]
            noise,
            num_steps=settings.steps,
            sigma_min=settings.sigma_min,
            sigma_max=settings.sigma_max,
            rho=settings.rho,
        )
        images[start:stop] = to_uint8(x[: stop - start]).cpu().numpy()
        if progress is not None:
            progress(stop, count)
    return images
