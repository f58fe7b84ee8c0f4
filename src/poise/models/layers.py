"""Magnitude-preserving primitives: operations that keep the expected size of what flows through.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(EDM2), whose equation numbers stand beside each formula. No layer here knows a network.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-4
_SILU_RMS = 0.596  # root mean square of silu(x) for x ~ N(0, 1)


def normalize(x: Tensor, dim: int | tuple[int, ...] | None = None, eps: float = _EPS) -> Tensor:
    """Divide by the root mean square over `dim`; by default over all dimensions but the first.

    The square root is taken in fp32 and `eps` is added to it (EDM2, Eq. 47).
    """
    if dim is None:
        dim = tuple(range(1, x.ndim))
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    rms = eps + norm * math.sqrt(norm.numel() / x.numel())
    y: Tensor = x / rms.to(x.dtype)
    return y


def mp_silu(x: Tensor) -> Tensor:
    """SiLU scaled to unit magnitude (EDM2, Eq. 81)."""
    return F.silu(x) / _SILU_RMS


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Weighted sum of two signals of equal magnitude, `t` the weight of `b` (EDM2, Eq. 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Concatenate over channels, `t` the contribution of `b` whatever its width (EDM2, Eq. 103)."""
    n_a, n_b = a.shape[1], b.shape[1]
    scale = math.sqrt((n_a + n_b) / ((1 - t) ** 2 + t**2))
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(n_a)), b * (scale * t / math.sqrt(n_b))], dim=1
    )


def downsample(x: Tensor) -> Tensor:
    """Halve the resolution by the mean of 2x2 pixels."""
    return F.avg_pool2d(x, 2)


def upsample(x: Tensor) -> Tensor:
    """Double the resolution by repeating pixels."""
    return F.interpolate(x, scale_factor=2, mode="nearest")


class MPFourier(nn.Module):
    """Random Fourier features sqrt(2) cos(freqs x + phases) of a scalar, fp32 (EDM2, Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int, bandwidth: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * bandwidth * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:  # [B] -> [B, channels]
        return math.sqrt(2) * torch.outer(x.float(), self.freqs.float()).add(self.phases).cos()


class MPConv(nn.Module):
    """Linear layer or "same" convolution without bias whose effective weight has unit rows.

    The weight is normalised in the forward pass, which makes its gradient orthogonal to it; the
    stored tensor is brought back to unit magnitude by `force_unit_weight` between updates
    (EDM2, Eqs. 47 and 66).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int | None = None) -> None:
        """
        Args:
            in_channels: width of the input.
            out_channels: width of the output.
            kernel: side of the convolution kernel, odd; None for a linear layer.
        """
        super().__init__()
        shape = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *shape))
        self.fan_in = self.weight[0].numel()

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = normalize(self.weight.float()) * (gain / math.sqrt(self.fan_in))
        w = w.to(x.dtype)
        if w.ndim == 2:
            return x @ w.t()
        return F.conv2d(x, w, padding=w.shape[-1] // 2)

    @torch.no_grad()
    def force_unit_weight(self, where: Tensor | None = None) -> None:
        """Bring each row of the stored weight to unit magnitude, unless the flag `where` is false.

        The decision is taken on the weight's device, so a training step need not wait for it.
        """
        unit = normalize(self.weight)
        self.weight.copy_(unit if where is None else torch.where(where, unit, self.weight))
