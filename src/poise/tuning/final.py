"""The last act of a study: the best settings trained on the rest of the budget, ready to sample."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json, write_json
from poise.config import from_toml
from poise.console import Screen
from poise.errors import UsageError
from poise.pipeline import Job, score_again, train
from poise.sampling import Guidance, named_weights, newest_snapshot, write_choice
from poise.training.ema import profile_std
from poise.tuning.ground import trial_config
from poise.tuning.plan import Plan

_LEAST_SHARE = 0.1  # of the budget, which the last training gets whatever was spent before
_CHOICE_SHARE = 0.1  # of its time, kept to score it again with other weights or guidance


def train_best(
    plan: Plan, root: Path, best: Mapping[str, Any], left: float, screen: Screen
) -> RunDir:
    """Train the settings of the best trial, and keep how they are sampled best.

    Args:
        plan: the study.
        root: its folder; the run goes to `best` in it, or goes on there.
        best: `best` of study.json.
        left: seconds of the budget that are left.
        screen: what the person sees.
    """
    run = RunDir(root / "best")
    free = dict(best["free"])
    overrides = final_settings(plan, best["settings"], free)
    budget = None
    if plan.budget_seconds is not None:
        budget = max(left, _LEAST_SHARE * plan.budget_seconds) * (1 - _CHOICE_SHARE)
    resuming = run.run.exists()
    if resuming:
        budget = read_json(run.run)["budget_seconds"]
    job = Job(
        source=plan.source,
        root=run.root,
        preset=plan.preset,
        budget_seconds=budget,
        images=None if budget is not None else plan.final_images,
        resume=resuming,
        overrides=overrides,
        command=plan.command,
    )
    train(job, screen)
    if _choose(run, free):
        settings = from_toml(run.config.read_text(encoding="utf-8")).evaluation
        again = {"encoder_images": settings.encoder_images}  # no longer than the run itself gave it
        score_again(run, screen, split="val", count=settings.samples, changes=again)
    return run


def final_settings(
    plan: Plan, settings: Mapping[str, Any], free: Mapping[str, Any]
) -> dict[str, Any]:
    """What differs from the preset in the last training, as dotted names.

    The learning rate is that of the trial, carried to the width that is trained.
    """
    own = dict(settings)
    if "model.channels" in own:
        config = trial_config(plan, own, plan.images, plan.seed)
        own["training.lr"] = config.training.lr
        own["model.channels_per_head"] = config.model.channels_per_head
    sampling = {key: value for key, value in free.items() if key.startswith("sampling.")}
    found = {**plan.overrides, **own, **sampling, "seed": plan.seed}
    std = profile_std(named_weights(str(free.get("weights", "raw"))))
    if std is not None:
        followed = trial_config(plan, own, plan.images, plan.seed).training.ema_stds
        if std not in followed:
            found["training.ema_stds"] = [*followed, std]
    return found


def _choose(run: RunDir, free: Mapping[str, Any]) -> bool:
    """Keep weights and guidance as the run's choice; whether its scores were made with others."""
    newest = newest_snapshot(run)
    seen = newest.images_seen
    again = False
    if "weights" in free:
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
        UsageError: the folder holds a study, or something else.
    """
    if (root / "plan.json").exists():
        raise UsageError(
            f"{root} already holds a study.",
            expected="a new folder, or --resume to go on with it",
            remedy=f"poise tune {source} --run {root} --resume",
        )
    if (root / "run.json").exists():
        raise UsageError(f"{root} already holds a run.", expected="a new folder for the study")
