"""One update: accumulation, and what a non-finite batch must leave alone."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poise.config import resolve
from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss
from poise.models.edm2 import Block, Uncertainty, UNet
from poise.settings import Config
from poise.training import loop
from poise.training.checkpoint import load_checkpoint, save_checkpoint
from poise.training.loop import TrainState, steps, update, weights_of
from poise.training.meter import IntervalMeter

SETTINGS = {"training.batch": 8, "training.images": 80, "training.lr": 0.01, "training.warmup": 0}


def configured(**more: object) -> Config:
    return resolve(None, SETTINGS | {key.replace("__", "."): value for key, value in more.items()})


def fresh(config: Config, *, trained: bool = True) -> TrainState:
    torch.manual_seed(0)
    network = UNet(
        resolution=8,
        channels_in=1,
        num_classes=3,
        channels=16,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(4,),
        channels_per_head=16,
    )
    state = TrainState.fresh(Denoiser(network, Uncertainty(), sigma_data=0.5), config.training)
    if trained:  # at the start most gradients are 0, and nothing could be compared
        with torch.no_grad():
            for name, w in state.denoiser.named_parameters():
                if name.endswith("gain"):
                    w.fill_(0.5)
    return state


def batch(position: int, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(3, (count,), generator=generator)
    return Batch(images, labels, torch.arange(position, position + count))


def everything(state: TrainState) -> dict[str, Tensor]:
    """All tensors of a state, copied: weights, moments, averages."""
    found = {f"weights/{k}": v for k, v in state.denoiser.state_dict().items()}
    for name, w in weights_of(state.denoiser).items():
        found |= {f"{key}/{name}": v for key, v in state.optimizer.state.get(w, {}).items()}
    for std, averages in state.ema.profiles.items():
        found |= {f"{std}/{k}": v for k, v in averages.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    difference = sum(((one[k] - other[k]).double() ** 2).sum().item() for k in one)
    size = sum((one[k].double() ** 2).sum().item() for k in one)
    return float((difference / size) ** 0.5)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_accumulated_gradients_are_those_of_the_whole_batch(micro: int) -> None:
    whole, parts = configured(), configured(training__micro_batch=micro)
    one, other = fresh(whole), fresh(parts)
    first, second = update(one, batch(0), whole), update(other, batch(0), parts)
    gradients = [
        {k: w.grad for k, w in weights_of(s.denoiser).items() if w.grad is not None}
        for s in (one, other)
    ]
    assert len(gradients[0]) == len(weights_of(one.denoiser))
    assert distance(gradients[0], gradients[1]) < 1e-6
    torch.testing.assert_close(first.loss, second.loss, rtol=1e-5, atol=1e-6)
    assert first.grad_norm.item() == pytest.approx(second.grad_norm.item(), rel=1e-6)
    for key in ("exp_avg", "exp_avg_sq"):
        moments = [
            {k: s.optimizer.state[w][key] for k, w in weights_of(s.denoiser).items()}
            for s in (one, other)
        ]
        assert distance(moments[0], moments[1]) < 2e-6
    # Adam's first step is the sign of the gradient: where that is rounding, so is the sign
    assert distance(everything(one), everything(other)) < 1e-4


def nan_loss(result: Loss) -> Loss:
    return Loss(result.weighted * torch.nan, result.error * torch.nan)


def inf_for_one_image(result: Loss) -> Loss:
    factor = torch.ones_like(result.weighted)
    factor[-1] = torch.inf
    return Loss(result.weighted * factor, result.error * factor)


def finite_loss_but_nan_gradient(result: Loss) -> Loss:
    zero = (result.weighted - result.weighted.detach()).clamp(min=0)
    return Loss(result.weighted.detach() + zero.sqrt() * zero.sqrt().sqrt(), result.error)


@pytest.mark.parametrize("poison", [nan_loss, inf_for_one_image, finite_loss_but_nan_gradient])
@pytest.mark.parametrize("micro", [None, 4])
def test_a_batch_that_is_not_finite_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, poison: Callable[[Loss], Loss], micro: int | None
) -> None:
    config = configured(training__micro_batch=micro)
    state, meter = fresh(config), IntervalMeter(config.diffusion, torch.device("cpu"))
    meter.add(update(state, batch(0), config))
    before = everything(state)
    healthy = loop.denoising_loss
    with monkeypatch.context() as patch:
        patch.setattr(loop, "denoising_loss", lambda *args: poison(healthy(*args)))
        record = update(state, batch(100), config)
        meter.add(record)
    assert not bool(record.applied)
    after = everything(state)
    averages = {name for name in after if name.startswith("0.")}
    # the clock of the averages goes on, towards weights that did not change
    assert changed(before, after) <= averages
    assert all(after[name].isfinite().all() for name in averages)
    assert (state.images_seen, state.step) == (16, 2)  # the clock goes on

    meter.add(update(state, batch(16), config))
    moved = changed(before, everything(state))
    assert {f"weights/{name}" for name in weights_of(state.denoiser)} <= moved  # and so do weights
    skips = meter.skips()
    assert [(skip.images_seen, skip.indices) for skip in skips] == [(16, list(range(100, 108)))]
    row = meter.line()
    assert row["skipped"] == 1
    assert all(isinstance(row[key], float) for key in ("loss", "error", "grad_norm"))
    assert meter.skips() == []


def test_a_first_batch_that_is_not_finite_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured()
    state = fresh(config)
    weights = {k: v.clone() for k, v in state.denoiser.state_dict().items()}
    healthy = loop.denoising_loss
    with monkeypatch.context() as patch:
        patch.setattr(loop, "denoising_loss", lambda *args: nan_loss(healthy(*args)))
        update(state, batch(0), config)
    assert changed(weights, dict(state.denoiser.state_dict())) == set()
    for average in state.ema.profiles.values():  # after one update an average is the weights
        assert changed(average, weights_of(state.denoiser)) == set()
    for moments in state.optimizer.state.values():
        assert all((value == 0).all() for value in moments.values())


def test_a_skipped_update_leaves_no_trace_in_what_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adam's own count of updates must not advance, or the next step would be corrected amiss."""
    config = configured(training__decay="constant", training__ema_stds=(0.1,))
    one, other = fresh(config), fresh(config)
    update(one, batch(0), config)
    update(other, batch(0), config)
    healthy = loop.denoising_loss
    with monkeypatch.context() as patch:
        patch.setattr(loop, "denoising_loss", lambda *args: nan_loss(healthy(*args)))
        update(other, batch(8), config)
    other.images_seen = one.images_seen  # the same noise and the same averaging
    update(one, batch(16), config)
    update(other, batch(16), config)
    different = changed(everything(one), everything(other))
    assert {name for name in different if not name.startswith("0.")} == set()


def test_the_loop_ends_exactly_where_it_was_asked_to() -> None:
    config = configured(training__images=20)
    state = fresh(config)
    records = list(steps(state, (batch(i) for i in (0, 8, 16, 24)), config, until=20))
    assert [record.images_seen for record in records] == [8, 16, 20]
    assert [len(record.indices) for record in records] == [8, 8, 4]
    assert [record.step for record in records] == [1, 2, 3]


def test_the_loop_yields_after_the_update_and_measures_its_size() -> None:
    config = configured()
    state = fresh(config)
    before = {k: v.detach().clone() for k, v in weights_of(state.denoiser).items()}
    records = steps(state, (batch(i) for i in range(0, 80, 8)), config, until=80, measure_every=1)
    record = next(records)
    after = weights_of(state.denoiser)
    assert record.update_ratio is not None
    assert (record.images_seen, state.images_seen) == (8, 8)
    # normalisation follows, and the change is nearly orthogonal to the weights
    assert record.update_ratio.item() == pytest.approx(
        distance({k: v.detach() for k, v in after.items()}, before), rel=0.02
    )


def test_checkpoint_and_back_is_bitwise_and_so_is_what_follows(tmp_path: Path) -> None:
    config = configured()
    state, meter = fresh(config), IntervalMeter(config.diffusion, torch.device("cpu"))
    for i in range(3):
        meter.add(update(state, batch(8 * i), config, measure=True))
    path = tmp_path / "state.safetensors"
    save_checkpoint(path, state, meter.tensors(), {"seconds": 1.5})

    other = fresh(config, trained=False)
    assert changed(
        {k: v.clone() for k, v in state.denoiser.state_dict().items()},
        dict(other.denoiser.state_dict()),
    )
    extra, meta = load_checkpoint(path, other)
    resumed = IntervalMeter(config.diffusion, torch.device("cpu"))
    resumed.restore(extra)
    assert meta["seconds"] == 1.5
    assert (other.images_seen, other.step) == (24, 3)
    assert changed(everything(state), everything(other)) == set()
    for one, next_meter in ((state, meter), (other, resumed)):
        for i in range(3, 6):
            next_meter.add(update(one, batch(8 * i), config))
    assert changed(everything(state), everything(other)) == set()
    assert meter.line() == resumed.line()


def test_noise_depends_on_the_seed_and_the_position_alone() -> None:
    config, other = configured(), configured(seed=1)
    state = fresh(config)
    one, again, elsewhere = fresh(config), fresh(config), fresh(other)
    assert torch.equal(update(one, batch(0), config).sigma, update(again, batch(0), config).sigma)
    sigma = update(state, batch(0), config).sigma
    assert not torch.equal(sigma, update(elsewhere, batch(0), other).sigma)
    assert not torch.equal(sigma, update(state, batch(0), config).sigma)  # the next position


def test_dropout_depends_on_the_seed_and_the_position_alone() -> None:
    config = configured(model__dropout=0.5)

    def losses(noise: int) -> Tensor:
        state = fresh(config)
        for module in state.denoiser.modules():
            if isinstance(module, Block):
                module.shape = replace(module.shape, dropout=0.5)
        torch.manual_seed(noise)
        return update(state, batch(0), config).loss

    assert torch.equal(losses(1), losses(2))
    assert not torch.equal(losses(1), update(fresh(config), batch(0), config).loss)
