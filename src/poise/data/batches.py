"""An endless stream of batches whose position is a number, and the scale of pixels.

Which images come next is a function of (seed, images seen): to resume is to start there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data.augment import flip_images
from poise.data.balance import check_weights, draws
from poise.data.imageset import Dataset
from poise.errors import DataError, UsageError
from poise.runtime import generator_at

_FLATTEST = 1e-3  # standard deviation in [-1, 1] below which nothing is left to learn
_CHUNK = 4096
_CHUNK_BYTES = 2**26


@dataclass(frozen=True)
class Batch:
    """Some images, still as bytes."""

    images: torch.Tensor  # uint8 [B, C, H, W]
    labels: torch.Tensor | None  # int64 [B]
    indices: torch.Tensor  # int64 [B], positions in the data set


def batches(
    dataset: Dataset,
    members: NDArray[np.int64],
    *,
    batch: int | Callable[[int], int],
    seed: int,
    start: int = 0,
    flip: bool = False,
    weights: NDArray[np.float64] | None = None,
) -> Iterator[Batch]:
    """Batches without end; every epoch holds each member once, in an order of its own.

    With `weights` an epoch has as many draws, but a member comes as often as its weight says,
    rounded up or down (see `balance.draws`).

    Batches cross the border of epochs, so none is cut short or dropped. A stream from `start = k`
    equals the rest of the stream from 0, bit by bit, if a batch ends at k (without flips: any k,
    apart from where batches begin). So a size that grows must be a function of images seen.

    Args:
        dataset: the images.
        members: [M] indices to draw from, M >= 1.
        batch: images per batch, >= 1, may exceed M; or that as a function of images seen before it.
        seed: the order and the flips follow from it.
        start: images seen before the first batch, >= 0.
        flip: mirror each image with probability 1/2.
        weights: [M], how often each member is drawn, relative; None: all alike.

    Raises:
        UsageError: no members, `batch` below 1, `start` below 0, or weights that are no weights.
    """
    first = batch(start) if callable(batch) else batch
    if len(members) == 0 or first < 1 or start < 0:
        raise UsageError(
            f"Cannot draw batches of {first} from {len(members)} images at position {start}.",
            expected="at least one image, a batch of at least 1 and a position of at least 0",
            remedy="Check training.batch and the split.",
        )
    if weights is not None:
        weights = np.asarray(weights, np.float64)
        check_weights(weights, len(members))
    return _stream(dataset, np.asarray(members, np.int64), weights, batch, seed, start, flip)


def lies_in_memory(dataset: Dataset) -> bool:
    """Whether all images are an array in memory, so that a batch costs no more than its copy."""
    images = dataset.images
    mapped = isinstance(images, np.memmap) or not isinstance(images, np.ndarray)
    return not mapped and bool(images.flags.writeable)


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Bytes 0..255 as float32 in [-1, 1]; same shape and device."""
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Floats as bytes: -1 becomes 0, 1 becomes 255, values beyond are clamped; same shape."""
    return ((images.to(torch.float32) + 1) * 127.5).clamp(0, 255).round().to(torch.uint8)


def measure_sigma_data(images: NDArray[np.uint8], members: NDArray[np.int64]) -> float:
    """Standard deviation of the pixels in [-1, 1] about the mean of their channel; exact.

    Args:
        images: uint8 [N, C, H, W].
        members: indices of the training images.

    Raises:
        DataError: no members, or each channel is practically one value throughout.
    """
    channels = images.shape[1]
    counts = np.zeros((channels, 256), np.int64)
    chunk = max(1, min(_CHUNK, _CHUNK_BYTES // int(np.prod(images.shape[1:]))))
    for begin in range(0, len(members), chunk):
        part = images[members[begin : begin + chunk]]
        for channel in range(channels):
            counts[channel] += np.bincount(part[:, channel].ravel(), minlength=256)
    values = np.arange(256) / 127.5 - 1
    total = max(int(counts.sum()), 1)
    means = counts @ values / np.maximum(counts.sum(1), 1)
    sigma = float(np.sqrt((counts * (values - means[:, None]) ** 2).sum() / total))
    if sigma < _FLATTEST:
        raise DataError(
            f"The {len(members)} training images hold one flat colour "
            f"(standard deviation {sigma:.2g} on a scale of -1 to 1).",
            expected=f"pixels that differ, a standard deviation of at least {_FLATTEST}",
            remedy="Look at some of the image files; they may be blank or wrongly exported.",
        )
    return sigma


def _stream(
    dataset: Dataset,
    members: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    batch: int | Callable[[int], int],
    seed: int,
    start: int,
    flip: bool,
) -> Iterator[Batch]:
    source = torch.from_numpy(dataset.images) if lies_in_memory(dataset) else None
    labels = None if dataset.labels is None else torch.from_numpy(dataset.labels.copy())
    epoch, order = -1, members
    seen = start
    while True:
        parts: list[NDArray[np.int64]] = []
        size = batch(seen) if callable(batch) else batch
        position, missing = seen, size
        while missing:
            if position // len(members) != epoch:
                epoch = position // len(members)
                drawn = members if weights is None else members[draws(weights, seed, epoch)]
                order = drawn[_permutation(len(members), seed, epoch)]
            offset = position % len(members)
            parts.append(order[offset : offset + missing])
            position += len(parts[-1])
            missing -= len(parts[-1])
        chosen = np.concatenate(parts)
        indices = torch.from_numpy(chosen)
        if source is not None:
            images = source.index_select(0, indices)
        else:
            images = torch.from_numpy(np.asarray(dataset.images[chosen]))
        if flip:
            images = flip_images(images, generator_at(seed, seen, "flip"))
        yield Batch(images, None if labels is None else labels[indices], indices)
        seen += size


def _permutation(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    drawn: NDArray[np.int64] = torch.randperm(
        count, generator=generator_at(seed, epoch, "order")
    ).numpy()
    return drawn
