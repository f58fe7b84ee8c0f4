"""The training loss: one number per image, reduced by the caller."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.formulations import Formulation
from poise.diffusion.noise import Noised
from poise.errors import UsageError, nearest

Kind = Literal["uncertainty", "edm", "target", "min_snr", "p2"]


@dataclass(frozen=True)
class Weighting:
    """What the squared error of the clean images weighs at each noise level.

    With SNR = 1 / sigma^2 and lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2:

        "uncertainty"  lambda, and then error / exp(u) + u with the learned u (EDM2, Eq. 21)
        "edm"          lambda: error 1 everywhere before training (EDM, Section 5)
        "target"       1 / c_out^2: the plain squared error of what the network is asked for
        "min_snr"      min(SNR, gamma) (Hang et al. 2023, Section 3.4)
        "p2"           SNR / (k + SNR)^gamma, the loss on the noise over (k + SNR)^gamma
                       (Choi et al. 2022, Eq. 8)

    The size of the loss differs between kinds by orders of magnitude; Adam does not mind. Only
    "uncertainty" teaches u.
    """

    kind: Kind = "uncertainty"
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0

    def __post_init__(self) -> None:
        known = get_args(Kind)
        if self.kind not in known:
            raise UsageError(
                f"The weighting {self.kind!r} is unknown. {nearest(self.kind, known)}".rstrip(),
                expected="one of " + ", ".join(known),
            )
        above = 0 < self.min_snr_gamma < math.inf and 0 < self.p2_k < math.inf
        if not above or not 0 <= self.p2_gamma < math.inf:
            raise UsageError(
                f"min_snr_gamma {self.min_snr_gamma}, p2_gamma {self.p2_gamma}, p2_k {self.p2_k}",
                expected="positive numbers; p2_gamma may be 0",
            )

    def on_clean(self, sigma: Tensor, formulation: Formulation, sigma_data: float) -> Tensor:
        """The weight of the squared error (D - clean)^2 at noise levels of any shape."""
        if self.kind == "target":
            return formulation.coefficients(sigma).c_out ** -2
        if self.kind == "min_snr":
            return (sigma**-2).clamp(max=self.min_snr_gamma)
        if self.kind == "p2":
            # SNR / (k + SNR)^gamma with both sides times sigma^(2 gamma): finite for small sigma
            power = 2 * (self.p2_gamma - 1)
            return sigma**power / (self.p2_k * sigma**2 + 1) ** self.p2_gamma
        return _edm_weight(sigma, sigma_data)


@dataclass(frozen=True)
class Loss:
    """The loss of each image and the error it is made of."""

    weighted: Tensor  # [B], what is minimised: see Weighting; "uncertainty" can fall below zero
    error: Tensor  # [B], lambda(sigma) (D - y)^2, mean over pixels, whatever the weighting;
    # 1 when nothing is learned, and comparable between formulations


def denoising_loss(
    denoiser: Denoiser,
    noised: Noised,
    labels: Tensor | None,
    weighting: Weighting = Weighting(),
) -> Loss:
    """Weighted squared error of the clean images (EDM, Eq. 8; EDM2, Eq. 21)."""
    s, sd = noised.sigma, denoiser.sigma_data
    D = denoiser(noised.x, s, labels, noised.augment)
    squared = (D - noised.clean).square().mean(dim=(1, 2, 3))
    error = _edm_weight(s, sd) * squared
    if weighting.kind == "uncertainty":
        u = denoiser.log_variance(s)
        return Loss(error / u.exp() + u, error)
    return Loss(weighting.on_clean(s, denoiser.formulation, sd) * squared, error)


def _edm_weight(s: Tensor, sd: float) -> Tensor:
    weight: Tensor = (s**2 + sd**2) / (s * sd) ** 2
    return weight
