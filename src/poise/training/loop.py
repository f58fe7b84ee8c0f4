"""The training loop: a generator of records, each yielded after its update.

It knows no files, no validation, no terminal: whoever consumes the records logs, judges and saves.
No step waits for the device.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.data.batches import Batch, to_unit
from poise.data.nonleaky import augment_nonleaky
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss, Weighting, denoising_loss
from poise.diffusion.noise import Noised, corrupt, draw_levels
from poise.runtime import generator_at, seed_at
from poise.settings import Config, DiffusionConfig, TrainingConfig
from poise.training.ema import PowerEMA
from poise.training.gate import SPIKES, Gate
from poise.training.inputs import BRIGHTEST, InputCheck, check_inputs, mended_labels
from poise.training.optim import (
    ClipState,
    apply_gradients,
    build_optimizer,
    clip_gradients_,
    second_moments,
)
from poise.training.schedules import learning_rate
from poise.training.vitals import Vitals, fingerprint, gradient_norms, moment_sums

REASONS = ("input", "loss", "gradient", *SPIKES)  # why an update is left out
_EMA_EVERY = 4  # updates between two fingerprints of the averages
LossFunction = Callable[[Denoiser, Noised, Tensor | None, Weighting], Loss]


class World(Protocol):
    """The processes that share each batch; `training.parallel` has them."""

    size: int  # how many

    def rows(self, total: int) -> slice:
        """Which images of a batch are this process's."""

    def sum_gradients_(self, weights: Iterable[Tensor]) -> None:
        """The gradients of all, in place of this one's."""

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes, in the order of the batch."""


@dataclass
class TrainState:
    """Everything that changes while training."""

    denoiser: Denoiser
    optimizer: torch.optim.Optimizer
    ema: PowerEMA
    clip: ClipState
    images_seen: int = 0
    step: int = 0
    loss: LossFunction | None = None  # a compiled `denoising_loss`; None: the eager one
    gate: Gate | None = None  # judges updates before they are applied; None: nobody does
    lr_scale: float = 1.0  # a factor on the schedule
    micro_batch: int | None = None  # images per forward pass in place of the setting
    pixel_limit: float | None = BRIGHTEST  # of `check_inputs`; None: the data are latents
    world: World | None = None  # the processes that share each batch; None: this one alone

    @classmethod
    def fresh(
        cls, denoiser: Denoiser, settings: TrainingConfig, gate: Gate | None = None
    ) -> "TrainState":
        """The state before the first update, with weights of unit magnitude."""
        denoiser.normalize_weights_()
        weights = weights_of(denoiser)
        clip = ClipState.fresh(next(iter(weights.values())).device)
        ema = PowerEMA(weights, settings.ema_stds)
        return cls(denoiser, build_optimizer(denoiser, settings), ema, clip, gate=gate)


@dataclass(frozen=True)
class StepRecord:
    """What one update was; tensors stay on the device until somebody reads them."""

    images_seen: int  # after the update
    step: int
    lr: float  # as planned: schedule_lr times the state's lr_scale
    loss: Tensor  # [B], weighted by the learned uncertainty; may be negative
    error: Tensor  # [B], EDM-weighted squared error; about 1 when nothing is learned
    sigma: Tensor  # [B]
    grad_norm: Tensor  # []
    applied: Tensor  # [] bool; false: the update was left out and changed nothing
    indices: Tensor  # [B], data set indices of the images
    update_ratio: Tensor | None  # [], |change| / |weights|; only when measured
    schedule_lr: float
    used_lr: float  # what the optimiser holds after the step
    reasons: Tensor  # [5] bool, in the order of REASONS; all false: applied
    vitals: Vitals | None  # None where the policy is not to watch
    inputs: InputCheck
    batch: Batch  # as it came in
    seconds: float = 0.0  # of wall time since the record before; of the first: since the start


def weights_of(denoiser: Denoiser) -> dict[str, Tensor]:
    """The trainable weights by name."""
    return dict(denoiser.named_parameters())


def weighting_of(settings: DiffusionConfig) -> Weighting:
    """How errors are weighted, as the settings say."""
    return Weighting(settings.weighting, settings.min_snr_gamma, settings.p2_gamma, settings.p2_k)


def steps(
    state: TrainState,
    stream: Iterator[Batch],
    config: Config,
    *,
    until: int,
    measure_every: int = 10,
) -> Iterator[StepRecord]:
    """Update until exactly `until` images were seen, one record an update.

    Args:
        state: changed in place.
        stream: batches from `state.images_seen` on; the last one is cut to size.
        config: the resolved settings.
        until: images seen at the end; the consumer may stop earlier.
        measure_every: the size of the update is measured once in so many updates.
    """
    since = time.perf_counter()
    while state.images_seen < until:
        batch = _cut(next(stream), until - state.images_seen)
        measure = (state.step + 1) % measure_every == 0
        record = update(state, batch, config, measure=measure)
        now = time.perf_counter()
        since, seconds = now, now - since
        yield replace(record, seconds=seconds)


def update(state: TrainState, batch: Batch, config: Config, *, measure: bool = False) -> StepRecord:
    """One optimisation step, or none: what REASONS speak against is not applied.

    Weights, optimiser and running statistics then stay as they are, and the averages follow weights
    that stood still. All randomness follows from `config.seed` and `state.images_seen`.

    With `state.world` the batch is the one of all processes, each of which sees its share; noise is
    drawn for all of it, so that any number of processes computes the same to rounding.
    """
    named = weights_of(state.denoiser)
    weights = list(named.values())
    inputs = _check(state, batch)
    statistics = _running_statistics(state.denoiser)
    try:
        noised, labels = noised_batch(state, _usable(batch, inputs), config, weights[0].device)
        loss, error = _accumulate(state, weights, noised, labels, config)
    except BaseException:  # out of memory, say: nothing has happened, and it can be tried again
        _put_back(statistics)
        raise
    grad_norm, grad_norms = gradient_norms(weights)
    reasons = _reasons(state, inputs, loss, error, noised.sigma, grad_norm)
    applied = ~reasons.any()

    watched = config.stability.policy != "off"
    vitals = _vitals_before(state, named, grad_norms) if watched else None
    before = [w.detach().clone() for w in weights] if measure else None
    schedule_lr = learning_rate(config.training, state.images_seen)
    lr = schedule_lr * state.lr_scale
    clip_gradients_(weights, config.training, state.clip, grad_norms, applied)
    apply_gradients(state.optimizer, lr, applied)
    ratio = _update_ratio(before, weights) if before is not None else None
    state.step += 1
    state.images_seen += len(batch.images)
    state.ema.update(state.images_seen, len(batch.images))
    state.denoiser.normalize_weights_(where=applied)
    _put_back(statistics, unless=applied)
    return StepRecord(
        images_seen=state.images_seen,
        step=state.step,
        lr=lr,
        loss=loss,
        error=error,
        sigma=noised.sigma,
        grad_norm=grad_norm,
        applied=applied,
        indices=batch.indices,
        update_ratio=ratio,
        schedule_lr=schedule_lr,
        used_lr=float(state.optimizer.param_groups[0]["lr"]),
        reasons=reasons,
        vitals=None if vitals is None else replace(vitals, after=fingerprint(weights)),
        inputs=inputs,
        batch=batch,
    )


def gradients_again(
    state: TrainState, batch: Batch, config: Config, images_seen: int
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """What an update computes before it is judged, once more; the state stays as it is.

    Args:
        state: weights and all else that the gradients depend on.
        batch: as it came in, `record.batch`.
        config: the resolved settings.
        images_seen: before that update: `record.images_seen - len(batch.images)`. The noise follows
            from it, so weights that stood still give the same numbers.

    Returns:
        Loss [B], error [B], and the gradient of each weight in the order of `weights_of`; None for
        weights that have none.
    """
    weights = list(weights_of(state.denoiser).values())
    kept, statistics = [w.grad for w in weights], _running_statistics(state.denoiser)
    then = replace(state, images_seen=images_seen)
    try:
        usable = _usable(batch, _check(state, batch))
        noised, labels = noised_batch(then, usable, config, weights[0].device)
        loss, error = _accumulate(then, weights, noised, labels, config)
        return loss, error, [w.grad for w in weights]
    finally:
        _put_back(statistics)
        for w, grad in zip(weights, kept, strict=True):
            w.grad = grad


def _cut(batch: Batch, count: int) -> Batch:
    """The first `count` images, so that a run ends exactly where it was asked to."""
    if count >= len(batch.images):
        return batch
    labels = None if batch.labels is None else batch.labels[:count]
    return Batch(batch.images[:count], labels, batch.indices[:count])


def noised_batch(
    state: TrainState, batch: Batch, config: Config, device: torch.device
) -> tuple[Noised, Tensor | None]:
    """The batch with noise, and its labels; both depend on the seed and `images_seen` alone.

    With `data.augment = "nonleaky"` the images are transformed first, and `Noised` says how.
    """
    clean = to_unit(batch.images.to(device, non_blocking=True))
    told: Tensor | None = None
    if config.data.augment == "nonleaky":
        generator = generator_at(config.seed, state.images_seen, "augment", device)
        p, colour = config.data.augment_p, config.data.augment_colour
        clean, told = augment_nonleaky(clean, generator, p=p, colour=colour)
    clean = clean.contiguous(memory_format=torch.channels_last)
    generator = generator_at(config.seed, state.images_seen, "noise", device)
    settings = config.diffusion
    sigma = draw_levels(
        settings.noise,
        state.denoiser.formulation,
        len(clean),
        settings.P_mean,
        settings.P_std,
        generator,
    )
    noised = replace(corrupt(clean, sigma, generator), augment=told)
    if config.model.dropout:
        torch.manual_seed(seed_at(config.seed, state.images_seen, "dropout"))
    if batch.labels is None:
        return noised, None
    labels = batch.labels.to(device, non_blocking=True)
    if config.training.label_dropout:
        generator = generator_at(config.seed, state.images_seen, "labels", device)
        kept = torch.rand(len(labels), generator=generator, device=device)
        rows = F.one_hot(labels, state.denoiser.num_classes).float()
        labels = rows * (kept >= config.training.label_dropout).float()[:, None]
    return noised, labels


def _check(state: TrainState, batch: Batch) -> InputCheck:
    return check_inputs(batch, num_classes=state.denoiser.num_classes, limit=state.pixel_limit)


def _usable(batch: Batch, inputs: InputCheck) -> Batch:
    """The batch with labels that the network can look up."""
    if batch.labels is None or not inputs.bad.any():
        return batch
    return replace(batch, labels=mended_labels(batch.labels, inputs))


def _reasons(
    state: TrainState,
    inputs: InputCheck,
    loss: Tensor,
    error: Tensor,
    sigma: Tensor,
    grad_norm: Tensor,
) -> Tensor:
    """What speaks against the update, [5] bool in the order of REASONS."""
    bad = torch.full((), bool(inputs.bad.any()), device=loss.device)
    hard = torch.stack([bad, ~loss.isfinite().all(), ~grad_norm.isfinite()])
    if state.gate is None:
        return torch.cat([hard, hard.new_zeros(len(SPIKES))])
    return torch.cat([hard, state.gate.judge(error, sigma, grad_norm, ~hard.any())])


def _vitals_before(state: TrainState, named: dict[str, Tensor], grad_norms: Tensor) -> Vitals:
    """The vitals of an update that is about to be applied; `after` is still what was before."""
    weights = list(named.values())
    moments = moment_sums(second_moments(state.optimizer, named), weights)
    ema = None
    if (state.step + 1) % _EMA_EVERY == 0:
        ema = torch.stack([fingerprint(a.values()) for a in state.ema.profiles.values()])
    now = fingerprint(weights)
    return Vitals(grad_norms, moments, now, now, ema)


@torch.no_grad()
def _running_statistics(denoiser: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What a forward pass of batch norm changes, each with a copy."""
    norms = [m for m in denoiser.modules() if isinstance(m, nn.BatchNorm2d)]
    return [(b, b.clone()) for m in norms for b in m.buffers()]


@torch.no_grad()
def _put_back(statistics: list[tuple[Tensor, Tensor]], unless: Tensor | None = None) -> None:
    """Undo what forward passes did to them, unless the flag [] says that it stays."""
    for buffer, old in statistics:
        buffer.copy_(old if unless is None else torch.where(unless, buffer, old))


def _accumulate(
    state: TrainState,
    weights: list[Tensor],
    noised: Noised,
    labels: Tensor | None,
    config: Config,
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss over the batch, a micro-batch at a time; loss and error [B].

    In a world each process sees its rows, and all end with the same gradients, losses and errors.
    """
    state.denoiser.train()
    for weight in weights:  # also those that the optimiser does not know
        weight.grad = None
    weighting, world = weighting_of(config.diffusion), state.world
    total, pixels = len(noised.clean), noised.clean[0].numel()
    if world is not None:
        mine = world.rows(total)
        noised, labels = noised.part(mine), None if labels is None else labels[mine]
    losses, errors = [], []
    loss_of = state.loss or denoising_loss
    micro = state.micro_batch or config.training.micro_batch or total
    for i in range(0, len(noised.clean), micro):
        part = slice(i, i + micro)
        piece = noised.part(part)
        rows = None if labels is None else labels[part]
        result = loss_of(state.denoiser, piece, rows, weighting)
        # summed over pixels as in EDM2, so that Adam's epsilon means the same
        (result.weighted.sum() * (pixels / total)).backward()  # type: ignore[no-untyped-call]
        losses.append(result.weighted.detach())
        errors.append(result.error.detach())
    loss, error = torch.cat(losses), torch.cat(errors)
    if world is None:
        return loss, error
    world.sum_gradients_(weights)
    return world.gather(loss), world.gather(error)


def _update_ratio(before: list[Tensor], after: list[Tensor]) -> Tensor:
    now = [w.detach() for w in after]
    change = torch.nn.utils.get_total_norm(torch._foreach_sub(now, before))
    return change / torch.nn.utils.get_total_norm(now)
