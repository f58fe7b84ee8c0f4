"""`denoiser_from_state_dict` against the reference's numbers and against the formulas."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import formulas
import pytest
import torch
from formulas import hashed, numbers
from torch import Tensor

from poise.diffusion.denoiser import Denoiser
from poise.errors import ArtifactError, UsageError
from poise.interop.nvlabs import denoiser_from_state_dict, inferred_config

FIXTURES = Path(__file__).parents[1] / "fixtures"
EDM2_NUMBERS = json.loads((FIXTURES / "edm2_tiny.json").read_text(encoding="utf-8"))
ADM_NUMBERS = json.loads((FIXTURES / "adm_tiny.json").read_text(encoding="utf-8"))["adm_tiny"]
TINY: dict[str, Any] = {
    "img_resolution": 16,
    "img_channels": 3,
    "label_dim": 10,
    "model_channels": 32,
    "channel_mult": [1, 2],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
EDM2_DEFAULTS: dict[str, Any] = {
    "sigma_data": 0.5,
    "logvar_channels": 128,
    "channel_mult_noise": None,
    "channel_mult_emb": None,
    "channels_per_head": 64,
    "resample_filter": [1, 1],
    "res_balance": 0.3,
    "attn_balance": 0.3,
    "label_balance": 0.5,
    "concat_balance": 0.5,
    "clip_act": 256,
}
ADM_DEFAULTS: dict[str, Any] = {"sigma_data": 0.5, "channel_mult_emb": 4, "channels_per_head": 64}
SHAPE = (4, 3, 16, 16)

EDM2_VARIANTS: dict[str, dict[str, Any]] = {
    "unconditional": {"label_dim": 0},
    "three levels, two blocks": {
        "channel_mult": [1, 2, 3],
        "num_blocks": 2,
        "attn_resolutions": [8, 4],
        "channels_per_head": 32,
    },
    "balances": {
        "res_balance": 0.45,
        "attn_balance": 0.2,
        "label_balance": 0.35,
        "concat_balance": 0.6,
        "sigma_data": 0.3,
    },
    "a tight clip": {"clip_act": 0.7},
    "no clip": {"clip_act": None},
    "wide embeddings": {"channel_mult_noise": 2, "channel_mult_emb": 3, "logvar_channels": 16},
    "long filter": {"resample_filter": [1, 3, 3, 1], "channel_mult": [1, 2, 2]},
    "lopsided filter": {"resample_filter": [1.0, 3.0]},
    "small heads everywhere": {"channels_per_head": 8, "attn_resolutions": [16, 8]},
    "uneven heads": {"model_channels": 48, "attn_resolutions": [16, 8], "channels_per_head": 40},
    "latents of eight channels": {"img_channels": 8, "channel_mult": [2, 1], "label_dim": 1},
    "one level": {"channel_mult": [2], "img_resolution": 6, "attn_resolutions": []},
    "deepest level without heads": {"model_channels": 16, "attn_resolutions": [16, 8]},
    "narrow level without heads": {"attn_resolutions": [16, 8]},
    "dropout is for training": {"dropout": 0.5},
}
ADM_VARIANTS: dict[str, dict[str, Any]] = {
    "unconditional": {"label_dim": 0},
    "three levels, two blocks": {
        "channel_mult": [1, 2, 4],
        "num_blocks": 2,
        "attn_resolutions": [8, 4],
        "channel_mult_emb": 2,
    },
    "latents, other sigma_data": {"img_channels": 4, "sigma_data": 0.8},
    "first level twice as wide": {"channel_mult": [2, 3]},
    "deepest level without heads": {"channel_mult": [1, 1], "attn_resolutions": [16, 8]},
    "dropout is for training": {"dropout": 0.5},
}


def filled(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """EDM2 weights by the fixture's rule."""
    weights = {}
    for i, name in enumerate(sorted(shapes)):
        value = numbers(i, *shapes[name])
        if name.endswith(("freqs", "phases")):
            value = value * 3
        elif name.endswith("_gain"):
            value = torch.full_like(value, 0.8 if name.endswith("out_gain") else 0.3)
        weights[name] = value.float()
    return weights


def filled_adm(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """ADM weights by the fixture's rule."""
    weights = {}
    for i, name in enumerate(sorted(shapes)):
        shape = shapes[name]
        value = numbers(i, *shape)
        if name.endswith("resample_filter"):
            value = torch.full(shape, 0.25)
        elif len(shape) >= 2:
            value = value / math.sqrt(value[0].numel())
        elif "norm" in name and name.endswith("weight"):
            value = 1 + 0.1 * value
        else:
            value = 0.1 * value
        weights[name] = value.float()
    return weights


def edm2(**changes: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    full = {**TINY, **EDM2_DEFAULTS, **changes}
    return filled(formulas.edm2_shapes(full)), full


def adm(**changes: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    full = {**TINY, **ADM_DEFAULTS, **changes}
    return filled_adm(formulas.adm_shapes(full)), {**full, "architecture": "adm"}


def tiny(architecture: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return adm() if architecture == "adm" else edm2()


def images(cfg: Mapping[str, Any], count: int = 4) -> tuple[Tensor, Tensor, Tensor | None]:
    shape = (count, cfg["img_channels"], cfg["img_resolution"], cfg["img_resolution"])
    sigma = torch.tensor([0.05, 0.5, 5.0, 50.0])[:count]
    x = 0.5 * numbers(1000, *shape) + sigma.double()[:, None, None, None] * numbers(1001, *shape)
    n = cfg["label_dim"]
    labels = torch.tensor([0, 3, 7, 9])[:count] % n if n else None
    return x.float(), sigma, labels


def fixture_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x, sigma, labels = images(TINY)
    assert labels is not None
    return x, sigma, labels


def training_inputs(s: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    clean = (0.5 * numbers(2000 + 3 * s, *SHAPE)).float()
    noise = numbers(2001 + 3 * s, *SHAPE).float()
    sigma = (numbers(2002 + 3 * s, 4).float() - 0.4).exp()
    labels = torch.tensor([(s + i) % 10 for i in range(4)])
    return clean, clean + sigma[:, None, None, None] * noise, sigma, labels


@torch.no_grad()
def check_forward(denoiser: Denoiser, wanted: Mapping[str, Any]) -> None:
    D = denoiser(*fixture_inputs()).double()
    rms = D.square().mean((1, 2, 3)).sqrt()
    assert D.sum((1, 2, 3)).tolist() == pytest.approx(wanted["D_sum_per_sample"], rel=1e-5)
    assert rms.tolist() == pytest.approx(wanted["D_rms_per_sample"], rel=1e-5)
    first = torch.tensor(wanted["D_first4_per_sample"], dtype=torch.float64)
    torch.testing.assert_close(D.flatten(1)[:, :4], first, rtol=1e-5, atol=1e-6)


def train(denoiser: Denoiser, lr: float) -> list[dict[str, float]]:
    """Five steps of the fixture: mean loss and norm of the gradient."""
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=lr, betas=(0.9, 0.99), eps=1e-8)
    found = []
    for s in range(5):
        clean, x, sigma, labels = training_inputs(s)
        denoiser.normalize_weights_()
        optimizer.zero_grad()
        weight = ((sigma**2 + 0.25) / (sigma * 0.5) ** 2)[:, None, None, None]
        u = denoiser.log_variance(sigma)[:, None, None, None]
        loss = weight / u.exp() * (denoiser(x, sigma, labels) - clean).square() + u
        (loss.sum() / 4).backward()
        grads = [w.grad for w in denoiser.parameters() if w.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads).item()
        optimizer.step()
        found.append({"loss_mean": loss.mean().item(), "global_grad_norm": norm})
    return found


def total(denoiser: Denoiser) -> float:
    return sum(w.detach().double().abs().sum().item() for w in denoiser.parameters())


def test_hash_rule() -> None:
    for key, wanted in EDM2_NUMBERS["hash_check"].items():
        assert hashed(int(key[2]), 4).tolist() == pytest.approx(wanted, abs=1e-15)


def test_edm2_equals_the_reference() -> None:
    weights, _ = edm2()
    assert sorted(weights) == EDM2_NUMBERS["keys_sorted"]
    denoiser = denoiser_from_state_dict(weights, TINY)
    check_forward(denoiser, EDM2_NUMBERS["forward_eval"])
    x, sigma, labels = fixture_inputs()
    with torch.no_grad():
        none, one = denoiser(x, sigma), denoiser(x, torch.tensor(0.5), labels)
        u = denoiser.log_variance(sigma)
        one_hot = torch.nn.functional.one_hot(labels, 10)
        assert torch.equal(denoiser(x, sigma, one_hot), denoiser(x, sigma, labels))
    for found, key in ((none, "forward_no_labels_sum"), (one, "forward_scalar_sigma_0.5_sum")):
        sums = found.double().sum((1, 2, 3)).tolist()
        assert sums == pytest.approx(EDM2_NUMBERS[key], rel=1e-5)
    assert u.tolist() == pytest.approx(EDM2_NUMBERS["forward_eval"]["logvar"], rel=1e-5)


def test_five_steps_of_edm2_equal_the_reference() -> None:
    denoiser = denoiser_from_state_dict(edm2()[0], TINY)
    wanted = EDM2_NUMBERS["train_5_steps"]
    for found, step in zip(train(denoiser, 0.01), wanted["steps"], strict=True):
        assert found == pytest.approx({key: step[key] for key in found}, rel=1e-4)
    assert total(denoiser) == pytest.approx(wanted["final_param_abs_sum"], rel=1e-6)


def test_adm_equals_the_reference() -> None:
    weights, _ = adm()
    shapes = [[name, list(weights[name].shape)] for name in sorted(weights)]
    assert shapes == ADM_NUMBERS["keys_sorted"]
    denoiser = denoiser_from_state_dict(weights, {**ADM_NUMBERS["config"], "architecture": "adm"})
    assert sum(w.numel() for w in denoiser.parameters()) == ADM_NUMBERS["params"]
    check_forward(denoiser, ADM_NUMBERS["forward"])
    assert denoiser.log_variance(torch.tensor([0.1, 2.0])).tolist() == [0, 0]


def test_five_steps_of_adm_equal_the_reference() -> None:
    config = {**ADM_NUMBERS["config"], "architecture": "adm", "dropout": 0}
    denoiser = denoiser_from_state_dict(adm()[0], config).train()
    found = train(denoiser, ADM_NUMBERS["lr"])
    for step, wanted in zip(found, ADM_NUMBERS["train_5_steps"], strict=True):
        assert step == pytest.approx(wanted, rel=1e-4)
    assert total(denoiser) == pytest.approx(ADM_NUMBERS["final_param_abs_sum"], rel=1e-6)


@torch.no_grad()
def check_against_formulas(
    oracle: Callable[..., Tensor], weights: dict[str, Tensor], cfg: dict[str, Any]
) -> Denoiser:
    denoiser = denoiser_from_state_dict(weights, cfg)
    x, sigma, labels = images(cfg, 2)
    rows = None if labels is None else torch.nn.functional.one_hot(labels, cfg["label_dim"])
    wanted = oracle(weights, cfg, x, sigma, rows)
    for given in (labels, rows):
        torch.testing.assert_close(denoiser(x, sigma, given).double(), wanted, rtol=1e-4, atol=1e-4)
    without = oracle(weights, cfg, x, sigma, None)
    torch.testing.assert_close(denoiser(x, sigma).double(), without, rtol=1e-4, atol=1e-4)
    assert wanted.sub(x).abs().max() > 1e-2
    return denoiser


@pytest.mark.parametrize("variant", EDM2_VARIANTS)
def test_other_configurations_of_edm2_follow_the_formulas(variant: str) -> None:
    weights, cfg = edm2(**EDM2_VARIANTS[variant])
    denoiser = check_against_formulas(formulas.edm2, weights, cfg)
    sigma = torch.tensor([0.02, 0.7, 30.0])
    u = denoiser.log_variance(sigma).double()
    torch.testing.assert_close(u, formulas.edm2_log_variance(weights, sigma), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", ADM_VARIANTS)
def test_other_configurations_of_adm_follow_the_formulas(variant: str) -> None:
    check_against_formulas(formulas.adm, *adm(**ADM_VARIANTS[variant]))


@pytest.mark.parametrize(
    "variant", ["unconditional", "three levels, two blocks", "wide embeddings", "one level"]
)
def test_shapes_tell_the_configuration(variant: str) -> None:
    weights, cfg = edm2(**EDM2_VARIANTS[variant])
    traceless = {"res_balance", "attn_balance", "label_balance", "concat_balance", "clip_act"}
    traceless |= {"sigma_data", "channels_per_head", "resample_filter"}
    found = {**inferred_config(weights), **{key: cfg[key] for key in traceless}}
    x, sigma, labels = images(cfg, 1)
    with torch.no_grad():
        D = denoiser_from_state_dict(weights, found)(x, sigma, labels)
        assert torch.equal(D, denoiser_from_state_dict(weights, cfg)(x, sigma, labels))


def test_dropout_acts_in_training_alone() -> None:
    weights, cfg = edm2(dropout=0.5)
    denoiser = denoiser_from_state_dict(weights, cfg)
    x, sigma, labels = fixture_inputs()
    with torch.no_grad():
        assert torch.equal(denoiser(x, sigma, labels), denoiser(x, sigma, labels))
        denoiser.train()
        assert not torch.equal(denoiser(x, sigma, labels), denoiser(x, sigma, labels))


@pytest.mark.parametrize("architecture", ["edm2", "adm"])
def test_the_result_is_our_own_in_fp32(architecture: str) -> None:
    weights, cfg = tiny(architecture)
    half = {name: value.half() for name, value in weights.items()}
    before = {name: value.clone() for name, value in half.items()}
    state = torch.random.get_rng_state()
    denoiser = denoiser_from_state_dict(half, cfg)
    assert torch.equal(state, torch.random.get_rng_state())
    for value in (*denoiser.parameters(), *denoiser.buffers()):
        assert (value.dtype, value.device.type) == (torch.float32, "cpu")
    assert all(w.requires_grad for w in denoiser.parameters())
    with torch.no_grad():
        for value in denoiser.state_dict().values():
            value.zero_()
    assert all(torch.equal(half[name], before[name]) for name in half)


def test_names_that_begin_with_model_mean_adm() -> None:
    weights, cfg = adm()
    del cfg["architecture"]
    x, sigma, labels = fixture_inputs()
    with torch.no_grad():
        D = denoiser_from_state_dict(weights, cfg)(x, sigma, labels)
        assert torch.equal(D, denoiser_from_state_dict(*adm())(x, sigma, labels))


@pytest.mark.parametrize("architecture", ["edm2", "adm"])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_chanels": 32}, "Did you mean 'model_channels'"),
        ({"channel_mult": [1, 0]}, "channel_mult"),
        ({"channel_mult": "1,2"}, "channel_mult"),
        ({"model_channels": {"a": 1}}, "model_channels holds a dict"),
        ({"dropout": 1.5}, "dropout = '1.5'"),
        ({"sigma_data": 0}, "sigma_data"),
        ({"sigma_data": float("nan")}, "sigma_data"),
        ({"img_resolution": 15}, "15 pixels"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"architecture": "dit"}, "architecture = 'dit'"),
    ],
    ids=str,
)
def test_a_configuration_that_cannot_be_is_refused(
    architecture: str, change: dict[str, Any], named: str
) -> None:
    weights, cfg = tiny(architecture)
    with pytest.raises(UsageError, match=named):
        denoiser_from_state_dict(weights, {**cfg, **change})


@pytest.mark.parametrize(
    ("architecture", "change", "named"),
    [
        ("edm2", {"resample_filter": [1, 2, 1]}, "resample_filter"),
        ("edm2", {"resample_filter": [1, -1]}, "resample_filter"),
        ("edm2", {"augment_dim": 0}, "augment_dim"),
        ("edm2", {"model_channels": 112}, "whole heads"),
        ("adm", {"augment_dim": 9}, "augment_dim"),
        ("adm", {"model_type": "SongUNet"}, "model_type"),
        ("adm", {"res_balance": 0.3}, "res_balance"),
        ("adm", {"resample_filter": [1, 1]}, "resample_filter"),
    ],
    ids=str,
)
def test_what_one_of_the_two_networks_lacks_is_refused(
    architecture: str, change: dict[str, Any], named: str
) -> None:
    weights, cfg = tiny(architecture)
    with pytest.raises(UsageError, match=named):
        denoiser_from_state_dict(weights, {**cfg, **change})


def test_a_configuration_needs_a_resolution() -> None:
    with pytest.raises(UsageError, match="img_resolution"):
        denoiser_from_state_dict(edm2()[0], {"img_channels": 3})


@pytest.mark.parametrize("key", ["use_fp16", "sigma_min", "sigma_max", "label_dropout"])
def test_keys_without_effect_are_accepted(key: str) -> None:
    weights, cfg = adm()
    denoiser_from_state_dict(weights, {**cfg, key: float("inf")})


@pytest.mark.parametrize("architecture", ["edm2", "adm"])
def test_every_tensor_is_used_or_refused(architecture: str) -> None:
    weights, cfg = tiny(architecture)
    names = sorted(weights)
    for name in names[::29] + [name for name in names if name.endswith("filter")][:2]:
        others = {key: value for key, value in weights.items() if key != name}
        if not name.endswith("resample_filter"):  # a constant, which may be left away
            with pytest.raises(ArtifactError, match="missing: " + name.replace(".", r"\.")):
                denoiser_from_state_dict(others, cfg)
        with pytest.raises(ArtifactError, match=r"no place for: .*\.extra"):
            denoiser_from_state_dict({**weights, f"{name}.extra": weights[name]}, cfg)
        if name.endswith("resample_filter"):
            with pytest.raises(ArtifactError, match="2x2 pixels: " + name):
                denoiser_from_state_dict({**weights, name: weights[name] * 1.1}, cfg)
        else:
            with pytest.raises(ArtifactError, match="other shapes .*: " + name):
                denoiser_from_state_dict({**weights, name: weights[name][None]}, cfg)


@pytest.mark.parametrize("value", [torch.zeros(3, 32, 3, 3, dtype=torch.int64), [1.0]])
def test_only_floating_point_tensors_are_weights(value: Any) -> None:
    weights, cfg = edm2()
    with pytest.raises(ArtifactError, match=r"unet\.out_conv\.weight"):
        denoiser_from_state_dict({**weights, "unet.out_conv.weight": value}, cfg)


@pytest.mark.parametrize(
    "change",
    [
        {"num_blocks": 10**9},
        {"model_channels": 2**16, "channel_mult": [2**10, 2**10]},
        {"label_dim": 2**24},
    ],
    ids=str,
)
def test_a_network_far_larger_than_its_weights_is_not_built(change: dict[str, Any]) -> None:
    weights, cfg = edm2()
    with pytest.raises(ArtifactError):
        denoiser_from_state_dict(weights, {**cfg, **change})


def test_augmentation_weights_are_refused_by_name() -> None:
    weights, cfg = adm()
    with pytest.raises(ArtifactError, match=r"model\.map_augment\.weight"):
        denoiser_from_state_dict({**weights, "model.map_augment.weight": torch.zeros(128, 9)}, cfg)
