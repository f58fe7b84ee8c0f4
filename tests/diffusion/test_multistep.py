"""The solvers of the table: order, exactness, network calls, and what they refuse."""

import functools
import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import SHAPE, Gaussian, Mixture, three_groups, two_scales
from torch import Tensor

from poise.diffusion.multistep import SOLVERS, dpmpp_2m, dpmpp_3m, solve, unipc
from poise.diffusion.sampler import heun, noise_schedule
from poise.errors import UsageError

HIGH, LOW = 10.0, 0.05
GAUSSIAN = Gaussian(0.3, 0.5)
TWO_GROUPS = Mixture((0.6, 0.4), (-0.5, 0.6), (0.25, 0.35))
ORDERS = {"euler": 1, "heun": 2, "dpmpp_2m": 2, "dpmpp_3m": 3, "unipc": 4}
NOISE = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def even_levels(steps: int) -> Tensor:
    """From HIGH to LOW, evenly in lambda."""
    ends = math.log(HIGH), math.log(LOW)
    return torch.linspace(*ends, steps + 1, dtype=torch.float64).exp()


def gentle_levels(steps: int) -> Tensor:
    """The same, the first step h taken in pieces h/steps that double: log2(steps) calls more.

    Multistep methods start with an Euler step. At full length its error is of order h^2 and, once
    h is small, hides the true order of the rest; at this length it is of order h^4.
    """
    levels = even_levels(steps)
    pieces = 2.0 ** -torch.arange(math.log2(steps), -1, -1, dtype=torch.float64)
    return torch.cat([levels[:1], levels[0] * (levels[1] / levels[0]) ** pieces, levels[2:]])


@functools.cache
def solution(problem: Gaussian | Mixture) -> Tensor:
    """At LOW; of a mixture by 500 and 1000 steps of Heun, extrapolated; error under 1e-8."""
    if isinstance(problem, Gaussian):
        return problem.flow(HIGH * NOISE, HIGH, LOW)
    coarse, fine = (heun(problem.denoise, NOISE, levels=even_levels(n)) for n in (500, 1000))
    return (4 * fine - coarse) / 3


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("problem", "counts"),
    [(GAUSSIAN, (64, 128, 256, 512)), (TWO_GROUPS, (32, 64, 128, 256))],
    ids=["gaussian", "mixture"],
)
def test_error_falls_at_the_stated_order(
    name: str, problem: Gaussian | Mixture, counts: tuple[int, ...]
) -> None:
    errors = [
        (solve(name, problem.denoise, NOISE, levels=gentle_levels(n)) - solution(problem)).abs()
        for n in counts
    ]
    slope, _ = np.polyfit(np.log(counts), np.log([e.max().item() for e in errors]), 1)
    assert -slope == pytest.approx(ORDERS[name], abs=0.25)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
@pytest.mark.parametrize(
    "problem", [GAUSSIAN, TWO_GROUPS, three_groups(), two_scales()], ids=["1", "2", "3", "fine"]
)
def test_defaults_are_closer_than_heun_with_its_35_calls(
    name: str, problem: Gaussian | Mixture
) -> None:
    wanted = many_steps(problem)
    found, of_heun = (
        (solve(solver, problem.denoise, NOISE) - wanted).square().mean().sqrt().item()
        for solver in (name, "heun")
    )
    assert found < of_heun


@functools.cache
def many_steps(problem: Gaussian | Mixture) -> Tensor:
    return heun(problem.denoise, NOISE, num_steps=500)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 18])
def test_calls_are_as_many_as_the_table_says(name: str, steps: int) -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.ndim == 0
        seen.append(sigma.item())
        return GAUSSIAN.denoise(x, sigma)

    solve(name, denoise, NOISE, num_steps=steps, rho=9.0)
    assert len(seen) == SOLVERS[name].calls(steps)
    assert list(dict.fromkeys(seen)) == noise_schedule(steps, rho=9.0)[:-1].tolist()


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_the_step_to_zero_is_the_last_answer_of_the_network(name: str, steps: int) -> None:
    answers: list[Tensor] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        answers.append(GAUSSIAN.denoise(x, sigma))
        return answers[-1]

    assert torch.equal(solve(name, denoise, NOISE, num_steps=steps), answers[-1])


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(SOLVERS)),
    ratios=st.lists(st.floats(1.01, 30), min_size=1, max_size=20),
    value=st.floats(-1, 1),
)
def test_a_constant_answer_is_followed_exactly(
    name: str, ratios: list[float], value: float
) -> None:
    """x - D shrinks with sigma, whatever the levels and the order of each step."""
    levels = 80 / torch.tensor([1.0, *ratios], dtype=torch.float64).cumprod(0)
    x = solve(name, lambda x, sigma: torch.full_like(x, value), NOISE, levels=levels)
    wanted = value + (levels[-1] / levels[0]) * (80 * NOISE - value)
    assert torch.allclose(x, wanted, rtol=1e-9, atol=1e-9)


def test_2m_takes_the_step_of_its_paper() -> None:
    """Lu et al. 2022b, Algorithm 2, written out for three steps."""
    levels = torch.tensor([9.0, 4.0, 1.0, 0.6], dtype=torch.float64)
    s = levels.tolist()
    h = [math.log(a / b) for a, b in pairwise(s)]
    x = NOISE * s[0]
    D = [GAUSSIAN.denoise(x, s[0])]
    x = s[1] / s[0] * x - (math.exp(-h[0]) - 1) * D[0]
    D.append(GAUSSIAN.denoise(x, s[1]))
    r = h[0] / h[1]
    mixed = (1 + 1 / (2 * r)) * D[1] - 1 / (2 * r) * D[0]
    x = s[2] / s[1] * x - (math.exp(-h[1]) - 1) * mixed
    D.append(GAUSSIAN.denoise(x, s[2]))
    x = s[3] / s[2] * x - (math.exp(-h[2]) - 1) * D[2]  # few steps: the last is of first order
    assert torch.allclose(dpmpp_2m(GAUSSIAN.denoise, NOISE, levels=levels), x, rtol=1e-12)


@pytest.mark.parametrize("B", [lambda h: h, math.expm1], ids=["B1", "B2"])
def test_unipc_is_the_method_of_its_paper(B: Callable[[float], float]) -> None:
    """Zhao et al. 2023 with their matrices; from order 3 on their B(h) makes no difference."""
    levels = even_levels(12)
    lambdas = (-levels.log()).tolist()
    x = before = NOISE * levels[0]
    D: list[Tensor] = []
    for i in range(12):
        D.append(TWO_GROUPS.denoise(x, levels[i]))
        if i > 0:
            x = paper_step(before, D, lambdas[: i + 1], min(i, 3), B, correct=True)
        before = x
        x = paper_step(x, D, lambdas[: i + 2], min(i + 1, 3), B, correct=False)
    assert torch.allclose(unipc(TWO_GROUPS.denoise, NOISE, levels=levels), x, rtol=1e-11)


def paper_step(
    x: Tensor,
    D: list[Tensor],
    lambdas: list[float],
    order: int,
    B: Callable[[float], float],
    *,
    correct: bool,
) -> Tensor:
    """UniC-p from the last lambda but one to the last, D known there; or UniP-p, D unknown."""
    h = lambdas[-1] - lambdas[-2]
    now = len(lambdas) - 2
    places = [now - m for m in range(1, order)] + [now + 1] * correct
    r = [(lambdas[place] - lambdas[now]) / h for place in places]
    base = math.exp(-h) * x - math.expm1(-h) * D[now]
    if len(r) == 0:
        return base
    if len(r) == 1:
        a, B = [0.5], math.expm1  # half is the choice of the paper, and of the variant B2
    else:
        phi, b = math.expm1(-h) / -h, []  # phi_k, and R a = b
        for k in range(1, len(r) + 1):
            phi = (phi - 1 / math.factorial(k)) / -h
            b.append(-h * phi * math.factorial(k) / B(-h))
        a = np.linalg.solve(np.vander(r, increasing=True).T, b).tolist()
    slopes = [(D[place] - D[now]) / ratio for place, ratio in zip(places, r, strict=True)]
    return base - B(-h) * sum(weight * slope for weight, slope in zip(a, slopes, strict=True))


@pytest.mark.parametrize("name", SOLVERS)
def test_single_precision_is_enough(name: str) -> None:
    exact = solve(name, TWO_GROUPS.denoise, NOISE)
    rough = solve(name, TWO_GROUPS.denoise, NOISE.float())
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 1e-4


@pytest.mark.parametrize("name", SOLVERS)
def test_no_solver_waits_for_the_device(name: str) -> None:
    """Tensors on the meta device have no values that the host could wait for."""
    noise = torch.empty(2, 1, 4, 4, device="meta")
    churn = 5.0 if SOLVERS[name].churns else 0.0
    x = solve(name, lambda x, sigma: x / (1 + sigma), noise, churn=churn, fresh=lambda step: noise)
    assert x.shape == noise.shape and x.device == noise.device


def test_solve_passes_everything_on() -> None:
    fresh = functools.partial(torch.full_like, NOISE)
    found = solve(
        "heun",
        GAUSSIAN.denoise,
        NOISE,
        num_steps=7,
        sigma_min=0.01,
        sigma_max=50.0,
        rho=5.0,
        churn=3.0,
        churn_min=0.1,
        churn_max=20.0,
        churn_noise=1.1,
        fresh=fresh,
    )
    wanted = heun(
        GAUSSIAN.denoise,
        NOISE,
        levels=noise_schedule(7, 0.01, 50.0, 5.0),
        churn=3.0,
        churn_min=0.1,
        churn_max=20.0,
        churn_noise=1.1,
        fresh=fresh,
    )
    assert torch.equal(found, wanted)
    again = solve("dpmpp_3m", GAUSSIAN.denoise, NOISE, num_steps=7, sigma_min=0.01, sigma_max=50.0)
    wanted = dpmpp_3m(GAUSSIAN.denoise, NOISE, levels=noise_schedule(7, 0.01, 50.0, 25.0))
    assert torch.equal(again, wanted)


@pytest.mark.parametrize("name", SOLVERS)
def test_defaults_of_the_table_are_those_of_the_functions(name: str) -> None:
    found = solve(name, GAUSSIAN.denoise, NOISE)
    assert torch.equal(found, SOLVERS[name].function(GAUSSIAN.denoise, NOISE))


def test_an_unknown_solver_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="dpmpp_2m"):
        solve("dpm_2m", GAUSSIAN.denoise, NOISE)


@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_3m", "unipc"])
def test_churn_is_refused_where_it_makes_no_sense(name: str) -> None:
    with pytest.raises(UsageError, match="churn"):
        solve(name, GAUSSIAN.denoise, NOISE, churn=1.0, fresh=lambda step: NOISE)
