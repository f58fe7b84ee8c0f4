"""The last act of a study: the best settings trained on the rest of the budget, ready to sample."""

import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json, write_json
from poise.config import from_toml, resolve, values_of
from poise.console import Screen, inert
from poise.diffusion.multistep import SOLVERS
from poise.errors import UsageError
from poise.pipeline import Job, score_again, train
from poise.sampling import (
    Guidance,
    named_weights,
    newest_snapshot,
    read_choices,
    write_choice,
)
from poise.training.ema import profile_std
from poise.tuning.ground import at_home
from poise.tuning.plan import Plan

_BEFORE_A_PLAN = ("leader", "journal.log", "journal.log.lock", "lock", "store")
_LEAST_SHARE = 0.1  # of the budget, which the last training gets whatever was spent before
_CHOICE_SHARE = 0.1  # of its time, kept to score it again with other weights or guidance


def train_best(
    plan: Plan, root: Path, best: Mapping[str, Any], left: float | None, screen: Screen
) -> None:
    """Train the settings of the best trial, and keep how they are sampled best.

    A run of an earlier end of this study goes on if it has the same settings, else it is kept under
    another name.

    Args:
        plan: the study.
        root: its folder; the run goes to `best` in it.
        best: `best` of study.json.
        left: seconds of the budget that are left; None: there is none.
        screen: what the person sees.
    """
    run = RunDir(root / "best")
    free = dict(best["free"])
    overrides = final_settings(plan, best["settings"], free)
    if run.run.exists() and not _has(run, overrides):
        number = next(n for n in count(1) if not (root / f"best-{n}").exists())
        run.root.rename(root / f"best-{number}")
        screen.say(f"other settings are best now: the run there was is kept as best-{number}")
    budget = None
    if left is not None and plan.budget_seconds is not None:
        share = 1 - _CHOICE_SHARE * (len(free) > 0)
        budget = max(left, _LEAST_SHARE * plan.budget_seconds) * share
    resuming = run.run.exists()
    if resuming:
        budget = read_json(run.run)["budget_seconds"]
    job = Job(
        source=plan.source,
        root=run.root,
        preset=plan.preset,
        budget_seconds=budget,
        images=None if budget is not None or resuming else plan.final_images,
        resume=resuming,
        overrides=overrides,
        command=plan.command,
    )
    train(job, screen)
    if _choose(run, free):
        settings = from_toml(run.config.read_text(encoding="utf-8")).evaluation
        again = {"encoder_images": settings.encoder_images}  # no longer than the run itself gave it
        score_again(run, screen, split="val", count=settings.samples, changes=again)


def _has(run: RunDir, overrides: Mapping[str, Any]) -> bool:
    """Whether a run was trained with these settings."""
    was = values_of(from_toml(run.config.read_text(encoding="utf-8")))
    now = values_of(resolve(None, overrides))
    return all(was[name] == now[name] for name in overrides)


def final_settings(
    plan: Plan, settings: Mapping[str, Any], free: Mapping[str, Any]
) -> dict[str, Any]:
    """What differs from the preset in the last training, as dotted names.

    Args:
        settings: as `ground.trained_settings` gives them.
        free: what the trial samples with.
    """
    sampling = {key: value for key, value in free.items() if key.startswith("sampling.")}
    solver = sampling.get("sampling.solver")
    if solver is not None and not SOLVERS[solver].churns:
        sampling["sampling.churn"] = 0.0  # as in the trial: it takes no fresh noise
    found = {**plan.overrides, **settings, **sampling, "seed": plan.seed}
    std = profile_std(named_weights(str(free["weights"]))) if "weights" in free else None
    if std is not None:
        followed = at_home(plan).training.ema_stds
        if std not in followed:
            found["training.ema_stds"] = [*followed, std]
    return found


def _choose(run: RunDir, free: Mapping[str, Any]) -> bool:
    """Keep weights and guidance as the run's choice; whether its scores were made with others."""
    newest = newest_snapshot(run)
    seen = newest.images_seen
    again = False
    if "weights" in free and "weights" not in read_choices(run):  # the guard's choice stays
        name = named_weights(str(free["weights"]))
        write_choice(run, "weights", {"name": name, "images_seen": seen, "with": "tune"}, seen)
        again = name != newest.weights
    strength = float(free.get("guidance", 1.0))
    if strength != 1.0:
        choice = {**Guidance(strength, None).to_json(), "with": "tune"}
        write_choice(run, "guidance", choice, seen)
        again = True
    return again


def copy_record(root: Path, record: Mapping[str, Any]) -> None:
    """The study beside the run that came of it, so that its report tells of both.

    Sample pictures of trials stay where they are.
    """
    if (root / "best").is_dir():
        write_json(root / "best" / "tuning.json", record)


def clear(root: Path) -> None:
    """Images that were kept beside a study while it ran."""
    shutil.rmtree(root / "store", ignore_errors=True)


def refuse_used(root: Path, source: str) -> None:
    """
    Raises:
        UsageError: the folder holds a study, or something that is no study's.
    """
    if (root / "plan.json").exists():
        raise UsageError(
            f"{root} already holds a study.",
            expected="a new folder, or --resume to go on with it",
            remedy=f"poise tune {source} --run {root} --resume",
        )
    strange = sorted(path.name for path in root.iterdir() if path.name not in _BEFORE_A_PLAN)
    if strange:
        raise UsageError(
            f"{root} holds {inert(strange[0])} and is no study.",
            expected="a new folder for the study, or an empty one",
        )
