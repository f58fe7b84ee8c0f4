"""Every formulation against definitions written anew and against the ideal denoiser of a mixture.

Definitions are in each paper's own space (x_t of a chain, t of a flow), the code is in that of EDM.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import SHAPE, Gaussian, Mixture, column, three_groups, two_scales
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.formulations import DDPM, EDM, Flow, Formulation
from poise.diffusion.loss import denoising_loss
from poise.diffusion.noise import corrupt, draw_levels, log_normal
from poise.errors import UsageError

FORMULATIONS: dict[str, Formulation] = {
    "edm": EDM(0.7),
    "eps": DDPM("eps"),
    "x0": DDPM("x0", "cosine"),
    "v": DDPM("v", "cosine"),
    "flow": Flow(),
}
every_formulation = pytest.mark.parametrize("name", FORMULATIONS)
sigmas = st.floats(1e-3, 1e3)
values = st.floats(-3, 3)


def asked(name: str, y: float, n: float, s: float) -> float:
    """What the network is asked for, by the papers' definitions, from clean y and noise n."""
    kept = 1 / (1 + s**2)
    return {
        "eps": n,
        "x0": y,
        "v": math.sqrt(kept) * n - math.sqrt(1 - kept) * y,
        "flow": n - y,
        "edm": (y - 0.49 / (s**2 + 0.49) * (y + s * n)) * math.hypot(s, 0.7) / (0.7 * s),
    }[name]


@every_formulation
@settings(deadline=None)
@given(y=values, n=values, s=sigmas)
def test_the_right_answer_gives_the_clean_image_at_every_level(
    name: str, y: float, n: float, s: float
) -> None:
    c = FORMULATIONS[name].coefficients(torch.tensor(s, dtype=torch.float64))
    found = c.c_skip.item() * (y + s * n) + c.c_out.item() * asked(name, y, n, s)
    assert found == pytest.approx(y, rel=1e-9, abs=1e-9 * (1 + s))


@settings(deadline=None)
@given(y=values, n=values, s=sigmas)
def test_the_network_sees_the_image_of_its_own_paper(y: float, n: float, s: float) -> None:
    kept, t = 1 / (1 + s**2), s / (1 + s)
    wanted = {
        "eps": math.sqrt(kept) * y + math.sqrt(1 - kept) * n,
        "flow": (1 - t) * y + t * n,
    }
    wanted["x0"] = wanted["v"] = wanted["eps"]
    for name, x_t in wanted.items():
        c_in = FORMULATIONS[name].coefficients(torch.tensor(s, dtype=torch.float64)).c_in
        assert c_in.item() * (y + s * n) == pytest.approx(x_t, rel=1e-9, abs=1e-12)


def test_the_default_is_edm_to_the_last_bit() -> None:
    class Cubed(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
            return x**3

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 4, 4, generator=generator)
    sigma, sd = log_normal(64, -0.4, 1.5, generator), 0.4821
    s = sigma.reshape(-1, 1, 1, 1)
    total = (s**2 + sd**2).sqrt()
    wanted = sd**2 / total**2 * x + s * sd / total * (1 / total * x) ** 3
    denoiser = Denoiser(Cubed(), nn.Identity(), sigma_data=sd)
    assert torch.equal(denoiser(x, sigma), wanted)
    assert denoiser.formulation == EDM(sd)


# The ideal network


class Ideal(nn.Module):
    """The network whose denoiser is the mixture's: F = (D - c_skip x) / c_out, all in fp64."""

    def __init__(self, mixture: Mixture, formulation: Formulation) -> None:
        super().__init__()
        self.mixture, self.formulation = mixture, formulation

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise.double()).exp()
        c = self.formulation.coefficients(column(sigma, x))
        X = x.double() / c.c_in
        return ((self.mixture.denoise(X, sigma) - c.c_skip * X) / c.c_out).float()


class Nothing(nn.Module):
    """No learned uncertainty."""

    def forward(self, c_noise: Tensor) -> Tensor:
        return torch.zeros_like(c_noise)


@every_formulation
@pytest.mark.parametrize("mixture", [three_groups(), two_scales()], ids=["groups", "scales"])
def test_the_ideal_network_reaches_the_floor_at_every_level(name: str, mixture: Mixture) -> None:
    formulation, sd, count = FORMULATIONS[name], mixture.rms, 4000
    denoiser = Denoiser(
        Ideal(mixture, formulation), Nothing(), sigma_data=sd, formulation=formulation
    )
    generator = torch.Generator().manual_seed(2)
    for wanted in (0.015, 0.1, 0.3, 1.5, 6.0, 60.0):
        s = formulation.nearest(torch.tensor(wanted)).item()
        clean = mixture.sample(count, generator).float()
        noised = corrupt(clean, torch.full((count,), s), generator)
        error = denoising_loss(denoiser, noised, None).error.double()
        weight = (s**2 + sd**2) / (s * sd) ** 2
        deviation = error.std().item() / count**0.5
        assert error.mean().item() == pytest.approx(weight * mixture.floor(s), abs=4 * deviation)
        # all formulations ask the same question: the denoiser is the mixture's own
        best = mixture.denoise(noised.x, s)
        assert denoiser(noised.x, noised.sigma).sub(best).abs().max() < 1e-5 * (1 + s)


@pytest.mark.parametrize("mixture", [three_groups(), two_scales()], ids=["groups", "scales"])
@pytest.mark.parametrize("s", [0.02, 0.3, 1.0, 5.0, 50.0])
def test_the_floor_is_what_sampling_finds(mixture: Mixture, s: float) -> None:
    assert mixture.floor(s) == pytest.approx(mixture.floor(s, 200), rel=1e-7)
    generator = torch.Generator().manual_seed(0)
    y = mixture.sample(40_000, generator)
    x = y + s * torch.randn(y.shape, generator=generator, dtype=torch.float64)
    error = (mixture.denoise(x, s) - y).square().mean((1, 2, 3))
    deviation = error.std().item() / len(y) ** 0.5
    assert error.mean().item() == pytest.approx(mixture.floor(s), abs=4 * deviation)
    assert y.square().mean().item() == pytest.approx(mixture.rms**2, rel=0.01)


def test_a_mixture_of_one_is_the_gaussian() -> None:
    one, gaussian = Mixture((1.0,), (0.0,), (0.5,)), Gaussian(0.0, 0.5)
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for s in (0.01, 1.0, 30.0):
        assert one.floor(s) == pytest.approx(gaussian.floor(s), rel=1e-12)
        assert torch.allclose(one.denoise(x, s), gaussian.denoise(x, s), rtol=1e-12)


def test_the_gaussian_flow_solves_its_equation() -> None:
    """dx/dsigma = (x - D(x, sigma)) / sigma."""
    gaussian, h = Gaussian(0.3, 0.5), 1e-4
    x = torch.linspace(-9, 9, 4, dtype=torch.float64).reshape(1, *SHAPE)
    for s in (0.2, 2.0):
        y = gaussian.flow(x, 80.0, s)
        slope = (gaussian.flow(x, 80.0, s + h) - gaussian.flow(x, 80.0, s - h)) / (2 * h)
        assert torch.allclose(slope, (y - gaussian.denoise(y, s)) / s, rtol=1e-6)


# Levels


@pytest.mark.parametrize("steps", [4, 50, 1000])
def test_linear_levels_are_the_product_of_their_steps(steps: int) -> None:
    scale, kept, wanted = 1000 / steps, 1.0, []
    for t in range(steps):
        kept *= 1 - min(scale * (1e-4 + (0.02 - 1e-4) * t / (steps - 1)), 0.999)
        wanted.append(math.sqrt((1 - kept) / kept))
    assert DDPM("eps", "linear", steps).levels.tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("steps", [2, 50, 1000])
def test_cosine_levels_are_the_cosine_but_for_the_last(steps: int) -> None:
    def f(t: int) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    wanted = [math.sqrt(f(0) / f(t) - 1) for t in range(1, steps)]
    levels = DDPM("v", "cosine", steps).levels.tolist()
    assert levels[:-1] == pytest.approx(wanted, rel=1e-9)
    kept = f(steps - 1) / f(0) * 0.001  # the last step would keep nothing
    assert levels[-1] == pytest.approx(math.sqrt(1 / kept - 1), rel=1e-9)


@settings(deadline=None, max_examples=40)
@given(steps=st.integers(2, 3000), schedule=st.sampled_from(["linear", "cosine"]))
def test_levels_rise_and_are_finite(steps: int, schedule: str) -> None:
    chain = DDPM("x0", schedule, steps)
    levels = chain.levels
    assert len(levels) == steps and levels.isfinite().all() and (levels.diff() > 0).all()
    assert 0 < chain.sigma_min < chain.sigma_max < math.inf


def test_levels_do_not_follow_the_default_device() -> None:
    with torch.device("meta"):
        assert DDPM("eps", "linear", 37).sigma_max > 10


@settings(deadline=None)
@given(s=st.floats(1e-6, 1e6), steps=st.integers(2, 60))
def test_nearest_is_nearest_in_the_logarithm(s: float, steps: int) -> None:
    chain = DDPM("eps", "cosine", steps)
    found = chain.nearest(torch.tensor([[s]], dtype=torch.float64))
    distances = (chain.levels / s).log().abs()
    assert found.shape == (1, 1)
    assert math.log(found.item() / s) == pytest.approx(
        math.copysign(distances.min().item(), found.item() - s), abs=1e-12
    )


@every_formulation
def test_nearest_of_nearest_is_nearest(name: str) -> None:
    formulation = FORMULATIONS[name]
    sigma = log_normal(2000, 0.0, 4.0, torch.Generator().manual_seed(0))
    once = formulation.nearest(sigma)
    assert torch.equal(formulation.nearest(once), once)
    assert once.dtype == torch.float32
    if not isinstance(formulation, DDPM):
        assert torch.equal(once, sigma)


@every_formulation
def test_time_runs_from_the_lowest_to_the_highest_level(name: str) -> None:
    formulation = FORMULATIONS[name]
    time = torch.linspace(0, 1, 10_001)  # 0 and 1 themselves can come out of rounding
    levels = formulation.sigma_at(time)
    assert (levels.diff() >= 0).all()
    assert levels[0].item() == pytest.approx(formulation.sigma_min, rel=1e-4)
    assert levels[-1].item() == pytest.approx(formulation.sigma_max, rel=1e-4)
    assert torch.equal(formulation.nearest(levels), levels)
    middle = formulation.sigma_at(torch.tensor(0.5)).item()
    wanted = {"edm": math.sqrt(0.002 * 80), "flow": 1.0}
    if name in wanted:
        assert middle == pytest.approx(wanted[name], rel=1e-5)
    else:
        assert middle == pytest.approx(formulation.levels[500].item(), rel=1e-6)


# Draws


def test_log_normal_draws_for_edm_are_the_plain_ones_to_the_last_bit() -> None:
    for formulation in (EDM(0.5), Flow()):
        found = draw_levels(
            "log_normal", formulation, 999, -0.8, 1.4, torch.Generator().manual_seed(5)
        )
        assert torch.equal(found, log_normal(999, -0.8, 1.4, torch.Generator().manual_seed(5)))


def test_logit_normal_times_of_a_flow_are_log_normal_levels() -> None:
    found, wanted = (
        draw_levels(kind, Flow(), 5000, 0.3, 1.0, torch.Generator().manual_seed(1))
        for kind in ("logit_normal", "log_normal")
    )
    assert torch.allclose(found, wanted, rtol=1e-4)


def test_uniform_times_visit_every_level_of_a_chain_equally() -> None:
    chain, count = DDPM("eps", "linear", 50), 100_000
    levels = draw_levels("uniform", chain, count, 0.0, 1.0, torch.Generator().manual_seed(0))
    _, counts = levels.unique(return_counts=True)
    assert len(counts) == 50
    chi = ((counts.double() - count / 50) ** 2 / (count / 50)).sum().item()
    assert abs(chi - 49) < 4 * math.sqrt(2 * 49)


def test_uniform_times_of_edm_are_even_in_the_logarithm() -> None:
    levels = draw_levels("uniform", EDM(0.5), 20_000, 0.0, 1.0, torch.Generator().manual_seed(0))
    place = np.sort((levels.double().log().numpy() - math.log(0.002)) / math.log(40_000))
    assert np.abs(place - np.linspace(0, 1, 20_000)).max() < 1.6 / math.sqrt(20_000)  # Kolmogorov


@pytest.mark.parametrize("kind", ["log_normal", "logit_normal", "uniform"])
def test_chains_train_on_their_own_levels_only(kind: str) -> None:
    chain = DDPM("v", "cosine", 12)
    levels = draw_levels(kind, chain, 3000, 0.5, 2.0, torch.Generator().manual_seed(0))
    assert set(levels.tolist()) == set(chain.levels.float().tolist())


# Wrong use


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDPM("noise"),
        lambda: DDPM("eps", "quadratic"),
        lambda: DDPM("eps", "linear", 1),
        lambda: EDM(0.0),
        lambda: EDM(0.5, sigma_min=80.0),
        lambda: Flow(sigma_min=0.0),
        lambda: draw_levels("normal", Flow(), 2, 0.0, 1.0, torch.Generator()),
    ],
)
def test_what_makes_no_sense_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(UsageError, match="Expected: "):
        make()


def test_a_misspelt_target_is_answered_with_the_known_one() -> None:
    with pytest.raises(UsageError, match=r"Did you mean 'eps'\?"):
        DDPM("epsi")
