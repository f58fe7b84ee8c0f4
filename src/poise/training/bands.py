"""The noise bands in which errors are watched: equal steps of ln(sigma), the outer ones open."""

import math

from poise.settings import DiffusionConfig

BANDS = 8
_DEVIATIONS = 2.5  # of ln(sigma) about its mean, which the bands cover


def band_grid(settings: DiffusionConfig) -> tuple[float, float]:
    """Where the bands begin and how wide each is, in ln(sigma)."""
    low = settings.P_mean - _DEVIATIONS * settings.P_std
    return low, 2 * _DEVIATIONS * settings.P_std / BANDS


def band_centres(settings: DiffusionConfig) -> list[float]:
    """The noise level sigma in the middle of each band, rising, BANDS of them."""
    low, width = band_grid(settings)
    return [math.exp(low + (i + 0.5) * width) for i in range(BANDS)]


def band_edges(settings: DiffusionConfig) -> list[float]:
    """The noise levels sigma between two bands, rising, BANDS - 1 of them."""
    low, width = band_grid(settings)
    return [math.exp(low + i * width) for i in range(1, BANDS)]
