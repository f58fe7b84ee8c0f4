"""Before the first update: does the machine hold this run, do the data teach, does it resume?

Each check is given its share of a few seconds and leaves out, with a sentence, what does not fit.
Nothing of the run is touched: networks, optimisers and random numbers here are its own.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from poise.artifacts import DataFacts, write_json
from poise.build import build_denoiser
from poise.data.balance import sampling_weights
from poise.data.batches import Batch, batches
from poise.data.imageset import Dataset
from poise.data.splits import Splits
from poise.errors import TrainingError
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.preflight_check import Check, Pace
from poise.stability.preflight_data import check_data
from poise.stability.preflight_machine import check_disk, check_memory
from poise.stability.preflight_noise import check_batch
from poise.stability.preflight_training import (
    RESUME_IMAGES,
    RESUME_UPDATES,
    check_rate,
    check_resume,
)

_SHAPES = Runtime(torch.device("meta"), torch.float32)  # builds networks without weights

_LEAST_SECONDS, _BUDGET_SHARE = 10.0, 0.02
_RUN_SHARE = 0.1  # of the training, at most
_MEMORY, _DATA, _RATE = 0.25, 0.1, 0.6  # shares of the time that is left, in this order


@dataclass(frozen=True)
class Preflight:
    """All answers, and the settings to train with."""

    checks: tuple[Check, ...]
    config: Config  # as given, but for what a check with the verdict "changed" says
    seconds: float  # how long it took

    @property
    def refused(self) -> tuple[Check, ...]:
        """The checks because of which the run should not start."""
        return tuple(check for check in self.checks if check.verdict == "refuse")

    def lines(self) -> list[str]:
        """What the person in front of the screen is told: little, if all is well."""
        odd = [c for c in self.checks if c.verdict in ("warn", "changed", "refuse")]
        left_out = [c.name for c in self.checks if c.verdict == "skipped"]
        tail = f" (left out: {', '.join(left_out)})" if left_out else ""
        found = "nothing stands against this run" if not odd else f"{len(odd)} of them speak up"
        head = f"preflight: {len(self.checks)} checks in {self.seconds:.1f} s, {found}{tail}"
        return [head, *(f"  {c.name}: {c.sentence}" for c in odd)]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "seconds": round(self.seconds, 2),
            "checks": [check.to_json() for check in self.checks],
        }

    def write(self, run_root: Path) -> None:
        """preflight.json of a run folder.

        Raises:
            ArtifactError: it cannot be written.
        """
        write_json(run_root / "preflight.json", self.to_json())

    def demand(self) -> None:
        """
        Raises:
            TrainingError: a check refuses the run; all that do are named.
        """
        if self.refused:
            raise TrainingError(
                "The run was not started.\n" + "\n".join(c.sentence for c in self.refused),
                remedy="Change what is said above; --no-preflight starts the run all the same.",
            )


def seconds_for(budget: float | None) -> float:
    """The time a preflight may take, of a run with a wall-clock budget in seconds, or without."""
    return max(_LEAST_SECONDS, _BUDGET_SHARE * (budget or 0.0))


def preflight(
    config: Config,
    dataset: Dataset,
    splits: Splits,
    facts: DataFacts,
    runtime: Runtime,
    run_root: Path,
    seconds_allowed: float = _LEAST_SECONDS,
) -> Preflight:
    """All checks; writes nothing that stays. `Preflight.write` does, `Preflight.demand` judges.

    Args:
        config: the resolved settings.
        dataset: the images; not changed.
        splits: where each of them belongs.
        facts: shape, classes and spread of the images.
        runtime: device and arithmetic of the run.
        run_root: the run folder; made if it is not there.
        seconds_allowed: about how long it may take; see `seconds_for`.
    """
    began = time.monotonic()

    def left() -> float:
        return max(seconds_allowed - (time.monotonic() - began), 0.0)

    parameters = sum(p.numel() for p in build_denoiser(config, facts, _SHAPES).parameters())
    done = [check_disk(config, parameters, run_root)]
    can_write = done[0].verdict != "refuse"
    done.append(
        check_data(
            dataset,
            splits.train,
            batch=config.training.batch,
            sigma_data=facts.sigma_data,
            seconds=_DATA * left(),
        )
    )
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        batch = _first_batch(config, dataset, splits)
        share = _MEMORY * left()
        memory, config, pace = check_memory(config, facts, batch, runtime, share)
        updates = -(-config.training.images // config.training.batch)
        whole = pace.seconds(config.training.images, updates)
        seconds_allowed = min(seconds_allowed, _RUN_SHARE * whole)
        done.append(memory)
        if memory.verdict != "refuse":
            done += _trials(config, facts, batch, runtime, run_root, can_write, left, pace)
    return Preflight(tuple(done), config, time.monotonic() - began)


def _trials(
    config: Config,
    facts: DataFacts,
    batch: Batch,
    runtime: Runtime,
    run_root: Path,
    can_write: bool,
    left: Callable[[], float],
    pace: Pace,
) -> list[Check]:
    """The checks that train a little: resuming, the rate, the size of the batch."""
    done = []
    if can_write and left() > pace.seconds(RESUME_IMAGES, RESUME_UPDATES):
        done.append(check_resume(config, facts, batch, runtime, run_root))
    else:
        reason = "there is no time" if can_write else "the folder cannot be written to"
        done.append(Check("resume", "skipped", f"Resuming was not tested: {reason}."))
    rate, _ = check_rate(config, facts, batch, runtime, seconds=_RATE * left(), pace=pace)
    done.append(rate)
    done.append(check_batch(config, facts, batch, runtime, seconds=left(), pace=pace))
    return done


def _first_batch(config: Config, dataset: Dataset, splits: Splits) -> Batch:
    """The first images of the run, 192 at least, so that small batches of them differ."""
    stream = batches(
        dataset,
        splits.train,
        batch=max(config.training.batch, min(192, len(splits.train))),
        seed=config.seed,
        weights=sampling_weights(dataset, splits.train, config.data.balance),
    )
    return next(stream)
