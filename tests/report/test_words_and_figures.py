"""How numbers read, and that thinning a curve keeps what matters."""

import math

import pytest

from poise.report import metrics, words
from poise.report.figures import Axis, Curve, lines, thin


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (math.nan, "not a number"),
        (-math.inf, "minus infinite"),
        (None, "not known"),
        (True, "yes"),
        (0.0, "0"),
        (1.23456, "1.23"),
        (12345, "12,345"),
        (12345.6, "12,346"),
        (0.00012345, "1.23 × 10⁻⁴"),
        (-2.5e9, "-2.5 × 10⁹"),
    ],
)
def test_number(value: object, said: str) -> None:
    assert words.number(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (1797, "1,797"),
        (12_345, "12.3 k"),
        (1_234_567, "1.23 M"),
        (999_999, "1 M"),
        (4.5e9, "4.5 G"),
    ],
)
def test_count(value: float, said: str) -> None:
    assert words.count(value) == said


@pytest.mark.parametrize(
    ("value", "said"),
    [(0.42, "0.42 s"), (59.9, "60 s"), (200.4, "3 min 20 s"), (3600, "1 h"), (90_061, "1 d 1 h")],
)
def test_seconds(value: float, said: str) -> None:
    assert words.seconds(value) == said


def test_thinning_keeps_spikes_and_ends() -> None:
    y: list[float | None] = [1.0] * 10_000
    y[7_777], y[123], y[500] = 99.0, -99.0, None
    kept = thin(range(10_000), y)
    assert len(kept) <= 400 and kept == sorted(kept)
    assert {0, 123, 7_777, 9_999} <= set(kept)


def test_a_log_axis_leaves_out_what_it_cannot_show() -> None:
    figure = lines([Curve("a", [1, 2, 3], [0.0, math.inf, 5.0])], Axis("x"), Axis("y", log=True))
    assert figure["data"][0]["y"] == [None, None, 5.0]


def test_metrics_are_found_by_what_they_mean() -> None:
    assert metrics.find(["recall", "frechet_distance"], "frechet") == "frechet_distance"
    assert metrics.find(["fid"], "frechet") == "fid"
    assert metrics.find(["coverage_extra"], "frechet") is None
    assert metrics.title("frechet_distance") == "Fréchet distance"
    assert metrics.meaning("unheard_of", "lower") == "Lower is better."
