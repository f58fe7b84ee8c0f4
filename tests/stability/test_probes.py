"""A probe finds what was planted, and leaves no trace."""

import json
import math

import numpy as np
import probe_rig as rig
import pytest
import torch
from torch import Tensor, nn

from poise.data.batches import Batch
from poise.data.splits import Splits
from poise.errors import UsageError
from poise.settings import Config
from poise.stability.noise_scale import from_squares, noise_scale
from poise.stability.probes import Probe, make_kit, probe
from poise.stability.spread import spread
from poise.training.loop import TrainState, gradients_again, update

KINDS = [
    {},
    {"model__architecture": "adm", "model__dropout": 0.3},
    {"model__architecture": "adm", "model__normalisation": "batch"},
    {"model__architecture": "dit", "model__depth": 2},
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_leaves_the_state_as_it_is_and_repeats_itself(kind: dict[str, object]) -> None:
    config = rig.configured(**kind)
    state = rig.fresh(config)
    stream = rig.stream(config)
    kit = rig.kit_of(config, state)
    for _ in range(2):
        update(state, next(stream), config)
    state.denoiser.train()
    state.denoiser.network.eval()  # a mixture of modes is kept
    before = rig.everything(state)
    one, other = probe(state, kit), probe(state, rig.kit_of(config, state))
    rig.assert_untouched(before, state)
    assert state.denoiser.training and not state.denoiser.network.training
    assert rig.hooks_of(state) == 0
    assert one == other
    assert one.repeat == 0 and one.exact
    assert one.blocks.keys() and all(rms > 0 for rms in one.blocks.values())
    assert bool(one.rows) == (kind.get("model__architecture") != "adm")
    assert bool(one.attention) == ("model__architecture" in kind)
    assert all(abs(rms - 1) < 2e-4 for rms in one.rows.values())


def test_a_network_that_fails_leaves_no_trace_either() -> None:
    config = rig.configured(model__architecture="adm", model__normalisation="batch")
    state = rig.fresh(config)
    kit, before = rig.kit_of(config, state), rig.everything(state)

    def fail(*args: object) -> None:
        torch.rand(3)
        raise RuntimeError("planted")

    handle = list(state.denoiser.network.dec.values())[-1].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        probe(state, kit)
    handle.remove()
    rig.assert_untouched(before, state)
    assert state.denoiser.training and rig.hooks_of(state) == 0


def test_a_probe_survives_json_with_numbers_that_are_not_finite() -> None:
    config = rig.configured()
    state = rig.fresh(config, trained=True)
    with torch.no_grad():
        next(iter(state.ema.profiles[0.1].values())).view(-1)[0] = math.nan
        state.denoiser.network.out_conv.weight[0, 0, 0, 0] = math.nan
    found = probe(state, rig.kit_of(config, state))
    row = json.loads(json.dumps(found.to_json(), allow_nan=False))
    again = Probe.from_json(row)
    assert again.to_json() == found.to_json()
    assert all(math.isnan(e) for e in again.val + again.ema["ema_0.100"])
    assert again.repeat == 0  # the same nan twice is no difference


def test_errors_are_those_of_the_formula() -> None:
    config = rig.configured()
    state = rig.fresh(config)  # gains are zero: the output is c_skip x
    kit = rig.kit_of(config, state)
    found = probe(state, kit)
    s, sd = kit.val.sigma[:, None, None, None], 0.5
    D = sd**2 / (s**2 + sd**2) * kit.val.x
    error = (s**2 + sd**2) / (s * sd) ** 2 * (D - kit.val.clean) ** 2
    torch.testing.assert_close(torch.tensor(found.val), error.mean((1, 2, 3)))
    assert found.ema["ema_0.050"] == pytest.approx(found.val)
    assert set(kit.val.sigma.tolist()) == set(found.levels) and len(set(found.levels)) == 4
    assert kit.shuffled is not None and kit.val.labels is not None
    assert bool((kit.shuffled != kit.val.labels).all())


@pytest.mark.parametrize("kind", KINDS[:2])
def test_dead_units_are_counted_where_they_were_planted(kind: dict[str, object]) -> None:
    config = rig.configured(**kind)
    state = rig.fresh(config, trained=True)
    kit = rig.kit_of(config, state)
    name, layer = next(
        (name, module)
        for name, module in state.denoiser.network.named_modules()
        if name.endswith(("conv_res0", "conv0"))
    )
    assert set(probe(state, kit).dead.values()) == {0.0}

    def kill(module: nn.Module, given: object, output: Tensor) -> Tensor:
        alive = torch.ones(output.shape[1])
        alive[:12] = 0
        return output * alive[:, None, None]

    layer.register_forward_hook(kill)
    dead = probe(state, kit).dead
    assert {n for n, share in dead.items() if share} == {name}
    assert dead[name] == 12 / 16


def test_units_killed_by_their_activation_show_at_the_next_layer() -> None:
    config = rig.configured(model__architecture="adm", model__activation="relu")
    state = rig.fresh(config, trained=True)
    kit = rig.kit_of(config, state)
    block = state.denoiser.network.enc["8x8_block0"]
    with torch.no_grad():
        block.norm0.bias[:8] = -100
    name = "enc.8x8_block0.conv0"
    found = probe(state, kit).dead
    assert found[f"{name} (input)"] == 0.5 and found[name] == 0


def test_classes_that_are_not_heard_have_no_effect() -> None:
    config = rig.configured()
    state = rig.fresh(config, trained=True)
    kit = rig.kit_of(config, state)
    clear = probe(state, kit).condition
    state.denoiser.network.emb_label.register_forward_hook(lambda m, i, o: o * 0)
    assert clear is not None and clear > 0.01
    assert probe(state, kit).condition == pytest.approx(0, abs=1e-6)


def test_a_layer_that_gives_other_numbers_each_time_is_seen() -> None:
    config = rig.configured()
    state = rig.fresh(config, trained=True)
    kit = rig.kit_of(config, state)
    block = state.denoiser.network.enc["8x8_block0"]
    block.register_forward_hook(lambda m, i, o: o + 1e-5 * torch.randn(o.shape))
    before = torch.random.get_rng_state()
    assert 0 < probe(state, kit).repeat < 1e-2
    assert torch.equal(before, torch.random.get_rng_state())


def test_without_classes_there_is_no_condition_and_without_images_no_kit() -> None:
    config = rig.configured()
    state = rig.fresh(config)
    one = make_kit(rig.pictures(), rig.splits(), state.denoiser, config, images=1)
    assert len(one.val.x) == 1
    none = Splits(*(np.zeros(0, np.int64),) * 3, ())
    with pytest.raises(UsageError, match="at least one of each"):
        make_kit(rig.pictures(), none, state.denoiser, config)


def test_the_noise_scale_of_gaussian_gradients_is_exact_in_expectation() -> None:
    rng = np.random.default_rng(0)
    G, size, parts, runs = rng.normal(size=50), 4, 8, 400
    noise, gradient = 0.0, 0.0
    for _ in range(runs):
        small = G + 2 * rng.normal(size=(parts, 50)) / math.sqrt(size)
        large = float((small.mean(0) ** 2).sum())
        found = from_squares((small**2).sum(1).tolist(), large, size)
        noise, gradient = noise + found.noise / runs, gradient + found.gradient / runs
    assert noise == pytest.approx(4 * 50, rel=0.02)
    assert gradient == pytest.approx(float((G**2).sum()), rel=0.02)
    assert from_squares([1.0, 1.0], 0.4, 8).batch == math.inf  # the mean drowns
    with pytest.raises(UsageError):
        from_squares([1.0], 1.0, 8)


def test_equal_gradients_have_no_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    config = rig.configured()
    state = rig.fresh(config, trained=True)
    batch = next(rig.stream(config))
    fixed = gradients_again(state, batch, config, 0)

    def always(s: TrainState, b: Batch, c: Config, seen: int) -> object:
        return fixed

    before = rig.everything(state)
    real = noise_scale(state, config, lambda k: batch, parts=3)
    rig.assert_untouched(before, state)
    assert real.noise > 0 and (real.batch > 0)
    monkeypatch.setattr("poise.stability.noise_scale.gradients_again", always)
    found = noise_scale(state, config, lambda k: batch, parts=3)
    length = sum(float(g.double().square().sum()) for g in fixed[2] if g is not None)
    assert found.noise == pytest.approx(0, abs=1e-9 * length)
    assert found.gradient == pytest.approx(length)


def test_the_spread_of_images() -> None:
    images = np.zeros((3, 4, 4, 1), np.uint8)
    assert spread(images) == 0
    images[2] = 30
    assert spread(images) == pytest.approx(20)  # pairs: 0, 30, 30
    assert math.isnan(spread(images[:1]))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2000, 8, 8, 3), dtype=np.uint8)
    assert spread(noise) == pytest.approx(math.sqrt(256**2 / 6), rel=0.02)
