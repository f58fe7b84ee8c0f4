"""How large a batch is worth its images: the gradient noise scale of a network's first steps."""

import math

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.data.batches import Batch
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.noise_scale import noise_scale
from poise.stability.preflight_check import Check, Pace, part_of
from poise.training.loop import TrainState, update

_SIZES = (32, 16, 8, 4)  # images of a small batch, as many as the time allows
_WARM, _GRADIENTS = 8, 8  # updates before the measurement, and gradients it takes
_FAR = 4.0  # times the noise scale: a batch so far away is said


def check_batch(
    config: Config,
    facts: DataFacts,
    batch: Batch,
    runtime: Runtime,
    *,
    seconds: float,
    pace: Pace,
) -> Check:
    """The noise scale after a few updates, and what it says of `training.batch`.

    The scale grows while a network learns, so this is the least that a batch should hold, and a
    proposal only.

    Args:
        config: the resolved settings.
        facts: shape, classes and spread of the images.
        batch: where the images are taken from.
        runtime: device and arithmetic.
        seconds: of the check.
        pace: how long updates take.
    """
    size = pace.largest(seconds, _WARM + _GRADIENTS, _SIZES)
    if size is None:
        return Check("batch", "skipped", "The gradient noise was not measured: no time is left.")
    size = min(size, len(batch.images) // _GRADIENTS)  # no image may come twice
    if size < 1:
        return Check("batch", "skipped", "The gradient noise was not measured: too few images.")
    state = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
    flat = {"lr": config.training.lr / 4, "warmup": 0.0, "decay": "constant"}
    warm = config.model_copy(update={"training": config.training.model_copy(update=flat)})
    pieces = [part_of(batch, i * size, size) for i in range(_GRADIENTS)]
    for i in range(_WARM):  # at the very start the network's last layer may be zero
        update(state, pieces[i % _GRADIENTS], warm)
    found = noise_scale(state, config, pieces.__getitem__, parts=_GRADIENTS)
    scale = found.batch if math.isfinite(found.batch) else None
    numbers = {"noise_scale": scale, "batch": config.training.batch, "measured_with": size}
    return Check("batch", "ok", _sentence(scale, config.training.batch, size), numbers)


def _sentence(scale: float | None, batch: int, size: int) -> str:
    if scale is None:
        return f"The first gradients of {size} images are mostly noise: no batch is too large yet."
    text = f"The gradient noise scale of the first updates is about {max(scale, 1):.0f} images"
    if batch > _FAR * scale:
        return f"{text}; it grows, and a batch of {batch} pays later more than now."
    if scale > _FAR * batch:
        near = 2 ** round(math.log2(scale))
        return f"{text}, and grows: a training.batch up to {near} would lose little, if it fits."
    return f"{text}, and a batch of {batch} suits it."
