"""The ground that all runs of a drill share: images, settings, base checkpoint, and one way to run.

A run is a folder; what happened in it is read from its files and by a witness beside it.
"""

import glob
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from poise.artifacts import DataFacts, RunDir, write_bytes, write_json
from poise.budget import Clock
from poise.config import to_toml
from poise.console import Screen
from poise.data.batches import Batch
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.drill.measure import validation_error
from poise.drill.witness import Witness
from poise.errors import Interrupted, PoiseError, TrainingError, UsageError
from poise.journal import Journal, Prepared
from poise.learning.session import Tamper
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import StepRecord, TrainState

_PATIENCE = 120.0  # seconds that a run may take besides twenty times the undisturbed one
_SLOWER = 20.0


class Learn(Protocol):
    """A training session, as `poise.learning.learn.learn` is one."""

    def __call__(self, job: Prepared, screen: Screen, *, tamper: Tamper | None = None) -> int:
        """Train to the end, from whatever the run folder holds; the images seen."""


class Measure(Protocol):
    """A measure of the weights in a run folder, as `measure.validation_error` is one."""

    def __call__(self, run: RunDir, dataset: Dataset, splits: Splits) -> float:
        """Lower is better."""


@dataclass
class Ground:
    """Everything that the runs of one drill have in common."""

    root: Path
    source: str
    config: Config  # of base and steps together, with the first seed
    dataset: Dataset
    splits: Splits
    facts: DataFacts
    runtime: Runtime
    learn: Learn
    base: int  # updates before the first fault
    steps: int  # updates after that
    tick: Callable[[], None] = lambda: None  # after every update of any run
    measure: Measure = validation_error
    reference: float = field(default=float("nan"))  # validation error of the undisturbed run
    seconds: float = field(default=60.0)  # that the undisturbed run took
    ordinary: set[tuple[str, int]] = field(default_factory=set)  # cause, images: said in it, too

    @property
    def base_folder(self) -> Path:
        """The run folder as it was when the base was trained."""
        return self.root / "base"

    @property
    def undisturbed(self) -> Path:
        """The run folder of the undisturbed run."""
        return self.root / "runs" / "undisturbed"

    @property
    def base_images(self) -> int:
        """Images seen by then."""
        return self.base * self.config.training.batch

    def folder(self, name: str, *, whole: bool) -> Path:
        """A fresh run folder: with what the base left, or empty for a run from its first update."""
        path = self.root / "runs" / name
        shutil.rmtree(path, ignore_errors=True)
        if whole:
            path.mkdir(parents=True)
        else:
            shutil.copytree(self.base_folder, path)
        return path

    def throw_away(self, name: str) -> None:
        """Remove a run folder, and what lies beside it under the same name."""
        for path in (self.root / "runs").glob(f"{glob.escape(name)}*"):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def job(
        self, folder: Path, config: Config | None = None, dataset: Dataset | None = None
    ) -> Prepared:
        """A run about to train, or to go on, in `folder`."""
        config, run = config or self.config, RunDir(folder)
        write_bytes(run.config, to_toml(config).encode())
        info = {
            "source": self.source,
            "preset": "drill",
            "seed": config.seed,
            "budget_seconds": None,
            "planned_images": config.training.images,
            "status": "running",
        }
        write_json(run.run, info)
        return Prepared(
            run,
            config,
            dataset or self.dataset,
            self.splits,
            self.facts,
            self.runtime,
            Clock(None),
        )

    def error(self, folder: Path) -> float:
        """Validation error of a run's newest snapshot."""
        return self.measure(RunDir(folder), self.dataset, self.splits)

    def gap(self, folder: Path) -> float:
        """How much worse the weights of a run are than those of the undisturbed one, as a share."""
        return self.error(folder) / self.reference - 1


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    how: Literal["finished", "early", "stopped", "failed", "crashed", "hung"]
    images_seen: int  # 0 where the run did not say
    reason: str = ""  # for a person; empty when finished


class _Hung(BaseException):
    """Raised out of a run that takes far too long."""


def attempt(ground: Ground, job: Prepared, tamper: Tamper) -> Ended:
    """One session to its end, whatever end that is.

    Raises:
        Interrupted, KeyboardInterrupt: a person wants to stop the drill.
        UsageError: the tamper does not fit this network.
    """
    try:
        with _limited(_PATIENCE + _SLOWER * ground.seconds):
            seen = ground.learn(job, Screen(quiet=True), tamper=tamper)
    except (Interrupted, UsageError):  # a person's wish; a fault that does not fit
        raise
    except _Hung:
        return Ended("hung", 0, "it hung, and was ended by the drill")
    except PoiseError as error:
        how: Literal["stopped", "failed"] = "stopped" if _by_guard(error) else "failed"
        return Ended(how, 0, str(error))
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        return Ended("crashed", 0, f"{type(error).__name__} at {place}: {error}")
    if seen < job.config.training.images:
        return Ended("early", seen, f"it was ended after {seen:,} images")
    return Ended("finished", seen)


def _by_guard(error: PoiseError) -> bool:
    return bool(getattr(error, "cause", ""))


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise `_Hung` in the block when it takes longer; without signals there is no limit."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(_: int, __: object) -> None:
        raise _Hung

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Keeper:
    """A tamper that changes nothing and copies the run folder when the base is trained."""

    images: int  # seen when the base is trained
    target: Path
    _journal: Journal | None = None

    def begin(self, state: TrainState, journal: Journal) -> None:
        """Remember who saves."""
        self._journal = journal

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches as they came."""
        return stream

    def records(self, records: Iterator[StepRecord]) -> Iterator[StepRecord]:
        """The records as they came; the copy is made after all that follows the base's last."""
        for record in records:
            yield record
            if record.images_seen == self.images and self._journal is not None:
                self._journal.checkpoint()
                shutil.rmtree(self.target, ignore_errors=True)
                shutil.copytree(self._journal.job.run.root, self.target)
                RunDir(self.target).alive.unlink(missing_ok=True)  # nobody trains the copy


def train_base(ground: Ground) -> Witness:
    """The undisturbed run, with the state at its base kept; what happened in it, which is nothing.

    Sets `reference` and `seconds` of the ground.

    Raises:
        TrainingError: it did not come to its end, so that there is nothing to compare with.
        Interrupted, KeyboardInterrupt: a person wants to stop the drill.
    """
    folder = ground.folder("undisturbed", whole=True)
    keeper = Keeper(ground.base_images, ground.base_folder)
    witness = Witness(RunDir(folder), keeper, ground.tick)
    began = time.monotonic()
    ended = attempt(ground, ground.job(folder), witness)
    witness.look()
    if ended.how != "finished":
        raise TrainingError(
            f"The undisturbed run did not come to its end: {ended.reason}",
            expected="a run that needs no help, to compare the disturbed ones with",
            remedy="Try other settings (--set), or a longer --base.",
        )
    ground.seconds = time.monotonic() - began
    ground.reference = ground.error(folder)
    return witness
