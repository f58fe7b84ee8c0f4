"""Rates that move features alike at any width, EDM2's published rates, widths that can be built."""

import itertools
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import preset_named, resolve
from poise.errors import UsageError
from poise.models.layers import MPConv, PlainConv
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.muon import Muon
from poise.tuning.transfer import carried_rate, explain, exponent_of, has_unit_weights, narrowed

SHAPES = Runtime(torch.device("meta"), torch.float32)
SCRIPT = Path(__file__).parents[2] / "scripts" / "transfer.py"


def of_width(channels: int, **overrides: Any) -> Config:
    """A network whose heads fit the width; `model__ladder="D"` is an override."""
    given_ = {name.replace("__", "."): value for name, value in overrides.items()}
    return resolve(None, {"model.channels_per_head": 8, **given_, "model.channels": channels})


def shift_of_features(layer: nn.Module, n: int, optimizer: str, rate: float) -> float:
    """How far one update moves the outputs of a matrix for the input it has learnt from."""
    x, wish = torch.randn(1, n), torch.randn(1, n)
    group: dict[str, Any] = {"params": list(layer.parameters()), "muon": True}
    adam: dict[str, Any] = {"lr": rate, "betas": (0.9, 0.99), "eps": 1e-30}
    made: torch.optim.Optimizer
    if optimizer == "muon":
        made = Muon([group], 0.95, **adam)
    elif optimizer == "rmsprop":
        made = torch.optim.RMSprop(layer.parameters(), lr=rate, eps=1e-30)
    else:
        made = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[optimizer]([group], **adam)
    before = layer(x).detach()
    (layer(x) * wish).sum().backward()
    made.step()
    return float((layer(x) - before).detach().square().mean().sqrt())


@pytest.mark.parametrize("ladder", ["C", "D", "G"])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "rmsprop", "muon"])
def test_an_update_at_the_carried_rate_moves_features_alike(optimizer: str, ladder: str) -> None:
    """What the rules mean, on one matrix of the network's kind at widths that differ 16 times."""
    torch.manual_seed(0)
    small, large = (
        of_width(n, model__ladder=ladder, training__optimizer=optimizer) for n in (64, 1024)
    )
    make = MPConv if has_unit_weights(small.model) else PlainConv
    rates = {64: 1e-4, 1024: carried_rate(1e-4, small, large)}
    moved = {
        n: np.mean([shift_of_features(make(n, n), n, optimizer, rate) for _ in range(5)])
        for n, rate in rates.items()
    }
    assert moved[1024] == pytest.approx(moved[64], rel=0.15)


def test_the_rule_for_unit_weights_is_that_of_the_published_sizes() -> None:
    sizes = [
        resolve(preset_named(f"edm2-img512-{size}"))
        for size in ("xxs", "xs", "s", "m", "l", "xl", "xxl")
    ]
    widths = np.log([config.model.channels for config in sizes])
    rates = np.log([config.training.lr for config in sizes])
    slope, height = np.polyfit(widths, rates, 1)
    assert slope == pytest.approx(-0.485, abs=5e-4)
    assert np.std(rates - slope * widths - height) == pytest.approx(0.020, abs=5e-4)
    assert abs(rates - slope * widths - height).max() < 0.034
    free = rates + 0.5 * widths  # constant if the exponent is -1/2
    assert exponent_of(sizes[0]) == -0.5
    assert np.std(free) == pytest.approx(0.022, abs=5e-4)
    assert abs(free - free.mean()).max() < 0.037
    for small, large in itertools.permutations(sizes, 2):
        carried = carried_rate(small.training.lr, small, large)
        assert carried == pytest.approx(large.training.lr, rel=0.07)


@pytest.mark.parametrize(
    ("overrides", "exponent"),
    [
        ({}, -0.5),
        ({"model__ladder": "D"}, -0.5),
        ({"model__architecture": "mp_dit"}, -0.5),
        ({"training__optimizer": "rmsprop"}, -0.5),
        ({"training__optimizer": "muon"}, 0.0),
        ({"model__ladder": "C"}, -1.0),
        ({"model__ladder": "A"}, -1.0),
        ({"model__architecture": "adm"}, -1.0),
        ({"model__architecture": "dit", "training__optimizer": "adamw"}, -1.0),
        ({"model__architecture": "dit", "training__optimizer": "muon"}, -0.5),
    ],
)
def test_each_network_has_its_exponent(overrides: dict[str, Any], exponent: float) -> None:
    small, large = of_width(32, **overrides), of_width(64, **overrides)
    assert carried_rate(0.01, small, large) == pytest.approx(0.01 * 2**exponent)


@given(*[st.integers(1, 64).map(lambda k: 8 * k)] * 3, st.floats(1e-6, 1), st.sampled_from("CDG"))
@hypothesis_settings(max_examples=50, deadline=None)
def test_carrying_in_two_steps_or_there_and_back_changes_nothing(
    a: int, b: int, c: int, rate: float, ladder: str
) -> None:
    first, second, third = (of_width(n, model__ladder=ladder) for n in (a, b, c))
    through = carried_rate(carried_rate(rate, first, second), second, third)
    assert through == pytest.approx(carried_rate(rate, first, third))
    assert carried_rate(carried_rate(rate, first, second), second, first) == pytest.approx(rate)
    assert carried_rate(rate, first, first) == rate


def test_plain_gradient_descent_is_refused_unless_the_width_stays() -> None:
    small, large = (of_width(n, training__optimizer="sgd") for n in (16, 32))
    assert carried_rate(0.1, small, small) == 0.1
    for refuse in (carried_rate, explain):
        with pytest.raises(UsageError, match="sgd"):
            refuse(0.1, small, large)


def test_the_explanation_names_the_rule_and_what_it_leaves_out() -> None:
    small, large = of_width(16), of_width(64, model__num_blocks=2, training__images=7)
    said = explain(0.04, small, large)
    assert said == (
        "The learning rate 0.04 of width 16 becomes 0.02 at width 64: with adam and matrices of "
        "unit magnitude it goes as width^-0.5. Not covered by this rule: model.num_blocks 1 -> 2, "
        "training.images 1000000 -> 7."
    )
    assert "used as they are stored it goes as width^-1." in explain(
        0.04, of_width(16, model__ladder="C"), of_width(64, model__ladder="C", training__lr=0.3)
    )
    assert explain(0.04, small, small) == "The width stays 16, and so does the learning rate 0.04."


def build(config: Config, side: int) -> None:
    build_denoiser(config, DataFacts(side, 3, ("a", "b"), 0.5), SHAPES)


@given(
    st.sampled_from(["edm2", "adm", "dit", "mp_dit", "C", "E"]),
    st.sampled_from([16, 24, 32, 48, 64, 96]),
    st.sampled_from([8, 12, 16, 32, 64]),
    st.sampled_from([[1], [1, 2], [1, 1, 3]]),
    st.sampled_from([[], [8], [4, 8]]),
    st.integers(8, 200),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_networks_of_another_width_can_be_built(
    make: str, channels: int, head: int, mult: list[int], attending: list[int], width: int
) -> None:
    key = "model.ladder" if len(make) == 1 else "model.architecture"
    overrides = {
        key: make,
        "model.channels": channels,
        "model.channels_per_head": head,
        "model.channel_mult": mult,
        "model.attn_resolutions": attending,
        "model.depth": 1,
    }
    config = resolve(None, overrides)
    try:
        build(config, 8)
    except UsageError:
        return
    assert narrowed(config, channels) == {key: overrides[key] for key in list(overrides)[1:3]}
    # levels that may attend today, where the deepest one surely does
    whole = [m for m in mult if channels * m >= head and channels * m % (channels * m // head) == 0]
    try:
        other = narrowed(config, width)
    except UsageError:
        assert width % 8
        for smaller in range(8, head + 1):  # there is none, if every level may attend
            sizes = {"model.channels": width, "model.channels_per_head": smaller}
            sizes |= {"model.attn_resolutions": [2, 4, 8]}
            assert not builds_and_runs(overrides | {"model.channel_mult": whole} | sizes)
        return
    assert other["model.channels"] == width
    assert 8 <= other["model.channels_per_head"] <= head
    assert builds_and_runs(overrides | other)


def builds_and_runs(overrides: dict[str, Any]) -> bool:
    facts = DataFacts(8, 3, ("a", "b"), 0.5)
    try:
        denoiser = build_denoiser(resolve(None, overrides), facts, SHAPES)
        x = torch.empty(1, 3, 8, 8, device="meta")
        denoiser(x, torch.ones([], device="meta"), torch.empty(1, 2, device="meta"))
    except (UsageError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("width", [-8, 0, 7])
def test_a_width_below_the_least_is_refused(width: int) -> None:
    with pytest.raises(UsageError, match=r"take a width of 8"):
        narrowed(resolve(), width)


def test_the_experiment_finds_a_planted_optimum_and_exponent() -> None:
    script = runpy.run_path(str(SCRIPT))
    curves = {}
    for width in (8, 16, 32):
        rates = [0.01 * 2.0**k for k in range(-6, 7)]
        least = 0.02 * (width / 16) ** -0.7
        curves[width] = {r: 0.1 * np.log(r / least) ** 2 - 1 for r in rates}
    best = {width: script["best_rate"](curve) for width, curve in curves.items()}
    assert best[16] == pytest.approx(0.02, rel=0.01)
    assert script["exponent"](best) == pytest.approx(-0.7, abs=0.01)
    loss = script["lost"](0.04, [curves[16]], [best[16]])
    assert loss == pytest.approx([0.1 * np.log(2) ** 2], abs=1e-4)
