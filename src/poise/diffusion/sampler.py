"""Samplers: functions over a callable that denoises. Source: Karras et al. 2022 (EDM)."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]  # (x [B, C, H, W], sigma []) -> clean images


def noise_schedule(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """`num_steps` noise levels from sigma_max down to sigma_min, then 0, in fp64 (EDM, Eq. 5)."""
    i = torch.arange(num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + i / (num_steps - 1) * (low - high)) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def heun(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Tensor:
    """Solve the probability-flow equation with Heun's method (EDM, Algorithm 1).

    Args:
        denoise: `(x, sigma) -> clean images`, called 2 num_steps - 1 times.
        noise: standard normal [B, C, H, W].
        num_steps: noise levels visited.
        sigma_min: last level before zero.
        sigma_max: first level.
        rho: spacing of the levels; larger is finer near zero.

    Returns:
        Images [B, C, H, W], about [-1, 1], not clamped.
    """
    levels = noise_schedule(num_steps, sigma_min, sigma_max, rho).to(noise.device, noise.dtype)
    x = noise * levels[0]
    for i, (t, t_next) in enumerate(pairwise(levels), start=1):
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if i < num_steps:  # the last step, to zero, stays an Euler step
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d + d_next) / 2
        x = x_next
    return x
