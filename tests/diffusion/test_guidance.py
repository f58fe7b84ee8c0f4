"""Guidance against closed forms, reference numbers, and a count of what is called."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import Gaussian
from torch import Tensor

from poise.diffusion.guidance import guided, without_labels
from poise.diffusion.sampler import heun, noise_schedule
from poise.errors import UsageError

REFERENCE = json.loads(
    (Path(__file__).parents[1] / "fixtures" / "sampler.json").read_text(encoding="utf-8")
)


class Counting:
    """The ideal denoiser of N(mean, std^2); keeps the levels and labels of its calls."""

    def __init__(self, mean: float, std: float) -> None:
        self.data = Gaussian(mean, std)
        self.levels: list[float] = []
        self.labels: list[Tensor | None] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        self.levels += sigma.flatten().tolist()
        self.labels.append(labels)
        return self.data.denoise(x, sigma)


def level(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


X = torch.linspace(-3, 3, 24, dtype=torch.float64).reshape(2, 3, 2, 2)


def test_guided_sampler_equals_the_reference() -> None:
    main, guide = (
        Counting(REFERENCE[name]["m"], REFERENCE[name]["sd"]) for name in ("main", "guide")
    )
    denoise = guided(main, guide, REFERENCE["strength"])
    noise = torch.tensor(REFERENCE["noise"]).reshape(1, 1, 2, 2)
    x = heun(lambda x, sigma: denoise(x, sigma, None), noise, num_steps=32)
    assert x.flatten().tolist() == pytest.approx(REFERENCE["guided"], rel=1e-5)
    assert len(guide.levels) == len(main.levels) == 63


@settings(max_examples=50, deadline=None)
@given(
    strength=st.floats(0, 3).filter(lambda w: w != 1),
    sigma=st.floats(0.01, 100),
    means=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
    stds=st.tuples(st.floats(0.05, 2), st.floats(0.05, 2)),
)
def test_guided_score_is_that_of_the_tilted_density(
    strength: float, sigma: float, means: tuple[float, float], stds: tuple[float, float]
) -> None:
    """D = x + sigma^2 d/dx ln(p_main^w p_guide^(1 - w)), whose exponent is a parabola again."""
    main, guide = (Gaussian(m, s) for m, s in zip(means, stds, strict=True))
    denoise = guided(
        lambda x, s, labels: main.denoise(x, s), lambda x, s, labels: guide.denoise(x, s), strength
    )
    shares = [strength / (stds[0] ** 2 + sigma**2), (1 - strength) / (stds[1] ** 2 + sigma**2)]
    curvature = sum(shares)
    slope = shares[0] * means[0] + shares[1] * means[1]
    wanted = X + sigma**2 * (slope - curvature * X)
    assert torch.allclose(denoise(X, level(sigma), None), wanted, rtol=1e-9, atol=1e-8)


def test_strength_one_is_the_main_denoiser_alone() -> None:
    main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
    found = guided(main, guide, 1.0)(X, level(0.7), None)
    assert torch.equal(found, main.data.denoise(X, 0.7))
    assert guide.levels == []


def test_strength_zero_is_the_guide() -> None:
    main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
    assert torch.equal(guided(main, guide, 0.0)(X, level(0.7), None), guide.data.denoise(X, 0.7))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_interval_is_open_below_and_closed_above(dtype: torch.dtype) -> None:
    """Its ends are rounded as the level is: 0.28 in fp32 is above 0.28, and still the end."""
    low, high = 0.28, 2.9
    up, down = torch.tensor(torch.inf, dtype=dtype), torch.tensor(0, dtype=dtype)
    ends = torch.tensor([low, high], dtype=dtype)
    after_low, after_high = torch.nextafter(ends, up)
    for sigma, inside in [
        (ends[0], False),
        (after_low, True),
        (torch.nextafter(ends[1], down), True),
        (ends[1], True),
        (after_high, False),
        (torch.tensor(80, dtype=dtype), False),
    ]:
        main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
        found = guided(main, guide, 2.0, (low, high))(X.to(dtype), sigma, None)
        assert len(main.levels) == 1
        assert len(guide.levels) == inside
        assert torch.equal(found, main.data.denoise(X.to(dtype), sigma)) != inside


@settings(max_examples=25, deadline=None)
@given(low=st.floats(0, 50), width=st.floats(0.1, 100))
def test_guide_is_called_at_the_levels_of_the_interval_alone(low: float, width: float) -> None:
    main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
    denoise = guided(main, guide, 1.7, (low, low + width))
    heun(lambda x, sigma: denoise(x, sigma, None), X, num_steps=10)
    levels = noise_schedule(10)[:-1].tolist()
    visited = [levels[0]] + [s for s in levels[1:] for _ in range(2)]
    assert main.levels == visited
    assert guide.levels == [s for s in visited if low < s <= low + width]


def test_each_image_may_have_its_own_level() -> None:
    sigma = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)
    main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
    denoise = guided(main, guide, 1.7, (0.5, 5.0))
    x = X[:1].repeat(3, 1, 1, 1)
    found = denoise(x, sigma, None)
    for row in range(3):
        assert torch.equal(found[row : row + 1], denoise(x[row : row + 1], sigma[row], None))


def test_neither_a_whole_interval_nor_a_level_per_image_waits_for_the_device() -> None:
    """Tensors on the meta device have no values that the host could wait for."""

    def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return x / (1 + sigma.reshape(-1, 1, 1, 1))

    x = torch.empty(4, 1, 2, 2, device="meta")
    sigma = torch.empty(4, device="meta")
    assert guided(denoise, denoise, 2.0, (0.3, 3.0))(x, sigma, None).shape == x.shape
    assert guided(denoise, denoise, 2.0)(x, sigma[0], None).shape == x.shape


def test_autoguidance_gives_both_the_labels_and_classifier_free_guidance_one() -> None:
    labels = torch.tensor([3, 1])
    main, guide = Counting(0.2, 0.5), Counting(0.0, 0.6)
    guided(main, guide, 2.0)(X, level(1.0), labels)
    guided(main, without_labels(guide), 2.0)(X, level(1.0), labels)
    assert main.labels[0] is labels and main.labels[1] is labels
    assert guide.labels[0] is labels
    assert guide.labels[1] is None


@pytest.mark.parametrize("interval", [(1.0, 1.0), (2.0, 1.0), (-1.0, 1.0), (math.nan, 1.0)])
def test_an_empty_interval_is_refused(interval: tuple[float, float]) -> None:
    main = Counting(0.0, 1.0)
    with pytest.raises(UsageError, match="interval"):
        guided(main, main, 2.0, interval)
