"""What the ADM baseline promises beyond the reference numbers, which tests/interop holds."""

from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser, load_snapshot
from poise.config import resolve
from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss
from poise.errors import UsageError
from poise.models.adm import ADM, Block
from poise.models.layers import PixelNorm, norm_layer
from poise.runtime import Runtime
from poise.settings import Config
from poise.training import loop
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.loop import TrainState, update

FACTS = DataFacts(8, 2, ("a", "b", "c"), 0.5)
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 0.5, 2.0, 20.0])
LABELS = torch.tensor([0, 1, 2, 0])
Module = TypeVar("Module", bound=nn.Module)


def configured(**more: object) -> Config:
    small = {
        "model.architecture": "adm",
        "model.channels": 16,
        "model.channels_per_head": 16,
        "model.attn_resolutions": [4],
        "training.precision": "fp32",
    }
    return resolve(None, small | {key.replace("__", "."): value for key, value in more.items()})


def built(config: Config, facts: DataFacts = FACTS, *, dtype: torch.dtype = torch.float32) -> ADM:
    return network_of(build_denoiser(config, facts, Runtime(torch.device("cpu"), dtype)))


def network_of(denoiser: Denoiser) -> ADM:
    assert isinstance(denoiser.network, ADM)
    return denoiser.network


@torch.no_grad()
def awake(module: Module) -> Module:
    """The same with weights where it starts from zero."""
    generator = torch.Generator().manual_seed(1)
    for w in module.parameters():
        if w.ndim > 1 and not w.any():
            w.normal_(std=w[0].numel() ** -0.5, generator=generator)
    return module


@pytest.mark.parametrize(("channels", "wanted"), [(4, 295_902_724), (3, 295_899_267)])
def test_parameters_of_the_published_network(channels: int, wanted: int) -> None:
    config = resolve(
        None,
        {
            "model.architecture": "adm",
            "model.channels": 192,
            "model.channel_mult": [1, 2, 3, 4],
            "model.num_blocks": 3,
            "model.attn_resolutions": [32, 16, 8],
        },
    )
    facts = DataFacts(64, channels, tuple(str(i) for i in range(1000)), 0.5)
    denoiser = build_denoiser(config, facts, Runtime(torch.device("meta"), torch.float32))
    assert sum(w.numel() for w in denoiser.parameters()) == wanted
    with torch.device("meta"):
        by_default = ADM(resolution=64, channels_in=channels, num_classes=1000)
    assert sum(w.numel() for w in by_default.parameters()) == wanted


KINDS = {
    "group": nn.GroupNorm,
    "batch": nn.BatchNorm2d,
    "pixel": PixelNorm,
    "none": nn.Identity,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_the_normalisation_is_the_one_that_was_set(kind: str, dtype: torch.dtype) -> None:
    config = configured(model__normalisation=kind)
    denoiser = build_denoiser(config, FACTS, Runtime(torch.device("cpu"), dtype))
    network = awake(network_of(denoiser))
    found = {type(m) for m in network.modules() if isinstance(m, tuple(KINDS.values()))}
    assert found == {KINDS[kind]}
    D = denoiser(X, SIGMA, LABELS)
    assert D.dtype == torch.float32 and bool(D.isfinite().all())
    D.square().mean().backward()
    gradients = [w.grad for w in network.parameters()]
    assert all(g is not None and bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize(
    ("channels", "groups"),
    [(192, 32), (128, 32), (16, 4), (8, 2), (2, 1), (36, 9), (200, 25), (13, 1), (140, 28)],
)
def test_groups_divide_the_width_and_hold_four_channels_or_more(channels: int, groups: int) -> None:
    norm = norm_layer("group", channels)
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups
    y = norm(3 + 5 * torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0)))
    parts = y.reshape(2, groups, -1)
    torch.testing.assert_close(parts.mean(dim=2), torch.zeros(2, groups), rtol=0, atol=1e-5)
    torch.testing.assert_close(parts.square().mean(dim=2), torch.ones(2, groups))


def test_a_width_that_32_groups_do_not_divide_trains() -> None:
    config = configured(model__channels=36, model__channels_per_head=36)
    network = awake(built(config))
    network(X, SIGMA.log() / 4, LABELS).square().mean().backward()
    assert all(bool(w.grad.isfinite().all()) for w in network.parameters() if w.grad is not None)


def test_each_activation_makes_another_network() -> None:
    outputs = {}
    for name in ("auto", "silu", "relu", "leaky_relu", "elu"):
        with torch.no_grad():
            network = awake(built(configured(model__activation=name)))
            outputs[name] = network(X, SIGMA.log() / 4, LABELS)
    assert torch.equal(outputs.pop("auto"), outputs["silu"])
    distances = [
        (a - b).abs().max().item() for n, a in outputs.items() for m, b in outputs.items() if n < m
    ]
    assert min(distances) > 1e-3


@torch.no_grad()
def test_without_skips_the_decoder_sees_the_last_output_of_the_encoder_alone() -> None:
    depends = {}
    for skips in (True, False):
        network = awake(built(configured(model__skips=skips))).eval()
        last = list(network.enc.values())[-1]
        last.register_forward_hook(lambda _m, _i, y: torch.zeros_like(y))
        one, other = (network(x, SIGMA.log() / 4, LABELS) for x in (X, -X))
        depends[skips] = not torch.equal(one, other)
        widths = {n: b.conv0.in_channels for n, b in network.dec.items() if isinstance(b, Block)}
        assert widths["4x4_block0"] == (64 if skips else 32)
        assert widths["8x8_block1"] == (32 if skips else 16)
    assert depends == {True: True, False: False}


def test_an_untrained_denoiser_is_exactly_the_skip_whatever_the_settings() -> None:
    for more in ({}, {"model__normalisation": "none"}, {"model__init": "he"}):
        denoiser = build_denoiser(
            configured(**more), FACTS, Runtime(torch.device("cpu"), torch.float32)
        )
        with torch.no_grad():
            D = denoiser(X, SIGMA, LABELS)
            c = denoiser.formulation.coefficients(SIGMA[:, None, None, None])
        assert torch.equal(D, c.c_skip * X)


def test_settings_arrive() -> None:
    config = configured(
        model__dropout=0.25, model__resample_filter=[1, 3, 3, 1], model__channel_mult_emb=3
    )
    network = built(config)
    blocks = [m for m in network.modules() if isinstance(m, Block)]
    assert {(b.dropout, b.taps) for b in blocks} == {(0.25, (1, 3, 3, 1))}
    assert network.map_layer0.out_features == 48
    assert built(configured()).map_layer0.out_features == 64
    with pytest.raises(UsageError, match="whole heads"):
        built(configured(model__channels_per_head=64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_noise_level_is_told_in_fp32_whatever_the_arithmetic(dtype: torch.dtype) -> None:
    """In bf16 levels a percent apart would be one."""
    denoiser = build_denoiser(configured(), FACTS, Runtime(torch.device("cpu"), dtype))
    network, seen = network_of(denoiser), list[Tensor]()
    block = network.dec["8x8_block0"]
    block.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        denoiser(X, SIGMA, LABELS)
        exact = network._embedding(SIGMA.log() / 4, LABELS)
    assert exact.dtype == torch.float32
    assert torch.equal(seen[0], exact.to(dtype))


def statistics(denoiser: Denoiser) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in denoiser.named_buffers() if "running" in k}


def batch(position: int, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (count, 2, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 3, torch.arange(count))


def batch_normalised(**more: object) -> tuple[Config, TrainState]:
    given = {"model__normalisation": "batch", "training__batch": 8, "training__images": 80}
    config = configured(**(given | more))
    denoiser = build_denoiser(config, FACTS, Runtime(torch.device("cpu"), torch.float32))
    return config, TrainState.fresh(awake(denoiser), config.training)


# the running statistics of ADM, and those of a rung of EDM2 without learned scales
NETWORKS = [{}, {"model__architecture": "edm2", "model__ladder": "E"}]


@pytest.mark.parametrize("more", NETWORKS, ids=["adm", "edm2"])
@pytest.mark.parametrize("micro", [None, 4])
def test_an_update_that_is_not_finite_leaves_running_statistics_alone(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, object], micro: int | None
) -> None:
    config, state = batch_normalised(training__micro_batch=micro, **more)
    first = statistics(state.denoiser)
    assert first
    assert bool(update(state, batch(0), config).applied)
    before = statistics(state.denoiser)
    assert all(not torch.equal(first[k], before[k]) for k in first)

    healthy = loop.denoising_loss
    with monkeypatch.context() as patch:
        patch.setattr(
            loop,
            "denoising_loss",
            lambda *args: Loss(healthy(*args).weighted * torch.inf, healthy(*args).error),
        )
        assert not bool(update(state, batch(1), config).applied)
    after = statistics(state.denoiser)
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert bool(update(state, batch(2), config).applied)
    again = statistics(state.denoiser)
    assert all(not torch.equal(before[k], again[k]) for k in before)


@pytest.mark.parametrize("more", NETWORKS, ids=["adm", "edm2"])
def test_a_snapshot_keeps_running_statistics(tmp_path: Path, more: dict[str, object]) -> None:
    config, state = batch_normalised(**more)
    for i in range(3):
        update(state, batch(i), config)
    path = tmp_path / "1.safetensors"
    save_snapshot(path, state, config, FACTS)
    raw = load_snapshot(path, "raw").denoiser
    found = statistics(raw)
    assert found.keys() == statistics(state.denoiser).keys()
    assert all(torch.equal(v, found[k]) for k, v in statistics(state.denoiser).items())
    with torch.no_grad():
        wanted = state.denoiser.eval()(X, SIGMA, LABELS)
        torch.testing.assert_close(raw(X, SIGMA, LABELS), wanted, rtol=1e-5, atol=1e-5)
        assert (wanted - state.denoiser.train()(X, SIGMA, LABELS)).abs().max() > 1e-3
    averaged = load_snapshot(path, "ema_0.100").denoiser
    assert all(torch.equal(v, statistics(averaged)[k]) for k, v in found.items())

    save_checkpoint(tmp_path / "2.safetensors", state, {}, {})
    other = TrainState.fresh(
        build_denoiser(replace_seed(config), FACTS, Runtime(torch.device("cpu"), torch.float32)),
        config.training,
    )
    load_checkpoint(tmp_path / "2.safetensors", other)
    pairs = zip(
        state.denoiser.state_dict().values(), other.denoiser.state_dict().values(), strict=True
    )
    assert all(torch.equal(a, b) for a, b in pairs)


def replace_seed(config: Config) -> Config:
    return config.model_copy(update={"seed": 7})
