"""A learning-rate range test that is valid for losses below zero.

The rate rises geometrically over a few dozen updates of a fresh network (Smith 2017, Section 3.3),
and what is watched is the logarithm of the weighted error before the log-variance term: about 0
while nothing is learned, below it when something is. Few batches come back in turn with the noise
they had before, so that an error is compared with itself and not with other noise.

Where weights are forced to unit length a rate that is too high need not end in NaN: the error comes
back to about 1 and stays. Both are read as "does not fall any more".
"""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.data.batches import Batch
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import TrainState, update

RATES = 12
_BELOW, _ABOVE = 2.0**-5, 2.0**6  # of the rate in question: the range of the rates
_FALL = 0.03  # in ln(error), the least that counts as learning
_RISE = 0.20  # in ln(error) above the best so far: it does not fall any more
_NEAR = 2.0  # a run endures less than a few dozen updates: from there on a rate is close to it
_SAFETY = 3.0  # below the limit: what is proposed


@dataclass(frozen=True)
class RangeTest:
    """How the error went while the rate rose."""

    rates: tuple[float, ...]  # ascending; those that were reached
    errors: tuple[float, ...]  # weighted error at each rate, median over batches; inf: not finite
    start: float  # the error before anything was learned
    limit: float | None  # the highest rate at which the error still falls; None: at no rate
    diverges: float | None  # the lowest rate from which it rises or is not finite; None: not met
    proposal: float | None  # a rate well below the limit
    complete: bool  # false: the time was up before the rates were

    def judge(self, rate: float) -> tuple[bool, str]:
        """Whether a highest rate is within the limit, and a sentence about it."""
        if self.limit is None:
            if self.diverges is None:
                return True, "The error did not fall at any rate: the test says nothing."
            return False, (
                f"At every rate tried the error rises, from {self.diverges:.2g} on at the latest; "
                f"training.lr is {rate:.2g}. Try a thousandth of it."
            )
        if self.diverges is None and rate > self.rates[-1]:
            return True, f"The time was up at a rate of {self.limit:.2g}, below training.lr."
        if self.diverges is None:
            return True, (
                f"training.lr {rate:.2g} is within the limit: the error falls up to "
                f"{self.limit:.2g} and perhaps beyond."
            )
        seen = f"the error falls up to {self.limit:.2g} and rises from {self.diverges:.2g} on"
        if rate <= self.limit / _NEAR:
            return True, f"training.lr {rate:.2g} is within the limit: {seen}."
        where = "too high" if rate >= self.diverges else "close to the limit"
        return False, (
            f"training.lr {rate:.2g} is {where}: in a short test {seen}. "
            f"Proposed: training.lr={self.proposal:.2g}."
        )


def range_test(
    config: Config,
    facts: DataFacts,
    batches: Sequence[Batch],
    runtime: Runtime,
    *,
    rates: Sequence[float] | None = None,
    seconds: float = math.inf,
) -> RangeTest:
    """Train a fresh network a little at rising rates; nothing of the caller's is changed.

    Args:
        config: the resolved settings; the network and all of the optimiser but its rate are theirs.
        facts: shape, classes and spread of the images.
        batches: three, or any odd number; each rate is held for one update on each.
        runtime: device and arithmetic.
        rates: ascending; None: 12 of them from 1/32 to 64 times `training.lr`.
        seconds: no further rate is begun after so long.

    Returns:
        What was seen, and the limit that follows from it.
    """
    given = tuple(rates) if rates is not None else rates_around(config.training.lr)
    devices = [runtime.device] if runtime.device.type == "cuda" else []
    until = time.monotonic() + seconds
    rows: list[list[float]] = []
    with torch.random.fork_rng(devices=devices):
        state = TrainState.fresh(build_denoiser(config, facts, runtime), config.training)
        for rate in given:
            if rows and time.monotonic() > until:
                break
            rows.append(_errors_at(state, config, batches, rate))
            if not any(map(math.isfinite, rows[-1])):
                break
    return read_curve(given[: len(rows)], rows, complete=_ended(rows, given))


def rates_around(rate: float, count: int = RATES) -> tuple[float, ...]:
    """`count` rates in equal ratios, from 1/32 to 64 times `rate`."""
    ratio = (_ABOVE / _BELOW) ** (1 / (count - 1))
    return tuple(rate * _BELOW * ratio**i for i in range(count))


def read_curve(
    rates: Sequence[float], rows: Sequence[Sequence[float]], *, complete: bool = True
) -> RangeTest:
    """What the errors at rising rates say.

    An error measured at one rate is what the rates below have made of the network, so a rise counts
    against the rate before it as well: `diverges` is that rate unless the error was best there.

    Args:
        rates: [R], ascending.
        rows: [R, K], the error of each of K batches, before its update at that rate.
        complete: handed on.
    """
    finite = [[e if math.isfinite(e) and e > 0 else math.inf for e in row] for row in rows]
    errors = tuple(statistics.median(row) for row in finite)
    logs = [math.log(e) for e in errors]
    begin = logs[0] if math.isfinite(logs[0]) else 0.0  # 1: what a network that knows nothing has
    best, best_at, turned = begin, 0, None
    for i, value in enumerate(logs):
        if value < best:
            best, best_at = value, i
        rest = logs[i:]
        if value > best + _RISE and min(rest) > best + _RISE / 2:
            turned = i
            break
    diverges = None if turned is None else rates[turned]
    limit = None
    if begin - best > _FALL:
        limit = rates[-1] if turned is None else rates[max(turned - 1, best_at)]
    proposal = None if limit is None else limit / _SAFETY
    return RangeTest(tuple(rates), errors, errors[0], limit, diverges, proposal, complete)


def _errors_at(
    state: TrainState, config: Config, batches: Sequence[Batch], rate: float
) -> list[float]:
    """One update on each batch at one rate; the error of each before its update."""
    flat = {"lr": rate, "warmup": 0.0, "decay": "constant"}
    held = config.model_copy(update={"training": config.training.model_copy(update=flat)})
    errors, seen = [], 0
    for batch in batches:
        state.images_seen = seen  # the same place in the run: the same noise as last time
        errors.append(update(state, batch, held).error.double().mean().item())
        seen += len(batch.images)
    return errors


def _ended(rows: Sequence[Sequence[float]], rates: Sequence[float]) -> bool:
    return len(rows) == len(rates) or not any(map(math.isfinite, rows[-1]))
