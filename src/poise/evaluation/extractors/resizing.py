"""Bringing images to the side that a feature network wants; each way has a name in the records.

Scores of one network under two ways differ by some per cent (by 6 to 23 % when images shrink), so
the way is part of the definition of the features.
"""

import torch
from torch import Tensor
from torch.nn import functional


def bilinear_tf1(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side] as TensorFlow 1 did: pixel i is taken from i * H / side.

    No half-pixel centres and no smoothing: the left and upper edges coincide, the right and lower
    ones are repeated. Inception's FID is defined with it.
    """
    for axis in (2, 3):
        n = x.shape[axis]
        # In float64: where i * n is a multiple of side, the quotient is a whole number.
        at = torch.arange(side, dtype=torch.float64, device=x.device) * n / side
        low = at.long()
        high = (low + 1).clamp(max=n - 1)
        w = (at - low).to(x.dtype).view(-1, 1) if axis == 2 else (at - low).to(x.dtype)
        x = torch.lerp(x.index_select(axis, low), x.index_select(axis, high), w)
    return x


def bicubic_antialias(x: Tensor, side: int) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side] with half-pixel centres and Keys' kernel, a = -1/2.

    The kernel widens when images shrink. Pillow and JAX resize so too; nothing is rounded or cut
    off, so values may leave the range a little.
    """
    return functional.interpolate(x, (side, side), mode="bicubic", antialias=True)
