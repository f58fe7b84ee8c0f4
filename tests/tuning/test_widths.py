"""Rates across widths: what a trial trains with, and what the last training gets."""

import math
from typing import Any

import pytest
from studies import SPACE, variant

from poise.config import preset_named, resolve, values_of
from poise.tuning.final import final_settings
from poise.tuning.ground import (
    at_home,
    images_within,
    trained_settings,
    trial_config,
)
from poise.tuning.space import default_point


def rate(plan: Any, settings: dict[str, Any]) -> tuple[int, float]:
    config = trial_config(plan, settings, 1000, 0)
    return config.model.channels, config.training.lr


def test_a_narrow_search_carries_the_rate_down_and_the_last_training_has_its_own() -> None:
    plan = variant(width=16)
    own = default_point(SPACE, values_of(at_home(plan)))
    assert own["training.lr"] == 0.03
    assert trial_config(plan, own, 1000, 0) == trial_config(plan, {}, 1000, 0)
    assert rate(plan, {"training.lr": 0.02}) == (16, pytest.approx(0.02 * math.sqrt(2)))
    assert rate(plan, {}) == (16, pytest.approx(0.03 * math.sqrt(2)))  # the preset's own
    final = final_settings(plan, {"training.lr": 0.02}, {})
    assert final == {"training.lr": 0.02, "seed": 0}
    config = resolve(preset_named("nano"), final)
    assert (config.model.channels, config.training.lr) == (32, 0.02)


def test_a_width_that_was_searched_is_trained_with_the_rate_of_its_trial() -> None:
    plan = variant()
    settings = {"training.lr": 0.02, "model.channels": 64}
    assert rate(plan, settings) == (64, pytest.approx(0.02 / math.sqrt(2)))
    told = trained_settings(plan, settings)  # what study.json says
    config = resolve(preset_named("nano"), final_settings(plan, told, {}))
    assert (config.model.channels, config.training.lr) == rate(plan, settings)
    assert told["training.lr"] == config.training.lr


def test_sampling_settings_and_averages_reach_the_last_training() -> None:
    free = {"weights": 0.075, "sampling.steps": 12, "guidance": 2.0}
    final = final_settings(variant(overrides={"training.batch": 32}), {}, free)
    assert final["sampling.steps"] == 12
    assert final["training.batch"] == 32
    assert 0.075 in final["training.ema_stds"] and 0.05 in final["training.ema_stds"]
    assert "guidance" not in final


def test_a_longer_trial_sees_more_and_fixed_costs_never_take_all() -> None:
    config = resolve(preset_named("nano"))
    seen = [images_within(seconds, 600, config, 3) for seconds in (1, 5, 20, 100)]
    assert seen == sorted(seen) and seen[0] >= 100
    assert seen[-1] > 0.6 * 100 * 600
