"""MP-DiT: the diffusion transformer rebuilt so that activations and weights keep their magnitude.

The skeleton is DiT's (Peebles & Xie 2023); every operation is replaced by one that keeps the
expected size of what flows through (Karras et al. 2024, EDM2). Bill et al. 2025 (arXiv 2505.19122)
rebuild DiT in the same spirit; this network is not theirs, and why each part is as it is stands
beside it. Compared with DiT:

- Learned layers are `MPConv`s: unit rows, normalised in the forward pass and after each update, and
  no biases. A feature of ones at the input stands in for them.
- Residual sums are `mp_sum`s, and each block brings its tokens to unit magnitude first. So depth
  cannot make the stream grow, and LayerNorm has nothing left to do. Nothing leads past the blocks
  as in a U-Net, so deep networks join their branches with less weight (`balance_at`).
- Queries, keys and values have unit magnitude per head, which bounds the logits.
- The embedding scales the channels of a branch's input and does no more: no shift and no gate. The
  scale is divided by its expected size, so conditioning cannot make a branch louder. It replaces
  adaLN-zero, whose scales and gates multiply without bound.
- Branches are not silent at the start, because `mp_sum` needs two signals of equal size. Only the
  gains of the scales and of the output start at zero.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.errors import UsageError
from poise.models.dit import (
    check_tokens,
    grid_positions,
    join_heads,
    mlp_activation,
    patchify,
    unpatchify,
)
from poise.models.layers import MPAugment, MPConv, MPFourier, attend, mp_silu, mp_sum, normalize

_PERIOD = 100.0  # the slowest rotation of a position is so much slower than one radian a token
_POSITION_BALANCE = 0.3  # how much of a token is its place in the image
_SHALLOW = 6  # blocks up to which balances are used as they are given


class Scale(nn.Module):
    """A scale of each channel that follows the embedding and has unit magnitude for any gain.

    It is 1 + gain * e with e of unit magnitude, as in EDM2's blocks, divided by hypot(1, gain), the
    expected size of that sum. The gain starts at zero, where the scale is 1 for every embedding.
    """

    def __init__(self, emb_channels: int, channels: int) -> None:
        super().__init__()
        self.linear = MPConv(emb_channels, channels)
        self.gain = nn.Parameter(torch.zeros([]))

    def forward(self, emb: Tensor) -> Tensor:  # [B, E] -> [B, 1, C]
        size = (1 + self.gain.square()).sqrt().to(emb.dtype)
        y: Tensor = self.linear(emb, gain=self.gain) + 1
        return (y / size)[:, None]


class Block(nn.Module):
    """Attention and an MLP, each joined to the tokens by `mp_sum`."""

    def __init__(
        self,
        channels: int,
        heads: int,
        hidden: int,
        *,
        dropout: float = 0.0,
        act: Callable[[Tensor], Tensor] = mp_silu,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float = 256.0,
    ) -> None:
        super().__init__()
        self.heads, self.dropout, self.act = heads, dropout, act
        self.res_balance, self.attn_balance, self.clip_act = res_balance, attn_balance, clip_act
        self.attn_scale = Scale(channels, channels)
        self.qkv = MPConv(channels, 3 * channels)
        self.proj = MPConv(channels, channels)
        self.mlp_scale = Scale(channels, channels)
        self.mlp0 = MPConv(channels, hidden)
        self.mlp1 = MPConv(hidden, channels)

    def forward(self, x: Tensor, emb: Tensor, turns: Tensor) -> Tensor:
        """Tokens `x` [B, N, C], embedding `emb` [B, E], `turns` of `rotations` -> [B, N, C]."""
        x = normalize(x, dim=2)
        x = mp_sum(x, self._attention(x * self.attn_scale(emb), turns), self.attn_balance)
        y = self.act(self.mlp0(x * self.mlp_scale(emb)))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        x = mp_sum(x, self.mlp1(y), self.res_balance)
        return x.clamp(-self.clip_act, self.clip_act)

    def _attention(self, x: Tensor, turns: Tensor) -> Tensor:
        B, N, _ = x.shape
        y = normalize(self.qkv(x).reshape(B, N, 3, self.heads, -1), dim=4)
        q, k = rotate(y[:, :, :2], turns).permute(2, 0, 3, 4, 1).unbind(0)  # [B, heads, C/heads, N]
        v = y[:, :, 2].permute(0, 2, 3, 1)
        out: Tensor = self.proj(join_heads(attend(q, k, v)))
        return out


class MPDiT(nn.Module):
    """The magnitude-preserving diffusion transformer.

    Places in the image enter twice: once as a fixed vector of unit magnitude, so that a token knows
    where it is, and in every block by rotating queries and keys, so that it knows how far the
    others are. A rotation keeps magnitudes exactly and does not fade with depth.
    """

    positions: Tensor
    turns: Tensor

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
        activation: str = "silu",  # of the MLP, scaled to unit magnitude
        res_balance: float = 0.3,  # of the MLP in up to 6 blocks; see `balance_at`
        attn_balance: float = 0.3,  # of the attention in up to 6 blocks
        label_balance: float = 0.5,
        clip_act: float = 256.0,
        augment_dim: int = 0,  # numbers that tell how an image was transformed; 0: it never is
    ) -> None:
        """
        Raises:
            UsageError: the image has no whole patches, or the width no whole heads.
        """
        super().__init__()
        check_tokens(resolution, patch, channels, channels_per_head, depth)
        if channels_per_head % 4:
            whole = [h for h in range(4, channels_per_head, 4) if channels % h == 0]
            raise UsageError(
                f"Heads of {channels_per_head} channels cannot be turned by row and by column.",
                expected="model.channels_per_head to be a multiple of 4",
                remedy=f"set model.channels_per_head={max(whole, default=4)}.",
            )
        self.num_classes, self.patch, self.label_balance = num_classes, patch, label_balance
        side = resolution // patch
        positions = normalize(grid_positions(side, channels), dim=1)
        self.register_buffer("positions", positions, persistent=False)
        self.register_buffer("turns", rotations(side, channels_per_head), persistent=False)
        self.emb_fourier = MPFourier(channels)
        self.emb_noise = MPConv(channels, channels)
        self.emb_label = MPConv(num_classes, channels) if num_classes else None
        self.patch_in = MPConv(channels_in * patch**2 + 1, channels)
        self.blocks = nn.ModuleList(
            Block(
                channels,
                channels // channels_per_head,
                round(mlp_ratio * channels),
                dropout=dropout,
                act=mlp_activation(activation, preserve=True),
                res_balance=balance_at(depth, res_balance),
                attn_balance=balance_at(depth, attn_balance),
                clip_act=clip_act,
            )
            for _ in range(depth)
        )
        self.out = MPConv(channels, channels_in * patch**2)
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_augment = MPAugment(augment_dim, channels) if augment_dim else None

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
        emb = self._embedding(c_noise, labels, augment).to(x.dtype)
        pixels = patchify(x, self.patch)
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :, :1])], dim=2)
        tokens = self.patch_in(pixels)
        positions = self.positions.to(x.dtype).expand_as(tokens)
        tokens = mp_sum(tokens, positions, _POSITION_BALANCE)
        turns = self.turns.to(x.dtype)
        for block in self.blocks:
            tokens = block(tokens, emb, turns)
        return unpatchify(self.out(tokens, gain=self.out_gain), self.patch)

    def _embedding(
        self, c_noise: Tensor, labels: Tensor | None, augment: Tensor | None = None
    ) -> Tensor:
        """Noise level and label [B, C], fp32, of unit magnitude whatever the labels are.

        Without a label it is the noise level alone, at the same magnitude.
        """
        emb: Tensor = self.emb_noise(self.emb_fourier(c_noise))
        if augment is not None:
            assert self.emb_augment is not None, "built with augment_dim = 0"
            emb = self.emb_augment(emb, augment)
        if self.emb_label is not None and labels is not None:
            rows = F.one_hot(labels, self.num_classes) if labels.ndim == 1 else labels
            # sqrt(num_classes) gives one-hot rows unit magnitude
            label = self.emb_label(rows.to(emb.dtype) * math.sqrt(self.num_classes))
            emb = mp_sum(emb, label, self.label_balance)
        return mp_silu(normalize(emb, dim=1))


def balance_at(depth: int, balance: float) -> float:
    """The balance with which `depth` blocks keep as much of their input as 6 with `balance` do.

    `mp_sum` turns the stream by an angle with tan = t / (1 - t), and n of them leave cos^n of what
    was there before: 0.36 after 6 blocks of two sums with t = 0.3, but 0.03 after 20, where fine
    detail is lost and low noise is not learned. Here that share does not depend on depth.

    Args:
        depth: number of blocks; up to 6 the balance stays as it is.
        balance: at least 0, below 1.

    Returns:
        The weight of a branch in `mp_sum`.
    """
    if depth <= _SHALLOW:
        return balance
    kept = (1 - balance) / math.hypot(1 - balance, balance)
    slope = math.sqrt(kept ** (-2 * _SHALLOW / depth) - 1)
    return slope / (1 + slope)


def rotations(side: int, channels: int) -> Tensor:
    """Cosines and sines of the angles by which positions turn pairs of channels, fp32.

    Half of the pairs turn with the row and half with the column (rotary embedding, Su et al. 2021,
    on two axes), by 1 to 1/100 radian a token in a geometric series.

    Args:
        side: tokens in a row.
        channels: of a head, a multiple of 4.

    Returns:
        [2, side * side, 1, 1, channels / 2].
    """
    freqs = _PERIOD ** (-torch.arange(channels // 4) / (channels // 4))
    angles = torch.outer(torch.arange(side).float(), freqs)
    rows = angles[:, None].expand(side, side, -1)
    columns = angles[None, :].expand(side, side, -1)
    angles = torch.cat([rows, columns], dim=2).reshape(side**2, 1, 1, -1)
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn pairs of channels of `x` [B, N, ..., C] by the angles of their token's place."""
    (a, b), (cos, sin) = x.chunk(2, dim=-1), turns
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
