"""Denoising error on fixed images with fixed noise: the curve over noise levels.

The noise of an image at a level depends on the seed and their numbers alone, so that two
checkpoints are compared on the same questions and differences are paired.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from poise.errors import UsageError
from poise.runtime import generator_at

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

_RANGE = 2.0  # images span [-1, 1]
_MSE_FLOOR = _RANGE**2 * 1e-10  # keeps the PSNR of a perfect image finite, at 100 dB


@dataclass(frozen=True)
class BandError:
    """Errors at one noise level; a network whose output is not finite makes them nan.

    Attributes:
        sigma: standard deviation of the noise.
        loss: weighted mean squared error, lambda(sigma) * mse.
        mse: mean squared error per pixel value.
        psnr: mean of the images' PSNRs in dB, data range 2, at most 100.
        ssim: mean structural similarity, -1 to 1, data range 2.
    """

    sigma: float
    loss: float
    mse: float
    psnr: float
    ssim: float


def noise_levels(bands: int, sigma_min: float, sigma_max: float) -> torch.Tensor:
    """`bands` noise levels from sigma_min to sigma_max, evenly spaced in ln(sigma), float64.

    Raises:
        UsageError: fewer than two bands, or not 0 < sigma_min < sigma_max.
    """
    if bands < 2 or not 0 < sigma_min < sigma_max < math.inf:
        raise UsageError(
            f"{bands} noise levels from {sigma_min} to {sigma_max}",
            expected="at least two, with 0 < sigma_min < sigma_max",
        )
    ends = math.log(sigma_min), math.log(sigma_max)
    return torch.linspace(*ends, bands, dtype=torch.float64).exp()


def denoising_error(
    denoise: Denoise,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    sigmas: torch.Tensor,
    *,
    seed: int,
    sigma_data: float,
    batch: int = 128,
) -> list[BandError]:
    """Error of `denoise` on noisy images, level by level.

    Image i at level j gets the noise of generator_at(seed, i * len(sigmas) + j, "validation"),
    drawn on the CPU: the same bits for any batch size and device.

    Args:
        denoise: (x [B, C, H, W], sigma [B], labels or None) -> estimate of the clean images.
        images: clean images [N, C, H, W], float in [-1, 1].
        labels: passed on in slices of the batch, or None.
        sigmas: noise levels [J], positive.
        seed: the run's seed.
        sigma_data: standard deviation of the data; enters the weight (EDM, Karras et al. 2022,
            table 1): lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2.
        batch: images per call of `denoise`; changes speed and memory only.

    Returns:
        One `BandError` per level, in the order of `sigmas`. PSNR and SSIM see the estimate
        clamped to [-1, 1]; loss and mse see it as it is.

    Raises:
        UsageError: no images, wrong shapes, noise levels or sigma_data that are not positive.
    """
    _check(images, labels, sigmas, sigma_data)
    bands = []
    for j, s in enumerate(sigmas.tolist()):
        parts = []
        for start in range(0, len(images), batch):
            y = images[start : start + batch]
            positions = range(start * len(sigmas) + j, len(images) * len(sigmas), len(sigmas))
            x = y + s * _noise(seed, positions[: len(y)], y)
            c = None if labels is None else labels[start : start + batch]
            with torch.no_grad():
                D = denoise(x, torch.full((len(y),), s, dtype=y.dtype, device=y.device), c)
            parts.append(_errors(D, y))
        mse, psnr, similarity = torch.cat(parts, 1).mean(1).tolist()
        weight = (s**2 + sigma_data**2) / (s * sigma_data) ** 2
        bands.append(BandError(s, weight * mse, mse, psnr, similarity))
    return bands


def _check(
    images: torch.Tensor, labels: torch.Tensor | None, sigmas: torch.Tensor, sigma_data: float
) -> None:
    if images.ndim != 4 or len(images) == 0 or not images.is_floating_point():
        raise UsageError(
            f"images of shape {tuple(images.shape)} and type {images.dtype}",
            expected="at least one image as floats in [-1, 1], [N, C, H, W]",
        )
    if labels is not None and len(labels) != len(images):
        raise UsageError(f"{len(labels)} labels for {len(images)} images", expected="one each")
    if sigmas.ndim != 1 or len(sigmas) == 0 or not bool((sigmas > 0).all()) or sigma_data <= 0:
        raise UsageError(
            f"sigmas {sigmas.tolist()} and sigma_data {sigma_data}", expected="positive numbers"
        )


def _noise(seed: int, positions: range, like: torch.Tensor) -> torch.Tensor:
    """Unit normal noise shaped like the batch, one generator per image."""
    n = torch.empty(like.shape, dtype=torch.float32)
    for image, position in zip(n, positions, strict=True):
        image.normal_(generator=generator_at(seed, position, "validation"))
    return n.to(like.device, like.dtype)


def _errors(D: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Per image: mean squared error, PSNR, SSIM. [3, B], float64, on the CPU."""
    D, y = D.double(), y.double()
    clamped = D.clamp(-1, 1)
    mse = _image_means((D - y).square())
    psnr = 10 * torch.log10(_RANGE**2 / _image_means((clamped - y).square()).clamp(min=_MSE_FLOOR))
    return torch.stack([mse, psnr, ssim(clamped, y, _RANGE)]).cpu()


def _image_means(x: torch.Tensor) -> torch.Tensor:
    # One reduction per image: a joint one may sum in an order that depends on the batch size.
    return torch.stack([image.mean() for image in x])


def ssim(a: torch.Tensor, b: torch.Tensor, data_range: float) -> torch.Tensor:
    """Structural similarity of pairs of images (Wang et al. 2004), computed in float64.

    Gaussian window of 11 x 11 with sigma 1.5, only where it fits (no padding), population
    covariances, K1 = 0.01 and K2 = 0.03, mean over positions and channels. Images with a side
    below 11 get the largest odd window that fits.

    Args:
        a, b: [B, C, H, W], sides of at least 3.
        data_range: largest minus smallest possible value: 2 for [-1, 1], 255 for bytes.

    Returns:
        [B], float64, -1 to 1; symmetric in a and b.

    Raises:
        UsageError: different shapes, or images smaller than 3 x 3.
    """
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) < 3:
        raise UsageError(
            f"SSIM of images of shapes {tuple(a.shape)} and {tuple(b.shape)}",
            expected="one shape [B, C, H, W] with sides of at least 3",
        )
    side = min(a.shape[2:])
    w = _window(min(11, side - 1 + side % 2)).to(a.device)
    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # One image at a time: its bits do not depend on the batch it came in.
    return torch.stack(
        [_ssim(x, y, w, C1, C2) for x, y in zip(a.double(), b.double(), strict=True)]
    )


def _ssim(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, C1: float, C2: float) -> torch.Tensor:
    """Mean of Wang et al.'s equation 13 over positions and channels of one pair [C, H, W]."""
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    maps = functional.conv2d(functional.conv2d(maps, w[..., None]), w[:, :, None])
    mu_x, mu_y, xx, yy, xy = maps.view(5, -1, *maps.shape[2:]).unbind()
    mu_xx, mu_yy, mu_xy = mu_x * mu_x, mu_y * mu_y, mu_x * mu_y
    numerator = (2 * mu_xy + C1) * (2 * (xy - mu_xy) + C2)
    denominator = (mu_xx + mu_yy + C1) * (xx - mu_xx + yy - mu_yy + C2)
    return torch.mean(numerator / denominator)


def _window(size: int) -> torch.Tensor:
    """A Gaussian of sigma 1.5 over `size` pixels that sums to 1, as a filter [1, 1, size]."""
    i = torch.arange(size, dtype=torch.float64) - size // 2
    g = torch.exp(-0.5 * (i / 1.5) ** 2)
    return (g / g.sum()).view(1, 1, size)
