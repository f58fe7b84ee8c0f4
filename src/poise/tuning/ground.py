"""What all trials of a study share: images, preset, and the settings that make them comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.artifacts import DataFacts, RunDir, read_json, write_json
from poise.budget import GRID_IMAGES, Clock, measure, settle
from poise.config import from_toml, preset_named, resolve, values_of
from poise.console import Screen
from poise.data.dataset import Dataset
from poise.data.settling import settle_data
from poise.data.splits import Splits
from poise.diffusion.multistep import SOLVERS
from poise.errors import ArtifactError, PoiseError, UsageError
from poise.journal import Prepared
from poise.pipeline import Job, facts_of, read_data, write_down
from poise.runtime import Runtime, choose_runtime
from poise.settings import Config
from poise.tuning.plan import THIRD, Plan, trial_folder
from poise.tuning.transfer import carried_rate, narrowed

_PROBE = 32  # validation images of a short trial
TRAINING_SHARE = 0.7  # of a trial's time; the rest draws and scores samples
# What makes trials comparable, and cheap to watch; the settings of a space may not touch these.
FIXED: Mapping[str, Any] = {
    "stability.policy": "warn",  # a repair would make another trial of it
    "stability.preflight": False,
    "stability.early_stop": False,
    "cadence.evaluations": 0,
    "cadence.grids": 1,
    "cadence.logs": 60,
    "training.compile": "off",
}
_SHAPES_SPEED = ("batch", "micro_batch", "optimizer", "precision", "ema_stds")


@dataclass(frozen=True)
class Ground:
    """The images and settings on which every trial runs."""

    plan: Plan
    root: Path
    dataset: Dataset
    splits: Splits
    facts: DataFacts
    runtime: Runtime
    base: Config  # of a trial with nothing searched

    def folder(self, number: int) -> Path:
        """Where the run of a trial lies."""
        return trial_folder(self.root, number)

    def prepared(self, number: int, settings: Mapping[str, Any], seed: int) -> Prepared:
        """The run of a trial, begun or gone on with.

        Raises:
            PoiseError: no network can be built from these settings.
        """
        run = RunDir(self.folder(number))
        if run.run.exists():
            config = from_toml(run.config.read_text(encoding="utf-8"))
            self._refuse_strangers(run, config, settings, seed)
            return self._with(run, config)
        prepared = self._with(run, self.config(settings, seed))
        job = Job(self.plan.source, run.root, self.plan.preset)
        write_down(job, prepared, self.plan.preset)
        return prepared

    def config(self, settings: Mapping[str, Any], seed: int) -> Config:
        """The settings of a trial; how many images it sees follows from its speed."""
        seed, images = self.plan.seed + seed, self.plan.images
        config = trial_config(self.plan, settings, images, seed)
        if self.plan.trial_seconds is not None:
            images = images_within(
                self.plan.trial_seconds, self._speed(config), config, len(self.plan.rungs)
            )
        unit = THIRD ** (len(self.plan.rungs) - 1) * config.training.batch
        images = max(1, round(images / unit)) * unit  # a pause must not cut a batch in two
        config = trial_config(self.plan, settings, images, seed)
        config = settle(config, len(self.splits.val))
        return settle_data(config, self.dataset, self.splits.train, lambda text: None)

    def _refuse_strangers(
        self, run: RunDir, config: Config, settings: Mapping[str, Any], seed: int
    ) -> None:
        """
        Raises:
            UsageError: the folder holds a run with other settings than the trial's.
        """
        asked = trial_config(self.plan, settings, config.training.images, self.plan.seed + seed)
        was, now = values_of(config), values_of(asked)
        for name in (*settings, "seed", "training.lr"):
            if was[name] != now[name]:
                raise UsageError(
                    f"{run.root} was trained with {name} = {was[name]}, and the trial of that "
                    f"number has {now[name]}: the folder belongs to another study.",
                    expected="trials of this study alone in its folder",
                    remedy="Give the study that uses this storage the folder it was begun in.",
                )

    def judging(self) -> Prepared:
        """The run in whose name samples are measured: the same questions for every trial."""
        return self._with(RunDir(self.root), self.base)

    def _with(self, run: RunDir, config: Config) -> Prepared:
        return Prepared(
            run, config, self.dataset, self.splits, self.facts, self.runtime, Clock(None)
        )

    def _speed(self, config: Config) -> float:
        """Images per second of these settings, measured once and kept for all workers."""
        if shape_of(config) == shape_of(at_home(self.plan)):
            assert self.plan.speed is not None
            return self.plan.speed
        key = hashlib.sha256(shape_of(config).encode()).hexdigest()[:16]
        path = self.root / "speeds" / f"{key}.json"
        try:
            return float(read_json(path)["images_per_second"])
        except (ArtifactError, KeyError, TypeError, ValueError):
            speed = measure(config, self.facts, self.runtime).typical
            write_json(path, {"images_per_second": speed, "settings": shape_of(config)})
            return speed


def open_ground(plan: Plan, root: Path, screen: Screen, threads: int | None = None) -> Ground:
    """Read the images of a study, once for each worker.

    Args:
        plan: the study.
        root: its folder.
        screen: where progress is shown.
        threads: of this worker; None: as planned.

    Raises:
        ArtifactError: they are no longer those it was started with.
    """
    config = trial_config(plan, {}, plan.images, plan.seed)
    scratch = root / "store"
    dataset, splits = read_data(plan.source, config, RunDir(scratch), screen)
    if plan.fingerprint and dataset.fingerprint != plan.fingerprint:
        raise ArtifactError(
            f"The images of {plan.source} are no longer those the study in {root} was started "
            "with.",
            expected="the same files with the same content",
            remedy="Restore the images, or start a new study with --run.",
        )
    runtime = choose_runtime(config.training.precision, threads or config.training.threads)
    facts = facts_of(dataset, splits)
    ground = Ground(plan, root, dataset, splits, facts, runtime, config)
    base = settle_data(settle(config, len(splits.val)), dataset, splits.train, lambda text: None)
    return replace(ground, base=base)


def trial_config(plan: Plan, settings: Mapping[str, Any], images: int, seed: int) -> Config:
    """The settings of a trial that sees `images`.

    A learning rate is that of the preset's own width: where a trial is narrower or wider, it is
    carried over.
    """
    preset = preset_named(plan.preset)
    own = {**plan.overrides, **plan.measure, **FIXED}
    given = {
        **own,
        **settings,
        "seed": seed,
        "training.images": images,
        "cadence.validations": THIRD ** (len(plan.rungs) - 1),
        "cadence.snapshots": 12,
        "cadence.checkpoints": 12,
    }
    whole = resolve(preset, given)
    if plan.width is not None:
        given |= narrowed(whole, plan.width)
    config = resolve(preset, given)
    at_home = resolve(preset, own)
    if config.model.channels != at_home.model.channels:
        reference = whole.model_copy(update={"model": at_home.model})
        rate = carried_rate(whole.training.lr, reference, config)
        config = resolve(preset, {**given, **_sizes(config), "training.lr": rate})
    return config


def images_within(seconds: float, speed: float, config: Config, rungs: int) -> int:
    """Images of a trial of `seconds`: what scoring, validations and grids leave of the time.

    Args:
        seconds: of the trial in all.
        speed: images per second of updates; a network call costs a third of one.
        config: settings of the trial.
        rungs: at each a grid is drawn, and validations lie between them.
    """
    probe = config.validation.images or _PROBE
    validations = THIRD ** (rungs - 1) * probe * config.validation.bands
    grid = GRID_IMAGES * SOLVERS[config.sampling.solver].calls(config.sampling.steps)
    calls = validations * (1 + len(config.training.ema_stds)) + rungs * grid
    whole = TRAINING_SHARE * seconds * speed
    return int(max(whole - calls / 3, whole / 3))


def at_home(plan: Plan) -> Config:
    """The settings of the preset's own trial at its own width."""
    return trial_config(replace(plan, width=None), {}, plan.images, plan.seed)


def trained_settings(plan: Plan, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial as they are typed to train them again.

    Where a trial has its own width, its learning rate is what it was trained with.
    """
    if "model.channels" not in settings:
        return dict(settings)
    at_own_width = trial_config(replace(plan, width=None), settings, plan.images, plan.seed)
    return {**settings, "training.lr": at_own_width.training.lr}


def failure(error: BaseException) -> str:
    """What went wrong, in one sentence."""
    found = error.found if isinstance(error, PoiseError) else f"{type(error).__name__}: {error}"
    return found.splitlines()[0] if found else type(error).__name__


def shape_of(config: Config) -> str:
    """Everything that the speed of a training depends on, as text."""
    training = {name: getattr(config.training, name) for name in _SHAPES_SPEED}
    own = {"model": config.model.model_dump(), "training": training}
    return json.dumps({**own, "augment": config.data.augment != "none"}, sort_keys=True)


def _sizes(config: Config) -> dict[str, Any]:
    """The width of a network as overrides."""
    return {
        "model.channels": config.model.channels,
        "model.channels_per_head": config.model.channels_per_head,
    }
