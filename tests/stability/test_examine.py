"""What an examination says of planted faults, and that it leaves no trace."""

import json
import math
from dataclasses import replace

import probe_rig as rig
import pytest
import torch
from torch import Tensor, nn

from poise.data.batches import Batch
from poise.settings import Config
from poise.stability.examine import Examination, examine
from poise.training.loop import TrainState, update, weights_of

KINDS = [
    {},
    {"training__micro_batch": 2},
    {"model__architecture": "adm", "model__dropout": 0.3, "training__micro_batch": 4},
    {"model__architecture": "adm", "model__normalisation": "batch"},
]


def started(**kind: object) -> tuple[Config, TrainState]:
    config = rig.configured(**{"training__lr": 1e-3, **kind})
    state = rig.fresh(config, trained=True)
    stream = rig.stream(config)
    for _ in range(2):
        update(state, next(stream), config)
    return config, state


def batch_at(position: int = 0) -> Batch:
    return next(rig.stream(rig.configured(seed=position + 5)))


def examined(config: Config, state: TrainState, batch: Batch | None = None) -> Examination:
    record = update(state, batch or batch_at(), config)
    before = rig.everything(state)
    found = examine(state, config, record)
    rig.assert_untouched(before, state)
    json.dumps(found.to_json(), allow_nan=False)
    return found


def flipped(factor: float, state: TrainState) -> None:
    for w in state.denoiser.parameters():
        w.register_hook(lambda g: g * factor)


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_update_has_a_slope_of_one_and_no_fault(kind: dict[str, object]) -> None:
    config, state = started(**kind)
    found = examined(config, state)
    assert found.place is None and found.first_bad_layer is None and found.repeats
    assert not found.absurd_weights and not found.was_bad and found.as_recorded is None
    # batch norm ties the images of a micro-batch together, so that its copies are the same
    assert found.slope == pytest.approx(1, abs=0.03)
    assert rig.hooks_of(state) == 0 and state.denoiser.training


@pytest.mark.parametrize("factor", [-1.0, 30.0, 0.0])
@pytest.mark.parametrize("kind", KINDS[1:3])
def test_the_slope_tells_what_was_done_to_the_gradient(
    factor: float, kind: dict[str, object]
) -> None:
    config, state = started(**kind)
    flipped(factor, state)
    wanted = 1 / factor if factor else 0
    assert examined(config, state).slope == pytest.approx(wanted, rel=0.05, abs=1e-9)


def test_a_gradient_of_nothing_has_hardly_a_slope() -> None:
    config, state = started()
    for w in state.denoiser.parameters():
        w.register_hook(lambda g: g.norm() / g.numel() ** 0.5 * torch.randn(g.shape))
    found = examined(config, state)
    assert found.slope is None or abs(found.slope) < 0.5
    assert not found.repeats


def test_the_slope_of_a_bf16_network_is_measured_in_fp32() -> None:
    config, state = started()
    state.denoiser.dtype = torch.bfloat16
    found = examined(config, state)
    assert found.slope == pytest.approx(1, abs=0.05)
    assert state.denoiser.dtype is torch.bfloat16


@pytest.mark.parametrize("kind", KINDS[:3:2])
def test_the_first_layer_that_goes_bad_is_named(kind: dict[str, object]) -> None:
    config, state = started(**kind)
    layer = state.denoiser.network.get_submodule("dec.8x8_in1")
    layer.register_forward_hook(lambda m, i, o: o / 0)
    found = examined(config, state)
    assert found.first_bad_layer == "dec.8x8_in1" and found.place == "activation"
    assert not found.loss_finite and found.slope is None and not found.bad_weights
    assert found.as_recorded is True  # it was left out, so the weights stood still


def test_an_activation_that_overflows_between_layers_is_its_blocks() -> None:
    config, state = started(model__architecture="adm")
    block = state.denoiser.network.get_submodule("dec.8x8_in0")
    block.act = lambda x: x * math.inf
    assert examined(config, state).first_bad_layer == "dec.8x8_in0"


def test_a_damaged_weight_is_told_from_a_bad_activation() -> None:
    config, state = started()
    name = "network.dec.8x8_in0.conv_res1.weight"
    with torch.no_grad():
        weights_of(state.denoiser)[name][0, 0, 0, 0] = math.nan
    found = examined(config, state)
    assert found.bad_weights == (name,) and found.place == "weight"
    assert found.first_bad_layer == "dec.8x8_in0.conv_res1"


def test_one_absurd_weight_is_named() -> None:
    config, state = started(model__architecture="adm", training__lr=1e-9)
    name = "network.dec.8x8_in0.conv0.weight"
    with torch.no_grad():
        weights_of(state.denoiser)[name][0, 0, 0, 0] = 3e6
    found = examined(config, state)
    assert found.absurd_weights == (name,) and found.bad_weights == ()


def test_a_gradient_that_breaks_on_the_way_back_is_backward_alone() -> None:
    config, state = started()
    name = "network.dec.8x8_in0.conv_res1.weight"
    handle = weights_of(state.denoiser)[name].register_hook(lambda g: g * math.inf)
    found = examined(config, state)
    assert found.bad_gradients == (name,) and found.was_bad == (name,)
    assert found.place == "backward" and found.loss_finite and found.first_bad_layer is None

    record = update(state, batch_at(), config)
    handle.remove()  # it happened once
    found = examine(state, config, record)
    assert found.bad_gradients == () and found.was_bad == (name,) and found.place is None


def test_bad_pixels_are_the_input_and_bad_labels_do_not_stop_it() -> None:
    config, state = started()
    good = batch_at()
    images = good.images.float()
    images[2, 0, 1, 1] = math.nan
    found = examined(config, state, Batch(images, good.labels, good.indices))
    assert not found.input_finite and found.place == "input" and found.first_bad_layer is None
    assert found.ranked[0][0] == int(good.indices[2]) and found.ranked[0][1] == math.inf

    assert good.labels is not None
    found = examined(config, state, replace(good, labels=good.labels + 7))
    assert found.place is None


def test_the_image_that_is_off_comes_first() -> None:
    config, state = started(training__batch=16)
    good = next(rig.stream(rig.configured(training__batch=16)))
    images = good.images.clone()
    images[5] = torch.randint(0, 2, images[5].shape).mul(255).to(torch.uint8)
    found = examined(config, state, replace(good, images=images.float() * 100))
    assert len(found.ranked) == 16
    images = good.images.float()
    images[5] *= 200
    state.pixel_limit = None
    found = examined(config, state, replace(good, images=images))
    assert found.ranked[0][0] == int(good.indices[5]) and found.ranked[0][1] > 2


def test_a_layer_that_does_not_repeat_itself_is_seen() -> None:
    config, state = started()
    layer = state.denoiser.network.get_submodule("dec.8x8_in0.conv_res1")
    layer.register_forward_hook(lambda m, i, o: o + 1e-4 * torch.randn(o.shape))
    assert not examined(config, state).repeats


def test_a_network_that_fails_is_put_back() -> None:
    config, state = started()
    record = update(state, batch_at(), config)
    before, calls = rig.everything(state), []

    def fail(module: nn.Module, given: object, output: Tensor) -> None:
        calls.append(1)
        if len(calls) == 5:  # in the middle of the slope test
            raise RuntimeError("planted")

    state.denoiser.network.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="planted"):
        examine(state, config, record)
    rig.assert_untouched(before, state)
