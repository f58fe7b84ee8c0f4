"""Planted liars on real digits: the Fréchet distance misleads, the verdict does not."""

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from poise.console import Screen
from poise.evaluation.evaluate import Judged
from poise.report.evaluation import verdict_lines
from poise.scoring.judge import Real, Samples, judge
from poise.settings import EvaluationConfig

NAMES = tuple(f"digit {i}" for i in range(10))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """Novel digits as an honest model's samples; and a function that judges any samples."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    order = np.random.default_rng(5).permutation(len(raw.images))
    x = (raw.images * 15.9).round().astype(np.uint8)[order][:, None]
    y = raw.target.astype(np.int64)[order]
    real = Real(x[700:1250], y[700:1250], x[:700], y[:700], NAMES, "val", "d", mirrored=False)
    settings = EvaluationConfig(features="pixels", encoder_images=15_000)
    cache = tmp_path_factory.mktemp("cache")

    def judged(samples: np.ndarray, labels: np.ndarray | None = None) -> Judged:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("POISE_CACHE", str(cache))
            return judge(Samples(samples, labels), real, settings, {}, Screen(quiet=True))

    return x[1250:], y[1250:], x[:700], judged


def told(judged: Judged) -> tuple[str, str]:
    """The weak lines and the others."""
    lines = verdict_lines(judged.record)
    weak = [line for line in lines if line.startswith("Weak")]
    return " ".join(weak), " ".join(line for line in lines if line not in weak)


def ratio(judged: Judged) -> float:
    row = judged.record["metrics"]["frechet_distance"]
    return float(row["value"] / row["real"])


def test_an_honest_model_is_called_good(world):
    samples, labels, _, judged = world
    weak, rest = told(judged(samples, labels))
    assert weak == "" and "Good: " in rest


def test_a_model_that_copies_is_named_though_its_distance_is_the_best(world):
    samples, _, train, judged = world
    copier = judged(train[: len(samples)])
    weak, _ = told(copier)
    assert "copies" in weak and "Fréchet distance alone would not have shown this" in weak
    noise = np.random.default_rng(0).normal(0, 25, samples.shape)
    honest = judged((samples + noise).clip(0, 255).astype(np.uint8))  # new digits, a little rough
    assert ratio(copier) < 1.3 < ratio(honest)  # the liar that one number ranks first
    assert honest.record["copying"]["flagged"] == 0
    some = samples.copy()
    some[:50] = train[100:150]
    weak, _ = told(judged(some))
    assert "copies" in weak and "50 of them are identical" in weak


@pytest.mark.parametrize("dropped", [(2, 7), (0, 9)])
def test_a_model_that_drops_two_classes_is_named(world, dropped):
    samples, labels, _, judged = world
    kept = ~np.isin(labels, dropped)
    for known in (None, labels[kept]):
        weak, _ = told(judged(samples[kept], known))
        for digit in range(10):
            assert (f"digit {digit}" in weak) == (digit in dropped), (digit, weak)
        assert "copies" not in weak and "blurred" not in weak


def test_a_model_that_is_slightly_blurred_is_named(world):
    samples, _, _, judged = world
    soft = gaussian_filter(samples.astype(np.float64), (0, 0, 0.5, 0.5))
    weak, _ = told(judged(soft.round().clip(0, 255).astype(np.uint8)))
    assert "blurred" in weak and "copies" not in weak and "digit" not in weak


def test_pictures_show_what_is_meant(world, tmp_path: Path):
    samples, labels, train, judged = world
    some = samples.copy()
    some[7] = train[3]
    found = judged(some, labels)
    assert found.record["copying"]["closest"][0]["sample"] == 7
    assert found.record["copying"]["closest"][0]["train"] == 3
    some[:5] = 255 - some[:5]
    assert set(np.argsort(judged(some).realism)[:5]) == set(range(5))
