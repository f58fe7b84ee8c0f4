"""Power-function averages against the integral they stand for."""

import numpy as np
import pytest
import torch

from poise.training.ema import PowerEMA, power_beta, profile_name, std_to_exp


def width(exponent: float) -> float:
    """Relative standard deviation of p(tau) ~ tau^exponent on [0, 1]."""
    tau = (np.arange(200_000) + 0.5) / 200_000
    p = tau**exponent / (tau**exponent).sum()
    mean = (p * tau).sum()
    return float(np.sqrt((p * (tau - mean) ** 2).sum()))


@pytest.mark.parametrize("std", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_exponent_gives_the_width_that_was_asked(std: float) -> None:
    assert width(std_to_exp(std)) == pytest.approx(std, rel=1e-3)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.2887, 1.0])
def test_impossible_widths_are_refused(std: float) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 0\.2887"):
        std_to_exp(std)


@pytest.mark.parametrize("std", [0.05, 0.15])
@pytest.mark.parametrize("sizes", [[4] * 50, [4] * 49 + [1], [1, 7, 2, 9] * 12])
def test_average_equals_the_power_function_over_all_weights(std: float, sizes: list[int]) -> None:
    """Weight i counts with the integral of tau^g over the images of its update."""
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(len(sizes), 5, generator=generator, dtype=torch.float64)
    weight = torch.zeros(5, dtype=torch.float64)
    ema = PowerEMA({"w": weight}, [std])
    ends = np.cumsum(sizes)
    for value, end, size in zip(history, ends, sizes, strict=True):
        weight.copy_(value)
        ema.update(int(end), size)
    power = std_to_exp(std) + 1
    shares = ends**power - np.concatenate([[0], ends[:-1]]) ** power
    wanted = torch.tensor(shares / ends[-1] ** power) @ history
    torch.testing.assert_close(ema.profiles[std]["w"], wanted, rtol=1e-5, atol=1e-7)


def test_first_update_forgets_the_initial_weights() -> None:
    assert power_beta(0.1, 128, 128) == 0
    weight = torch.zeros(3)
    ema = PowerEMA({"w": weight}, [0.05, 0.1])
    weight.fill_(2.0)
    ema.update(128, 128)
    assert all(torch.equal(p["w"], weight) for p in ema.profiles.values())


def test_averages_are_copies() -> None:
    weight = torch.ones(3)
    ema = PowerEMA({"w": weight}, [0.1])
    weight.fill_(5.0)
    assert torch.equal(ema.profiles[0.1]["w"], torch.ones(3))


def test_names_tell_profiles_apart() -> None:
    assert profile_name(0.1) == "ema_0.100"
    assert profile_name(0.05) == "ema_0.050"
