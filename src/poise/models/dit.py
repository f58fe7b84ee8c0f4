"""The diffusion transformer with adaLN-zero blocks.

Source: Peebles & Xie 2023, "Scalable Diffusion Models with Transformers" (DiT), Section 3.2 and
Table 1. Here it maps scaled noisy images, a noise code and labels to an output of the same shape,
without the paper's learned sigma. It knows nothing of preconditioning, loss, sampler or EMA.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.errors import UsageError
from poise.models.layers import PlainAugment, attend
from poise.models.layers import activation as activation_named

_FEATURES = 256  # of the noise level
_PERIOD = 10_000.0  # the slowest wave of positions and noise features is so much slower
_GELU_RMS = 0.6521  # root mean square of gelu(x) for x ~ N(0, 1)


class BiasedLinear(nn.Linear):
    """A linear layer in the arithmetic of its input; the stored weights keep their precision."""

    def __init__(self, in_channels: int, out_channels: int, *, zero: bool = False) -> None:
        """
        Args:
            in_channels: width of the input.
            out_channels: width of the output.
            zero: start from zero and not from Xavier's uniform distribution.
        """
        super().__init__(in_channels, out_channels)
        nn.init.zeros_(self.bias)
        if zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class Block(nn.Module):
    """Attention and an MLP, each with its input shifted and scaled and its output gated.

    The six vectors follow from the embedding through a layer that starts at zero, so the block
    starts as the identity (adaLN-zero; DiT, Section 3.2).
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        act: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.act = heads, dropout, act
        self.modulation = BiasedLinear(channels, 6 * channels, zero=True)
        self.qkv = BiasedLinear(channels, 3 * channels)
        self.proj = BiasedLinear(channels, channels)
        self.mlp0 = BiasedLinear(channels, hidden)
        self.mlp1 = BiasedLinear(hidden, channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Tokens `x` [B, N, C] and an activated embedding `emb` [B, C] -> [B, N, C]."""
        shift0, scale0, gate0, shift1, scale1, gate1 = self.modulation(emb)[:, None].chunk(6, dim=2)
        q, k, v = split_heads(self.qkv(_modulate(x, shift0, scale0)), self.heads)
        x = torch.addcmul(x, gate0, self.proj(join_heads(attend(q, k, v))))
        y = self.act(self.mlp0(_modulate(x, shift1, scale1)))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        return torch.addcmul(x, gate1, self.mlp1(y))


class DiT(nn.Module):
    """The diffusion transformer with adaLN-zero.

    Published sizes as depth, channels, heads: S 12, 384, 6; B 12, 768, 12; L 24, 1024, 16;
    XL 28, 1152, 16 (72 channels per head); each with patches of 2, 4 and 8.
    """

    positions: Tensor

    def __init__(
        self,
        *,
        resolution: int,  # side of the images in pixels
        channels_in: int,  # channels of the images
        num_classes: int,  # 0: unconditional
        channels: int = 384,  # width of a token
        depth: int = 12,  # blocks
        channels_per_head: int = 64,
        patch: int = 2,  # side of the square of pixels that makes a token
        mlp_ratio: float = 4.0,  # width of the MLP in multiples of `channels`
        dropout: float = 0.0,  # in the MLP
        activation: str = "gelu",  # of the MLP; gelu is its tanh form
        augment_dim: int = 0,  # numbers that tell how an image was transformed; 0: it never is
    ) -> None:
        """
        Raises:
            UsageError: the image has no whole patches, or the width no whole heads.
        """
        super().__init__()
        check_tokens(resolution, patch, channels, channels_per_head, depth)
        self.num_classes, self.patch = num_classes, patch
        positions = grid_positions(resolution // patch, channels)
        self.register_buffer("positions", positions, persistent=False)
        self.patch_in = BiasedLinear(channels_in * patch**2, channels)
        self.noise0 = BiasedLinear(_FEATURES, channels)
        self.noise1 = BiasedLinear(channels, channels)
        self.label_table = None
        if num_classes:  # the last row stands for "no label"
            self.label_table = nn.Embedding(num_classes + 1, channels)
            nn.init.normal_(self.label_table.weight, std=0.02)
        self.blocks = nn.ModuleList(
            Block(
                channels,
                channels // channels_per_head,
                round(mlp_ratio * channels),
                dropout=dropout,
                act=mlp_activation(activation, preserve=False),
            )
            for _ in range(depth)
        )
        self.out_modulation = BiasedLinear(channels, 2 * channels, zero=True)
        self.out = BiasedLinear(channels, channels_in * patch**2, zero=True)
        self.emb_augment = PlainAugment(augment_dim, channels) if augment_dim else None

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        labels: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Predict from scaled noisy images.

        Args:
            x: images [B, C, H, W]; its dtype is that of the arithmetic.
            c_noise: noise code ln(sigma) / 4 [B], fp32.
            labels: class indices [B], or one-hot rows [B, num_classes], or None; a row of zeros
                is "no label" too.
            augment: how each image was transformed [B, augment_dim]; None: not at all, which is
                what zeros say too.
        """
        emb = F.silu(self._embedding(c_noise, labels, augment)).to(x.dtype)
        tokens = self.patch_in(patchify(x, self.patch)) + self.positions.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, emb)
        shift, scale = self.out_modulation(emb)[:, None].chunk(2, dim=2)
        return unpatchify(self.out(_modulate(tokens, shift, scale)), self.patch)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None = None
    ) -> Tensor:
        features = self.noise0(noise_features(c_noise))
        if augment is not None:
            assert self.emb_augment is not None, "built with augment_dim = 0"
            features = self.emb_augment(features, augment)
        emb: Tensor = self.noise1(F.silu(features))  # [B, C]
        if self.label_table is None:
            return emb
        table = self.label_table.weight
        if labels is None:
            return emb + table[-1]
        if labels.ndim == 1:
            return emb + F.embedding(labels, table)
        rows = labels.to(table.dtype)
        return emb + rows @ table[:-1] + (1 - rows.sum(dim=1, keepdim=True)) * table[-1]


def patchify(x: Tensor, patch: int) -> Tensor:
    """Images [B, C, H, W] -> tokens [B, H/p * W/p, C * p * p], row by row."""
    B, C, H, W = x.shape
    x = x.reshape(B, C, H // patch, patch, W // patch, patch)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, C * patch**2)


def unpatchify(tokens: Tensor, patch: int) -> Tensor:
    """The inverse of `patchify` for square images."""
    B, N, _ = tokens.shape
    side = math.isqrt(N)
    x = tokens.reshape(B, side, side, -1, patch, patch)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(B, -1, side * patch, side * patch)


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """[B, N, 3 * C] -> queries, keys and values, [B, heads, C/heads, N] each."""
    B, N, _ = qkv.shape
    q, k, v = qkv.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 4, 1).unbind(0)
    return q, k, v


def join_heads(y: Tensor) -> Tensor:
    """[B, heads, C/heads, N] -> tokens [B, N, C]."""
    return y.permute(0, 3, 1, 2).flatten(2)


def grid_positions(side: int, channels: int) -> Tensor:
    """Sines and cosines of a square grid's coordinates: one vector for each token, fp32.

    Half of the channels tell the row and half the column, with wavelengths of 2 pi to 20,000 pi
    tokens in a geometric series. Each sine has its cosine, so every vector has the mean square 1/2.

    Args:
        side: tokens in a row.
        channels: a multiple of 4.

    Returns:
        [side * side, channels].
    """
    freqs = _PERIOD ** (-torch.arange(channels // 4) / (channels // 4))
    angles = torch.outer(torch.arange(side).float(), freqs)
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [side, channels/2]
    rows = line[:, None].expand(side, side, -1)
    columns = line[None, :].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)


def noise_features(c_noise: Tensor) -> Tensor:
    """256 sines and cosines of the noise level, [B] -> [B, 256], fp32.

    The paper's levels are steps 0 to 1000 of a chain. Noise codes ln(sigma) / 4 from -2 to 2 are
    spread over the same range, so the quickest wave turns by one radian where sigma changes by
    1.6 %, about one step of that chain, and the slowest ones are monotonic.
    """
    half = _FEATURES // 2
    freqs = _PERIOD ** (-torch.arange(half, device=c_noise.device) / half)
    angles = torch.outer(250 * (c_noise.float() + 2), freqs)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def mlp_activation(name: str, *, preserve: bool) -> Callable[[Tensor], Tensor]:
    """The activation function `name`: "gelu" (its tanh form) or one that `layers` has.

    Args:
        name: of the function.
        preserve: scale it to unit magnitude for normal inputs (EDM2, Eq. 81).
    """
    if name != "gelu":
        return activation_named(name, preserve=preserve)
    gelu = partial(F.gelu, approximate="tanh")
    return (lambda x: gelu(x) / _GELU_RMS) if preserve else gelu


def check_tokens(
    resolution: int, patch: int, channels: int, channels_per_head: int, depth: int
) -> None:
    """Refuse images without whole patches and tokens without whole heads.

    Raises:
        UsageError: with values that fit.
    """
    if patch < 1 or resolution % patch:
        raise UsageError(
            f"An image of {resolution} pixels cannot be cut into patches of {patch}.",
            expected="model.patch to divide the resolution",
            remedy=f"set model.patch={math.gcd(resolution, max(patch, 1))}.",
        )
    if depth < 1:
        raise UsageError(f"model.depth = {depth}.", expected="at least one block")
    if channels_per_head < 1:
        raise UsageError(
            f"model.channels_per_head = {channels_per_head}.", expected="at least one channel"
        )
    step = math.lcm(channels_per_head, 4)  # positions are sines and cosines in two directions
    if channels < 1 or channels % step:
        raise UsageError(
            f"{channels} channels do not make whole heads of {channels_per_head}, or cannot hold "
            "positions in two directions.",
            expected=f"model.channels to be a multiple of {step}",
            remedy=f"set model.channels={max(1, round(channels / step)) * step}.",
        )


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Tokens [B, N, C] with zero mean and unit variance each, scaled and shifted by [B, 1, C]."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), scale + 1)
