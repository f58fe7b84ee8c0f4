"""The training loop: a generator of records, each yielded after its update.

It knows no files, no validation, no terminal: whoever consumes the records logs, judges and saves.
No step waits for the device.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

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
from poise.training.schedules import learning_rate

LossFunction = Callable[[Denoiser, Noised, Tensor | None, Weighting], Loss]


@dataclass
class TrainState:
    """Everything that changes while training."""

    denoiser: Denoiser
    optimizer: torch.optim.Adam
    ema: PowerEMA
    images_seen: int = 0
    step: int = 0
    loss: LossFunction | None = None  # a compiled `denoising_loss`; None: the eager one

    @classmethod
    def fresh(cls, denoiser: Denoiser, settings: TrainingConfig) -> "TrainState":
        """The state before the first update, with weights of unit magnitude."""
        denoiser.normalize_weights_()
        optimizer = torch.optim.Adam(
            denoiser.parameters(),
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            fused=True,
        )
        return cls(denoiser, optimizer, PowerEMA(weights_of(denoiser), settings.ema_stds))


@dataclass(frozen=True)
class StepRecord:
    """What one update was; tensors stay on the device until somebody reads them."""

    images_seen: int  # after the update
    step: int
    lr: float
    loss: Tensor  # [B], weighted by the learned uncertainty; may be negative
    error: Tensor  # [B], EDM-weighted squared error; about 1 when nothing is learned
    sigma: Tensor  # [B]
    grad_norm: Tensor  # []
    applied: Tensor  # [] bool; false: the update was not finite and changed nothing
    indices: Tensor  # [B], data set indices of the images
    update_ratio: Tensor | None  # [], |change| / |weights|; only when measured


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
    while state.images_seen < until:
        batch = _cut(next(stream), until - state.images_seen)
        measure = (state.step + 1) % measure_every == 0
        yield update(state, batch, config, measure=measure)


def update(state: TrainState, batch: Batch, config: Config, *, measure: bool = False) -> StepRecord:
    """One optimisation step; if loss or gradient is not finite, weights, optimiser and EMA stay.

    All randomness follows from `config.seed` and `state.images_seen`.
    """
    settings = config.training
    device = next(state.denoiser.parameters()).device
    noised, labels = noised_batch(state, batch, config, device)
    statistics = _running_statistics(state.denoiser)
    loss, error = _accumulate(state, noised, labels, config)

    weights = list(weights_of(state.denoiser).values())
    grads = [w.grad for w in weights if w.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm(grads)
    applied = grad_norm.isfinite() & loss.isfinite().all()
    before = [w.detach().clone() for w in weights] if measure else None

    lr = learning_rate(settings, state.images_seen)
    apply_gradients(state.optimizer, lr, applied)
    ratio = _update_ratio(before, weights) if before is not None else None
    state.step += 1
    state.images_seen += len(batch.images)
    state.ema.update(state.images_seen, len(batch.images))
    state.denoiser.normalize_weights_(where=applied)
    for buffer, old in statistics:
        buffer.copy_(torch.where(applied, buffer, old))
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
    )


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


@torch.no_grad()
def _running_statistics(denoiser: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """What a forward pass of batch norm changes, each with a copy."""
    norms = [m for m in denoiser.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [b for m in norms for b in (m.running_mean, m.running_var) if b is not None]
    return [(b, b.clone()) for b in kept]


def _accumulate(
    state: TrainState, noised: Noised, labels: Tensor | None, config: Config
) -> tuple[Tensor, Tensor]:
    """Gradients of the mean loss over the batch, a micro-batch at a time; loss and error [B]."""
    state.denoiser.train()
    state.optimizer.zero_grad(set_to_none=True)
    weighting = weighting_of(config.diffusion)
    total = len(noised.clean)
    pixels = noised.clean[0].numel()
    losses, errors = [], []
    loss_of = state.loss or denoising_loss
    micro = config.training.micro_batch or total
    for i in range(0, total, micro):
        part = slice(i, i + micro)
        piece = noised.part(part)
        rows = None if labels is None else labels[part]
        result = loss_of(state.denoiser, piece, rows, weighting)
        # summed over pixels as in EDM2, so that Adam's epsilon means the same
        (result.weighted.sum() * (pixels / total)).backward()  # type: ignore[no-untyped-call]
        losses.append(result.weighted.detach())
        errors.append(result.error.detach())
    return torch.cat(losses), torch.cat(errors)


def apply_gradients(optimizer: torch.optim.Adam, lr: float, applied: Tensor) -> None:
    """Step, or leave everything as it is where `applied` is false, decided on the device.

    The fused kernel takes the flag as a gradient scaler passes it: `found_inf`.
    """
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.found_inf = (~applied).to(torch.float32)  # type: ignore[attr-defined]
    optimizer.grad_scale = None  # type: ignore[attr-defined]
    optimizer.step()


def _update_ratio(before: list[Tensor], after: list[Tensor]) -> Tensor:
    now = [w.detach() for w in after]
    change = torch.nn.utils.get_total_norm(torch._foreach_sub(now, before))
    return change / torch.nn.utils.get_total_norm(now)
