"""Training steps to be timed: a plain one, torch's best stock setting, Poise's own, its stages."""

import time
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor

from poise.bench.rig import Rig, Work
from poise.build import build_denoiser
from poise.diffusion.loss import denoising_loss
from poise.diffusion.noise import Noised
from poise.runtime import Runtime
from poise.training.compiling import CompiledLoss, obstacle
from poise.training.loop import (
    TrainState,
    noised_batch,
    update,
    weighting_of,
)
from poise.training.optim import apply_gradients
from poise.training.schedules import learning_rate

STAGES = ("noise and labels", "forward", "backward", "optimiser", "averages", "normalisation")


def ready_state(rig: Rig) -> tuple[TrainState, int | None]:
    """Poise's training state, and the most memory a step of it needs on a GPU, in bytes."""
    cuda = rig.runtime.device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    denoiser = build_denoiser(rig.config, rig.facts, rig.runtime)
    state = TrainState.fresh(denoiser, rig.config.training)
    if not cuda:
        return state, None
    torch.cuda.reset_peak_memory_stats()
    update(state, rig.batch, rig.config)
    return state, torch.cuda.max_memory_allocated() - before


def plain_state(rig: Rig, *, stock: bool) -> TrainState:
    """A state in fp32 with torch's optimiser as it comes; channels-last only with `stock`."""
    denoiser = build_denoiser(rig.config, rig.facts, Runtime(rig.runtime.device, torch.float32))
    for weight in denoiser.parameters():
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=_layout(stock))
    state = TrainState.fresh(denoiser, rig.config.training)
    settings = rig.config.training
    state.optimizer = torch.optim.Adam(
        denoiser.parameters(), settings.lr, settings.betas, settings.eps
    )
    return state


def plain_step(rig: Rig, state: TrainState, *, stock: bool) -> None:
    """One update of a `plain_state`, without the checks and records of Poise's.

    With `stock` under autocast, where the run is in bf16: what torch gives to who asks for it.
    """
    config, denoiser, device = rig.config, state.denoiser.train(), rig.runtime.device
    noised, labels = noised_batch(state, rig.batch, config, device)
    state.optimizer.zero_grad()
    cast = stock and rig.runtime.dtype == torch.bfloat16
    weighting, scale = weighting_of(config.diffusion), _scale(noised)
    for piece, rows in _pieces(rig, noised, labels):
        clean, x = (t.contiguous(memory_format=_layout(stock)) for t in (piece.clean, piece.x))
        with torch.autocast(device.type, torch.bfloat16) if cast else nullcontext():
            loss = denoising_loss(
                denoiser, Noised(clean, piece.sigma, x, piece.augment), rows, weighting
            )
        (loss.weighted.sum() * scale).backward()  # type: ignore[no-untyped-call]
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(config.training, state.images_seen)
    state.optimizer.step()
    state.images_seen += rig.images
    state.ema.update(state.images_seen, rig.images)
    denoiser.normalize_weights_()


def compiled_step(rig: Rig, note: Callable[[str], None]) -> tuple[Work | None, float | None]:
    """The compiled step and the seconds it took to prepare; None after a `note` where it fails."""
    reason = obstacle(rig.runtime.device)
    if reason is not None:
        note(f"The compiled step was not measured: {reason}.")
        return None, None
    failures: list[str] = []
    state, _ = ready_state(rig)
    state.loss = CompiledLoss(rig.micro, failures.append)

    def step() -> None:
        update(state, rig.batch, rig.config)

    took = rig.seconds(step)
    for failure in failures:
        note(failure)
    return (None, None) if failures else (step, took)


def staged_step(rig: Rig, state: TrainState, laps: dict[str, list[float]]) -> None:
    """One update, as `training.loop.update` makes it, with a look at the clock after each stage.

    Args:
        rig: what is measured.
        state: changed in place.
        laps: by name of STAGES; each list grows by the stage's seconds.
    """
    spent = dict.fromkeys(STAGES, 0.0)
    rig.wait()
    last = time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal last
        rig.wait()
        now = time.perf_counter()
        spent[stage] += now - last
        last = now

    config, denoiser = rig.config, state.denoiser.train()
    noised, labels = noised_batch(state, rig.batch, config, rig.runtime.device)
    state.optimizer.zero_grad(set_to_none=True)
    weighting, scale = weighting_of(config.diffusion), _scale(noised)
    lap("noise and labels")
    for piece, rows in _pieces(rig, noised, labels):
        loss = denoising_loss(denoiser, piece, rows, weighting).weighted.sum() * scale
        lap("forward")
        loss.backward()  # type: ignore[no-untyped-call]
        lap("backward")
    grads = [w.grad for w in denoiser.parameters() if w.grad is not None]
    applied = torch.nn.utils.get_total_norm(grads).isfinite()
    apply_gradients(state.optimizer, learning_rate(config.training, state.images_seen), applied)
    lap("optimiser")
    state.step += 1
    state.images_seen += rig.images
    state.ema.update(state.images_seen, rig.images)
    lap("averages")
    denoiser.normalize_weights_(where=applied)
    lap("normalisation")
    for stage, value in spent.items():
        laps[stage].append(value)


def _layout(stock: bool) -> torch.memory_format:
    return torch.channels_last if stock else torch.contiguous_format


def _scale(noised: Noised) -> float:
    """Of the summed loss, as in `training.loop`."""
    return noised.clean[0].numel() / len(noised.clean)


def _pieces(rig: Rig, noised: Noised, labels: Tensor | None) -> list[tuple[Noised, Tensor | None]]:
    parts = [slice(i, i + rig.micro) for i in range(0, len(noised.clean), rig.micro)]
    return [(noised.part(p), None if labels is None else labels[p]) for p in parts]
