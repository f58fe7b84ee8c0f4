"""The choices that settings offer inside the networks: activation, filter, first weights."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.models.edm2 import Block, UNet
from poise.models.layers import (
    _ACTIVATIONS,
    activation,
    downsample,
    norm_layer,
    reinitialise_,
    upsample,
)
from poise.models.mp_dit import MPDiT
from poise.runtime import Runtime

CPU = Runtime(torch.device("cpu"), torch.float32)
FACTS = DataFacts(8, 3, tuple("abcdefgh"), 0.5)
FORMULAS = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x: np.where(x > 0, x, 0.2 * x),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def network(**settings: object) -> nn.Module:
    small = {
        "model.channels": 32,
        "model.channels_per_head": 32,
        "model.attn_resolutions": [4],
        "model.depth": 2,
    }
    given = {f"model.{key}": value for key, value in settings.items()}
    return build_denoiser(resolve(None, small | given), FACTS, CPU).network


@pytest.mark.parametrize("name", FORMULAS)
def test_activations_are_their_formulas_and_the_table_their_size(name: str) -> None:
    x = np.linspace(-12, 12, 200_001)
    wanted = FORMULAS[name](x)
    found = activation(name, preserve=False)(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-12)

    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    rms = math.sqrt(float((wanted**2 * density).sum()) * (x[1] - x[0]))
    assert _ACTIVATIONS[name][1] == pytest.approx(rms, abs=5e-4)  # to three digits
    normal = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    kept = activation(name, preserve=True)(normal)
    assert kept.square().mean().sqrt().item() == pytest.approx(1, abs=0.01)


def test_every_activation_of_the_settings_is_in_the_table() -> None:
    assert set(_ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("architecture", ["edm2", "adm", "dit", "mp_dit"])
def test_the_activation_that_was_set_is_used(architecture: str) -> None:
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    outputs = []
    for name in FORMULAS:
        made = network(architecture=architecture, activation=name)
        with torch.no_grad():
            for w in made.parameters():
                if w.ndim == 0 or not w.any():
                    w.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
            outputs.append(made(x, torch.zeros(2), torch.tensor([0, 1])))
    for i, one in enumerate(outputs):
        assert all((one - other).abs().max() > 1e-3 for other in outputs[:i])


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2), (1, 5, 10, 10, 5, 1)])
def test_filters_are_separable_and_leave_constants_alone(taps: tuple[float, ...]) -> None:
    x = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    line = torch.tensor(taps, dtype=torch.float32) / sum(taps)
    kernel = torch.outer(line, line).expand(3, 1, -1, -1)
    pad = (len(taps) - 1) // 2
    down = F.conv2d(x, kernel, stride=2, padding=pad, groups=3)
    torch.testing.assert_close(downsample(x, taps), down)
    up = upsample(x, taps)
    assert up.shape == (2, 3, 24, 24)
    # the transpose of the way down, times 4: <down(y), x> = <y, up(x)> / 4
    y = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close((downsample(y, taps) * x).sum(), (y * up).sum() / 4)
    inner = slice(len(taps), -len(taps) or None)
    ones = torch.ones(1, 2, 24, 24)
    assert downsample(ones, taps)[..., 4:-4, 4:-4] == pytest.approx(1, abs=1e-6)
    if len(taps) > 2 or taps == (1, 1):  # an uneven pair favours every other pixel on the way up
        assert upsample(ones, taps)[..., inner, inner] == pytest.approx(1, abs=1e-6)


def test_a_filter_is_read_from_the_settings() -> None:
    made = network(resample_filter=[1, 3, 3, 1])
    blocks = [m for m in made.modules() if isinstance(m, Block)]
    assert {b.shape.resample_filter for b in blocks} == {(1, 3, 3, 1)}
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    answers = []
    for each in (made, network()):
        each.get_parameter("out_gain").data.fill_(1.0)
        answers.append(each(x, torch.zeros(1)))
    assert (answers[0] - answers[1]).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["group", "batch", "pixel", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_are_what_they_are_called(kind: str, dtype: torch.dtype) -> None:
    x = torch.randn(6, 8, 5, 5, generator=torch.Generator().manual_seed(0)) * 3 + 1
    y = norm_layer(kind, 8, affine=False)(x.to(dtype)).float()
    if kind == "none":
        assert torch.equal(y, x.to(dtype).float())
        return
    dims = {"group": (2, 3, 4), "batch": (0, 2, 3), "pixel": (1,)}[kind]
    shaped = y.reshape(6, 2, 4, 5, 5) if kind == "group" else y
    ms = shaped.square().mean(dims)
    torch.testing.assert_close(ms, torch.ones_like(ms), rtol=0.01, atol=0.01)
    if kind != "pixel":
        mean = shaped.mean(dims)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=0.01)


def variance(kind: str, w: Tensor) -> float:
    fan_in, fan_out = w[0].numel(), w.numel() // w.shape[1]
    return {"xavier": 2 / (fan_in + fan_out), "he": 2 / fan_in, "unit": 1 / fan_in}[kind]


@pytest.mark.parametrize(
    "which",
    [{"ladder": "C"}, {"ladder": "A"}, {"architecture": "adm"}, {"architecture": "dit"}],
    ids=["C", "A", "adm", "dit"],
)
@pytest.mark.parametrize("kind", ["xavier", "he", "unit"])
def test_first_weights_have_the_variance_that_was_asked(which: dict[str, str], kind: str) -> None:
    before = dict(network(**which).named_parameters())
    after = dict(network(**which, init=kind).named_parameters())
    assert before.keys() == after.keys()
    drawn = 0
    for name, w in after.items():
        if w.ndim < 2 or not before[name].any():  # biases, norms, and what starts at zero
            assert torch.equal(w, before[name]), name
            continue
        drawn += 1
        ratio = w.square().mean().item() / variance(kind, w)
        assert ratio == pytest.approx(1, abs=6 * (2 / w.numel()) ** 0.5), name
    assert drawn > 8


def test_first_weights_follow_from_the_seed() -> None:
    one, other = network(ladder="C", init="he"), network(ladder="C", init="he")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_kernel_counts_its_area_on_both_sides() -> None:
    conv = nn.Conv2d(64, 32, 3)
    reinitialise_(conv, "xavier")
    assert conv.weight.var().item() == pytest.approx(2 / (9 * 64 + 9 * 32), rel=0.05)
    reinitialise_(conv, "he")
    assert conv.weight.var().item() == pytest.approx(2 / (9 * 64), rel=0.05)


BALANCES = {"res_balance": 0.21, "attn_balance": 0.22, "label_balance": 0.23}


def test_balances_clip_and_widths_arrive() -> None:
    made = network(
        **BALANCES,
        concat_balance=0.24,
        clip_act=25.0,
        channel_mult_noise=3,
        channel_mult_emb=5,
        dropout=0.26,
    )
    assert isinstance(made, UNet)
    shape = made.shape
    assert (shape.res_balance, shape.attn_balance) == (0.21, 0.22)
    assert (made.label_balance, made.concat_balance) == (0.23, 0.24)
    assert (shape.clip_act, shape.dropout) == (25.0, 0.26)
    assert made.get_parameter("emb_noise.weight").shape == (160, 96)
    wider = network(architecture="mp_dit", **BALANCES, clip_act=25.0)
    assert isinstance(wider, MPDiT) and wider.label_balance == 0.23


@torch.no_grad()
@pytest.mark.parametrize("letter", ["C", "G"])
def test_without_skips_the_decoder_of_edm2_is_narrower(letter: str) -> None:
    depends = {}
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for skips in (True, False):
        made = network(ladder=letter, skips=skips)
        for w in made.parameters():
            if w.ndim == 0 or not w.any():
                w.fill_(0.1)
        assert isinstance(made, UNet)
        list(made.enc.values())[-1].register_forward_hook(lambda _m, _i, y: torch.zeros_like(y))
        depends[skips] = not torch.equal(made(x, torch.zeros(1)), made(-x, torch.zeros(1)))
    assert depends == {True: True, False: False}


@pytest.mark.parametrize("letter", ["C", "E", "G"])
@pytest.mark.parametrize("kind", ["group", "batch", "pixel", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_norm_fits_every_rung(letter: str, kind: str, dtype: torch.dtype) -> None:
    config = resolve(
        None,
        {
            "model.channels": 16,
            "model.channels_per_head": 16,
            "model.attn_resolutions": [4],
            "model.ladder": letter,
            "model.normalisation": kind,
        },
    )
    denoiser = build_denoiser(config, FACTS, Runtime(torch.device("cpu"), dtype))
    with torch.no_grad():
        for w in denoiser.parameters():
            if w.ndim == 0 or not w.any():
                w.fill_(0.1)
    made = denoiser.network
    found = {type(m) for m in made.modules()}
    assert (nn.GroupNorm in found) == (kind == "group")
    assert (nn.BatchNorm2d in found) == (kind == "batch")
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    D = denoiser(x, torch.tensor([0.1, 1.0, 5.0, 50.0]), torch.arange(4))
    D.square().mean().backward()
    assert bool(D.isfinite().all())
    grads = [w.grad for w in made.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)
