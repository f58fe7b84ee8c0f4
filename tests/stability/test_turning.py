"""A turn is named; wobble, plateaus, steps and another illness are not."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poise.stability.turning import Turned, has_turned

SIGMAS = np.geomspace(0.02, 20, 8)
IMAGES = 1000


def rows_of(
    logs: NDArray[np.float64], *, weights: str = "ema_0.100", split: str = "val"
) -> list[dict[str, Any]]:
    """Lines of validation.jsonl from ln(error) [T, 8]."""
    return [
        {
            "images_seen": (t + 1) * IMAGES,
            "weights": weights,
            "split": split,
            "loss": float(np.exp(row).mean()),
            "bands": [
                {"sigma": float(s), "loss": float(v)}
                for s, v in zip(SIGMAS, np.exp(row), strict=True)
            ],
        }
        for t, row in enumerate(logs)
    ]


def plateau(
    generator: np.random.Generator, count: int, *, lingering: float = 0.0, size: float = 0.015
) -> NDArray[np.float64]:
    """A fall to a floor, with noise common to all levels and noise of each."""
    t = np.arange(count)
    noise = np.zeros((count, 8))
    drawn = generator.standard_normal((count, 9))
    common = size * (drawn[:, :1] + drawn[:, 1:])
    for i in range(count):
        noise[i] = common[i] + (lingering * noise[i - 1] if i else 0)
    fall = generator.choice([0.0, 0.5, 1.0]) * np.exp(-t / generator.uniform(1, 6))
    return np.linspace(-0.2, -2, 8) + fall[:, None] + noise


def overfitted(
    generator: np.random.Generator, count: int, *, bands: Sequence[int], rise: float = 0.3
) -> NDArray[np.float64]:
    noise = 0.01 * generator.standard_normal((count, 1)) + 0.01 * generator.standard_normal(
        (count, 8)
    )
    logs = np.linspace(-0.2, -2, 8) + np.exp(-np.arange(count) / 1.0)[:, None] + noise
    t = np.maximum(np.arange(count) - count // 3, 0) / (count - count // 3)
    logs[:, list(bands)] += rise * t[:, None]
    return logs


@pytest.mark.parametrize(("lingering", "size"), [(0.0, 0.015), (0.5, 0.005)])
def test_a_noisy_plateau_never_stops_a_run(lingering: float, size: float) -> None:
    generator = np.random.default_rng(0)
    stops = 0
    for _ in range(1000 if lingering == 0 else 300):
        count = int(generator.choice([6, 10, 10, 10, 20]))
        logs = plateau(generator, count, lingering=lingering, size=size)
        stops += has_turned(rows_of(logs)) is not None
    assert stops == 0


@pytest.mark.parametrize("count", [10, 30])
def test_a_plateau_is_left_alone_at_every_validation_of_a_run(count: int) -> None:
    generator = np.random.default_rng(1)
    for _ in range(8):
        rows = rows_of(plateau(generator, count))
        assert all(has_turned(rows[:end]) is None for end in range(count + 1))


@pytest.mark.parametrize("bands", [range(8), range(2, 6)])
@pytest.mark.parametrize("count", [10, 20])
def test_overfitting_is_found_with_its_noise_levels(bands: range, count: int) -> None:
    generator = np.random.default_rng(2)
    found: list[Turned] = []
    for _ in range(50):
        turned = has_turned(rows_of(overfitted(generator, count, bands=bands, rise=0.5)))
        if turned is not None:
            found.append(turned)
    assert len(found) >= (48 if len(bands) == 8 or count == 20 else 25)  # the rest a little later
    for turned in found:
        assert turned.images_seen <= (count // 2 + 1) * IMAGES and turned.now == count * IMAGES
        assert turned.rise > 0.05 and turned.weights == "ema_0.100"
        near = [int(np.argmin(abs(SIGMAS - s))) for s in turned.sigmas]
        assert set(near) <= set(bands) or len(set(near) - set(bands)) <= 1
        assert f"{turned.images_seen:,}" in turned.sentence


def test_a_falling_error_and_a_short_run_are_no_turn() -> None:
    falling = np.linspace(0, -1, 20)[:, None] + np.zeros((1, 8))
    assert has_turned(rows_of(falling)) is None
    assert has_turned([]) is None
    assert has_turned(rows_of(-falling[:4])) is None


def test_one_bad_validation_is_no_turn() -> None:
    generator = np.random.default_rng(3)
    logs = plateau(generator, 12)
    logs[-1] += 1.0
    assert has_turned(rows_of(logs)) is None


def test_a_training_probe_that_rises_too_is_another_illness() -> None:
    logs = overfitted(np.random.default_rng(4), 12, bands=range(8), rise=0.6)
    val = rows_of(logs)
    falling = rows_of(np.linspace(0, -1, 12)[:, None] + np.zeros((1, 8)), split="train")
    assert has_turned(val) is not None
    assert has_turned(val + falling) is not None
    assert has_turned(val + rows_of(logs, split="train")) is None


def test_samples_that_still_improve_are_worth_going_on_for() -> None:
    val = rows_of(overfitted(np.random.default_rng(4), 12, bands=range(8), rise=0.6))
    better = [{"images_seen": (t + 1) * IMAGES, "rank": 10.0 - t} for t in range(12)]
    worse = [{**row, "rank": 10.0 + t} for t, row in enumerate(better)]
    assert has_turned(val + better) is None
    assert has_turned(val + worse) is not None


def test_the_best_average_decides_and_rows_that_are_not_finite_do_not_count() -> None:
    generator = np.random.default_rng(5)
    raw = rows_of(overfitted(generator, 12, bands=range(8), rise=0.8), weights="raw")
    average = rows_of(plateau(generator, 12), weights="ema_0.050")
    assert has_turned(raw) is not None
    assert has_turned(raw + average) is None
    broken = [{**row, "loss": float("nan")} for row in raw[-2:]]
    assert has_turned(raw[:-2] + broken) == has_turned(raw[:-2])
