"""Loss weights against the losses of their papers, written in the papers' own space."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.formulations import DDPM, EDM, Flow, Formulation
from poise.diffusion.loss import Loss, Weighting, denoising_loss
from poise.diffusion.noise import Noised, corrupt
from poise.errors import UsageError

SD = 0.6
FORMULATIONS: dict[str, Formulation] = {
    "edm": EDM(SD),
    "eps": DDPM("eps"),
    "x0": DDPM("x0"),
    "v": DDPM("v"),
    "flow": Flow(),
}


class Some(nn.Module):
    """A network with an opinion."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return 0.7 * x + 0.1 * c_noise[:, None, None, None]


class Sloped(nn.Module):
    """u = 0.2 + ln(sigma) / 8."""

    def forward(self, c_noise: Tensor) -> Tensor:
        return 0.2 + c_noise / 2


def denoiser_for(formulation: Formulation) -> Denoiser:
    return Denoiser(Some(), Sloped(), sigma_data=SD, formulation=formulation)


def noised_images() -> Noised:
    generator = torch.Generator().manual_seed(0)
    clean = 0.5 * torch.randn(40, 2, 3, 3, generator=generator)
    return corrupt(clean, torch.logspace(-2, 2, 40), generator)


def in_vp_space(noised: Noised, D: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared errors [B] of the noise and of v that the estimate D implies, fp64."""
    s = noised.sigma.double()[:, None, None, None]
    a, b = (1 / (1 + s**2)).sqrt(), (1 - 1 / (1 + s**2)).sqrt()  # sqrt(abar), sqrt(1 - abar)
    clean, D = noised.clean.double(), D.double()
    noise = (noised.x.double() - clean) / s
    x_t = a * clean + b * noise
    noise_of_D = (x_t - a * D) / b
    eps = (noise_of_D - noise).square().mean((1, 2, 3))
    v = ((a * noise_of_D - b * D) - (a * noise - b * clean)).square().mean((1, 2, 3))
    return eps, v


def loss_of(name: str, weighting: Weighting) -> Loss:
    return denoising_loss(denoiser_for(FORMULATIONS[name]), noised_images(), None, weighting)


def estimate(name: str) -> tuple[Noised, Tensor]:
    noised = noised_images()
    return noised, denoiser_for(FORMULATIONS[name])(noised.x, noised.sigma)


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("name", FORMULATIONS)
def test_min_snr_is_the_published_loss_on_the_noise_and_on_v(name: str, gamma: float) -> None:
    noised, D = estimate(name)
    snr = noised.sigma.double() ** -2
    eps, v = in_vp_space(noised, D)
    found = loss_of(name, Weighting("min_snr", min_snr_gamma=gamma)).weighted.double()
    cut = snr.clamp(max=gamma)
    assert torch.allclose(found, cut / snr * eps, rtol=1e-3)
    assert torch.allclose(found, cut / (snr + 1) * v, rtol=1e-3)


@pytest.mark.parametrize(("gamma", "k"), [(0.0, 1.0), (0.5, 1.0), (1.0, 1.0), (2.0, 0.3)])
def test_p2_is_the_published_loss_on_the_noise(gamma: float, k: float) -> None:
    noised, D = estimate("eps")
    snr = noised.sigma.double() ** -2
    eps, _ = in_vp_space(noised, D)
    found = loss_of("eps", Weighting("p2", p2_gamma=gamma, p2_k=k)).weighted.double()
    assert torch.allclose(found, eps / (k + snr) ** gamma, rtol=1e-3)


@pytest.mark.parametrize("name", FORMULATIONS)
def test_target_is_the_plain_loss_of_what_the_network_answers(name: str) -> None:
    noised, D = estimate(name)
    y, s = noised.clean.double(), noised.sigma.double()[:, None, None, None]
    eps, v = in_vp_space(noised, D)
    plain = (D.double() - y).square().mean((1, 2, 3))
    flow = ((noised.x.double() - D.double()) / s - D.double()) - ((noised.x.double() - y) / s - y)
    wanted = {
        "edm": loss_of("edm", Weighting("edm")).weighted.double(),
        "eps": eps,
        "x0": plain,
        "v": v,
        "flow": flow.square().mean((1, 2, 3)),
    }[name]
    assert torch.allclose(loss_of(name, Weighting("target")).weighted.double(), wanted, rtol=1e-3)


@pytest.mark.parametrize("name", FORMULATIONS)
@pytest.mark.parametrize("kind", ["uncertainty", "edm", "target", "min_snr", "p2"])
def test_the_error_means_the_same_under_every_weighting(name: str, kind: str) -> None:
    noised, D = estimate(name)
    s = noised.sigma.double()
    weight = (s**2 + SD**2) / (s * SD) ** 2
    squared = (D.double() - noised.clean.double()).square().mean((1, 2, 3))
    loss = loss_of(name, Weighting(kind))
    assert torch.allclose(loss.error.double(), weight * squared, rtol=1e-4)
    if kind == "edm":
        assert torch.equal(loss.weighted, loss.error)


def test_the_default_is_the_learned_uncertainty() -> None:
    loss = denoising_loss(denoiser_for(EDM(SD)), noised_images(), None)
    u = 0.2 + noised_images().sigma.log() / 4 / 2
    assert torch.equal(loss.weighted, loss.error / u.exp() + u)


@settings(deadline=None)
@given(s=st.floats(1e-3, 1e3), gamma=st.floats(0, 3), k=st.floats(0.01, 10))
def test_weights_are_the_formulas_and_finite_at_every_level(
    s: float, gamma: float, k: float
) -> None:
    sigma = torch.tensor([[s]])
    found = Weighting("p2", p2_gamma=gamma, p2_k=k).on_clean(sigma, Flow(), SD)
    assert found.item() == pytest.approx(s**-2 / (k + s**-2) ** gamma, rel=1e-4)
    cut = Weighting("min_snr", min_snr_gamma=1 + gamma).on_clean(sigma, Flow(), SD)
    assert cut.item() == pytest.approx(min(s**-2, 1 + gamma), rel=1e-4)
    flow = Weighting("target").on_clean(sigma, Flow(), SD)
    assert flow.item() == pytest.approx((1 + 1 / s) ** 2, rel=1e-4)
    assert found.shape == cut.shape == flow.shape == (1, 1)
    edm = [Weighting(kind).on_clean(sigma, EDM(SD), SD).item() for kind in ("edm", "target")]
    assert edm == pytest.approx([1 / s**2 + 1 / SD**2] * 2, rel=1e-4)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "snr"},
        {"min_snr_gamma": 0.0},
        {"min_snr_gamma": math.inf},
        {"p2_gamma": -1.0},
        {"p2_k": 0.0},
    ],
)
def test_weightings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="Expected: "):
        Weighting(**wrong)
