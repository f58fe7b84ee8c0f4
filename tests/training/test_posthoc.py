"""Averages of any width from stored ones: against reference numbers, integrals and tracked ones."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from poise.training.ema import (
    PowerEMA,
    exp_to_std,
    noise_gain,
    power_beta,
    profile_error,
    profile_name,
    profile_std,
    solve_posthoc,
    std_to_exp,
)

KNOWN = json.loads((Path(__file__).parents[1] / "fixtures" / "phema.json").read_text("utf-8"))
widths = st.floats(0.01, 0.28)


def stored(count: int, stds: tuple[float, ...] = (0.05, 0.1)) -> tuple[NDArray, NDArray]:
    """Times and widths of averages stored at even spacing; the last time is 1."""
    times = np.repeat(np.arange(1, count + 1) / count, len(stds))
    return times, np.tile(stds, count)


def density(std: float, end: float, tau: NDArray) -> NDArray:
    """The profile itself, zero after its end."""
    g = std_to_exp(std)
    return np.where(tau <= end, (g + 1) / end * (np.minimum(tau, end) / end) ** g, 0)


def test_exponents_and_widths_are_the_reference_s() -> None:
    for std, g in KNOWN["std_to_exp"].items():
        assert std_to_exp(float(std)) == pytest.approx(g, rel=1e-10)
    for g, std in KNOWN["exp_to_std"].items():
        assert exp_to_std(float(g)) == pytest.approx(std, rel=1e-12)
    for std, seen, images, beta in KNOWN["beta"]:
        assert power_beta(std, int(seen), int(images)) == pytest.approx(beta, rel=1e-12)


@given(widths)
def test_width_and_exponent_are_inverses(std: float) -> None:
    assert exp_to_std(std_to_exp(std)) == pytest.approx(std, rel=1e-9)


def test_an_impossible_exponent_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at least 0, not -0\.5"):
        exp_to_std(-0.5)


def test_the_distance_of_two_profiles_follows_from_known_inner_products() -> None:
    """|a - b|^2 = <a, a> - 2 <a, b> + <b, b>."""

    def square(t: float, std: float) -> float:
        g = std_to_exp(std)
        return (g + 1) ** 2 / ((2 * g + 1) * t)

    for ta, sa, tb, sb, inner in KNOWN["inner"]:
        distance = (square(ta, sa) - 2 * inner + square(tb, sb)) / square(tb, sb)
        found = float(profile_error([ta], [sa], [1.0], tb, sb))
        assert found**2 == pytest.approx(max(distance, 0), abs=1e-12)


def test_coefficients_are_the_reference_s() -> None:
    given_ = KNOWN["solve"]
    for std, wanted in given_["coefficients"].items():
        found = solve_posthoc(given_["in_ofs"], given_["in_std"], given_["out_ofs"], float(std))
        assert found.shape == (8,)
        assert found == pytest.approx(wanted, abs=1e-12)
    table = np.array(list(given_["coefficients"].values())).T
    stds = [float(std) for std in given_["coefficients"]]
    for ofs in (32, [32] * len(stds)):
        several = solve_posthoc(given_["in_ofs"], given_["in_std"], ofs, stds)
        assert several == pytest.approx(table, abs=1e-12)


@pytest.mark.parametrize("count", [8, 64, 256])
def test_coefficients_are_those_of_the_plain_equations(count: int) -> None:
    """Also where the matrix is badly conditioned: 5e8 at 256 times."""
    times, stds = stored(count)
    g = np.array([std_to_exp(s) for s in stds])

    def inner(ta: NDArray, ga: NDArray, tb: NDArray, gb: NDArray) -> NDArray:
        low, high = np.minimum(ta, tb), np.maximum(ta, tb)
        later = np.where(ta < tb, gb, ga)
        return (ga + 1) * (gb + 1) * (low / high) ** later / ((ga + gb + 1) * high)

    A = inner(times[:, None], g[:, None], times, g)
    for std in (0.015, 0.03, 0.08, 0.2):
        b = inner(times, g, np.ones_like(times), np.full_like(g, std_to_exp(std)))
        x = np.linalg.solve(A, b)
        assert solve_posthoc(times, stds, 1, std) == pytest.approx(x / x.sum(), abs=1e-6)


@pytest.mark.parametrize(("count", "key"), [(256, "error_at_8Mi"), (64, "error_at_32Mi")])
def test_the_quality_is_what_was_measured_with_the_reference(count: int, key: str) -> None:
    """To the last digit that the table prints."""
    quality = KNOWN["quality"]
    end = 2048 * 2**20
    times, stds = stored(count)
    x = solve_posthoc(times * end, stds, end, quality["std"])
    errors = profile_error(times * end, stds, x, end, quality["std"])
    for found, text in zip(errors, quality[key], strict=True):
        mantissa, _, exponent = text.partition("e")
        last = 10.0 ** (int(exponent) - len(mantissa.partition(".")[2]))
        assert found == pytest.approx(float(text), abs=0.51 * last)
    if key == "error_at_8Mi":
        for found, text in zip(noise_gain(x), quality["gain_at_8Mi"], strict=True):
            assert found == pytest.approx(float(text), abs=0.051 if "." in text else 0.51)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.1, 1), st.floats(0.03, 0.25)), min_size=1, max_size=5),
    widths,
    st.floats(-1, 1),
)
def test_the_error_is_the_integral_of_the_squared_difference(
    inputs: list[tuple[float, float]], std: float, shift: float
) -> None:
    """For any coefficients, by Gauss-Legendre quadrature between the ends of the profiles."""
    times, stds = (np.array(column) for column in zip(*inputs, strict=True))
    x = solve_posthoc(times, stds, 1.0, std) + shift * np.linspace(0, 1, len(times))
    nodes, shares = np.polynomial.legendre.leggauss(80)
    ends = np.unique([0, *times, 1])
    low, high = ends[:-1, None], ends[1:, None]
    tau = (low + (high - low) * (nodes + 1) / 2).ravel()
    area = ((high - low) / 2 * shares).ravel()
    wanted = density(std, 1.0, tau)
    sum_ = sum(c * density(s, t, tau) for c, s, t in zip(x, stds, times, strict=True))
    relative = np.sqrt((area * (sum_ - wanted) ** 2).sum() / (area * wanted**2).sum())
    rounding = 1e-7 * max(1.0, float(noise_gain(x)))
    assert float(profile_error(times, stds, x, 1.0, std)) == pytest.approx(
        relative, rel=1e-5, abs=rounding
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), widths, st.floats(0.01, 1e9))
def test_coefficients_add_up_to_one_and_know_no_unit_of_time(
    count: int, std: float, unit: float
) -> None:
    times, stds = stored(count)
    x = solve_posthoc(times, stds, 1, std)
    assert x.sum() == pytest.approx(1, abs=1e-12 * noise_gain(x))
    assert solve_posthoc(times * unit, stds, times[-1] * unit, std) == pytest.approx(
        x, abs=1e-8 * noise_gain(x)
    )


def test_a_tracked_average_stands_for_itself() -> None:
    times, stds = stored(16, (0.04, 0.09, 0.2))
    for i in (2, 20, 47):
        x = solve_posthoc(times, stds, times[i], stds[i])
        assert x == pytest.approx(np.eye(48)[i], abs=1e-9)
        assert float(profile_error(times, stds, x, times[i], stds[i])) < 1e-6


def test_inputs_outside_of_the_time_of_the_output_do_not_take_part() -> None:
    times, stds = stored(8)
    early = times <= 0.5
    wide, late = np.concatenate([[0, 0], times]), np.concatenate([[0.05, 0.1], stds])
    x = solve_posthoc(wide, late, [0.5, 1.0], [0.08, 0.12])
    assert not x[:2].any() and not x[2:][~early, 0].any()
    assert x[2:][early, 0] == pytest.approx(solve_posthoc(times[early], stds[early], 0.5, 0.08))
    assert x[2:, 1] == pytest.approx(solve_posthoc(times, stds, 1, 0.12))
    errors = profile_error(wide, late, x, [0.5, 1.0], [0.08, 0.12])
    assert errors[0] == pytest.approx(profile_error(times, stds, x[2:, 0], 0.5, 0.08))
    with pytest.raises(ValueError, match=r"No average was stored between time 0 and time 0\.1"):
        solve_posthoc(times, stds, 0.1, 0.08)
    with pytest.raises(ValueError, match="No average was stored"):
        solve_posthoc([0.0], [0.1], 0.0, 0.08)


def test_repeated_and_crowded_inputs_share_their_weight() -> None:
    """Equations that cannot be solved plainly: the answer stays as good, and as quiet."""
    times, stds = stored(32)
    once = solve_posthoc(times, stds, 1, [0.04, 0.08, 0.15])
    twice = solve_posthoc(np.tile(times, 2), np.tile(stds, 2), 1, [0.04, 0.08, 0.15])
    assert twice[:64] == pytest.approx(once / 2, abs=1e-7)
    assert twice[64:] == pytest.approx(once / 2, abs=1e-7)
    many = stored(64, (0.03, 0.05, 0.07, 0.1, 0.14, 0.2))
    x = solve_posthoc(*many, 1, [0.04, 0.08, 0.15, 0.2])
    assert noise_gain(x).max() < 20
    assert profile_error(*many, x, 1, [0.04, 0.08, 0.15, 0.2]).max() < 1e-5


def test_lengths_that_differ_and_impossible_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="broadcast"):
        solve_posthoc([1, 2, 3], [0.05, 0.1], 3, 0.08)
    with pytest.raises(ValueError, match="between 0 and"):
        solve_posthoc([1, 2], [0.05, 0.3], 2, 0.08)


def test_a_random_walk_is_averaged_as_by_the_reference() -> None:
    walk = 0.02 * np.cumsum(np.random.RandomState(0).randn(4096))

    def tracked(std: float) -> NDArray:
        value, values = 0.0, []
        for step, weight in enumerate(walk, start=1):
            beta = power_beta(std, step, 1)
            value = beta * value + (1 - beta) * weight
            values.append(value)
        return np.array(values)

    at = np.arange(64, 4097, 64)
    held = np.stack([tracked(0.05), tracked(0.1)], axis=1)[at - 1].ravel()
    times, stds = np.repeat(at, 2), np.tile([0.05, 0.1], 64)
    for std, (rebuilt, direct) in KNOWN["walk"]["reconstructed_direct"].items():
        assert tracked(float(std))[-1] == pytest.approx(direct, abs=1e-12)
        x = solve_posthoc(times, stds, 4096, float(std))
        assert x @ held == pytest.approx(rebuilt, abs=1e-9)


@pytest.mark.parametrize("updates", [300, 1000])
@pytest.mark.parametrize("spacing", [16, 32])
def test_a_short_run_needs_no_other_mathematics(updates: int, spacing: int) -> None:
    """Weights that walk as far as they are long, in fp32, batches cut at the end of the run.

    The averages are integrals over weights that stand still between updates, so that a short run
    differs from a long one in nothing but the steps of its walk.
    """
    good = (0.05, 0.06, 0.08, 0.1, 0.12) + ((0.04, 0.15, 0.17) if spacing == 32 else ())
    generator = torch.Generator().manual_seed(updates)
    weight = torch.randn(2000, generator=generator)
    ema = PowerEMA({"w": weight}, sorted({0.05, 0.1, *good}))
    ends = [min(4 * i, 4 * updates - 3) for i in range(1, updates + 1)]
    every = 4 * updates // spacing
    times, held = [], []
    for before, end in zip([0, *ends], ends, strict=False):
        weight += torch.randn(2000, generator=generator) / updates**0.5
        ema.update(end, end - before)
        if end // every > before // every or end == ends[-1]:
            times += [end, end]
            held += [ema.profiles[std]["w"].double().clone() for std in (0.05, 0.1)]
    x = solve_posthoc(times, [0.05, 0.1] * (len(times) // 2), ends[-1], good)
    rebuilt = torch.tensor(x).T @ torch.stack(held)
    for std, found in zip(good, rebuilt, strict=True):
        wanted = ema.profiles[std]["w"].double()
        assert (found - wanted).norm() < 1e-4 * wanted.norm()


def test_names_have_three_decimals_or_as_many_as_the_width() -> None:
    assert profile_name(0.1) == "ema_0.100"
    assert profile_name(0.0801) == "ema_0.0801" != profile_name(0.08)
    assert profile_std("ema_0.080") == 0.08
    others = ("raw", "adam", "0.100", "ema_", "ema_wide", "ema_0.1", "ema_nan", "ema_0.500")
    assert [name for name in others if profile_std(name) is not None] == []


@given(st.floats(1e-6, 0.2886))
def test_a_name_gives_back_its_width(std: float) -> None:
    assert profile_std(profile_name(std)) == std
