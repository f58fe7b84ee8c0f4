"""What a running training writes down: log lines, validation, grids, snapshots, checkpoints.

The loop does not know it. Each kind is due when `images_seen` crosses a multiple of its interval,
so a resumed run writes the same lines at the same places.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from poise.artifacts import DataFacts, RunDir, append_jsonl, read_jsonl
from poise.budget import GRID_IMAGES, Clock
from poise.data.batches import to_unit
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.errors import ArtifactError, TrainingError
from poise.evaluation.denoising import denoising_error, noise_levels
from poise.generate import generate, sampling_levels
from poise.pictures import save_grid
from poise.runtime import Runtime, generator_at
from poise.settings import Config
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.ema import profile_name
from poise.training.loop import StepRecord, TrainState, weights_of
from poise.training.magnitudes import activation_rms, weight_rms
from poise.training.meter import IntervalMeter

_FEW = 16  # images whose activations are measured


@dataclass(frozen=True)
class Prepared:
    """A run about to train: settings, data and facts are settled and written down."""

    run: RunDir
    config: Config
    dataset: Dataset
    splits: Splits
    facts: DataFacts
    runtime: Runtime
    clock: Clock


def log_event(
    run: RunDir, images_seen: int, severity: str, kind: str, message: str, **more: Any
) -> None:
    """One line of events.jsonl."""
    row = {"images_seen": images_seen, "severity": severity, "kind": kind, "message": message}
    append_jsonl(run.log("events"), {**row, **more})


@dataclass
class Journal:
    """Reads the records of one run and keeps its folder up to date."""

    job: Prepared
    state: TrainState
    meter: IntervalMeter = field(init=False)
    images_per_second: float = field(init=False, default=0.0)
    last_error: float | None = field(init=False, default=None)
    took: dict[str, float] = field(init=False, default_factory=dict)  # seconds, last time
    waited: Callable[[], float] = field(init=False, default=lambda: 0.0)  # for batches, seconds

    def __post_init__(self) -> None:
        self.meter = IntervalMeter(self.job.config.diffusion, self.job.runtime.device)
        self._marked = time.monotonic(), self.state.images_seen

    def restore(self) -> bool:
        """Go back to the newest whole checkpoint; a damaged one is named and passed over."""
        run = self.job.run
        damaged: list[tuple[Path, str]] = []
        for path in reversed(run.checkpoint_files()):
            try:
                tensors, meta = load_checkpoint(path, self.state)
            except ArtifactError as error:
                damaged.append((path, str(error)))
                continue
            self.meter.restore(tensors)
            self.job.clock.spent = float(meta["seconds"])
            run.truncate_logs(self.state.images_seen)
            self._set_aside(damaged)
            self._marked = time.monotonic(), self.state.images_seen
            return True
        if damaged:
            raise ArtifactError(
                "No checkpoint of this run is whole.\n" + "\n".join(text for _, text in damaged),
                remedy="Start a new run, or sample from the snapshots that are left.",
            )
        run.truncate_logs(-1)
        return False

    def _set_aside(self, damaged: list[tuple[Path, str]]) -> None:
        """Name the damaged checkpoints in events.jsonl; they are kept under another suffix."""
        for path, message in damaged:
            path.rename(path.with_suffix(".damaged"))
            log_event(
                self.job.run, self.state.images_seen, "warning", "damaged_checkpoint", message
            )

    def note(self, record: StepRecord) -> None:
        """Everything that is due after this update."""
        self.meter.add(record)
        cadence = self.job.config.cadence
        if self._due(record, cadence.logs):
            self._log(record)
        if self._due(record, cadence.validations):
            self.validate()
        if self._due(record, cadence.grids):
            self.grid()
        if self._due(record, cadence.snapshots):
            self.snapshot()
        if self._due(record, cadence.checkpoints):
            self.checkpoint()

    def finish(self) -> None:
        """The last of everything, where it is not there yet."""
        run, images_seen = self.job.run, self.state.images_seen
        validated = read_jsonl(run.log("validation"))
        if not validated or validated[-1]["images_seen"] != images_seen:
            self.validate()
        if not self._grid_path().exists():
            self.grid()
        if not run.snapshot_at(images_seen).exists():
            self.snapshot()
        if not run.checkpoint_at(images_seen).exists():
            self.checkpoint()

    def checkpoint(self) -> None:
        """Save everything to go on from here."""
        self._flush_skips()
        run = self.job.run
        save_checkpoint(
            run.checkpoint_at(self.state.images_seen),
            self.state,
            self.meter.tensors(),
            {"seconds": self.job.clock.seconds()},
        )
        run.forget_old_checkpoints()

    def snapshot(self) -> None:
        """Save the averaged weights with all that sampling needs."""
        path = self.job.run.snapshot_at(self.state.images_seen)
        save_snapshot(path, self.state, self.job.config, self.job.facts, self._best_weights())

    def validate(self) -> None:
        """Denoising error of held-out images, for the raw and each averaged set of weights."""
        job, settings, started = self.job, self.job.config.validation, time.monotonic()
        assert settings.images is not None
        order = generator_at(job.config.seed, 0, "probe")
        chosen = torch.randperm(len(job.splits.val), generator=order)[: settings.images]
        probe = np.sort(job.splits.val[chosen.numpy()])
        device = job.runtime.device
        images = to_unit(torch.from_numpy(job.dataset.images[probe])).to(device)
        labels = job.dataset.labels
        rows = None if labels is None else torch.from_numpy(labels[probe]).to(device)
        sigmas = noise_levels(settings.bands, settings.sigma_min, settings.sigma_max)
        self._magnitudes(images[:_FEW], None if rows is None else rows[:_FEW])
        for name, weights in self._weights().items():
            bands = denoising_error(
                self._denoise_with(weights),
                images,
                rows,
                sigmas.to(device),
                seed=job.config.seed,
                sigma_data=job.facts.sigma_data,
            )
            row = {
                "images_seen": self.state.images_seen,
                "weights": name,
                "split": "val",
                "images": len(probe),
                "loss": sum(band.loss for band in bands) / len(bands),
                "bands": [vars(band) for band in bands],
            }
            append_jsonl(job.run.log("validation"), row)
        self.took["validation"] = time.monotonic() - started

    def _magnitudes(self, images: Tensor, labels: Tensor | None) -> None:
        """One line of magnitudes.jsonl: raw weights, and blocks at a middle noise level."""
        sd = self.job.facts.sigma_data
        noise = torch.randn(images.shape, generator=generator_at(self.job.config.seed, 0, "middle"))
        sigma = torch.full((len(images),), sd, device=images.device)
        x = images + sd * noise.to(images.device)
        blocks = activation_rms(self.state.denoiser, x, sigma, labels)
        row = {
            "images_seen": self.state.images_seen,
            "weight_rms": weight_rms(self.state.denoiser).item(),
            "activation_rms": blocks.mean().item(),
            "activation_rms_highest": blocks.max().item(),
        }
        append_jsonl(self.job.run.log("magnitudes"), row)

    def grid(self) -> None:
        """Sample the same seeds as every other grid of this run."""
        job = self.job
        names, started = job.facts.label_names, time.monotonic()
        labels = [i % len(names) for i in range(GRID_IMAGES)] if names else None
        named = self._weights()
        weights = named[self._best_weights() or list(named)[-1]]
        shape = (job.facts.channels, job.facts.resolution, job.facts.resolution)
        images = generate(
            self._denoise_with(weights),
            count=GRID_IMAGES,
            shape=shape,
            labels=labels,
            settings=job.config.sampling,
            levels=sampling_levels(job.config.sampling, self.state.denoiser.formulation),
            seed=job.config.seed,
            device=job.runtime.device,
        )
        self.took["grid"] = time.monotonic() - started
        columns = len(names) if 4 <= len(names) <= 10 else 10
        save_grid(self._grid_path(), images, columns)

    def _best_weights(self) -> str | None:
        """The weights with the lowest error at the last validation."""
        rows = read_jsonl(self.job.run.log("validation"))
        last = [row for row in rows if row["images_seen"] == rows[-1]["images_seen"]]
        return min(last, key=lambda row: row["loss"])["weights"] if last else None

    def _grid_path(self) -> Path:
        return self.job.run.samples / f"{self.state.images_seen:012d}.png"

    def _weights(self) -> dict[str, dict[str, Tensor]]:
        """All sets of weights by name, the widest average last."""
        profiles = {profile_name(std): w for std, w in self.state.ema.profiles.items()}
        return {"raw": weights_of(self.state.denoiser), **profiles}

    def _denoise_with(self, weights: dict[str, Tensor]) -> Any:
        """A callable that runs the denoiser with other weights, without touching its own."""
        denoiser = self.state.denoiser

        def denoise(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
            denoiser.eval()
            with torch.no_grad():
                result = torch.func.functional_call(denoiser, weights, (x, sigma, labels))
            assert isinstance(result, Tensor)
            return result

        return denoise

    def _interval(self, count: int | None) -> int:
        training = self.job.config.training
        return max(training.batch, training.images // (count or 1))

    def _due(self, record: StepRecord, count: int | None) -> bool:
        interval = self._interval(count)
        before = record.images_seen - len(record.indices)
        return record.images_seen // interval > before // interval

    def _log(self, record: StepRecord) -> None:
        self._flush_skips()
        row = self.meter.line()
        self.last_error = row["error"]  # type: ignore[assignment]
        row |= {
            "images_seen": record.images_seen,
            "step": record.step,
            "lr": record.lr,
            "weight_rms": weight_rms(self.state.denoiser).item(),
        }
        append_jsonl(self.job.run.log("metrics"), row)
        now, (then, images) = time.monotonic(), self._marked
        self.images_per_second = (record.images_seen - images) / max(now - then, 1e-9)
        self._marked = now, record.images_seen
        timing = {
            "images_seen": record.images_seen,
            "seconds": self.job.clock.seconds(),
            "images_per_second": self.images_per_second,
            "data_wait_s": self.waited(),  # of this session, up to now
        }
        append_jsonl(self.job.run.log("timing"), timing)

    def _flush_skips(self) -> None:
        """Write down updates that were not finite, with the names of their images."""
        for skip in self.meter.skips():
            files = [self.job.dataset.names[i] for i in skip.indices]
            log_event(
                self.job.run,
                skip.images_seen,
                "warning",
                "non_finite",
                "The loss or a gradient was not finite; the update was left out.",
                files=files,
            )
        limit = self.job.config.training.max_skipped
        if self.meter.skipped_in_a_row() >= limit:
            raise TrainingError(
                f"{limit} or more updates in a row were not finite, the last at "
                f"{self.state.images_seen:,} images.",
                expected="finite loss and gradients",
                remedy="Lower training.lr (events.jsonl names the images), then start again or "
                "resume from the last checkpoint.",
            )
