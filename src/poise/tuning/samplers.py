"""Who draws the settings of a trial: Optuna's samplers, shown how all trials stand to each other.

Few trials of a study come to their end, and an error after a ninth of a training cannot be compared
with one after all of it. So trials are put into one order: who reached a higher rung stands before
who did not, and on one rung the lower error does; at the end the metrics decide. A sampler is shown
the normal scores of that order (Blom 1958), which no outlier can spoil, and learns from a trial as
soon as that has reached its first rung. A trial that runs and has shown nothing yet is shown
running, so that several workers do not draw the same settings. Samplers keep nothing between draws
but their random numbers, which follow here from the seed of the study and the number of the trial.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scipy.special import ndtri

from poise.arguments import one_of
from poise.tuning.plan import THIRD, Plan
from poise.tuning.schedule import DEFAULT, LOST, REPEAT, RUNNING, Trial, rank_sums
from poise.tuning.space import ask, encode

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("gp", "tpe", "random", "grid")
_STARTUP = 8  # trials drawn at random before a model is made of them


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
    order = standing(plan, trials)
    scores = [float(ndtri((i + 0.625) / (len(order) + 0.25))) for i in range(len(order))]
    begun = [t for t in trials if t.role != REPEAT and t.state == RUNNING and t not in order]
    for trial, score in [*zip(order, scores, strict=True), *((t, None) for t in begun)]:
        view.enqueue_trial(encode(plan.space, trial.settings))
        shown = view.ask()
        ask(plan.space, shown, base)
        if score is not None:
            view.tell(shown, score)
    return ask(plan.space, view.ask(), base)


def standing(plan: Plan, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that have shown something, best first; what diverged or failed is last."""
    own = [t for t in trials if t.role != REPEAT and (t.proxy or t.costs or t.state in LOST)]
    ranks = rank_sums([t for t in own if t.costs])

    def key(trial: Trial) -> tuple[int, float, int]:
        rung = _merit(trial, own) if trial.role == DEFAULT else trial.rung
        if rung == len(plan.rungs) - 1 and trial.costs:
            return -rung, float(ranks[trial.number]), trial.number
        known = rung < len(trial.proxy) and rung >= 0 and math.isfinite(trial.proxy[rung])
        lost = trial.state in LOST or not known
        return (1, 0.0, trial.number) if lost else (-rung, trial.proxy[rung], trial.number)

    return sorted(own, key=key)


def _merit(trial: Trial, own: Sequence[Trial]) -> int:
    """The rung that a trial which was never stopped would have reached among the others."""
    rung = 0
    while rung < trial.rung:
        others = [t.proxy[rung] for t in own if t.role != DEFAULT and len(t.proxy) > rung]
        better = sum(proxy < trial.proxy[rung] for proxy in others)
        if others and better >= max(1, len(others) // THIRD):
            break
        rung += 1
    return rung


def sampler_for(name: str, seed: int) -> "BaseSampler":
    """The sampler of that name; a grid draws nothing, so it gets the one of "random"."""
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP, constant_liar=True)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    return samplers.RandomSampler(seed=seed)
