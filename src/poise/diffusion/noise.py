"""Noise levels and noisy images, drawn outside the network."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from poise.diffusion.formulations import Formulation
from poise.errors import UsageError, nearest

Distribution = Literal["log_normal", "logit_normal", "uniform"]


@dataclass(frozen=True)
class Noised:
    """Images before and after noise was added."""

    clean: Tensor  # [B, C, H, W] in [-1, 1]
    sigma: Tensor  # [B], standard deviation of the noise
    x: Tensor  # [B, C, H, W] = clean + sigma * N(0, 1)
    augment: Tensor | None = None  # [B, A], how `clean` was transformed, which the network is told

    def part(self, which: slice) -> "Noised":
        """Some of the images."""
        augment = None if self.augment is None else self.augment[which]
        return Noised(self.clean[which], self.sigma[which], self.x[which], augment)


def log_normal(count: int, P_mean: float, P_std: float, generator: torch.Generator) -> Tensor:
    """`count` noise levels with ln(sigma) ~ N(P_mean, P_std^2) (EDM, Table 1)."""
    z = torch.randn(count, generator=generator, device=generator.device)
    return (P_mean + P_std * z).exp()


def draw_levels(
    distribution: Distribution,
    formulation: Formulation,
    count: int,
    P_mean: float,
    P_std: float,
    generator: torch.Generator,
) -> Tensor:
    """`count` noise levels to train on, levels that the formulation knows.

    Args:
        distribution: what is drawn.
            "log_normal": ln(sigma) ~ N(P_mean, P_std^2), then the nearest known level; what lies
            beyond a chain's ends gathers at the ends (EDM, Table 1).
            "logit_normal": the formulation's time is sigmoid(N(P_mean, P_std^2)) (Esser et al.
            2024, Section 3.1). For rectified flow that is "log_normal", since ln(sigma) = logit(t).
            "uniform": its time is uniform; P_mean and P_std say nothing.
        formulation: knows its levels and its time.
        count: B.
        P_mean: in ln(sigma) or in logit(time).
        P_std: likewise.
        generator: decides the draw and the device.

    Returns:
        Standard deviations [B], fp32, positive.

    Raises:
        UsageError: an unknown distribution.
    """
    if distribution == "log_normal":
        return formulation.nearest(log_normal(count, P_mean, P_std, generator))
    if distribution == "logit_normal":
        z = torch.randn(count, generator=generator, device=generator.device)
        return formulation.sigma_at((P_mean + P_std * z).sigmoid())
    if distribution == "uniform":
        time = torch.rand(count, generator=generator, device=generator.device)
        return formulation.sigma_at(time)
    known = get_args(Distribution)
    raise UsageError(
        f"The noise distribution {distribution!r} is unknown. {nearest(distribution, known)}",
        expected="one of " + ", ".join(known),
    )


def corrupt(clean: Tensor, sigma: Tensor, generator: torch.Generator) -> Noised:
    """Add Gaussian noise of standard deviation `sigma` [B] to images [B, C, H, W]."""
    noise = torch.randn(clean.shape, generator=generator, device=generator.device)
    return Noised(clean, sigma, clean + sigma[:, None, None, None] * noise)
