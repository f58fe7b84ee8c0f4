"""How near each sampler comes to a known optimum in a study with halving, and Optuna alone.

    python scripts/tuning_regret.py [--noise 0.1] [--trials 27] [--seeds 12]

The formula is that of tests/tuning/studies.py: four settings, 0 at the optimum. Each proxy and each
value gets its own noise. What is told is the true value at the trial that the study calls best.
"""

import argparse
import random
import statistics
import sys
import tempfile
from pathlib import Path

import optuna

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "tuning"))

from studies import Formula, bowl, run, variant

from poise.tuning.desk import Errand, Outcome
from poise.tuning.plan import RUNGS


class Noisy(Formula):
    """The formula with noise that follows from the trial and its rung."""

    noise = 0.0

    def __call__(self, errand: Errand) -> Outcome:
        known = super().__call__(errand)
        draw = random.Random(f"{errand.number} {errand.rung}")
        proxy = tuple(p + draw.gauss(0, self.noise) for p in known.proxy)
        values = None
        if known.values is not None:
            values = tuple(v + draw.gauss(0, self.noise) for v in known.values)
        return Outcome(proxy, known.images_seen, known.images, values, known.free)


def regret(sampler: str, seed: int, trials: int, rungs: tuple[float, ...]) -> float:
    plan = variant(sampler=sampler, seed=seed, trials=trials, rungs=rungs)
    with tempfile.TemporaryDirectory() as folder:
        study, _ = run(Path(folder), plan, Noisy(plan))
    ended = [trial for trial in study.trials if trial.values is not None]
    return bowl(min(ended, key=lambda trial: trial.values[0]).user_attrs["settings"])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--noise", type=float, default=0.1)
    words.add_argument("--trials", type=int, default=27)
    words.add_argument("--seeds", type=int, default=12)
    given = words.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    Noisy.noise = given.noise
    for rungs in (RUNGS, (1.0,)):
        for sampler in ("gp", "tpe", "random"):
            found = [regret(sampler, seed, given.trials, rungs) for seed in range(given.seeds)]
            error = statistics.stdev(found) / len(found) ** 0.5
            print(
                f"{len(rungs)} rungs, {sampler:7} {statistics.mean(found):.3f} +- {error:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
