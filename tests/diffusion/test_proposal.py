"""P_mean and P_std proposed for data whose error curve is known exactly."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mixture import Mixture, three_groups, two_scales

from poise.diffusion.proposal import propose
from poise.errors import UsageError

Floor = Callable[[float], float]  # noise level -> mean squared error of the best denoiser
LEVELS = np.geomspace(0.002, 80, 16).tolist()


def errors(floor: Floor, sd: float, levels: list[float] = LEVELS) -> list[float]:
    """The curve that a finished network would show under EDM's weight."""
    return [(s**2 + sd**2) / (s * sd) ** 2 * floor(s) for s in levels]


GROUPS = three_groups()
CURVE = errors(GROUPS.floor, GROUPS.rms)
PLAIN = propose(LEVELS, CURVE, GROUPS.rms)


def bump(center: float, width: float, height: float = 0.8) -> list[float]:
    """A curve whose gain is a Gaussian bump over ln(sigma)."""
    return [1 - height * math.exp(-((math.log(s) - center) ** 2) / (2 * width**2)) for s in LEVELS]


@settings(deadline=None)
@given(center=st.floats(-2.5, 0.5), width=st.floats(0.6, 1.1), sd=st.floats(0.1, 2))
def test_a_bump_is_given_back(center: float, width: float, sd: float) -> None:
    found = propose(LEVELS, bump(center, width), sd)
    assert found.P_mean == pytest.approx(center, abs=0.1)
    assert 0.88 * width < found.P_std < 1.02 * width


@pytest.mark.parametrize("factor", [0.01, 0.7, 30.0])
def test_scaling_the_data_shifts_the_mean_by_its_logarithm_and_leaves_the_width(
    factor: float,
) -> None:
    scaled, sd = GROUPS.scaled(factor), factor * GROUPS.rms
    levels = [factor * s for s in LEVELS]
    found = propose(levels, errors(scaled.floor, sd, levels), sd)
    assert found.P_mean == pytest.approx(PLAIN.P_mean + math.log(factor), abs=1e-6)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=1e-6)
    assert found.gain == pytest.approx(PLAIN.gain, abs=1e-6)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_the_same_holds_about_when_the_probe_stays(factor: float) -> None:
    sd = factor * GROUPS.rms
    found = propose(LEVELS, errors(GROUPS.scaled(factor).floor, sd), sd)
    assert found.P_mean == pytest.approx(PLAIN.P_mean + math.log(factor), abs=0.03)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=0.03)


def test_structure_at_two_scales_widens_the_noise() -> None:
    coarse = Mixture((0.5, 0.5), (-2.0, 2.0), (0.5, 0.5))
    one = propose(LEVELS, errors(coarse.floor, coarse.rms), coarse.rms)
    fine = two_scales()  # the same places with 25 times finer detail
    both = propose(LEVELS, errors(fine.floor, fine.rms), fine.rms)
    assert both.P_std > 1.5 * one.P_std
    assert both.P_mean < one.P_mean - 1


@pytest.mark.parametrize("mean", [0.3, 1.5])
def test_a_mean_image_changes_nothing(mean: float) -> None:
    """High noise then leaves less than sigma_data^2, though there is nothing more to learn."""
    sd = math.hypot(GROUPS.rms, mean)
    curve = errors(GROUPS.floor, sd)
    found = propose(LEVELS, curve, sd)
    assert curve[-1] < 0.9
    assert found.P_mean == pytest.approx(PLAIN.P_mean, abs=5e-3)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=5e-3)


@pytest.mark.parametrize("share", [0.9, 0.3])
def test_dead_pixels_change_nothing(share: float) -> None:
    """Low noise then leaves less than sigma^2, though there is nothing more to learn."""
    sd = math.sqrt(share) * GROUPS.rms
    curve = errors(lambda s: share * GROUPS.floor(s), sd)
    found = propose(LEVELS, curve, sd)
    assert curve[0] == pytest.approx(share, abs=0.01)
    assert found.P_mean == pytest.approx(PLAIN.P_mean, abs=1e-3)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=1e-3)


@pytest.mark.parametrize("count", [11, 25, 60])
def test_the_number_of_levels_changes_little(count: int) -> None:
    levels = np.geomspace(0.002, 80, count).tolist()
    found = propose(levels, errors(GROUPS.floor, GROUPS.rms, levels), GROUPS.rms)
    assert found.P_mean == pytest.approx(PLAIN.P_mean, abs=0.05)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=0.05)


@pytest.mark.parametrize("seed", range(5))
def test_measurement_noise_of_two_percent_is_borne(seed: int) -> None:
    noise = 0.02 * np.random.default_rng(seed).standard_normal(len(LEVELS))
    found = propose(LEVELS, (np.array(CURVE) + noise).tolist(), GROUPS.rms)
    assert found.P_mean == pytest.approx(PLAIN.P_mean, abs=0.3)
    assert found.P_std == pytest.approx(PLAIN.P_std, abs=0.3)


def test_a_network_that_is_bad_at_low_noise_is_not_taken_to_have_learnt_there() -> None:
    curve = [1.3, 1.3, 1.2, *CURVE[3:-1], 1.1]
    found = propose(LEVELS, curve, GROUPS.rms)
    assert found.gain[:3] == [0, 0, 0]
    assert found.P_mean == pytest.approx(PLAIN.P_mean, abs=0.1)


def test_the_sentence_names_the_settings() -> None:
    assert f"diffusion.P_mean={PLAIN.P_mean:.2f}" in PLAIN.sentence
    assert f"diffusion.P_std={PLAIN.P_std:.2f}" in PLAIN.sentence
    assert len(PLAIN.gain) == len(LEVELS)
    assert max(PLAIN.gain) <= 1 and min(PLAIN.gain) == 0


# Refusals


def refusal(levels: list[float], curve: list[float], sd: float = 0.5) -> str:
    with pytest.raises(UsageError) as caught:
        propose(levels, curve, sd)
    return str(caught.value)


def test_white_data_and_untrained_networks_have_no_answer() -> None:
    assert "Train longer" in refusal(LEVELS, [1.0] * 16)
    assert "Train longer" in refusal(LEVELS, [1 + 0.01 * (-1) ** i for i in range(16)])
    # the mean of the images and nothing else
    assert "Train longer" in refusal(LEVELS, errors(lambda s: s**2 * 0.1 / (s**2 + 0.1), 0.5))


@pytest.mark.parametrize(
    ("part", "end"), [(slice(None, 9), "high"), (slice(6, None), "low")], ids=["high", "low"]
)
def test_a_probe_that_ends_too_early_says_which_end_to_extend(part: slice, end: str) -> None:
    message = refusal(LEVELS[part], CURVE[part], GROUPS.rms)
    assert f"{end} end" in message
    edge = LEVELS[part][-1 if end == "high" else 0]
    assert f"Measure {'above' if end == 'high' else 'below'} {edge:.3g}" in message


def test_pixel_steps_at_low_noise_are_not_taken_for_structure() -> None:
    """Noise far below the steps of 8-bit values can be rounded away: the error falls to 0."""
    curve = [0.05, 0.3, 0.95, *CURVE[3:]]
    assert "falls again towards the low end" in refusal(LEVELS, curve, GROUPS.rms)


def test_too_coarse_a_probe_is_refused() -> None:
    assert "more levels" in refusal([0.002, 0.01, 0.5, 20.0, 80.0], [1.0, 1.0, 0.2, 1.0, 1.0])


@pytest.mark.parametrize(
    ("levels", "curve", "sd"),
    [
        (LEVELS, CURVE[:-1], 0.5),
        (LEVELS[:4], CURVE[:4], 0.5),
        (LEVELS[::-1], CURVE, 0.5),
        ([0.0, *LEVELS[1:]], CURVE, 0.5),
        (LEVELS, [math.nan, *CURVE[1:]], 0.5),
        (LEVELS, [0.0, *CURVE[1:]], 0.5),
        (LEVELS, CURVE, 0.0),
    ],
)
def test_what_is_no_curve_is_refused(levels: list[float], curve: list[float], sd: float) -> None:
    assert "Expected: " in refusal(levels, curve, sd)
