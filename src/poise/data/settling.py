"""What the training images decide of the settings, where they say "auto"."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from poise.data.augment import flips_keep_classes
from poise.data.balance import expected_draws, sampling_weights
from poise.data.imageset import Dataset
from poise.settings import Config

_LOOKED_AT = 2**30  # bytes of images by which flips are judged
_AUGMENTED_FROM = 16  # pixels; below, a turn or a shift leaves little of an image
_MANY_TIMES = 1000  # that an image is seen, after which a network may know it by heart
_LARGE = 100_000  # images of a set that needs no augmentation


def settle_data(
    config: Config, dataset: Dataset, members: NDArray[np.int64], say: Callable[[str], None]
) -> Config:
    """`config` with resolution, flips and augmentation settled.

    Args:
        config: settings with `training.images` known.
        dataset: the images.
        members: indices of the training images.
        say: told, in a sentence each, of augmentation that was chosen and of uneven draws.

    Raises:
        UsageError: `data.balance` asks for classes where there are none.
    """
    flip, augment = config.data.flip, config.data.augment
    if flip == "auto":
        size = math.prod(dataset.images.shape[1:])
        looked_at = members[:: -(-len(members) * size // _LOOKED_AT)]
        labels = None if dataset.labels is None else dataset.labels[looked_at]
        flip = "on" if flips_keep_classes(dataset.images[looked_at], labels) else "off"
    if augment == "auto":
        times = config.training.images / len(members)
        needed = wants_augmentation(dataset.resolution, len(members), config.training.images)
        augment = "nonleaky" if needed else "none"
        if needed:
            say(
                f"Each training image will be seen {times:,.0f} times: it is transformed now and "
                "then, which the network is told (data.augment=none leaves that out)"
            )
    weights = sampling_weights(dataset, members, config.data.balance)
    if weights is not None:
        often = expected_draws(weights)
        say(
            f"In {len(members):,} draws a training image comes {often.min():.2g} to "
            f"{often.max():.2g} times (data.balance={config.data.balance})"
        )
    settled = {"resolution": dataset.resolution, "flip": flip, "augment": augment}
    return config.model_copy(update={"data": config.data.model_copy(update=settled)})


def wants_augmentation(resolution: int, count: int, images: int) -> bool:
    """Whether a training is so long for its data that the network may learn images by heart.

    Over 1,000 times as many images are seen as there are, and there are under 100,000. Images below
    16x16 pixels are left alone: little is left of them after a turn, and a network for them is
    small. Karras et al. 2022 augment sets of up to 70,000 images that are seen thousands of times,
    and not ImageNet. Seen 100 times each, 500 photographs gained nothing from it
    (docs/experiments.md); where between the two the gain begins has not been measured.

    Args:
        resolution: side in pixels.
        count: training images.
        images: images that the network will see.
    """
    return resolution >= _AUGMENTED_FROM and count < _LARGE and images > _MANY_TIMES * count
