"""What a run can afford: presets and lengths from measured speed, checks as a share of training.

Counts of checks follow from settings alone, so that they do not depend on the machine. Only a
wall-clock budget measures.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import Preset, resolve
from poise.data.batches import Batch
from poise.diffusion.multistep import SOLVERS
from poise.errors import UsageError
from poise.runtime import Runtime, choose_runtime
from poise.settings import Config
from poise.training.loop import TrainState, update

_CHECK_SHARE = 0.05  # of training, each for validation and for sample grids
_SCORE_SHARE = 0.10  # of training, for the samples that are scored at the end
_ENCODER_SHARE = 0.10  # of the images of the training, for the network that tells classes apart
_EVALUATIONS = 8  # snapshots scored at most
_TRAINING_COST = 3  # a training step costs three forward passes
GRID_IMAGES = 20


@dataclass(frozen=True)
class Speed:
    """Measured on this machine, in images per second."""

    training: float  # of an update, at best
    forward: float  # of one network call, at best
    typical: float  # of an update, median
    threads: int  # CPU threads it was measured with


@dataclass
class Clock:
    """Wall-clock time of a run, over all its sessions."""

    budget: float | None  # seconds, or None
    spent: float = 0.0  # seconds of earlier sessions
    started: float = field(default_factory=time.monotonic)

    def seconds(self) -> float:
        """Time spent until now."""
        return self.spent + time.monotonic() - self.started

    def left(self) -> float:
        """Time left; infinite without a budget."""
        return float("inf") if self.budget is None else self.budget - self.seconds()


def settle(config: Config, label_count: int) -> Config:
    """`config` with the counts that were left open: validations, probe, grids, scored samples.

    Args:
        config: settings with `training.images` known.
        label_count: validation images available.
    """
    calls = _TRAINING_COST * config.training.images  # forward passes the training is worth
    per_image = config.validation.bands * (1 + len(config.training.ema_stds))
    probe = config.validation.images or _between(
        32, calls * _CHECK_SHARE / 4 / per_image, min(256, label_count)
    )
    per_sample = SOLVERS[config.sampling.solver].calls(config.sampling.steps)
    cadence = {
        "validations": config.cadence.validations
        or _between(1, calls * _CHECK_SHARE / (probe * per_image), 10),
        "grids": config.cadence.grids
        or _between(1, calls * _CHECK_SHARE / (GRID_IMAGES * per_sample), 8),
    }
    evaluation = {
        "samples": config.evaluation.samples
        or _between(100, calls * _SCORE_SHARE / per_sample, 2000),
        **_snapshot_scores(config, calls / per_sample),
    }
    cadence["evaluations"] = evaluation.pop("evaluations")
    return config.model_copy(
        update={
            "cadence": config.cadence.model_copy(update=cadence),
            "validation": config.validation.model_copy(update={"images": probe}),
            "evaluation": config.evaluation.model_copy(update=evaluation),
        }
    )


def _snapshot_scores(config: Config, samples: float) -> dict[str, int]:
    """How many snapshots are scored, by how many samples, and what the encoder may see.

    Args:
        config: the settings.
        samples: how many could be drawn in the time of the whole training.
    """
    settings = config.evaluation
    affordable = settings.share * samples
    each = settings.snapshot_samples or _between(100, affordable / _EVALUATIONS, 500)
    times = config.cadence.evaluations
    if times is None:
        times = min(int(affordable / each), _EVALUATIONS, config.cadence.snapshots)
    encoder = settings.encoder_images
    if encoder is None:
        encoder = int(_ENCODER_SHARE * config.training.images)
    return {"evaluations": times, "snapshot_samples": each, "encoder_images": encoder}


def snapshots_within(config: Config, parameters: int) -> int:
    """The snapshots of the settings, or as many as their disk space holds, but two at least."""
    size = 4 * parameters * (1 + len(config.training.ema_stds))  # bytes of one: raw and averages
    room = int(config.cadence.snapshot_gib * 2**30 / size)
    return min(config.cadence.snapshots, max(room, 2))


def fitting(preset: Preset, resolution: int) -> bool:
    """Whether a preset is meant for images of this size and can halve them."""
    low, high = preset.resolutions
    return low <= resolution <= high and resolution % _divisor(preset) == 0


def _divisor(preset: Preset) -> int:
    """What the resolution must be divisible by: each level halves it, or patches tile it."""
    if "dit" in preset.settings.get("model.architecture", ""):
        return int(preset.settings["model.patch"])
    return int(2 ** (len(preset.settings["model.channel_mult"]) - 1))


def smallest_fitting(
    presets: list[Preset], resolution: int, chosen: Preset | None = None
) -> list[Preset]:
    """The presets for a resolution, smallest first, or the one that was `chosen`.

    Raises:
        UsageError: none fits, or the chosen one does not.
    """
    offered = [preset for preset in presets if preset.automatic or preset == chosen]
    found = [preset for preset in offered if fitting(preset, resolution)]
    if chosen is not None and found and chosen not in found:
        low, high = chosen.resolutions
        raise UsageError(
            f"Preset {chosen.name} does not fit images of {resolution}x{resolution} pixels.",
            expected=f"{low} to {high} pixels, divisible by {_divisor(chosen)}",
            remedy=f"take one of {', '.join(p.name for p in found)}, or set data.resolution.",
        )
    if chosen is not None and found:
        return [chosen]
    if not found:
        ranges = ", ".join(
            f"{p.name} {p.resolutions[0]}-{p.resolutions[1]} (divisible by {_divisor(p)})"
            for p in offered
        )
        raise UsageError(
            f"No preset fits images of {resolution}x{resolution} pixels.",
            expected=f"a resolution that one of these takes: {ranges}",
            remedy="set data.resolution, for example --set data.resolution=32.",
        )
    return found


def afford(
    candidates: list[Preset], overrides: Mapping[str, Any], facts: DataFacts, seconds: float
) -> tuple[Preset, int, Speed]:
    """The largest preset that sees enough images within `seconds` of training, and how many.

    Args:
        candidates: presets, smallest first.
        overrides: the user's settings, which hold for each of them.
        facts: shape of the images.
        seconds: time for updates and everything that scales with them.
    """
    chosen: tuple[Preset, int, Speed] | None = None
    for preset in candidates:
        speed, config = fastest(preset, overrides, facts)
        overhead = 1 + 2 * _CHECK_SHARE + _SCORE_SHARE + config.evaluation.share
        per_image = 1 / speed.training + (overhead - 1) * _TRAINING_COST / speed.forward
        images = max(config.training.batch, int(seconds / per_image))
        if chosen is not None and images < preset.worthwhile_images:
            break  # larger ones see fewer still
        chosen = preset, images, speed
    assert chosen is not None
    return chosen


def fastest(preset: Preset, overrides: Mapping[str, Any], facts: DataFacts) -> tuple[Speed, Config]:
    """The speed of a preset with one thread or one per core, whichever is faster as things are.

    On a busy machine threads wait for each other, and one alone can be several times faster.
    """
    config = resolve(preset, overrides)
    runtime = choose_runtime(config.training.precision)
    before, asked = torch.get_num_threads(), config.training.threads
    counts = {asked} if asked else {1, before} if runtime.device.type == "cpu" else {before}
    speeds = []
    try:
        for threads in sorted(counts):
            torch.set_num_threads(threads)
            speeds.append(measure(config, facts, runtime))
    finally:
        torch.set_num_threads(before)
    return max(speeds, key=lambda speed: speed.typical), config


def measure(config: Config, facts: DataFacts, runtime: Runtime) -> Speed:
    """Time updates and network calls on random images, for about a second each."""
    state = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
    count, side = config.training.batch, facts.resolution
    images = torch.randint(0, 256, (count, facts.channels, side, side), dtype=torch.uint8)
    classes = len(facts.label_names)
    labels = torch.zeros(count, dtype=torch.int64) if classes else None
    batch = Batch(images, labels, torch.arange(count))
    x = images.to(runtime.device, torch.float32)
    sigma = torch.ones([], device=runtime.device)
    known = None if labels is None else labels.to(runtime.device)

    def step() -> None:
        update(state, batch, config)

    @torch.no_grad()
    def call() -> None:
        state.denoiser.eval()(x, sigma, known)

    updates, calls = _seconds(step, runtime), _seconds(call, runtime)
    middle = updates[len(updates) // 2]
    return Speed(count / updates[0], count / calls[0], count / middle, torch.get_num_threads())


def _seconds(work: Callable[[], None], runtime: Runtime) -> list[float]:
    """How long `work` takes, sorted: three times at least, for about a second, after a warm-up."""
    times: list[float] = []
    while len(times) < 4 or (sum(times[1:]) < 1.0 and len(times) < 100):
        started = time.perf_counter()
        work()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return sorted(times[1:])


def _between(low: int, value: float, high: int) -> int:
    return max(min(low, high), min(int(value), high))
