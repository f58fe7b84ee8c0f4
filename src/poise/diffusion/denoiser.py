"""Preconditioning: any network becomes `denoiser(x, sigma, labels) -> clean images`.

Source: Karras et al. 2022 (EDM), Section 5. `sigma_data` lives here and nowhere else; what the
network is asked for is its formulation, EDM unless told otherwise.
"""

import torch
from torch import Tensor, nn

from poise.diffusion.formulations import EDM, Formulation


class Denoiser(nn.Module):
    """The one call of every model: an estimate of the clean images from noisy ones."""

    def __init__(
        self,
        network: nn.Module,
        uncertainty: nn.Module,
        *,
        sigma_data: float,
        dtype: torch.dtype = torch.float32,
        formulation: Formulation | None = None,
    ) -> None:
        """
        Args:
            network: `(x [B, C, H, W], c_noise [B], labels) -> [B, C, H, W]`; one that learns from
                augmented images takes their labels as a fourth argument.
            uncertainty: `c_noise [B] -> u [B]`, the log-variance of the weighted error.
            sigma_data: standard deviation of the clean images; the error is measured by it.
            dtype: arithmetic of the network; everything around it is fp32.
            formulation: what the network is asked for; None: EDM with this sigma_data.
        """
        super().__init__()
        self.network, self.uncertainty = network, uncertainty
        self.sigma_data, self.dtype = sigma_data, dtype
        self.formulation: Formulation = EDM(sigma_data) if formulation is None else formulation

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: noisy images [B, C, H, W].
            sigma: noise level [B], or one for all [].
            labels: class indices [B], one-hot rows [B, num_classes], or None.
            augment: how each image was transformed [B, A], in training alone; None: not at all.

        Returns:
            [B, C, H, W] in fp32: c_skip x + c_out F(c_in x, c_noise) (EDM, Eq. 7).
        """
        x = x.float()
        c = self.formulation.coefficients(sigma.float().reshape(-1, 1, 1, 1))
        c_noise = _noise_code(sigma).expand(x.shape[0])
        scaled = (c.c_in * x).to(self.dtype)
        told = () if augment is None else (augment,)  # most networks know nothing of it
        F = self.network(scaled, c_noise, labels, *told)
        D: Tensor = c.c_skip * x + c.c_out * F.float()
        return D

    @property
    def num_classes(self) -> int:
        """Classes that the network knows; 0: it is unconditional."""
        return int(getattr(self.network, "num_classes", 0))

    def log_variance(self, sigma: Tensor) -> Tensor:
        """The learned log-variance u(sigma), [B]; used only to weigh the loss."""
        u: Tensor = self.uncertainty(_noise_code(sigma))
        return u

    def normalize_weights_(self, where: Tensor | None = None) -> None:
        """Bring every weight with forced normalisation back to unit rows (EDM2, Section 2.3).

        Done once per update, outside the forward pass, so that two forward passes can precede one
        backward pass.

        Args:
            where: optional flag [] on the weights' device; false leaves them as they are.
        """
        for module in self.modules():
            force = getattr(module, "force_unit_weight", None)
            if force is not None:
                force(where)


def _noise_code(sigma: Tensor) -> Tensor:
    c_noise: Tensor = sigma.float().reshape(-1).log() / 4
    return c_noise
