"""Who draws the settings of a trial: Optuna's samplers, made anew for each draw.

They keep nothing between draws but their random numbers, which follow here from the seed of the
study and the number of the trial: whichever worker draws it, a trial is the same.
"""

from typing import TYPE_CHECKING

from poise.arguments import one_of

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("tpe", "gp", "random", "grid")
_STARTUP = 8  # trials drawn at random before a model is made of them


def check_sampler(name: str) -> str:
    """
    Raises:
        UsageError: there is no such sampler.
    """
    return str(one_of("sampler", name, SAMPLERS))


def sampler_for(name: str, seed: int) -> "BaseSampler":
    """The sampler of that name; a grid draws nothing, so it gets the one of "random"."""
    from optuna import samplers

    if name == "tpe":
        return samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP)
    if name == "gp":
        return samplers.GPSampler(seed=seed, n_startup_trials=_STARTUP)
    return samplers.RandomSampler(seed=seed)
