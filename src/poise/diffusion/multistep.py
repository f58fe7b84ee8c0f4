"""Multistep solvers, which call the network once a step, and the table of all solvers.

With lambda = -ln sigma the probability-flow equation from sigma_s to sigma_t, h apart in lambda, is

    x_t = e^-h x_s + h * integral over r in [0, 1] of e^(-(1 - r) h) D(lambda_s + r h) dr

(Lu et al. 2022b, "DPM-Solver++", Proposition 4.1, with alpha = 1). All solvers here put a
polynomial through known values of D and integrate it; they differ in the values they take. The
polynomial is in lambda, so they want levels that are nearly even in lambda: a large rho.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from poise.diffusion.sampler import Denoise, Fresh, euler, falling_levels, heun
from poise.errors import UsageError, nearest

# Fewer steps than this are so long that a polynomial through far values overshoots: the orders
# then fall to 2 and 1 at the end, as in the code of both papers.
_FEW = 10
_Known = tuple[float, Tensor]  # lambda, D [B, C, H, W]


def dpmpp_2m(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 20,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 25.0,
    levels: Tensor | None = None,
) -> Tensor:
    """DPM-Solver++ (2M), of second order (Lu et al. 2022b, Algorithm 2).

    Args:
        denoise: `(x, sigma) -> clean images`, called num_steps times.
        noise: standard normal [B, C, H, W]; its type is that of all arithmetic here.
        num_steps: noise levels visited, and steps, as the last one goes to zero.
        sigma_min: last level before zero.
        sigma_max: first level.
        rho: spacing of the levels; larger is finer near zero, and even in lambda at infinity.
        levels: instead of these four: the levels themselves, falling, usually to 0.

    Returns:
        Images [B, C, H, W], about [-1, 1], not clamped.

    Raises:
        UsageError: the levels do not fall.
    """
    levels = falling_levels(levels, num_steps, sigma_min, sigma_max, rho)
    return _multistep(denoise, noise, levels.tolist(), order=2, corrected=False)


def dpmpp_3m(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 20,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 25.0,
    levels: Tensor | None = None,
) -> Tensor:
    """DPM-Solver++ with three values of D, of third order (Lu et al. 2022b).

    The parabola through the three is integrated exactly. (Code that is in wide use takes half of
    its curvature, which leaves the order at 2.) Arguments, result and errors are those of
    `dpmpp_2m`.
    """
    levels = falling_levels(levels, num_steps, sigma_min, sigma_max, rho)
    return _multistep(denoise, noise, levels.tolist(), order=3, corrected=False)


def unipc(
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int = 20,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 25.0,
    levels: Tensor | None = None,
) -> Tensor:
    """UniPC-3 with data prediction and B(h) = 1 - e^-h (Zhao et al. 2023, "UniPC").

    UniP-3 predicts; the value of D found there then corrects the same step (UniC-3), so that a
    step still costs one call. The order is 3 for the predictor, 4 with the corrector. Arguments,
    result and errors are those of `dpmpp_2m`.
    """
    levels = falling_levels(levels, num_steps, sigma_min, sigma_max, rho)
    return _multistep(denoise, noise, levels.tolist(), order=3, corrected=True)


def _multistep(
    denoise: Denoise, noise: Tensor, levels: list[float], *, order: int, corrected: bool
) -> Tensor:
    steps = len(levels) - 1
    on_device = noise.new_tensor(levels)
    x = noise * on_device[0]
    before, known = x, list[_Known]()  # newest first
    for i in range(steps):
        here = -math.log(levels[i])
        newest = (here, denoise(x, on_device[i]))
        if levels[i + 1] == 0:
            return newest[1]  # h is infinite: nothing of x is left, and D has order 1
        if corrected and i > 0:
            x = _advance(before, [*known, newest], here)
        left = steps - i if steps < _FEW else order
        known = [newest, *known][: min(order, left)]
        before = x
        x = _advance(before, known, -math.log(levels[i + 1]))
    return x


def _advance(x: Tensor, known: list[_Known], to: float) -> Tensor:
    """From lambda = known[0][0] to `to`, with D the polynomial through the known values."""
    start = known[0][0]
    h = to - start
    result = math.exp(-h) * x
    weights = _weights([(at - start) / h for at, _ in known], h)
    for weight, (_, D) in zip(weights, known, strict=True):
        result = result + weight * D
    return result


def _weights(r: list[float], h: float) -> list[float]:
    """What D at each place r, in steps of h from the start, adds to the next x.

    Two values: their slope counts half a step, as both papers choose (Lu et al. 2022b,
    Algorithm 2; Zhao et al. 2023, a_1 = 1/2). More: the polynomial through them is integrated
    exactly; that meets the condition of Zhao et al. 2023, Theorem 3.1, and B(h) cancels.
    """
    moment = -math.expm1(-h)
    if len(r) == 2:
        return [moment - moment / (2 * r[1]), moment / (2 * r[1])]
    moments = [moment]  # of r^n under h e^(-(1 - r) h), by parts
    for n in range(1, len(r)):
        moments.append(1 - n / h * moments[-1])
    solved: list[float] = np.linalg.solve(np.vander(r, increasing=True).T, moments).tolist()
    return solved


@dataclass(frozen=True)
class Solver:
    """What must be known of a solver to choose it."""

    function: Callable[..., Tensor]
    calls: Callable[[int], int]  # network calls of a number of steps
    default_steps: int
    default_rho: float
    churns: bool  # takes fresh noise on the way


# With the 20 calls of its default a multistep solver is closer to the exact solution than Heun's
# method with the 35 of its own, on the mixtures of the tests.
SOLVERS = {
    "heun": Solver(heun, lambda steps: 2 * steps - 1, 18, 7.0, churns=True),
    "euler": Solver(euler, lambda steps: steps, 50, 7.0, churns=True),
    "dpmpp_2m": Solver(dpmpp_2m, lambda steps: steps, 20, 25.0, churns=False),
    "dpmpp_3m": Solver(dpmpp_3m, lambda steps: steps, 20, 25.0, churns=False),
    "unipc": Solver(unipc, lambda steps: steps, 20, 25.0, churns=False),
}


def solve(
    name: str,
    denoise: Denoise,
    noise: Tensor,
    *,
    num_steps: int | None = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float | None = None,
    levels: Tensor | None = None,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    fresh: Fresh | None = None,
) -> Tensor:
    """Sample with the solver of that name in `SOLVERS`.

    Arguments and result are those of `heun`.

    Args:
        name: a key of `SOLVERS`.
        denoise: `(x, sigma) -> clean images`.
        noise: standard normal [B, C, H, W].
        num_steps: noise levels visited; None: the solver's own number.
        rho: spacing of the levels; None: the solver's own.

    Raises:
        UsageError: there is no such solver, it takes no churn, or it refuses its arguments.
    """
    solver = SOLVERS.get(name)
    if solver is None:
        raise UsageError(
            f"There is no solver {name!r}.",
            expected=", ".join(SOLVERS),
            remedy=nearest(name, SOLVERS),
        )
    options: dict[str, Any] = {
        "num_steps": solver.default_steps if num_steps is None else num_steps,
        "sigma_min": sigma_min,
        "sigma_max": sigma_max,
        "rho": solver.default_rho if rho is None else rho,
        "levels": levels,
    }
    if solver.churns:
        options |= {"churn": churn, "churn_min": churn_min, "churn_max": churn_max}
        options |= {"churn_noise": churn_noise, "fresh": fresh}
    elif churn != 0:
        raise UsageError(
            f"The solver {name} takes no churn, and churn is {churn}.",
            expected="churn 0: fresh noise makes the values of earlier steps worthless",
            remedy="Set churn to 0, or choose heun or euler.",
        )
    return solver.function(denoise, noise, **options)
