"""Any other rank of a training in several processes: it does the updates that rank 0 orders.

It writes nothing, judges nothing and draws nothing.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from poise.data.prefetch import Feed
from poise.errors import TrainingError
from poise.journal import Prepared
from poise.learning.fresh import feed_from, fresh_state
from poise.learning.session import Quarantine
from poise.signals import catch_signals
from poise.training.loop import StepRecord, TrainState, steps, weights_of
from poise.training.parallel import World, bit_sums

Disturb = Callable[[TrainState], None]


def follow(job: Prepared, world: World, *, disturb: Disturb = lambda state: None) -> str:
    """Take part in a training until rank 0 ends it; how it ended, as `World.end` says it.

    Args:
        job: the same run as that of rank 0.
        world: of which this process is another rank.
        disturb: called before each update, in a fire drill.

    Raises:
        RankLost: rank 0 is gone, or another one is.
        TrainingError: this process is not where rank 0 is.
    """
    state = fresh_state(job, lambda text: None)
    state.world = world
    follower = _Follower(job, world, state)
    with catch_signals() as caught:
        try:
            world.ready()
            while True:
                order = world.next_order(lambda: caught.names)
                if order["do"] == "end":
                    world.go_home()
                    return str(order["how"])
                if order["do"] == "step":
                    disturb(state)
                follower.carry_out(order)
        finally:
            follower.close()


class _Follower:
    """The state of one rank, and the stream of batches that belongs to it."""

    def __init__(self, job: Prepared, world: World, state: TrainState) -> None:
        self._job, self._world, self._state = job, world, state
        self._quarantine = Quarantine(len(job.facts.label_names), state.pixel_limit)
        self._feed: Feed | None = None
        self._records: Iterator[StepRecord] = iter(())

    def carry_out(self, order: dict[str, Any]) -> None:
        """One order of rank 0."""
        if order["do"] == "state":
            self._begin(order)
        elif order["do"] == "check":
            self._world.compare(bit_sums(weights_of(self._state.denoiser).values()))
        else:
            self._step(order)

    def close(self) -> None:
        """End the stream of batches."""
        if self._feed is not None:
            self._feed.close()

    def _begin(self, order: dict[str, Any]) -> None:
        state, job = self._state, self._job
        self._world.share_(state)
        state.images_seen, state.step = order["images_seen"], order["step"]
        state.denoiser.dtype = getattr(torch, order["precision"])
        self.close()
        self._feed = feed_from(job, state.images_seen)
        stream = self._quarantine.pass_on(self._feed)
        self._records = steps(state, stream, job.config, until=job.config.training.images)

    def _step(self, order: dict[str, Any]) -> None:
        state = self._state
        if order["images_seen"] != state.images_seen:
            raise TrainingError(
                f"Rank {self._world.rank} is at {state.images_seen:,} images.",
                expected=f"{order['images_seen']:,}, as rank 0",
                remedy="Start all processes with the same Poise and the same images.",
            )
        state.lr_scale, state.micro_batch = order["lr_scale"], order["micro_batch"]
        if "quarantine" in order:
            self._quarantine.restore(order["quarantine"])
        next(self._records)
