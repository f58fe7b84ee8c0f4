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
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.data.decode import Decoded, decode_in_thread, fit, quiet_pillow, read_header
from poise.data.layout import Unreadable
from poise.data.sources import Source, open_source
from poise.errors import DataError, PoiseError
from poise.settings import DataConfig

_FEWEST = 10  # images without which no model can be trained and judged
_SAMPLED = 512  # headers that decide the resolution
_SMALLEST, _LARGEST = 8, 64  # range of the resolution chosen from the data
_TASK = 64  # images per task of a thread
_BLOCK = 2**26  # bytes

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Dataset:
    """Images of one size with all that was learnt while reading them; one entry per image."""

    images: NDArray[np.uint8]  # [N, C, H, W], in memory or memory-mapped
    labels: NDArray[np.int64] | None  # [N]
    label_names: tuple[str, ...]  # empty: no classes
    names: tuple[str, ...]
    hashes: tuple[str, ...]  # sha256 of the decoded pixels and shape, before resizing
    given_splits: tuple[str | None, ...]  # train, val, test, or None where nothing was given
    unreadable: tuple[Unreadable, ...]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]
    source: str
    sizes: dict[str, int]  # "32x32" -> images; the 20 most common
    modes: dict[str, int]  # "RGB" -> images, as the files have them

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Side in pixels."""
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 (all images are gray) or 3."""
        return int(self.images.shape[1])

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return len(self.label_names)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, labels, hashes and resolution: equal for equal data."""
        sha = hashlib.sha256(f"{self.resolution}:{self.label_names!r}".encode())
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        for name, label, digest in zip(self.names, labels, self.hashes, strict=True):
            sha.update(f"\n{name!r}:{label}:{digest}".encode("utf-8", "surrogateescape"))
        return sha.hexdigest()


@dataclass(frozen=True)
class _Seen:
    """One image file after decoding."""

    digest: str
    width: int
    height: int
    mode: str
    gray: bool


def load_dataset(
    source: str | Path, config: DataConfig, *, store: Path, progress: Progress | None = None
) -> Dataset:
    """Read all images of `source` at one resolution.

    Args:
        source: `digits`, or a path to a folder, .zip or .npz.
        config: resolution (unset: chosen from the data), limits of memory and unreadable files.
        store: folder of `pixels.u8`, written only if the images exceed `config.memory_gib`.
        progress: called with (files done, files in all).

    Raises:
        UsageError: there is no such source.
        DataError: no or too few images, too many unreadable ones, or a full disk.
    """
    opened = open_source(source)
    with quiet_pillow():
        resolution, gray = _survey(opened, config.resolution)
        loaded = _load(opened, resolution, 1 if gray else 3, config, store, progress)
        if loaded is None:  # a colour image beyond the sampled headers
            loaded = _load(opened, resolution, 3, config, store, progress)
    assert loaded is not None
    images, seen = loaded
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
    )


def _survey(source: Source, wanted: int | None) -> tuple[int, bool]:
    """The resolution, and whether the sampled images are all gray.

    Unset, the resolution is the median shorter side of up to 512 images, spread evenly over the
    names, rounded down to a power of two from 8 to 64.
    """
    step = max(1, -(-len(source.items) // _SAMPLED))
    sides: list[int] = []
    gray = True
    for index in range(0, len(source.items), step):
        try:
            content = source.read(index)
            if isinstance(content, bytes):
                width, height, is_gray = read_header(content)
            else:
                height, width, is_gray = *content.shape[:2], content.ndim == 2
        except Exception:  # the full pass meets the same file again and names it
            continue
        sides.append(min(width, height))
        gray = gray and is_gray
    side = int(np.median(sides)) if sides else _SMALLEST
    chosen = min(max(2 ** (max(side, 1).bit_length() - 1), _SMALLEST), _LARGEST)
    return wanted or chosen, gray


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
            if channels == 1 and any(isinstance(row, _Seen) and not row.gray for row in rows):
                return None
            if progress:
                progress(len(seen), total)
    finally:
        pool.shutdown(cancel_futures=True)
    return images, seen


def _read_one(source: Source, index: int, images: NDArray[np.uint8]) -> _Seen | str:
    """Decode one file into its row; a text says why that failed."""
    try:
        content = source.read(index)
        if isinstance(content, bytes):
            decoded = decode_in_thread(content)
        else:
            image = Image.fromarray(content)
            decoded = Decoded(image, image.mode)
        picture = decoded.image
        images[index] = fit(picture, images.shape[2], images.shape[1])
        sha = hashlib.sha256(f"{picture.mode}:{picture.width}x{picture.height}:".encode())
        sha.update(picture.tobytes())
        return _Seen(sha.hexdigest(), *picture.size, decoded.mode, decoded.gray)
    except PoiseError as error:
        return error.found
    except Exception as error:  # decoders of foreign bytes fail in many ways; all are reported
        return f"{type(error).__name__}: {error}"


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
