"""The Heun sampler on a problem whose solution is known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.diffusion.sampler import heun, noise_schedule


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of N(0.3, 0.5^2) data."""
    return 0.3 + (x - 0.3) * 0.25 / (0.25 + sigma**2)


def exact(noise: Tensor, high: float, low: float) -> Tensor:
    """The flow from `high` to `low`: deviations from the mean shrink with sqrt(sd^2 + sigma^2)."""
    return 0.3 + (high * noise - 0.3) * math.sqrt((0.25 + low**2) / (0.25 + high**2))


def test_error_falls_with_the_square_of_the_number_of_steps() -> None:
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 1, 3, 3)
    high, low = 80.0, 0.002
    # the last Euler step to zero is first order in sigma_min alone; it is exact for this problem
    # up to D(x, sigma_min), which the comparison applies too
    at_low = exact(noise, high, low)
    wanted = gaussian(at_low, torch.tensor(low, dtype=torch.float64))
    counts = np.array([32, 64, 128, 256, 512])
    errors = [(heun(gaussian, noise, num_steps=n) - wanted).abs().max().item() for n in counts]
    order = -np.polyfit(np.log(counts - 1), np.log(errors), 1)[0]
    assert order == pytest.approx(2, abs=0.1)
    assert errors[-1] < 1e-4


def test_samples_follow_the_data() -> None:
    noise = torch.randn(20_000, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    x = heun(gaussian, noise, num_steps=64)
    assert x.mean().item() == pytest.approx(0.3, abs=0.015)
    assert x.std().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("steps", [2, 5, 18])
def test_network_is_called_twice_a_step_but_once_in_the_last(steps: int) -> None:
    seen: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma.item())
        return gaussian(x, sigma)

    heun(denoise, torch.zeros(1, 1, 2, 2, dtype=torch.float64), num_steps=steps)
    levels = noise_schedule(steps).tolist()
    wanted = [levels[0]] + [s for level in levels[1:-1] for s in (level, level)]
    assert seen == wanted
    assert len(seen) == 2 * steps - 1


def test_noise_levels_are_even_in_the_root_and_end_at_zero() -> None:
    levels = noise_schedule(10, 0.01, 50.0, 5.0)
    roots = levels[:-1] ** (1 / 5)
    assert torch.allclose(roots.diff(), roots.diff()[0].expand(9), rtol=1e-10)
    assert levels[0].item() == pytest.approx(50)
    assert levels[-2].item() == pytest.approx(0.01)
    assert levels[-1] == 0
