"""What every source is: a list of images with what is known about each, and a way to read them.

A place of files (a folder, a zip, tars) is first a `Listing`: names, and a way to read one.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from poise.data.layout import Item, Split, Unreadable, is_image
from poise.errors import DataError

MAX_FILE_BYTES = 512 * 2**20
BOMB_BYTES, BOMB_RATIO = 16 * 2**20, 200  # what swells beyond both was packed to do harm
HEAD_BYTES = 16  # what `looks_like_image` needs
# Never taken for images, whatever their first bytes are. Raw photographs begin like a TIFF file
# but what can be read of them is a thumbnail.
_NO_IMAGE = re.compile(
    r"\.("
    r"txt|caption|json|jsonl|csv|tsv|parquet|xml|md|rst|html|htm|css|js|yaml|yml|toml|cfg|ini|"
    r"log|py|ipynb|sh|bat|cls|db|sqlite|url|lnk|pdf|doc|docx|svg|eps|zip|tar|gz|tgz|bz2|tbz|"
    r"xz|txz|zst|7z|rar|npz|npy|mat|arrow|h5|hdf5|idx|bin|pt|pth|safetensors|pkl|pickle|onnx|"
    r"mp4|avi|mov|mkv|webm|wav|mp3|psd|xcf|nef|nrw|cr2|cr3|arw|sr2|dng|orf|rw2|pef|raf|srw|"
    r"3fr|iiq|svs|ndpi"
    r")"
)

_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")

# What `Source.read` returns: the bytes of a file, or pixels [H, W] or [H, W, C] of an array source.
Content = bytes | NDArray[np.uint8]


@dataclass(frozen=True)
class Source:
    """The images of one place, in order of their names.

    `read(index)` returns the content of `items[index]` and may be called from many threads; it
    raises OSError, zipfile, ValueError or DataError errors for images that cannot be read.
    """

    name: str
    items: tuple[Item, ...]
    label_names: tuple[str, ...]  # empty: no classes
    read: Callable[[int], Content]
    refused: tuple[Unreadable, ...] = ()  # never opened, with the reason
    ignored: tuple[str, ...] = ()  # not images, or images that the layout leaves out
    warnings: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()  # those of `ignored` that the layout leaves out
    read_file: Callable[[str], Content] | None = None  # by name; of places of files

    def whole(self) -> "Source":
        """The source with the images that the layout leaves out as its last items."""
        read_file = self.read_file
        if read_file is None or not self.unplaced:
            return self
        items = (*self.items, *(Item(n, None, None, unplaced=True) for n in self.unplaced))
        left = set(self.unplaced)
        return replace(
            self,
            items=items,
            read=lambda index: read_file(items[index].name),
            ignored=tuple(name for name in self.ignored if name not in left),
            unplaced=(),
        )


@dataclass(frozen=True)
class Listing:
    """The files of one place, and a way to read one by its name, from any thread."""

    images: list[str]
    others: list[str]  # safe to open; may hold labels and captions
    refused: list[Unreadable]
    read: Callable[[str], bytes]
    closed: list[str] = field(default_factory=list)  # other files that must not be opened
    given: Mapping[str, Split] = field(default_factory=dict)  # from the name of a shard
    folders: bool = True  # whether folders may name classes
    warnings: tuple[str, ...] = ()


def looks_like_image(head: bytes) -> bool:
    """Whether a file begins like a PNG, JPEG, GIF, BMP, TIFF or WebP; `head` is 16 bytes."""
    return (
        head.startswith(_MAGIC)
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or (head[:2] == b"BM" and len(head) == HEAD_BYTES and head[6:10] == bytes(4))
    )


def sort_out(
    names: Iterable[str], peek: Callable[[str], bytes], errors: tuple[type[Exception], ...]
) -> tuple[list[str], list[str]]:
    """Images and other files, by suffix; files of unknown suffix by their first 16 bytes.

    Args:
        names: paths of files, in any order; the results are sorted.
        peek: returns the first 16 bytes of one.
        errors: what `peek` may raise; such a file is no image.
    """
    images: list[str] = []
    others: list[str] = []
    for name in sorted(names):
        known = is_image(name)
        if not known and not _NO_IMAGE.fullmatch(PurePosixPath(name).suffix.lower()):
            try:
                known = looks_like_image(peek(name))
            except errors:
                known = False
        (images if known else others).append(name)
    return images, others


def told(error: Exception) -> str:
    """What went wrong, in words; the name of the error's type only where it says nothing."""
    if isinstance(error, KeyError) and error.args:
        return f"{error.args[0]!r} is missing"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rstrip(". ") or type(error).__name__


def refuse_huge(size: int) -> None:
    """Raise DataError for a file of `size` bytes that no image has."""
    if size > MAX_FILE_BYTES:
        raise DataError(
            f"the file has {size / 2**20:.0f} MiB",
            expected=f"at most {MAX_FILE_BYTES // 2**20} MiB",
            remedy="Make the image smaller.",
        )
