"""A worker: takes errands from the desk until the study is over."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from poise.config import values_of
from poise.console import Screen
from poise.errors import Interrupted, TrainingError
from poise.signals import terminate_as_interrupt
from poise.tuning.desk import Desk, Errand, Outcome
from poise.tuning.ground import at_home, open_ground
from poise.tuning.plan import read_plan
from poise.tuning.presence import present
from poise.tuning.schedule import ENDED, FAILED
from poise.tuning.storage import open_storage, open_study, patiently
from poise.tuning.trial import Trials

_HOPELESS = 4  # trials that ended, all of them failed, after which a study is given up


class Objective(Protocol):
    """What a study tries: real trainings, or a formula in a test."""

    def __call__(self, errand: Errand) -> Outcome:
        """Bring a trial to its rung."""
        ...

    def over(self, number: int) -> None:
        """A trial has ended and is not asked for again."""
        ...


@dataclass(frozen=True)
class Seat:
    """Where a worker finds its study."""

    root: str
    url: str | None
    threads: int | None  # None: as planned


def work(seat: Seat) -> None:
    """Do errands until the study is over.

    Raises:
        Interrupted: a signal came; what was begun is saved and left for others.
        PoiseError: the study cannot go on.
    """
    root = Path(seat.root)
    plan = read_plan(root)
    study = open_study(open_storage(root, seat.url), plan.study, directions(plan.better))
    with present(root / "workers") as me:
        ground = open_ground(plan, root, Screen(quiet=True), seat.threads)
        desk = Desk(study, plan, values_of(at_home(plan)), root, me)
        with terminate_as_interrupt():
            serve(desk, Trials(ground))


def serve(desk: Desk, objective: Objective) -> None:
    """Errand after errand."""
    while (errand := patiently(lambda: desk.next(objective.over))) is not None:
        started = time.monotonic()
        try:
            outcome = objective(errand)
        except (Interrupted, KeyboardInterrupt):
            desk.put_back(errand, time.monotonic() - started)
            raise
        seconds = time.monotonic() - started
        _bring_back(desk, objective, errand, outcome, seconds)
        if outcome.ended == FAILED:
            _refuse_hopeless(desk, outcome)


def _bring_back(
    desk: Desk, objective: Objective, errand: Errand, outcome: Outcome, seconds: float
) -> None:
    kept = patiently(lambda: desk.bring_back(errand, outcome, seconds))
    if kept and (outcome.ended or outcome.values is not None):
        objective.over(errand.number)


def directions(better: tuple[str, ...]) -> list[str]:
    """Optuna's words for "lower" and "higher"."""
    return ["minimize" if way == "lower" else "maximize" for way in better]


def _refuse_hopeless(desk: Desk, outcome: Outcome) -> None:
    """
    Raises:
        TrainingError: nothing but failures: it is not the settings that are at fault.
    """
    ended = [trial for trial in desk.trials() if trial.state in ENDED]
    if len(ended) >= _HOPELESS and all(trial.state == FAILED for trial in ended):
        raise TrainingError(
            f"All {len(ended)} trials so far failed, the last one so: {outcome.diagnosis}",
            expected="at least one trial that runs",
            remedy="Try these images with `poise train` alone; then go on with --resume.",
        )
