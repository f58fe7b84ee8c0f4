"""Power-function averages of the weights, whose width is a share of the training so far, and the
mathematics of averages made afterwards from stored ones.

Source: Karras et al. 2024 (EDM2), Section 3. The averages are siblings of the model in the
training state, not a wrapper around it. A profile at time t is p(tau) = (g + 1)/t (tau/t)^g. With
the factors of `power_beta` an average equals the integral of p over weights that stand still
between updates, exactly and from the first update on; so the solver below, which compares profiles
in continuous time, holds for short runs as well.
"""

from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_WIDEST = 12**-0.5  # the uniform profile, exponent 0


@cache
def std_to_exp(std: float) -> float:
    """The exponent gamma of the power-function profile of relative width `std` (EDM2, Eq. 126).

    Args:
        std: 0 < std < 12^-0.5 = 0.2887.

    Raises:
        ValueError: no profile has that width.
    """
    if not 0 < std < _WIDEST:
        raise ValueError(f"A power-function profile has a width between 0 and 0.2887, not {std}.")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def exp_to_std(exponent: float) -> float:
    """The relative width of the profile with this exponent; the inverse of `std_to_exp`.

    Args:
        exponent: gamma >= 0; 0 is the plain mean over the whole training.

    Raises:
        ValueError: the exponent is negative.
    """
    if not exponent >= 0:
        raise ValueError(f"The exponent of a profile is at least 0, not {exponent}.")
    g = exponent
    return float(((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5)


def power_beta(std: float, images_seen: int, images: int) -> float:
    """How much of the average is kept by an update of `images` images that ends at `images_seen`.

    EDM2, Eq. 127; the first update keeps nothing.
    """
    return float((1 - images / images_seen) ** (std_to_exp(std) + 1))


class PowerEMA:
    """Averages of named weights along several profiles at once."""

    def __init__(self, weights: Mapping[str, Tensor], stds: Sequence[float]) -> None:
        """
        Args:
            weights: the weights to follow, updated in place by the optimiser.
            stds: relative widths of the profiles.
        """
        self._weights = dict(weights)
        self.profiles: dict[float, dict[str, Tensor]] = {
            std: {name: w.detach().clone() for name, w in weights.items()} for std in stds
        }

    @torch.no_grad()
    def update(self, images_seen: int, images: int) -> None:
        """Take in the weights after an update; also after one that was left out and changed none.

        Args:
            images_seen: images seen including this update.
            images: images of this update.
        """
        weights = [w.detach() for w in self._weights.values()]
        for std, averages in self.profiles.items():
            share = 1 - power_beta(std, images_seen, images)
            torch._foreach_lerp_(list(averages.values()), weights, share)


def profile_name(std: float) -> str:
    """`ema_0.100`: how averaged weights are called in files and logs; no two widths share a name.

    It has three decimals, and more where the width has more.
    """
    return f"ema_{np.format_float_positional(std, min_digits=3)}"


def profile_std(name: str) -> float | None:
    """The width behind a name of `profile_name`; None for any other name."""
    try:
        std = float(name.removeprefix("ema_"))
    except ValueError:
        return None
    return std if 0 < std < _WIDEST and profile_name(std) == name else None


def solve_posthoc(
    in_ofs: ArrayLike, in_std: ArrayLike, out_ofs: ArrayLike, out_std: ArrayLike
) -> NDArray[np.float64]:
    """Weights of a sum of stored averages that comes nearest to other averages (EDM2, Sec. 3.3).

    Least squares between profiles. Inputs that (nearly) repeat each other share their weight.

    Args:
        in_ofs: [n] times of the stored averages, in images or any other unit.
        in_std: [n] their relative widths.
        out_ofs: the time of the wanted average > 0, or [m] of them.
        out_std: its relative width, or [m] of them.

    Returns:
        [n], or [n, m]. Each column adds up to 1. Inputs at time 0 or later than the output get 0.

    Raises:
        ValueError: a width that no profile has, lengths that differ, or no input in time.
    """
    t_in, g_in = _profiles(in_ofs, in_std)
    t_out, g_out = _profiles(out_ofs, out_std)
    x = np.zeros((len(t_in), len(t_out)))
    for t in np.unique(t_out):
        rows, columns = np.flatnonzero((t_in > 0) & (t_in <= t)), np.flatnonzero(t_out == t)
        if not t > 0 or not len(rows):
            raise ValueError(f"No average was stored between time 0 and time {t:g}.")
        inner = t_in[rows], g_in[rows]
        outer = t_out[columns], g_out[columns]
        # norm 1 conditions the matrix best; lstsq leaves out directions that are only rounding
        y = np.linalg.lstsq(_cosines(*inner, *inner), _cosines(*inner, *outer), rcond=None)[0]
        part = y * _norms(*outer) / _norms(*inner)[:, None]
        x[np.ix_(rows, columns)] = part / part.sum(axis=0)
    return x[:, 0] if np.ndim(out_ofs) == np.ndim(out_std) == 0 else x


def profile_error(
    in_ofs: ArrayLike,
    in_std: ArrayLike,
    coefficients: ArrayLike,
    out_ofs: ArrayLike,
    out_std: ArrayLike,
) -> NDArray[np.float64]:
    """Distance between the summed and the wanted profile, relative to the wanted one (L2).

    Args:
        in_ofs, in_std, out_ofs, out_std: as in `solve_posthoc`.
        coefficients: its result, [n] or [n, m].

    Returns:
        [] or [m], >= 0. Below about 1e-7 times the noise gain it is rounding.
    """
    t_in, g_in = _profiles(in_ofs, in_std)
    t_out, g_out = _profiles(out_ofs, out_std)
    x = np.asarray(coefficients, np.float64)
    used = t_in > 0
    t_in, g_in = t_in[used], g_in[used]
    y = x.reshape(len(used), len(t_out))[used] * _norms(t_in, g_in)[:, None] / _norms(t_out, g_out)
    gram, target = _cosines(t_in, g_in, t_in, g_in), _cosines(t_in, g_in, t_out, g_out)
    # y (G y - b) is small beside y b, so each difference is taken before the sum
    square = (y * (gram @ y - target)).sum(axis=0) + (1 - (y * target).sum(axis=0))
    error: NDArray[np.float64] = np.sqrt(np.maximum(square, 0)).reshape(x.shape[1:])
    return error


def noise_gain(coefficients: ArrayLike) -> NDArray[np.float64]:
    """At most how often the sum multiplies the rounding of what was stored: sum |x|, [] or [m]."""
    gain: NDArray[np.float64] = np.abs(np.asarray(coefficients, np.float64)).sum(axis=0)
    return gain


def _profiles(ofs: ArrayLike, std: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Times [n] and exponents [n]."""
    times, stds = np.broadcast_arrays(
        np.atleast_1d(np.asarray(ofs, np.float64)), np.atleast_1d(np.asarray(std, np.float64))
    )
    return times, np.array([std_to_exp(float(s)) for s in stds])


def _norms(t: NDArray[np.float64], g: NDArray[np.float64]) -> NDArray[np.float64]:
    """L2 norms of profiles, [n]."""
    norms: NDArray[np.float64] = (g + 1) / np.sqrt((2 * g + 1) * t)
    return norms


def _cosines(
    ta: NDArray[np.float64],
    ga: NDArray[np.float64],
    tb: NDArray[np.float64],
    gb: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Inner products of profiles of norm 1, [a, b]; the later profile gives the exponent."""
    ta, ga = ta[:, None], ga[:, None]
    ratio = np.minimum(ta, tb) / np.maximum(ta, tb)
    decay = ratio ** (np.where(ta < tb, gb, ga) + 0.5)
    cosines: NDArray[np.float64] = decay * np.sqrt((2 * ga + 1) * (2 * gb + 1)) / (ga + gb + 1)
    return cosines
