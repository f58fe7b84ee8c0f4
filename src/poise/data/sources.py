"""Where images come from: one `Source` for folders, archives, tables, arrays and saved data sets.

Nothing is decoded here and nothing is extracted: a source knows names, classes, captions and given
splits, and hands out the content of one image at a time.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from poise.data.arrays import ArrayReader, Mapping, Missing, open_arrays
from poise.data.folders import list_folder
from poise.data.layout import Item, arrange
from poise.data.listing import Content, Listing, Source, told
from poise.data.saved import is_saved, open_saved
from poise.data.store import is_store
from poise.data.tables import find_beside, find_tables
from poise.data.tars import is_tar, list_tars
from poise.data.zips import list_zip
from poise.errors import DataError, UsageError

__all__ = ["Content", "Source", "open_source"]

_KINDS = (
    "the word digits, a folder of images, a .zip or .tar of one, a folder of .tar shards, an .npz "
    "or .npy, or a data set saved by Hugging Face datasets"
)


def open_source(source: str | Path, *, missing: str = "refuse", group_by: str = "group") -> Source:
    """Find out what `source` is and list its images.

    Args:
        source: the word `digits`, or a path: a folder, zip or tar of images (with class folders, a
            `metadata` table, `dataset.json`, or files beside the images), a folder of tars, an
            .npz or .npy, or a folder that Hugging Face's `datasets` saved.
        missing: values in arrays that are NaN or infinite: `refuse` makes their image unreadable,
            `mask` fills them with the mean of their channel.
        group_by: the column of a table that says which images belong together.

    Raises:
        UsageError: the path does not exist or is of no known kind.
        DataError: it cannot be read, holds no image, or its labels cannot be understood.
    """
    if missing not in ("refuse", "mask"):
        raise UsageError(f"missing={missing!r} is not known.", expected="refuse or mask")
    way = cast(Missing, missing)
    if source == "digits":
        return _open_digits()
    if not str(source).strip() or "\0" in str(source):  # Path("") would be the current folder
        raise UsageError(f"{str(source)!r} is no source.", expected=_KINDS)
    try:
        return _open(source, Path(source).expanduser(), way, group_by)
    except OSError as error:
        raise DataError(
            f"{source} cannot be read: {told(error)}.",
            expected="a place that this user may read",
            remedy="Check its permissions.",
        ) from None


def _open(source: str | Path, path: Path, way: Missing, group_by: str) -> Source:
    """The source at a path."""
    if not path.exists():
        raise UsageError(
            f"{source} does not exist.",
            expected=_KINDS,
            remedy="Check the path for a typing error.",
        )
    suffix = path.suffix.lower()
    if is_store(path):
        raise UsageError(
            f"{path} is what poise prepare wrote, and is clean already.",
            expected="the images that it was made from",
            remedy=f"Train on it: poise train {path}",
        )
    if path.is_dir():
        return open_saved(path, way, group_by) if is_saved(path) else _open_folder(path, group_by)
    if suffix in (".npz", ".npy"):
        return _open_arrays(path, way)
    if suffix == ".zip":
        return _source(path, list_zip(path), group_by)
    if is_tar(path.name):
        return _source(path, list_tars(path.parent, [path.name]), group_by)
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
    read = ArrayReader(pixels, Mapping(0, 255))
    return Source("digits", items, tuple(map(str, range(10))), read)


def _open_arrays(path: Path, missing: Missing) -> Source:
    arrays = open_arrays(path, missing)
    labels = arrays.labels
    classes = [] if labels is None else sorted(set(labels), key=lambda c: (isinstance(c, str), c))
    index = {label: position for position, label in enumerate(classes)}
    items = tuple(
        Item(f"image-{n:06d}", None if labels is None else index[labels[n]], None)
        for n in range(arrays.count)
    )
    names = tuple(map(str, classes))
    return Source(path.name, items, names, arrays.read, warnings=arrays.warnings)


def _open_folder(root: Path, group_by: str) -> Source:
    listing = list_folder(root)
    shards = [name for name in listing.others if is_tar(name)]
    if shards and not listing.images:
        tars = list_tars(root, shards)
        rest = [name for name in listing.others if name not in set(shards)]
        refused = [*listing.refused, *tars.refused]
        closed = [*rest, *listing.closed]
        listing = Listing(
            tars.images, tars.others, refused, tars.read, closed, tars.given, tars.folders
        )
    return _source(root, listing, group_by)


def _source(path: Path, listing: Listing, group_by: str) -> Source:
    """The source of a place of files, refused if there is nothing in it."""
    tables, used, warnings = find_tables(listing, group_by)
    beside, used_beside, troubles = find_beside(listing, group_by)
    layout = arrange(
        listing.images, listing.others, tables, beside, listing.given, folders=listing.folders
    )
    used |= used_beside
    ignored = [*(name for name in listing.others if name not in used), *listing.closed]
    refused = (*listing.refused, *layout.refused)
    if not layout.items and not refused:
        beside_text = ""
        if ignored:
            beside_text = f" It has {len(ignored)} other files, such as {ignored[0]}."
        raise DataError(
            f"{path} holds no image.{beside_text}",
            expected="files that end in png, jpg, jpeg, webp, bmp, tif, tiff or gif",
            remedy="Check the path; convert other formats to PNG first.",
        )
    return Source(
        path.name or str(path),
        layout.items,
        layout.label_names,
        _by_number(listing.read, [item.name for item in layout.items]),
        refused,
        (*ignored, *layout.left_out),
        (*listing.warnings, *warnings, *layout.warnings, *troubles),
        unplaced=layout.left_out,
        read_file=listing.read,
    )


def _by_number(read: Callable[[str], bytes], names: list[str]) -> Callable[[int], Content]:
    return lambda index: read(names[index])
