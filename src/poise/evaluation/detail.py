"""Is the fine detail of samples that of real images? Blur and noise, read from the pixels."""

import math

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from poise.data.imageset import Subset
from poise.errors import DataError
from poise.evaluation.estimate import Estimate

_SMALLEST = 4  # pixels of a side, for both bands to hold frequencies
_ROUNDING = 1 / 12  # energy per coefficient that rounding to bytes adds
_FLAT = 4  # times the energy of rounding: an image without detail to speak of
_BATCH = 64


def fine_detail(images: NDArray[np.uint8] | Subset) -> NDArray[np.float64]:
    """Energy of each image's fine detail, relative to the detail twice as coarse.

    The logarithm of the mean energy per coefficient of the cosine transform (type II: mirrored at
    the edges, so that these are no detail) at radial frequencies of at least half of Nyquist's,
    over that from a quarter to half. Contrast and brightness cancel. White noise and constant
    images have 0, photographs of 32 x 32 pixels about -2.6.

    Args:
        images: uint8 [N, C, H, W], sides of at least 4; channels are averaged.

    Returns:
        [N], in nats.

    Raises:
        DataError: no images, another type or shape, or smaller sides.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or min(images.shape) < 1:
        raise DataError(
            f"images of shape {images.shape} and type {images.dtype}",
            expected="at least one image as uint8 [N, C, H, W]",
        )
    H, W = images.shape[2:]
    if min(H, W) < _SMALLEST:
        raise DataError(
            f"images of {H} x {W} pixels", expected=f"sides of at least {_SMALLEST} pixels"
        )
    f = np.hypot.outer(np.arange(H) / H, np.arange(W) / W)  # 1 is Nyquist's frequency
    fine, coarse = f >= 0.5, (f >= 0.25) & (f < 0.5)
    found = []
    for start in range(0, len(images), _BATCH):
        x = images[start : start + _BATCH].astype(np.float64)
        energy = np.square(scipy.fft.dctn(x, norm="ortho", axes=(2, 3))).mean(1) + _ROUNDING
        high, low = energy[:, fine].mean(1), energy[:, coarse].mean(1)
        flat = low < _FLAT * _ROUNDING
        found.append(np.where(flat, np.nan, np.log(high) - np.log(low)))
    return np.concatenate(found)


def detail_estimate(
    samples: NDArray[np.uint8] | Subset, reference: NDArray[np.uint8] | Subset
) -> Estimate:
    """Typical fine detail of samples over that of real images: 1 is alike.

    The ratio of the geometric means of `fine_detail`'s energies, errors by the delta method. Below
    1 samples are blurred or too smooth, above 1 noisy or too sharp.

    Args:
        samples: uint8 [M, C, H, W].
        reference: uint8 [N, C, H, W], of the same size.

    Raises:
        DataError: fewer than two images in a set, sets of different sizes, or as `fine_detail`.
    """
    if samples.shape[1:] != reference.shape[1:] or min(len(samples), len(reference)) < 2:
        raise DataError(
            f"samples of shape {samples.shape} beside real images of shape {reference.shape}",
            expected="at least two images in either set, of one size",
        )
    s, r = fine_detail(samples), fine_detail(reference)
    s, r = s[~np.isnan(s)], r[~np.isnan(r)]
    if min(len(s), len(r)) < 2:
        return Estimate(math.nan)
    ratio = math.exp(s.mean() - r.mean())
    s_error, r_error = (float(v.std(ddof=1)) / math.sqrt(len(v)) for v in (s, r))
    return Estimate(ratio, ratio * s_error, ratio * r_error)
