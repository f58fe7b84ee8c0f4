"""Who draws the settings of a trial: Optuna's samplers, shown how all trials stand to each other.

Few trials of a study come to their end, and an error after a ninth of a training cannot be compared
with one after all of it. So all trials get heights on one scale, that of the error at the first
rung: at each later one the errors are moved so that on the mean those that came so far stay where
they were, and at the end the metric is moved and stretched to their place and spread. What lies
far above the middle, diverged or failed stands at one height, else the best would look alike. A
trial that runs and has shown nothing yet is shown running, so that several workers do not draw the
same settings. Samplers keep nothing between draws but their random numbers, which follow here from
the seed of the study and the number of the trial.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from poise.arguments import one_of
from poise.tuning.plan import Plan
from poise.tuning.schedule import LOST, REPEAT, RUNNING, Trial, proxy_at, rank_sums
from poise.tuning.space import ask, encode

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("gp", "tpe", "random", "grid")
_STARTUP = 8  # trials drawn at random before a model is made of them
_FAR = 2.0  # times as far above the middle as that lies above the best; all beyond is one height


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

    view = optuna.create_study(sampler=sampler_for(plan.sampler, seed))
    known = heights(trials, len(plan.rungs))
    begun = [t for t in trials if t.role != REPEAT and t.state == RUNNING and t.number not in known]
    for trial in [*(t for t in trials if t.number in known), *begun]:
        view.enqueue_trial(encode(plan.space, trial.settings))
        shown = view.ask()
        ask(plan.space, shown, base)
        if trial.number in known:
            view.tell(shown, known[trial.number])
    return ask(plan.space, view.ask(), base)


def heights(trials: Sequence[Trial], rungs: int) -> dict[int, float]:
    """How good each trial is that has shown something, by its number; lower is better.

    Repeats are left out.
    """
    own = [t for t in trials if t.role != REPEAT]
    found = {t.number: t.proxy[0] for t in own if proxy_at(t, 0) < math.inf}
    for rung in range(1, rungs):
        there = [t for t in own if t.number in found and proxy_at(t, rung) < math.inf]
        moved = sum(t.proxy[rung] - found[t.number] for t in there) / max(1, len(there))
        found |= {t.number: t.proxy[rung] - moved for t in there}
    ended = [t for t in own if t.number in found and t.costs]
    ranks = rank_sums(ended)
    costs = [t.costs[0] if len(t.costs) == 1 else float(ranks[t.number]) for t in ended]
    scaled = _like(costs, [found[t.number] for t in ended])
    found |= {t.number: height for t, height in zip(ended, scaled, strict=True)}
    lost = [t.number for t in own if t.state in LOST]
    if not found:
        return dict.fromkeys(lost, 0.0)
    middle, least = statistics.median(found.values()), min(found.values())
    worst = middle + _FAR * (middle - least)
    return {number: min(height, worst) for number, height in found.items()} | dict.fromkeys(
        lost, min(worst, max(found.values()))
    )


def _like(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """`values` moved and stretched to the mean and spread of `others`; of one or none: others."""
    if len(values) < 2:
        return list(others)
    own, wanted = statistics.pstdev(values), statistics.pstdev(others)
    scale = (wanted or 1.0) / (own or 1.0)
    middle, mean = statistics.mean(others), statistics.mean(values)
    return [middle + scale * (value - mean) for value in values]


def sampler_for(name: str, seed: int) -> "BaseSampler":
    """The sampler of that name; a grid draws nothing, so it gets the one of "random"."""
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, constant_liar=True)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    return samplers.RandomSampler(seed=seed)
