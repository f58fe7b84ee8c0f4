"""One update: accumulation, and what a non-finite batch must leave alone."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts, load_tensors, save_tensors
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss
from poise.errors import ArtifactError
from poise.models.edm2 import Block, Uncertainty, UNet
from poise.runtime import Runtime
from poise.settings import Config
from poise.training import loop
from poise.training.checkpoint import IncompleteCheckpoint, load_checkpoint, save_checkpoint
from poise.training.gate import Gate
from poise.training.loop import (
    REASONS,
    StepRecord,
    TrainState,
    gradients_again,
    steps,
    update,
    weights_of,
)
from poise.training.meter import IntervalMeter
from poise.training.vitals import fingerprint, gradient_norms

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


def gated(config: Config, *, usual_error: float = 0.0, usual_norm: float = 0.0) -> TrainState:
    """A state whose gate has seen 100 updates with these logarithms."""
    state = fresh(config)
    gate = Gate(config.diffusion, torch.device("cpu"))
    tensors = gate.tensors()
    tensors["values"][0, :100], tensors["values"][1, :100] = usual_error, usual_norm
    tensors["taken"][:] = 100
    gate.restore(tensors)
    state.gate = gate
    return state


def batch_normalised(config: Config, gate: Gate | None = None) -> TrainState:
    """A state whose network has running statistics."""
    small = {"channels": 16, "channels_per_head": 16, "dropout": config.model.dropout}
    model = config.model.model_copy(
        update=small | {"architecture": "adm", "normalisation": "batch"}
    )
    torch.manual_seed(0)
    denoiser = build_denoiser(
        config.model_copy(update={"model": model}),
        DataFacts(8, 1, ("a", "b", "c"), 0.5),
        Runtime(torch.device("cpu"), torch.float32),
    )
    with torch.no_grad():  # what begins at zero would hide the rest
        for w in denoiser.parameters():
            w.add_(torch.randn(w.shape) * 0.02)
    return TrainState.fresh(denoiser, config.training, gate)


def held(record: StepRecord) -> set[str]:
    return {name for name, flag in zip(REASONS, record.reasons.tolist(), strict=True) if flag}


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(
    ("usual", "reason"),
    [({"usual_error": -9.0}, "error-spike"), ({"usual_norm": -9.0}, "gradient-spike")],
)
def test_an_update_that_the_gate_stops_changes_no_bit(
    usual: dict[str, float], reason: str, normalised: bool
) -> None:
    config = configured()
    state = gated(config, **({"usual_norm": 4.0} | usual))
    if normalised:
        state = batch_normalised(config, state.gate)
    before = everything(state)
    record = update(state, batch(0), config)
    assert held(record) == {reason}
    assert not bool(record.applied)
    after = everything(state)
    moments = {name: v for name, v in after.items() if name not in before}  # Adam's, from zero
    assert all((value == 0).all() for value in moments.values())
    averages = {name for name in before if name.startswith("0.")}
    assert changed(before, {name: after[name] for name in before}) <= averages
    assert record.vitals is not None
    assert torch.equal(record.vitals.before, record.vitals.after)

    state.gate = None
    assert bool(update(state, batch(0), config).applied)
    assert {f"weights/{name}" for name in weights_of(state.denoiser)} <= changed(
        after, everything(state)
    )


def test_a_quiet_gate_changes_no_bit_of_what_is_trained() -> None:
    config = configured()
    one, other = fresh(config), fresh(config)
    other.gate = Gate(config.diffusion, torch.device("cpu"))
    for i in range(3):
        update(one, batch(8 * i), config)
        assert held(update(other, batch(8 * i), config)) == set()
    assert changed(everything(one), everything(other)) == set()
    assert other.gate.tensors()["taken"].tolist() == [3, 3]


def test_bad_inputs_are_not_trained_on_and_named() -> None:
    config = configured(training__label_dropout=0.1)
    given = batch(0)
    assert given.labels is not None
    labels, pixels = given.labels.clone(), given.images.float()
    labels[2], pixels[5, 0, 3, 3] = 7, 400.0
    for bad, wanted in (
        (replace(given, labels=labels), {2: "label"}),
        (replace(given, images=pixels), {5: "range"}),
        (replace(given, images=pixels, labels=labels), {2: "label", 5: "range"}),
        (replace(given, images=torch.where(pixels > 255, torch.nan, pixels)), {5: "non-finite"}),
    ):
        state = gated(config, usual_norm=4.0)
        before = everything(state)
        record = update(state, bad, config)
        assert "input" in held(record)
        assert not {"error-spike", "gradient-spike"} & held(record)
        assert record.batch is bad
        assert {i: r for i, r in enumerate(record.inputs.reasons) if r} == wanted
        assert changed(before, {k: v for k, v in everything(state).items() if k in before}) <= {
            k for k in before if k.startswith("0.")
        }
    state = fresh(config)
    state.pixel_limit = None  # latents have no range
    assert held(update(state, replace(given, images=pixels), config)) == set()


def test_reasons_tell_loss_from_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    config, healthy = configured(), loop.denoising_loss
    for poison, wanted in (
        (nan_loss, {"loss", "gradient"}),
        (finite_loss_but_nan_gradient, {"gradient"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "denoising_loss", lambda *args, p=poison: p(healthy(*args)))
            assert held(update(fresh(config), batch(0), config)) == wanted


def test_vitals_are_those_of_every_tensor() -> None:
    config = configured()
    state = fresh(config)
    update(state, batch(0), config)
    weights = weights_of(state.denoiser)
    before = {k: v.detach().clone() for k, v in weights.items()}
    moments = [state.optimizer.state[w]["exp_avg_sq"].sum().item() for w in weights.values()]
    records = [update(state, batch(8), config)]
    after = {k: v.detach().clone() for k, v in weights.items()}
    vitals = records[0].vitals
    assert vitals is not None
    assert torch.equal(vitals.before, fingerprint(before.values()))
    assert torch.equal(vitals.after, fingerprint(after.values()))
    assert (vitals.before != vitals.after).all()
    assert vitals.moments.tolist() == pytest.approx(moments)
    grads = [w.grad for w in weights.values() if w.grad is not None]
    assert vitals.grad_norms.tolist() == pytest.approx([g.norm().item() for g in grads], rel=1e-5)
    assert torch.equal(records[0].grad_norm, torch.nn.utils.get_total_norm(grads))  # bit by bit

    averages = [fingerprint(a.values()) for a in state.ema.profiles.values()]
    records += [update(state, batch(8 * i), config) for i in range(2, 5)]
    seen = [r.vitals.ema for r in records if r.vitals is not None]
    assert [ema is not None for ema in seen] == [False, False, True, False]  # updates 2 to 5
    assert seen[2] is not None
    assert seen[2].shape == (len(averages), len(weights))
    assert not torch.equal(seen[2], torch.stack(averages))  # two updates later


def test_a_weight_without_gradient_has_norm_zero_and_its_fingerprint_stands() -> None:
    w = [torch.randn(3, 4, requires_grad=True) for _ in range(3)]
    w[0].grad, w[2].grad = torch.ones(3, 4), 2 * torch.ones(3, 4)
    total, norms = gradient_norms(w)
    assert norms.tolist() == pytest.approx([12**0.5, 0, 2 * 12**0.5])
    assert total.item() == pytest.approx(60**0.5)
    first = fingerprint(w)
    assert torch.equal(first, fingerprint([x.clone() for x in w]))
    with torch.no_grad():
        w[1].view(-1).view(torch.int32)[5] ^= 1 << 20
    assert (fingerprint(w) != first).tolist() == [False, True, False]


@pytest.mark.parametrize(("policy", "watched"), [("off", False), ("warn", True)])
def test_policy_off_measures_nothing_and_trains_the_same(policy: str, watched: bool) -> None:
    config, other = configured(), configured(stability__policy=policy)
    one, two = fresh(config), fresh(other)
    update(one, batch(0), config)
    assert (update(two, batch(0), other).vitals is not None) == watched
    assert changed(everything(one), everything(two)) == set()


@pytest.mark.parametrize("more", [{}, {"training__micro_batch": 4, "model__dropout": 0.5}])
def test_gradients_again_are_the_same_bits_and_leave_the_state_alone(
    more: dict[str, float],
) -> None:
    config = configured(**more)
    state = batch_normalised(config)
    update(state, batch(0), config)
    before, grads = everything(state), [w.grad for w in weights_of(state.denoiser).values()]
    loss, error, first = gradients_again(state, batch(8), config, 8)
    assert changed(before, everything(state)) == set()
    kept = [w.grad for w in weights_of(state.denoiser).values()]
    assert all(a is b for a, b in zip(kept, grads, strict=True))
    assert (state.images_seen, state.step) == (8, 1)
    record = update(state, batch(8), config)
    assert torch.equal(record.loss, loss)
    assert torch.equal(record.error, error)
    for w, grad in zip(weights_of(state.denoiser).values(), first, strict=True):
        assert (w.grad is None and grad is None) or torch.equal(w.grad, grad)


def test_the_rate_is_told_as_planned_and_as_used() -> None:
    config = configured(training__warmup=0.5)
    state = fresh(config)
    state.lr_scale = 0.25
    record = update(state, batch(0), config)
    assert record.schedule_lr == loop.learning_rate(config.training, 0)
    assert record.lr == record.used_lr == 0.25 * record.schedule_lr

    def tamper(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 20

    state.optimizer.register_step_pre_hook(tamper)
    record = update(state, batch(8), config)
    assert record.used_lr == pytest.approx(20 * record.lr)


def test_a_micro_batch_of_the_state_comes_before_the_setting() -> None:
    config, seen = configured(training__micro_batch=8), []

    def counted(denoiser: Denoiser, noised: object, *rest: object) -> Loss:
        seen.append(len(noised.clean))  # type: ignore[attr-defined]
        return loop.denoising_loss(denoiser, noised, *rest)  # type: ignore[arg-type]

    one, other = fresh(config), fresh(config)
    other.loss, other.micro_batch = counted, 3
    update(one, batch(0), config)
    update(other, batch(0), config)
    assert seen == [3, 3, 2]
    whole, parts = (
        {k: w.grad for k, w in weights_of(s.denoiser).items() if w.grad is not None}
        for s in (one, other)
    )
    assert distance(whole, parts) < 1e-6


def test_a_pass_that_fails_midway_leaves_no_trace() -> None:
    """Out of memory: the second piece fails, and the update is made anew in smaller ones."""
    config = configured(training__micro_batch=4)
    state, calls = batch_normalised(config), []

    def failing(denoiser: Denoiser, *rest: object) -> Loss:
        calls.append(0)
        if len(calls) == 2:
            raise MemoryError
        return loop.denoising_loss(denoiser, *rest)  # type: ignore[arg-type]

    before = everything(state)
    state.loss = failing
    with pytest.raises(MemoryError):
        update(state, batch(0), config)
    assert changed(before, everything(state)) == set()
    assert (state.images_seen, state.step) == (0, 0)


class Half:
    """One of two processes, here threads that meet at a barrier."""

    def __init__(
        self, rank: int, meeting: threading.Barrier, board: dict[int, list[Tensor]]
    ) -> None:
        self._rank, self._meeting, self._board = rank, meeting, board

    def rows(self, total: int) -> slice:
        return slice(0, total // 2) if self._rank == 0 else slice(total // 2, total)

    def _both(self, mine: list[Tensor]) -> list[list[Tensor]]:
        self._board[self._rank] = [t.clone() for t in mine]
        self._meeting.wait(30)
        found = [self._board[0], self._board[1]]
        self._meeting.wait(30)
        return found

    def sum_gradients_(self, weights: list[Tensor]) -> None:
        one, other = self._both([w.grad for w in weights if w.grad is not None])
        sums = iter([a + b for a, b in zip(one, other, strict=True)])
        for w in weights:
            w.grad = None if w.grad is None else next(sums)

    def gather(self, x: Tensor) -> Tensor:
        return torch.cat([part[0] for part in self._both([x])])


def test_two_processes_compute_what_one_does() -> None:
    config = configured()
    alone, pair = fresh(config), [fresh(config), fresh(config)]
    meeting, board = threading.Barrier(2), dict[int, list[Tensor]]()
    found: dict[int, StepRecord] = {}
    for rank, state in enumerate(pair):
        state.world = Half(rank, meeting, board)  # type: ignore[assignment]

    def work(rank: int) -> None:
        found[rank] = update(pair[rank], batch(0, 7), config)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    record = update(alone, batch(0, 7), config)
    for thread in threads:
        thread.join()
    one, other = (
        {k: w.grad for k, w in weights_of(s.denoiser).items() if w.grad is not None}
        for s in (alone, pair[0])
    )
    assert distance(one, other) < 1e-6
    for rank in (0, 1):
        torch.testing.assert_close(found[rank].error, record.error)
        assert torch.equal(found[rank].sigma, record.sigma)
    assert changed(everything(pair[0]), everything(pair[1])) == set()


def test_seconds_fill_the_time_between_two_yields() -> None:
    config, began = configured(), time.perf_counter()
    stream = (batch(i) for i in range(0, 80, 8))
    records = list(steps(fresh(config), stream, config, until=24))
    assert all(record.seconds > 0 for record in records)
    assert sum(record.seconds for record in records) <= time.perf_counter() - began


def used(config: Config, path: Path) -> TrainState:
    """A state with everything in it, and its checkpoint."""
    state = fresh(config)
    state.gate = Gate(config.diffusion, torch.device("cpu"))
    for i in range(3):
        update(state, batch(8 * i), config)
    state.lr_scale, state.micro_batch = 0.5, 4
    save_checkpoint(path, state, {"sums": torch.ones(2)}, {"seconds": 1.5})
    return state


def test_a_checkpoint_holds_the_gate_and_what_the_guard_set(tmp_path: Path) -> None:
    config, path = configured(), tmp_path / "a.safetensors"
    state, other = used(config, path), fresh(config, trained=False)
    other.gate = Gate(config.diffusion, torch.device("cpu"))
    extra, _ = load_checkpoint(path, other)
    assert extra.keys() == {"sums"}
    assert (other.lr_scale, other.micro_batch) == (0.5, 4)
    assert state.gate is not None
    for name, tensor in state.gate.tensors().items():
        assert torch.equal(tensor.nan_to_num(-1), other.gate.tensors()[name].nan_to_num(-1))
    for s in (state, other):
        update(s, batch(24), config)
    assert changed(everything(state), everything(other)) == set()


GONE = [
    "ema_0.100/network.out_gain",
    "ema_0.050/",
    "optimizer/exp_avg_sq/network.out_gain",
    "optimizer/",
    "gate/values",
    "gate/",
    "denoiser/network.out_gain",
    "extra/sums",
    "clip/norms",
    "meta/lr_scale",
    "meta/micro_batch",
    "meta/images_seen",
]


def test_a_checkpoint_that_lacks_an_entry_is_refused_by_its_name(tmp_path: Path) -> None:
    config, path = configured(), tmp_path / "a.safetensors"
    used(config, path)
    tensors, meta = load_tensors(path)
    other = fresh(config, trained=False)
    other.gate = Gate(config.diffusion, torch.device("cpu"))
    before = everything(other)
    for gone in GONE:
        kept = {name: t for name, t in tensors.items() if not name.startswith(gone)}
        plain = {key: value for key, value in meta.items() if f"meta/{key}" != gone}
        wanted = sorted(set(tensors) - set(kept)) or [gone.removeprefix("meta/")]
        save_tensors(path, kept, plain)
        with pytest.raises(IncompleteCheckpoint, match=f"lacks {wanted[0]}") as caught:
            load_checkpoint(path, other)
        assert list(caught.value.missing) == wanted
        assert caught.value.unknown == ()
        assert changed(before, everything(other)) == set()
        assert (other.images_seen, other.step, other.lr_scale) == (0, 0, 1.0)


def test_a_checkpoint_with_an_unknown_entry_is_refused_by_its_name(tmp_path: Path) -> None:
    config, path = configured(), tmp_path / "a.safetensors"
    used(config, path)
    tensors, meta = load_tensors(path)
    save_tensors(path, tensors | {"ema_0.300/x": torch.ones(1)}, meta)
    other = fresh(config)
    with pytest.raises(ArtifactError, match=r"does not know: ema_0\.300/x, gate/bands") as caught:
        load_checkpoint(path, other)  # which has no gate either
    assert isinstance(caught.value, IncompleteCheckpoint)
    assert "gate/values" in caught.value.unknown
    assert caught.value.missing == ()
