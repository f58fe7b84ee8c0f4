"""Where images come from: a folder, a zip, an .npz, or the built-in digits; one `Source` for all.

Nothing is decoded here and nothing is extracted: a source knows names, classes and given splits,
and hands out the content of one file at a time.
"""

import os
import threading
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.layout import (
    MANIFEST,
    Item,
    Layout,
    Unreadable,
    arrange,
    is_hidden,
    is_image,
    unsafe_reason,
    wrapper_of,
)
from poise.errors import DataError, UsageError

_MAX_FILE_BYTES = 512 * 2**20
_ZIP_ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
_NPZ_ERRORS = (*_ZIP_ERRORS, TypeError, AttributeError)  # the last two: not an archive of arrays
_KINDS = "the word digits, a folder of images, a .zip of one, or an .npz with arr_0 (and arr_1)"

# What `Source.read` returns: the bytes of a file, or pixels [H, W] or [H, W, 3] of an array source.
Content = bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """The images of one place, in order of their names.

    `read(index)` returns the content of `items[index]` and may be called from many threads; it
    raises OSError, zipfile or ValueError errors for files that cannot be read.
    """

    name: str
    items: tuple[Item, ...]
    label_names: tuple[str, ...]  # empty: no classes
    read: Callable[[int], Content]
    refused: tuple[Unreadable, ...] = ()  # never opened, with the reason
    ignored: tuple[str, ...] = ()  # not images, or images that the layout leaves out
    warnings: tuple[str, ...] = ()


def open_source(source: str | Path) -> Source:
    """Find out what `source` is and list its images.

    Args:
        source: the word `digits`, or a path to a folder, a .zip or an .npz.

    Raises:
        UsageError: the path does not exist or is of no known kind.
        DataError: it holds no image, or its labels cannot be understood.
    """
    if source == "digits":
        return _open_digits()
    path = Path(source).expanduser()
    if not path.exists():
        raise UsageError(
            f"{source} does not exist.",
            expected=_KINDS,
            remedy="Check the path for a typing error.",
        )
    if path.is_dir():
        return _open_folder(path)
    if path.suffix.lower() == ".npz":
        return _open_npz(path)
    if path.suffix.lower() == ".zip":
        return _open_zip(path)
    raise UsageError(
        f"{path} is not a source of images: its kind {path.suffix or '(no suffix)'} is unknown.",
        expected=_KINDS,
        remedy="Put your images into a folder, one subfolder per class, and give that folder.",
    )


def _open_digits() -> Source:
    from sklearn.datasets import load_digits

    raw: Any = load_digits()
    pixels = np.rint(raw.images * (255 / 16)).astype(np.uint8)
    items = tuple(
        Item(f"digit-{index:04d}", int(label), None) for index, label in enumerate(raw.target)
    )
    return Source("digits", items, tuple(map(str, range(10))), _ArrayReader(pixels))


def _open_npz(path: Path) -> Source:
    pixels, labels = _load_npz(path)
    problem = ""
    if pixels.dtype != np.uint8:
        problem = f"arr_0 holds {pixels.dtype}"
    elif pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)):
        problem = f"arr_0 has shape {pixels.shape}"
    elif 0 in pixels.shape:
        problem = f"arr_0 is empty, its shape is {pixels.shape}"
    elif labels is not None and (
        labels.shape != (len(pixels),) or not np.issubdtype(labels.dtype, np.integer)
    ):
        problem = f"arr_1 has shape {labels.shape} and holds {labels.dtype}"
    if problem:
        raise DataError(
            f"{path}: {problem}.",
            expected="arr_0: uint8 [N, H, W, C] with 1 or 3 channels, or [N, H, W]; "
            "arr_1, if present: one integer per image",
            remedy="Save it anew with numpy.savez(path, images, labels).",
        )
    if pixels.ndim == 4 and pixels.shape[3] == 1:
        pixels = pixels[..., 0]
    classes = [] if labels is None else sorted(set(labels.tolist()))
    index = {label: position for position, label in enumerate(classes)}
    items = tuple(
        Item(f"image-{n:06d}", None if labels is None else index[int(labels[n])], None)
        for n in range(len(pixels))
    )
    return Source(path.name, items, tuple(map(str, classes)), _ArrayReader(pixels))


def _load_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if "arr_0" not in archive:
                raise DataError(
                    f"{path} holds {', '.join(archive.files) or 'nothing'}, but no arr_0.",
                    expected="arr_0: uint8 [N, H, W, C]",
                    remedy="Save it anew with numpy.savez(path, images, labels).",
                )
            return archive["arr_0"], archive.get("arr_1")
    except _NPZ_ERRORS as error:
        raise DataError(
            f"{path} cannot be read: {error}.",
            expected="an .npz of plain arrays written by numpy.savez",
            remedy="Save it anew with numpy.savez(path, images, labels).",
        ) from None


def _open_folder(root: Path) -> Source:
    images: list[str] = []
    others: list[str] = []
    refused: list[Unreadable] = []
    _scan(root, "", root.resolve(), (images, others, refused))
    manifest_name = wrapper_of(images, others) + MANIFEST
    manifest = None
    if manifest_name in others:
        manifest = _manifest(_FolderReader(root, [manifest_name]), root)
    layout = arrange(images, others, manifest)
    names = [item.name for item in layout.items]
    return _source(root, layout, others, refused, _FolderReader(root, names))


def _scan(
    folder: Path,
    prefix: str,
    root: Path,
    found: tuple[list[str], list[str], list[Unreadable]],
) -> None:
    """Collect images, other files and refused ones below `folder` into `found`."""
    images, others, refused = found
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        refused.append(Unreadable(prefix or ".", f"the folder cannot be listed: {error.strerror}"))
        return
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            _scan(folder / entry.name, name + "/", root, found)
        elif entry.is_symlink() and (reason := _link_reason(folder / entry.name, root)):
            if is_image(name) or entry.is_dir():
                refused.append(Unreadable(name, reason))
            else:
                others.append(name)
        elif not entry.is_file():
            # A pipe named like an image would block the reader forever.
            refused.append(Unreadable(name, "it is not a regular file"))
        else:
            (images if is_image(name) else others).append(name)


def _link_reason(path: Path, root: Path) -> str | None:
    """Why a symbolic link is not followed; None if it names a file inside the folder."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "it is a symbolic link to nothing"
    if not target.is_relative_to(root):
        return "it is a symbolic link that leads out of the folder"
    return "it is a symbolic link to a folder" if target.is_dir() else None


def _open_zip(path: Path) -> Source:
    try:
        archive = zipfile.ZipFile(path)
    except _ZIP_ERRORS as error:
        raise DataError(
            f"{path} cannot be read: {error}.",
            expected="a whole .zip file",
            remedy="Download or pack it again.",
        ) from None
    images: list[str] = []
    others: list[str] = []
    refused: list[Unreadable] = []
    members: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        parts = info.filename.replace("\\", "/").split("/")  # some Windows tools write \
        name = "/".join(part for part in parts if part != ".")
        reason = unsafe_reason(info.orig_filename)
        if info.is_dir() or (is_hidden(name) and not reason):
            continue
        if reason or name in members:
            refused.append(Unreadable(info.orig_filename, reason or "its name occurs twice"))
            continue
        members[name] = info
        (images if is_image(name) else others).append(name)
    manifest_name = wrapper_of(images, others) + MANIFEST
    manifest = None
    if manifest_name in others:
        manifest = _manifest(_ZipReader(archive, members, [manifest_name]), path)
    layout = arrange(images, others, manifest)
    names = [item.name for item in layout.items]
    return _source(path, layout, others, refused, _ZipReader(archive, members, names))


def _manifest(read: "_FolderReader | _ZipReader", place: Path) -> bytes:
    try:
        return read(0)
    except _ZIP_ERRORS as error:
        raise DataError(
            f"{MANIFEST} in {place} cannot be read: {error}.",
            expected="a readable file with the labels of the images",
            remedy="Repair it, or remove it to take the classes from the folders.",
        ) from None


def _source(
    path: Path,
    layout: Layout,
    others: list[str],
    refused: list[Unreadable],
    read: Callable[[int], Content],
) -> Source:
    """The source of a folder or a zip, refused if there is nothing in it."""
    ignored = [name for name in others if name.rpartition("/")[2] != MANIFEST]
    all_refused = (*refused, *layout.refused)
    if not layout.items and not all_refused:
        beside = f" It has {len(ignored)} other files, such as {ignored[0]}." if ignored else ""
        raise DataError(
            f"{path} holds no image.{beside}",
            expected="files that end in png, jpg, jpeg, webp, bmp, tif or tiff",
            remedy="Check the path; convert other formats to PNG first.",
        )
    return Source(
        path.name or str(path),
        layout.items,
        layout.label_names,
        read,
        all_refused,
        (*ignored, *layout.left_out),
        layout.warnings,
    )


class _ArrayReader:
    """Pixels [N, H, W] or [N, H, W, 3] in memory."""

    def __init__(self, pixels: NDArray[np.uint8]) -> None:
        self._pixels = pixels

    def __call__(self, index: int) -> Content:
        return np.ascontiguousarray(self._pixels[index])


class _FolderReader:
    """Files below a folder."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self._root, self._names = root, names

    def __call__(self, index: int) -> bytes:
        path = self._root / self._names[index]
        _refuse_huge(path.stat().st_size)
        return path.read_bytes()


class _ZipReader:
    """Members of an open zip; one lock, because a ZipFile counts its readers without one."""

    def __init__(
        self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo], names: list[str]
    ) -> None:
        self._archive, self._members, self._names = archive, members, names
        self._lock = threading.Lock()

    def __call__(self, index: int) -> bytes:
        info = self._members[self._names[index]]
        _refuse_huge(info.file_size)
        with self._lock:
            return self._archive.read(info)


def _refuse_huge(size: int) -> None:
    if size > _MAX_FILE_BYTES:
        raise DataError(
            f"the file has {size / 2**20:.0f} MiB",
            expected=f"at most {_MAX_FILE_BYTES // 2**20} MiB",
            remedy="Make the image smaller.",
        )
