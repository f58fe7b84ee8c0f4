"""From a list of file names to labelled images: class folders, given splits, `dataset.json`.

Pure functions of names, so a folder and a zip of it always give the same data set.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from poise.errors import DataError

Split = Literal["train", "val", "test"]
MANIFEST = "dataset.json"
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
_SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Item:
    """One image file: its path inside the source, its class, the split it was given."""

    name: str  # with / on every system
    label: int | None
    split: Split | None


@dataclass(frozen=True)
class Unreadable:
    """A file that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Layout:
    """What the names say: images in order of name, their classes, and what was left out."""

    items: tuple[Item, ...]
    label_names: tuple[str, ...]  # empty: no classes
    refused: tuple[Unreadable, ...]
    left_out: tuple[str, ...]
    warnings: tuple[str, ...]


def is_image(name: str) -> bool:
    """Whether the suffix is one of an image format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file manager would not show the file, or macOS added it to an archive."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def unsafe_reason(name: str) -> str | None:
    """Why a path from an archive or manifest leads out of its folder; None if it stays inside."""
    path = name.replace("\\", "/")
    if path.startswith("/"):
        return "its path is absolute"
    if len(path) > 1 and path[1] == ":" and path[0].isalpha():
        return "its path has a drive letter"
    if ".." in path.split("/"):
        return "its path leads out of the folder (..)"
    if "\0" in path:
        return "its path holds a zero byte"
    return None


def wrapper_of(images: Sequence[str], others: Sequence[str] = ()) -> str:
    """The folders that wrap everything: `photos/` for photos/cat/1.png and photos/dog/2.png.

    Empty if there are none; else it ends in /. A folder beside which images or a `dataset.json`
    lie is not a wrapper.
    """
    prefix, known = "", set(others)
    while images and prefix + MANIFEST not in known:
        heads = {name[len(prefix) :].partition("/")[:2] for name in images}
        if len(heads) != 1:
            break
        head, slash = heads.pop()
        if not slash:
            break
        prefix += head + "/"
    return prefix


def arrange(images: Sequence[str], others: Sequence[str], manifest: bytes | None) -> Layout:
    """Classes and given splits from the names, or from `dataset.json` where there is one.

    Args:
        images: paths of all image files, in any order.
        others: paths of the other files; only used to recognise wrapper folders.
        manifest: content of `dataset.json`, None if there is none.

    Raises:
        DataError: the manifest cannot be understood.
    """
    prefix = wrapper_of(images, others)
    splits = _given_splits(images, prefix)
    if manifest is not None:
        return _from_manifest(sorted(images), prefix, manifest, splits)
    return _from_folders(sorted(images), prefix, splits)


def _given_splits(images: Sequence[str], prefix: str) -> dict[str, Split]:
    """Top folder -> split, when every top folder is named like a split and one is train."""
    inner = [name[len(prefix) :] for name in images]
    tops = {name.partition("/")[0] for name in inner if "/" in name}
    found = {top: _SPLIT_NAMES[top.lower()] for top in tops if top.lower() in _SPLIT_NAMES}
    return found if len(found) == len(tops) and "train" in found.values() else {}


def _from_folders(images: list[str], prefix: str, splits: dict[str, Split]) -> Layout:
    rows: list[tuple[str, str | None, Split | None]] = []
    left_out: list[str] = []
    for name in images:
        head, slash, rest = name[len(prefix) :].partition("/")
        if not splits:
            rows.append((name, head if slash else None, None))
        elif slash:
            folder = rest.partition("/")
            rows.append((name, folder[0] if folder[1] else None, splits[head]))
        else:
            left_out.append(name)
    classes = sorted({label for _, label, _ in rows if label is not None})
    if classes:
        left_out += [name for name, label, _ in rows if label is None]
        rows = [row for row in rows if row[1] is not None]
    index = {label: position for position, label in enumerate(classes)}
    items = tuple(Item(n, None if c is None else index[c], s) for n, c, s in rows)
    warnings = []
    if left_out:
        warnings.append(
            f"{_count(len(left_out), 'image lies', 'images lie')} beside the folders and left out, "
            f"such as {left_out[0]}: the folder says neither class nor split."
        )
    return Layout(items, tuple(classes), (), tuple(left_out), tuple(warnings))


def _from_manifest(
    images: list[str], prefix: str, manifest: bytes, splits: dict[str, Split]
) -> Layout:
    def split_of(name: str) -> Split | None:
        return splits.get(name[len(prefix) :].partition("/")[0])

    entries = _parse(manifest)
    if entries is None:
        return Layout(tuple(Item(n, None, split_of(n)) for n in images), (), (), (), ())
    present, listed = set(images), dict[str, int | str]()
    refused: list[Unreadable] = []
    missing: list[str] = []
    repeated: list[str] = []
    for path, label in entries:
        reason = unsafe_reason(path)
        name = prefix + str(PurePosixPath(path.replace("\\", "/")))
        if reason:
            refused.append(Unreadable(path, f"listed in {MANIFEST}, but {reason}"))
        elif name not in present:
            missing.append(path)
        elif name in listed:
            repeated.append(path)
        else:
            listed[name] = label
    left_out = tuple(name for name in images if name not in listed)
    warnings = [
        f"{MANIFEST}: {_count(len(names), 'entry', 'entries')} {text}, such as {names[0]}."
        for names, text in (
            (missing, "without an image file"),
            (repeated, "listed again (the first one counts)"),
        )
        if names
    ]
    if left_out:
        warnings.append(
            f"{_count(len(left_out), 'image is', 'images are')} not listed in {MANIFEST} "
            f"and left out, such as {left_out[0]}."
        )
    classes = sorted(set(listed.values()), key=lambda c: (isinstance(c, str), c))
    index = {label: position for position, label in enumerate(classes)}
    items = tuple(Item(n, index[listed[n]], split_of(n)) for n in images if n in listed)
    return Layout(items, tuple(map(str, classes)), tuple(refused), left_out, tuple(warnings))


def _parse(manifest: bytes) -> list[tuple[str, int | str]] | None:
    """The (path, class) pairs; None when `labels` is null."""
    form = '{"labels": [["folder/image.png", 3], ...]} or {"labels": null}'
    remedy = f"Correct {MANIFEST}, or remove it to take the classes from the folders."
    try:
        raw: Any = json.loads(manifest)
        entries = raw["labels"]
        if entries is None:
            return None
        pairs = [(path, label) for path, label in entries]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{MANIFEST} cannot be understood: {type(error).__name__}: {error}.",
            expected=form,
            remedy=remedy,
        ) from None
    kinds = {type(label) for _, label in pairs}
    if any(not isinstance(path, str) for path, _ in pairs) or (kinds not in ({int}, {str}, set())):
        raise DataError(
            f"{MANIFEST} holds entries that are not a path and one class.",
            expected=form,
            remedy=remedy,
        )
    return pairs


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
