"""How fast this machine trains and samples, stage by stage, beside what its arithmetic can do.

All variants take turns in one run, so that whatever else the machine does hits them alike. Figures
are medians with quartiles over the rounds; a ratio of two is taken within each round.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import DataFacts
from poise.bench.rates import quick_rate, rate_works
from poise.bench.rig import Key, Rig, Work, make_rig, rounds, spread
from poise.bench.sampling import own_call, plain_call, without_network
from poise.bench.steps import (
    STAGES,
    compiled_step,
    plain_state,
    plain_step,
    ready_state,
    staged_step,
)
from poise.flops import TRAINING_PASSES
from poise.runtime import choose_runtime, describe_environment
from poise.settings import Config
from poise.training.loop import update

Times = Mapping[Key, NDArray[np.float64]]
PLAIN = "plain fp32"  # the variant that the others are compared with
_PASSES = {"forward": 1, "backward": 2}  # stages made of convolutions and products


def bench(
    config: Config,
    facts: DataFacts,
    *,
    seconds: float = 30.0,
    compiled: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure training steps, sampling and the machine's own rates, on random images.

    Args:
        config: the network and its training; `training.threads` holds while this runs.
        facts: the shape of the images and the classes.
        seconds: time for all rounds. A batch too slow for that is halved until it is not; see
            `rig.rounds` for what is done where the machine has become slower meanwhile.
        compiled: also measure the compiled step, which takes minutes to prepare.
        progress: called with seconds spent and `seconds`.

    Returns:
        Plain data; `poise.bench.table` shows it. FLOP/s count two operations for a multiply-add of
        a convolution or product. Shares are of this machine's rate in the same precision.

    Raises:
        UsageError: the network does not fit the resolution.
    """
    threads = torch.get_num_threads()
    runtime = choose_runtime(config.training.precision, config.training.threads)
    try:
        rate = quick_rate(runtime)
        rig = make_rig(config, facts, runtime, seconds=seconds, rate=rate)
        found = _measure(rig, seconds, rate, compiled, progress)
    finally:
        torch.set_num_threads(threads)
    found["network"]["batch_of_run"] = config.training.batch
    return found


def _measure(
    rig: Rig,
    seconds: float,
    rate: float,
    compiled: bool,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    notes: list[str] = []
    state, memory = ready_state(rig)
    plain, stock = plain_state(rig, stock=False), plain_state(rig, stock=True)
    steps: dict[str, Work] = {
        PLAIN: lambda: plain_step(rig, plain, stock=False),
        "best stock": lambda: plain_step(rig, stock, stock=True),
        "poise": lambda: update(state, rig.batch, rig.config),
    }
    step, prepared = compiled_step(rig, notes.append) if compiled else (None, None)
    if step is not None:
        steps["poise compiled"] = step
    laps: dict[str, list[float]] = {stage: [] for stage in STAGES}
    products, operations = rate_works(rig, seconds, rate)
    calls = {PLAIN: plain_call(rig), "poise": own_call(rig, state.denoiser)}
    per_batch, rest = without_network(rig, state.denoiser)
    works: dict[Key, Work] = {("step", name): work for name, work in steps.items()}
    works |= {("call", name): work for name, work in calls.items()}
    works |= {("rate", name): work for name, work in products.items()}
    works |= {
        ("stages", ""): lambda: staged_step(rig, state, laps),
        ("sampler", ""): rest,
    }
    times = rounds(rig, works, seconds, progress)
    rates = {name: operations[name] / times["rate", name] for name in products}
    return {
        "machine": describe_environment(rig.runtime),
        "network": {
            "macs": rig.macs,
            "parameters": sum(w.numel() for w in state.denoiser.parameters()),
            "resolution": rig.facts.resolution,
            "batch": rig.images,
            "micro_batch": rig.micro,
        },
        "rounds": len(times["sampler", ""]),
        "rates": {name: spread(values) for name, values in rates.items()},
        "step": {name: _step_row(rig, name, times, rates) for name in steps},
        "stages": _stage_rows(rig, laps, rates),
        "sampling": {name: _sampling_row(rig, name, times, rates, per_batch) for name in calls},
        "compile_seconds": prepared,
        "memory_peak_bytes": memory,
        "notes": notes,
    }


def _step_row(
    rig: Rig, name: str, times: Times, rates: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    took = times["step", name]
    flops = 2.0 * TRAINING_PASSES * rig.macs * rig.images / took
    precision = "fp32" if name == PLAIN else rig.precision
    row = {
        "seconds": spread(took),
        "images_per_second": spread(rig.images / took),
        "flops_per_second": spread(flops),
        "share_of_matrix": spread(flops / rates[f"matrix {precision}"]),
        "times_plain": spread(times["step", PLAIN] / took),
    }
    if precision == rig.precision and "convolution forward" in rates:
        # one forward and one backward pass of each convolution, the latter with twice the work
        both = 3 / (1 / rates["convolution forward"] + 2 / rates["convolution backward"])
        row["share_of_convolution"] = spread(flops / both)
    return row


def _stage_rows(
    rig: Rig, laps: Mapping[str, list[float]], rates: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    took = {stage: np.array(values[1:]) for stage, values in laps.items()}
    total = np.sum(list(took.values()), axis=0)
    rows: dict[str, Any] = {}
    for stage, values in took.items():
        rows[stage] = {"seconds": spread(values), "share_of_step": spread(values / total)}
        if stage in _PASSES:
            flops = 2.0 * _PASSES[stage] * rig.macs * rig.images / values
            rows[stage]["flops_per_second"] = spread(flops)
            rows[stage]["share_of_matrix"] = spread(flops / rates[f"matrix {rig.precision}"])
            if f"convolution {stage}" in rates:
                share = flops / rates[f"convolution {stage}"]
                rows[stage]["share_of_convolution"] = spread(share)
    return rows


def _sampling_row(
    rig: Rig,
    name: str,
    times: Times,
    rates: Mapping[str, NDArray[np.float64]],
    calls: int,
) -> dict[str, Any]:
    """Images per second of a whole batch: its calls of the network, and all the rest."""
    rest = times["sampler", ""]
    took = calls * times["call", name] + rest
    plain = calls * times["call", PLAIN] + rest
    flops = 2.0 * rig.macs * rig.images * calls / took
    precision = "fp32" if name == PLAIN else rig.precision
    return {
        "calls": calls,
        "call_seconds": spread(times["call", name]),
        "sampler_seconds": spread(rest),  # noise, solver and pictures of a batch
        "images_per_second": spread(rig.images / took),
        "flops_per_second": spread(flops),
        "share_of_matrix": spread(flops / rates[f"matrix {precision}"]),
        "times_plain": spread(plain / took),
    }
