"""How much faster two workers find an optimum than one, on formulas whose optimum is known.

    python scripts/tuning_workers.py [--sampler gp] [--seconds 0.3] [--trials 40] [--seeds 5]

Each trial sleeps instead of training, so that two of them do not wait for one core. What is told is
wall clock and regret (the lowest value found; the optimum is 0), mean and range over the seeds.
"""

import argparse
import math
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from poise.tuning.desk import Desk, Errand, Outcome
from poise.tuning.plan import Plan
from poise.tuning.presence import present
from poise.tuning.space import Dimension, Space
from poise.tuning.storage import open_storage, open_study
from poise.tuning.worker import serve

SPACE = Space(
    "formula",
    (
        Dimension("x", "float", -5.0, 10.0),
        Dimension("y", "float", 0.0, 15.0),
    ),
)
BASE = {"x": -5.0, "y": 0.0}


def branin(point: Mapping[str, Any]) -> float:
    """Branin's function less its minimum, 0.397887."""
    x, y = point["x"], point["y"]
    bowl = (y - 5.1 * x**2 / (4 * math.pi**2) + 5 * x / math.pi - 6) ** 2
    return bowl + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x) + 10 - 0.397887


def sphere(point: Mapping[str, Any]) -> float:
    return (point["x"] - 3) ** 2 + (point["y"] - 4) ** 2


FORMULAS = {"branin": branin, "sphere": sphere}


class Sleeper:
    def __init__(self, name: str, seconds: float) -> None:
        self._name, self._seconds = name, seconds

    def __call__(self, errand: Errand) -> Outcome:
        time.sleep(self._seconds)
        value = FORMULAS[self._name](errand.settings)
        return Outcome((value,), 1, 1, (value,), {})

    def over(self, number: int) -> None:
        pass


def worker(root: Path, plan: Plan, name: str, seconds: float) -> None:
    study = open_study(open_storage(root, None), plan.study, ["minimize"])
    with present(root / "workers") as me:
        serve(Desk(study, plan, BASE, root, me), Sleeper(name, seconds))


def once(name: str, workers: int, seed: int, given: argparse.Namespace) -> tuple[float, float]:
    """Wall clock and regret of one study."""
    plan = Plan(
        *("formula", "", "", "nano", {}, {}, SPACE, given.sampler, (name,), ("lower",), (1.0,)),
        images=1,
        trial_seconds=None,
        speed=None,
        samples=1,
        budget_seconds=None,
        trials=given.trials,
        seeds=0,
        final=False,
        final_images=1,
        workers=workers,
        width=None,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        open_study(open_storage(root, None), plan.study, ["minimize"])
        context = multiprocessing.get_context("fork")  # starts at once: only the search is timed
        job = partial(worker, root, plan, name, given.seconds)
        processes = [context.Process(target=job) for _ in range(workers)]
        started = time.monotonic()
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        spent = time.monotonic() - started
        study = open_study(open_storage(root, None), plan.study, ["minimize"])
        return spent, study.best_value


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("--seconds", type=float, default=0.3)
    words.add_argument("--sampler", default="gp")
    words.add_argument("--trials", type=int, default=40)
    words.add_argument("--seeds", type=int, default=5)
    given = words.parse_args()
    for name in FORMULAS:
        found = {
            workers: [once(name, workers, seed, given) for seed in range(given.seeds)]
            for workers in (1, 2)
        }
        ratios = [b[0] / a[0] for a, b in zip(found[1], found[2], strict=True)]
        print(f"{name}: time of two workers over that of one {told(ratios)}")
        for workers, rows in found.items():
            print(f"  {workers} worker(s): regret {told([regret for _, regret in rows])}")


def told(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


if __name__ == "__main__":
    main()
