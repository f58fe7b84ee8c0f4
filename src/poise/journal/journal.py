"""What a running training writes down: log lines, validation, grids, snapshots, checkpoints.

The loop does not know it. Each kind is due when `images_seen` crosses a multiple of its interval,
so a resumed run writes the same lines at the same places.
"""

import hashlib
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.artifacts import append_jsonl, read_jsonl, read_meta
from poise.errors import ArtifactError, TrainingError
from poise.generate import generate
from poise.journal.looks import draw_grid, magnitudes, validate
from poise.journal.prepared import Prepared, log_event, log_row
from poise.pictures import save_grid
from poise.stability.incident import Incident, Sign
from poise.training.checkpoint import (
    IncompleteCheckpoint,
    load_checkpoint,
    save_checkpoint,
    save_snapshot,
)
from poise.training.loop import StepRecord, TrainState
from poise.training.magnitudes import weight_rms
from poise.training.meter import IntervalMeter

_FAILURES = 20  # writes refused in a row after which the run ends
_PROOF = 50  # updates without any sign after which a checkpoint has proved good


@dataclass
class Journal:
    """Reads the records of one run and keeps its folder up to date."""

    job: Prepared
    state: TrainState
    meter: IntervalMeter = field(init=False)
    images_per_second: float = field(init=False, default=0.0)
    last_error: float | None = field(init=False, default=None)
    summary: Callable[[], dict[str, Any]] = field(
        init=False, default_factory=lambda: dict
    )  # of the signals
    pace: Callable[[], dict[str, Any]] = field(
        init=False, default_factory=lambda: dict
    )  # of the updates
    probe: dict[str, Any] | None = field(init=False, default=None)  # for the next log line
    validated_at: int = field(init=False, default=0)  # images seen at the last validation
    last_grid: Any = field(init=False, default=None)  # uint8 [N, H, W, C]
    took: dict[str, float] = field(init=False, default_factory=dict)  # seconds, last time
    draw: Callable[..., Any] = field(
        init=False, default_factory=lambda: generate
    )  # of the sample grids
    memory: Callable[[], dict[str, Any]] = field(
        init=False, default_factory=lambda: dict
    )  # kept in checkpoints
    recall: Callable[[dict[str, Any]], None] = field(
        init=False, default_factory=lambda: lambda memory: None
    )
    owed: list[str] = field(init=False, default_factory=list)  # looks due since the last update
    phase: str = field(init=False, default="step")  # what is being done
    breaking: Callable[[], AbstractContextManager[None]] = field(
        init=False, default_factory=lambda: nullcontext
    )
    watched: bool = field(init=False, default=False)  # by the guard, who names what was left out
    copy: Callable[[str, dict[str, Any]], None] = field(
        init=False, default_factory=lambda: lambda log, row: None
    )  # of a row, to dashboards
    said: Callable[[str], None] = field(
        init=False, default_factory=lambda: lambda text: None
    )  # to the screen
    quiet: Callable[[], int] = field(
        init=False, default_factory=lambda: lambda: 0
    )  # updates without any sign
    waited: Callable[[], float] = field(
        init=False, default_factory=lambda: lambda: 0.0
    )  # for batches, seconds

    def __post_init__(self) -> None:
        self.meter = IntervalMeter(self.job.config.diffusion, self.job.runtime.device)
        self._marked = time.monotonic(), self.state.images_seen
        self._failed: dict[str, int] = {}  # writes of each kind refused in a row
        self._unsaid: list[Incident] = []

    def restore(self) -> bool:
        """Go back to the newest whole checkpoint; a damaged one is named and passed over."""
        if self._load_newest(math.inf) is not None:
            return True
        self.job.run.truncate_logs(-1)
        return False

    def rewind(self, since: int) -> int:
        """Back to the newest whole checkpoint of `since` images or less; returns its images.

        Where there is none, the oldest there is. What was logged after it is cut, but not events.

        Raises:
            ArtifactError: no checkpoint is whole.
        """
        known = [int(path.stem) for path in self.job.run.checkpoint_files()]
        spent = self.job.clock.spent
        back = self._load_newest(max(since, min(known, default=0)))
        self.job.clock.spent = spent  # time goes on, whatever the state does
        if back is None:
            raise ArtifactError(
                f"{self.job.run.checkpoints} holds no checkpoint to go back to.",
                remedy="Start a new run.",
            )
        for path in self.job.run.checkpoint_files():
            if int(path.stem) > back:  # of the way that was left
                path.unlink()
        return back

    def checkpoints_before(self, since: int) -> list[Path]:
        """The checkpoints of at most `since` images, newest first; without any, the oldest."""
        paths = self.job.run.checkpoint_files()
        return [p for p in reversed(paths) if int(p.stem) <= since] or paths[:1]

    def _load_newest(self, limit: float) -> int | None:
        run = self.job.run
        damaged: list[tuple[Path, ArtifactError]] = []
        for path in reversed(run.checkpoint_files()):
            if int(path.stem) > limit:
                continue
            try:
                self._refuse_strangers(path)
                tensors, meta = load_checkpoint(path, self.state)
            except ArtifactError as error:
                damaged.append((path, error))
                continue
            self.meter.restore(tensors)
            self.owed = list(meta["owed"])
            self.recall(meta["memory"])
            self.job.clock.spent = float(meta["seconds"])
            run.truncate_logs(self.state.images_seen)
            rows = read_jsonl(run.log("validation"))
            self.validated_at = rows[-1]["images_seen"] if rows else 0
            self._set_aside(damaged)
            self._marked = time.monotonic(), self.state.images_seen
            return self.state.images_seen
        if damaged:
            raise ArtifactError(
                "No checkpoint of this run is whole.\n"
                + "\n".join(str(error) for _, error in damaged),
                remedy="Start a new run, or sample from the snapshots that are left.",
            )
        return None

    def _refuse_strangers(self, path: Path) -> None:
        """
        Raises:
            ArtifactError: the checkpoint is of a run with other settings or other images.
        """
        meta = read_meta(path)  # empty: damaged, which is for who reads all of it to say
        if meta and meta.get("lineage") != self.lineage():
            raise ArtifactError(
                f"{path} belongs to another run: its settings or its images are others.",
                expected=f"a checkpoint that {self.job.run.root} has written",
                remedy="Keep each run in a folder of its own.",
            )

    def lineage(self) -> str:
        """What all checkpoints of one run have in common, and those of no other run."""
        config = self.job.config
        text = f"{config.seed} {config.model} {config.data} {self.job.dataset.fingerprint}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _set_aside(self, damaged: list[tuple[Path, ArtifactError]]) -> None:
        """Name the checkpoints that cannot be used; they are kept under another suffix."""
        now = self.state.images_seen
        for path, error in damaged:
            path.rename(path.with_suffix(".damaged"))
            incomplete = isinstance(error, IncompleteCheckpoint)
            cause = "incomplete-checkpoint" if incomplete else "damaged-checkpoint"
            sign = Sign(cause, "warning", now, now, str(error), culprit={"files": [path.name]})
            self.incident(Incident(sign, "set-aside"))

    def incident(self, incident: Incident) -> None:
        """One line of events.jsonl; where the disk refuses it, it is kept until it does not."""
        self.said(incident.sign.sentence)
        self.copy("events", incident.row())
        try:
            log_row(self.job.run, incident.row())
        except ArtifactError:
            self._unsaid.append(incident)

    def note(self, record: StepRecord) -> None:
        """Everything that is due after this update."""
        self.meter.add(record)
        cadence = self.job.config.cadence
        if self._due(record, cadence.logs):
            self._attempt("log", lambda: self._log(record))
        looks = {
            "validation": cadence.validations,
            "grid": cadence.grids,
            "snapshot": cadence.snapshots,
            "checkpoint": cadence.checkpoints,
        }
        self.owed = [name for name, count in looks.items() if self._due(record, count)]
        self.catch_up()

    def catch_up(self) -> None:
        """What is owed since the last update: all of it, or what an interruption left of it."""
        acts = {"validation": self.validate, "grid": self.grid, "snapshot": self.snapshot}
        while self.owed:
            name = self.owed[0]
            if name == "checkpoint":
                self.owed = []  # it must not find itself owed when it is read again
                self._attempt(name, self.checkpoint)
            else:
                self.phase = name
                self._attempt(name, acts[name])
                self.owed = self.owed[1:]
            self.phase = "step"

    def _attempt(self, name: str, write: Callable[[], None]) -> None:
        """Write, or go on training without: what was saved before is whole, and the next is due.

        Raises:
            ArtifactError: it failed many times in a row.
        """
        try:
            write()
            self._failed[name] = 0
            self._say_the_rest()
        except ArtifactError as error:
            self._failed[name] = self._failed.get(name, 0) + 1
            if self._failed[name] > _FAILURES:
                raise
            cause = "log-failed" if name in ("log", "validation") else "disk-full"
            free = shutil.disk_usage(self.job.run.root).free
            now = self.state.images_seen
            found = f"{error.found} Training goes on; it is tried again when it is due next."
            evidence = {"free_bytes": free, "times": self._failed[name]}
            self.incident(Incident(Sign(cause, "warning", now, now, found, evidence), "retry"))

    def _say_the_rest(self) -> None:
        """The incidents that could not be written when they came."""
        while self._unsaid:
            log_row(self.job.run, self._unsaid[0].row())
            self._unsaid.pop(0)

    def finish(self) -> None:
        """The last of everything, where it is not there yet."""
        run, images_seen = self.job.run, self.state.images_seen
        validated = read_jsonl(run.log("validation"))
        is_validated = bool(validated) and validated[-1]["images_seen"] == images_seen
        for name, there, act in (
            ("validation", is_validated, self.validate),
            ("grid", self._grid_path().exists(), self.grid),
            ("snapshot", run.snapshot_at(images_seen).exists(), self.snapshot),
            ("checkpoint", run.checkpoint_at(images_seen).exists(), self.checkpoint),
        ):
            if not there:
                self.phase = name
                act()
        self._say_the_rest()
        self.phase = "step"

    def checkpoint(self) -> None:
        """Save everything to go on from here."""
        self._flush_skips()
        run = self.job.run
        save_checkpoint(
            run.checkpoint_at(self.state.images_seen),
            self.state,
            self.meter.tensors(),
            {
                "seconds": self.job.clock.seconds(),
                "owed": self.owed,
                "lineage": self.lineage(),
                "memory": self.memory(),
            },
        )
        run.forget_old_checkpoints(self._proved())

    def _proved(self) -> int:
        """Images up to which a checkpoint has proved good: nothing was seen long after it."""
        batch = self.job.config.training.batch
        quiet = self.quiet()
        since = _PROOF if quiet >= _PROOF else quiet + _PROOF  # _PROOF updates before the last sign
        return self.state.images_seen - since * batch

    def snapshot(self) -> None:
        """Save the averaged weights with all that sampling needs."""
        path = self.job.run.snapshot_at(self.state.images_seen)
        save_snapshot(path, self.state, self.job.config, self.job.facts, self._best_weights())

    def validate(self) -> None:
        """Denoising error of held-out images, for the raw and each averaged set of weights."""
        started = time.monotonic()
        with self.breaking():
            few = magnitudes(self.job, self.state)
            rows = validate(self.job, self.state)
        append_jsonl(self.job.run.log("magnitudes"), few)
        for row in rows:
            append_jsonl(self.job.run.log("validation"), row)
            self.copy("validation", row)
        self.validated_at = self.state.images_seen
        self.took["validation"] = time.monotonic() - started

    def grid(self) -> None:
        """Sample the same seeds as every other grid of this run."""
        started = time.monotonic()
        names = self.job.facts.label_names
        with self.breaking():
            self.last_grid = draw_grid(self.job, self.state, self._best_weights(), self.draw)
        self.took["grid"] = time.monotonic() - started
        columns = len(names) if 4 <= len(names) <= 10 else 10
        save_grid(self._grid_path(), self.last_grid, columns)

    def _best_weights(self) -> str | None:
        """The weights with the lowest error at the last validation."""
        rows = read_jsonl(self.job.run.log("validation"))
        last = [row for row in rows if row["images_seen"] == rows[-1]["images_seen"]]
        return min(last, key=lambda row: row["loss"])["weights"] if last else None

    def _grid_path(self) -> Path:
        return self.job.run.samples / f"{self.state.images_seen:012d}.png"

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
        row |= self.summary()
        if self.probe is not None:
            row["probe"], self.probe = self.probe, None
        append_jsonl(self.job.run.log("metrics"), row)
        self.copy("metrics", row)
        now, (then, images) = time.monotonic(), self._marked
        self.images_per_second = (record.images_seen - images) / max(now - then, 1e-9)
        self._marked = now, record.images_seen
        timing = {
            "images_seen": record.images_seen,
            "seconds": self.job.clock.seconds(),
            "images_per_second": self.images_per_second,
            "data_wait_s": self.waited(),  # of this session, up to now
            **self.pace(),
        }
        append_jsonl(self.job.run.log("timing"), timing)

    def _flush_skips(self) -> None:
        """Write down updates that were not finite, with the names of their images."""
        skips = self.meter.skips()
        for skip in [] if self.watched else skips:
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
