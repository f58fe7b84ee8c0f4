"""All images of a source, decoded to one size: in memory, or in a memory-mapped file.

Each file is opened once, decoded in a thread, hashed, cut to a square and written to its row.
"""

import contextlib
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.data.arrays import fit_array
from poise.data.decode import Decoded, decode_in_thread, fit, quiet_pillow, read_header
from poise.data.imageset import Dataset
from poise.data.layout import Unreadable
from poise.data.listing import told
from poise.data.sources import Source, open_source
from poise.data.store import is_store, load_store
from poise.errors import DataError, PoiseError
from poise.settings import DataConfig

__all__ = ["Dataset", "Progress", "load_dataset"]

_FEWEST = 10  # images without which no model can be trained and judged
_SAMPLED = 512  # headers that decide the resolution
_SMALLEST, _LARGEST = 8, 64  # range of the resolution chosen from the data
_TASK = 64  # images per task of a thread
_BLOCK = 2**26  # bytes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Seen:
    """One image file after decoding."""

    digest: str
    width: int
    height: int
    mode: str
    channels: int


def load_dataset(
    source: str | Path,
    config: DataConfig,
    *,
    store: Path,
    progress: Progress | None = None,
    missing: str = "refuse",
) -> Dataset:
    """Read all images of `source` at one resolution.

    Args:
        source: whatever `open_source` takes, or a data set that `poise prepare` made.
        config: resolution (unset: chosen from the data), limits of memory and unreadable files.
        store: folder of `pixels.u8`, written only if the images exceed `config.memory_gib`.
        progress: called with (files done, files in all).
        missing: what to do with values of arrays that are NaN or infinite; see `open_source`.

    Raises:
        UsageError: there is no such source.
        DataError: no or too few images, too many unreadable ones, or a full disk.
    """
    if is_store(source):
        return load_store(Path(source), config)
    opened = open_source(source, missing=missing)
    with quiet_pillow():
        resolution, channels = _survey(opened, config.resolution)
        loaded = _load(opened, resolution, channels, config, store, progress)
        if loaded is None:  # a colour image beyond the sampled headers
            loaded = _load(opened, resolution, 3, config, store, progress)
    assert loaded is not None
    return _checked(opened, *loaded, config)


def _checked(
    opened: Source, images: NDArray[np.uint8], seen: list[_Seen | str], config: DataConfig
) -> Dataset:
    """The data set without the unreadable files, and what there is to say about it."""
    resolution = images.shape[2]
    unreadable = [
        *(
            Unreadable(i.name, s)
            for i, s in zip(opened.items, seen, strict=True)
            if isinstance(s, str)
        ),
        *opened.refused,
    ]
    _check_enough(opened, unreadable, config.max_unreadable)
    kept = [index for index, row in enumerate(seen) if isinstance(row, _Seen)]
    for target, origin in enumerate(kept):  # close the gaps of unreadable files in place
        if target != origin:
            images[target] = images[origin]
    rows = [row for row in seen if isinstance(row, _Seen)]
    labels, label_names, warnings = _classes(opened, kept)
    captions = tuple(opened.items[index].caption for index in kept)
    small = sum(min(row.width, row.height) < resolution for row in rows)
    if small:
        warnings.append(
            f"{small} of {len(rows)} images are smaller than {resolution}x{resolution} pixels and "
            "were enlarged, which makes them soft."
        )
    return Dataset(
        images=_sealed(images[: len(kept)]),
        labels=labels,
        label_names=label_names,
        names=tuple(opened.items[index].name for index in kept),
        hashes=tuple(row.digest for row in rows),
        given_splits=tuple(opened.items[index].split for index in kept),
        unreadable=tuple(unreadable),
        ignored=opened.ignored,
        warnings=(*opened.warnings, *warnings),
        source=opened.name,
        sizes=dict(Counter(f"{row.width}x{row.height}" for row in rows).most_common(20)),
        modes=dict(Counter(row.mode for row in rows).most_common()),
        captions=captions if any(text is not None for text in captions) else (),
    )


def _survey(source: Source, wanted: int | None) -> tuple[int, int]:
    """The resolution, and the channels: 1 if the sampled images are all gray, else 3.

    Arrays of other channel counts keep the count that most of the sampled ones have. Unset, the
    resolution is the median shorter side of up to 512 images, spread evenly over the names, rounded
    down to a power of two from 8 to 64.
    """
    step = max(1, -(-len(source.items) // _SAMPLED))
    sides: list[int] = []
    counts: Counter[int] = Counter()
    for index in range(0, len(source.items), step):
        try:
            content = source.read(index)
            if isinstance(content, bytes):
                width, height, is_gray = read_header(content)
                counts[1 if is_gray else 3] += 1
            else:
                height, width = content.shape[:2]
                counts[content.shape[2] if content.ndim == 3 else 1] += 1
        except Exception:  # the full pass meets the same file again and names it
            continue
        sides.append(min(width, height))
    side = int(np.median(sides)) if sides else _SMALLEST
    chosen = min(max(2 ** (max(side, 1).bit_length() - 1), _SMALLEST), _LARGEST)
    common = counts.most_common(1)[0][0] if counts else 1
    if common in (1, 3):
        common = 3 if counts[3] else 1
    return wanted or chosen, common


def _load(
    source: Source,
    resolution: int,
    channels: int,
    config: DataConfig,
    store: Path,
    progress: Progress | None,
) -> tuple[NDArray[np.uint8], list[_Seen | str]] | None:
    """Pixels of all files (rows of unreadable ones are empty) and what was seen, or why not.

    None if `channels` is 1 and a colour image turns up.
    """
    total = len(source.items)
    images = _allocate((total, channels, resolution, resolution), config.memory_gib, store)

    def read(first: int) -> list[_Seen | str]:
        return [_read_one(source, i, images) for i in range(first, min(first + _TASK, total))]

    seen: list[_Seen | str] = []
    pool = ThreadPoolExecutor(max_workers=os.cpu_count() or 1)
    try:
        for rows in pool.map(read, range(0, total, _TASK)):
            seen += rows
            if channels == 1 and any(isinstance(row, _Seen) and row.channels == 3 for row in rows):
                return None
            if progress:
                progress(len(seen), total)
    finally:
        pool.shutdown(cancel_futures=True)
    return images, seen


def _read_one(source: Source, index: int, images: NDArray[np.uint8]) -> _Seen | str:
    """Decode one file into its row; a text says why that failed."""
    wanted, resolution = images.shape[1:3]
    try:
        content = source.read(index)
        if not isinstance(content, bytes) and content.ndim == 3 and content.shape[2] != 3:
            height, width, channels = content.shape
            if channels != wanted:
                return _disagreement(channels, wanted)
            images[index] = fit_array(content, resolution)
            sha = hashlib.sha256(f"{channels} channels:{width}x{height}:".encode())
            sha.update(content.tobytes())
            return _Seen(sha.hexdigest(), width, height, f"{channels} channels", channels)
        if isinstance(content, bytes):
            decoded = decode_in_thread(content)
        else:
            image = Image.fromarray(content)
            decoded = Decoded(image, image.mode)
        picture = decoded.image
        channels = 1 if decoded.gray else 3
        if wanted not in (1, 3):
            return _disagreement(channels, wanted)
        images[index] = fit(picture, resolution, wanted)
        sha = hashlib.sha256(f"{picture.mode}:{picture.width}x{picture.height}:".encode())
        sha.update(picture.tobytes())
        return _Seen(sha.hexdigest(), *picture.size, decoded.mode, channels)
    except PoiseError as error:
        return error.found
    except Exception as error:  # decoders of foreign bytes fail in many ways; all are reported
        return told(error)


def _disagreement(channels: int, wanted: int) -> str:
    return f"it has {channels} channels, where most images have {wanted}"


def _allocate(
    shape: tuple[int, int, int, int], memory_gib: float, store: Path
) -> NDArray[np.uint8]:
    size = int(np.prod(shape))
    if size <= memory_gib * 2**30:
        return np.zeros(shape, np.uint8)
    path = store / "pixels.u8"
    try:
        store.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # another process may still map the old file
        # Written, not only declared: a full disk must be an error here, not a crash in a thread.
        with path.open("wb") as file:
            for _ in range(0, size, _BLOCK):
                file.write(bytes(min(_BLOCK, size - file.tell())))
        return np.memmap(path, np.uint8, "r+", shape=shape)
    except OSError as error:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        raise DataError(
            f"Cannot write {path} ({size / 2**30:.1f} GiB): {error}.",
            expected="a folder with enough free space",
            remedy="Free some space, choose another folder, or lower data.resolution.",
        ) from None


def _sealed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(images, np.memmap):
        images.flush()
    return images


def _check_enough(source: Source, unreadable: list[Unreadable], allowed: float) -> None:
    total = len(source.items) + len(source.refused)
    readable = total - len(unreadable)
    if len(unreadable) > allowed * total:
        first = "; ".join(f"{file.name} ({file.reason})" for file in unreadable[:5])
        raise DataError(
            f"{len(unreadable)} of {total} image files in {source.name} cannot be read: {first}"
            + ("; ..." if len(unreadable) > 5 else "."),
            expected=f"at most {allowed:.0%} (data.max_unreadable)",
            remedy="Repair or remove these files, or raise data.max_unreadable.",
        )
    if readable < _FEWEST:
        raise DataError(
            f"{source.name} holds {readable} readable image{'' if readable == 1 else 's'}; "
            "a model cannot be trained from so few.",
            expected=f"at least {_FEWEST}, better some hundreds",
            remedy="Add more images.",
        )


def _classes(
    source: Source, kept: list[int]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...], list[str]]:
    """Labels of the readable images; classes without any are removed, with a warning."""
    if not source.label_names:
        return None, (), []
    raw = np.array([source.items[index].label for index in kept], np.int64)
    counts = np.bincount(raw, minlength=len(source.label_names))
    warnings = list(_class_warnings(source.label_names, counts))
    renumbered = np.cumsum(counts > 0) - 1
    names = tuple(n for n, c in zip(source.label_names, counts, strict=True) if c)
    return renumbered[raw].astype(np.int64), names, warnings


def _class_warnings(names: tuple[str, ...], counts: NDArray[np.int64]) -> Iterator[str]:
    for name, count in zip(names, counts.tolist(), strict=True):
        if count == 0:
            yield f"class {name!r} has 0 readable images: it is left out."
        elif count == 1:
            yield (
                f"class {name!r} has 1 image: it is used for training only, "
                "and nothing can be said about how well this class is learnt."
            )
