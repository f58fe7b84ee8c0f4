"""What a run samples with: its weights, its guide, its solver, as chosen before or as asked now.

`choices.json` in the run folder holds what `poise ema sweep` and `poise guide` found best:

    {"weights": {"name": "ema_0.080", "images_seen": 200000, ...}, "guidance": {...}}
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from poise.artifacts import DataFacts, RunDir, read_json, write_json
from poise.averaging import averaged
from poise.build import Snapshot, load_snapshot
from poise.diffusion.guidance import Denoise, guided, without_labels
from poise.diffusion.multistep import SOLVERS
from poise.errors import ArtifactError, UsageError
from poise.generate import generate, sampling_levels
from poise.journal import log_event
from poise.training.ema import profile_name, profile_std


@dataclass(frozen=True)
class Weights:
    """Which weights of a run."""

    name: str  # "raw" or an average, such as "ema_0.080", tracked or not
    images_seen: int


@dataclass(frozen=True)
class Guidance:
    """How far to go away from what a worse model makes of the same image."""

    strength: float  # 1: not at all
    guide: Weights | None  # an earlier state of the run; None: the model itself without labels
    interval: tuple[float, float] = (0.0, math.inf)  # noise levels (low, high] that are guided

    def to_json(self) -> dict[str, Any]:
        """As plain data; an open interval ends in None."""
        low, high = self.interval
        return {**asdict(self), "interval": [low, None if math.isinf(high) else high]}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Guidance":
        """What `to_json` wrote."""
        low, high = raw["interval"]
        guide = None if raw["guide"] is None else Weights(**raw["guide"])
        return cls(float(raw["strength"]), guide, (low, math.inf if high is None else high))


@dataclass(frozen=True)
class Model:
    """A snapshot and everything that decides what it draws, but for seed and labels."""

    snapshot: Snapshot
    guidance: Guidance | None = None
    guide: Snapshot | None = None  # the weights of `guidance.guide`

    def denoise(self) -> Denoise:
        """The denoiser, guided where there is guidance."""
        main: Denoise = self.snapshot.denoiser
        if self.guidance is None:
            return main
        guide = without_labels(main) if self.guide is None else self.guide.denoiser
        return guided(main, guide, self.guidance.strength, self.guidance.interval)

    def with_settings(self, **changes: Any) -> "Model":
        """The same model with other `sampling` settings; None leaves one as it is."""
        given = {name: value for name, value in changes.items() if value is not None}
        config = self.snapshot.config
        if "solver" in given and given["solver"] != config.sampling.solver:
            given.setdefault("rho", None)  # each solver has its own spacing
            if not SOLVERS[given["solver"]].churns:
                given.setdefault("churn", 0.0)
        sampling = type(config.sampling).model_validate({**config.sampling.model_dump(), **given})
        config = config.model_copy(update={"sampling": sampling})
        return replace(self, snapshot=replace(self.snapshot, config=config))

    def describe(self) -> dict[str, Any]:
        """What a score must carry to be read."""
        settings = self.snapshot.config.sampling
        return {
            "images_seen": self.snapshot.images_seen,
            "weights": self.snapshot.weights,
            "sampler": {"name": settings.solver, **settings.model_dump(exclude={"solver"})},
            "guidance": None if self.guidance is None else self.guidance.to_json(),
        }


def draw(
    model: Model, count: int, labels: list[int] | None, seed: int, *, progress: Any = None
) -> NDArray[Any]:
    """`count` images [count, C, H, W], uint8; latents as fp32."""
    snapshot = model.snapshot
    facts, settings = snapshot.facts, snapshot.config.sampling
    return generate(
        model.denoise(),
        count=count,
        shape=(facts.channels, facts.resolution, facts.resolution),
        labels=labels,
        settings=settings,
        levels=sampling_levels(settings, snapshot.denoiser.formulation),
        seed=seed,
        latents=facts.latents,
        device=snapshot.runtime.device,
        progress=progress,
    )


def chosen_model(run: RunDir) -> Model:
    """The newest weights, or those that were chosen, with the guidance that was chosen.

    A choice made before further training is passed over with an event: it may no longer be best.
    """
    choices = read_choices(run)
    newest = newest_snapshot(run)
    weights = Weights(newest.weights, newest.images_seen)
    stale = [name for name, choice in choices.items() if choice["until"] != newest.images_seen]
    for name in stale:
        message = f"The choice of {name} was made at another state of the run and is not used."
        log_event(run, newest.images_seen, "warning", "stale_choice", message)
    if "weights" in choices and "weights" not in stale:
        weights = Weights(choices["weights"]["name"], choices["weights"]["images_seen"])
    guidance = None
    if "guidance" in choices and "guidance" not in stale:
        guidance = Guidance.from_json(choices["guidance"])
    return assemble(run, weights, guidance)


def assemble(run: RunDir, weights: Weights, guidance: Guidance | None = None) -> Model:
    """A model of a run from names."""
    guide = None
    if guidance is not None and guidance.guide is not None:
        guide = weights_of_run(run, guidance.guide)
    return Model(weights_of_run(run, weights), guidance, guide)


def weights_of_run(run: RunDir, weights: Weights) -> Snapshot:
    """Stored weights, or an average made from the stored ones.

    Raises:
        UsageError: no such weights, or an average that the snapshots cannot give.
        ArtifactError: no such snapshot, or a damaged one.
    """
    path = run.snapshot_at(weights.images_seen)
    try:
        return load_snapshot(path, weights.name)
    except UsageError:
        std = profile_std(weights.name)
        if std is None:
            raise
        return averaged(run, std, at=weights.images_seen)


def named_weights(text: str) -> str:
    """`0.08` as `ema_0.080`; names stay."""
    try:
        return profile_name(float(text))
    except ValueError:
        return text


def newest_snapshot(run: RunDir, weights: str | None = None) -> Snapshot:
    """The last whole snapshot of a run; a damaged one is passed over with an event.

    Raises:
        ArtifactError: there is none.
    """
    for path in reversed(run.snapshot_files()):
        try:
            return load_snapshot(path, weights)
        except ArtifactError as error:
            images_seen = int(path.stem) if path.stem.isdigit() else 0
            log_event(run, images_seen, "warning", "damaged_snapshot", str(error))
    raise ArtifactError(
        f"{run.root} holds no whole snapshot.",
        expected="a run that has written one",
        remedy="Train it further: poise train SOURCE --run DIR --resume",
    )


def read_choices(run: RunDir) -> dict[str, Any]:
    """What was found best for this run; empty where nothing was searched."""
    if not run.choices.exists():
        return {}
    found: dict[str, Any] = read_json(run.choices)
    return found


def write_choice(
    run: RunDir, name: str, choice: Mapping[str, Any], until: int, *, instead_of: str = ""
) -> None:
    """Keep one choice, made for the state after `until` images; others stay but `instead_of`."""
    others = {key: value for key, value in read_choices(run).items() if key != instead_of}
    write_json(run.choices, {**others, name: {**choice, "until": until}})


def snapshot_model(path: Path) -> Model:
    """A model from one file alone, with the weights that it offers first."""
    return Model(load_snapshot(path))


def check_pictures(facts: DataFacts) -> None:
    """
    Raises:
        UsageError: the model draws latents, or images of more channels than a picture has.
    """
    if facts.latents or facts.channels not in (1, 3):
        what = "latents" if facts.latents else "images"
        raise UsageError(
            f"This model draws {what} of {facts.channels} channels, which are no pictures.",
            expected="an .npz file to keep them in",
            remedy="Name one with --out"
            + (", and decode it with the autoencoder of the training." if facts.latents else "."),
        )
