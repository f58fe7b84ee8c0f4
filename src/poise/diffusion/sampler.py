"""Samplers of EDM: Heun and Euler, with fresh noise on the way or without.

A sampler is a function of `(denoise, noise, ...)`. Source: Karras et al. 2022 (EDM).
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from poise.errors import UsageError

# (x [B, C, H, W], sigma [] on the device of x) -> clean images
Denoise = Callable[[Tensor, Tensor], Tensor]
# step, from 0 -> standard normal, shaped like the images
Fresh = Callable[[int], Tensor]
_Raise = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


def noise_schedule(
    num_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> Tensor:
    """`num_steps` noise levels from sigma_max down to sigma_min, then 0, in fp64 (EDM, Eq. 5).

    One step visits sigma_max alone.
    """
    i = torch.arange(num_steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    levels = (high + i / max(num_steps - 1, 1) * (low - high)) ** rho
    return torch.cat([levels, levels.new_zeros(1)])


def falling_levels(
    levels: Tensor | None, num_steps: int, sigma_min: float, sigma_max: float, rho: float
) -> Tensor:
    """The levels a sampler visits: `levels` if given, else `noise_schedule` of the rest.

    Returns:
        [steps + 1] in fp64 on the CPU, so that decisions by level wait for no device.

    Raises:
        UsageError: there are fewer than two, they do not fall, or one is below zero.
    """
    if levels is None:
        levels = noise_schedule(num_steps, sigma_min, sigma_max, rho)
    levels = levels.detach().to("cpu", torch.float64)
    if (
        levels.ndim != 1
        or len(levels) < 2
        or not levels.isfinite().all()
        or not (levels.diff() < 0).all()
        or levels[-1] < 0
    ):
        raise UsageError(
            f"The noise levels {levels.tolist()} cannot be sampled along.",
            expected="at least one level above zero, each lower than the one before",
            remedy="Choose steps of at least 1 and 0 < sigma_min < sigma_max.",
        )
    return levels


def heun(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 18,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    levels: Tensor | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    fresh: Fresh | None = None,
) -> Tensor:
    """Heun's method, of second order (EDM, Algorithms 1 and 2).

    Args:
        denoise: `(x, sigma) -> clean images`, called 2 num_steps - 1 times.
        noise: standard normal [B, C, H, W]; its type is that of all arithmetic here.
        num_steps: noise levels visited, and steps, as the last one goes to zero.
        sigma_min: last level before zero.
        sigma_max: first level.
        rho: spacing of the levels; larger is finer near zero.
        levels: instead of these four: the levels themselves, falling, usually to 0.
        churn: fresh noise over the whole way, S_churn; 0: none, the probability-flow equation.
        churn_min: lowest level at which noise is added, S_tmin.
        churn_max: highest level at which noise is added, S_tmax.
        churn_noise: standard deviation of that noise, S_noise.
        fresh: `step -> standard normal` like `noise`; needed if churn is above zero. For images
            that do not depend on their batch, row i must follow from image i and the step alone.

    Returns:
        Images [B, C, H, W], about [-1, 1], not clamped.

    Raises:
        UsageError: the levels do not fall, or churn has no `fresh`.
    """
    levels = falling_levels(levels, num_steps, sigma_min, sigma_max, rho)
    raise_level = _churning(levels, churn, churn_min, churn_max, churn_noise, fresh)
    return _descend(denoise, noise, levels, raise_level, second_order=True)


def euler(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 50,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    levels: Tensor | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    fresh: Fresh | None = None,
) -> Tensor:
    """Euler's method, of first order: EDM, Algorithm 2, without its correction.

    Without churn it is DDIM (Song et al. 2021). Arguments, result and errors are those of
    `heun`; `denoise` is called num_steps times.
    """
    levels = falling_levels(levels, num_steps, sigma_min, sigma_max, rho)
    raise_level = _churning(levels, churn, churn_min, churn_max, churn_noise, fresh)
    return _descend(denoise, noise, levels, raise_level, second_order=False)


def _descend(
    denoise: Denoise, noise: Tensor, levels: Tensor, raise_level: _Raise, *, second_order: bool
) -> Tensor:
    """EDM, Algorithm 2."""
    to_zero = [level == 0 for level in levels[1:].tolist()]
    on_device = levels.to(noise.device, noise.dtype)
    x = noise * on_device[0]
    for step, (t, t_next) in enumerate(pairwise(on_device)):
        x, t = raise_level(step, x, t)
        d = (x - denoise(x, t)) / t
        x_next = x + (t_next - t) * d
        if second_order and not to_zero[step]:  # a step to zero stays an Euler step
            d_next = (x_next - denoise(x_next, t_next)) / t_next
            x_next = x + (t_next - t) * (d + d_next) / 2
        x = x_next
    return x


def _churning(
    levels: Tensor, churn: float, low: float, high: float, scale: float, fresh: Fresh | None
) -> _Raise:
    """A function that adds noise before a step and says which level that gives.

    EDM, Algorithm 2, lines 4 to 6. Without churn it leaves every bit as it is.
    """
    if churn == 0:
        return lambda step, x, t: (x, t)
    if fresh is None:
        raise UsageError(
            f"Churn is {churn} and there is no fresh noise to add.",
            expected="`fresh`, a function from the step to standard normal noise",
            remedy="Pass `fresh`, or set churn to 0.",
        )
    gamma = min(churn / (len(levels) - 1), math.sqrt(2) - 1)
    inside = [low <= level <= high for level in levels.tolist()]

    def raise_level(step: int, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not inside[step]:
            return x, t
        # sqrt(t_hat^2 - t^2) = t sqrt(gamma (2 + gamma)), which does not cancel
        added = math.sqrt(gamma * (2 + gamma)) * scale
        return x + t * added * fresh(step).to(x), t * (1 + gamma)

    return raise_level
