"""Going on with a study: what may be moved, what must stay, and the command for it."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from poise.console import inert
from poise.errors import UsageError
from poise.tuning.begin import Request
from poise.tuning.plan import Plan, read_plan
from poise.tuning.progress import spent_seconds
from poise.tuning.storage import shown

_BEFORE_A_PLAN = ("leader", "journal.log", "journal.log.lock", "lock", "store")


def resume_command(
    source: str, root: Path, storage: str | None = None, engine: str = "local"
) -> str:
    """What is typed to go on; a password in the URL of a storage is left out."""
    words = ["poise", "tune", source, "--run", str(root), "--resume"]
    words += [] if storage is None else ["--storage", shown(storage)]
    words += [] if engine == "local" else ["--engine", engine]
    return shlex.join(words)


def resumed(request: Request) -> Plan:
    """The plan of a study that is gone on with; only its end may be moved.

    A number of trials without a budget goes before the budget that the study had.
    """
    if not (request.root / "plan.json").exists():
        raise UsageError(
            f"{request.root} holds no study to go on with.",
            expected="the folder of a study; one that was ended before its first trial holds none",
            remedy="Give the same command without --resume.",
        )
    plan = read_plan(request.root)
    refuse_other(request, plan)
    budget = request.budget_seconds
    if budget is None and request.trials is None:
        budget = plan.budget_seconds
    plan = replace(
        plan,
        trials=request.trials or plan.trials,
        budget_seconds=budget,
        seeds=plan.seeds if request.seeds is None else request.seeds,
        workers=_mean_workers(plan.workers, request, budget),
    )
    plan.write(request.root)
    return plan


def _mean_workers(before: int, request: Request, budget: float | None) -> int:
    """How many work over the whole budget on the mean, of which its worker-seconds are told."""
    now = request.workers or before
    if budget is None:
        return now
    spent = min(spent_seconds(request.root), budget)
    return max(1, round((spent * before + (budget - spent) * now) / budget))


def refuse_other(request: Request, plan: Plan) -> None:
    """
    Raises:
        UsageError: the study was begun with other options than are given now.
    """
    asked = dict(request.overrides)
    known = {**plan.overrides, "seed": plan.seed}
    for option, now, was in (
        ("SOURCE", request.source, plan.source),
        ("--storage", None if request.storage is None else shown(request.storage), plan.storage),
        ("--sampler", request.sampler or plan.sampler, plan.sampler),
        ("--metric", request.metrics or plan.metrics, plan.metrics),
        ("--preset", request.preset or plan.preset, plan.preset),
        ("--width", request.width or plan.width, plan.width),
        ("--space", request.space or plan.space.name, plan.space.name),
        ("--images", request.images or plan.asked, plan.asked),
        *((_option(name), value, known.get(name)) for name, value in asked.items()),
    ):
        if now != was:
            raise UsageError(
                f"The study in {request.root} was begun with {option} {_told(was)}, not "
                f"{_told(now)}.",
                remedy=f"Give {option} as it was, or begin a new study with --run.",
            )


def _option(name: str) -> str:
    return "--seed" if name == "seed" else f"--set {name}"


def _told(value: Any) -> str:
    """The value of an option in a sentence."""
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return "left open" if value is None else str(value)


def refuse_used(root: Path, source: str) -> None:
    """
    Raises:
        UsageError: the folder holds a study, or something that is no study's.
    """
    if (root / "plan.json").exists():
        raise UsageError(
            f"{root} already holds a study.",
            expected="a new folder, or --resume to go on with it",
            remedy=resume_command(source, root, read_plan(root).storage),
        )
    strange = sorted(path.name for path in root.iterdir() if path.name not in _BEFORE_A_PLAN)
    if strange:
        raise UsageError(
            f"{root} holds {inert(strange[0])} and is no study.",
            expected="a new folder for the study, or an empty one",
        )
