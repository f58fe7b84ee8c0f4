"""From what the user asked for to a plan: checked before anything is trained."""

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from poise.arguments import parse_duration
from poise.artifacts import DataFacts, RunDir
from poise.budget import Clock, Speed, afford, fastest, settle, smallest_fitting
from poise.config import Preset, preset_named, presets, resolve, values_of
from poise.console import Screen, duration
from poise.data.settling import settle_data
from poise.diffusion.multistep import SOLVERS
from poise.engines import cores
from poise.errors import DataError, UsageError, nearest
from poise.evaluation.evaluate import FEWEST
from poise.evaluation.metric import METRICS
from poise.journal import Prepared
from poise.pipeline import facts_of, read_data
from poise.runtime import choose_runtime
from poise.scoring import check_features
from poise.settings import Config
from poise.tuning.ground import TRAINING_SHARE, at_home, images_within, trial_config
from poise.tuning.plan import RUNGS, THIRD, VALIDATION, Plan, search_share, shares
from poise.tuning.samplers import check_sampler
from poise.tuning.space import Space, built_in, grid, load_space
from poise.tuning.space_file import read_tables
from poise.tuning.storage import shown
from poise.tuning.transfer import explain
from poise.tuning.trial import CHOICES

_SAMPLES = (50, 1000)  # drawn for a metric, at least and at most
_USUAL_SAMPLES = 300  # where no budget decides
_USUAL: Mapping[str, Any] = {  # what neither the user nor a space file says
    "sampler": "gp",
    "metrics": ("frechet_distance",),
    "trials": None,
    "seeds": 3,
    "rungs": RUNGS,
    "final": True,
    "samples": None,
    "images": None,
    "budget": None,
}


@dataclass(frozen=True)
class Request:
    """What the user asked for; None: left open.

    Attributes:
        source: images, as for `poise train`.
        root: the folder of the study.
        space: a built-in name, or a TOML file; None: "default".
        sampler, trials, budget_seconds, metrics, seeds, images: as in `Plan`; images: of a trial.
        workers: processes; None: one, or of a study that is gone on with as many as it has.
        storage: a URL; None: a journal in the folder.
        resume: go on with the study in the folder, or help others with it.
        preset: None: chosen by resolution and budget.
        overrides: settings that hold for every trial.
        width: channels of the trials' network; None: the preset's.
        engine: "local" or "ray".
    """

    source: str
    root: Path
    space: str | None = None
    sampler: str | None = None
    trials: int | None = None
    budget_seconds: float | None = None
    metrics: tuple[str, ...] = ()
    workers: int | None = None
    storage: str | None = None
    resume: bool = False
    seeds: int | None = None
    images: int | None = None
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    width: int | None = None
    engine: str = "local"
    command: tuple[str, ...] = ()


def check(request: Request) -> None:
    """What can be known to be wrong without a look at the images.

    Raises:
        UsageError: with what to write instead.
    """
    if request.sampler is not None:
        check_sampler(request.sampler)
    _check_metrics(request.metrics)
    for option, value, least in (
        ("--trials", request.trials, 1),
        ("--workers", request.workers, 1),
        ("--seeds", request.seeds, 0),
        ("--images", request.images, 1),
        ("--width", request.width, 8),
    ):
        if value is not None and value < least:
            raise UsageError(f"{option} {value} is too little.", expected=f"{least} or more")
    if request.engine not in ("local", "ray"):
        raise UsageError(f"There is no engine {request.engine!r}.", expected="local or ray")
    if request.preset is not None:
        preset_named(request.preset)
    resolve(preset_named(request.preset) if request.preset else None, request.overrides)
    read_tables(request.space or "default")


def _check_metrics(names: Sequence[str]) -> None:
    for name in names:
        if name not in CHOICES:
            raise UsageError(
                f"There is no metric {name!r} to tune by. {nearest(name, CHOICES)}".rstrip(),
                expected="one or several of " + ", ".join(CHOICES),
            )


def settle_plan(request: Request, screen: Screen) -> Plan:
    """Read the images, measure the machine, and decide everything about a study.

    Raises:
        PoiseError: something that was asked for cannot be.
    """
    chosen = preset_named(request.preset) if request.preset else None
    early = resolve(chosen, request.overrides)
    dataset, splits = read_data(request.source, early, RunDir(request.root / "store"), screen)
    facts = facts_of(dataset, splits)
    candidates = smallest_fitting(presets(), facts.resolution, chosen)
    study = _study(request, resolve(candidates[0], request.overrides), facts)
    _refuse_few(study, len(splits.val))
    with screen.bar("measuring this machine", 1):
        pace = _pace(request, study, candidates, facts)
    config = resolve(pace.preset, request.overrides)
    _refuse_small(study, config, pace)
    images = _trial_images(study, config, pace)
    config = _settled(config, images, len(splits.val))
    config = settle_data(config, dataset, splits.train, screen.say)
    space = _space(request, config, len(facts.label_names))
    runtime = choose_runtime(config.training.precision, pace.speed.threads)
    run = RunDir(request.root)
    check_features(Prepared(run, config, dataset, splits, facts, runtime, Clock(None)))
    plan = Plan(
        study=f"poise-{uuid.uuid4().hex[:12]}",
        source=request.source,
        fingerprint=dataset.fingerprint,
        preset=pace.preset.name,
        overrides=dict(request.overrides),
        measure=_measure(config, pace.speed.threads),
        space=space,
        sampler=study["sampler"],
        metrics=study["metrics"],
        better=tuple(_better(name) for name in study["metrics"]),
        rungs=study["rungs"],
        images=images,
        trial_seconds=pace.trial_seconds if study["images"] is None else None,
        speed=pace.speed.typical,
        samples=study["samples"] or _samples(config, space, pace),
        budget_seconds=study["budget"],
        trials=study["trials"],
        seeds=study["seeds"],
        final=study["final"],
        final_images=pace.final_images or images,
        workers=request.workers or 1,
        width=request.width,
        seed=config.seed,
        asked=study["images"],
        storage=None if request.storage is None else shown(request.storage),
        command=tuple(shown(word) if "://" in word else word for word in request.command),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    _tell(plan, screen)
    return plan


@dataclass(frozen=True)
class _Pace:
    """The preset that a budget affords, how fast it is, and how long things may take."""

    preset: Preset
    speed: Speed
    trial_seconds: float | None = None
    final_images: int | None = None


def _pace(
    request: Request, study: Mapping[str, Any], candidates: list[Preset], facts: DataFacts
) -> _Pace:
    overrides = dict(request.overrides)
    workers = request.workers or 1
    if workers > 1:
        overrides["training.threads"] = max(1, cores() // workers)
    budget = study["budget"]
    if budget is None:
        return _Pace(candidates[0], fastest(candidates[0], overrides, facts)[0])
    trial, last = shares(budget, workers, study["seeds"], study["final"], study["points"])
    preset, images, speed = afford(candidates, overrides, facts, max(last, trial))
    return _Pace(preset, speed, trial, images)


def _study(request: Request, base: Config, facts: DataFacts) -> dict[str, Any]:
    """What the user asked for, else what the space file proposes, else the usual."""
    known: dict[str, Any] = {"resolution": facts.resolution}
    if base.data.augment == "auto":  # which is no choice of its own: the images decide it
        known["augment"] = "none"
    base = base.model_copy(update={"data": base.data.model_copy(update=known)})
    space = _space(request, base, len(facts.label_names))
    asked = {
        "sampler": request.sampler,
        "metrics": request.metrics or None,
        "trials": request.trials,
        "seeds": request.seeds,
        "images": request.images,
        "budget": request.budget_seconds,
    }
    study = {**_USUAL, **space.study, **{k: v for k, v in asked.items() if v is not None}}
    if asked["budget"] is None and (asked["trials"] or asked["images"]) is not None:
        study["budget"] = None  # what the user says of the end goes before a proposal
    if study["budget"] is not None:
        study["budget"] = parse_duration(study["budget"])
    check_sampler(study["sampler"])
    _check_metrics(study["metrics"])
    rungs = tuple(float(share) for share in study["rungs"])
    if not rungs or any(
        abs(share - THIRD ** (i + 1 - len(rungs))) > 0.01 for i, share in enumerate(rungs)
    ):
        raise UsageError(
            f"rungs = {list(rungs)} cannot be used.",
            expected="each three times the one before, the last 1: [0.111, 0.333, 1] or [1]",
        )
    _need_an_end(study)
    points = len(grid(space, values_of(base))) if study["sampler"] == "grid" else None
    metrics = tuple(dict.fromkeys(study["metrics"]))
    if not space.trained() and set(metrics) == {VALIDATION}:
        raise UsageError(
            f"The space {space.name} holds only what samples are drawn with, and {VALIDATION} "
            "draws none: nothing would be searched.",
            expected="a metric of samples, such as --metric frechet_distance",
        )
    return {**study, "rungs": rungs, "metrics": metrics, "points": points}


def _space(request: Request, base: Config, classes: int) -> Space:
    """The space of the request; where the width is given, it is not searched.

    Raises:
        UsageError: as `load_space`, or a file that searches the width that is given.
    """
    source = request.space or "default"
    space = load_space(source, base, classes)
    kept = tuple(d for d in space.dimensions if d.name != "model.channels")
    if request.width is None or len(kept) == len(space.dimensions):
        return space
    if source not in built_in() or not kept:
        raise UsageError(
            f"{source} searches model.channels, and --width gives it.",
            expected="one of them",
        )
    remark = f"Left out: model.channels is {request.width} in every trial."
    return replace(space, dimensions=kept, remarks=(*space.remarks, remark))


def _refuse_few(study: Mapping[str, Any], val: int) -> None:
    """
    Raises:
        DataError: too few held-out images for samples to be compared with.
    """
    if set(study["metrics"]) != {VALIDATION} and val < FEWEST:
        raise DataError(
            f"{val} validation images are too few to compare samples with.",
            expected=f"{FEWEST} or more",
            remedy="Tune with more images, with a larger share in data.split, or with --metric "
            f"{VALIDATION}, which draws no samples.",
        )


def _refuse_small(study: Mapping[str, Any], config: Config, pace: _Pace) -> None:
    """
    Raises:
        UsageError: a budget in which no trial can see a few batches, or what the user asked for.
    """
    if pace.trial_seconds is None:
        return
    images, room = THIRD ** (len(study["rungs"]) - 1) * config.training.batch, pace.trial_seconds
    what, remedy = "a few batches", "Give more time, fewer --seeds"
    if study["images"] is not None:
        images = max(images, int(study["images"]))
        what = f"the {study['images']:,} images of --images"
        room = search_share(study["seeds"], study["final"]) * study["budget"]
        remedy = "Give more time, fewer --images"
    needed = images / pace.speed.typical / TRAINING_SHARE
    if needed > room:
        raise UsageError(
            f"A budget of {duration(study['budget'])} leaves {_told(room)} for a trial, and "
            f"{what} take {_told(needed)} with this network here.",
            expected=f"a budget of {duration(math.ceil(study['budget'] * needed / room))} or more",
            remedy=f"{remedy}, or search at --width or data.resolution below.",
        )


def _told(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def _need_an_end(study: Mapping[str, Any]) -> None:
    if study["budget"] is None and study["trials"] is None and study["sampler"] != "grid":
        raise UsageError(
            "Nothing says when the search ends.",
            expected="--budget 2h, or --trials 40 with --images for the length of each",
        )


def _trial_images(study: Mapping[str, Any], config: Config, pace: _Pace) -> int:
    least: int = THIRD ** (len(study["rungs"]) - 1) * config.training.batch
    if study["images"] is not None:
        return max(int(study["images"]), least)
    if pace.trial_seconds is None:
        return max(config.training.images, least)
    rungs = len(study["rungs"])
    return max(images_within(pace.trial_seconds, pace.speed.typical, config, rungs), least)


def _samples(config: Config, space: Space, pace: _Pace) -> int:
    """Samples that a trial's share of time can draw, its candidates of free settings included."""
    if pace.trial_seconds is None:
        return _USUAL_SAMPLES
    calls = SOLVERS[config.sampling.solver].calls(config.sampling.steps)
    each = 1 + sum(len(d.values()) for d in space.free()) / 2  # candidates get half as many
    affordable = (1 - TRAINING_SHARE) * pace.trial_seconds * pace.speed.forward / calls / each
    return max(_SAMPLES[0], min(_SAMPLES[1], int(affordable)))


def _settled(config: Config, images: int, val: int) -> Config:
    training = config.training.model_copy(update={"images": images})
    return settle(config.model_copy(update={"training": training}), val)


def _measure(config: Config, threads: int) -> dict[str, Any]:
    """What makes trials comparable, from the settings of the preset's own trial."""
    return {
        "data.resolution": config.data.resolution,
        "data.flip": config.data.flip,
        "data.augment": config.data.augment,
        "validation.images": config.validation.images,
        "training.threads": threads,
    }


def _better(name: str) -> str:
    return "lower" if name == VALIDATION else METRICS[name][1]


def _tell(plan: Plan, screen: Screen) -> None:
    for remark in plan.space.remarks:
        screen.say(f"  {remark}")
    if plan.width is not None:
        narrow = trial_config(plan, {}, plan.images, plan.seed)
        screen.say("  " + explain(narrow.training.lr, narrow, at_home(plan)))
    length = "" if plan.trial_seconds is None else f" in {duration(plan.trial_seconds)}"
    sampled = set(plan.metrics) != {VALIDATION}  # else nothing is drawn, and nothing free is tried
    draws = f" and draws {plan.samples} samples" if sampled else ""
    free = len(plan.space.free()) if sampled else 0
    if plan.asked is not None and plan.asked != plan.images:
        screen.say(f"  {plan.asked:,} images are too few for a trial: it needs some batches a rung")
    trained = len(plan.space.trained())
    screen.say(
        f"preset {plan.preset}, space {plan.space.name}: {trained} to train and {free} to sample "
        f"with; sampler {plan.sampler}; a trial sees "
        f"{plan.images:,} images{length}{draws}"
    )
