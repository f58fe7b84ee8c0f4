"""The story of a run: prepare, learn, evaluate, report. Read this file first.

Each stage is one function; stages meet in the files of the run folder. Decisions are taken here,
by whoever reads the records of the training loop.
"""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from poise.artifacts import DataFacts, RunDir, read_json, write_bytes, write_json
from poise.budget import (
    Clock,
    afford,
    settle,
    smallest_fitting,
    snapshots_within,
)
from poise.build import build_denoiser
from poise.config import Preset, preset_named, presets, resolve, to_toml
from poise.config import from_toml as config_from_toml
from poise.console import Screen, duration
from poise.data.batches import measure_sigma_data
from poise.data.dataset import Dataset, load_dataset
from poise.data.settling import settle_data
from poise.data.splits import Splits, split
from poise.data.summary import summarize
from poise.errors import Interrupted, PoiseError, Stopped, TrainingError, UsageError
from poise.evaluation.evaluate import FEWEST
from poise.journal import Prepared, log_event, log_row
from poise.learning.follow import follow
from poise.learning.learn import learn
from poise.report.report import write_report
from poise.resuming import (
    refuse_other_data,
    refuse_other_plan,
    refuse_other_settings,
    refuse_used_folder,
)
from poise.runtime import Runtime, choose_runtime, describe_environment
from poise.scoring import check_features, evaluate, fitting_count, settings_afterwards
from poise.settings import Config
from poise.signals import terminate_as_interrupt
from poise.stability.files import file_incidents
from poise.stability.preflight import preflight, seconds_for
from poise.training.compiling import decide
from poise.training.parallel import World, join, restarted

_SHAPES = Runtime(torch.device("meta"), torch.float32)  # builds networks without weights
_REPORT_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """What the user asked for."""

    source: str
    root: Path
    preset: str | None = None
    budget_seconds: float | None = None
    images: int | None = None
    resume: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    command: tuple[str, ...] = ()


def train(job: Job, screen: Screen) -> RunDir:
    """The whole job, from images to the report.

    Where torchrun started several processes, they train together; this one alone does the rest, or
    it is one of the others and does nothing but updates.

    Raises:
        PoiseError: each failure with its cause and remedy; what was saved stays.
    """
    world = join()
    if world is None:
        return _train(job, screen, None)
    try:
        return _train(job, screen, world) if world.rank == 0 else _take_part(job, world)
    finally:
        world.leave()


def _train(job: Job, screen: Screen, world: World | None) -> RunDir:
    clock = Clock(job.budget_seconds)
    prepared = prepare(job, screen, clock)
    run = prepared.run
    info = read_json(run.run)
    if info["status"] == "finished":
        if not run.report.exists():
            write_report(run)
        screen.say(f"This run is finished. Report: {run.report}")
        return run
    try:
        with terminate_as_interrupt():
            check_features(prepared)
            if prepared.config.stability.preflight and not run.checkpoint_files():
                prepared = check(prepared, screen)
            if world is not None:
                settings = to_toml(prepared.config)
                world.order("run", root=str(run.root.resolve()), config=settings, info=info)
            images_seen = learn(prepared, screen, world=world)
            if len(prepared.splits.val) >= FEWEST:
                evaluate(prepared, screen, split_name="val", count=None)
            else:
                _note_unscored(prepared, images_seen, screen)
    except (Interrupted, KeyboardInterrupt):
        set_status(prepared, "interrupted")
        raise
    except Stopped as stop:
        set_status(prepared, "stopped", reason=stop.found, cause=stop.cause)
        raise
    except Exception:
        with suppress(
            PoiseError
        ):  # the failure itself is what must be heard, not a full disk's echo
            set_status(prepared, "failed")
        raise
    set_status(prepared, "finished", images_seen=images_seen)
    write_report(run)
    screen.say(f"Done in {duration(clock.seconds())}. Report: {run.report}")
    return run


def _take_part(job: Job, world: World) -> RunDir:
    """The training of another process, which has settled everything and writes everything down.

    Raises:
        Interrupted, TrainingError: that is how it ended.
    """
    order, how = world.next_order(), "finished"
    if order["do"] == "run":
        run, config, info = RunDir(Path(order["root"])), order["config"], order["info"]
        with tempfile.TemporaryDirectory() as scratch:
            settled, quiet = config_from_toml(config), Screen(quiet=True)
            dataset, splits = read_data(job.source, settled, RunDir(Path(scratch)), quiet)
            refuse_other_data(info, dataset, run)
            facts = facts_of(dataset, splits)
            runtime = choose_runtime(settled.training.precision, settled.training.threads)
            prepared = Prepared(run, settled, dataset, splits, facts, runtime, Clock(None))
            how = follow(prepared, world)
    else:
        world.go_home()
        run, how = RunDir(job.root), str(order["how"])
    if how == "interrupted":
        raise Interrupted("Stopped with rank 0, which saved the state.")
    if how == "failed":
        raise TrainingError("Stopped with rank 0, which says why.")
    return run


def prepare(job: Job, screen: Screen, clock: Clock) -> Prepared:
    """Read and split the images, settle the settings, write both down; or read them back."""
    run = RunDir(job.root)
    resuming = (job.resume or restarted()) and run.run.exists()
    if not resuming:
        refuse_used_folder(run, job.source)
    base = config_from_toml(run.config.read_text(encoding="utf-8")) if resuming else None
    chosen = preset_named(job.preset) if job.preset else None
    early = base or resolve(chosen, _overrides(job))  # a wrong setting fails before any work
    if base is not None:
        refuse_other_settings(base, _overrides(job), run)
    elif early.data.resolution is not None:
        smallest_fitting(presets(), early.data.resolution, chosen)  # likewise

    dataset, splits = read_data(job.source, early, run, screen)
    facts = facts_of(dataset, splits)
    if base is not None:
        info = read_json(run.run)
        refuse_other_data(info, dataset, run)
        refuse_other_plan(info, job.preset, job.budget_seconds, run)
        clock.budget = info["budget_seconds"]
        runtime = choose_runtime(base.training.precision, base.training.threads)
        return Prepared(run, base, dataset, splits, facts, runtime, clock)

    config, name = _settle(job, chosen, dataset, splits, facts, clock, screen)
    runtime = choose_runtime(config.training.precision, config.training.threads)
    prepared = Prepared(run, config, dataset, splits, facts, runtime, clock)
    write_json(run.splits, splits.to_json(dataset))
    write_json(run.audit, summarize(dataset, splits))
    write_down(job, prepared, name)
    for incident in file_incidents(dataset):
        log_row(run, incident.row())
    return prepared


def write_down(job: Job, prepared: Prepared, preset: str) -> None:
    """The settings of a run and what it is, in its folder, before anything runs."""
    write_bytes(prepared.run.config, to_toml(prepared.config).encode())
    write_json(prepared.run.run, _describe(job, prepared, preset))


def check(job: Prepared, screen: Screen) -> Prepared:
    """What can be known before the first update: memory, disk, data, rate, resuming.

    Returns:
        The run with the settings that a check changed, such as the micro-batch; written down.

    Raises:
        TrainingError: a check refuses the run.
    """
    seconds = seconds_for(job.clock.budget)
    found = preflight(
        job.config, job.dataset, job.splits, job.facts, job.runtime, job.run.root, seconds
    )
    found.write(job.run.root)
    for line in found.lines():
        screen.say(line)
    found.demand()
    write_bytes(job.run.config, to_toml(found.config).encode())
    return replace(job, config=found.config)


def dry_run(job: Job, screen: Screen) -> str:
    """The settings of `train` as TOML; reads the images, measures for a budget, writes nothing."""
    chosen = preset_named(job.preset) if job.preset else None
    early = resolve(chosen, _overrides(job))
    with tempfile.TemporaryDirectory() as scratch:
        dataset, splits = read_data(job.source, early, RunDir(Path(scratch)), screen)
        facts = facts_of(dataset, splits)
        clock = Clock(job.budget_seconds)
        config, name = _settle(job, chosen, dataset, splits, facts, clock, screen)
    return f"# preset {name}\n{to_toml(config)}"


def score_again(
    run: RunDir,
    screen: Screen,
    *,
    split: str,
    count: int | None,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Score fresh samples of a run's newest snapshot against a split, and renew the report.

    Without a count as many are drawn as there are held-out images. `changes` are settings of
    `[evaluation]` for this time.

    Raises:
        UsageError: another split than val or test, or too few samples.
        ArtifactError: the images changed since the run was started.
    """
    if split not in ("val", "test"):
        raise UsageError(f"There is no split {split!r} to score against.", expected="val or test")
    if count is not None and count < FEWEST:
        raise UsageError(
            f"{count} samples are too few for any score.", expected=f"{FEWEST} or more"
        )
    prepared = reopen(run, screen)
    settings = settings_afterwards(prepared, **(changes or {}))
    if count is None:
        count = fitting_count(len(getattr(prepared.splits, split)))
        screen.say(f"drawing {count:,} samples, which fits the {split} split")
    scores = evaluate(prepared, screen, split_name=split, count=count, settings=settings)
    write_report(run)
    return scores


def reopen(run: RunDir, screen: Screen) -> Prepared:
    """A run with its data, read again.

    Raises:
        ArtifactError: the images changed since the run was started.
    """
    info = read_json(run.run)
    config = config_from_toml(run.config.read_text(encoding="utf-8"))
    dataset, splits = read_data(info["source"], config, run, screen)
    refuse_other_data(info, dataset, run)
    runtime = choose_runtime(config.training.precision)
    facts = facts_of(dataset, splits)
    return Prepared(run, config, dataset, splits, facts, runtime, Clock(None))


def facts_of(dataset: Dataset, splits: Splits) -> DataFacts:
    """Shape, classes and spread of the data; the spread from training images alone."""
    sigma_data = measure_sigma_data(dataset.images, splits.train)
    return DataFacts(dataset.resolution, dataset.channels, dataset.label_names, sigma_data)


def read_data(source: str, config: Config, run: RunDir, screen: Screen) -> tuple[Dataset, Splits]:
    """All images of `source`, decoded, and where each of them belongs."""
    with screen.bar("reading images", 1) as bar:
        dataset = load_dataset(source, config.data, store=run.root, progress=bar.show)
    splits = split(dataset, config.data.split, config.data.split_seed)
    screen.say(
        f"{source}: {len(dataset):,} images of {dataset.resolution}x{dataset.resolution}, "
        f"{len(dataset.label_names) or 'no'} classes; "
        f"{len(splits.train):,} to train, {len(splits.val):,} to validate, "
        f"{len(splits.test):,} to test"
    )
    for remark in dataset.remarks():
        screen.say(f"  {remark}")
    return dataset, splits


def _settle(
    job: Job,
    chosen: Preset | None,
    dataset: Dataset,
    splits: Splits,
    facts: DataFacts,
    clock: Clock,
    screen: Screen,
) -> tuple[Config, str]:
    """Resolve every setting that was left open, by the data, the machine and the budget."""
    overrides = _overrides(job)
    candidates = smallest_fitting(presets(), facts.resolution, chosen)
    preset, runtime = candidates[0], choose_runtime(resolve(chosen, overrides).training.precision)
    build_denoiser(resolve(preset, overrides), facts, _SHAPES)  # refuses what does not fit
    if job.budget_seconds is not None:
        with screen.bar("measuring this machine", 1):
            preset, images, speed = afford(
                candidates, overrides, facts, clock.left() - _REPORT_SECONDS
            )
        overrides |= {"training.images": images, "training.threads": speed.threads}
        screen.say(
            f"{speed.training:,.0f} images/s with preset {preset.name}, threads: {speed.threads}; "
            f"about {images:,} images in {duration(job.budget_seconds)}"
        )
    config = settle(resolve(preset, overrides), len(splits.val))
    config = settle_data(config, dataset, splits.train, screen.say)
    precision = "bf16" if runtime.dtype == torch.bfloat16 else "fp32"
    threads = config.training.threads or torch.get_num_threads()
    seconds = None if job.budget_seconds is None else clock.left()
    training = config.training.model_copy(
        update={
            "precision": precision,
            "threads": threads,
            "compile": decide(config, facts, seconds),
        }
    )
    parameters = sum(p.numel() for p in build_denoiser(config, facts, _SHAPES).parameters())
    snapshots = snapshots_within(config, parameters)
    if snapshots < config.cadence.snapshots:
        screen.say(f"  note: cadence.snapshot_gib has room for {snapshots} snapshots")
    cadence = config.cadence.model_copy(update={"snapshots": snapshots})
    settled = {"training": training, "cadence": cadence}
    return config.model_copy(update=settled), preset.name


def _overrides(job: Job) -> dict[str, Any]:
    overrides = dict(job.overrides)
    if job.images is not None:
        overrides["training.images"] = job.images
    return overrides


def _describe(job: Job, prepared: Prepared, preset: str) -> dict[str, Any]:
    config, dataset, facts = prepared.config, prepared.dataset, prepared.facts
    denoiser = build_denoiser(config, facts, _SHAPES)
    return {
        "source": job.source,
        "preset": preset,
        "command": list(job.command) or None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "budget_seconds": job.budget_seconds,
        "data": {
            "images": len(dataset),
            **facts.to_json(),
            "flip": config.data.flip == "on",
            "fingerprint": dataset.fingerprint,
            "splits": {n: len(getattr(prepared.splits, n)) for n in ("train", "val", "test")},
        },
        "model": {"parameters": sum(p.numel() for p in denoiser.parameters())},
        "environment": describe_environment(prepared.runtime),
        "planned_images": config.training.images,
        "status": "running",
        "images_seen": 0,
        "seconds": 0.0,
    }


def set_status(prepared: Prepared, status: str, **more: Any) -> None:
    """Write down how a run stands, and how long it took."""
    info = read_json(prepared.run.run)
    info |= {"status": status, "seconds": round(prepared.clock.seconds(), 1), **more}
    write_json(prepared.run.run, info)


def _note_unscored(prepared: Prepared, images_seen: int, screen: Screen) -> None:
    message = (
        f"The validation split holds {len(prepared.splits.val)} images, and scores need "
        f"{FEWEST}: the samples were not scored."
    )
    log_event(prepared.run, images_seen, "warning", "not_scored", message)
    screen.say(f"note: {message}")
