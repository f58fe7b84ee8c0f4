"""Magnitude-preserving primitives: operations that keep the expected size of what flows through.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
(EDM2), whose equation numbers stand beside each formula. No layer here knows a network.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS = 1e-4
_SLOPE = 0.2  # of leaky_relu below zero
_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    # name: the function, and the root mean square of what it makes of N(0, 1)
    "silu": (F.silu, 0.596),  # EDM2's figure; the exact one is 0.5965
    "relu": (F.relu, math.sqrt(0.5)),
    "leaky_relu": (lambda x: F.leaky_relu(x, _SLOPE), math.sqrt((1 + _SLOPE**2) / 2)),
    "elu": (F.elu, 0.8031),
}


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


def activation(name: str, *, preserve: bool) -> Callable[[Tensor], Tensor]:
    """The activation function `name`.

    Args:
        name: "silu", "relu", "leaky_relu" (slope 0.2) or "elu".
        preserve: scale it to unit magnitude for normal inputs (EDM2, Eq. 81).
    """
    function, rms = _ACTIVATIONS[name]
    return (lambda x: function(x) / rms) if preserve else function


mp_silu = activation("silu", preserve=True)


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


def downsample(x: Tensor, taps: Sequence[float] = (1, 1)) -> Tensor:
    """Halve the resolution with a separable filter of even length; [1, 1] is the 2x2 mean."""
    if tuple(taps) == (1, 1):
        return F.avg_pool2d(x, 2)
    kernel, padding = _filter(x, taps)
    return F.conv2d(x, kernel, stride=2, padding=padding, groups=x.shape[1])


def upsample(x: Tensor, taps: Sequence[float] = (1, 1)) -> Tensor:
    """Double the resolution with a separable filter of even length; [1, 1] repeats pixels."""
    if tuple(taps) == (1, 1):
        return F.interpolate(x, scale_factor=2, mode="nearest")
    kernel, padding = _filter(x, taps)
    return F.conv_transpose2d(x, 4 * kernel, stride=2, padding=padding, groups=x.shape[1])


def _filter(x: Tensor, taps: Sequence[float]) -> tuple[Tensor, int]:
    """The filter as a depthwise kernel [C, 1, n, n] that sums to 1, and its padding."""
    kernel = _kernel(tuple(taps), x.device, x.dtype)
    return kernel.expand(x.shape[1], 1, -1, -1), (len(taps) - 1) // 2


@lru_cache
def _kernel(taps: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    line = torch.tensor(taps, dtype=torch.float64)
    return (torch.outer(line, line) / line.sum() ** 2).to(device, dtype)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q'k / sqrt(c)) v for [B, heads, c, pixels] each -> the same shape."""
    if q.device.type == "cuda":
        return F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
    # written out: the fused kernel's backward pass is slow on a CPU
    weights = (q.mT @ k / math.sqrt(q.shape[2])).softmax(dim=3)
    return v @ weights.mT


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

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | None = None, *, forced: bool = True
    ) -> None:
        """
        Args:
            in_channels: width of the input.
            out_channels: width of the output.
            kernel: side of the convolution kernel, odd; None for a linear layer.
            forced: whether the stored weight is kept at unit magnitude too.
        """
        super().__init__()
        shape = () if kernel is None else (kernel, kernel)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *shape))
        self.fan_in, self.forced = self.weight[0].numel(), forced

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        w = normalize(self.weight.float()) * (gain / math.sqrt(self.fan_in))
        return _apply(w.to(x.dtype), x)

    @torch.no_grad()
    def force_unit_weight(self, where: Tensor | None = None) -> None:
        """Bring each row of the stored weight to unit magnitude, unless the flag `where` is false.

        The decision is taken on the weight's device, so a training step need not wait for it.
        """
        if self.forced:
            unit = normalize(self.weight)
            self.weight.copy_(unit if where is None else torch.where(where, unit, self.weight))


class PlainConv(nn.Module):
    """Linear layer or "same" convolution without bias that uses its weight as it is."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int | None = None, *, zero: bool = False
    ) -> None:
        """
        Args:
            in_channels: width of the input.
            out_channels: width of the output.
            kernel: side of the convolution kernel, odd; None for a linear layer.
            zero: start from zero, not from U(-1, 1) / sqrt(fan_in).
        """
        super().__init__()
        shape = () if kernel is None else (kernel, kernel)
        weight = torch.zeros(out_channels, in_channels, *shape)
        if not zero:
            nn.init.uniform_(weight, -1, 1).div_(math.sqrt(weight[0].numel()))
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        return _apply((self.weight * gain).to(x.dtype), x)


class MPAugment(nn.Module):
    """Adds to an embedding how its image was transformed, and keeps the embedding's magnitude.

    The sum is divided by its expected size. A label of zeros adds nothing and is divided by one: it
    leaves the embedding as it is, bit by bit. The learned gain starts at one: from zero, behind the
    gains of the blocks, which start there too, labels would be heard late.
    """

    def __init__(self, augment_dim: int, channels: int, *, forced: bool = True) -> None:
        """
        Args:
            augment_dim: numbers of a label.
            channels: width of the embedding.
            forced: whether the stored weight is kept at unit magnitude.
        """
        super().__init__()
        self.linear = MPConv(augment_dim, channels, forced=forced)
        self.gain = nn.Parameter(torch.ones([]))
        self.unit = math.sqrt(augment_dim)  # one number of size 1 adds unit magnitude

    def forward(self, emb: Tensor, augment: Tensor) -> Tensor:  # [B, E], [B, A] -> [B, E]
        added = self.linear(augment.to(emb.dtype) * self.unit, gain=self.gain)
        size = (1 + added.square().mean(dim=1, keepdim=True)).sqrt()
        y: Tensor = (emb + added) / size
        return y


class PlainAugment(nn.Module):
    """Adds to features how their image was transformed; a label of zeros adds nothing."""

    def __init__(self, augment_dim: int, channels: int) -> None:
        """
        Args:
            augment_dim: numbers of a label.
            channels: width of the features.
        """
        super().__init__()
        self.linear = PlainConv(augment_dim, channels)
        self.unit = math.sqrt(augment_dim)

    def forward(self, emb: Tensor, augment: Tensor) -> Tensor:  # [B, E], [B, A] -> [B, E]
        y: Tensor = emb + self.linear(augment.to(emb.dtype) * self.unit)
        return y


def _apply(w: Tensor, x: Tensor) -> Tensor:
    if w.ndim == 2:
        return x @ w.t()
    return F.conv2d(x, w, padding=w.shape[-1] // 2)


class PixelNorm(nn.Module):
    """Unit root mean square over the channels of each pixel."""

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> same
        return normalize(x, dim=1)


def norm_layer(kind: str, channels: int, *, affine: bool = True) -> nn.Module:
    """A normalisation of [B, C, H, W]: "group" (at most 32 groups of 4 or more), "batch", "pixel"
    or "none"."""
    if kind == "group":
        most = min(32, max(channels // 4, 1))
        groups = max(g for g in range(1, most + 1) if channels % g == 0)
        return nn.GroupNorm(groups, channels, eps=1e-5, affine=affine)
    if kind == "batch":
        return nn.BatchNorm2d(channels, affine=affine)
    return PixelNorm() if kind == "pixel" else nn.Identity()


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """The same convolution, giving out zero until it learns: a residual branch starts silent."""
    nn.init.zeros_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


def reinitialise_(network: nn.Module, kind: str) -> None:
    """Draw every weight anew from a normal distribution; those that start at zero stay there.

    Args:
        network: weights with two or more dimensions are drawn, biases and norms are left alone.
        kind: "xavier" has variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010), "he" 2 / fan_in
            (He et al. 2015), "unit" 1 / fan_in.
    """
    for weight in network.parameters():
        if weight.ndim < 2 or not weight.detach().any():
            continue
        fan_in, fan_out = weight[0].numel(), weight.numel() // weight.shape[1]
        variance = {"xavier": 2 / (fan_in + fan_out), "he": 2 / fan_in, "unit": 1 / fan_in}[kind]
        nn.init.normal_(weight, std=math.sqrt(variance))
