"""Denoising error on fixed images with fixed noise: the curve over noise levels.

The noise of an image at a level depends on the seed and their numbers alone, so that two
checkpoints are compared on the same questions and differences are paired.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.special import stdtr

from poise.errors import DataError, UsageError
from poise.evaluation.estimate import Estimate
from poise.evaluation.similarity import ms_ssim, mse, over_images, psnr, ssim
from poise.runtime import generator_at

Denoise = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]

_RANGE = 2.0  # images span [-1, 1]
_LEVEL = 0.05  # chance of any false alarm among the gaps of one curve


@dataclass(frozen=True)
class BandError:
    """Errors at one noise level; a network whose output is not finite makes them nan.

    Attributes:
        sigma: standard deviation of the noise.
        loss: weighted mean squared error, lambda(sigma) * mse.
        mse: mean squared error per pixel value.
        psnr: mean of the images' PSNRs in dB, data range 2, at most 100.
        ssim: mean structural similarity, -1 to 1, data range 2; of values in [-1, 1], so that it
            is not that of the same images with black at 0.
    """

    sigma: float
    loss: float
    mse: float
    psnr: float
    ssim: float


@dataclass(frozen=True)
class Band:
    """Figures at one noise level as in `BandError`, each with its standard error over images.

    Attributes:
        sigma: standard deviation of the noise.
        images: how many were measured.
        ms_ssim: multi-scale structural similarity of values in [-1, 1], 0 to 1; None for sides of
            at most 160 pixels.
    """

    sigma: float
    images: int
    loss: Estimate
    mse: Estimate
    psnr: Estimate
    ssim: Estimate
    ms_ssim: Estimate | None


@dataclass(frozen=True)
class Gap:
    """How the error on held-out images compares with that on training images at one level.

    Attributes:
        sigma: standard deviation of the noise.
        ratio: (held-out mse - training mse) / training mse. Its standard error is that of the
            delta method for independent sets, all of it in `samples_error`. Infinite, with an
            error of nan, where the training error is 0.
        p: two-sided, of Welch's test that both errors are equal.
        significant: whether p falls below 0.05 divided by the number of levels (Bonferroni).
    """

    sigma: float
    ratio: Estimate
    p: float
    significant: bool


@dataclass(frozen=True)
class GapSummary:
    """What a curve of gaps comes to.

    Attributes:
        significant: noise levels at which held-out images are significantly worse.
        largest: the gap of the largest ratio; None where no ratio is known.
    """

    significant: list[float]
    largest: Gap | None


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
    for s, errors in _levels(denoise, images, labels, sigmas, seed, "validation", batch):
        error, ratio, similarity = errors.mean(1).tolist()
        weight = _weight(s, sigma_data)
        bands.append(BandError(s, weight * error, error, ratio, similarity))
    return bands


def denoising_curves(
    denoise: Denoise,
    splits: Mapping[str, tuple[torch.Tensor, torch.Tensor | None]],
    sigmas: torch.Tensor,
    *,
    seed: int,
    sigma_data: float,
    batch: int = 128,
) -> dict[str, list[Band]]:
    """`denoising_error` of several sets of images, with standard errors over the images.

    Every split has noise of its own, so that errors of different splits are independent; that of
    "val" is the noise of `denoising_error`. Image i of a split gets the same noise every time.

    Args:
        splits: name -> (images [N, C, H, W], float in [-1, 1]; labels or None).

    The other arguments are those of `denoising_error`.

    Returns:
        Split -> one `Band` per level, in the order of `sigmas`.

    Raises:
        UsageError: no images, wrong shapes, noise levels or sigma_data that are not positive.
    """
    curves = {}
    for split, (images, labels) in splits.items():
        _check(images, labels, sigmas, sigma_data)
        stream = "validation" if split == "val" else f"denoising {split}"
        levels = _levels(denoise, images, labels, sigmas, seed, stream, batch, multiscale=True)
        curves[split] = [_band(s, errors, _weight(s, sigma_data)) for s, errors in levels]
    return curves


def generalisation_gap(curves: Mapping[str, Sequence[Band]], held_out: str = "val") -> list[Gap]:
    """How much larger the error is on images the network has not seen, level by level.

    A network that memorises shows a gap at low and middle noise levels, where it recognises its
    training images; at high levels none can be seen.

    Args:
        curves: of `denoising_curves`, with "train" and the split `held_out`, which share no images.

    Raises:
        UsageError: a split is missing, or the splits have different levels.
    """
    missing = {"train", held_out} - curves.keys()
    if missing:
        raise UsageError(
            f"curves without the split {' and '.join(sorted(missing))}",
            expected=f"curves of train and {held_out}",
        )
    train, held = curves["train"], curves[held_out]
    if [band.sigma for band in train] != [band.sigma for band in held]:
        raise UsageError("curves of different noise levels", expected="the same for both splits")
    return [_gap(t, h, _LEVEL / len(train)) for t, h in zip(train, held, strict=True)]


def gap_summary(gaps: Sequence[Gap]) -> GapSummary:
    """Where held-out images are significantly worse, and where most so."""
    known = [gap for gap in gaps if not math.isnan(gap.ratio.value)]
    return GapSummary(
        [gap.sigma for gap in gaps if gap.significant and gap.ratio.value > 0],
        max(known, key=lambda gap: gap.ratio.value, default=None),
    )


def trivial_error(sigma: float, sigma_data: float) -> float:
    """Mean squared error of the best answer that knows no more than the spread of the data.

        sigma_data^2 sigma^2 / (sigma_data^2 + sigma^2)

    It scales the noisy image about the mean colour by sigma_data^2 / (sigma_data^2 + sigma^2), as
    Wiener's filter does for white data, and errs by this much on any data; sigma^2 is the error of
    leaving the image as it is, sigma_data^2 that of the mean colour. A network above it has learnt
    nothing at this level. Times the weight of `denoising_error` it is 1.
    """
    return sigma_data**2 * sigma**2 / (sigma_data**2 + sigma**2)


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


def _weight(s: float, sigma_data: float) -> float:
    return (s**2 + sigma_data**2) / (s * sigma_data) ** 2


def _levels(
    denoise: Denoise,
    images: torch.Tensor,
    labels: torch.Tensor | None,
    sigmas: torch.Tensor,
    seed: int,
    stream: str,
    batch: int,
    multiscale: bool = False,
) -> Iterator[tuple[float, torch.Tensor]]:
    """Each noise level with the errors of all images, see `_errors`, [3 or 4, N]."""
    for j, s in enumerate(sigmas.tolist()):
        parts = []
        for start in range(0, len(images), batch):
            y = images[start : start + batch]
            positions = range(start * len(sigmas) + j, len(images) * len(sigmas), len(sigmas))
            x = y + s * _noise(seed, positions[: len(y)], y, stream)
            c = None if labels is None else labels[start : start + batch]
            with torch.no_grad():
                D = denoise(x, torch.full((len(y),), s, dtype=y.dtype, device=y.device), c)
            parts.append(_errors(D, y, multiscale))
        yield s, torch.cat(parts, 1)


def _noise(seed: int, positions: range, like: torch.Tensor, stream: str) -> torch.Tensor:
    """Unit normal noise shaped like the batch, one generator per image."""
    n = torch.empty(like.shape, dtype=torch.float32)
    for image, position in zip(n, positions, strict=True):
        image.normal_(generator=generator_at(seed, position, stream))
    return n.to(like.device, like.dtype)


def _errors(D: torch.Tensor, y: torch.Tensor, multiscale: bool) -> torch.Tensor:
    """Per image: mean squared error, PSNR, SSIM, and on request MS-SSIM if the size allows it.

    [3 or 4, B], float64, on the CPU.
    """
    D, y = D.double(), y.double()
    clamped = D.clamp(-1, 1)
    rows = [mse(D, y), psnr(clamped, y, _RANGE), ssim(clamped, y, _RANGE)]
    if multiscale:
        with contextlib.suppress(DataError):
            rows.append(ms_ssim(clamped, y, _RANGE))
    return torch.stack(rows).cpu()


def _band(s: float, errors: torch.Tensor, weight: float) -> Band:
    error, ratio, similarity, *more = [over_images(values) for values in errors]
    loss = Estimate(weight * error.value, samples_error=weight * error.samples_error)
    n = errors.shape[1]
    return Band(s, n, loss, error, ratio, similarity, more[0] if more else None)


def _gap(train: Band, held: Band, level: float) -> Gap:
    t, h = train.mse, held.mse
    v_t, v_h = t.samples_error**2, h.samples_error**2
    variance = v_t + v_h
    p = math.nan
    if variance > 0:  # not nan either
        freedom = variance**2 / (v_t**2 / (train.images - 1) + v_h**2 / (held.images - 1))
        p = 2 * float(stdtr(freedom, -abs(h.value - t.value) / math.sqrt(variance)))
    if t.value > 0:
        ratio = h.value / t.value
        gap = Estimate(ratio - 1, samples_error=math.sqrt(v_h + ratio**2 * v_t) / t.value)
    else:
        gap = Estimate(math.inf if t.value == 0 < h.value else h.value - t.value)
    return Gap(train.sigma, gap, p, p < level)
