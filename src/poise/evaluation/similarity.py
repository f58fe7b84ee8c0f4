"""How alike two images are: error, PSNR, SSIM, MS-SSIM, and a learned perceptual distance.

All take pairs of images [B, C, H, W] and give one figure per pair, [B] float64 on their device,
whose bits do not depend on the batch (LPIPS: up to float32 rounding). `data_range` is the largest
minus the smallest possible value: 2 for [-1, 1], 255 for bytes. SSIM and MS-SSIM compare means by
their ratio and so depend on where 0 lies: published figures are of images with black at 0.
"""

import functools
import importlib
import math
import warnings
from typing import Any

import torch
from torch.nn import functional

from poise.errors import DataError, UsageError
from poise.evaluation.estimate import Estimate

PSNR_CAP = 100.0  # dB of identical images

_SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, finest first
_WINDOW = 11
# Five scales halve a side four times, and the window must fit the coarsest.
_SMALLEST_MS = (_WINDOW - 1) * 2 ** (len(_SCALES) - 1)
_SMALLEST_LPIPS = 31  # AlexNet's second pooling needs it
_ALEXNET = "alexnet-owt-7be5be79.pth"


def mse(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean squared difference per pixel value.

    Raises:
        UsageError: different shapes, or not [B, C, H, W].
    """
    _check(a, b, 1)
    # One reduction per image: a joint one may sum in an order that depends on the batch size.
    return torch.stack([image.mean() for image in (a.double() - b.double()).square()])


def psnr(a: torch.Tensor, b: torch.Tensor, data_range: float) -> torch.Tensor:
    """Peak signal-to-noise ratio, 10 log10(data_range^2 / mse), in dB; at most `PSNR_CAP`.

    The mean of images' PSNRs is not the PSNR of their mean error: say which one is given.

    Raises:
        UsageError: different shapes, or not [B, C, H, W].
    """
    return psnr_of(mse(a, b), data_range)


def psnr_of(error: torch.Tensor, data_range: float) -> torch.Tensor:
    """PSNR in dB, at most `PSNR_CAP`, of mean squared errors, any shape."""
    least = data_range**2 * 10 ** (-PSNR_CAP / 10)
    return 10 * torch.log10(data_range**2 / error.clamp(min=least))


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
    _check(a, b, 3)
    side = min(a.shape[2:])
    w = _window(min(_WINDOW, side - 1 + side % 2)).to(a.device)
    C = _constants(data_range)
    # One image at a time: its bits do not depend on the batch it came in.
    return torch.stack([_ssim(x, y, w, C) for x, y in zip(a.double(), b.double(), strict=True)])


def ms_ssim(a: torch.Tensor, b: torch.Tensor, data_range: float) -> torch.Tensor:
    """Multi-scale structural similarity (Wang et al. 2003, equation 7), computed in float64.

        l_5^0.1333 prod_j cs_j^w_j     with w = 0.0448, 0.2856, 0.3001, 0.2363, 0.1333

    cs_j is the mean of contrast times structure at scale j; at the coarsest, luminance times
    contrast times structure is averaged together, as in Wang's code. A mean below 0 counts as 0.
    Between scales images are averaged in cells of 2 x 2; at an odd side the last cells are
    smaller. Window and border as in `ssim`; each channel on its own, then their mean.

    Args:
        a, b: [B, C, H, W], sides above 160.
        data_range: largest minus smallest possible value: 2 for [-1, 1], 255 for bytes.

    Returns:
        [B], float64, 0 to 1; symmetric in a and b.

    Raises:
        UsageError: different shapes, or not [B, C, H, W].
        DataError: a side of at most 160 pixels.
    """
    _check(a, b, 1)
    if min(a.shape[2:]) <= _SMALLEST_MS:
        raise DataError(
            f"MS-SSIM of images of {a.shape[2]}x{a.shape[3]} pixels",
            expected=f"sides above {_SMALLEST_MS}, so that five scales hold the window",
            remedy="read SSIM instead",
        )
    w, C = _window(_WINDOW).to(a.device), _constants(data_range)
    return torch.stack([_ms_ssim(x, y, w, C) for x, y in zip(a.double(), b.double(), strict=True)])


def lpips(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Learned perceptual distance (Zhang et al. 2018), version 0.1 on AlexNet, in float32.

    It needs the package `lpips`, which brings its own weights but not those of AlexNet: torchvision
    downloads them, 233 MB, on first use. One channel is repeated to make three.

    Args:
        a, b: [B, 1 or 3, H, W] in [-1, 1], sides of at least 31.

    Returns:
        [B], 0 for identical images, rarely above 1.

    Raises:
        UsageError: different shapes; the package is not installed or does not load; no weights.
        DataError: another number of channels, or smaller images.
    """
    _check(a, b, 1)
    if a.shape[1] not in (1, 3) or min(a.shape[2:]) < _SMALLEST_LPIPS:
        raise DataError(
            f"LPIPS of images of shape {tuple(a.shape[1:])}",
            expected=f"1 or 3 channels and sides of at least {_SMALLEST_LPIPS}",
            remedy="read SSIM instead",
        )
    network = _lpips_network(str(a.device))
    x, y = (images.to(torch.float32).expand(-1, 3, -1, -1) for images in (a, b))
    with torch.no_grad():
        return torch.as_tensor(network(x, y)).reshape(len(a)).double()


def over_images(values: torch.Tensor) -> Estimate:
    """Mean of the images' values [N] with its standard error, nan for a single image."""
    n, values = len(values), values.double()
    error = math.sqrt(float(values.var()) / n) if n > 1 else math.nan
    return Estimate(float(values.mean()), samples_error=error)


def _check(a: torch.Tensor, b: torch.Tensor, smallest: int) -> None:
    if a.shape != b.shape or a.ndim != 4 or min(a.shape[2:]) < smallest:
        raise UsageError(
            f"similarity of images of shapes {tuple(a.shape)} and {tuple(b.shape)}",
            expected=f"one shape [B, C, H, W] with sides of at least {smallest}",
        )


def _constants(data_range: float) -> tuple[float, float]:
    return (0.01 * data_range) ** 2, (0.03 * data_range) ** 2


def _window(size: int) -> torch.Tensor:
    """A Gaussian of sigma 1.5 over `size` pixels that sums to 1, as a filter [1, 1, size]."""
    i = torch.arange(size, dtype=torch.float64) - size // 2
    g = torch.exp(-0.5 * (i / 1.5) ** 2)
    return (g / g.sum()).view(1, 1, size)


def _ssim(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, C: tuple[float, float]
) -> torch.Tensor:
    """Mean of Wang et al.'s equation 13 over positions and channels of one pair [C, H, W]."""
    light, light_most, rest, rest_most = _terms(x, y, w, C)
    return torch.mean((light * rest) / (light_most * rest_most))


def _ms_ssim(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, C: tuple[float, float]
) -> torch.Tensor:
    """The product over scales of one pair [C, H, W], mean over channels."""
    product = torch.ones(len(x), dtype=x.dtype, device=x.device)
    for scale, weight in enumerate(_SCALES):
        if scale > 0:
            x, y = (functional.avg_pool2d(image, 2, ceil_mode=True) for image in (x, y))
        light, light_most, rest, rest_most = _terms(x, y, w, C)
        similarity = rest / rest_most
        if scale == len(_SCALES) - 1:
            similarity = (light * rest) / (light_most * rest_most)
        product = product * similarity.mean((1, 2)).clamp(min=0) ** weight
    return product.mean()


def _terms(
    x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, C: tuple[float, float]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Luminance, and contrast times structure, each as numerator and denominator [C, H', W']."""
    maps = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, 1)[:, None]
    maps = functional.conv2d(functional.conv2d(maps, w[..., None]), w[:, :, None])
    mu_x, mu_y, xx, yy, xy = maps.view(5, -1, *maps.shape[2:]).unbind()
    mu_xx, mu_yy, mu_xy = mu_x * mu_x, mu_y * mu_y, mu_x * mu_y
    return (
        2 * mu_xy + C[0],
        mu_xx + mu_yy + C[0],
        2 * (xy - mu_xy) + C[1],
        xx - mu_xx + yy - mu_yy + C[1],
    )


@functools.cache
def _lpips_network(device: str) -> Any:
    """The package's network on a device, loaded once."""
    try:
        package = importlib.import_module("lpips")
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision is for another torch
        raise UsageError(
            f"LPIPS needs the package lpips, which cannot be imported: {error}",
            expected="lpips, and the torchvision that belongs to the installed torch",
            remedy="pip install 'poise[lpips]'",
        ) from error
    try:
        with warnings.catch_warnings():  # it asks torchvision in an outdated way
            warnings.simplefilter("ignore")
            network = package.LPIPS(net="alex", version="0.1", verbose=False)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"LPIPS needs AlexNet's weights, which are not to be had: {error}",
            expected="a connection to download.pytorch.org on first use",
            remedy=f"put {_ALEXNET} from there into {torch.hub.get_dir()}/checkpoints",
        ) from error
    return network.to(device)
