"""Images in .npy and .npz files: any number of channels, any numbers, made 8-bit.

The mapping to 0..255 is linear and one for the whole array, so that images stay comparable. Large
arrays are mapped into memory, not read.
"""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.data.decode import fit
from poise.data.listing import MAX_FILE_BYTES, told
from poise.data.zips import bomb_reason
from poise.errors import DataError

Missing = Literal["refuse", "mask"]
_ERRORS = (
    *(OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error, SyntaxError),
    *(TypeError, AttributeError, MemoryError, struct.error),  # not an archive of arrays
)
_KEYS = (("arr_0", "arr_1"), ("images", "labels"), ("x", "y"))
_FORM = "images: numbers [N, H, W, C] or [N, H, W]; labels, if present: one integer per image"
_REMEDY = "Save it anew with numpy.savez(path, images, labels)."
_MAPPED_FROM = 2**26  # bytes; smaller arrays are read, which also checks the zip's checksum
_CHUNK = 2**24  # numbers looked at together
_GRAY = 127.5  # a channel without any value
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_MOST = 4  # channels of an array read as [N, C, H, W]; its images have at least twice that side


@dataclass(frozen=True)
class Mapping:
    """Which values become 0 and 255, and what happens to those that are missing."""

    low: float
    high: float
    missing: Missing = "refuse"

    def __call__(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        """One image [H, W] or [H, W, C] of any numbers -> uint8 of the same shape.

        A missing value (NaN or infinite) becomes the mean of its channel, mid-gray if that has
        no value at all.

        Raises:
            DataError: values are missing and `missing` is "refuse".
        """
        if values.dtype == np.uint8:
            return np.ascontiguousarray(values)
        x = values.astype(np.float64)
        finite = np.isfinite(x)
        if not finite.all() and self.missing == "refuse":
            raise DataError(
                f"holds {int((~finite).sum())} missing values (NaN or infinite) of {x.size}",
                expected="numbers only",
                remedy="Fill them yourself, or have them masked (--missing mask).",
            )
        half = self.high / 2 - self.low / 2  # halves, so that no difference overflows
        if half > 0:
            x = (np.where(finite, x, self.low) / 2 - self.low / 2) / half * 255
        else:
            x = np.zeros_like(x)
        if not finite.all():
            axes = (0, 1)
            count = finite.sum(axes)
            total = np.where(finite, x, 0).sum(axes)
            means = np.where(count > 0, total / np.maximum(count, 1), _GRAY)
            x = np.where(finite, x, means)
        return np.rint(np.clip(x, 0, 255)).astype(np.uint8)


class ArrayReader:
    """Images by number from [N, H, W] or [N, H, W, C], in memory or mapped."""

    def __init__(self, pixels: NDArray[Any], mapping: Mapping) -> None:
        self._pixels, self._mapping = pixels, mapping

    def __call__(self, index: int) -> NDArray[np.uint8]:
        image = self._mapping(np.asarray(self._pixels[index]))
        return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image


@dataclass(frozen=True)
class Arrays:
    """What an array file holds."""

    count: int
    read: ArrayReader
    labels: tuple[int | str, ...] | None
    warnings: tuple[str, ...]


def open_arrays(path: Path, missing: Missing = "refuse") -> Arrays:
    """Open an .npy, or an .npz with arr_0 (and arr_1), images (and labels), or x (and y).

    Numbers other than uint8 are looked at once: their smallest and largest finite value decide
    the mapping, but floats within [0, 1] or [-1, 1] keep these ends.

    Raises:
        DataError: it cannot be read, or is no array of images.
    """
    try:
        if path.suffix.lower() == ".npy":
            _check_npy(path)
            raw: Any = np.load(path, mmap_mode="r", allow_pickle=False)
            if not isinstance(raw, np.ndarray):
                raise ValueError("it is an archive, not one array")
            pixels, labels = raw, None
        else:
            pixels, labels = _load_npz(path)
    except _ERRORS as error:
        raise DataError(
            f"{path} cannot be read: {told(error)}.",
            expected="plain arrays written by numpy.save or numpy.savez",
            remedy=_REMEDY,
        ) from None
    if problem := _problem(pixels, labels):
        raise DataError(f"{path}: {problem}.", expected=_FORM, remedy=_REMEDY)
    warnings = []
    shape = pixels.shape
    if len(shape) == 4 and shape[1] <= _MOST and min(shape[2:]) >= 2 * _MOST:
        pixels = np.moveaxis(pixels, 1, 3)
        warnings.append(f"The array {list(shape)} was read as [N, C, H, W].")
    mapping, text = mapping_of([pixels], missing)
    named = None if labels is None else tuple(labels.tolist())
    return Arrays(len(pixels), ArrayReader(pixels, mapping), named, (*warnings, *text))


def _check_npy(path: Path) -> None:
    """Say in plain words what numpy says in those of its own insides.

    Raises:
        ValueError: it is no array of numbers, or ends early.
    """
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise ValueError("it is no .npy file, whatever its name says")
        file.seek(0)
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            return
        shape, _, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects, which are never loaded")
        wanted = math.prod(shape) * dtype.itemsize
        if (there := path.stat().st_size - file.tell()) < wanted:
            raise ValueError(f"it ends early: {there:,} of {wanted:,} bytes are there")


def mapping_of(parts: list[NDArray[Any]], missing: Missing) -> tuple[Mapping, list[str]]:
    """How numbers become 8 bits, and the sentences that say so.

    Args:
        parts: arrays [N, ...] of one type, which together are all images.
        missing: what to do with values that are NaN or infinite.
    """
    kind = parts[0].dtype
    if kind == np.uint8:
        return Mapping(0, 255, missing), []
    if kind == np.bool_:
        return Mapping(0, 1, missing), []
    low, high, holed = np.inf, -np.inf, 0
    for chunk in _chunks(parts):
        values = chunk.reshape(len(chunk), -1)
        if kind.kind == "f":
            finite = np.isfinite(values)
            holed += int((~finite.all(1)).sum())
            values = values[finite]
        if values.size:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low > high:
        low = high = 0.0
    ends = (low, high)
    if kind.kind == "f" and low >= -1 and high <= 1:
        ends = (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    kept = "" if ends == (low, high) else f", {_short(ends[0])} to {_short(ends[1])}"
    text = [
        f"Values {_short(low)} to {_short(high)} of {kind}{kept and ' (taken as' + kept[1:] + ')'} "
        "became 0 to 255; 8 bits are kept."
    ]
    if holed and missing == "mask":
        text.append(
            f"{holed} {'image has' if holed == 1 else 'images have'} missing values (NaN or "
            "infinite), which became the mean of their channel."
        )
    return Mapping(*ends, missing), text


def fit_array(pixels: NDArray[np.uint8], resolution: int) -> NDArray[np.uint8]:
    """The centre square of each channel, resized with antialiasing as `decode.fit` does.

    Args:
        pixels: uint8 [H, W, C], any C.
        resolution: side of the result in pixels.

    Returns:
        uint8 [C, resolution, resolution].
    """
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(pixels, 2, 0)]
    return np.concatenate([fit(plane, resolution, 1) for plane in planes])


def _chunks(parts: list[NDArray[Any]]) -> Iterator[NDArray[Any]]:
    for part in parts:
        rows = max(1, _CHUNK // max(1, int(np.prod(part.shape[1:]))))
        for first in range(0, len(part), rows):
            yield np.asarray(part[first : first + rows])


def _short(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else f"{value:.3g}"


def _problem(pixels: NDArray[Any], labels: NDArray[Any] | None) -> str:
    """Why these are no images with labels; empty if they are."""
    if pixels.dtype.kind not in "buif":
        return f"the images are {pixels.dtype}"
    if pixels.ndim not in (3, 4):
        return f"the images have shape {pixels.shape}"
    if 0 in pixels.shape:
        return f"there is no image, the shape is {pixels.shape}"
    if labels is not None and labels.ndim == 1 and len(labels) != len(pixels):
        return f"there are {len(pixels):,} images and {len(labels):,} labels"
    if labels is not None and (labels.shape != (len(pixels),) or labels.dtype.kind not in "iuU"):
        return f"the labels have shape {labels.shape} and are {labels.dtype}"
    return ""


def _load_npz(path: Path) -> tuple[NDArray[Any], NDArray[Any] | None]:
    with np.load(path, allow_pickle=False) as archive:
        keys = {key.lower(): key for key in archive.files}
        pair = next((pair for pair in _KEYS if pair[0] in keys), None)
        if pair is None:
            raise DataError(
                f"{path} holds {', '.join(archive.files) or 'nothing'}, but no "
                f"{', '.join(images for images, _ in _KEYS)}.",
                expected=_FORM,
                remedy=_REMEDY,
            )
        _refuse_bombs(path, keys[pair[0]], keys.get(pair[1]))
        labels = archive[keys[pair[1]]] if pair[1] in keys else None
        if labels is not None and labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        mapped = _mapped(path, keys[pair[0]] + ".npy")
        return (archive[keys[pair[0]]] if mapped is None else mapped), labels


def _refuse_bombs(path: Path, images: str, labels: str | None) -> None:
    """Before anything is unpacked. Sorted labels may shrink a thousandfold, images do not.

    Raises:
        ValueError: an array that swells far beyond its file.
    """
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == images and (reason := bomb_reason(info)):
                raise ValueError(f"{name}: {reason}")
            if name == labels and info.file_size > MAX_FILE_BYTES:
                raise ValueError(f"{name} has {info.file_size:,} bytes, too many for labels")


def _mapped(path: Path, member: str) -> NDArray[Any] | None:
    """A large member of an .npz without compression, mapped into memory; None for others."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member) if member in archive.namelist() else None
    if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < _MAPPED_FROM:
        return None
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = struct.unpack("<26xHH", file.read(30))  # of the name and of extra fields
        file.seek(sum(lengths), 1)
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            return None
        shape, fortran, dtype = _HEADERS[version](file)
        if dtype.hasobject:
            raise ValueError("it holds Python objects")
        order: Literal["F", "C"] = "F" if fortran else "C"
        return np.memmap(path, dtype, "r", file.tell(), shape, order)
