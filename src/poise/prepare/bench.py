"""How fast images of a source come in, from the file to the batch, beside the raw libraries.

One process, one thread. Everything takes its turn in every round on the same images, so whatever
else the machine does hits all alike; a ratio of two is taken within each round. Files lie in the
system's cache after the first look: the disk itself is not measured.
"""

import hashlib
import io
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from poise.audit.look import SIDE, look_at
from poise.bench.rig import spread
from poise.data.batches import batches
from poise.data.dataset import Dataset
from poise.data.decode import decode_in_thread, quiet_pillow
from poise.data.prefetch import feed
from poise.data.sources import Content, Source, open_source
from poise.data.store import Shards
from poise.errors import DataError, UsageError
from poise.prepare.files import writing
from poise.prepare.shards import squared

DECODER = "Pillow alone"
COPY = "memory copy"
_ROUNDS = 12  # wanted; the images of a round follow from it
_BATCH = 64
_MOST_BYTES = 2**28  # of files, and of pixels, that are kept
_FEED_BYTES = 2**26  # more than caches hold
_LARGEST = 64  # side, where none is asked for

Work = Callable[[], object]


@dataclass(frozen=True)
class _Picture:
    """A sampled image."""

    index: int
    content: Content
    pixels: NDArray[np.uint8]  # [H, W] or [H, W, C]


@dataclass(frozen=True)
class _Part:
    """What is timed, and what stands beside it."""

    work: Work
    images: int  # of one call
    raw: str = ""  # the name of the same work by the raw library
    size: int = 0  # bytes copied, for what copies


def measure(
    source: str | Path,
    *,
    images: int = 2000,
    seconds: float = 20.0,
    resolution: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Images per second of every stage between a file and the network.

    Args:
        source: as `open_source` takes it.
        images: the most to sample, evenly over the source; fewer if they exceed 256 MiB.
        seconds: for all rounds, about; of each stage at least one round counts.
        resolution: side for training in pixels; None: that of the images, at most 64.
        progress: called with seconds spent and `seconds`.

    Returns:
        Plain data; `bench_table.table` shows it. `rows`: by name, each with `images_per_second`,
        and where they make sense `times_decoder` (against Pillow's decoder), `raw` and `times_raw`
        (against the same work by the raw library) and `share_of_copy` (of this machine's memory
        copy).

    Raises:
        UsageError: no such source, or a number below 1.
        DataError: none of the sampled images can be read.
    """
    if images < 1 or (resolution is not None and resolution < 1):
        raise UsageError(
            f"images = {images}, resolution = {resolution}", expected="at least 1 of each"
        )
    opened = open_source(source)
    from threadpoolctl import threadpool_limits

    with (
        threadpool_limits(1),
        quiet_pillow(),
        tempfile.TemporaryDirectory(prefix="poise-bench-") as folder,
    ):
        pictures, left_out = _sample(opened, images)
        side = resolution or _side(pictures)
        fitted = _fitted(pictures, side)
        parts = _feeding(fitted, Path(folder))
        times = _rounds(opened, pictures, fitted, parts, Path(folder), seconds, progress)
    content = [p.content for p in pictures if isinstance(p.content, bytes)]
    return {
        "source": opened.name,
        "images": len(pictures),
        "left_out": left_out,
        "file_bytes": int(np.mean([len(c) for c in content])) if content else None,
        "resolution": side,
        "channels": int(fitted.shape[1]),
        "rounds": len(next(iter(times.values()))[1]),
        "copy_bytes_per_second": spread(parts[COPY].size / times[COPY][1]),
        "rows": _rows(times),
    }


def _sample(source: Source, most: int) -> tuple[list[_Picture], int]:
    """Images evenly over the source, and how many of those tried could not be read."""
    count = len(source.items)
    found: list[_Picture] = []
    files = pixels = broken = 0
    wanted = np.unique(np.linspace(0, count - 1, min(most, count)).astype(int))
    for index in np.random.default_rng(0).permutation(wanted).tolist():  # even if it ends early
        try:
            content = source.read(index)
            picture = _Picture(index, content, _decoded(content))
        except Exception:  # foreign bytes fail in many ways; the number is shown
            broken += 1
            continue
        files += len(content) if isinstance(content, bytes) else 0
        pixels += picture.pixels.nbytes
        if found and max(files, pixels) > _MOST_BYTES:
            break
        found.append(picture)
    if not found:
        raise DataError(
            f"None of {broken} images of {source.name} could be read.",
            expected="images to measure with",
            remedy="poise audit says what is wrong with each.",
        )
    return sorted(found, key=lambda picture: picture.index), broken


def _decoded(content: Content) -> NDArray[np.uint8]:
    if isinstance(content, bytes):
        return np.asarray(decode_in_thread(content).image)
    return content


def _side(pictures: list[_Picture]) -> int:
    return min(_LARGEST, int(np.median([min(p.pixels.shape[:2]) for p in pictures])))


def _fitted(pictures: list[_Picture], side: int) -> NDArray[np.uint8]:
    """uint8 [N, C, side, side]; the channels are the most that any image has."""
    channels = max(1 if p.pixels.ndim == 2 else p.pixels.shape[2] for p in pictures)
    return np.stack([_square(p.pixels, side, channels) for p in pictures])


def _square(pixels: NDArray[np.uint8], side: int, channels: int) -> NDArray[np.uint8]:
    own = 1 if pixels.ndim == 2 else pixels.shape[2]
    if own == channels or (own, channels) == (1, 3):
        return squared(pixels, side, channels)
    return np.resize(squared(pixels, side, own), (channels, side, side))


def _rounds(
    source: Source,
    pictures: list[_Picture],
    fitted: NDArray[np.uint8],
    feeding: Mapping[str, _Part],
    folder: Path,
    seconds: float,
    progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[_Part, NDArray[np.float64]]]:
    """Of each part: its last form, and its seconds in each round [rounds]."""
    taken: dict[str, list[float]] = {}
    last: dict[str, _Part] = {}
    count, at, done = min(4, len(pictures)), 0, 0
    started = time.perf_counter()
    while done < 2 or time.perf_counter() - started < seconds:
        began = time.perf_counter()
        rows = [(at + i) % len(pictures) for i in range(count)]
        chosen = [pictures[row] for row in rows]
        parts = _reading(source, chosen, fitted[rows], folder) | dict(feeding)
        for name, part in parts.items():
            before = time.perf_counter()
            part.work()
            taken.setdefault(name, []).append(time.perf_counter() - before)
            last[name] = part
            if progress is not None:
                progress(min(int(time.perf_counter() - started), int(seconds)), int(seconds))
        if done == 0:  # the first one warms up, and tells how many fit
            round_s = time.perf_counter() - began
            count = int(np.clip(count * seconds / _ROUNDS / round_s, 1, len(pictures)))
        at, done = at + count, done + 1
    return {name: (last[name], np.array(values[1:])) for name, values in taken.items()}


def _reading(
    source: Source, chosen: list[_Picture], fitted: NDArray[np.uint8], folder: Path
) -> dict[str, _Part]:
    """From the file to the store."""
    n, side, channels = len(chosen), fitted.shape[2], fitted.shape[1]
    indices = [p.index for p in chosen]
    square = partial(_square, side=side, channels=channels)
    works: dict[str, tuple[Work, str]] = {}
    if all(isinstance(p.content, bytes) for p in chosen):
        contents = [p.content for p in chosen if isinstance(p.content, bytes)]
        raw = "raw look"
        works |= {
            "read": (lambda: _each(source.read, indices), ""),
            "sha256": (lambda: _each(_hash, contents), ""),
            DECODER: (lambda: _each(_pillow, contents), ""),
            "decode": (lambda: _each(decode_in_thread, contents), DECODER),
            raw: (lambda: _each(partial(_raw_look, source), indices), ""),
            "audit's look": (lambda: _each(partial(look_at, source), indices), raw),
        }
    else:
        works["read"] = (lambda: _each(source.read, indices), "")
        works["audit's look"] = (lambda: _each(partial(look_at, source), indices), "")
    if all(p.pixels.ndim == 2 or p.pixels.shape[2] == 3 for p in chosen):
        pictures = [Image.fromarray(p.pixels) for p in chosen]
        works["Pillow resize"] = (lambda: _each(partial(_raw_resize, side=side), pictures), "")
    beside = "Pillow resize" if "Pillow resize" in works else ""
    works |= {
        "resize": (lambda: _each(square, [p.pixels for p in chosen]), beside),
        "plain write": (lambda: _plain_write(folder / "plain.u8", fitted), ""),
        "store write": (lambda: _store_write(folder / "store.u8", fitted), "plain write"),
    }
    return {name: _Part(work, n, raw) for name, (work, raw) in works.items()}


def _feeding(fitted: NDArray[np.uint8], folder: Path) -> dict[str, _Part]:
    """From the store to the batch: as many images as exceed the processor's caches."""
    size = fitted[0].nbytes
    count = max(len(fitted), -(-_FEED_BYTES // size))
    memory = np.resize(fitted, (count, *fitted.shape[1:]))
    file = folder / "feed.u8"
    memory.tofile(file)
    mapped = Shards([np.memmap(file, np.uint8, "r", shape=memory.shape)])
    order = np.random.default_rng(0).permutation(count)
    copied = np.empty_like(memory)
    steps = max(count // _BATCH, 1)
    fed = steps * _BATCH

    def run(images: Any) -> Work:
        def once() -> None:
            data = _dataset(images)
            stream = batches(data, np.arange(count), batch=_BATCH, seed=0)
            drawn = feed(data, stream, torch.device("cpu"))
            for _ in range(steps):
                next(drawn)
            drawn.close()

        return once

    return {
        COPY: _Part(lambda: np.copyto(copied, memory), 0, size=memory.nbytes),
        "plain file read": _Part(lambda: np.fromfile(file, np.uint8), count),
        "store read": _Part(lambda: mapped[order], count, "plain file read", memory.nbytes),
        "feed from memory": _Part(run(memory), fed, "", fed * size),
        "feed from a mapped file": _Part(run(mapped), fed, "", fed * size),
    }


def _dataset(images: Any) -> Dataset:
    """Only what batches look at is filled in."""
    count = len(images)
    return Dataset(
        images=images,
        labels=None,
        label_names=(),
        names=("",) * count,
        hashes=("",) * count,
        given_splits=(None,) * count,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="",
        sizes={},
        modes={},
    )


def _each(work: Callable[[Any], object], things: Sequence[Any]) -> None:
    """Results are let go at once: fresh memory for each would be measured too."""
    for thing in things:
        work(thing)


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _pillow(content: bytes) -> Image.Image:
    with Image.open(io.BytesIO(content)) as image:
        image.load()
    return image


def _raw_look(source: Source, index: int) -> Image.Image:
    """The least that an audit needs, with the raw libraries."""
    content = source.read(index)
    assert isinstance(content, bytes)
    hashlib.sha256(content).digest()
    image = _pillow(content).convert("RGB")
    hashlib.sha256(image.tobytes()).digest()
    return image.resize((SIDE, SIDE), Image.Resampling.BOX)


def _raw_resize(image: Image.Image, side: int) -> NDArray[np.uint8]:
    width, height = image.size
    least = min(width, height)
    left, top = (width - least) // 2, (height - least) // 2
    box = (left, top, left + least, top + least)
    return np.asarray(image.resize((side, side), Image.Resampling.LANCZOS, box))


def _plain_write(path: Path, images: NDArray[np.uint8]) -> None:
    with path.open("wb") as file:
        file.write(images.data)
        file.flush()
        os.fsync(file.fileno())


def _store_write(path: Path, images: NDArray[np.uint8]) -> None:
    """As a shard is written: hashed, to a new name, safe on the disk before it gets its own."""
    sha = hashlib.sha256()
    with writing(path) as file:
        for image in images:
            sha.update(image.data)
            file.write(image.data)


def _rows(times: Mapping[str, tuple[_Part, NDArray[np.float64]]]) -> dict[str, Any]:
    rates = {name: part.images / took for name, (part, took) in times.items()}
    copy, copy_s = times[COPY]
    rows: dict[str, Any] = {}
    for name, (part, took) in times.items():
        if name == COPY:
            continue
        rows[name] = {"images_per_second": spread(rates[name])}
        if DECODER in rates:
            rows[name]["times_decoder"] = spread(rates[name] / rates[DECODER])
        if part.raw:
            rows[name] |= {"raw": part.raw, "times_raw": spread(rates[name] / rates[part.raw])}
        if part.size:
            rows[name]["share_of_copy"] = spread((part.size / took) / (copy.size / copy_s))
    return rows
