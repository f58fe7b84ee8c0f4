"""Noise removal, off unless asked for: light, and only where there is noise or there are blocks.

Both filters measure first what they are to remove and leave the picture alone where there is none.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 8  # pixels, of JPEG
_BLOCKY = 1.2  # steps at block borders over steps inside, from which blocks show
_NOISY = 2.5  # standard deviation of noise in levels; sharp clean photographs measure up to 2
_NOISIEST = 12.0  # what is estimated higher is texture
_SMALLEST = 24  # side in pixels below which neither can be told
_STRENGTH = 0.8  # of the noise that was measured, so that texture stays

Pixels = NDArray[np.uint8]


def clean(pixels: Pixels, kinds: tuple[str, ...], kind: str) -> tuple[Pixels, list[str]]:
    """Remove JPEG blocks and noise as far as they are there.

    Args:
        pixels: [H, W] or [H, W, C].
        kinds: of "jpeg" and "denoise".
        kind: the format of the file; blocks are looked for in JPEG files only.

    Returns:
        The pixels, of the same shape, and what was done, such as "denoise 4.1".
    """
    if min(pixels.shape[:2]) < _SMALLEST:
        return pixels, []
    done: list[str] = []
    if "jpeg" in kinds and kind == "JPEG" and (ratio := blockiness(pixels)) > _BLOCKY:
        pixels = _without_blocks(pixels)
        done.append(f"jpeg {ratio:.2f}")
    if "denoise" in kinds and (sigma := noise_level(pixels)) > _NOISY:
        pixels = _denoised(pixels, min(sigma, _NOISIEST))
        done.append(f"denoise {sigma:.1f}")
    return pixels, done


def blockiness(pixels: Pixels) -> float:
    """Mean step across the borders of 8x8 blocks over the mean step elsewhere; about 1 if none."""
    gray = _gray(pixels)
    at: list[float] = []
    inside: list[float] = []
    for steps in (np.abs(np.diff(gray, axis=0)).mean(1), np.abs(np.diff(gray, axis=1)).mean(0)):
        border = np.arange(1, len(steps) + 1) % _BLOCK == 0
        at.append(float(steps[border].mean()))
        inside.append(float(steps[~border].mean()))
    return sum(at) / max(sum(inside), 1e-6)


def noise_level(pixels: Pixels) -> float:
    """Standard deviation of white noise in levels, the mean over channels (J. Immerkaer, "Fast
    noise variance estimation", 1996), from the quieter half of the picture, so that texture is not
    taken for noise.
    """
    channels = pixels[..., None] if pixels.ndim == 2 else pixels
    return float(np.mean([_noise_of(channels[..., c]) for c in range(channels.shape[2])]))


def _noise_of(channel: Pixels) -> float:
    gray = channel.astype(np.float64)
    rows = gray[:-2] - 2 * gray[1:-1] + gray[2:]
    mask = np.abs(rows[:, :-2] - 2 * rows[:, 1:-1] + rows[:, 2:])
    side = _BLOCK
    high, wide = mask.shape[0] // side, mask.shape[1] // side
    blocks = mask[: high * side, : wide * side].reshape(high, side, wide, side).mean((1, 3))
    quiet = np.sort(blocks.ravel())[: max(1, blocks.size // 2)]
    return float(np.sqrt(np.pi / 2) / 6 * quiet.mean())


def _without_blocks(pixels: Pixels) -> Pixels:
    """Smoothed near the borders of blocks alone, total variation keeping the edges."""
    from skimage import restoration

    values = pixels.astype(np.float64) / 255
    filters: Any = restoration  # partly without types
    smooth = filters.denoise_tv_chambolle(values, weight=0.05, channel_axis=_axis(pixels))
    near = [
        np.maximum(0, 1 - np.minimum(at, _BLOCK - 1 - at) / 2)
        for at in (np.arange(size) % _BLOCK for size in pixels.shape[:2])
    ]
    share = np.maximum(near[0][:, None], near[1][None, :])
    if pixels.ndim == 3:
        share = share[..., None]
    return _as_bytes(values + share * (smooth - values))


def _denoised(pixels: Pixels, sigma: float) -> Pixels:
    """Non-local means (A. Buades et al., 2005), a little weaker than the noise."""
    from skimage.restoration import denoise_nl_means

    values = pixels.astype(np.float64) / 255
    level = sigma / 255
    return _as_bytes(
        denoise_nl_means(
            values,
            patch_size=5,
            patch_distance=5,
            h=_STRENGTH * level,
            sigma=level,
            fast_mode=True,
            channel_axis=_axis(pixels),
        )
    )


def _gray(pixels: Pixels) -> NDArray[np.float64]:
    values = pixels.astype(np.float64)
    return values if values.ndim == 2 else values.mean(2)


def _axis(pixels: Pixels) -> int | None:
    return None if pixels.ndim == 2 else 2


def _as_bytes(values: NDArray[Any]) -> Pixels:
    whole: Pixels = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    return whole
