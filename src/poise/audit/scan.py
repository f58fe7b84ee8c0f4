"""Every file of a source looked at once, by several processes, in a way that can be gone on with.

Of each picture a `Look` and a thumbnail are kept, so memory does not grow with its size.
"""

import contextlib
import hashlib
import io
import json
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.look import SIDE, Look, Problem, broken_look, look_at
from poise.data.decode import quiet_pillow
from poise.data.sources import Source, open_source
from poise.engines import ordered_map
from poise.errors import DataError

_CHUNK = 64  # files
_IN_MEMORY = 32 * 2**20  # bytes of thumbnails
_BLOCK = 2**24  # bytes
_VERSION = 1  # raised when a look finds other things, so that old caches are not used
_CRASH = Problem("unreadable", "the decoder crashed on it")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scan:
    """What a source holds, file by file."""

    source: Source  # its `refused` files were never opened and have no look
    looks: tuple[Look, ...]  # one for each of source.items, in order
    thumbs: NDArray[np.uint8]  # [N, 32, 32, 3]; zeros where broken; memory-mapped above 256 MiB


@dataclass(frozen=True)
class _Job:
    """Some neighbouring files of a source."""

    path: str
    missing: str
    fingerprint: str
    total: int  # files of the source
    first: int
    last: int  # exclusive


_Chunk = tuple[list[Look], NDArray[np.uint8]]  # thumbs [n, 32, 32, 3]


def scan(
    path: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    cache: Path | None = None,
    missing: str = "refuse",
    progress: Progress | None = None,
) -> Scan:
    """Decode every file of a source in full; the result is the same for every engine.

    Args:
        path: what `open_source` understands.
        engine: "local" or "ray".
        workers: processes; None: one per core that this process may use.
        cache: a folder where finished parts are kept, so that an interrupted scan goes on and an
            unchanged source is not scanned twice. A source whose listing, file sizes or times of
            change differ is scanned anew.
        missing: "refuse" or "mask", for arrays with missing values.
        progress: called with (files done, files in all).

    Raises:
        UsageError: there is no such source or engine.
        DataError: the source holds no image, or changes while it is read.
        ArtifactError: the cache cannot be written.
    """
    place = "digits" if path == "digits" else os.path.abspath(Path(path).expanduser())
    state = fingerprint(place, missing=missing, besides=cache)
    source = _opened(place, missing, state)
    total = len(source.items)
    folder = None if cache is None else _prepare(cache, state)
    job = partial(_Job, place, missing, state, total)
    jobs = [job(first, min(first + _CHUNK, total)) for first in range(0, total, _CHUNK)]
    looks: list[Look] = []
    thumbs = _room(total, cache)
    chunks = _chunks(jobs, folder, engine, workers)
    try:
        for at, (found, small) in zip(jobs, chunks, strict=True):
            looks += found
            thumbs[at.first : at.last] = small
            _let_go(thumbs)
            if progress:
                progress(len(looks), total)
    finally:
        chunks.close()
        _opened.cache_clear()
    return Scan(source, tuple(looks), thumbs)


def fingerprint(path: str | Path, *, missing: str = "refuse", besides: Path | None = None) -> str:
    """sha256 over the names, sizes and times of change of a source's files.

    `besides` is a folder whose files do not count.
    """
    sha = hashlib.sha256(f"{_VERSION}:{path}:{missing}".encode(errors="replace"))
    if path != "digits":
        for name, status in _files(Path(path).expanduser(), besides):
            row = f"\n{name!r}:{status.st_size}:{status.st_mtime_ns}"
            sha.update(row.encode(errors="replace"))
    return sha.hexdigest()


def _files(place: Path, besides: Path | None) -> Iterator[tuple[str, os.stat_result]]:
    """A file, or all files below a folder, in a stable order; none if there is no such place."""
    if not os.path.isdir(place):  # no error where it may not be looked at
        with contextlib.suppress(OSError):
            yield place.name, place.stat()
        return
    left_out = None if besides is None else os.path.abspath(besides)
    for folder, folders, names in os.walk(place):
        folders[:] = sorted(f for f in folders if os.path.abspath(f"{folder}/{f}") != left_out)
        for name in sorted(names):
            with contextlib.suppress(OSError):  # gone, or a link to nothing: found when it is read
                yield f"{folder}/{name}", os.stat(f"{folder}/{name}")


@lru_cache(maxsize=1)
def _opened(path: str, missing: str, fingerprint: str) -> Source:
    """The source in its state of that fingerprint; each process opens it once, not once per job."""
    return open_source(path, missing=missing).whole()


def _look_at_all(job: _Job) -> _Chunk:
    """The work of one process on one job."""
    source = _opened(job.path, job.missing, job.fingerprint)
    if len(source.items) != job.total:
        raise DataError(
            f"{job.path} changed while it was read: it had {job.total} images and has "
            f"{len(source.items)}.",
            expected="a source that nobody writes to",
            remedy="Start again when its files no longer change.",
        )
    with quiet_pillow():
        pairs = [look_at(source, index) for index in range(job.first, job.last)]
    return [look for look, _ in pairs], np.stack([thumb for _, thumb in pairs])


def _chunks(
    jobs: list[_Job], folder: Path | None, engine: str, workers: int | None
) -> Generator[_Chunk, None, None]:
    """The results of all jobs in order, from the cache where they are there."""
    kept = [_load(folder, job) is not None for job in jobs]
    todo = [job for job, known in zip(jobs, kept, strict=True) if not known]
    fresh = ordered_map(_look_at_all, todo, engine=engine, workers=workers, on_death=_one_by_one)
    with contextlib.closing(fresh):
        for job, known in zip(jobs, kept, strict=True):
            chunk = _load(folder, job) if known else next(fresh)
            if chunk is None:
                raise DataError(f"{folder} changed while it was read.", remedy="Start again.")
            if not known and folder is not None:
                _save(folder, job, chunk)
            yield chunk


def _one_by_one(job: _Job) -> _Chunk:
    """The looks of a job whose process died: each file in a process that may die."""
    singles = [
        _Job(job.path, job.missing, job.fingerprint, job.total, index, index + 1)
        for index in range(job.first, job.last)
    ]
    if len(singles) == 1:
        return _crashed(job)
    # Two workers, since one would be this process.
    results = list(ordered_map(_look_at_all, singles, workers=2, on_death=_crashed))
    return [look for looks, _ in results for look in looks], np.concatenate([t for _, t in results])


def _crashed(job: _Job) -> _Chunk:
    source = _opened(job.path, job.missing, job.fingerprint)
    look, thumb = broken_look(source.items[job.first].name, _CRASH)
    return [look], thumb[None]


def _room(total: int, cache: Path | None) -> NDArray[np.uint8]:
    """Thumbnails [N, 32, 32, 3]; large ones lie in a file without a name that ends with us."""
    shape = (total, SIDE, SIDE, 3)
    size = int(np.prod(shape))
    if size <= _IN_MEMORY:
        return np.zeros(shape, np.uint8)
    try:
        if cache:
            cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=cache) as file:
            # Written, not only declared: a full disk must be an error here, not a crash later.
            for first in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - first)))
            file.flush()
            return np.memmap(file, np.uint8, "r+", shape=shape)
    except OSError as error:
        raise DataError(
            f"No room for the thumbnails of {total} images: {error}.",
            expected=f"{size / 2**20:.0f} MiB of free disk",
            remedy="Free some space.",
        ) from None


def _let_go(thumbs: NDArray[np.uint8]) -> None:
    """Give the memory of mapped thumbnails back; the file keeps what was written."""
    held = thumbs.base
    if isinstance(held, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        held.madvise(mmap.MADV_DONTNEED)


def _prepare(cache: Path, state: str) -> Path:
    """The folder of this scan; those of other states of the source go."""
    folder = cache / f"scan-{state[:16]}"
    for other in cache.glob("scan-*"):
        if other != folder:
            shutil.rmtree(other, ignore_errors=True)
    return folder


def _save(folder: Path, job: _Job, chunk: _Chunk) -> None:
    from poise.artifacts import write_bytes  # it loads torch, which workers do not need

    looks, thumbs = chunk
    buffer = io.BytesIO()
    np.save(buffer, thumbs)
    write_bytes(folder / f"{job.first:09d}.npy", buffer.getvalue())
    # Written last: without it the part does not count.
    write_bytes(
        folder / f"{job.first:09d}.json", json.dumps([asdict(look) for look in looks]).encode()
    )


def _load(folder: Path | None, job: _Job) -> _Chunk | None:
    """A finished part; None if there is none, or a damaged one."""
    if folder is None:
        return None
    try:
        rows = json.loads((folder / f"{job.first:09d}.json").read_bytes())
        looks = [_look(row) for row in rows]
        thumbs = np.load(folder / f"{job.first:09d}.npy")
    except (OSError, ValueError, TypeError, KeyError, EOFError):
        return None
    count = job.last - job.first
    whole = len(looks) == count and thumbs.shape == (count, SIDE, SIDE, 3)
    return (looks, thumbs) if whole and thumbs.dtype == np.uint8 else None


def _look(row: dict[str, Any]) -> Look:
    problems = tuple(Problem(**problem) for problem in row.pop("problems"))
    return Look(**row, problems=problems)
