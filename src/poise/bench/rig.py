"""What is measured, on which machine, and the rounds in which everything takes its turn."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import DataFacts
from poise.data.batches import Batch
from poise.flops import TRAINING_PASSES, forward_macs
from poise.runtime import Runtime, generator_at
from poise.settings import Config

Work = Callable[[], object]
Key = tuple[str, str]
_FEWEST_ROUNDS = 3  # unless they take far too long
_PLAIN_SHARE = 0.4  # of the matrix rate, what a plain step reaches at best
_STEP_SHARE = 1 / 16  # of the time for all rounds, for one plain step


@dataclass(frozen=True)
class Rig:
    """A network, a machine and a batch of random images."""

    config: Config  # its batch is cut to what the time allows
    facts: DataFacts
    runtime: Runtime
    macs: int  # multiply-adds of one forward pass of one image
    batch: Batch

    @property
    def images(self) -> int:
        """Images of an update."""
        return self.config.training.batch

    @property
    def micro(self) -> int:
        """Images of a forward pass."""
        return self.config.training.micro_batch or self.images

    @property
    def precision(self) -> str:
        """ "bf16" or "fp32", the arithmetic of the run."""
        return "bf16" if self.runtime.dtype == torch.bfloat16 else "fp32"

    def wait(self) -> None:
        """Until the device has done what was asked of it."""
        if self.runtime.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, work: Work) -> float:
        """How long `work` takes."""
        self.wait()
        started = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - started


def make_rig(
    config: Config, facts: DataFacts, runtime: Runtime, *, seconds: float, rate: float
) -> Rig:
    """The rig for a run with these settings; a batch too slow for the time is halved.

    Args:
        config: the settings.
        facts: the shape of the images and the classes.
        runtime: device and precision.
        seconds: time for all rounds.
        rate: the machine's fp32 matrix rate in FLOP/s, roughly.
    """
    macs = forward_macs(config, facts)
    training = config.training
    count = training.batch
    bearable = seconds * _STEP_SHARE * _PLAIN_SHARE * rate
    while count > 8 and 2 * TRAINING_PASSES * macs * count > bearable:
        count //= 2
    micro = training.micro_batch
    if micro is not None and count % micro:
        micro = None  # the batch became smaller than the piece
    training = training.model_copy(update={"batch": count, "micro_batch": micro})
    generator = generator_at(config.seed, 0, "bench")
    shape = (count, facts.channels, facts.resolution, facts.resolution)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    classes = len(facts.label_names)
    labels = torch.randint(classes, (count,), generator=generator) if classes else None
    batch = Batch(images, labels, torch.arange(count))
    return Rig(config.model_copy(update={"training": training}), facts, runtime, macs, batch)


def rounds(
    rig: Rig,
    works: Mapping[Key, Work],
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> dict[Key, NDArray[np.float64]]:
    """Seconds of each work in each round [rounds]; a first round warms up and is not counted.

    As many count as fit into `seconds`: three if they fit into twice that, and always one.
    """
    times: dict[Key, list[float]] = {key: [] for key in works}
    started, done = time.perf_counter(), 0
    ends = 0.0  # when another round would end
    while done < 2 or ends < (2 if done <= _FEWEST_ROUNDS else 1) * seconds:
        began = time.perf_counter()
        for key, work in works.items():
            times[key].append(rig.seconds(work))
            if progress is not None:
                spent = int(time.perf_counter() - started)
                progress(min(spent, int(seconds)), int(seconds))
        now = time.perf_counter()
        done, ends = done + 1, now - started + now - began
    return {key: np.array(values[1:]) for key, values in times.items()}


def spread(values: NDArray[np.float64]) -> dict[str, Any]:
    """Median and quartiles."""
    low, median, high = (float(q) for q in np.percentile(values, [25, 50, 75]))
    return {"median": median, "low": low, "high": high}
