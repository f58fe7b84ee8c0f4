"""The shape that the U-Nets share: levels, their names, and which block takes what.

Source: Dhariwal & Nichol 2021 (ADM), kept by Karras et al. 2022 and 2024.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from poise.errors import UsageError

Level = tuple[str, int, bool]  # "16x16", its width, whether its blocks attend
MakeBlock = Callable[..., nn.Module]  # (c_in, c_out, decoder=, resample=, attention=)


def levels_of(
    resolution: int, channels: int, channel_mult: Sequence[int], attn_resolutions: Sequence[int]
) -> list[Level]:
    """Name, width and attention of each level, finest first."""
    found = []
    for i, mult in enumerate(channel_mult):
        side = resolution >> i
        found.append((f"{side}x{side}", channels * mult, side in attn_resolutions))
    return found


def encoder(
    levels: Sequence[Level], channels_in: int, num_blocks: int, first: Any, block: MakeBlock
) -> tuple[nn.ModuleDict, list[int]]:
    """The way down, and the width of each output, which the decoder takes in.

    Args:
        levels: of `levels_of`.
        channels_in: of the images.
        num_blocks: blocks per level.
        first: makes the 3x3 convolution that takes in the images: `(c_in, c_out, 3)`.
        block: makes every other entry.
    """
    enc, skips = nn.ModuleDict(), []
    c = channels_in
    for i, (name, width, attends) in enumerate(levels):
        if i == 0:
            enc[f"{name}_conv"] = first(c, width, 3)
            c = width
        else:
            enc[f"{name}_down"] = block(c, c, resample="down")
        skips.append(c)
        for j in range(num_blocks):
            enc[f"{name}_block{j}"] = block(c, width, attention=attends)
            c = width
            skips.append(c)
    return enc, skips


def decoder(
    levels: Sequence[Level], skips: Sequence[int], num_blocks: int, block: MakeBlock
) -> nn.ModuleDict:
    """The way up; each `block` takes in one output of the encoder, the last one first.

    `skips` holds their widths; zeros stand for a network without skip connections.
    """
    dec, left = nn.ModuleDict(), list(skips)
    c = levels[-1][1]
    for name, width, attends in reversed(levels):
        if not dec:
            dec[f"{name}_in0"] = block(c, c, decoder=True, attention=True)
            dec[f"{name}_in1"] = block(c, c, decoder=True)
        else:
            dec[f"{name}_up"] = block(c, c, decoder=True, resample="up")
        for j in range(num_blocks + 1):
            dec[f"{name}_block{j}"] = block(c + left.pop(), width, decoder=True, attention=attends)
            c = width
    return dec


def check_shapes(
    resolution: int,
    channels: int,
    channel_mult: Sequence[int],
    num_blocks: int,
    attn_resolutions: Sequence[int],
    channels_per_head: int,
) -> None:
    """
    Raises:
        UsageError: the resolution cannot be halved often enough, or a width has no whole heads.
    """
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
