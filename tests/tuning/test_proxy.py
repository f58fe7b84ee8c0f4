"""What stops trials early: the error at middle noise levels, of the better set of weights."""

import math
from pathlib import Path

import pytest

from poise.artifacts import RunDir, append_jsonl
from poise.tuning.trial import proxy_of


def log(folder: Path, images: int, weights: str, losses: dict[float, float]) -> None:
    bands = [{"sigma": sigma, "loss": loss} for sigma, loss in losses.items()]
    row = {"images_seen": images, "weights": weights, "bands": bands}
    append_jsonl(RunDir(folder).log("validation"), row)


def test_far_levels_say_nothing_and_the_better_weights_count(tmp_path: Path) -> None:
    log(tmp_path, 100, "raw", {0.02: 9.0, 0.5: math.exp(-1), 2.0: math.exp(-2), 20.0: 9.0})
    log(tmp_path, 100, "ema", {0.02: 1.0, 0.5: math.exp(-1), 2.0: math.exp(-1), 20.0: 1.0})
    log(tmp_path, 200, "raw", {0.5: 1e-9})
    assert proxy_of(RunDir(tmp_path), 150, 0.5) == pytest.approx(-1.5)
    assert proxy_of(RunDir(tmp_path), 150, 1.5) == pytest.approx(-2 / 3)


def test_where_no_level_is_in_the_middle_all_count(tmp_path: Path) -> None:
    log(tmp_path, 100, "raw", {0.001: math.exp(-1), 90.0: math.exp(-2)})
    assert proxy_of(RunDir(tmp_path), 100, 0.5) == pytest.approx(-1.5)


@pytest.mark.parametrize("loss", [math.inf, math.nan, 0.0, -1.0])
def test_an_error_that_is_none_anywhere_is_not_hidden(tmp_path: Path, loss: float) -> None:
    log(tmp_path, 100, "raw", {0.02: loss, 0.5: 1.0})
    assert math.isnan(proxy_of(RunDir(tmp_path), 100, 0.5))
