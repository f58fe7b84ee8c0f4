"""How well copies of images keep what the originals show, e.g. those of an autoencoder."""

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from poise.errors import DataError, PoiseError
from poise.evaluation.estimate import Estimate
from poise.evaluation.similarity import (
    PSNR_CAP,
    lpips,
    ms_ssim,
    mse,
    over_images,
    psnr,
    psnr_of,
    ssim,
)

Images = NDArray[np.uint8]

_RANGE = 255.0
_UNIT = _RANGE / 2  # of [-1, 1] in bytes
_MEASURES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "mse": lambda x, y: mse(x, y) / _UNIT**2,
    "psnr": lambda x, y: psnr(x, y, _RANGE),
    "ssim": lambda x, y: ssim(x, y, _RANGE),
    "ms_ssim": lambda x, y: ms_ssim(x, y, _RANGE),
    "lpips": lambda x, y: lpips(x / _UNIT - 1, y / _UNIT - 1),
}


@dataclass(frozen=True)
class Reconstruction:
    """Similarity of pairs of images, averaged, with standard errors over the images.

    Attributes:
        images: how many pairs.
        figures: name -> mean over images: mse (of values in [-1, 1]: at most 4), psnr (mean of the
            images' PSNRs in dB, at most 100 each), psnr_of_mean_mse (PSNR of the mean error),
            ssim and ms_ssim (with black at 0, as published), lpips.
        left_out: name -> why it is not among the figures.
    """

    images: int
    figures: dict[str, Estimate]
    left_out: dict[str, str]


def reconstruction(
    originals: Images, copies: Images, *, batch: int = 32, device: torch.device | str = "cpu"
) -> Reconstruction:
    """Compare copies with their originals, pair by pair; see `similarity` for the figures.

    Args:
        originals, copies: uint8 [N, C, H, W], in the same order.
        batch: pairs in memory at a time as floats; changes speed and memory only.
        device: where it is computed, in float64; LPIPS in float32.

    Raises:
        DataError: different shapes, no images, or not bytes.
    """
    _check(originals)
    if originals.shape != copies.shape or copies.dtype != np.uint8:
        raise DataError(
            f"copies of shape {copies.shape} and type {copies.dtype} of originals of shape "
            f"{originals.shape}",
            expected="a copy of each original, as bytes of the same size, in the same order",
        )
    pairs = (
        (originals[i : i + batch], copies[i : i + batch]) for i in range(0, len(originals), batch)
    )
    return _measure(pairs, device)


def reconstruction_floor(
    originals: Images, *, batch: int = 32, device: torch.device | str = "cpu"
) -> Reconstruction:
    """What saving as JPEG at quality 95 costs, with colours at half the resolution (4:2:0).

    A yardstick for `reconstruction`: copies this close differ no more than files that people take
    for the same picture.

    Args:
        originals: uint8 [N, 1 or 3, H, W].

    The other arguments are those of `reconstruction`.

    Raises:
        DataError: another number of channels, no images, or not bytes.
    """
    _check(originals)
    if originals.shape[1] not in (1, 3):
        raise DataError(
            f"JPEG of images of {originals.shape[1]} channels", expected="grey or RGB images"
        )
    parts = (originals[i : i + batch] for i in range(0, len(originals), batch))
    pairs = ((part, np.stack([_through_jpeg(image) for image in part])) for part in parts)
    return _measure(pairs, device)


def _check(originals: Images) -> None:
    if originals.ndim != 4 or originals.size == 0 or originals.dtype != np.uint8:
        raise DataError(
            f"originals of shape {originals.shape} and type {originals.dtype}",
            expected="at least one image as bytes, [N, C, H, W]",
        )


def _measure(pairs: Iterable[tuple[Images, Images]], device: torch.device | str) -> Reconstruction:
    """All figures of batches of pairs; one that refuses the first batch is left out."""
    values: dict[str, list[torch.Tensor]] = {name: [] for name in _MEASURES}
    left_out: dict[str, str] = {}
    for pair in pairs:
        x, y = (torch.from_numpy(images.astype(np.float64)).to(device) for images in pair)
        for name in [name for name in _MEASURES if name not in left_out]:
            try:
                values[name].append(_MEASURES[name](x, y).cpu())
            except PoiseError as error:
                left_out[name] = error.found
    figures = {name: over_images(torch.cat(v)) for name, v in values.items() if v}
    images = sum(len(v) for v in values["mse"])
    figures["psnr_of_mean_mse"] = _psnr_of_mean(figures["mse"])
    return Reconstruction(images, figures, left_out)


def _psnr_of_mean(error: Estimate) -> Estimate:
    """PSNR of a mean squared error; the standard error by the delta method, 0 at the cap."""
    value = float(psnr_of(torch.tensor(error.value, dtype=torch.float64), _RANGE / _UNIT))
    slope = 10 / (math.log(10) * error.value) if value < PSNR_CAP else 0.0
    return Estimate(value, samples_error=slope * error.samples_error)


def _through_jpeg(image: Images) -> Images:
    """One image [C, H, W] written and read back in memory."""
    file = io.BytesIO()
    channels_last = image.transpose(1, 2, 0)
    picture = Image.fromarray(channels_last[..., 0] if len(image) == 1 else channels_last)
    picture.save(file, "JPEG", quality=95, subsampling="4:2:0")
    copy = np.asarray(Image.open(file))
    return np.ascontiguousarray(copy.reshape(channels_last.shape).transpose(2, 0, 1))
