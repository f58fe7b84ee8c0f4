"""Plain transforms that the network is not told of: flips, and what classifiers train with.

Whether flips keep the classes is measured.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from poise.errors import UsageError

_FLIP_THRESHOLD = 0.008
_FEWEST = 8  # images below which a class's mean image says nothing
_MANY = 50  # images above which one class alone can decide
_CHUNK = 4096
_CHUNK_BYTES = 2**26  # of uint8; a chunk is worked on in numbers of four bytes and more


def flips_keep_classes(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> bool:
    """Whether mirrored images look like images of the same class: `flip_asymmetry` below 0.008.

    Measured, with labels / without: CIFAR-10 (10,000 images) 0.0002 / 0.00002, 100 images of it
    0.0043 / 0; handwritten digits (1,797) 0.40 / 0.017, only the digits 0 and 8 0.039.

    Args:
        images: uint8 [N, C, H, W].
        labels: [N], or None.
    """
    return flip_asymmetry(images, labels) < _FLIP_THRESHOLD


def flip_asymmetry(images: NDArray[np.uint8], labels: NDArray[np.int64] | None) -> float:
    """How far class means differ from their mirror images, in units of the total pixel variance.

    For each class: the mean square of the antisymmetric half of the mean image, less what chance
    leaves in a mean of so few images; about 0 (also slightly below) if left and right are alike.
    The result is the larger of the mean over classes and of the worst class with 50 images or
    more, so that symmetric classes (0, 1, 8) do not hide the others, nor chance decide alone.

    Args:
        images: uint8 [N, C, H, W].
        labels: [N], or None; classes of fewer than 8 images are left out, and with no larger
            class all images count as one.
    """
    whole = [np.arange(len(images))]
    groups = whole if labels is None else [np.flatnonzero(labels == k) for k in np.unique(labels)]
    groups = [group for group in groups if len(group) >= _FEWEST] or whole
    total = _total_variance(images)
    if total == 0 or len(images) < 2:
        return 0.0
    energies = np.array([_antisymmetric_energy(images, group) for group in groups]) / total
    sizes = np.array([len(group) for group in groups])
    mean = float((sizes * energies).sum() / sizes.sum())
    return max([mean] + [float(energy) for energy in energies[sizes >= _MANY]])


def flip_images(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirror each image left to right with probability 1/2.

    Args:
        images: [B, C, H, W], any type.
        generator: of the device that `images` are on.
    """
    drawn = torch.rand(len(images), generator=generator, device=images.device) < 0.5
    return torch.where(drawn[:, None, None, None], images.flip(-1), images)


def classifier_augment(
    images: torch.Tensor,
    generator: torch.Generator,
    *,
    flip: bool = True,
    crop: int = 0,
    colour: float = 0.0,
) -> torch.Tensor:
    """Random variants of images that keep their class, for training a classifier.

    Args:
        images: [B, C, H, W], uint8, or floats in [-1, 1].
        generator: of the device that `images` are on.
        flip: mirror each image left to right with probability 1/2.
        crop: shift each image by up to so many pixels in each direction, reflecting at the border:
            a window cut at random from the padded image. Below the side of the image.
        colour: strength c in [0, 1]. Brightness moves by up to c / 2 of the range; contrast and,
            with 3 channels, saturation are scaled by factors in [1 - c, 1 + c].

    Returns:
        The same shape and type; values stay in range.

    Raises:
        UsageError: `crop` or `colour` out of range.
    """
    if not 0 <= crop < min(images.shape[2:]) or not 0 <= colour <= 1:
        raise UsageError(
            f"crop = {crop} and colour = {colour} for images of {tuple(images.shape[2:])} pixels.",
            expected="crop from 0 to below the side in pixels, colour from 0 to 1",
        )
    if flip:
        images = flip_images(images, generator)
    if crop:
        images = _shifted(images, crop, generator)
    return _recoloured(images, colour, generator) if colour else images


def _shifted(images: torch.Tensor, crop: int, generator: torch.Generator) -> torch.Tensor:
    B, _, H, W = images.shape
    place = images.device
    by = torch.randint(-crop, crop + 1, (2, B, 1), generator=generator, device=place)
    rows, columns = (
        # 1, 0, 1, ... and ..., n - 2, n - 1, n - 2: reflected without repeating the border
        side - 1 - (side - 1 - (torch.arange(side, device=place) + shift).abs()).abs()
        for side, shift in ((H, by[0]), (W, by[1]))
    )
    first = torch.arange(B, device=place)[:, None, None]
    last = images.permute(0, 2, 3, 1)  # [B, H, W, C]
    moved: torch.Tensor = last[first, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def _recoloured(images: torch.Tensor, colour: float, generator: torch.Generator) -> torch.Tensor:
    low, high = (0.0, 255.0) if images.dtype == torch.uint8 else (-1.0, 1.0)
    drawn = torch.rand(3, len(images), 1, 1, 1, generator=generator, device=images.device)
    brightness, contrast, saturation = (drawn * 2 - 1) * colour
    x = images.to(torch.float32)
    if images.shape[1] == 3:
        gray = x.mean(1, keepdim=True)
        x = gray + (x - gray) * (1 + saturation)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * (1 + contrast) + brightness * (high - low) / 2
    x = x.clamp(low, high)
    changed: torch.Tensor = (x.round() if images.dtype == torch.uint8 else x).to(images.dtype)
    return changed


def _chunk(images: NDArray[np.uint8]) -> int:
    """Images that are worked on at once."""
    return max(1, min(_CHUNK, _CHUNK_BYTES // int(np.prod(images.shape[1:]))))


def _total_variance(images: NDArray[np.uint8]) -> float:
    """Variance over images, averaged over pixels, in units of [0, 255] squared."""
    first = np.zeros(images.shape[1:])
    second = np.zeros(images.shape[1:])
    chunk = _chunk(images)
    for start in range(0, len(images), chunk):
        part = images[start : start + chunk].astype(np.float32)
        first += part.sum(0, dtype=np.float64)
        second += np.square(part).sum(0, dtype=np.float64)
    mean = first / len(images)
    return float((second / len(images) - mean**2).mean())


def _antisymmetric_energy(images: NDArray[np.uint8], group: NDArray[np.int64]) -> float:
    """Unbiased estimate of the mean square of the antisymmetric half of the group's mean."""
    first = np.zeros(images.shape[1:])
    second = np.zeros(images.shape[1:])
    chunk = _chunk(images)
    for start in range(0, len(group), chunk):
        whole = images[group[start : start + chunk]].astype(np.float32)
        part = (whole - whole[..., ::-1]) * np.float32(0.5)
        first += part.sum(0, dtype=np.float64)
        second += np.square(part).sum(0, dtype=np.float64)
    count = len(group)
    mean_square = (first / count) ** 2
    variance = (second / count - mean_square) * count / (count - 1)
    return float((mean_square - variance / count).mean())
