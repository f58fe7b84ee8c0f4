"""Which P_mean and P_std suit the data, from the error measured at each noise level.

Where training can lower the error it should go. With the EDM weight the error is 1 before training
and stays there where nothing can be known (EDM, Section 5 and Figure 5a); that is the idea. But two
things lower it that are no work for a network:

* a mean image, or a mean for each class: high noise leaves a share V < 1 of the variance;
* pixels that never change: low noise leaves a share a < 1 of the pixels.

A denoiser that knows both and nothing else, the ideal one for white Gaussian data of variance
V sigma_data^2 in a share a of the pixels, has the error R with

    1 / R = (sigma^2 / V + sigma_data^2 / a) / (sigma^2 + sigma_data^2)

and the gain is what structure adds to it: gain = max(0, 1 - error / R). V and a are the errors at
the ends of the probe. Training noise is the log-normal whose mean and deviation are the gain's,
taken as a density over ln(sigma). It moves with the scale of the data, and not with a mean image or
with dead pixels, nor with sigma_data unless that is smaller than the data's.

It says where structure is, and not how much training a level needs: a network must also be right
where there is nothing to know, since samples pass there. So too narrow does more harm than too
wide, and a narrow proposal bears widening.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from poise.errors import UsageError

_LEAST_GAIN = 0.05  # a peak below this is noise of the measurement or of a young network
_LARGEST_SLOPE = 0.2  # of the gain's peak, per factor e of sigma, at the ends of the probe
_CUT = 0.05  # of the gain's peak; a Gaussian peak comes out 5 % narrower by it


@dataclass(frozen=True)
class Proposal:
    """Settings for the log-normal noise of training, and where they come from."""

    P_mean: float
    P_std: float
    gain: list[float]  # share of the error that structure removes, 0 to 1, level by level
    sentence: str


def propose(sigmas: Sequence[float], errors: Sequence[float], sigma_data: float) -> Proposal:
    """P_mean and P_std for the data that a trained denoiser was measured on.

    A network that has learnt little gains too little, above all at high noise, which it learns
    last, and where it was never trained it gains nothing: measure a run whose P_std was generous,
    and ask again after training with the proposal. Noise in the errors widens P_std; a thousand
    images are not too many. Published settings, for comparison and not as proof: -1.2, 1.2 (EDM,
    all its data sets), -0.4, 1.0 (EDM2, latents), -0.8, 1.6 (EDM2, 64x64 pixels).

    Args:
        sigmas: noise levels, rising, about evenly spaced in ln(sigma); 0.002 to 80 in a dozen
            levels serves images in [-1, 1].
        errors: mean of lambda(sigma) (D - y)^2 at each, on images that were not trained on, with
            lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2; `BandError.loss`.
        sigma_data: the one in lambda.

    Raises:
        UsageError: the levels or errors are no such curve; the network has not learnt enough; the
            probe ends before the error has come to rest, and at which end.
    """
    u, error = _checked(sigmas, errors, sigma_data)
    error = error.clip(max=1)  # worse than a network of zeros is no knowledge
    share = 1 / (1 + (sigma_data / np.exp(u)) ** 2)
    difference = 1 - error * (share / error[-1] + (1 - share) / error[0])
    gain = difference.clip(min=0)
    _check(u, difference)
    # an end measured a little wrong would lift the gain wherever there is none
    density = np.where(gain > _CUT * gain.max(), gain, 0)
    weight = density * np.gradient(u)  # trapezoids: the density is 0 at both ends
    mean = float((weight * u).sum() / weight.sum())
    std = math.sqrt(float((weight * (u - mean) ** 2).sum() / weight.sum()))
    low, high, peak = math.exp(mean - std), math.exp(mean + std), math.exp(u[gain.argmax()])
    return Proposal(
        mean,
        std,
        gain.tolist(),
        f"What can be learnt lies mostly between noise levels {low:.2g} and {high:.2g}, most of it "
        f"near {peak:.2g}: try diffusion.P_mean={mean:.2f} and diffusion.P_std={std:.2f}.",
    )


def _checked(
    sigmas: Sequence[float], errors: Sequence[float], sigma_data: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """ln(sigma) and the errors."""
    s, error = np.asarray(sigmas, np.float64), np.asarray(errors, np.float64)
    if s.ndim != 1 or s.shape != error.shape or len(s) < 5 or not 0 < sigma_data < math.inf:
        raise UsageError(
            f"{s.size} noise levels, {error.size} errors and sigma_data {sigma_data}",
            expected="at least five levels with one error each, and a positive sigma_data",
        )
    if not (np.isfinite(s).all() and s[0] > 0 and (np.diff(s) > 0).all()):
        raise UsageError(f"Noise levels {s.tolist()}", expected="positive numbers that rise")
    if not (np.isfinite(error).all() and (error > 0).all()):
        raise UsageError(
            f"Errors {error.tolist()}",
            expected="positive numbers",
            remedy="Take a snapshot from before the network broke.",
        )
    return np.log(s), error


def _check(u: NDArray[np.float64], difference: NDArray[np.float64]) -> None:
    """Refuse a curve without an answer; the difference to R is 0 at both ends by construction."""
    peak = float(difference.max())
    ends = [
        ("low", "below", math.exp(u[0]), _slope(u - u[0], difference)),
        ("high", "above", math.exp(u[-1]), _slope((u[-1] - u)[::-1], difference[::-1])),
    ]
    for end, _, edge, slope in ends:
        if slope < -_LARGEST_SLOPE:
            raise UsageError(
                f"The error falls again towards the {end} end of the probe, noise {edge:.3g}.",
                remedy="End the probe where the error is largest. Low noise may lie below the "
                "steps of the pixel values; high noise may not be learnt yet.",
            )
    if peak < _LEAST_GAIN:
        raise UsageError(
            "The error lies nowhere clearly below that of a denoiser which knows the mean and "
            f"the spread alone, {max(peak, 0):.1%} at most.",
            remedy="Train longer, then measure again; data without structure have no answer.",
        )
    for end, side, edge, slope in ends:
        if slope > _LARGEST_SLOPE * peak:
            raise UsageError(
                f"The error has not come to rest at the {end} end of the probe, noise {edge:.3g}.",
                remedy=f"Measure {side} {edge:.3g} too.",
            )
    if (difference > peak / 4).sum() < 3:
        raise UsageError(
            "The network gains at one or two of the noise levels only.",
            remedy="Measure at more levels between the ends.",
        )


def _slope(inwards: NDArray[np.float64], difference: NDArray[np.float64]) -> float:
    """Rise over the first factor e of sigma from an end, or over the next level if that is more."""
    i = min(int(np.searchsorted(inwards, 1.0)), len(inwards) - 1)
    return float((difference[i] - min(difference[0], 0)) / inwards[i])
