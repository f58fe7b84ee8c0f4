"""The EDM2 network (config G) and the rungs C to F that lead to it.

Source: Karras et al. 2024 (EDM2), Sections 2 and B.3. Here it maps noisy images, an encoded noise
level and labels to an output of the same shape. It knows nothing of preconditioning, loss, sampler
or EMA.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.models.layers import (
    MPAugment,
    MPConv,
    MPFourier,
    PlainAugment,
    PlainConv,
    activation,
    attend,
    downsample,
    mp_cat,
    mp_sum,
    norm_layer,
    normalize,
    upsample,
)
from poise.models.skeleton import check_shapes, decoder, encoder, levels_of


@dataclass(frozen=True)
class Rung:
    """What a step of EDM2's ablation changes in the network (EDM2, Section 2 and Fig. 5)."""

    learned: bool  # D: learned layers preserve magnitude; gains start at zero instead of weights
    forced: bool  # E: stored weights are kept at unit magnitude
    norm: str  # "group" up to E, then "pixel", in the encoder alone
    fixed: bool  # G: activations, sums, concatenations and features preserve magnitude


RUNGS = {
    "C": Rung(learned=False, forced=False, norm="group", fixed=False),
    "D": Rung(learned=True, forced=False, norm="group", fixed=False),
    "E": Rung(learned=True, forced=True, norm="group", fixed=False),
    "F": Rung(learned=True, forced=True, norm="pixel", fixed=False),
    "G": Rung(learned=True, forced=True, norm="pixel", fixed=True),
}


@dataclass(frozen=True)
class BlockShape:
    """What all blocks of a network have in common."""

    rung: Rung
    emb_channels: int
    channels_per_head: int = 64
    dropout: float = 0.0
    res_balance: float = 0.3
    attn_balance: float = 0.3
    clip_act: float = 256.0
    activation: str = "silu"
    resample_filter: tuple[float, ...] = (1, 1)

    def conv(self, c_in: int, c_out: int, kernel: int | None, *, zero: bool = False) -> nn.Module:
        """A learned layer of this rung; `zero` where rung C starts from zero."""
        if self.rung.learned:
            return MPConv(c_in, c_out, kernel, forced=self.rung.forced)
        return PlainConv(c_in, c_out, kernel, zero=zero)

    def augment(self, augment_dim: int) -> nn.Module:
        """What takes in the label of augmentation."""
        if self.rung.learned:
            return MPAugment(augment_dim, self.emb_channels, forced=self.rung.forced)
        return PlainAugment(augment_dim, self.emb_channels)

    def inner_norm(self, channels: int) -> nn.Module:
        """The norm inside of residual branches, if this rung has one there."""
        kind = self.rung.norm if self.rung.norm in ("group", "batch") else "none"
        return norm_layer(kind, channels, affine=False)

    def act(self) -> Callable[[Tensor], Tensor]:
        """The activation function, scaled to unit magnitude on rung G."""
        return activation(self.activation, preserve=self.rung.fixed)

    def join(self, x: Tensor, y: Tensor, balance: float) -> Tensor:
        """The main path plus a branch."""
        return mp_sum(x, y, balance) if self.rung.fixed else x + y


class SelfAttention(nn.Module):
    """Attention over all pixels; queries and keys have unit magnitude, on rung G values too."""

    def __init__(self, channels: int, shape: BlockShape) -> None:
        super().__init__()
        self.heads, self.shape = channels // shape.channels_per_head, shape
        self.norm = shape.inner_norm(channels)
        self.qkv = shape.conv(channels, 3 * channels, 1)
        self.proj = shape.conv(channels, channels, 1, zero=True)

    def forward(self, x: Tensor) -> Tensor:  # [B, C, H, W] -> same
        B, C, H, W = x.shape
        y = self.qkv(self.norm(x)).reshape(B, self.heads, C // self.heads, 3, H * W)
        if self.shape.rung.fixed:
            q, k, v = normalize(y, dim=2).unbind(3)  # [B, heads, C/heads, HW] each
        else:
            q, k, v = y.unbind(3)
            q, k = normalize(q, dim=2), normalize(k, dim=2)
        y = self.proj(attend(q, k, v).reshape(B, C, H, W))
        return self.shape.join(x, y, self.shape.attn_balance)


class Block(nn.Module):
    """Residual block of the encoder or the decoder, with optional resampling and attention."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        shape: BlockShape,
        *,
        decoder: bool = False,  # where the skip convolution sits, and whether x is normalised
        resample: str = "keep",  # "keep", "down" or "up"
        attention: bool = False,
    ) -> None:
        super().__init__()
        self.decoder, self.resample, self.shape = decoder, resample, shape
        self.act = shape.act()
        width = in_channels if decoder else out_channels
        self.emb_gain = nn.Parameter(torch.zeros([])) if shape.rung.learned else None
        self.norm0 = shape.inner_norm(width)
        self.conv_res0 = shape.conv(width, out_channels, 3)
        self.emb_linear = shape.conv(shape.emb_channels, out_channels, None)
        self.norm1 = shape.inner_norm(out_channels)
        self.conv_res1 = shape.conv(out_channels, out_channels, 3, zero=True)
        self.conv_skip = (
            shape.conv(in_channels, out_channels, 1) if in_channels != out_channels else None
        )
        self.attention = SelfAttention(out_channels, shape) if attention else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`x` [B, C_in, H, W] and `emb` [B, E] -> [B, C_out, H', W']."""
        shape = self.shape
        if self.resample == "down":
            x = downsample(x, shape.resample_filter)
        elif self.resample == "up":
            x = upsample(x, shape.resample_filter)
        if not self.decoder:
            if self.conv_skip is not None:
                x = self.conv_skip(x)
            if shape.rung.norm == "pixel":
                x = normalize(x, dim=1)
        y = self.conv_res0(self.act(self.norm0(x)))
        gain = 1.0 if self.emb_gain is None else self.emb_gain
        scale = self.emb_linear(emb, gain=gain) + 1
        y = self.act(self.norm1(y) * scale[:, :, None, None].to(y.dtype))
        if self.training and shape.dropout:
            y = F.dropout(y, shape.dropout)
        y = self.conv_res1(y)
        if self.decoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = shape.join(x, y, shape.res_balance)
        if self.attention is not None:
            x = self.attention(x)
        return x.clamp(-shape.clip_act, shape.clip_act)


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
        channel_mult_noise: int | None = None,  # noise features in multiples of it; None: level 0's
        channel_mult_emb: int | None = None,  # embedding in multiples of it; None: the widest level
        num_blocks: int = 3,  # residual blocks per level
        attn_resolutions: Sequence[int] = (16, 8),  # where blocks attend
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        clip_act: float = 256.0,
        resample_filter: Sequence[float] = (1, 1),
        ladder: str = "G",
        normalisation: str | None = None,  # None: the rung's; "pixel", "group", "batch", "none"
        activation_name: str = "silu",
        skips: bool = True,  # whether the decoder sees the encoder's outputs
        augment_dim: int = 0,  # numbers that tell how an image was transformed; 0: it never is
    ) -> None:
        """
        Raises:
            UsageError: as `check_shapes`.
        """
        super().__init__()
        check_shapes(
            resolution, channels, channel_mult, num_blocks, attn_resolutions, channels_per_head
        )
        self.num_classes, self.skips = num_classes, skips
        self.label_balance, self.concat_balance = label_balance, concat_balance
        noise = channels * (channel_mult_noise or channel_mult[0])
        self.shape = shape = BlockShape(
            rung=_rung(ladder, normalisation),
            emb_channels=(emb := channels * (channel_mult_emb or max(channel_mult))),
            channels_per_head=channels_per_head,
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
            clip_act=clip_act,
            activation=activation_name,
            resample_filter=tuple(resample_filter),
        )
        self.act, self.emb_fourier = shape.act(), MPFourier(noise)
        self.emb_noise = shape.conv(noise, emb, None)
        self.emb_label = shape.conv(num_classes, emb, None) if num_classes else None
        block = partial(Block, shape=shape)
        levels = levels_of(resolution, channels, channel_mult, attn_resolutions)
        # one channel of ones stands in for biases
        self.enc, widths = encoder(levels, channels_in + 1, num_blocks, shape.conv, block)
        self.dec = decoder(levels, widths if skips else [0] * len(widths), num_blocks, block)
        self.out_norm = shape.inner_norm(levels[0][1])
        self.out_conv = shape.conv(levels[0][1], channels_in, 3, zero=True)
        self.out_gain = nn.Parameter(torch.zeros([])) if shape.rung.learned else None
        self.emb_augment = shape.augment(augment_dim) if augment_dim else None

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
            c_noise: noise code [B], fp32.
            labels: class indices [B], or one-hot rows [B, num_classes], or None.
            augment: how each image was transformed [B, augment_dim]; None: not at all, which is
                what zeros say too.
        """
        emb = self._embedding(c_noise, labels, augment).to(x.dtype)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name and self.skips:
                x = self._cat(x, skips.pop())
            x = module(x, emb)
        if self.shape.rung.norm in ("group", "batch"):
            x = self.act(self.out_norm(x))
        y: Tensor = self.out_conv(x, gain=1.0 if self.out_gain is None else self.out_gain)
        return y

    def _cat(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.shape.rung.fixed:
            return mp_cat(x, skip, self.concat_balance)
        return torch.cat([x, skip], dim=1)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None = None
    ) -> Tensor:
        emb: Tensor = self.emb_noise(self.emb_fourier(c_noise))  # [B, E]
        if augment is not None:
            assert self.emb_augment is not None, "built with augment_dim = 0"
            emb = self.emb_augment(emb, augment)
        if self.emb_label is not None:
            if labels is None:
                rows = emb.new_zeros(1, self.num_classes)
            elif labels.ndim == 1:
                rows = F.one_hot(labels, self.num_classes).to(emb.dtype)
            else:
                rows = labels.to(emb.dtype)
            # sqrt(num_classes) gives one-hot rows unit magnitude
            label = self.emb_label(rows * math.sqrt(self.num_classes)).expand_as(emb)
            emb = self.shape.join(emb, label, self.label_balance)
        return self.act(emb)


def _rung(name: str, norm: str | None) -> Rung:
    return RUNGS[name] if norm is None else replace(RUNGS[name], norm=norm)


class Uncertainty(nn.Module):
    """The learned log-variance u(sigma) of the weighted error (EDM2, Section 2.1 and Eq. 21)."""

    def __init__(self, channels: int = 128) -> None:
        super().__init__()
        self.fourier = MPFourier(channels)
        self.linear = MPConv(channels, 1)

    def forward(self, c_noise: Tensor) -> Tensor:  # [B] -> [B]
        u: Tensor = self.linear(self.fourier(c_noise))
        return u[:, 0]
