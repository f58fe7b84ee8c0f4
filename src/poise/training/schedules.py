"""The learning rate as a function of images seen."""

import math

from poise.settings import TrainingConfig


def learning_rate(settings: TrainingConfig, images_seen: int) -> float:
    """The rate of the update that starts after `images_seen` images.

    Warm-up rises linearly over `warmup * images` and counts the images of the update itself, so
    that the first update is not wasted at rate 0. `inverse_sqrt` is EDM2's decay (Eq. 67).
    """
    total = settings.images
    progress = images_seen / total
    rise = settings.warmup * total
    factor = min(1.0, (images_seen + settings.batch) / rise) if rise > 0 else 1.0
    if settings.decay == "inverse_sqrt":
        factor /= math.sqrt(max(progress / settings.decay_start, 1.0))
    elif settings.decay == "cosine":
        factor *= 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return settings.lr * factor
