"""The story of a run: prepare, learn, evaluate, report. Read this file first.

Each stage is one function; stages meet in the files of the run folder. Decisions are taken here,
by whoever reads the records of the training loop.
"""

import tempfile
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from poise.artifacts import DataFacts, RunDir, read_json, write_bytes, write_json
from poise.budget import (
    GRID_IMAGES,
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
from poise.data.balance import sampling_weights
from poise.data.batches import batches, measure_sigma_data
from poise.data.dataset import Dataset, load_dataset
from poise.data.prefetch import feed
from poise.data.settling import settle_data
from poise.data.splits import Splits, split
from poise.data.summary import summarize
from poise.errors import Interrupted, PoiseError, UsageError
from poise.evaluation.evaluate import FEWEST
from poise.journal import Journal, Prepared, log_event
from poise.report.report import write_report
from poise.resuming import (
    refuse_other_data,
    refuse_other_plan,
    refuse_other_settings,
    refuse_used_folder,
)
from poise.runtime import Runtime, choose_runtime, describe_environment
from poise.scoring import evaluate, scoring_seconds
from poise.settings import Config
from poise.signals import catch_signals, terminate_as_interrupt
from poise.training.compiling import decide, loss_function
from poise.training.loop import TrainState, steps

_SHAPES = Runtime(torch.device("meta"), torch.float32)  # builds networks without weights
_REPORT_SECONDS = 5.0
_SCORE_SHARE = 0.1  # of a budget, until the first grid shows how long a sample takes
_MEASURE_EVERY = 10  # updates between two measurements of the update's size


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

    Raises:
        PoiseError: each failure with its cause and remedy; what was saved stays.
    """
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
            images_seen = learn(prepared, screen)
            if len(prepared.splits.val) >= FEWEST:
                evaluate(prepared, screen, split_name="val", count=None)
            else:
                _note_unscored(prepared, images_seen, screen)
    except (Interrupted, KeyboardInterrupt):
        _set_status(prepared, "interrupted")
        raise
    except Exception:
        with suppress(
            PoiseError
        ):  # the failure itself is what must be heard, not a full disk's echo
            _set_status(prepared, "failed")
        raise
    _set_status(prepared, "finished", images_seen=images_seen)
    write_report(run)
    screen.say(f"Done in {duration(clock.seconds())}. Report: {run.report}")
    return run


def prepare(job: Job, screen: Screen, clock: Clock) -> Prepared:
    """Read and split the images, settle the settings, write both down; or read them back."""
    run = RunDir(job.root)
    resuming = job.resume and run.run.exists()
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
    write_bytes(run.config, to_toml(config).encode())
    write_json(run.splits, splits.to_json(dataset))
    write_json(run.audit, summarize(dataset, splits))
    write_json(run.run, _describe(job, prepared, name))
    return prepared


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


def score_again(run: RunDir, screen: Screen, *, split: str, count: int | None) -> dict[str, Any]:
    """Score fresh samples of a run's newest snapshot against a split, and renew the report.

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
    scores = evaluate(prepared, screen, split_name=split, count=count)
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
    for name in dataset.unreadable[:5]:
        screen.say(f"  unreadable: {name.name} ({name.reason})")
    if len(dataset.unreadable) > 5:
        screen.say(f"  and {len(dataset.unreadable) - 5} more unreadable files, see audit.json")
    for warning in dataset.warnings:
        screen.say(f"  note: {warning}")
    return dataset, splits


def learn(job: Prepared, screen: Screen) -> int:
    """Train until the images or the time are used up; returns the images seen."""
    config, total = job.config, job.config.training.images
    features = 0.0 if job.clock.budget is None else scoring_seconds(job)
    state = TrainState.fresh(build_denoiser(config, job.facts, job.runtime), config.training)
    state.loss = loss_function(config, job.runtime.device, screen.say)
    journal = Journal(job, state)
    if journal.restore():
        log_event(job.run, state.images_seen, "info", "resumed", "The run was resumed here.")
        screen.say(f"resumed at {state.images_seen:,} images")
    stream = batches(
        job.dataset,
        job.splits.train,
        batch=config.training.batch,
        seed=config.seed,
        start=state.images_seen,
        flip=config.data.flip == "on",
        weights=sampling_weights(job.dataset, job.splits.train, config.data.balance),
    )
    fed = feed(job.dataset, stream, job.runtime.device)
    journal.waited = lambda: fed.waited_s
    records = steps(state, fed, config, until=total, measure_every=_MEASURE_EVERY)
    with closing(fed), catch_signals() as caught, screen.bar("training", total) as bar:
        for record in records:
            journal.note(record)
            bar.show(record.images_seen, note=_note(journal))
            if caught:
                journal.checkpoint()
                raise Interrupted(
                    f"Stopped by {caught[0]} at {record.images_seen:,} images; the state is saved.",
                    remedy=f"Go on with: poise train SOURCE --run {job.run.root} --resume",
                )
            if job.clock.left() < _reserved_seconds(job, journal, features):
                break
        journal.finish()
    return state.images_seen


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


def _reserved_seconds(job: Prepared, journal: Journal, features: float) -> float:
    """Time to keep for the last checks, the scores and the report; none without a budget."""
    budget, grid = job.clock.budget, journal.took.get("grid")
    if budget is None:
        return 0.0
    samples = job.config.evaluation.samples or 0
    drawing = _SCORE_SHARE * budget if grid is None else samples / GRID_IMAGES * grid
    checks = (grid or 0.0) + journal.took.get("validation", 0.0)
    return _REPORT_SECONDS + features + checks + drawing


def _note(journal: Journal) -> str:
    error = "" if journal.last_error is None else f", error {journal.last_error:.3f}"
    return f"{journal.images_per_second:,.0f} images/s{error}"


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


def _set_status(prepared: Prepared, status: str, **more: Any) -> None:
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
