"""The training loss: one number per image, reduced by the caller."""

from dataclasses import dataclass

from torch import Tensor

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.noise import Noised


@dataclass(frozen=True)
class Loss:
    """The loss of each image and the error it is made of."""

    weighted: Tensor  # [B], error / exp(u) + u; below zero once the model is good
    error: Tensor  # [B], lambda(sigma) (D - y)^2, mean over pixels; 1 when nothing is learned


def denoising_loss(denoiser: Denoiser, noised: Noised, labels: Tensor | None) -> Loss:
    """Weighted squared error under a learned uncertainty (EDM, Eq. 8; EDM2, Eq. 21)."""
    s, sd = noised.sigma, denoiser.sigma_data
    weight = (s**2 + sd**2) / (s * sd) ** 2
    D = denoiser(noised.x, s, labels)
    error = weight * (D - noised.clean).square().mean(dim=(1, 2, 3))
    u = denoiser.log_variance(s)
    return Loss(error / u.exp() + u, error)
