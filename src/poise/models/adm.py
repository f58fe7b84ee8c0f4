"""The ADM network, the baseline that EDM2 starts from: group norm, biases, scale and shift.

Source: Dhariwal & Nichol 2021 (ADM), with the preconditioning of Karras et al. 2022 around it.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.models.layers import (
    PlainAugment,
    activation,
    attend,
    downsample,
    norm_layer,
    upsample,
    zeroed,
)
from poise.models.skeleton import check_shapes, decoder, encoder, levels_of


class Block(nn.Module):
    """Residual block; the embedding scales and shifts what the second norm gives out."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        resample: str = "keep",  # "keep", "down" or "up"
        attention: bool = False,
        channels_per_head: int = 64,
        dropout: float = 0.0,
        norm: str = "group",
        resample_filter: Sequence[float] = (1, 1),
        act: Callable[[Tensor], Tensor] = F.silu,
    ) -> None:
        super().__init__()
        self.resample, self.dropout, self.act = resample, dropout, act
        self.taps = tuple(resample_filter)
        self.heads = out_channels // channels_per_head if attention else 0
        self.norm0 = norm_layer(norm, in_channels)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(emb_channels, 2 * out_channels)
        self.norm1 = norm_layer(norm, out_channels)
        self.conv1 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        if self.heads:
            self.norm2 = norm_layer(norm, out_channels)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = zeroed(nn.Conv2d(out_channels, out_channels, 1))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """`x` [B, C_in, H, W] and `emb` [B, E] -> [B, C_out, H', W']."""
        y = self.conv0(self._resampled(self.act(self.norm0(x))))
        scale, shift = self.affine(emb)[:, :, None, None].chunk(2, dim=1)
        y = self.act(torch.addcmul(shift, self.norm1(y), scale + 1))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        x = self._resampled(x)
        x = self.conv1(y) + (x if self.skip is None else self.skip(x))
        if self.heads:
            B, C, H, W = x.shape
            y = self.qkv(self.norm2(x)).reshape(B, self.heads, C // self.heads, 3, H * W)
            x = x + self.proj(attend(*y.unbind(3)).reshape(B, C, H, W))
        return x

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "keep":
            return x
        return (downsample if self.resample == "down" else upsample)(x, self.taps)


class ADM(nn.Module):
    """The ADM U-Net; entries are named as in EDM2's, `{resolution}x{resolution}_{role}`."""

    def __init__(
        self,
        *,
        resolution: int,  # side of the images in pixels
        channels_in: int,  # channels of the images
        num_classes: int,  # 0: unconditional
        channels: int = 192,  # width of the first level
        channel_mult: Sequence[int] = (1, 2, 3, 4),  # width of each level in multiples of it
        channel_mult_emb: int = 4,  # width of the embedding in multiples of it
        num_blocks: int = 3,  # residual blocks per level
        attn_resolutions: Sequence[int] = (32, 16, 8),  # where blocks attend
        channels_per_head: int = 64,
        dropout: float = 0.1,
        resample_filter: Sequence[float] = (1, 1),
        normalisation: str = "group",  # "group", "batch", "pixel" or "none"
        activation_name: str = "silu",
        skips: bool = True,  # whether the decoder sees the encoder's outputs
        augment_dim: int = 0,  # numbers that tell how an image was transformed; 0: it never is
    ) -> None:
        """
        Raises:
            UsageError: the resolution cannot be halved often enough, or a width has no whole heads.
        """
        super().__init__()
        check_shapes(
            resolution, channels, channel_mult, num_blocks, attn_resolutions, channels_per_head
        )
        self.num_classes, self.skips, self.frequencies = num_classes, skips, channels // 2
        self.act = activation(activation_name, preserve=False)
        emb = channels * channel_mult_emb
        self.map_layer0 = nn.Linear(channels, emb)
        self.map_layer1 = nn.Linear(emb, emb)
        self.map_label = nn.Linear(num_classes, emb, bias=False) if num_classes else None
        if self.map_label is not None:  # a one-hot row becomes a vector of unit magnitude
            nn.init.normal_(self.map_label.weight)

        def block(c_in: int, c_out: int, *, decoder: bool = False, **options: object) -> Block:
            return Block(
                c_in,
                c_out,
                emb,
                channels_per_head=channels_per_head,
                dropout=dropout,
                norm=normalisation,
                resample_filter=resample_filter,
                act=self.act,
                **options,  # type: ignore[arg-type]
            )

        levels = levels_of(resolution, channels, channel_mult, attn_resolutions)
        self.enc, widths = encoder(levels, channels_in, num_blocks, _conv3x3, block)
        self.dec = decoder(levels, widths if skips else [0] * len(widths), num_blocks, block)
        last = levels[0][1]
        self.out_norm = norm_layer(normalisation, last)
        self.out_conv = zeroed(nn.Conv2d(last, channels_in, 3, padding=1))
        self.emb_augment = PlainAugment(augment_dim, emb) if augment_dim else None

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
        emb = self._embedding(c_noise, labels, augment).to(
            x.dtype
        )  # in fp32: bf16 cannot tell levels apart
        if x.dtype == torch.float32:
            return self._body(x, emb)
        with torch.autocast(x.device.type, dtype=x.dtype):
            return self._body(x, emb)

    def _body(self, x: Tensor, emb: Tensor) -> Tensor:
        skips = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        for name, module in self.dec.items():
            if "block" in name and self.skips:
                x = torch.cat([x, skips.pop()], dim=1)
            x = module(x, emb)
        y: Tensor = self.out_conv(self.act(self.out_norm(x)))
        return y

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None = None
    ) -> Tensor:
        features = self.map_layer0(positions(c_noise, self.frequencies))
        if augment is not None:
            assert self.emb_augment is not None, "built with augment_dim = 0"
            features = self.emb_augment(features, augment)
        emb = self.map_layer1(self.act(features))
        if self.map_label is not None and labels is not None:
            rows = F.one_hot(labels, self.num_classes) if labels.ndim == 1 else labels
            emb = emb + self.map_label(rows.to(torch.float32))
        return self.act(emb)


class NoUncertainty(nn.Module):
    """In place of a learned log-variance: zero for every noise level."""

    def forward(self, c_noise: Tensor) -> Tensor:  # [B] -> [B]
        return torch.zeros_like(c_noise)


def positions(c_noise: Tensor, frequencies: int) -> Tensor:
    """Cosines and sines of the noise code [B] at falling frequencies, [B, 2 frequencies]."""
    i = torch.arange(frequencies, dtype=torch.float32, device=c_noise.device)
    angles = torch.outer(c_noise.float(), torch.exp(-math.log(10000) * i / frequencies))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _conv3x3(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2)
