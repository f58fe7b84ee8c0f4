"""What a batch looks like before it is trained on, seen on the host and so before any transfer."""

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data.batches import Batch

BRIGHTEST = 255.0  # highest value of a pixel
_SLACK = 1.0  # by which floats may leave 0..255, after filters that overshoot


@dataclass(frozen=True)
class InputCheck:
    """One batch: what must not be trained on, and what it is recognised by."""

    bad: NDArray[np.bool_]  # [B]
    reasons: tuple[str, ...]  # [B]: "", "non-finite", "range" or "label", the first that holds
    flat: NDArray[np.bool_]  # [B], one value throughout
    prints: NDArray[np.uint32]  # [B], crc32 of the image's bytes as they came
    low: float  # lowest and highest finite or infinite value of the batch as it came,
    high: float  # in the scale of bytes; NaN where there is none


def check_inputs(batch: Batch, *, num_classes: int, limit: float | None) -> InputCheck:
    """Look at every pixel and label of a batch.

    Args:
        batch: on the host; elsewhere it is fetched first. Images are bytes, or floats in their
            scale.
        num_classes: labels are 0 to num_classes - 1; 0: the network takes none.
        limit: highest value of a pixel, the lowest is 0; floats may leave this range by 1.
            None: numbers without a range, such as latents, which must be finite alone.
    """
    images = batch.images.detach().cpu().contiguous().flatten(1)
    pixels = _numbers(images)
    finite = np.ones(len(pixels), np.bool_)
    if pixels.dtype.kind == "f":
        finite = np.isfinite(pixels).all(axis=1)
    lowest, highest = np.fmin.reduce(pixels, axis=1), np.fmax.reduce(pixels, axis=1)
    beyond = np.zeros(len(pixels), np.bool_)
    if limit is not None:
        beyond = (lowest < -_SLACK) | (highest > limit + _SLACK)
    wrong = _wrong_labels(batch.labels, num_classes, len(pixels))
    bad = ~finite | beyond | wrong
    reasons = [""] * len(pixels)
    for i in np.flatnonzero(bad):
        reasons[i] = "non-finite" if not finite[i] else "range" if beyond[i] else "label"
    raw = images.view(torch.uint8).numpy()
    return InputCheck(
        bad=bad,
        reasons=tuple(reasons),
        flat=finite & (lowest == highest),
        prints=np.array([zlib.crc32(row) for row in raw], np.uint32),
        low=float(np.fmin.reduce(lowest)),
        high=float(np.fmax.reduce(highest)),
    )


def mended_labels(labels: torch.Tensor, check: InputCheck) -> torch.Tensor:
    """Labels that a network can look up: 0 for those that it cannot; nothing is trained on them."""
    wrong = torch.tensor([reason != "" for reason in check.reasons], device=labels.device)
    return labels.masked_fill(wrong, 0)


def _numbers(images: torch.Tensor) -> NDArray[np.generic]:
    """As an array; numpy has no bf16."""
    array: NDArray[np.generic] = (
        images.float() if images.dtype == torch.bfloat16 else images
    ).numpy()
    return array


def _wrong_labels(labels: torch.Tensor | None, num_classes: int, count: int) -> NDArray[np.bool_]:
    """[B]: no class of the network; rows of one number per class are taken as they are."""
    if labels is None or num_classes == 0 or labels.ndim != 1:
        return np.zeros(count, np.bool_)
    given = labels.cpu().numpy()
    wrong: NDArray[np.bool_] = (given < 0) | (given >= num_classes)
    return wrong
