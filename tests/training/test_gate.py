"""The gate on series whose outliers were planted, and on series that have none."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poise.settings import DiffusionConfig
from poise.training.bands import BANDS, band_centres, band_edges
from poise.training.gate import SPIKES, Gate

SETTINGS = DiffusionConfig(P_mean=-0.8, P_std=1.4)
CPU = torch.device("cpu")
YES = torch.tensor(True)
B = 8


class Series:
    """Errors that depend on the noise level, and gradient norms: both log-normal with a trend."""

    def __init__(self, seed: int, spread: float, fall: float = 0.0) -> None:
        self._generator = np.random.default_rng(seed)
        self._spread, self._fall, self._n = spread, fall, 0

    def __next__(self) -> tuple[Tensor, Tensor, Tensor]:
        draw, self._n = self._generator, self._n + 1
        sigma = np.exp(draw.normal(-0.8, 1.4, B))
        trend = -self._fall * math.log1p(self._n)
        error = sigma / (1 + sigma) * np.exp(trend + draw.normal(0, self._spread, B))
        norm = np.exp(trend + draw.normal(1, self._spread))
        return torch.tensor(error).float(), torch.tensor(sigma).float(), torch.tensor(norm).float()


def primed(seed: int = 0, count: int = 300, spread: float = 0.3) -> tuple[Gate, Series]:
    gate, series = Gate(SETTINGS, CPU), Series(seed, spread)
    for _ in range(count):
        assert gate.judge(*next(series), YES).tolist() == [False, False]
    return gate, series


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 2**16), st.floats(0.1, 0.6), st.floats(-0.1, 0.3))
def test_it_never_fires_on_log_normal_values_with_a_slow_trend(
    seed: int, spread: float, fall: float
) -> None:
    gate, series = Gate(SETTINGS, CPU), Series(seed, spread, fall)
    fired = torch.zeros(2, dtype=torch.int64)
    for _ in range(1250):  # 5000 over the examples
        fired += gate.judge(*next(series), YES)
    assert fired.tolist() == [0, 0]


@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_it_fires_on_one_value_a_hundred_times_too_high(spread: float) -> None:
    gate, series = primed(spread=spread)
    error, sigma, norm = next(series)
    before = {name: value.clone() for name, value in gate.tensors().items()}
    assert gate.judge(100 * error, sigma, norm, YES).tolist() == [True, False]
    assert gate.judge(error, sigma, 100 * norm, YES).tolist() == [False, True]
    assert gate.judge(100 * error, sigma, 100 * norm, YES).tolist() == [True, True]
    high = gate.tensors()["values"] - before["values"]
    assert high.nan_to_num().abs().max() < 3  # the outliers are not among what is usual
    assert gate.judge(*next(series), YES).tolist() == [False, False]
    assert SPIKES == ("error-spike", "gradient-spike")


def test_one_image_far_off_is_enough() -> None:
    gate, series = primed()
    error, sigma, norm = next(series)
    error[3] *= 1e4
    assert gate.judge(error, sigma, norm, YES).tolist() == [True, False]


def test_noise_levels_alone_never_fire() -> None:
    """Errors that differ a thousandfold between bands, and batches from one band only."""
    gate, draw = Gate(SETTINGS, CPU), np.random.default_rng(0)
    for i in range(400):
        sigma = np.exp(draw.normal(-0.8, 1.4, B))
        if i >= 200:
            sigma[:] = np.exp(-0.8 + 1.4 * (i % 5 - 2))
        error = sigma**2 * np.exp(draw.normal(0, 0.1, B))
        values = torch.tensor(error).float(), torch.tensor(sigma).float()
        assert not gate.judge(*values, torch.tensor(1.0), YES).any()


def test_it_says_nothing_before_64_values() -> None:
    gate, series = primed(count=63)
    error, sigma, norm = next(series)
    assert not gate.judge(1000 * error, sigma, 1000 * norm, YES).any()  # the 64th is taken
    assert gate.judge(1000 * error, sigma, 1000 * norm, YES).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_it_stays_finite_after_values_that_are_not(bad: float) -> None:
    gate, series = primed()
    for i in range(300):
        error, sigma, norm = next(series)
        if i % 4 == 1:
            error[i % B :] = bad
            assert not gate.judge(error, sigma, torch.tensor(bad), YES).any()
        else:
            assert not gate.judge(error, sigma, norm, YES).any()
    for name, value in gate.tensors().items():
        assert value.isfinite().all(), name
    error, sigma, norm = next(series)
    assert gate.judge(1000 * error, sigma, norm, YES).tolist() == [True, False]


def test_what_is_left_out_for_another_reason_says_nothing() -> None:
    gate, series = primed()
    before = {name: value.clone() for name, value in gate.tensors().items()}
    error, sigma, norm = next(series)
    assert not gate.judge(1e4 * error, sigma, 1e4 * norm, torch.tensor(False)).any()
    assert not gate.judge(error, sigma, norm, torch.tensor(False)).any()
    assert all(torch.equal(value, before[name]) for name, value in gate.tensors().items())


@pytest.mark.parametrize("factors", [(100, 1), (1, 100), (100, 100)])
def test_a_level_that_stays_is_accepted_after_16_outliers(factors: tuple[int, int]) -> None:
    gate, series = primed()
    fired = []
    for _ in range(300):
        error, sigma, norm = next(series)
        fired.append(gate.judge(factors[0] * error, sigma, factors[1] * norm, YES).tolist())
    wanted = [[factor > 1 for factor in factors]] * 16 + [[False, False]] * 284
    assert fired == wanted
    error, sigma, norm = next(series)  # and the next outlier is one of the new level
    far = gate.judge(100 * factors[0] * error, sigma, 100 * factors[1] * norm, YES)
    assert far.tolist() == [True, True]


def test_fifteen_outliers_and_a_good_value_begin_anew() -> None:
    gate, series = primed()
    for _ in range(3):
        for _ in range(16):
            error, sigma, norm = next(series)
            assert gate.judge(100 * error, sigma, norm, YES).tolist() == [True, False]
        assert not gate.judge(*next(series), YES).any()


def test_values_far_too_low_pass_and_do_not_make_good_ones_outliers() -> None:
    """Thirty black batches, say: the error falls to nothing, and then the images are back."""
    gate, series = primed()
    for _ in range(30):
        error, sigma, norm = next(series)
        assert not gate.judge(1e-6 * error, sigma, 1e-3 * norm, YES).any()
    for _ in range(100):
        assert not gate.judge(*next(series), YES).any()


@pytest.mark.parametrize("cut", [10, 100, 320])
def test_restored_it_goes_on_bit_by_bit(cut: int) -> None:
    def run(gate: Gate, begin: int, end: int) -> list[list[bool]]:
        series, found = Series(3, 0.4), []
        for i in range(end):
            error, sigma, norm = next(series)
            if i >= begin:
                factor = 100 if i % 50 == 49 or 310 < i < 340 else 1
                found.append(gate.judge(factor * error, sigma, norm, YES).tolist())
        return found

    whole, first, second = (Gate(SETTINGS, CPU) for _ in range(3))
    expected = run(whole, 0, 400)
    begun = run(first, 0, cut)
    second.restore({name: value.clone() for name, value in first.tensors().items()})
    run(first, cut, 350)  # what goes on elsewhere does not matter
    assert begun + run(second, cut, 400) == expected
    ours, theirs = second.tensors(), whole.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k].nan_to_num(-1), theirs[k].nan_to_num(-1)) for k in theirs)
    with pytest.raises(KeyError, match="taken"):
        second.restore({name: v for name, v in theirs.items() if name != "taken"})


def test_bands_are_those_of_the_settings() -> None:
    edges, centres = np.log(band_edges(SETTINGS)), np.log(band_centres(SETTINGS))
    np.testing.assert_allclose(np.diff(edges), 5 * 1.4 / 8)
    np.testing.assert_allclose((edges[1:] + edges[:-1]) / 2, centres[1:-1])
    assert (len(edges), len(centres)) == (BANDS - 1, BANDS)
    assert edges[3] == pytest.approx(-0.8)
