"""What the detectors know of a run before it starts."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Plain facts about weights, data and plan; detectors compare readings with them."""

    names: tuple[str, ...]  # [T] weights, in the order of `training.loop.weights_of`
    forced: tuple[bool, ...]  # [T] rows kept at unit magnitude
    betas: tuple[float, float] | None  # Adam's; None: an optimiser without second moments
    train_images: int  # images that are drawn from
    file_names: Callable[[int], str]  # the file of a data set index
    profiles: tuple[str, ...]  # [P] names of the averages
    centres: tuple[float, ...]  # sigma in the middle of each noise band, rising by equal factors
    num_classes: int
    batch: int  # images per update
    total_images: int  # images seen at the end
    warmup_images: int  # images over which the learning rate rises
    sigma_data: float
    planned: Callable[[int], float]  # the schedule: learning rate after so many images
    weighted_draws: bool  # images are repeated on purpose
    policy: str  # off, warn or repair
    exact_moments: bool = True  # Adam's v is fed with the measured gradients: nothing clips them
