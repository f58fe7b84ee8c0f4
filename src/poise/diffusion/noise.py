"""Noise levels and noisy images, drawn outside the network."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noised:
    """Images before and after noise was added."""

    clean: Tensor  # [B, C, H, W] in [-1, 1]
    sigma: Tensor  # [B], standard deviation of the noise
    x: Tensor  # [B, C, H, W] = clean + sigma * N(0, 1)


def log_normal(count: int, P_mean: float, P_std: float, generator: torch.Generator) -> Tensor:
    """`count` noise levels with ln(sigma) ~ N(P_mean, P_std^2) (EDM, Table 1)."""
    z = torch.randn(count, generator=generator, device=generator.device)
    return (P_mean + P_std * z).exp()


def corrupt(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Noised:
    """Add Gaussian noise of standard deviation `sigma` [B] to images [B, C, H, W]."""
    noise = torch.randn(clean.shape, generator=generator, device=generator.device)
    return Noised(clean, sigma, clean + sigma[:, None, None, None] * noise)
