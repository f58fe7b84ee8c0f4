"""Augmentation that does not leak: each transform is told to the network, as numbers.

Images are transformed at random while training, and the parameters go to the network as a label. A
label of zeros stands for an image as it is; it is what sampling asks for, so what is sampled looks
like the images and not like their transforms. Source: Karras et al. 2022 (EDM), Appendix F.2.

Written from the description. One thing differs: the label of a stretch holds its axis as a double
angle, since an axis comes back after half a turn. With the plain angle a stretch and its opposite
would have the same label.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.errors import UsageError

GEOMETRIC = 9  # numbers that tell of the geometric transforms
COLOUR = 6  # numbers that tell of the colour transforms
_SCALE = 0.2  # standard deviation of log2 of the size
_STRETCH = 0.2  # standard deviation of log2 of the stretch along an axis
_SHIFT = 0.125  # standard deviation of a translation, in sides of the image
_BRIGHTNESS = 0.2  # standard deviation, where pixels span 2
_CONTRAST = 0.5  # standard deviation of log2 of the contrast
_SATURATION = 1.0  # standard deviation of log2 of the saturation
_FINER = 2  # samples per pixel and direction, against aliasing
_PIECE = 64  # images that are resampled at once, to bound memory


def label_size(*, colour: bool, channels: int) -> int:
    """How many numbers tell of the transforms of one image.

    Raises:
        UsageError: colour transforms of images that have no three channels.
    """
    if colour and channels != 3:
        raise UsageError(
            f"data.augment_colour is for colour images, and these have {channels} channel(s).",
            expected="3 channels, or data.augment_colour=false",
        )
    return GEOMETRIC + COLOUR * colour


def augment_nonleaky(
    images: Tensor, generator: torch.Generator, *, p: float, colour: bool = False
) -> tuple[Tensor, Tensor]:
    """Transform images at random, each kind of transform with probability `p`.

    The geometric ones, in this order, with what the label holds of them: mirror left to right (0
    or 1), mirror top to bottom (0 or 1), change of size by 2^(0.2 w) (w), turn by an angle t of a
    full circle (cos t - 1, sin t), stretch by 2^(0.2 w) along an axis at angle r and shrink as much
    across it (w cos 2r, w sin 2r), translation by 1/8 of the side times v (v), all of w and v
    standard normal. What lies beyond the border is reflected.

    The colour transforms: brightness + 0.2 w (w), contrast times 2^(w/2) (w), luma reflected at
    zero (0 or 1), hue turned by t (cos t - 1, sin t), saturation times 2^w (w).

    Args:
        images: float [B, C, H, H] in [-1, 1].
        generator: of the device that `images` are on; what it draws decides all.
        p: from 0 to 1.
        colour: also transform colours; C is 3.

    Returns:
        The images [B, C, H, H], and the labels [B, 9], with `colour` [B, 15], fp32. An image for
        which nothing was drawn is unchanged bit by bit and has a label of zeros. Colours may leave
        [-1, 1].
    """
    images, label = _geometric(images, generator, p)
    if not colour:
        return images, label
    images, more = _colours(images, generator, p)
    return images, torch.cat([label, more], dim=1)


def _draw(
    kinds: int, count: int, p: float, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """For each kind and image: whether it is drawn, an angle, and a standard normal number."""
    place = generator.device
    drawn = torch.rand(kinds, count, generator=generator, device=place) < p
    angle = (torch.rand(kinds, count, generator=generator, device=place) * 2 - 1) * math.pi
    return drawn, angle, torch.randn(kinds, count, generator=generator, device=place)


def _geometric(images: Tensor, generator: torch.Generator, p: float) -> tuple[Tensor, Tensor]:
    drawn, angle, normal = _draw(7, len(images), p, generator)
    zero = torch.zeros_like(normal[0])
    mirror_x, mirror_y = drawn[0], drawn[1]
    size = torch.where(drawn[2], normal[2], zero)
    turn = torch.where(drawn[3], angle[3], zero)
    stretch, axis = torch.where(drawn[4], normal[4], zero), angle[4]
    shift_x, shift_y = torch.where(drawn[5], normal[5:7], zero)
    label = torch.stack(
        [
            mirror_x.float(),
            mirror_y.float(),
            size,
            turn.cos() - 1,
            turn.sin(),
            stretch * (2 * axis).cos(),
            stretch * (2 * axis).sin(),
            shift_x,
            shift_y,
        ],
        dim=1,
    )
    x = torch.where(mirror_x[:, None, None, None], images.flip(-1), images)
    x = torch.where(mirror_y[:, None, None, None], x.flip(-2), x)

    # where each pixel of the result comes from: all transforms undone, the last one first;
    # coordinates span [-1, 1], so the side of an image is 2
    along, across = torch.exp2(-_STRETCH * stretch), torch.exp2(_STRETCH * stretch)
    unstretched = _rotation(axis) @ _diagonal(along, across) @ _rotation(-axis)
    shrunk = torch.exp2(-_SCALE * size)
    linear = shrunk[:, None, None] * (_rotation(-turn) @ unstretched)
    shift = 2 * _SHIFT * torch.stack([shift_x, shift_y], dim=1)[:, :, None]
    origin = torch.cat([linear, -(linear @ shift)], dim=2)  # [B, 2, 3]
    moved = drawn[2:6].any(0)[:, None, None, None]
    return torch.where(moved, _resampled(x, origin), x), label


def _resampled(images: Tensor, origin: Tensor) -> Tensor:
    """Images [B, C, H, W] as seen at the places [B, 2, 3]: bicubic, several samples per pixel."""
    parts = []
    for x, theta in zip(torch.split(images, _PIECE), torch.split(origin, _PIECE), strict=True):
        B, C, H, W = x.shape
        grid = F.affine_grid(theta, [B, C, _FINER * H, _FINER * W], align_corners=False)
        y = F.grid_sample(
            x.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False
        )
        parts.append(F.avg_pool2d(y, _FINER).to(x.dtype))
    return torch.cat(parts)


def _colours(images: Tensor, generator: torch.Generator, p: float) -> tuple[Tensor, Tensor]:
    drawn, angle, normal = _draw(5, len(images), p, generator)
    zero = torch.zeros_like(normal[0])
    brightness = torch.where(drawn[0], normal[0], zero)
    contrast = torch.where(drawn[1], normal[1], zero)
    flipped = drawn[2].float()
    hue = torch.where(drawn[3], angle[3], zero)
    saturation = torch.where(drawn[4], normal[4], zero)
    label = torch.stack(
        [brightness, contrast, flipped, hue.cos() - 1, hue.sin(), saturation], dim=1
    )
    # a colour is luma, along the gray axis v, and chroma, in the plane across it
    place = images.device
    luma = torch.full((3, 3), 1 / 3, device=place)
    chroma = torch.eye(3, device=place) - luma
    # a quarter turn of that plane: the cross product with v
    cycle = torch.eye(3, device=place).roll(1, dims=0)
    quarter = (cycle - cycle.T) / math.sqrt(3)

    def per_image(values: Tensor) -> Tensor:
        return values[:, None, None]

    turned = per_image(hue.cos()) * chroma + per_image(hue.sin()) * quarter
    matrix = per_image(1 - 2 * flipped) * luma
    matrix = matrix + per_image(torch.exp2(_SATURATION * saturation)) * turned
    matrix = matrix * per_image(torch.exp2(_CONTRAST * contrast))
    x = images.float() + (_BRIGHTNESS * brightness)[:, None, None, None]
    x = torch.einsum("bij,bjhw->bihw", matrix, x).to(images.dtype)
    return torch.where(drawn.any(0)[:, None, None, None], x, images), label


def _rotation(angle: Tensor) -> Tensor:
    """Matrices [B, 2, 2] that turn by angles [B]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], dim=1)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([a, b], dim=1))
