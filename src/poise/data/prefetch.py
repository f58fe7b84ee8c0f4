"""Batches that are ready before the step asks for them.

Data in memory needs no worker: a batch is one copy. Data that is read from a file is read by one
thread, a few batches ahead; what is read, and in which order, stays the same.
"""

import queue
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch

from poise.data.batches import Batch, lies_in_memory
from poise.data.imageset import Dataset

_AHEAD = 3  # batches that wait at most, which bounds the memory
_LOOK = 0.05  # seconds after which a thread with nowhere to put its batch looks whether to go on


@dataclass(frozen=True)
class _Failure:
    error: BaseException


class Feed:
    """A stream of batches that knows how long it was waited for."""

    def __init__(self, stream: Iterator[Batch], *, ahead: int = 0, pin: bool = False) -> None:
        """
        Args:
            stream: the batches.
            ahead: batches that a thread makes in advance; 0: none, and no thread.
            pin: put them where a GPU can fetch them while it works.
        """
        pinned = map(_pinned, stream) if pin else stream
        self._stream = prefetch(pinned, ahead) if ahead else pinned
        self.waited_s = 0.0  # seconds spent in `next`

    def __iter__(self) -> "Feed":
        return self

    def __next__(self) -> Batch:
        started = time.perf_counter()
        try:
            return next(self._stream)
        finally:
            self.waited_s += time.perf_counter() - started

    def close(self) -> None:
        """End the thread, if there is one."""
        if isinstance(self._stream, Generator):
            self._stream.close()


def feed(dataset: Dataset, stream: Iterator[Batch], device: torch.device) -> Feed:
    """How batches of `dataset` should reach a network on `device`; close it when done."""
    return Feed(
        stream,
        ahead=0 if lies_in_memory(dataset) else _AHEAD,
        pin=device.type == "cuda",
    )


def prefetch(stream: Iterator[Batch], ahead: int) -> Generator[Batch, None, None]:
    """The same batches in the same order, made by a thread up to `ahead` >= 1 before their time.

    An error in the stream is raised here, where its batch would have come. The thread ends with the
    stream, or when this generator is closed.
    """
    ready: queue.Queue[Batch | _Failure | None] = queue.Queue(ahead)
    ended = threading.Event()

    def put(item: Batch | _Failure | None) -> None:
        while not ended.is_set():
            try:
                return ready.put(item, timeout=_LOOK)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for batch in stream:
                put(batch)
                if ended.is_set():
                    return
            put(None)
        except BaseException as error:  # whatever it is, the consumer must hear of it
            put(_Failure(error))
        finally:
            close = getattr(stream, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=work, name="poise-prefetch", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, _Failure):
                raise item.error
            yield item
    finally:
        ended.set()
        thread.join()


def _pinned(batch: Batch) -> Batch:
    labels = None if batch.labels is None else batch.labels.pin_memory()
    return Batch(batch.images.pin_memory(), labels, batch.indices)
