"""Heun and Euler on a problem whose solution is known, without fresh noise and with it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.diffusion.sampler import euler, heun, noise_schedule
from poise.errors import UsageError
from poise.runtime import generator_at


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


def test_one_step_asks_at_the_highest_level() -> None:
    noise = torch.linspace(-2, 2, 4, dtype=torch.float64).reshape(1, 1, 2, 2)
    assert noise_schedule(1).tolist() == pytest.approx([80, 0])
    high = noise_schedule(1)[0]
    for sampler in (heun, euler):
        found = sampler(gaussian, noise, num_steps=1)
        assert torch.allclose(found, gaussian(high * noise, high), rtol=1e-9)


@pytest.mark.parametrize("sampler", [heun, euler])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_may_be_given_instead(sampler: Callable[..., Tensor], dtype: torch.dtype) -> None:
    noise = torch.linspace(-2, 2, 4, dtype=dtype).reshape(1, 1, 2, 2)
    wanted = sampler(gaussian, noise, num_steps=9, sigma_min=0.01, sigma_max=30.0, rho=4.0)
    levels = noise_schedule(9, 0.01, 30.0, 4.0)
    assert torch.equal(sampler(gaussian, noise, levels=levels.to(dtype)), wanted)
    # up to a level above zero, the correction of Heun included
    part = sampler(gaussian, noise, levels=levels[:-1])
    assert torch.allclose(gaussian(part, levels[-2].to(dtype)), wanted, rtol=1e-4)


@pytest.mark.parametrize(
    "levels",
    [
        [1.0],
        [],
        [[2.0, 1.0]],
        [1.0, 2.0, 0.0],
        [2.0, 1.0, 1.0],
        [2.0, 1.0, -0.1],
        [math.inf, 1.0, 0.0],
        [2.0, math.nan, 0.0],
    ],
)
def test_levels_that_do_not_fall_are_refused(levels: list[float]) -> None:
    with pytest.raises(UsageError, match="levels"):
        heun(gaussian, torch.zeros(1, 1, 2, 2), levels=torch.tensor(levels))


@pytest.mark.parametrize(
    ("steps", "low", "high"), [(0, 0.002, 80.0), (8, 0.0, 80.0), (8, 5.0, 5.0), (8, 5.0, 1.0)]
)
def test_settings_without_falling_levels_are_refused(steps: int, low: float, high: float) -> None:
    with pytest.raises(UsageError, match="levels"):
        euler(gaussian, torch.zeros(1, 1, 2, 2), num_steps=steps, sigma_min=low, sigma_max=high)


class Fresh:
    """Standard normal for image i and a step, from these two alone; keeps the steps."""

    def __init__(self, images: range) -> None:
        self.images = images
        self.steps: list[int] = []

    def __call__(self, step: int) -> Tensor:
        self.steps.append(step)
        return torch.stack(
            [torch.randn(1, 2, 2, generator=generator_at(7, i, f"{step}")) for i in self.images]
        )


def initial(images: range) -> Tensor:
    return torch.stack([torch.randn(1, 2, 2, generator=generator_at(7, i, "")) for i in images])


@pytest.mark.parametrize("sampler", [heun, euler])
def test_no_churn_changes_no_bit_and_asks_for_no_noise(sampler: Callable[..., Tensor]) -> None:
    noise, fresh = initial(range(4)), Fresh(range(4))
    wanted = sampler(gaussian, noise)
    assert torch.equal(sampler(gaussian, noise, churn=0.0, fresh=fresh), wanted)
    window = {"churn_min": 1000.0, "churn_max": 2000.0}
    assert torch.equal(sampler(gaussian, noise, churn=9.0, fresh=fresh, **window), wanted)
    assert fresh.steps == []


@pytest.mark.parametrize("sampler", [heun, euler])
def test_churn_without_fresh_noise_is_refused(sampler: Callable[..., Tensor]) -> None:
    with pytest.raises(UsageError, match="fresh"):
        sampler(gaussian, initial(range(1)), churn=1.0)


@pytest.mark.parametrize("sampler", [heun, euler])
def test_churned_images_do_not_depend_on_their_batch(sampler: Callable[..., Tensor]) -> None:
    def draw(images: range) -> Tensor:
        return sampler(gaussian, initial(images), num_steps=6, churn=3.0, fresh=Fresh(images))

    whole = draw(range(12))
    assert torch.equal(torch.cat([draw(range(5)), draw(range(5, 12))]), whole)
    assert not torch.equal(whole, sampler(gaussian, initial(range(12)), num_steps=6))


@pytest.mark.parametrize(("sampler", "steps", "error"), [(heun, 200, 0.004), (euler, 500, 0.021)])
def test_noise_of_the_told_level_is_there_at_every_call(
    sampler: Callable[..., Tensor], steps: int, error: float
) -> None:
    """Data N(0, 0.5^2) under noise sigma has the variance 0.25 + sigma^2 all the way down.

    The images are linear in the independent normal numbers they are made of. Image 0 shows the
    share of the first noise, image i that of the fresh noise of step i - 1; their squares add up
    to the variance over all draws, without drawing any.
    """
    shares = torch.eye(steps + 1, dtype=torch.float64)[:, :, None, None, None]
    ratios: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        ratios.append((x.square().sum() / (0.25 + sigma**2)).sqrt().item())
        return x * 0.25 / (0.25 + sigma**2)

    x = sampler(
        denoise, shares[0], num_steps=steps, churn=30.0, fresh=lambda step: shares[step + 1]
    )
    assert ratios == pytest.approx([1] * len(ratios), abs=error)
    assert x.square().sum().sqrt().item() == pytest.approx(0.5, rel=error)
    assert abs(x[0].item()) < 1e-6  # nothing of the first noise is left


def test_churn_raises_the_levels_of_its_window_by_its_share() -> None:
    """EDM, Algorithm 2: gamma = min(S_churn / N, sqrt(2) - 1) in [S_tmin, S_tmax], S_noise."""
    levels = torch.tensor([64.0, 32.0, 8.0, 2.0, 0.5, 0.0], dtype=torch.float64)
    noise = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    for churn, gamma in [(1.0, 0.2), (1e9, math.sqrt(2) - 1)]:
        seen: list[tuple[float, Tensor]] = []
        steps: list[int] = []

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append((sigma.item(), x))  # noqa: B023
            return x  # nothing to remove: the noise alone changes x

        def fresh(step: int) -> Tensor:
            steps.append(step)  # noqa: B023
            return torch.ones_like(noise)

        euler(
            denoise,
            noise,
            levels=levels,
            churn=churn,
            churn_min=2.0,
            churn_max=32.0,
            churn_noise=1.5,
            fresh=fresh,
        )
        assert steps == [1, 2, 3]
        raised = [t * (1 + gamma) for t in (32.0, 8.0, 2.0)]
        assert [sigma for sigma, _ in seen] == pytest.approx([64.0, *raised, 0.5])
        added = [1.5 * math.sqrt(hat**2 - t**2) for hat, t in zip(raised, (32, 8, 2), strict=True)]
        sums = [0, added[0], sum(added[:2]), sum(added), sum(added)]
        assert [x[0, 0, 0, 0].item() for _, x in seen] == pytest.approx(sums)
