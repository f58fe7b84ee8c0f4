"""Settings: nothing misspelt passes, and what is written can be read back."""

import math
import tomllib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from poise.artifacts import DataFacts
from poise.budget import fitting, smallest_fitting
from poise.build import build_denoiser
from poise.config import (
    Config,
    Preset,
    documented,
    from_toml,
    parse_overrides,
    preset_named,
    presets,
    resolve,
    to_toml,
)
from poise.errors import UsageError
from poise.runtime import Runtime

KEYS = [key for key, _, _ in documented(Config())]
META = Runtime(torch.device("meta"), torch.float32)


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("training.batsh", "training.batch"),
        ("trainig.lr", "training.lr"),
        ("model.chanels", "model.channels"),
        ("sampling.step", "sampling.steps"),
        ("sed", "seed"),
        ("batch", "batch"),  # of training or of sampling
    ],
)
def test_an_unknown_key_names_the_nearest(typo: str, meant: str) -> None:
    with pytest.raises(
        UsageError, match=rf"no setting '{typo}'. Did you mean .*{meant}'"
    ) as caught:
        resolve(None, {typo: 1})
    assert "poise config" in caught.value.remedy


def test_an_unknown_key_in_a_file_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'training\.batchh'. Did you mean 'training\.batch'"):
        from_toml("[training]\nbatchh = 3\n")
    with pytest.raises(UsageError, match="not valid TOML"):
        from_toml("[training\n")


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_has_a_sentence(key: str) -> None:
    sentence = next(s for k, _, s in documented(Config()) if k == key)
    assert sentence.endswith(".")
    assert len(sentence) > 15


def test_overrides_come_after_the_preset_and_the_preset_after_the_defaults() -> None:
    preset = preset_named("nano")
    assert resolve(preset).training.images == preset.settings["training.images"]
    config = resolve(preset, {"training.images": 7, "seed": 3})
    assert (config.training.images, config.seed) == (7, 3)
    assert config.model == resolve(preset).model
    assert config.sampling == Config().sampling


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("training.lr=0.005", 0.005),
        ("training.lr = 5e-3", 0.005),
        ("data.flip=on", "on"),
        ('data.flip="on"', "on"),
        ("model.channel_mult=[1, 2]", [1, 2]),
        ("data.flip=a=b", "a=b"),
        ("training.batch=1_000", 1000),
    ],
)
def test_overrides_are_toml_or_bare_words(text: str, value: object) -> None:
    assert list(parse_overrides([text]).values()) == [value]


@pytest.mark.parametrize("text", ["training.lr", "=3", "", " = 3"])
def test_what_is_no_setting_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not a setting"):
        parse_overrides([text])


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("training.lr", -1, r"training\.lr = -1 cannot be used"),
        ("training.batch", "many", r"training\.batch = 'many' cannot be used"),
        ("data.flip", "maybe", r"data\.flip = 'maybe'"),
        ("data.split", [0.5, 0.5, 0.5], "data.split"),
        ("data.split", [1.0, 0.0, 0.0], "data.split"),
        ("data.split", [1.2, -0.1, -0.1], "data.split"),
        ("training.micro_batch", 3, "does not divide"),
        ("training.ema_stds", [0.3], r"ema_stds holds 0\.3"),
        ("training.ema_stds", [], "ema_stds"),
        ("sampling.sigma_min", 90.0, "not below"),
        ("validation.sigma_max", 0.01, "not below"),
        ("diffusion.P_mean", math.nan, "P_mean"),
        ("training.lr", math.inf, "lr"),
        ("data.split", [math.nan, 0.5, 0.5], "data.split"),
    ],
)
def test_values_out_of_range_are_refused_with_their_name(
    key: str, value: object, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve(None, {key: value})


def test_settings_cannot_be_changed() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.training.lr = 1.0  # type: ignore[misc]


def positive(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, allow_nan=False)


overrides = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "data.resolution": st.none() | st.integers(4, 1024),
        "data.flip": st.sampled_from(["auto", "on", "off"]),
        "data.split": st.sampled_from([(0.8, 0.1, 0.1), (0.5, 0.5, 0.0), (1 / 3, 1 / 3, 1 / 3)]),
        "model.channel_mult": st.lists(st.integers(1, 9), min_size=1, max_size=5),
        "model.attn_resolutions": st.lists(st.integers(1, 64), max_size=3),
        "model.dropout": st.floats(0, 0.99),
        "diffusion.P_mean": st.floats(-1e6, 1e6),
        "training.lr": positive(1e-300, 1e10),
        "training.eps": positive(1e-300, 1),
        "training.micro_batch": st.none() | st.just(64),
        "training.ema_stds": st.lists(positive(1e-3, 0.288), min_size=1, max_size=4),
        "training.betas": st.tuples(st.floats(0, 1), st.floats(0, 1)),
        "cadence.validations": st.none() | st.integers(1, 99),
        "evaluation.features": st.sampled_from(["auto", "pixels", "random_conv"]),
    },
)


@hypothesis_settings(max_examples=100, deadline=None)
@given(overrides)
def test_settings_survive_being_written(chosen: dict[str, Any]) -> None:
    config = resolve(None, chosen)
    text = to_toml(config)
    assert from_toml(text) == config
    assert to_toml(from_toml(text)) == text
    assert set(tomllib.loads(text)) <= {key.split(".")[0] for key in KEYS}
    assert [line for line in text.splitlines() if line.startswith("# ")]


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_every_preset_builds_at_every_resolution_it_claims(preset: Preset) -> None:
    low, high = preset.resolutions
    sizes = [side for side in range(low, high + 1) if fitting(preset, side)]
    assert {low, high} <= set(sizes)
    config = resolve(preset)
    if not preset.automatic:
        sizes = [low, high]
    for i, side in enumerate(sizes):
        channels, labels = (3, ("a", "b")) if i % 2 else (1, ())
        with torch.device("meta"):
            denoiser = build_denoiser(config, DataFacts(side, channels, labels, 0.5), META)
            if side in (8, 32, 64):
                image = torch.empty(1, channels, side, side)
                assert denoiser(image, torch.ones(())).shape == image.shape


@pytest.mark.parametrize("side", [4, 8, 12, 16, 28, 32, 64])
def test_a_usual_resolution_has_a_preset(side: int) -> None:
    found = smallest_fitting(presets(), side)
    assert all(p.resolutions[0] <= side <= p.resolutions[1] for p in found)


def test_a_resolution_without_preset_is_refused_with_the_ranges() -> None:
    with pytest.raises(UsageError, match="No preset fits images of 999x999") as caught:
        smallest_fitting(presets(), 999)
    offered = [preset for preset in presets() if preset.automatic]
    assert all(preset.name in caught.value.expected for preset in offered)


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no preset 'nanoo'\. Did you mean 'nano'"):
        preset_named("nanoo")
