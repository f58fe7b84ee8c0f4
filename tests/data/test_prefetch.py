"""A thread changes when batches are made, and nothing else; it ends when it should."""

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import dataset_of

from poise.data.batches import Batch, batches, lies_in_memory
from poise.data.prefetch import Feed, feed, prefetch

CPU = torch.device("cpu")


class Rows:
    """What a sharded store gives: shape, type, and rows by index."""

    def __init__(self, images: np.ndarray) -> None:
        self._images, self.shape, self.dtype = images, images.shape, images.dtype
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        self.asked.append(len(chosen))
        return self._images[chosen]


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (30, 3, 4, 4), np.uint8)


def one(number: int) -> Batch:
    return Batch(torch.full((1, 1, 1, 1), number, dtype=torch.uint8), None, torch.tensor([number]))


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "poise-prefetch"}


@pytest.mark.parametrize("kind", ["memory", "file", "store"])
def test_order_and_bits_do_not_depend_on_where_images_lie(kind: str, tmp_path: Path) -> None:
    images = pixels()
    np.save(tmp_path / "x.npy", images)
    placed = {
        "memory": images,
        "file": np.load(tmp_path / "x.npy", mmap_mode="r"),
        "store": Rows(images),
    }
    data = dataset_of(images, [n % 3 for n in range(30)])
    object.__setattr__(data, "images", placed[kind])
    assert lies_in_memory(data) == (kind == "memory")
    stream = batches(data, np.arange(30), batch=7, seed=0, flip=True)
    mine = feed(data, stream, CPU)
    plain = batches(dataset_of(images), np.arange(30), batch=7, seed=0, flip=True)
    for a, b in zip(islice(mine, 20), plain, strict=False):
        assert torch.equal(a.images, b.images) and torch.equal(a.indices, b.indices)
    assert bool(threads()) == (kind != "memory")
    assert mine.waited_s > 0
    mine.close()
    assert not threads()


def test_no_more_than_asked_is_made_ahead() -> None:
    made: list[int] = []
    enough = threading.Event()

    def stream() -> Iterator[Batch]:
        for number in range(100):
            made.append(number)
            if len(made) == 5:
                enough.set()
            yield one(number)

    ready = prefetch(stream(), 3)
    assert next(ready).indices.item() == 0
    assert enough.wait(5)  # three wait, and one more is in the thread's hand
    assert not threading.Event().wait(0.15) and len(made) == 5
    assert [b.indices.item() for b in ready] == list(range(1, 100))
    assert not threads()


def test_an_error_comes_where_its_batch_would_have() -> None:
    def stream() -> Iterator[Batch]:
        yield one(0)
        yield one(1)
        raise OSError("the disk is gone")

    ready = Feed(stream(), ahead=2)
    assert [next(ready).indices.item() for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match="the disk is gone"):
        next(ready)
    assert not threads()
    with pytest.raises(StopIteration):
        next(ready)


def test_closing_ends_thread_and_stream_even_when_the_queue_is_full() -> None:
    closed = threading.Event()

    def stream() -> Iterator[Batch]:
        try:
            while True:
                yield one(0)
        finally:
            closed.set()

    ready = Feed(stream(), ahead=1)
    next(ready)
    ready.close()
    assert closed.wait(5) and not threads()
    Feed(stream(), ahead=1).close()  # nothing was asked for, and nothing began
    assert not threads()


def test_a_forgotten_feed_ends_its_thread() -> None:
    ready = Feed(iter([one(0), one(1), one(2), one(3)]), ahead=1)
    next(ready)
    assert threads()
    del ready
    assert not threads()
