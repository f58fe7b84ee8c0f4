"""Pixels into shards: read, check, decode, clean, fit; one shard is one job of a worker."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.data.arrays import fit_array
from poise.data.clips import read_frames
from poise.data.decode import decode_in_thread, fit, quiet_pillow
from poise.data.listing import told
from poise.data.sources import Content, Source, open_source
from poise.data.store import SHARDS, hash_file
from poise.engines import ordered_map
from poise.errors import DataError
from poise.prepare.cleaning import clean
from poise.prepare.files import WORK, read_note, write, writing

_BYTES = 2**25  # of a shard
_MOST_ITEMS = 4096  # of a shard, so that small images are shared among workers too
_MOST_SHARDS = 256  # each mapped file costs a handle of the process that trains

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Job:
    """One shard."""

    source: str
    missing: str
    path: str  # of the shard
    rows: tuple[tuple[tuple[tuple[int, int], ...], tuple[str, ...], bool], ...]
    # of each entry: (file, frame)s, sha256 of each file, whether it trains
    shape: tuple[int, int, int, int]  # of an entry, [T, C, H, W]
    cleaning: tuple[str, ...]


def shard_items(count: int, shape: Sequence[int], wanted: int | None) -> int:
    """Entries per shard; a function of the data alone."""
    size = int(np.prod(shape))
    usual = min(max(_BYTES // size, 1), _MOST_ITEMS)
    return wanted or max(usual, -(-count // _MOST_SHARDS))


def write_shards(
    out: Path,
    source: str,
    plan: Mapping[str, Any],
    *,
    engine: str,
    workers: int | None,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """Write what is missing of the shards.

    Returns:
        Of each shard: `file`, `items`, `bytes`, `sha256`; `counts`, how often each of 256 values
        occurs in each channel of its training images; `cleaned`, what was done to each image.

    Raises:
        DataError: a file changed since the plan was made.
        ArtifactError: the disk is full.
    """
    rows, shape = plan["items"], plan["shape"]
    step = shard_items(len(rows), shape, plan["request"]["shard_items"])
    starts = range(0, len(rows), step)
    done: dict[int, dict[str, Any]] = {}
    jobs: dict[int, Job] = {}
    for number, start in enumerate(starts):
        part = rows[start : start + step]
        found = _finished(out, number, len(part), shape)
        if found is not None:
            done[number] = found
        else:
            jobs[number] = _job(out, source, plan, number, part)
    ready = sum(facts["items"] for facts in done.values())
    progress(ready, len(rows))
    with closing(
        ordered_map(write_shard, list(jobs.values()), engine=engine, workers=workers)
    ) as written:
        for number, facts in zip(jobs, written, strict=True):
            write(_note(out, number), json.dumps(facts).encode())
            done[number] = facts
            ready += facts["items"]
            progress(ready, len(rows))
    return [done[number] for number in sorted(done)]


def check_unchanged(
    source: Source, rows: Sequence[Mapping[str, Any]], progress: Callable[[int, int], None]
) -> None:
    """Compare the files of `rows` with what the plan saw.

    Raises:
        DataError: one of them is another now.
    """
    for done, row in enumerate(rows):
        progress(done, len(rows))
        files = dict.fromkeys(index for index, _ in row["frames"])
        for index, digest in zip(files, row["sha256"], strict=True):
            if digest:  # else it could not be read at all
                _read(source, index, digest)


def write_shard(job: Job) -> dict[str, Any]:
    """Write one shard; what `write_shards` returns of it."""
    source = _opened(job.source, job.missing)
    counts = np.zeros((job.shape[1], 256), np.int64)
    cleaned: list[list[str]] = []
    sha = hashlib.sha256()
    path = Path(job.path)
    with quiet_pillow(), writing(path) as file:
        for frames, digests, trains in job.rows:
            entry, done = _entry(source, frames, digests, job.shape, job.cleaning)
            cleaned.append(done)
            if trains:
                for channel in range(len(counts)):
                    counts[channel] += np.bincount(entry[:, channel].ravel(), minlength=256)
            sha.update(entry.data)
            file.write(entry.data)
    return {
        "file": f"{SHARDS}/{path.name}",
        "items": len(job.rows),
        "bytes": len(job.rows) * int(np.prod(job.shape)),
        "sha256": sha.hexdigest(),
        "counts": counts.tolist(),
        "cleaned": cleaned,
    }


def before_and_after(
    source: Source, index: int, digest: str, cleaning: tuple[str, ...]
) -> tuple[Pixels, Pixels]:
    """A picture as it was and cleaned, [H, W] or [H, W, C], at its own size."""
    with quiet_pillow():
        pixels, kind = _decoded(_read(source, index, digest))
    return pixels, clean(pixels, cleaning, kind)[0]


@lru_cache(maxsize=1)
def _opened(source: str, missing: str) -> Source:
    return open_source(source, missing=missing)


def _entry(
    source: Source,
    frames: Sequence[tuple[int, int]],
    digests: Sequence[str],
    shape: tuple[int, int, int, int],
    cleaning: tuple[str, ...],
) -> tuple[Pixels, list[str]]:
    """uint8 [T, C, H, W], and what was cleaned."""
    entry = np.empty(shape, np.uint8)
    done: list[str] = []
    for at, (pixels, kind) in enumerate(_frames(source, frames, digests)):
        if cleaning:
            pixels, what = clean(pixels, cleaning, kind)
            done += what
        entry[at] = squared(pixels, shape[2], shape[1])
    return entry, done


def _frames(
    source: Source, frames: Sequence[tuple[int, int]], digests: Sequence[str]
) -> Iterator[tuple[Pixels, str]]:
    """Each frame with the format of its file; frames of one file stand side by side."""
    known = dict(zip(dict.fromkeys(index for index, _ in frames), digests, strict=True))
    for index, digest in known.items():
        content = _read(source, index, digest)
        wanted = [frame for at, frame in frames if at == index]
        if (len(wanted) == 1 and wanted[0] == 0) or not isinstance(content, bytes):
            yield _decoded(content)
        else:
            shown = read_frames(content, max(wanted) + 1)
            yield from ((np.asarray(shown[frame]), "") for frame in wanted)


def squared(pixels: Pixels, side: int, channels: int) -> Pixels:
    """The centre square of [H, W] or [H, W, C] as `fit` makes it; uint8 [channels, side, side]."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim == 2 or pixels.shape[2] == 3:
        return fit(Image.fromarray(pixels), side, channels)
    return fit_array(pixels, side)


def _decoded(content: Content) -> tuple[Pixels, str]:
    if not isinstance(content, bytes):
        return content, "array"
    decoded = decode_in_thread(content)
    return np.asarray(decoded.image), decoded.format


def _read(source: Source, index: int, digest: str) -> Content:
    """The content of a file, if it is what the plan saw."""
    name = source.items[index].name if index < len(source.items) else f"file {index}"
    try:
        content = source.read(index)
    except Exception as error:  # foreign files fail in many ways; the plan has seen this one whole
        raise _changed(name, told(error)) from None
    if isinstance(content, bytes):
        sha = hashlib.sha256(content)
    else:
        sha = hashlib.sha256(f"{content.shape}:".encode())
        sha.update(np.ascontiguousarray(content).data)
    if sha.hexdigest() != digest:
        raise _changed(name, "its content is another")
    return content


def _changed(name: str, what: str) -> DataError:
    return DataError(
        f"{name} changed while or since it was prepared: {what}.",
        expected="a source that nobody writes to",
        remedy="Prepare it into a new folder, or delete this one and run the command again.",
    )


def _job(
    out: Path, source: str, plan: Mapping[str, Any], number: int, part: Sequence[Mapping[str, Any]]
) -> Job:
    return Job(
        source,
        plan["request"]["missing"],
        str(_shard(out, number)),
        tuple(
            (
                tuple((index, frame) for index, frame in row["frames"]),
                tuple(row["sha256"]),
                row["split"] == "train",
            )
            for row in part
        ),
        tuple(plan["shape"]),
        tuple(plan["request"]["clean"]),
    )


def _finished(out: Path, number: int, items: int, shape: Sequence[int]) -> dict[str, Any] | None:
    """What is known of a shard that is already there and whole."""
    facts = read_note(_note(out, number))
    path = _shard(out, number)
    if facts is None or facts["items"] != items or not path.is_file():
        return None
    whole = path.stat().st_size == items * int(np.prod(shape))
    return facts if whole and hash_file(path) == facts["sha256"] else None


def _shard(out: Path, number: int) -> Path:
    return out / SHARDS / f"{number:05d}.u8"


def _note(out: Path, number: int) -> Path:
    return out / WORK / SHARDS / f"{number:05d}.json"
