"""The workers of a study: one function, once per seat, each in a process of its own.

A seat is what a worker is told: its name, the folder, the storage. Workers share nothing but the
storage; so one that dies is started again, and the others do not notice.
"""

import math
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.context import SpawnProcess
from threading import Event
from typing import Any, Generic, TypeVar

from poise.console import Screen
from poise.engines import attempt, begin_worker, cluster, cores, opened, require_ray, without_script
from poise.errors import PoiseError, UsageError
from poise.signals import terminate_as_interrupt

Seat = TypeVar("Seat")
Result = TypeVar("Result")
_NEWS_SECONDS = 2.0
_RESTARTS = 20  # in all; on Ray, of each worker
_STOPS = {signal.SIGINT, signal.SIGTERM}


def run_workers(
    function: Callable[[Seat], Result],
    seats: Sequence[Seat],
    *,
    engine: str,
    on_news: Callable[[], None],
    say: Callable[[str], None] | None = None,
) -> list[Result]:
    """`function(seat)` for every seat, all at once; what they returned, in the order of `seats`.

    A local worker is a fresh process ("spawn") in a session of its own, which ends with this one.
    It computes on its share of the cores and, where there are several CUDA devices, on one of
    them. With one seat no process is started: `function` runs here.

    Ctrl-C and SIGTERM come to this process alone. It passes SIGTERM to its workers, once, waits
    until they have saved their state, and raises. A second Ctrl-C kills them. (Ray interrupts a
    worker with SIGINT.)

    A worker that dies without a word is started again, up to 20 times in all, then left out.

    Args:
        function: a callable of a module, or a `functools.partial` of one. It must bear being
            called again with a seat whose worker was killed.
        seats: seats and results cross between processes, so keep them small.
        engine: "local", or "ray": a task of one core per seat on the cluster, with an equal share
            of its GPUs. Its machines must have Poise installed and see the same files.
        on_news: called here about every 2 s, and when all have ended; with one seat, in a thread.
        say: told in a sentence of each worker that died; None: standard error.

    Raises:
        UsageError: an unknown engine, or Ray is not installed.
        PoiseError: all workers were lost.
        KeyboardInterrupt: on Ctrl-C or SIGTERM.
        Exception: what `function` raised first; the other workers were stopped before, as above.
    """
    say = say or Screen().say
    if engine == "ray":
        require_ray()
        return _ray(function, seats, on_news, say)
    if engine != "local":
        raise UsageError(f"There is no engine {engine!r}.", expected="local or ray")
    if len(seats) == 1:
        return [_alone(function, seats[0], on_news)]
    return _local(function, seats, on_news, say)


def _alone(function: Callable[[Seat], Result], seat: Seat, on_news: Callable[[], None]) -> Result:
    """In this thread, which hears signals; the news come from another."""
    ended = Event()

    def tell() -> None:
        while not ended.wait(_NEWS_SECONDS):
            on_news()

    with ThreadPoolExecutor(1) as pool:
        news = pool.submit(tell)
        try:
            result = function(seat)
        finally:
            ended.set()
    news.result()
    on_news()
    return result


def _survivors(results: dict[int, Any], seats: Sequence[Any]) -> list[Any]:
    if seats and not results:
        raise PoiseError(
            f"All {len(seats)} workers ended without a word, again and again.",
            expected="workers that return or say what is wrong",
            remedy="If memory ran out, which ends a process in this way, use fewer workers or a "
            "smaller batch. What was finished is kept: go on with --resume.",
        )
    return [results[index] for index in sorted(results)]


# ------------------------------------------------------------------------------ on this machine


@dataclass
class _Worker:
    index: int  # of its seat
    process: SpawnProcess
    pipe: "connection.Connection[Any, Any]"


def _local(
    function: Callable[[Seat], Result],
    seats: Sequence[Seat],
    on_news: Callable[[], None],
    say: Callable[[str], None],
) -> list[Result]:
    crew = _Crew(function, seats, say)
    with terminate_as_interrupt():
        try:
            for index in range(len(seats)):
                crew.start(index)
            while crew.workers:
                crew.wait()
                on_news()
        finally:  # nobody is left, unless something was raised
            crew.stop()
    return _survivors(crew.results, seats)


class _Crew(Generic[Seat, Result]):
    """The processes that are at work, and what the others have returned by the number of a seat."""

    def __init__(
        self,
        function: Callable[[Seat], Result],
        seats: Sequence[Seat],
        say: Callable[[str], None],
    ) -> None:
        self.results: dict[int, Result] = {}
        self.workers: list[_Worker] = []
        self._function, self._seats, self._say = function, seats, say
        self._devices = _devices()
        self._restarts = 0

    def start(self, index: int) -> None:
        """Settings first, then the work: what it imports may read them."""
        settings: dict[str, Any] = {"threads": max(1, cores() // len(self._seats))}
        if len(self._devices) > 1:
            settings["device"] = self._devices[index % len(self._devices)]
        here, there = multiprocessing.Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=_serve, args=(there,), kwargs=settings
        )
        with _stops_wait(), without_script():
            process.start()
            self.workers.append(_Worker(index, process, here))
        there.close()
        with suppress(OSError):  # it is dead already, which `wait` will find
            here.send((self._function, self._seats[index]))

    def wait(self) -> None:
        """Until the next news are due, or a worker has ended; raises what its function raised."""
        sources = [s for w in self.workers for s in (w.process.sentinel, w.pipe)]
        ready = connection.wait(sources, _NEWS_SECONDS)
        for worker in list(self.workers):
            if worker.process.sentinel in ready or worker.pipe in ready:
                self._end(worker)

    def stop(self) -> None:
        """SIGTERM to all, once, and wait for them; whatever interrupts that kills them."""
        try:
            for worker in self.workers:
                worker.process.terminate()
                worker.pipe.close()
            for worker in self.workers:
                worker.process.join()
        except BaseException:
            for worker in self.workers:
                worker.process.kill()
            raise

    def _end(self, worker: _Worker) -> None:
        outcome = None
        with suppress(EOFError, OSError):
            outcome = worker.pipe.recv() if worker.pipe.poll() else None
        if outcome is None:
            worker.process.kill()  # it has closed the pipe
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        if outcome is None:
            self._after_death(worker)
        else:
            self.results[worker.index] = opened(self._seats[worker.index], outcome)

    def _after_death(self, worker: _Worker) -> None:
        name = f"Worker {worker.index + 1} of {len(self._seats)}"
        code = worker.process.exitcode or 0
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if self._restarts == _RESTARTS:
            self._say(f"{name} ended without a word ({how}) and is lost.")
            return
        self._restarts += 1
        self._say(f"{name} ended without a word ({how}); it is started again.")
        self.start(worker.index)


def _serve(pipe: "connection.Connection[Any, Any]", threads: int, device: str = "") -> None:
    """The life of a worker: nothing of its work is imported before the settings are made."""
    begin_worker(threads)
    os.setsid()  # Ctrl-C in a terminal goes to a whole group of processes
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    if device:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with suppress(KeyboardInterrupt, BrokenPipeError):  # nobody wants to know any more
        pipe.send(attempt(_work, pipe))


def _work(pipe: "connection.Connection[Any, Any]") -> Any:
    function, seat = pipe.recv()
    return function(seat)


@contextmanager
def _stops_wait() -> Iterator[None]:
    """Signals that come meanwhile are heard afterwards; a process started here hears none."""
    resource_tracker.ensure_running()  # else it would be started within, and let them through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _devices() -> list[str]:
    """The CUDA devices that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(index) for index in range(count)]


# ------------------------------------------------------------------------------------------- Ray


def _ray(
    function: Callable[[Seat], Result],
    seats: Sequence[Seat],
    on_news: Callable[[], None],
    say: Callable[[str], None],
) -> list[Result]:
    with cluster(len(seats)):
        import ray

        resources: Any = ray.cluster_resources  # has no types
        gpus = resources().get("GPU", 0)
        task = ray.remote(attempt).options(
            num_cpus=1,
            num_gpus=1 / math.ceil(len(seats) / gpus) if gpus else 0,
            max_retries=_RESTARTS,
        )
        waiting = {task.remote(function, seat): index for index, seat in enumerate(seats)}
        results: dict[int, Result] = {}
        with terminate_as_interrupt():
            try:
                while waiting:
                    for done in ray.wait(list(waiting), timeout=_NEWS_SECONDS)[0]:
                        index = waiting.pop(done)
                        try:
                            outcome = ray.get(done)
                        except ray.exceptions.RayError as error:
                            how = str(error).partition("\n")[0]
                            say(f"Worker {index + 1} of {len(seats)} is lost: {how}")
                        else:
                            results[index] = opened(seats[index], outcome)
                    on_news()
            finally:
                _recall(waiting)
    return _survivors(results, seats)


def _recall(waiting: dict[Any, int]) -> None:
    """Interrupt the tasks and wait for them; whatever interrupts that kills them."""
    import ray

    try:
        for task in waiting:
            ray.cancel(task)
        if waiting:
            ray.wait(list(waiting), num_returns=len(waiting))
    except BaseException:
        for task in waiting:
            ray.cancel(task, force=True)
        raise
