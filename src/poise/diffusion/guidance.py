"""Guidance: two denoisers become one that goes further where they disagree.

Classifier-free guidance (Ho & Salimans 2022): the guide is the same denoiser without labels.
Autoguidance (Karras et al. 2024a): the guide is a worse denoiser with the same labels.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from poise.errors import UsageError

# (x [B, C, H, W], sigma [] or [B], labels or None) -> clean images
Denoise = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def guided(
    main: Denoise, guide: Denoise, strength: float, interval: tuple[float, float] = (0.0, math.inf)
) -> Denoise:
    """D = D_guide + w (D_main - D_guide) at levels in the interval, D_main elsewhere.

    Source: Karras et al. 2024a, Eq. 3; the interval is that of Kynkäänniemi et al. 2024.

    Args:
        main: the denoiser to improve.
        guide: what to go away from. It gets the same labels; it is not called at levels outside
            the interval, and never if `strength` is 1.
        strength: w; 1: `main` alone, 0: `guide` alone.
        interval: levels (low, high] that are guided: above low, up to high.

    Returns:
        A denoiser. A level [] is compared with the interval on the host: free if it lies on the
        CPU, one wait for the device otherwise, none with the default interval. With a level for
        each image [B] nothing waits: the guide is always called and counts where it should.

    Raises:
        UsageError: the interval is empty or holds levels below zero.
    """
    low, high = interval
    if not 0 <= low < high:
        raise UsageError(
            f"The guidance interval ({low}, {high}] holds no noise level.",
            expected="0 <= low < high",
            remedy="Use (0, inf) to guide at all levels.",
        )
    if strength == 1:
        return main
    everywhere = low == 0 and high == math.inf

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        inside = (sigma > low) & (sigma <= high)
        if not everywhere and sigma.ndim == 0 and not inside:
            return main(x, sigma, labels)
        D_main, D_guide = main(x, sigma, labels), guide(x, sigma, labels)
        D = D_guide + strength * (D_main - D_guide)
        if everywhere or sigma.ndim == 0:
            return D
        return torch.where(inside.reshape(-1, 1, 1, 1), D, D_main)

    return denoise


def without_labels(denoise: Denoise) -> Denoise:
    """The same denoiser asked for no class: the guide of classifier-free guidance.

    It is worth something only if the network saw images without labels in training.
    """
    return lambda x, sigma, labels: denoise(x, sigma, None)
