"""How numbers read, and that thinning a curve keeps what matters."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic_scores import scores, snapshots, tradeoff

from poise.report import metrics, scorefigures, words
from poise.report.figures import Axis, Curve, axis_of, lines, thin


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


def test_every_metric_has_a_name_and_a_sentence_of_its_own() -> None:
    record = scores()
    names = [*record["metrics"], "denoising_psnr_test", "denoising_ssim_train"]
    titles = [metrics.title(name) for name in names]
    sentences = [metrics.meaning(name, "") for name in names]
    assert len(set(titles)) == len(names) and len(set(sentences)) == len(names)
    assert all(len(sentence) > 30 and sentence.endswith((".", "?")) for sentence in sentences)
    assert metrics.title("class_agreement_top5") == "Class agreement top5"
    assert metrics.meaning("kid_subset", "lower").startswith("How well the two collections")


def test_tradeoff_joins_each_averaging_length_over_strength() -> None:
    found = tradeoff()
    found["rows"] = found["rows"][::-1]  # whatever the order of the rows
    figure = scorefigures.against(found, "recall", "precision")
    names = [trace["name"] for trace in figure["data"]]
    assert names == ["raw weights", "EMA 0.050", "EMA 0.100", "real images"]
    line = figure["data"][1]
    assert line["text"] == ["1", "1.5", "2", "3"]
    assert line["x"] == pytest.approx([0.7, 0.625, 0.55, 0.4])
    assert figure["data"][-1]["x"] == [0.79] and figure["data"][-1]["y"] == [0.804]
    over = scorefigures.over_strength(found, "frechet_distance")
    assert over["data"][1]["x"] == [1.0, 1.5, 2.0, 3.0]
    assert over["data"][-1]["y"] == [0.713, 0.713]


def test_scores_over_training_have_the_real_level() -> None:
    figure = scorefigures.over_training(snapshots(), "recall")
    assert [trace["name"] for trace in figure["data"]] == [
        "EMA 0.100",
        "raw weights",
        "real images",
    ]
    assert figure["data"][-1]["line"]["dash"] == "dash" and figure["data"][-1]["y"] == [0.79] * 2


def test_of_many_classes_those_farthest_from_real_images_are_drawn() -> None:
    record = scores()
    wrong = 77
    record["classes"] |= {
        "names": [f"kind {i}" for i in range(100)],
        "asked": None,
        "predicted": [0 if i == wrong else 10 for i in range(100)],
        "expected": [0.01] * 100,
    }
    figure = scorefigures.class_shares(record)
    assert len(figure["data"][0]["x"]) == 20 and f"kind {wrong}" in figure["data"][0]["x"]


@given(st.floats(1e-6, 1e6), st.floats(1.001, 1e6))
def test_an_axis_has_a_few_ticks_wherever_its_values_lie(low: float, times: float) -> None:
    tick = axis_of(Axis("", log=True), [low, low * times])["dtick"]
    if isinstance(tick, str) and tick.startswith("L"):
        assert 2 <= low * (times - 1) / float(tick[1:]) <= 9
    else:
        assert times > 10**0.34


def test_a_level_line_is_drawn_level() -> None:
    low, high = axis_of(Axis(""), [0.999892, 0.999895])["range"]
    assert low < 0.96 and high > 1.04
    assert "range" not in axis_of(Axis(""), [0.9, 1.1])
    assert "range" not in axis_of(Axis(""), [])
