"""Small studies whose truth is known, shared by the tests: formulas instead of trainings."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna

from poise.tuning.desk import Desk, Errand, Outcome
from poise.tuning.plan import Plan
from poise.tuning.presence import present
from poise.tuning.space import Dimension, Space
from poise.tuning.worker import directions, serve

SPACE = Space(
    "formula",
    (
        Dimension("training.lr", "float", 1e-4, 1.0, log=True),
        Dimension("diffusion.P_mean", "float", -2.0, 2.0),
        Dimension("training.batch", "int", 8, 256, log=True),
        Dimension("training.decay", "choice", choices=("constant", "cosine")),
    ),
)
BASE = {
    "training.lr": 0.3,
    "diffusion.P_mean": -1.5,
    "training.batch": 16,
    "training.decay": "constant",
}
OPTIMUM = {
    "training.lr": 0.01,
    "diffusion.P_mean": 0.5,
    "training.batch": 64,
    "training.decay": "cosine",
}
PLAN = Plan(
    study="formula",
    source="nowhere",
    fingerprint="",
    preset="nano",
    overrides={},
    measure={},
    space=SPACE,
    sampler="tpe",
    metrics=("frechet_distance",),
    better=("lower",),
    rungs=(1.0,),
    images=1000,
    trial_seconds=None,
    speed=None,
    samples=100,
    budget_seconds=None,
    trials=30,
    seeds=0,
    final=False,
    final_images=1000,
    workers=1,
    width=None,
    seed=0,
)


def bowl(settings: dict[str, Any]) -> float:
    """A quadratic with its minimum, 0, at OPTIMUM."""
    value = math.log10(settings["training.lr"] / 0.01) ** 2
    value += (settings["diffusion.P_mean"] - 0.5) ** 2
    value += (math.log2(settings["training.batch"] / 64) / 2) ** 2
    return value + (0.0 if settings["training.decay"] == "cosine" else 0.5)


class Formula:
    """An objective that costs nothing: at each rung the formula, a little too high early on."""

    def __init__(
        self,
        plan: Plan = PLAN,
        formula: Callable[[dict[str, Any]], float] = bowl,
        *,
        seconds: float = 0.0,
        ends: Callable[[Errand], str] = lambda errand: "",
    ) -> None:
        self._plan, self._formula, self._seconds, self._ends = plan, formula, seconds, ends
        self.errands: list[Errand] = []
        self.ended: list[int] = []

    def __call__(self, errand: Errand) -> Outcome:
        self.errands.append(errand)
        time.sleep(self._seconds)
        ends = self._ends(errand)
        if ends:
            return Outcome((), 0, 1000, ended=ends, diagnosis="planted")
        value = self._formula(dict(errand.settings))
        rungs = range(errand.reached + 1, errand.rung + 1)
        proxies = tuple(value + 1 - self._plan.rungs[rung] for rung in rungs)
        seen = round(1000 * self._plan.rungs[errand.rung])
        done = errand.rung == len(self._plan.rungs) - 1
        values = tuple(value for _ in self._plan.metrics) if done else None
        return Outcome(proxies, seen, 1000, values, {} if done else None)

    def over(self, number: int) -> None:
        self.ended.append(number)


def run(
    root: Path,
    plan: Plan = PLAN,
    objective: Formula | None = None,
    storage: Any = None,
    base: dict[str, Any] = BASE,
) -> tuple[optuna.Study, Formula]:
    """A whole study in this process."""
    storage = storage or optuna.storages.InMemoryStorage()
    study = optuna.create_study(
        storage=storage,
        study_name=plan.study,
        directions=directions(plan.better),
        load_if_exists=True,
    )
    objective = objective or Formula(plan)
    with present(root / "workers") as me:
        serve(Desk(study, plan, base, root, me), objective)
    return study, objective


def variant(**changes: Any) -> Plan:
    """PLAN with other values."""
    return replace(PLAN, **changes)
