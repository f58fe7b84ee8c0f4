"""The EDM2 U-Net (config G of Karras et al. 2024) and its uncertainty head.

The network maps scaled noisy images, a noise code and class labels to an output of the same shape.
It knows nothing of preconditioning, loss, sampler or EMA.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.errors import UsageError
from poise.models.layers import (
    MPConv,
    MPFourier,
    downsample,
    mp_cat,
    mp_silu,
    mp_sum,
    normalize,
    upsample,
)

_Level = tuple[str, int, bool]  # "16x16", its width, whether its blocks attend


class SelfAttention(nn.Module):
    """Attention over all pixels; queries, keys and values have unit magnitude (EDM2)."""

    def __init__(self, channels: int, channels_per_head: int, balance: float) -> None:
        super().__init__()
        self.heads = channels // channels_per_head
        self.balance = balance
        self.qkv = MPConv(channels, 3 * channels, kernel=1)
        self.proj = MPConv(channels, channels, kernel=1)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> same
        B, C, H, W = x.shape
        y = self.qkv(x).reshape(B, self.heads, C // self.heads, 3, H * W)
        q, k, v = normalize(y, dim=2).unbind(3)  # [B, heads, C/heads, HW] each
        if x.device.type == "cuda":
            y = F.scaled_dot_product_attention(q.mT, k.mT, v.mT).mT
        else:  # written out: the fused kernel's backward pass is slow on a CPU
            weights = (q.mT @ k / math.sqrt(q.shape[2])).softmax(dim=3)
            y = v @ weights.mT
        return mp_sum(x, self.proj(y.reshape(B, C, H, W)), self.balance)


class Block(nn.Module):
    """Residual block of the encoder or the decoder, with optional resampling and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        decoder: bool = False,  # where the skip convolution sits, and whether x is normalised
        resample: str = "keep",  # "keep", "down" or "up"
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        self.decoder, self.resample = decoder, resample
        self.dropout, self.res_balance, self.clip_act = dropout, res_balance, clip_act
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(in_channels if decoder else out_channels, out_channels, kernel=3)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, kernel=3)
        self.conv_skip = (
            MPConv(in_channels, out_channels, kernel=1) if in_channels != out_channels else None
        )
        self.attention = (
            SelfAttention(out_channels, channels_per_head, attn_balance) if attention else None
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`x` [B, C_in, H, W] and `emb` [B, E] -> [B, C_out, H', W']."""
        if self.resample == "down":
            x = downsample(x)
        elif self.resample == "up":
            x = upsample(x)
        if not self.decoder:
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            x = normalize(x, dim=1)
        y = self.conv_res0(mp_silu(x))
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        y = self.conv_res1(y)
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.attention is not None:
            x = self.attention(x)
        return x.clamp(-self.clip_act, self.clip_act)


class UNet(nn.Module):
    """The EDM2 U-Net; entries are named `{resolution}x{resolution}_{role}`."""

    def __init__(
        self,
        *,
        resolution: int,  # side of the images in pixels
        channels_in: int,  # channels of the images
        num_classes: int,  # 0: unconditional
        channels: int = 192,  # width of the first level
        channel_mult: Sequence[int] = (1, 2, 3, 4),  # width of each level in multiples of it
        num_blocks: int = 3,  # residual blocks per level
        attn_resolutions: Sequence[int] = (16, 8),  # where blocks attend
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        clip_act: float = 256.0,
    ) -> None:
        """
        Raises:
            UsageError: the resolution cannot be halved often enough, or a width has no whole heads.
        """
        super().__init__()
        _check_shapes(
            resolution, channels, channel_mult, num_blocks, attn_resolutions, channels_per_head
        )
        self.num_classes = num_classes
        self.label_balance, self.concat_balance = label_balance, concat_balance
        widths = [channels * mult for mult in channel_mult]
        emb = max(widths)
        self.emb_fourier = MPFourier(widths[0])
        self.emb_noise = MPConv(widths[0], emb)
        self.emb_label = MPConv(num_classes, emb) if num_classes else None

        block = partial(
            Block,
            emb_channels=emb,
            channels_per_head=channels_per_head,
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
        )
        sides = [resolution >> level for level in range(len(widths))]
        levels = [
            (f"{side}x{side}", width, side in attn_resolutions)
            for side, width in zip(sides, widths, strict=True)
        ]
        # one channel of ones stands in for biases
        self.enc, skips = _encoder(levels, channels_in + 1, num_blocks, block)
        self.dec = _decoder(levels, skips, num_blocks, block)
        self.out_conv = MPConv(widths[0], channels_in, kernel=3)
        self.out_gain = nn.Parameter(torch.zeros([]))

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict from scaled noisy images.

        Args:
            x: images [B, C, H, W]; its dtype is that of the arithmetic.
            c_noise: noise code [B], fp32.
            labels: class indices [B], or one-hot rows [B, num_classes], or None.
        """
        emb = self._embedding(c_noise, labels).to(x.dtype)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = module(x, emb)
        y: Tensor = self.out_conv(x, gain=self.out_gain)
        return y

    def _embedding(self, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        emb: Tensor = self.emb_noise(self.emb_fourier(c_noise))  # [B, E]
        if self.emb_label is not None:
            if labels is None:
                rows = emb.new_zeros(1, self.num_classes)
            elif labels.ndim == 1:
                rows = F.one_hot(labels, self.num_classes).to(emb.dtype)
            else:
                rows = labels.to(emb.dtype)
            # sqrt(num_classes) gives one-hot rows unit magnitude
            label = self.emb_label(rows * math.sqrt(self.num_classes))
            emb = mp_sum(emb, label.expand_as(emb), self.label_balance)
        return mp_silu(emb)


def _encoder(
    levels: Sequence[_Level], channels_in: int, num_blocks: int, block: Callable[..., Block]
) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the width of each output, which the decoder takes in."""
    enc, skips = nn.ModuleDict(), []
    c = channels_in
    for level, (name, width, attends) in enumerate(levels):
        if level == 0:
            enc[f"{name}_conv"] = MPConv(c, width, kernel=3)
            c = width
        else:
            enc[f"{name}_down"] = block(c, c, resample="down")
        skips.append(c)
        for i in range(num_blocks):
            enc[f"{name}_block{i}"] = block(c, width, attention=attends)
            c = width
            skips.append(c)
    return enc, skips


def _decoder(
    levels: Sequence[_Level], skips: Sequence[int], num_blocks: int, block: Callable[..., Block]
) -> nn.ModuleDict:
    """The way up; each block takes in one output of the encoder, the last one first."""
    dec, left = nn.ModuleDict(), list(skips)
    c = left[-1]
    for name, width, attends in reversed(levels):
        if not dec:
            dec[f"{name}_in0"] = block(c, c, decoder=True, attention=True)
            dec[f"{name}_in1"] = block(c, c, decoder=True)
        else:
            dec[f"{name}_up"] = block(c, c, decoder=True, resample="up")
        for i in range(num_blocks + 1):
            dec[f"{name}_block{i}"] = block(c + left.pop(), width, decoder=True, attention=attends)
            c = width
    return dec


class Uncertainty(nn.Module):
    """The learned log-variance u(sigma) of the weighted error (EDM2, Section 2.1 and Eq. 21)."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.linear = MPConv(channels, 1)

    def forward(self, c_noise: Tensor) -> Tensor:  # [B] -> [B]
        u: Tensor = self.linear(self.fourier(c_noise))
        return u[:, 0]


def _check_shapes(
    resolution: int,
    channels: int,
    channel_mult: Sequence[int],
    num_blocks: int,
    attn_resolutions: Sequence[int],
    channels_per_head: int,
) -> None:
    halvings = len(channel_mult) - 1
    if resolution % 2**halvings or resolution < 2**halvings:
        fitting = max(2**halvings, resolution - resolution % 2**halvings)
        raise UsageError(
            f"A network of {len(channel_mult)} levels halves the image {halvings} times, and "
            f"{resolution} pixels cannot be halved so often.",
            expected=f"a resolution divisible by {2**halvings}",
            remedy=f"set data.resolution={fitting}, or use fewer levels in model.channel_mult.",
        )
    if num_blocks < 1 or min(channel_mult) < 1:
        raise UsageError(
            f"model.num_blocks = {num_blocks} and model.channel_mult = {list(channel_mult)}.",
            expected="at least one block per level and whole widths of 1 or more",
        )
    deepest = len(channel_mult) - 1
    for level, mult in enumerate(channel_mult):
        side, width = resolution >> level, channels * mult
        if side not in attn_resolutions and level != deepest:
            continue
        heads = width // channels_per_head
        if heads == 0 or width % heads:
            raise UsageError(
                f"Attention at {side}x{side} has {width} channels, which do not make whole heads "
                f"of about {channels_per_head}.",
                expected="model.channels_per_head no larger than the width and dividing it",
                remedy=f"set model.channels_per_head={math.gcd(width, 64)}.",
            )
