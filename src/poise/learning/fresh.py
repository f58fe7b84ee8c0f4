"""What every process of a training begins with: the state before the first update, the batches."""

from collections.abc import Callable
from functools import partial

from poise.build import build_denoiser
from poise.data.balance import sampling_weights
from poise.data.batches import batches
from poise.data.prefetch import Feed, feed
from poise.journal import Prepared
from poise.training.compiling import loss_function
from poise.training.gate import Gate
from poise.training.inputs import BRIGHTEST
from poise.training.loop import TrainState
from poise.training.schedules import batch_size


def fresh_state(job: Prepared, say: Callable[[str], None]) -> TrainState:
    """The state before the first update; `say` is told why a step is not compiled."""
    config, device = job.config, job.runtime.device
    repairing = config.stability.policy == "repair"
    state = TrainState.fresh(
        build_denoiser(config, job.facts, job.runtime),
        config.training,
        Gate(config.diffusion, device) if repairing else None,
    )
    state.pixel_limit = None if job.facts.latents else BRIGHTEST
    state.loss = loss_function(config, device, say)
    return state


def feed_from(job: Prepared, images_seen: int) -> Feed:
    """The batches of a run from one position on; close it when done."""
    config = job.config
    stream = batches(
        job.dataset,
        job.splits.train,
        batch=partial(batch_size, config.training),
        seed=config.seed,
        start=images_seen,
        flip=config.data.flip == "on",
        weights=sampling_weights(job.dataset, job.splits.train, config.data.balance),
    )
    return feed(job.dataset, stream, job.runtime.device)
