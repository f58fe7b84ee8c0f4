"""How sharp a picture is, whatever it shows and however strong its contrast.

In photographs the detail of each octave has about the energy of the next coarser one (power
falls as 1/f^2: Field 1987, Relations between the statistics of natural images). A Gaussian blur of
sigma pixels multiplies the power at frequency w by exp(-(sigma w)^2); with sigma = 2 the octave
around a quarter cycle per pixel loses nearly all, the next coarser one half. Their ratio tells the
blur apart from low contrast. The finest octave is not used: noise and JPEG live there.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = 32  # shorter side in pixels below which nothing is measured
_PLAIN = 2.0  # standard deviation of the luma below which there is nothing to be sharp
_WORKING = 1024  # larger pictures are measured at about this shorter side
_TILE = 64
_MOST_TILES = 4  # per side
_DETAILED = 0.5  # share of the mean coarse energy that a tile must have to be judged
_NOISE = 8.0  # squared grey levels: coarse energy that rounding and JPEG leave in smooth areas


def sharpness(luma: NDArray[np.uint8], contrast: float) -> float:
    """Energy of fine over that of coarser detail, in the sharpest part of the picture.

    0.3 to 2 in sharp photographs, below 0.25 after a Gaussian blur of sigma >= 2 pixels. A picture
    that is sharp in one part (a shallow depth of field) is sharp. Above 2047 pixels on the shorter
    side the blur is judged as at half the size, and so on.

    Args:
        luma: [H, W].
        contrast: its standard deviation.

    Returns:
        The ratio, or -1 where it cannot be told: too small, or nearly one brightness.
    """
    if min(luma.shape) < SMALLEST or contrast < _PLAIN:
        return -1.0
    values: NDArray[Any] = luma
    factor = min(luma.shape) // _WORKING
    while factor >= 2:
        values = _halved(values)
        factor //= 2
    half = _halved(values).astype(np.float32)
    quarter = _halved(half)
    tiles = min(max(min(values.shape) // _TILE, 1), _MOST_TILES)
    fine, coarse = _detail(half, tiles), _detail(quarter, tiles)
    detailed = coarse >= _DETAILED * coarse.mean()
    ratios = (fine[detailed] + 0.1 * _NOISE) / (coarse[detailed] + _NOISE)
    return float(ratios.max())


def _halved(values: NDArray[Any]) -> NDArray[np.float32]:
    """Means of 2x2 pixels; an odd last row or column is left out."""
    height, width = values.shape[0] // 2 * 2, values.shape[1] // 2 * 2
    exact = np.float32 if values.dtype == np.float32 else np.uint16
    rows = np.add(values[0:height:2, :width], values[1:height:2, :width], dtype=exact)
    return np.asarray((rows[:, 0::2] + rows[:, 1::2]) * np.float32(0.25))


def _detail(values: NDArray[np.float32], tiles: int) -> NDArray[np.float32]:
    """Mean squared Laplacian in each of tiles x tiles parts, one number per part."""
    inner = values[1:-1, 1:-1] * np.float32(4)
    inner -= values[:-2, 1:-1]
    inner -= values[2:, 1:-1]
    inner -= values[1:-1, :-2]
    inner -= values[1:-1, 2:]
    np.square(inner, out=inner)
    height, width = inner.shape[0] // tiles, inner.shape[1] // tiles
    parts = inner[: tiles * height, : tiles * width].reshape(tiles, height, tiles * width).sum(1)
    sums = parts.reshape(tiles * tiles, width).sum(1)
    return np.asarray(sums / (height * width), np.float32)
