"""Whether the machine holds the run: memory for an update, disk for the checkpoints."""

import contextlib
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.data.batches import Batch
from poise.errors import TrainingError
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.memory import (
    Footprint,
    available_memory,
    footprint,
    halved,
    is_out_of_memory,
    peak_memory,
    reset_peak,
)
from poise.stability.preflight_check import Check, Pace, mib, part_of
from poise.training.loop import TrainState, update

_SHARE = 0.9  # of the memory that is free: the rest is for validation, pictures and others
_FOOTPRINT_IMAGES, _UPDATE_PASSES = 6, 3  # images it looks at; passes that an update is worth
_PACED = (4, 4, 12)  # images of the updates that are timed; the first warms up
_SLACK = 64 * 2**20  # bytes of disk for logs, pictures and the report
_MOMENTS = 2  # per weight; optimisers that keep fewer need less
_WRITTEN = 4  # checkpoints at once: the last two, the newest proved one, and one being written


def check_memory(
    config: Config, facts: DataFacts, batch: Batch, runtime: Runtime, seconds: float
) -> tuple[Check, Config, Pace]:
    """The largest piece of a batch that fits, by estimate and by a real update.

    Args:
        config: the resolved settings.
        facts: shape, classes and spread of the images.
        batch: a whole batch of the run, or more.
        runtime: device and arithmetic.
        seconds: a real update that would take longer is left out.

    Returns:
        The answer, the settings to train with (`training.micro_batch` made smaller where needed,
        the update stays the same), and how long updates take.
    """
    state = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
    size = config.training.batch
    before = min(config.training.micro_batch or size, size)
    micro, grew, pace, needs = before, None, Pace(0.0, 0.0), None
    room = available_memory(runtime.device)
    try:
        needs, pace = _measured(state, batch, config, runtime, seconds)
        if room is not None:
            while needs.peak(micro, size) > _SHARE * room:
                micro = halved(micro, size)
        if pace.seconds(micro) < seconds:
            micro, grew = _tried(state, config, batch, micro, runtime)
    except Exception as error:
        if not is_out_of_memory(error) and not isinstance(error, TrainingError):
            raise
        numbers = {} if needs is None else _memory_numbers(needs, room, 1, size)
        sentence = f"The memory does not hold an update of this network ({_first_line(error)})"
        return Check("memory", "refuse", sentence, numbers), config, pace
    numbers = _memory_numbers(needs, room, micro, size) | {"grew_by_bytes": grew}
    free = "" if room is None else f" of {mib(room)} that are free"
    if micro == before:
        sentence = f"An update takes about {mib(needs.peak(micro, size))}{free}."
        return Check("memory", "ok", sentence, numbers), config, pace
    sentence = (
        f"An update in pieces of {before} images, about {mib(needs.peak(before, size))}{free}, "
        f"does not fit: training.micro_batch is {micro} in this run. The update is the same."
    )
    changed = config.training.model_copy(update={"micro_batch": micro})
    check = Check("memory", "changed", sentence, numbers)
    return check, config.model_copy(update={"training": changed}), pace


def _measured(
    state: TrainState, batch: Batch, config: Config, runtime: Runtime, seconds: float
) -> tuple[Footprint, Pace]:
    """What an update needs, and how long it takes; by the forward passes alone if that is long."""
    began = time.monotonic()
    needs = footprint(state, batch, config)
    elapsed = time.monotonic() - began  # the first call is slow: a reason to time others
    if elapsed > seconds:
        return needs, Pace(0.0, _UPDATE_PASSES * elapsed / _FOOTPRINT_IMAGES)
    times = []
    for images in _PACED:
        began = time.monotonic()
        update(state, part_of(batch, 0, images), config)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        times.append(time.monotonic() - began)
    image = max(times[2] - times[1], 0.0) / (_PACED[2] - _PACED[1])
    return needs, Pace(max(times[1] - image * _PACED[1], 0.0), image)


def _tried(
    state: TrainState, config: Config, batch: Batch, micro: int, runtime: Runtime
) -> tuple[int, int | None]:
    """A real update on one piece, halved until it fits: its size, and how much memory it took."""
    while True:
        flat = config.training.model_copy(update={"micro_batch": micro})
        known = reset_peak(runtime.device)
        before = peak_memory(runtime.device) if known else None
        try:
            update(state, part_of(batch, 0, micro), config.model_copy(update={"training": flat}))
            if runtime.device.type == "cuda":
                torch.cuda.synchronize(runtime.device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            micro = halved(micro, config.training.batch)
            continue
        after = peak_memory(runtime.device)
        return micro, None if before is None or after is None else after - before


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _memory_numbers(needs: Footprint, room: int | None, micro: int, batch: int) -> dict[str, Any]:
    most = None if room is None else needs.largest(int(_SHARE * room), 2**16)
    return {
        "fixed_bytes": needs.fixed,
        "bytes_per_image": needs.kept,
        "peak_estimated_bytes": needs.peak(micro, batch),
        "available_bytes": room,
        "micro_batch": micro,
        "largest_micro_batch": most,  # of any batch up to 65,536
    }


def checkpoint_bytes(config: Config, parameters: int) -> int:
    """Size of a checkpoint: weights, two moments, averages; fp32."""
    return 4 * parameters * (1 + _MOMENTS + len(config.training.ema_stds))


def snapshot_bytes(config: Config, parameters: int) -> int:
    """Size of a snapshot: weights and averages; fp32."""
    return 4 * parameters * (1 + len(config.training.ema_stds))


def check_disk(config: Config, parameters: int, run_root: Path) -> Check:
    """Whether the folder can be written to, and holds the checkpoints and the snapshots.

    Args:
        config: the resolved settings; `cadence.snapshots` is what will be kept.
        parameters: numbers in the network.
        run_root: the run folder; made if it is not there.
    """
    failed = _write_test(run_root)
    if failed is not None:
        return Check("disk", "refuse", f"Cannot write to {failed}", {"path": str(run_root)})
    free = shutil.disk_usage(run_root).free
    one, shot = checkpoint_bytes(config, parameters), snapshot_bytes(config, parameters)
    shots = config.cadence.snapshots * shot
    numbers = {
        "free_bytes": free,
        "checkpoint_bytes": one,
        "snapshot_bytes": shot,
        "snapshots": config.cadence.snapshots,
        "needed_bytes": _WRITTEN * one + shots + _SLACK,
    }
    if free < 2 * one + _SLACK:
        sentence = (
            f"{run_root} has {mib(free)} free, and two checkpoints need {mib(2 * one + _SLACK)}. "
            "Free some space, or choose another folder."
        )
        return Check("disk", "refuse", sentence, numbers)
    if free < numbers["needed_bytes"]:
        sentence = (
            f"{run_root} has {mib(free)} free; checkpoints and {config.cadence.snapshots} "
            f"snapshots need {mib(numbers['needed_bytes'])}. Lower cadence.snapshots, or free "
            "some space: the run goes on without what cannot be written."
        )
        return Check("disk", "warn", sentence, numbers)
    sentence = f"The run needs {mib(numbers['needed_bytes'])} of {mib(free)} on the disk."
    return Check("disk", "ok", sentence, numbers)


def _write_test(folder: Path) -> str | None:
    """Create, flush, rename and delete a file; the path and the reason where that fails."""
    first = folder / f".{uuid.uuid4().hex[:8]}.part"
    second = first.with_suffix(".done.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with first.open("wb") as file:
            file.write(b"poise")
            file.flush()
            os.fsync(file.fileno())
        first.replace(second)
        second.unlink()
    except OSError as error:
        return f"{error.filename or folder}: {error.strerror or error}."
    finally:
        for path in (first, second):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return None
