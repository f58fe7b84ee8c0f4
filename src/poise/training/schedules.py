"""The learning rate and the size of a batch, as functions of images seen."""

import math
from collections.abc import Sequence

from poise.settings import TrainingConfig

_RISE = 0.3  # share of the run in which one_cycle rises
_START = 1 / 25  # share of the highest rate with which it begins
_BETTER = 1e-4  # relative fall of the error that counts as one; as torch's ReduceLROnPlateau


def learning_rate(settings: TrainingConfig, images_seen: int) -> float:
    """The rate of the update that starts after `images_seen` images, from 0 to `settings.lr`.

    Warm-up rises linearly over `warmup * images` and counts the images of the update itself, so
    that the first update is not wasted at rate 0. It bounds every kind of decay; only `one_cycle`
    rises by itself as well. `inverse_sqrt` is EDM2's decay (Eq. 67), `cyclical` the triangles of
    Smith 2017, `one_cycle` those of Smith and Topin 2018 with cosine flanks. `plateau` is constant
    here: what it takes away depends on validation errors, see `plateau_factor`.
    """
    total = settings.images
    progress = images_seen / total
    rise = settings.warmup * total
    first = images_seen + batch_size(settings, images_seen)
    factor = min(1.0, first / rise) if rise > 0 else 1.0
    low = decay_floor(settings)
    if settings.decay == "inverse_sqrt":
        fallen = factor / math.sqrt(max(progress / settings.decay_start, 1.0))
        return settings.lr * max(fallen, factor * low)
    shape = low + (1 - low) * _shape(settings, min(progress, 1.0))
    return settings.lr * (factor * min(shape, 1.0))


def decay_floor(settings: TrainingConfig) -> float:
    """The lowest share of `settings.lr` that the decay leaves, 0..1."""
    if settings.decay_floor is not None:
        return settings.decay_floor
    return 0.01 if settings.decay in ("cyclical", "plateau") else 0.0


def plateau_factor(errors: Sequence[float], settings: TrainingConfig) -> float:
    """What `decay = "plateau"` leaves of the rate after these validation errors, above 0 to 1.

    Whenever more than `decay_patience` errors in a row are not 0.01 % below the lowest before them,
    the rate is multiplied by `decay_factor`, down to the floor, and the count begins anew. An error
    that is not a number is no improvement.

    Args:
        errors: one for each validation of the run so far, oldest first, >= 0.
        settings: with any other decay the answer is 1.
    """
    factor, best, waited = 1.0, math.inf, 0
    if settings.decay != "plateau":
        return factor
    for error in errors:
        if error < best * (1 - _BETTER):
            best, waited = error, 0
        else:
            waited += 1
        if waited > settings.decay_patience:
            factor, waited = max(factor * settings.decay_factor, decay_floor(settings)), 0
    return factor


def batch_size(settings: TrainingConfig, images_seen: int) -> int:
    """Images of the update that starts after `images_seen` images, 1 to `settings.batch`.

    With `batch_ramp` the size grows linearly in images seen from `batch_ramp_from` of the batch to
    all of it (Smith et al. 2018, "Don't decay the learning rate, increase the batch size"), in
    whole micro-batches or eighths of a batch, so that few sizes occur.
    """
    if settings.batch_ramp == 0:
        return settings.batch
    progress = min(images_seen / (settings.batch_ramp * settings.images), 1.0)
    share = settings.batch_ramp_from + (1 - settings.batch_ramp_from) * progress
    unit = settings.micro_batch or max(1, settings.batch // 8)
    if progress == 1:
        return settings.batch
    return min(settings.batch, max(1, int(settings.batch * share / unit)) * unit)


def _shape(settings: TrainingConfig, progress: float) -> float:
    """The course of the rate between the floor (0) and the highest (1), before warm-up."""
    if settings.decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if settings.decay == "linear":
        return 1 - progress
    if settings.decay == "step":
        return settings.decay_factor ** sum(progress >= at for at in settings.decay_steps)
    if settings.decay == "cyclical":
        return 1 - abs(2 * (progress * settings.decay_cycles % 1) - 1)
    if settings.decay == "one_cycle":
        if progress < _RISE:
            return _START + (1 - _START) * 0.5 * (1 - math.cos(math.pi * progress / _RISE))
        return 0.5 * (1 + math.cos(math.pi * (progress - _RISE) / (1 - _RISE)))
    return 1.0
