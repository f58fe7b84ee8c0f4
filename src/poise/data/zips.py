"""The members of a zip, read where they lie; names that lead out of it are refused."""

import stat
import threading
import zipfile
import zlib
from collections import Counter
from pathlib import Path

from poise.data.layout import Unreadable, again, is_hidden, unsafe_reason
from poise.data.listing import (
    BOMB_BYTES,
    BOMB_RATIO,
    HEAD_BYTES,
    Listing,
    refuse_huge,
    sort_out,
)
from poise.errors import DataError

# RuntimeError: encrypted members; NotImplementedError: other compressions.
ERRORS = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def list_zip(path: Path) -> Listing:
    """All members that are files.

    Raises:
        DataError: it is not a whole zip file.
    """
    try:
        archive = zipfile.ZipFile(path)
    except ERRORS as error:
        raise DataError(
            f"{path} cannot be read: {error}.",
            expected="a whole .zip file",
            remedy="Download or pack it again.",
        ) from None
    refused: list[Unreadable] = []
    members: dict[str, zipfile.ZipInfo] = {}
    twice: Counter[str] = Counter()
    for info in archive.infolist():
        parts = info.filename.replace("\\", "/").split("/")  # some Windows tools write \
        name = "/".join(part for part in parts if part not in ("", "."))
        reason = unsafe_reason(info.orig_filename)
        if info.is_dir() or (is_hidden(name) and not reason):
            continue
        if stat.S_ISLNK(info.external_attr >> 16):
            reason = reason or "it is a symbolic link"
        reason = reason or bomb_reason(info)
        if reason:
            refused.append(Unreadable(info.orig_filename, reason))
        elif name in members:
            refused.append(again(name, twice))
        else:
            members[name] = info
    read = _ZipReader(archive, members)
    images, others = sort_out(members, read.peek, ERRORS)
    return Listing(images, others, refused, read)


def bomb_reason(info: zipfile.ZipInfo) -> str | None:
    """Why a member cannot be unpacked in bounded memory; None if it can."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "it is compressed in a way without bound (bzip2, lzma); pack it again with deflate"
    ratio = info.file_size / max(info.compress_size, 1)
    if info.file_size > BOMB_BYTES and ratio > BOMB_RATIO:
        return f"decompression bomb: it swells {ratio:,.0f} times, to {info.file_size:,} bytes"
    return None


class _ZipReader:
    """Members of an open zip; one lock, because a ZipFile counts its readers without one."""

    def __init__(self, archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
        self._archive, self._members = archive, members
        self._lock = threading.Lock()

    def __call__(self, name: str) -> bytes:
        info = self._members[name]
        refuse_huge(info.file_size)
        with self._lock, self._archive.open(info) as file:
            return file.read(info.file_size)  # not all there is: the directory may lie

    def peek(self, name: str) -> bytes:
        """The first bytes of a member."""
        with self._lock, self._archive.open(self._members[name]) as file:
            return file.read(HEAD_BYTES)
