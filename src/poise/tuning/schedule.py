"""What is done next in a study: one pure function of its trials.

Successive halving (Jamieson and Talwalkar 2016) in brackets: a bracket's trials train to the first
rung; where all have arrived, the best third goes on from its checkpoint to the next, and the others
are given up. The preset as it is runs to its end whatever it shows, since all is compared with it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from poise.tuning.plan import THIRD, Plan

DEFAULT, SEARCH, REPEAT = "default", "search", "repeat"
RUNNING, PAUSED = "running", "paused"
COMPLETE, STOPPED, DIVERGED, FAILED = "complete", "stopped", "diverged", "failed"
LOST = frozenset((DIVERGED, FAILED))  # ended without a value, through settings of its own
ENDED = LOST | {COMPLETE, STOPPED}


@dataclass(frozen=True)
class Trial:
    """A trial as the schedule sees it.

    Attributes:
        number: from 0.
        role: "default", "search" or "repeat".
        state: "running", "paused", or one of ENDED.
        rung: the last rung that was reached; -1: none yet.
        proxy: of each rung that was reached; lower is better, nan and infinite are worst.
        bracket: those it is compared with.
        claimed: whether a living worker is at it.
        cost: seconds spent on it.
        costs: values turned so that lower is better; empty until it is complete.
        of: the trial that a repeat repeats.
        seed: of a repeat, from 1.
    """

    number: int
    role: str
    state: str
    rung: int = -1
    proxy: tuple[float, ...] = ()
    bracket: int = 0
    claimed: bool = False
    cost: float = 0.0
    costs: tuple[float, ...] = ()
    of: int | None = None
    seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Take:
    """Go on with a trial, up to a rung."""

    number: int
    rung: int


@dataclass(frozen=True)
class Draw:
    """Make a new trial."""

    role: str
    bracket: int = 0
    of: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class GiveUp:
    """Stop a paused trial."""

    number: int


@dataclass(frozen=True)
class Wait:
    """Others are at what there is to do."""


@dataclass(frozen=True)
class Over:
    """Nothing is left to do."""


Step = Take | Draw | GiveUp | Wait | Over


def next_step(trials: Sequence[Trial], plan: Plan, points: int | None = None) -> Step:
    """What one worker does next.

    Args:
        trials: all of the study.
        plan: what it is to do.
        points: trials that a grid has beside the default; None: there is no end of them.
    """
    for trial in trials:  # left by a worker that is gone
        if trial.state == RUNNING and not trial.claimed:
            return Take(trial.number, _goal(trial, plan))
    if not any(trial.role == DEFAULT for trial in trials):
        return Draw(DEFAULT)
    is_open = _search_is_open(trials, plan, points)
    for bracket in sorted({trial.bracket for trial in trials if trial.role != REPEAT}):
        members = [t for t in trials if t.bracket == bracket and t.role != REPEAT]
        step = _halve(members, plan, closed=len(members) >= plan.bracket or not is_open)
        if step is not None:
            return step
    if is_open:
        return Draw(SEARCH, bracket=_bracket(trials, plan))
    if any(trial.state in (RUNNING, PAUSED) and trial.role != REPEAT for trial in trials):
        return Wait()
    return _repeat(trials, plan)


def _search_is_open(trials: Sequence[Trial], plan: Plan, points: int | None) -> bool:
    drawn = sum(trial.role == SEARCH for trial in trials)
    if points is not None and drawn >= points:
        return False
    if plan.trials is not None and drawn + 1 >= plan.trials:
        return False
    return sum(t.cost for t in trials if t.role != REPEAT) < plan.search_seconds


def _bracket(trials: Sequence[Trial], plan: Plan) -> int:
    """The number of the first bracket with room."""
    drawn = sum(trial.role != REPEAT for trial in trials)
    return drawn // plan.bracket


def _goal(trial: Trial, plan: Plan) -> int:
    last = len(plan.rungs) - 1
    return last if trial.role in (DEFAULT, REPEAT) else min(trial.rung + 1, last)


def _halve(members: Sequence[Trial], plan: Plan, *, closed: bool) -> Step | None:
    """Send the best third of a rung on, and give up the others; None: nothing to do here now."""
    for rung in range(len(plan.rungs) - 1):
        waiting = [t for t in members if t.state == PAUSED and t.rung == rung]
        if not waiting:
            continue
        coming = [t for t in members if t.role == SEARCH and t.state == RUNNING and t.rung < rung]
        if coming or not closed:
            return None
        searched = [t for t in members if t.role == SEARCH and t.rung >= rung]
        arrived = sorted(searched, key=lambda t: rank(t, rung))  # the default takes nobody's place
        going = {t.number for t in arrived[: max(1, len(arrived) // THIRD)]}
        for trial in waiting:
            if trial.number not in going:
                return GiveUp(trial.number)
        return Take(waiting[0].number, rung + 1)
    return None


def rank(trial: Trial, rung: int) -> tuple[float, int]:
    """Where a trial stands at a rung; the lower the better, the older of equals first."""
    return proxy_at(trial, rung), trial.number


def proxy_at(trial: Trial, rung: int) -> float:
    """The proxy at a rung; infinite where there is none that is finite."""
    value = trial.proxy[rung] if rung < len(trial.proxy) else math.inf
    return value if math.isfinite(value) else math.inf


def _repeat(trials: Sequence[Trial], plan: Plan) -> Step:
    """Each finalist with each seed, seed by seed, so that any end leaves pairs.

    None is begun where the budget has been spent on longer trials than it was made for.
    """
    repeats = [trial for trial in trials if trial.role == REPEAT]
    in_time = sum(trial.cost for trial in trials) < plan.repeat_seconds
    for seed in range(1, plan.seeds + 1):
        for number in finalists(trials):
            if in_time and not any(t.of == number and t.seed == seed for t in repeats):
                return Draw(REPEAT, of=number, seed=seed)
    return Wait() if any(trial.state == RUNNING for trial in repeats) else Over()


def finalists(trials: Sequence[Trial]) -> tuple[int, ...]:
    """The preset as it is, and the best of the others; empty if one of them has no value."""
    default = [t for t in trials if t.role == DEFAULT and t.state == COMPLETE]
    found = [t for t in trials if t.role == SEARCH and t.state == COMPLETE]
    if not default or not found:
        return ()
    return default[0].number, best_of(found).number


def best_of(trials: Sequence[Trial]) -> Trial:
    """The lowest cost; of several metrics, the lowest mean rank among those on the Pareto front."""
    front = [trials[i] for i in pareto([t.costs for t in trials])]
    ranks = rank_sums(front)
    return min(front, key=lambda trial: (ranks[trial.number], trial.number))


def rank_sums(trials: Sequence[Trial]) -> dict[int, int]:
    """For each trial, by its number, how often another is better, over all metrics."""
    columns = list(zip(*(t.costs for t in trials), strict=True))
    return {
        trial.number: sum(
            sum(cost < own for cost in column)
            for column, own in zip(columns, trial.costs, strict=True)
        )
        for trial in trials
    }


def pareto(costs: Sequence[Sequence[float]]) -> list[int]:
    """Indices of those that no other is at least as good as in everything and better in one."""

    def beats(a: Sequence[float], b: Sequence[float]) -> bool:
        pairs = list(zip(a, b, strict=True))
        return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)

    return [i for i, own in enumerate(costs) if not any(beats(other, own) for other in costs)]
