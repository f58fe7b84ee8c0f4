"""The same work on many things: in this process, in one process per core, or on a Ray cluster.

Whatever the engine, results come in the order of the jobs and are the same; so no caller needs to
know which one it was.
"""

import copy
import importlib.util
import logging
import math
import multiprocessing
import os
import signal
import sys
import traceback
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any, TypeVar

from poise.errors import DataError, PoiseError, UsageError

Job = TypeVar("Job")
Result = TypeVar("Result")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container, cgroup v2: "200000 100000" or "max ..."
_SHOWN = 200  # characters of a job in a message


def ordered_map(
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    engine: str = "local",
    workers: int | None = None,
    on_death: Callable[[Job], Result] | None = None,
) -> Generator[Result, None, None]:
    """`map(function, jobs)`, in several processes; memory does not grow with the number of jobs.

    With one worker or one job everything happens in this process. Otherwise processes are started
    afresh ("spawn"), not forked, since torch's threads do not survive a fork. They import the
    module of `function` and nothing of the caller's script, so a script needs no
    `if __name__ == "__main__"`, unless `function` is written in the script itself. Settings made
    in this process (globals, filters of warnings) do not reach them. They compute on one thread
    each, leave Ctrl-C to this process, and end with it, even if it is killed.

    A job whose process dies is tried again, alone in a fresh process, like those that were in
    flight with it; so `function` must bear being called twice with one job.

    Args:
        function: a callable of a module, or a `functools.partial` of one.
        jobs: what it is called with; taken as needed (by Ray: all at once). Jobs and results cross
            between processes, so keep them small and make one job of many images.
        engine: "local", or "ray": Ray Data on the cluster of RAY_ADDRESS, on one that is running
            on this machine, or on a local one that ends with the iteration. Other machines must
            have Poise installed and see the same files.
        workers: processes; None: one per core that this process may use. On a running Ray cluster
            it only limits the jobs that run at once.
        on_death: the result of a job whose process died twice.

    Returns:
        Results in the order of `jobs`. Locally at most 2 x workers are in flight or waiting to be
        taken. Close it, or exhaust it, to end the processes.

    Raises:
        UsageError: an unknown engine, fewer than one worker, or Ray is not installed.
        DataError: while iterating: a job's process died twice, and there is no `on_death`.
        PoiseError: while iterating: processes cannot be started at all.
        Exception: while iterating: what `function` raised, with the job in its notes.
    """
    if workers is not None and workers < 1:
        raise UsageError(f"workers = {workers}", expected="at least one worker process")
    if engine not in ("local", "ray"):
        raise UsageError(f"There is no engine {engine!r}.", expected="local or ray")
    if engine == "ray":
        require_ray()
    return _in_order(function, iter(jobs), engine, workers, on_death)


def cores() -> int:
    """Cores that this process may use: its affinity, and the quota of its container if less."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        allowed = os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text(encoding="ascii").split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max"
        return allowed


@dataclass(frozen=True)
class _Outcome:
    """What became of a job: its result, or the error with the text of its traceback."""

    value: Any = None
    error: Exception | None = None
    trace: str = ""
    died: bool = False  # its process is gone


def _in_order(
    function: Callable[[Job], Result],
    jobs: Iterator[Job],
    engine: str,
    workers: int | None,
    on_death: Callable[[Job], Result] | None,
) -> Generator[Result, None, None]:
    first = list(islice(jobs, 2))
    jobs = chain(first, jobs)
    if len(first) < 2 or (engine == "local" and (workers or cores()) == 1):
        for job in jobs:
            yield opened(job, attempt(function, job))
    elif engine == "local":
        yield from _local(function, jobs, workers or cores(), on_death)
    else:
        yield from _ray(function, list(jobs), workers, on_death)


def attempt(function: Callable[[Any], Any], job: Any) -> _Outcome:
    """Errors travel as values: a pool that cannot rebuild an exception would break instead."""
    try:
        return _Outcome(function(job))
    except Exception as error:
        trace = traceback.format_exc()
        try:
            copy.deepcopy(error)
        except Exception:  # its class cannot be rebuilt from its arguments elsewhere either
            return _Outcome(error=RuntimeError(f"{type(error).__name__}: {error}"), trace=trace)
        return _Outcome(error=error, trace=trace)


def opened(job: Any, outcome: _Outcome) -> Any:
    """The result; or raises the error."""
    if outcome.error is None:
        return outcome.value
    outcome.error.add_note(f"while working on {_shown(job)}")
    if outcome.error.__traceback__ is None:  # it comes from another process
        outcome.error.add_note(outcome.trace)
    raise outcome.error


def _after_death(job: Job, on_death: Callable[[Job], Result] | None) -> Result:
    if on_death is not None:
        return on_death(job)
    raise DataError(
        f"The process that worked on {_shown(job)} ended without a word, twice.",
        expected="a process that returns or says what is wrong",
        remedy="Look at these files: one may crash a decoder. If memory ran out, which ends a "
        "process in the same way, use fewer workers.",
    )


def _shown(job: Any) -> str:
    text = repr(job)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


# ---------------------------------------------------------------------------------- one per core


def _local(
    function: Callable[[Job], Result],
    jobs: Iterator[Job],
    workers: int,
    on_death: Callable[[Job], Result] | None,
) -> Generator[Result, None, None]:
    pool = _Pool(function, workers)
    flying: deque[tuple[Job, Future[_Outcome]]] = deque()
    try:
        while True:
            flying += ((job, pool.submit(job)) for job in islice(jobs, 2 * workers - len(flying)))
            if not flying:
                return
            job, future = flying[0]
            try:
                outcome = future.result()
            except BrokenProcessPool:
                pool.close()
                yield from _one_by_one(function, flying, on_death)
                pool = _Pool(function, workers)
                continue
            flying.popleft()
            yield opened(job, outcome)
    finally:
        pool.close()


def _one_by_one(
    function: Callable[[Job], Result],
    flying: deque[tuple[Job, "Future[_Outcome]"]],
    on_death: Callable[[Job], Result] | None,
) -> Iterator[Result]:
    """Results of the jobs that were in flight when a process died; empties `flying`."""
    pool = None
    try:
        while flying:
            job, future = flying.popleft()
            if not future.cancelled() and future.exception() is None:  # it was faster
                yield opened(job, future.result())
                continue
            pool = pool or _Pool(function, 1, check=True)
            try:
                outcome = pool.submit(job).result()
            except BrokenProcessPool:
                pool.close()
                pool = None
                yield _after_death(job, on_death)
            else:
                yield opened(job, outcome)
    finally:
        if pool is not None:
            pool.close()


class _Pool:
    """Fresh processes that know what to do."""

    def __init__(
        self, function: Callable[[Any], Any], workers: int, *, check: bool = False
    ) -> None:
        self._function = function
        origin = getattr(function, "func", function)  # of a partial
        self._script = getattr(origin, "__module__", None) == "__main__"
        self._pool = ProcessPoolExecutor(
            workers, multiprocessing.get_context("spawn"), initializer=begin_worker
        )
        if check:
            self._check()

    def submit(self, job: Any) -> "Future[_Outcome]":
        return self._start(attempt, self._function, job)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _start(self, *call: Any) -> "Future[Any]":
        try:
            with nullcontext() if self._script else without_script():
                return self._pool.submit(*call)
        except BrokenProcessPool as error:
            broken: Future[Any] = Future()
            broken.set_exception(error)
            return broken

    def _check(self) -> None:
        """Blame no job where no process can live."""
        try:
            self._start(os.getpid).result()
        except BrokenProcessPool as error:
            self.close()
            raise PoiseError(
                "A worker process ended before it had begun to work.",
                expected=f"that this Python can start processes: {sys.executable}",
                remedy="Free memory, or use one worker, which starts none.",
            ) from error


def begin_worker(threads: int = 1) -> None:
    """Before numpy or torch are loaded: their threads, no Ctrl-C, and an end with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)  # a killed parent closes no pool

    Thread(target=watch, daemon=True).start()


@contextmanager
def without_script() -> Iterator[None]:
    """Processes started meanwhile do not run the caller's script once more."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


# ------------------------------------------------------------------------------------------- Ray


@dataclass(frozen=True)
class _Parcel:
    """Keeps Ray from turning a value into columns, which would make lists of tuples."""

    value: Any


def require_ray() -> None:
    if any(importlib.util.find_spec(name) is None for name in ("ray", "pyarrow")):
        raise UsageError(
            "The engine ray needs Ray Data, which is not installed.",
            remedy="pip install 'poise[ray]'",
        )


def _ray(
    function: Callable[[Job], Result],
    jobs: list[Job],
    workers: int | None,
    on_death: Callable[[Job], Result] | None,
) -> Generator[Result, None, None]:
    """One Ray Data task per job; Ray's own rules say how many results wait to be taken."""
    with cluster(workers or cores()):
        import ray.data

        logging.getLogger("ray.data").setLevel(logging.ERROR)
        rows = [{"job": _Parcel(job)} for job in jobs]
        data = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            partial(_row, function), compute=ray.data.TaskPoolStrategy(size=workers)
        )
        data.context.enable_progress_bars = False
        data.context.execution_options.preserve_order = True
        for job, row in zip(jobs, data.iter_rows(), strict=True):
            outcome = row["outcome"].value
            yield _after_death(job, on_death) if outcome.died else opened(job, outcome)


def _row(function: Callable[[Any], Any], row: dict[str, _Parcel]) -> dict[str, _Parcel]:
    """The work is a task within the task: Ray Data would try one that kills again for ever."""
    import ray
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError

    task = ray.remote(attempt).options(num_cpus=1, max_retries=1)
    try:
        outcome: _Outcome = ray.get(task.remote(function, row["job"].value))
    except (OutOfMemoryError, WorkerCrashedError):
        outcome = _Outcome(died=True)
    return {"outcome": _Parcel(outcome)}


@contextmanager
def cluster(workers: int) -> Iterator[None]:
    """Connected to Ray: as this process is, or to a running cluster, or to one started here."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")  # would upload the working folder
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", **quiet)
    except ConnectionError as error:
        if os.environ.get("RAY_ADDRESS"):
            raise UsageError(
                f"RAY_ADDRESS is {os.environ['RAY_ADDRESS']}; no Ray cluster answers there.",
                remedy="Start it, or unset RAY_ADDRESS for a cluster on this machine alone.",
            ) from error
        ray.init(address="local", num_cpus=workers, include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
