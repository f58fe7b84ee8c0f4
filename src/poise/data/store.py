"""A prepared data set on disk: pixels ready to be mapped into memory, with a hash over every file.

    manifest.json   written last: what the set is, every file with its size and sha256
    items.jsonl     one line per image, in order: path in the source, class, split, weight, ...
    shards/00000.u8 raw uint8 [n, C, H, W], one image after the other ([n, T, C, H, W]: clips)
    splits.json     names of each split and all that was dropped, with the reason
    plan.json       what was decided before the first image was written

Without manifest.json the set is not finished and is not read. Nothing in it depends on the clock
or the machine: the same images and options give the same bytes.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from poise.data.imageset import Dataset
from poise.data.layout import unsafe_reason
from poise.data.listing import told
from poise.errors import ArtifactError, UsageError
from poise.settings import DataConfig

FORMAT = 1  # raised when an older Poise could no longer read the set
KIND = "poise data set"
MANIFEST, PLAN, ITEMS, SPLITS, SHARDS = (
    "manifest.json",
    "plan.json",
    "items.jsonl",
    "splits.json",
    "shards",
)
_HEAD = 200  # bytes in which KIND stands
_BLOCK = 2**24  # bytes hashed at once


class Shards:
    """Images [N, C, H, W] that lie in several mapped files; indexed like one array.

    What comes back is a view where the images lie side by side in one file, else a copy.
    """

    def __init__(self, parts: Sequence[NDArray[np.uint8]]) -> None:
        self._parts = tuple(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *parts[0].shape[1:])
        self.dtype = parts[0].dtype
        self.ndim = parts[0].ndim

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """One image for a whole number; several for a slice, index array or mask."""
        if isinstance(key, int | np.integer):
            at = int(key) + (len(self) if key < 0 else 0)
            if not 0 <= at < len(self):
                raise IndexError(f"image {key} of {len(self)}")
            which = int(np.searchsorted(self._ends, at, side="right"))
            image: NDArray[np.uint8] = self._parts[which][at - self._start(which)]
            return image
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            which = int(np.searchsorted(self._ends, start, side="right"))
            if step == 1 and start < stop <= (self._ends[which] if start < len(self) else 0):
                return self._parts[which][start - self._start(which) : stop - self._start(which)]
            return self._gather(np.arange(start, stop, step))
        wanted = np.asarray(key)
        return self._gather(np.flatnonzero(wanted) if wanted.dtype == bool else wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        whole = self._gather(np.arange(len(self)))
        return whole if dtype is None else whole.astype(dtype)

    def _start(self, which: int) -> int:
        return int(self._ends[which] - len(self._parts[which]))

    def _gather(self, wanted: NDArray[Any]) -> NDArray[np.uint8]:
        indices = wanted.astype(np.int64).ravel()
        indices = np.where(indices < 0, indices + len(self), indices)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"images {indices.min()} to {indices.max()} of {len(self)}")
        found = np.empty((len(indices), *self.shape[1:]), np.uint8)
        places = np.searchsorted(self._ends, indices, side="right")
        for which in np.unique(places).tolist():
            here = places == which
            found[here] = self._parts[which][indices[here] - self._start(which)]
        return found.reshape(*wanted.shape, *self.shape[1:])


def is_store(path: str | Path) -> bool:
    """Whether `path` is a folder that `poise prepare` wrote, finished or not, whole or damaged."""
    folder = Path(path)
    return any(KIND.encode() in _head(folder / name) for name in (MANIFEST, PLAN))


def load_store(path: Path, config: DataConfig) -> Dataset:
    """The images of a prepared data set; every image has the split it was prepared for.

    Up to `config.memory_gib` the images are read into memory and their hashes checked; above it
    they are mapped and only the sizes of the files are.

    Raises:
        UsageError: another resolution is asked for, or it holds clips, which no model is trained
            on yet.
        ArtifactError: unfinished, damaged, or from a newer Poise.
    """
    manifest = read_manifest(path)
    if manifest["frames"] != 1:
        raise UsageError(
            f"{path} holds clips of {manifest['frames']} frames; no model is trained on clips yet.",
            expected="a data set of single images",
            remedy="Prepare it again without --clip to train on the frames.",
        )
    side = manifest["height"]
    if config.resolution not in (None, side):
        raise UsageError(
            f"{path} was prepared at {side}x{side} pixels, and data.resolution is "
            f"{config.resolution}.",
            expected=f"data.resolution unset or {side}",
            remedy="Prepare the images again: poise prepare SOURCE NEW_FOLDER "
            f"--resolution {config.resolution}.",
        )
    rows = read_items(path, manifest)
    images = _images(path, manifest, config.memory_gib)
    names = tuple(manifest["label_names"])
    index = {name: number for number, name in enumerate(names)}
    weights = np.array([row["weight"] for row in rows], np.float64)
    captions = tuple(row["caption"] for row in rows)
    return Dataset(
        images=images,
        labels=np.array([index[row["label"]] for row in rows], np.int64) if names else None,
        label_names=names,
        names=tuple(row["path"] for row in rows),
        hashes=tuple(row["pixels"] for row in rows),
        given_splits=tuple(row["split"] for row in rows),
        unreadable=(),
        ignored=(),
        warnings=tuple(manifest["warnings"]),
        source=manifest["source"],
        sizes=dict(Counter("{}x{}".format(*row["size"]) for row in rows).most_common(20)),
        modes=dict(Counter(row["mode"] for row in rows).most_common()),
        captions=captions if any(captions) else (),
        weights=None if (weights == 1).all() else weights,
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """manifest.json, checked, with the sizes of all files it names.

    Raises:
        ArtifactError: missing, unfinished, damaged, or from a newer Poise.
    """
    file = path / MANIFEST
    if not file.is_file():
        state = "is not finished" if (path / PLAN).is_file() else "is no prepared data set"
        raise ArtifactError(
            f"{path} {state}: it has no {MANIFEST}.",
            expected="a folder that poise prepare has finished",
            remedy="Run poise prepare again with the same arguments; it goes on where it stopped.",
        )
    try:
        manifest = json.loads(file.read_bytes())
        version, whole = manifest["format"], manifest["sha256"] == checksum(manifest)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path, f"{MANIFEST} cannot be read: {error}") from None
    if isinstance(version, int) and version > FORMAT:
        raise ArtifactError(
            f"{path} was prepared by a newer Poise (format {version}).",
            expected=f"format {FORMAT}",
            remedy="Upgrade Poise, or prepare the images again with this one.",
        )
    if not whole:
        raise damaged(path, f"{MANIFEST} does not match its own checksum")
    try:
        _check_manifest(path, manifest)
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"{MANIFEST} does not say what it should: {told(error)}") from None
    for name, facts in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise damaged(path, f"{name} cannot be read: {error.strerror}") from None
        if size != facts["bytes"]:
            raise damaged(path, f"{name} has {size:,} bytes instead of {facts['bytes']:,}")
    return cast(dict[str, Any], manifest)


def _check_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """A checksum tells damage, not intent: who writes the manifest can write the checksum too.

    Raises:
        ArtifactError: it leads out of the folder, or its numbers contradict each other.
        KeyError, TypeError, AttributeError: something is missing or of another kind.
    """
    inner = tuple(manifest[key] for key in ("frames", "channels", "height", "width"))
    if not all(type(side) is int and 0 < side < 2**16 for side in inner):
        raise damaged(path, f"{MANIFEST} claims entries of the shape {list(inner)}")
    for name in manifest["files"]:
        reason = unsafe_reason(name)
        if reason is None and not (path / name).resolve().is_relative_to(path.resolve()):
            reason = "it is a symbolic link that leads out of the folder"
        if reason:
            raise damaged(path, f"{MANIFEST} names {name!r}: {reason}")
    if manifest["frames"] != 1:
        return  # clips are refused by name when they are to be trained on
    total = 0
    for shard in manifest["shards"]:
        size = shard["items"] * math.prod(inner)
        known = manifest["files"].get(shard["file"], {}).get("bytes")
        if not shard["bytes"] == known == size or shard["items"] < 1:
            raise damaged(path, f"{MANIFEST} contradicts itself about {shard['file']}")
        total += shard["items"]
    if total != manifest["items"] or ITEMS not in manifest["files"]:
        raise damaged(path, f"{MANIFEST} contradicts itself about the number of images")


def read_items(path: Path, manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is known of each image, in order.

    Raises:
        ArtifactError: items.jsonl is damaged.
    """
    content = (path / ITEMS).read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["files"][ITEMS]["sha256"]:
        raise damaged(path, f"{ITEMS} does not match its hash")
    return [json.loads(line) for line in content.split(b"\n") if line]


def verify_store(path: Path) -> None:
    """Read every file and compare its hash.

    Raises:
        ArtifactError: a file is missing or damaged.
    """
    for name, facts in read_manifest(path)["files"].items():
        if hash_file(path / name) != facts["sha256"]:
            raise damaged(path, f"{name} does not match its hash")


def checksum(manifest: Mapping[str, Any]) -> str:
    """sha256 over all of the manifest but `sha256` itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, read in pieces."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha.update(block)
    return sha.hexdigest()


def damaged(path: Path, what: str) -> ArtifactError:
    """The error for a store that is not as it was written."""
    return ArtifactError(
        f"{path} is damaged: {what}.",
        expected="the files as poise prepare wrote them",
        remedy="Prepare the images again into a new folder: poise prepare SOURCE NEW_FOLDER.",
    )


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_HEAD)
    except OSError:
        return b""


def _images(path: Path, manifest: Mapping[str, Any], memory_gib: float) -> NDArray[np.uint8]:
    """All images [N, C, H, W], in memory or mapped."""
    inner = (manifest["channels"], manifest["height"], manifest["width"])
    total = sum(shard["bytes"] for shard in manifest["shards"])
    files = [(path / shard["file"], shard) for shard in manifest["shards"]]
    if total > memory_gib * 2**30:
        shapes = [(shard["items"], *inner) for _, shard in files]
        parts = [
            np.memmap(file, np.uint8, "r", shape=shape)
            for (file, _), shape in zip(files, shapes, strict=True)
        ]
        # Shards offers what the code asks of `Dataset.images`; numpy has no name for that.
        return parts[0] if len(parts) == 1 else cast(NDArray[np.uint8], Shards(parts))
    images = np.empty((manifest["items"], *inner), np.uint8)
    flat, at = images.reshape(-1), 0
    for file, shard in files:
        part = flat[at : at + shard["bytes"]]
        with file.open("rb") as opened:
            whole = opened.readinto(part.data) == len(part)
        if not whole or hashlib.sha256(part.data).hexdigest() != shard["sha256"]:
            raise damaged(path, f"{shard['file']} does not match its hash")
        at += len(part)
    return images
