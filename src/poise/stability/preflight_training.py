"""Whether the training works: it resumes where it stopped, and its rate is bearable.

Everything runs on networks of its own, a few small updates each.
"""

import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.data.batches import Batch
from poise.errors import PoiseError
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.preflight_check import Check, Pace, part_of
from poise.stability.range_test import RangeTest, range_test, rates_around
from poise.training.checkpoint import load_checkpoint, save_checkpoint
from poise.training.ema import profile_name
from poise.training.loop import TrainState, update, weights_of

RESUME_IMAGES, RESUME_UPDATES = 4, 6  # images of each update of the self-test, and updates
_BEFORE, _AFTER = 2, 2  # updates before and after the checkpoint
_CLOSE = 1e-2  # relative difference after two updates on a GPU, which adds in no fixed order
_FEWEST = 4  # images of a batch of the range test
# images of a batch, batches, rates: the first of these range tests that the time allows is made
_PLANS = ((64, 3, 12), (32, 3, 12), (16, 3, 12), (8, 3, 12), (8, 2, 12), (8, 2, 8))
_PATIENCE = 1.3  # times its share, after which the test is broken off


def check_resume(
    config: Config, facts: DataFacts, batch: Batch, runtime: Runtime, run_root: Path
) -> Check:
    """Save, restore into a fresh state, and go on with both: are they the same, bit by bit?

    On a GPU, where sums have no fixed order, the restored state must be the same and the updates
    after it close.

    Args:
        config: the resolved settings.
        facts: shape, classes and spread of the images.
        batch: where the images of the small updates are taken from.
        runtime: device and arithmetic.
        run_root: where the checkpoint is written, and deleted.
    """
    pieces = [part_of(batch, i * RESUME_IMAGES, RESUME_IMAGES) for i in range(_BEFORE + _AFTER)]
    first = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
    for piece in pieces[:_BEFORE]:
        update(first, piece, config)
    second = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
    try:
        with tempfile.TemporaryDirectory(prefix=".preflight-", dir=run_root) as folder:
            path = Path(folder) / "state.safetensors"
            save_checkpoint(path, first, {}, {"seconds": 0.0})
            size = path.stat().st_size
            load_checkpoint(path, second)
    except (PoiseError, OSError) as error:
        return Check("resume", "warn", f"A checkpoint could not be saved and read: {error}")
    numbers: dict[str, Any] = {"checkpoint_bytes": size, "updates_after": _AFTER}
    name, gap = _difference(first, second)
    if name is None:
        for piece in pieces[_BEFORE:]:
            update(first, piece, config)
            update(second, piece, config)
        name, gap = _difference(first, second)
        if runtime.device.type == "cuda" and gap < _CLOSE:
            name = None
    numbers["relative_difference"] = gap
    if name is None:
        same = "bit by bit" if gap == 0 else f"to within {gap:.1g}, as GPUs add"
        sentence = f"A resumed run goes on as the unbroken one would: the same {same}."
        return Check("resume", "ok", sentence, numbers)
    sentence = (
        f"A resumed run would differ from the unbroken one, first in {name} (by {gap:.2g} of its "
        "size). Something in the state is not saved, or this machine does not repeat its results."
    )
    return Check("resume", "warn", sentence, numbers | {"tensor": name})


def check_rate(
    config: Config,
    facts: DataFacts,
    batch: Batch,
    runtime: Runtime,
    *,
    seconds: float,
    pace: Pace,
) -> tuple[Check, RangeTest | None]:
    """The range test, as large as the time allows, and whether `training.lr` is within its limit.

    Args:
        config: the resolved settings.
        facts: shape, classes and spread of the images.
        batch: where the images are taken from.
        runtime: device and arithmetic.
        seconds: of the test.
        pace: how long updates take.
    """
    plan = next((p for p in _PLANS if pace.seconds(p[0], p[1] * p[2]) <= seconds), None)
    if plan is None:
        needed = pace.seconds(_PLANS[-1][0], _PLANS[-1][1] * _PLANS[-1][2])
        sentence = f"The rate was not tested: it takes {needed:.1f} s, {seconds:.1f} s are left."
        return Check("rate", "skipped", sentence), None
    size, turns, count = min(plan[0], config.training.batch), plan[1], plan[2]
    if size < _FEWEST:
        sentence = f"The rate was not tested: with batches of {size} noise hides the answer."
        return Check("rate", "skipped", sentence), None
    found = range_test(
        config,
        facts,
        [part_of(batch, i * size, size) for i in range(turns)],
        runtime,
        rates=rates_around(config.training.lr, count),
        seconds=_PATIENCE * seconds,
    )
    fine, sentence = found.judge(config.training.lr)
    numbers = {
        "lr": config.training.lr,
        "limit": found.limit,
        "diverges": found.diverges,
        "proposal": found.proposal,
        "rates": list(found.rates),
        "errors": [e if math.isfinite(e) else None for e in found.errors],
        "batch": size,
        "complete": found.complete,
    }
    return Check("rate", "ok" if fine else "warn", sentence, numbers), found


def _difference(one: TrainState, other: TrainState) -> tuple[str | None, float]:
    """The first tensor that is not the same bit by bit, and the largest relative difference."""
    first, largest = None, 0.0
    if (one.images_seen, one.step) != (other.images_seen, other.step):
        return "images_seen", math.inf
    mine, theirs = dict(_tensors(one)), dict(_tensors(other))
    for name in [*mine, *(name for name in theirs if name not in mine)]:
        a, b = mine.get(name), theirs.get(name)
        if a is None or b is None or a.shape != b.shape:
            return first or name, math.inf
        if _same(a, b):
            continue
        first = first or name
        size = a.double().norm().item()
        gap = (a.double() - b.double()).norm().item() / size if size else math.inf
        largest = max(largest, gap if math.isfinite(gap) else math.inf)
    return first, largest


def _tensors(state: TrainState) -> Iterator[tuple[str, Tensor]]:
    """All that a checkpoint must bring back, by name, in one order."""
    yield from state.denoiser.state_dict().items()
    for name, weight in weights_of(state.denoiser).items():
        entry = state.optimizer.state.get(weight, {})
        for key in sorted(entry):
            if isinstance(entry[key], Tensor):
                yield f"{key} of {name}", entry[key]
    for std, averages in state.ema.profiles.items():
        for name, average in averages.items():
            yield f"{profile_name(std)}/{name}", average


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal in every value; NaN equals NaN."""
    return bool(torch.allclose(one, other.to(one.device), rtol=0, atol=0, equal_nan=True))
