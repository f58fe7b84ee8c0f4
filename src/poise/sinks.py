"""Copies of the logs for dashboards: TensorBoard and Weights & Biases.

The files of the run folder are the log; a sink is a copy and must never cost a run anything. Each
works in a thread of its own behind a queue of limited length. One that raises, hangs or cannot keep
up is switched off, once, and says why.
"""

import importlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from poise.errors import UsageError, nearest

KINDS = ("tensorboard", "wandb")
_WAITING = 1024  # rows that may wait for a sink
_SILENT_SECONDS = 300.0  # a row may take so long before the sink counts as hung
_CLOSING_SECONDS = 30.0
_PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}


class Writer(Protocol):
    """What a dashboard does with rows; called from one thread."""

    def write(self, log: str, row: Mapping[str, Any]) -> None:
        """Take one row of the log `metrics`, `validation`, `events`, ...; may raise anything."""

    def close(self) -> None:
        """Everything is written; may raise anything."""


@dataclass(frozen=True)
class Failure:
    """A sink that was switched off."""

    sink: str
    reason: str
    lost: int  # rows that it never took, up to now

    @property
    def sentence(self) -> str:
        """For a person."""
        return (
            f"The sink {self.sink} was switched off: {self.reason}. Training and the files of the "
            "run folder are not affected."
        )


class Sinks:
    """All dashboards of one run."""

    def __init__(
        self,
        makers: Mapping[str, Callable[[], Writer]],
        *,
        waiting: int = _WAITING,
        silent_seconds: float = _SILENT_SECONDS,
    ) -> None:
        """
        Args:
            makers: by name; each is called in the thread of its sink, so it may take its time.
            waiting: rows that may wait for one sink.
            silent_seconds: how long a sink may take for one row.
        """
        self._feeds = [_Feed(name, make, waiting, silent_seconds) for name, make in makers.items()]

    def send(self, log: str, row: Mapping[str, Any]) -> list[Failure]:
        """Hand a row to all that work; returns at once, with those that have failed since.

        Args:
            log: `metrics`, `validation`, `events`, ...
            row: plain data with `images_seen`; not changed afterwards.
        """
        for feed in self._feeds:
            feed.put(log, row)
        return self._failures()

    def close(self, seconds: float = _CLOSING_SECONDS) -> list[Failure]:
        """Wait until all is written, together no longer than `seconds`; those that failed."""
        until = time.monotonic() + seconds
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.join(max(until - time.monotonic(), 0.0))
        return self._failures()

    def _failures(self) -> list[Failure]:
        return [failure for feed in self._feeds for failure in feed.failures()]


class _Feed:
    """One sink with its thread and its queue."""

    def __init__(
        self, name: str, make: Callable[[], Writer], waiting: int, silent_seconds: float
    ) -> None:
        self._name, self._make, self._silent = name, make, silent_seconds
        self._queue: queue.Queue[tuple[str, Mapping[str, Any]] | None] = queue.Queue(waiting)
        self._reason: str | None = None
        self._told = False
        self._lost = 0
        self._busy_since: float | None = time.monotonic()
        self._thread = threading.Thread(target=self._work, name=f"sink {name}", daemon=True)
        self._thread.start()

    def put(self, log: str, row: Mapping[str, Any]) -> None:
        """Queue a row, or count it as lost."""
        busy = self._busy_since
        if self._reason is None and busy is not None and time.monotonic() - busy > self._silent:
            self._reason = f"it did not answer for {self._silent:.0f} s"
        if self._reason is None:
            try:
                self._queue.put_nowait((log, dict(row)))
                return
            except queue.Full:
                self._reason = f"{self._queue.maxsize} rows wait for it"
        self._lost += 1

    def end(self) -> None:
        """No further row comes."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            self._reason = self._reason or f"{self._queue.maxsize} rows wait for it"

    def join(self, seconds: float) -> None:
        """Wait for the rows that were queued; the thread of a hung sink is left to itself."""
        if self._reason is None:
            self._thread.join(seconds)
            if self._thread.is_alive():
                self._reason = self._reason or "it did not finish in time"

    def failures(self) -> Iterator[Failure]:
        """The failure, once."""
        if self._reason is not None and not self._told:
            self._told = True
            yield Failure(self._name, self._reason, self._lost + self._queue.qsize())

    def _work(self) -> None:
        """Of the thread: make the writer, then a row at a time."""
        try:
            writer = self._make()
            while self._reason is None:
                self._busy_since = None
                item = self._queue.get()
                self._busy_since = time.monotonic()
                if item is None:
                    writer.close()
                    return
                writer.write(*item)
        except BaseException as error:  # whatever a foreign package throws, SystemExit too
            words = str(error).strip().partition("\n")[0]
            self._reason = self._reason or f"{type(error).__name__}: {words}"


def open_sinks(
    names: Sequence[str], run_root: Path, config: Mapping[str, Any], *, images_seen: int = 0
) -> Sinks:
    """The sinks of a run; without names, none.

    Args:
        names: of "tensorboard" and "wandb".
        run_root: the run folder; TensorBoard's files go to `tensorboard/` in it, those of W&B to
            `wandb/`.
        config: the settings, for W&B.
        images_seen: where the run goes on; later rows of an earlier session are hidden.

    Raises:
        UsageError: an unknown name, or a package that is not installed.
    """
    makers: dict[str, Callable[[], Writer]] = {}
    for name in dict.fromkeys(names):
        if name not in KINDS:
            raise UsageError(
                f"There is no sink {name!r}. {nearest(name, KINDS)}".rstrip(),
                expected="tensorboard or wandb",
            )
        module = _module(name)
        if name == "tensorboard":
            makers[name] = _tensorboard(module, run_root, images_seen)
        else:
            makers[name] = _wandb(module, run_root, config)
    return Sinks(makers)


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(_PACKAGES[name])
    except ImportError:
        raise UsageError(
            f"The sink {name} needs the package {name}, which is not installed.",
            remedy=f"pip install 'poise[{name}]', or leave it out of the setting sinks.",
        ) from None


def _tensorboard(module: ModuleType, run_root: Path, images_seen: int) -> Callable[[], Writer]:
    purge = images_seen + 1 if images_seen else None
    return lambda: TensorBoardWriter(
        module.SummaryWriter(log_dir=str(run_root / "tensorboard"), purge_step=purge)
    )


def _wandb(module: ModuleType, run_root: Path, config: Mapping[str, Any]) -> Callable[[], Writer]:
    def make() -> Writer:
        # without an account nobody is asked for one: the files wait for `wandb sync`
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in(module) else "offline")
        run_root.mkdir(parents=True, exist_ok=True)
        run = module.init(
            project=os.environ.get("WANDB_PROJECT", "poise"),
            name=run_root.name,
            dir=str(run_root),
            config=dict(config),
            mode=mode,
            resume="allow",
        )
        run.define_metric("images_seen")
        run.define_metric("*", step_metric="images_seen")  # rollbacks go back: not W&B's own step
        return WandbWriter(run)

    return make


def _logged_in(module: ModuleType) -> bool:
    """Whether the package knows an account; in doubt, no."""
    return bool(getattr(getattr(module, "api", None), "api_key", None))


class TensorBoardWriter:
    """Numbers as scalars over images seen, incidents as text."""

    def __init__(self, writer: Any) -> None:
        """
        Args:
            writer: a `torch.utils.tensorboard.SummaryWriter`.
        """
        self._writer = writer

    def write(self, log: str, row: Mapping[str, Any]) -> None:
        """One row."""
        step = int(row["images_seen"])
        if log == "events":
            self._writer.add_text(f"events/{row.get('kind', 'event')}", _words(row), step)
            self._writer.flush()  # an incident is wanted now
            return
        for tag, value in scalars(log, row):
            self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Write the rest."""
        self._writer.close()


class WandbWriter:
    """Numbers over images seen, incidents as text."""

    def __init__(self, run: Any) -> None:
        """
        Args:
            run: what `wandb.init` gave.
        """
        self._run = run

    def write(self, log: str, row: Mapping[str, Any]) -> None:
        """One row."""
        values: dict[str, Any] = dict(scalars(log, row))
        if log == "events":
            values = {f"events/{row.get('kind', 'event')}": _words(row)}
        if values:
            self._run.log({"images_seen": int(row["images_seen"]), **values})

    def close(self) -> None:
        """Write the rest."""
        self._run.finish()


def scalars(log: str, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The finite numbers of a row by name: `metrics/error`, `validation/ema_0.100/loss/sigma=0.5`.

    Args:
        log: where the row belongs.
        row: plain data; `weights` and `split` go into the name, `bands` become one number each.
    """
    parts = [row[key] for key in ("weights",) if isinstance(row.get(key), str)]
    if row.get("split") not in (None, "val"):
        parts.append(str(row["split"]))
    head = "/".join([log, *map(str, parts)])
    for key, value in row.items():
        if key == "images_seen":
            continue
        if key == "bands" and isinstance(value, list):
            yield from _bands(head, value)
        else:
            yield from _numbers(f"{head}/{key}", value)


def _bands(head: str, bands: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, float]]:
    for band in bands:
        for key, value in band.items():
            if key not in ("sigma", "count"):
                yield from _numbers(f"{head}/{key}/sigma={band['sigma']:.3g}", value)


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield name, float(value)


def _words(row: Mapping[str, Any]) -> str:
    action = row.get("action")
    tail = f" Action: {action}." if action not in (None, "none") else ""
    return f"{row.get('severity', 'info')}: {row.get('message', '')}{tail}"
