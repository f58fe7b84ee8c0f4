"""Preconditioning, noise and loss against closed forms on Gaussian data."""

import math

import pytest
import torch
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import denoising_loss
from poise.diffusion.noise import Noised, corrupt, log_normal

SD = 0.5


class Zero(nn.Module):
    """A network that has learnt nothing."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        return torch.zeros_like(x)


class Identity(nn.Module):
    """Returns its scaled input and keeps what it was given."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        self.x, self.c_noise, self.labels = x, c_noise, labels
        return x


class IdealFor(nn.Module):
    """The network whose denoiser is the posterior mean of N(0, spread^2) data."""

    def __init__(self, spread: float) -> None:
        super().__init__()
        self.spread = spread

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        s = (4 * c_noise).exp()[:, None, None, None]
        total = (s**2 + SD**2).sqrt()
        wiener = self.spread**2 / (self.spread**2 + s**2)
        return x * total * (wiener - SD**2 / total**2) / (s * SD / total)


class Constant(nn.Module):
    """u(sigma) = value, with a gradient."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, c_noise: Tensor) -> Tensor:
        return self.value.expand(len(c_noise))


def gaussian_batch(count: int, spread: float, sigma: Tensor) -> Noised:
    generator = torch.Generator().manual_seed(3)
    clean = spread * torch.randn(count, 1, 8, 8, generator=generator)
    return corrupt(clean, sigma, generator)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 0.5, 2.0, 70.0])
def test_the_network_sees_unit_variance_and_must_answer_with_unit_variance(sigma: float) -> None:
    network = Identity()
    denoiser = Denoiser(network, Constant(0.0), sigma_data=SD)
    noised = gaussian_batch(4000, SD, torch.full((4000,), sigma))
    denoiser(noised.x, noised.sigma)
    assert network.x.std().item() == pytest.approx(1, abs=0.01)
    assert network.c_noise.tolist() == pytest.approx([math.log(sigma) / 4] * 4000, rel=1e-5)
    c_skip, c_out = SD**2 / (sigma**2 + SD**2), sigma * SD / math.hypot(sigma, SD)
    target = (noised.clean - c_skip * noised.x) / c_out  # what F should be
    assert target.std().item() == pytest.approx(1, abs=0.01)


def test_the_denoiser_is_skip_plus_scaled_output() -> None:
    denoiser = Denoiser(Identity(), Constant(0.0), sigma_data=SD)
    x = torch.ones(3, 1, 2, 2)
    sigma = torch.tensor([0.1, 0.5, 4.0])
    D = denoiser(x, sigma)[:, 0, 0, 0]
    for found, s in zip(D.tolist(), sigma.tolist(), strict=True):
        total = s**2 + SD**2
        assert found == pytest.approx(SD**2 / total + s * SD / total, rel=1e-6)


def test_labels_and_a_scalar_noise_level_reach_the_network() -> None:
    network = Identity()
    denoiser = Denoiser(network, Constant(0.0), sigma_data=SD)
    labels = torch.tensor([3, 1])
    denoiser(torch.zeros(2, 1, 4, 4), torch.tensor(2.0), labels)
    assert network.labels is labels
    assert network.c_noise.tolist() == pytest.approx([math.log(2) / 4] * 2)


def test_arithmetic_is_in_the_networks_precision_and_the_result_in_fp32() -> None:
    network = Identity()
    denoiser = Denoiser(network, Constant(0.0), sigma_data=SD, dtype=torch.bfloat16)
    D = denoiser(torch.ones(1, 1, 2, 2), torch.tensor([1.0]))
    assert (network.x.dtype, network.c_noise.dtype, D.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )


@pytest.mark.parametrize("sigma", [0.02, 0.5, 20.0])
def test_error_is_one_when_nothing_is_learnt(sigma: float) -> None:
    """lambda E(D - y)^2 = lambda s^2 sd^2 / (s^2 + sd^2) = 1 for D = c_skip x."""
    denoiser = Denoiser(Zero(), Constant(0.0), sigma_data=SD)
    noised = gaussian_batch(4000, SD, torch.full((4000,), sigma))
    loss = denoising_loss(denoiser, noised, None)
    assert loss.error.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(loss.weighted, loss.error)  # u = 0


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.05, 0.5, 5.0])
def test_ideal_denoiser_reaches_the_closed_form_floor(spread: float, sigma: float) -> None:
    """lambda s^2 c^2 / (s^2 + c^2) for data N(0, c^2), and nothing is lower."""
    noised = gaussian_batch(4000, spread, torch.full((4000,), sigma))
    denoiser = Denoiser(IdealFor(spread), Constant(0.0), sigma_data=SD)
    weight = (sigma**2 + SD**2) / (sigma * SD) ** 2
    floor = weight * sigma**2 * spread**2 / (sigma**2 + spread**2)
    found = denoising_loss(denoiser, noised, None).error.mean().item()
    assert found == pytest.approx(floor, rel=0.015)
    for wrong in (0.9 * spread, 1.1 * spread):
        other = Denoiser(IdealFor(wrong), Constant(0.0), sigma_data=SD)
        assert denoising_loss(other, noised, None).error.mean().item() > found


def test_best_uncertainty_is_the_log_of_the_error() -> None:
    """d/du (e / exp(u) + u) = 0 at u = ln e, where the loss is 1 + ln e: below zero if e < 1/e."""
    noised = gaussian_batch(500, 0.1, torch.full((500,), 1.0))
    free = Denoiser(IdealFor(0.1), Constant(0.0), sigma_data=SD)
    error = denoising_loss(free, noised, None).error.mean().item()
    best = Denoiser(IdealFor(0.1), Constant(math.log(error)), sigma_data=SD)
    loss = denoising_loss(best, noised, None).weighted.mean()
    loss.backward()
    assert loss.item() == pytest.approx(1 + math.log(error), abs=1e-5)
    assert loss.item() < 0
    gradient = best.uncertainty.value.grad
    assert abs(gradient.item()) < 1e-5
    for shift in (-0.1, 0.1):
        other = Denoiser(IdealFor(0.1), Constant(math.log(error) + shift), sigma_data=SD)
        assert denoising_loss(other, noised, None).weighted.mean() > loss


def test_noise_levels_have_the_asked_moments() -> None:
    n, mean, std = 200_000, -0.8, 1.4
    z = log_normal(n, mean, std, torch.Generator().manual_seed(0)).double().log()
    assert z.mean().item() == pytest.approx(mean, abs=5 * std / n**0.5)
    assert z.std().item() == pytest.approx(std, abs=5 * std / (2 * n) ** 0.5)
    standard = (z - z.mean()) / z.std()
    assert (standard**3).mean().item() == pytest.approx(0, abs=5 * (6 / n) ** 0.5)
    assert (standard**4).mean().item() == pytest.approx(3, abs=5 * (24 / n) ** 0.5)


def test_corruption_adds_independent_noise_of_the_given_size() -> None:
    sigma = torch.tensor([0.1, 1.0, 10.0])
    clean = torch.linspace(-1, 1, 3 * 100 * 100).reshape(3, 1, 100, 100)
    noised = corrupt(clean, sigma, torch.Generator().manual_seed(0))
    noise = (noised.x - clean) / sigma[:, None, None, None]
    assert noise.std((1, 2, 3)).tolist() == pytest.approx([1] * 3, abs=0.03)
    correlation = torch.corrcoef(noise.flatten(1))
    assert (correlation - torch.eye(3)).abs().max() < 0.05
    again = corrupt(clean, sigma, torch.Generator().manual_seed(0))
    assert torch.equal(again.x, noised.x)
