"""Feature likelihood divergence: how well samples, each widened to a Gaussian, explain real images.

Jiralerspong et al. 2023. The widths are fitted to training images: a copy becomes narrow, explains
its original alone and no held-out image.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

from poise.evaluation.distances import Features, check_features, squared
from poise.evaluation.estimate import Estimate
from poise.runtime import generator_at

IMAGES = 2000  # of each set at most: densities are computed between all of them

_STEPS = 30  # of expectation maximisation
_NARROWEST = 1e-6  # variance; features have variance 1, and an exact copy would become infinite
_BARELY = 1e-12  # weight below which a sample explains nothing, and keeps its width


@dataclass(frozen=True)
class Likelihood:
    """Divergences in the paper's unit, 100 nats per feature.

    Attributes:
        fld: of held-out images; 0 for real images in the samples' place, higher is worse.
        gap: that of training images less that of held-out images; far below `real_gap` is copying.
        real_gap: the gap of real images in the samples' place.
    """

    fld: Estimate
    gap: Estimate
    real_gap: float


def feature_likelihood(
    train: Features, val: Features, samples: Features, limit: int = IMAGES
) -> Likelihood:
    """FLD of samples [M, D] and its generalisation gap.

    Features are standardised by the held-out images. The density is the mean of Gaussians
    N(x_j, s_j^2 I) around the samples x_j, with s_j fitted to one half of the training images; the
    divergence is its mean negative log-likelihood, less that of as many images of the other half in
    the samples' place, times 100/D.

    Args:
        train: [N, D], at least four.
        val: real images the model has not seen, [V, D].
        samples: [M, D].
        limit: images used of each half, of val and of samples, chosen by a fixed seed. Samples
            and the images that replace them are equally many.

    Raises:
        DataError: different D, fewer than two rows, or values that are not finite.
    """
    check_features(train=train, val=val, samples=samples)
    order = torch.randperm(len(train), generator=generator_at(0, len(train), "likelihood")).numpy()
    half = len(train) // 2
    count = min(limit, half, len(samples))
    check_features(train=train[:half])
    mean, std = val.mean(0), val.std(0)
    varies = std > 1e-9 * (np.abs(mean) + std.max())
    test, fit, instead, made = (
        torch.from_numpy((f - mean)[:, varies] / std[varies])
        for f in (
            _some(val, limit),
            train[order[:half][:limit]],
            train[order[half:][:count]],
            _some(samples, count),
        )
    )
    D = test.shape[1]
    value_test, value_fit = (100 / D * nll for nll in _explained(made, fit, test))
    real_test, real_fit = (100 / D * nll for nll in _explained(instead, fit, test))
    difference = value_test - real_test
    gap_error = math.hypot(_error(value_fit), _error(value_test))
    return Likelihood(
        Estimate(difference.mean().item(), reference_error=_error(difference)),
        Estimate((value_fit.mean() - value_test.mean()).item(), reference_error=gap_error),
        (real_fit.mean() - real_test.mean()).item(),
    )


def _explained(
    centres: torch.Tensor, fit: torch.Tensor, test: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Negative log-likelihoods of test [T] and of fit [F] by Gaussians around centres [C, D]."""
    D = centres.shape[1]
    d2 = _exact(fit, centres)
    variance = fitted_variances(d2, D)
    return -log_density(_exact(test, centres), variance, D), -log_density(d2, variance, D)


def fitted_variances(d2: torch.Tensor, D: int) -> torch.Tensor:
    """Variances [C] of isotropic Gaussians with fixed centres: maximum likelihood by EM.

    Args:
        d2: squared distances of images to the centres, [F, C].
        D: dimensions.
    """
    start = (d2.amin(1).mean() / D).clamp(min=_NARROWEST)
    variance = start.expand(d2.shape[1]).clone()
    for _ in range(_STEPS):
        share = torch.softmax(_log_terms(d2, variance, D), 1)
        weight = share.sum(0)
        explains = weight > _BARELY
        new = (share * d2).sum(0) / (D * weight.clamp(min=_BARELY))
        variance = torch.where(explains, new.clamp(min=_NARROWEST), variance)
    return variance


def log_density(d2: torch.Tensor, variance: torch.Tensor, D: int) -> torch.Tensor:
    """log of the mean over centres of N(x | centre, variance I), [F], for distances d2 [F, C]."""
    constant = math.log(len(variance)) + D / 2 * math.log(2 * math.pi)
    return torch.logsumexp(_log_terms(d2, variance, D), 1) - constant


def _log_terms(d2: torch.Tensor, variance: torch.Tensor, D: int) -> torch.Tensor:
    return -d2 / (2 * variance) - D / 2 * variance.log()


def _exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances, 0 for identical rows: what is rounding beside the norms becomes 0."""
    d2 = squared(a, b)
    noise = 1e-12 * (a.square().sum(1)[:, None] + b.square().sum(1))
    return torch.where(d2 < noise, 0.0, d2)


def _some(f: Features, count: int) -> Features:
    """At most `count` rows, chosen by a fixed seed."""
    rows = torch.randperm(len(f), generator=generator_at(0, len(f), "likelihood"))[:count]
    return np.asarray(f[rows.sort().values.numpy()], np.float64)


def _error(values: torch.Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))
