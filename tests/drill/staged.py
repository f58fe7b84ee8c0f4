"""A training that is only played: batches pass, files appear, and planted events are written."""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from poise.artifacts import RunDir, append_jsonl
from poise.data.batches import Batch
from poise.errors import Stopped

BATCH = 4
Say = Callable[["Moment"], list[dict[str, Any]]]


@dataclass(frozen=True)
class Moment:
    """An update of a played training."""

    folder: str  # name of the run folder
    seed: int
    images_seen: int  # after the update
    batch: Batch
    policy: str


def event(moment: Moment, cause: str, **more: Any) -> dict[str, Any]:
    """A line of events.jsonl about this update."""
    row = {"images_seen": moment.images_seen, "severity": "critical", "kind": cause}
    return {**row, "cause": cause, "message": f"{cause}, planted.", "action": "skip", **more}


@dataclass
class Played:
    """A `learn`; what its guard says is planted."""

    say: Say = lambda moment: []
    stop: Callable[[Moment], str] = lambda moment: ""  # the reason to stop, or nothing
    back: Callable[[Moment], int] = lambda moment: 0  # images to go back by
    raises: Callable[[Moment], Exception | None] = lambda moment: None
    ran: list[str] = field(default_factory=list)  # names of the run folders, in their order

    def __call__(self, job: Any, screen: Any, *, tamper: Any = None) -> int:
        run: RunDir = job.run
        self.ran.append(run.root.name)
        state = SimpleNamespace(images_seen=newest(run), step=0, loss=None, denoiser=None)
        journal = SimpleNamespace(job=job, phase="step", checkpoint=lambda: save(run, state))
        total = job.config.training.images
        while state.images_seen < total:
            tamper.begin(state, journal)
            records = tamper.records(self._updates(job, state, tamper))
            for _ in records:
                if self._after(job, run, state):
                    break
        save(run, state)
        snapshot = run.snapshot_at(state.images_seen)
        snapshot.parent.mkdir(exist_ok=True)
        snapshot.touch()
        return total

    def _updates(self, job: Any, state: Any, tamper: Any) -> Iterator[Any]:
        for batch in tamper.stream(clean()):
            if state.images_seen >= job.config.training.images:
                return
            state.images_seen += BATCH
            self.moment = Moment(
                job.run.root.name,
                job.config.seed,
                state.images_seen,
                batch,
                job.config.stability.policy,
            )
            applied = torch.tensor(bool(batch.images.float().isfinite().all()))
            yield SimpleNamespace(
                images_seen=state.images_seen, indices=batch.indices, applied=applied
            )

    def _after(self, job: Any, run: RunDir, state: Any) -> bool:
        """True if the session ended because the run went back."""
        if error := self.raises(self.moment):
            raise error
        for row in self.say(self.moment):
            append_jsonl(run.log("events"), row)
        if reason := self.stop(self.moment):
            save(run, state)
            stopped = Stopped(reason)
            stopped.cause = "planted"
            raise stopped
        if by := self.back(self.moment):
            state.images_seen -= by
            return True
        return False


def clean() -> Iterator[Batch]:
    """Batches of grey."""
    while True:
        images = torch.full((BATCH, 1, 8, 8), 100, dtype=torch.uint8)
        yield Batch(images, torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH))


def save(run: RunDir, state: Any) -> None:
    """A checkpoint in name alone."""
    path = run.checkpoint_at(state.images_seen)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def newest(run: RunDir) -> int:
    """Images seen by the newest checkpoint."""
    return max((int(path.stem) for path in run.checkpoint_files()), default=0)


def forget(root: Path) -> None:
    """Throw away the run folders of a drill; what it found stays."""
    shutil.rmtree(root / "runs")
