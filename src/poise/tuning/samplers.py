"""Who draws the settings of a trial: Optuna's samplers, shown what all trials have in common.

Few trials of a study come to their end, and those that were given up are no worse than what they
showed. So a sampler is shown one level at a time, as in BOHB (Falkner et al. 2018): the metrics if
enough trials have them, else the proxy at the highest rung that enough trials have reached. It
learns from a trial as soon as that has reached its first rung. Samplers keep nothing between draws
but their random numbers, which follow here from the seed of the study and the number of the trial.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poise.arguments import one_of
from poise.tuning.plan import Plan
from poise.tuning.schedule import DIVERGED, REPEAT, Trial
from poise.tuning.space import ask, encode

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("gp", "tpe", "random", "grid")
_STARTUP = 8  # trials drawn at random before a model is made of them
_BEYOND = 1.0  # by so much what diverged is worse than the worst, in ln(error)


def check_sampler(name: str) -> str:
    """
    Raises:
        UsageError: there is no such sampler.
    """
    return str(one_of("sampler", name, SAMPLERS))


def draw(plan: Plan, trials: Sequence[Trial], base: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The settings of a new trial.

    Args:
        plan: the study; its sampler is not "grid".
        trials: all there are so far.
        base: the preset's own value of each setting.
        seed: of this draw.
    """
    import optuna

    rows = level(plan, trials)
    width = len(rows[0][1]) if rows else 1
    view = optuna.create_study(
        directions=["minimize"] * width, sampler=sampler_for(plan.sampler, seed)
    )
    for trial, costs in rows:
        params = encode(plan.space, trial.settings)
        view.enqueue_trial(params)
        told = view.ask()
        ask(plan.space, told, base)
        view.tell(told, list(costs))
    return ask(plan.space, view.ask(), base)


def level(plan: Plan, trials: Sequence[Trial]) -> list[tuple[Trial, tuple[float, ...]]]:
    """The trials with what a sampler is shown of each, lower is better.

    The highest level that more trials have reached than there are dimensions, or the first.
    """
    own = [trial for trial in trials if trial.role != REPEAT and trial.settings]
    enough = len(plan.space.trained()) + 2
    valued = [(trial, trial.costs) for trial in own if trial.costs]
    if len(valued) >= enough:
        return valued
    for rung in reversed(range(len(plan.rungs))):
        rows = [
            (trial, (trial.proxy[rung],))
            for trial in own
            if len(trial.proxy) > rung and math.isfinite(trial.proxy[rung])
        ]
        if len(rows) >= enough or rung == 0:
            worst = max((costs[0] for _, costs in rows), default=0.0) + _BEYOND
            lost = [t for t in own if t.state == DIVERGED and len(t.proxy) <= rung]
            return [*rows, *((trial, (worst,)) for trial in lost)]
    return []


def sampler_for(name: str, seed: int) -> "BaseSampler":
    """The sampler of that name; a grid draws nothing, so it gets the one of "random"."""
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(
            seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False
        )
    if name == "gp":
        return samplers.GPSampler(
            seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False
        )
    return samplers.RandomSampler(seed=seed)
