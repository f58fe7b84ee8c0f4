"""What the network is asked for at each noise level: EDM, DDPM (eps, x0, v) or rectified flow.

Everything lives in variance-exploding space, x = clean + sigma * noise, so that one denoiser call,
one loss and one sampler serve all of them. A formulation says how the network's answer F becomes
clean images, D = c_skip x + c_out F(c_in x), and which noise levels it is made for. Where levels
are drawn is left to `noise`, what the errors weigh to `loss`.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from poise.errors import UsageError, nearest

Target = Literal["eps", "x0", "v"]
Schedule = Literal["linear", "cosine"]

_LARGEST_BETA = 0.999  # a step that kept nothing would make the level after it infinite


@dataclass(frozen=True)
class Coefficients:
    """D = c_skip x + c_out F(c_in x); each has the shape and type of the noise levels."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


class Formulation(Protocol):
    """What a denoiser, a loss and a sampler need to know."""

    @property
    def sigma_min(self) -> float:
        """The lowest noise level it is made for, above 0."""

    @property
    def sigma_max(self) -> float:
        """The highest noise level it is made for, finite."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """Scales of input and output at noise levels of any shape, all positive."""

    def sigma_at(self, time: Tensor) -> Tensor:
        """The noise level at its own time, 0 (clean) to 1 (noise); never falls as time grows."""

    def nearest(self, sigma: Tensor) -> Tensor:
        """The nearest level it knows; `sigma` itself where every level is known."""


@dataclass(frozen=True)
class EDM:
    """Input, target and error of unit variance at every level (Karras et al. 2022, Table 1).

    Its time is even in ln(sigma), from 0.002 to 80, the range of EDM's sampler.
    """

    sigma_data: float  # standard deviation of the clean images
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < math.inf:
            raise UsageError(f"sigma_data is {self.sigma_data}", expected="a positive number")
        _check_range(self.sigma_min, self.sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        s, sd = sigma, self.sigma_data
        total = (s**2 + sd**2).sqrt()
        return Coefficients(sd**2 / total**2, s * sd / total, 1 / total)

    def sigma_at(self, time: Tensor) -> Tensor:
        low, high = math.log(self.sigma_min), math.log(self.sigma_max)
        return (low + (high - low) * time).exp()

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma


@dataclass(frozen=True)
class DDPM:
    """A variance-preserving chain of `steps` levels, abar = 1 / (1 + sigma^2) (Ho et al. 2020).

    The network sees x_t = sqrt(abar) clean + sqrt(1 - abar) noise and answers with

        "eps"  the noise
        "x0"   the clean images
        "v"    sqrt(abar) noise - sqrt(1 - abar) clean (Salimans & Ho 2022)

    Level t of 0 .. steps - 1 is sigma = sqrt((1 - abar) / abar); time u is level floor(u steps).
    The coefficients hold between the levels too, so that a sampler need not stop at them.
    """

    target: Target
    schedule: Schedule = "linear"  # "linear": Ho et al. 2020; "cosine": Nichol & Dhariwal 2021
    steps: int = 1000

    def __post_init__(self) -> None:
        for name, found, known in (
            ("target", self.target, get_args(Target)),
            ("schedule", self.schedule, get_args(Schedule)),
        ):
            if found not in known:
                raise UsageError(
                    f"The {name} {found!r} is unknown. {nearest(str(found), known)}".rstrip(),
                    expected="one of " + ", ".join(known),
                )
        if self.steps < 2:
            raise UsageError(f"{self.steps} diffusion steps", expected="at least 2")

    @property
    def levels(self) -> Tensor:
        """Noise levels [steps], rising, fp64, on the CPU; do not write to it."""
        return _levels(self.schedule, self.steps)

    @property
    def sigma_min(self) -> float:
        return self.levels[0].item()

    @property
    def sigma_max(self) -> float:
        return self.levels[-1].item()

    def coefficients(self, sigma: Tensor) -> Coefficients:
        kept = 1 / (1 + sigma**2)  # abar
        if self.target == "eps":
            return Coefficients(torch.ones_like(sigma), -sigma, kept.sqrt())
        if self.target == "x0":
            return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), kept.sqrt())
        return Coefficients(kept, -sigma * kept.sqrt(), kept.sqrt())

    def sigma_at(self, time: Tensor) -> Tensor:
        levels, _ = _levels_on(self.schedule, self.steps, time.device)
        # a time just below 1 can round up to the step after the last
        index = (time * self.steps).long().clamp(0, self.steps - 1)
        return levels[index].to(time.dtype)

    def nearest(self, sigma: Tensor) -> Tensor:
        """The level nearest in ln(sigma); levels beyond the ends become the ends."""
        levels, borders = _levels_on(self.schedule, self.steps, sigma.device)
        return levels[torch.searchsorted(borders, sigma.double().contiguous())].to(sigma.dtype)


@dataclass(frozen=True)
class Flow:
    """Rectified flow: x_t = (1 - t) clean + t noise, sigma = t / (1 - t).

    The network sees x_t and answers with the velocity noise - clean (Lipman et al. 2022; Liu et
    al. 2022). Its time is t, cut to finite levels: below sigma = 0.001 the noise is a quarter of
    the rounding error of 8-bit images in [-1, 1], above 1000 the images are a thousandth of the
    noise. Uniform times lose 0.1 % at either end.
    """

    sigma_min: float = 1e-3
    sigma_max: float = 1e3

    def __post_init__(self) -> None:
        _check_range(self.sigma_min, self.sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        rest = 1 / (1 + sigma)  # 1 - t
        return Coefficients(rest, -sigma * rest, rest)

    def sigma_at(self, time: Tensor) -> Tensor:
        return (time / (1 - time)).clamp(self.sigma_min, self.sigma_max)

    def nearest(self, sigma: Tensor) -> Tensor:
        return sigma


def _check_range(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(
            f"noise levels from {sigma_min} to {sigma_max}", expected="0 < sigma_min < sigma_max"
        )


@lru_cache(maxsize=16)
def _levels(schedule: Schedule, steps: int) -> Tensor:
    """Noise levels of a chain, rising [steps], fp64.

    Summed as logarithms, since 1 - abar of the first steps would cancel.
    """
    exact: dict[str, Any] = {"dtype": torch.float64, "device": "cpu"}  # whatever is the default
    if schedule == "linear":  # 1e-4 to 0.02 were made for 1000 steps; the whole stays alike
        betas = 1000 / steps * torch.linspace(1e-4, 0.02, steps, **exact)
    else:
        t = torch.linspace(0, 1, steps + 1, **exact)
        kept = ((t + 0.008) / 1.008 * (math.pi / 2)).cos().square()
        betas = 1 - kept[1:] / kept[:-1]
    log_kept = (-betas.clamp(max=_LARGEST_BETA)).log1p().cumsum(0)  # ln abar
    return (-log_kept).expm1().sqrt()


@lru_cache(maxsize=16)
def _levels_on(schedule: Schedule, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """The levels and the geometric means between them, kept on the device: no copy, no wait."""
    levels = _levels(schedule, steps)
    borders = (levels[:-1] * levels[1:]).sqrt()
    return levels.to(device), borders.to(device)
