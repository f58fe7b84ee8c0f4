"""The last act of a study: the best settings trained on the rest of the budget, ready to sample."""

import shutil
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json, write_json
from poise.config import from_toml, preset_named, resolve, values_of
from poise.console import Screen
from poise.diffusion.multistep import SOLVERS
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
from poise.tuning.plan import LEAST_FINAL, Plan

_LONGER = 1.2  # times as long as a training that has ended, from which a new one is worth it
_CHOICE_SHARE = 0.1  # of its time, kept to score it again with other weights or guidance


def train_best(
    plan: Plan, root: Path, best: Mapping[str, Any], left: float | None, screen: Screen
) -> None:
    """Train the settings of the best trial, and keep how they are sampled best.

    A run of an earlier end of this study goes on if it has the same settings. Where it has others,
    or has ended and there is time now for a longer one, it is kept under another name.

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
    budget = None
    if left is not None and plan.budget_seconds is not None:
        share = 1 - _CHOICE_SHARE * (len(free) > 0)
        budget = max(left, LEAST_FINAL * plan.budget_seconds) * share
    if run.run.exists():
        _keep_other(run, plan, overrides, budget, screen)
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


def _keep_other(
    run: RunDir, plan: Plan, overrides: Mapping[str, Any], budget: float | None, screen: Screen
) -> None:
    """Give the run of an earlier end another name, where a new one is to be trained."""
    was = values_of(from_toml(run.config.read_text(encoding="utf-8")))
    now = values_of(resolve(preset_named(plan.preset), overrides))
    state = read_json(run.run)
    if any(was[name] != now[name] for name in overrides):
        why = "other settings are best now"
    elif state["status"] == "finished" and (budget or 0) > _LONGER * (state["budget_seconds"] or 0):
        why = "there is time for a longer training now"
    else:
        return
    number = next(n for n in count(1) if not (run.root.parent / f"best-{n}").exists())
    run.root.rename(run.root.parent / f"best-{number}")
    screen.say(f"{why}: the run there was is kept as best-{number}")


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
