"""The members of one tar or of many (webdataset shards), read where they lie.

Nothing is extracted: an index of offsets and sizes is made once from the headers, and a member is
read by seeking. Links, devices, sparse files and names that lead out are refused by name.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from poise.data.layout import SPLIT_NAMES, Split, Unreadable, again, is_hidden, unsafe_reason
from poise.data.listing import HEAD_BYTES, MAX_FILE_BYTES, Listing, refuse_huge, sort_out
from poise.errors import DataError

ERRORS = (OSError, ValueError)
# A damaged or hostile header can claim any size, and name a header after a header without end.
_HEADER_ERRORS = (*ERRORS, tarfile.TarError, EOFError, OverflowError, MemoryError, RecursionError)
_UNPACKERS = {
    **dict.fromkeys((".tar.gz", ".tgz"), "gunzip"),
    **dict.fromkeys((".tar.bz2", ".tbz", ".tbz2"), "bunzip2"),
    **dict.fromkeys((".tar.xz", ".txz"), "unxz"),
    **dict.fromkeys((".tar.zst", ".tzst"), "unzstd"),
}
_MAGIC = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True)
class _Member:
    path: Path
    offset: int  # bytes from the start of the tar
    size: int


def is_tar(name: str) -> bool:
    """Whether the name is that of a tar, plain or compressed."""
    return name.lower().endswith((".tar", *_UNPACKERS))


def list_tars(root: Path, names: list[str]) -> Listing:
    """All members that are files, of the tars `names` below `root`.

    A member keeps its own name if no other tar holds the same; else all names begin with that of
    their tar, and folders name no classes then. Tars that are all named after a split
    (`train-0000.tar`, `val/0001.tar`; at least one for training) give their images to it.

    Raises:
        DataError: a single tar that is compressed or cannot be read; of several, a bad one is
            refused by name.
    """
    found: dict[str, dict[str, _Member]] = {}
    refused: list[Unreadable] = []
    for name in names:
        members, problems = _index(root / name)
        if len(names) == 1 and not members and problems and problems[-1].name == "":
            raise DataError(
                f"{root / name}: {problems[-1].reason}.",
                expected="a whole, plain .tar file",
                remedy=f"Run `{unpacker} {root / name}` and give the result."
                if (unpacker := _unpacker(root / name))
                else "Download or pack it again.",
            )
        found[name] = members
        prefix = "" if len(names) == 1 else name
        refused += [
            Unreadable("/".join(part for part in (prefix, p.name) if part) or name, p.reason)
            for p in problems
        ]
    unique = len(set().union(*found.values())) == sum(map(len, found.values()))
    given = _splits_of(names)
    index: dict[str, _Member] = {}
    splits: dict[str, Split] = {}
    for name, members in found.items():
        stem = "" if unique else name[: -len(".tar")] + "/"
        for inner, member in members.items():
            index[stem + inner] = member
            if name in given:
                splits[stem + inner] = given[name]
    read = _TarReader(index)
    images, others = sort_out(index, read.peek, ERRORS)
    return Listing(images, others, refused, read, given=splits, folders=unique)


def _splits_of(names: list[str]) -> dict[str, Split]:
    """Tar -> split, when every tar is named after one and at least one after training."""
    splits: dict[str, Split] = {}
    for name in names:
        words = [w for w in re.split(r"[^a-z]+", name.lower()) if w in SPLIT_NAMES]
        if words:
            splits[name] = SPLIT_NAMES[words[-1]]
    return splits if len(splits) == len(names) and "train" in splits.values() else {}


def _index(path: Path) -> tuple[dict[str, _Member], list[Unreadable]]:
    """The files in a tar; what is refused. A problem without a name ends the tar early."""
    members: dict[str, _Member] = {}
    refused: list[Unreadable] = []
    twice: Counter[str] = Counter()
    if unpacker := _unpacker(path):
        text = f"it is compressed; unpack it with {unpacker}, so that its images can be reached"
        return members, [Unreadable("", text)]
    try:
        for info in _headers(path):
            name = "/".join(part for part in info.name.split("/") if part not in ("", "."))
            reason = unsafe_reason(info.name)
            if info.isdir() or (is_hidden(name) and not reason):
                continue
            reason = reason or _refusal(info)
            if reason:
                refused.append(Unreadable(info.name, reason))
            elif name in members:
                refused.append(again(name, twice))
            else:
                members[name] = _Member(path, info.offset_data, info.size)
    except _HEADER_ERRORS as error:
        refused.append(Unreadable("", f"it is damaged or ends early: {error}"))
    return members, refused


def _headers(path: Path) -> Iterator[tarfile.TarInfo]:
    size = path.stat().st_size
    last = -1
    with tarfile.open(path, "r:", errorlevel=2) as tar:
        while (info := tar.next()) is not None:
            if info.offset <= last or info.size < 0:
                raise ValueError("its headers run backwards")
            if info.isreg() and not info.issparse() and info.offset_data + info.size > size:
                raise ValueError(f"{info.name} is cut off")
            last = info.offset
            cast(Any, tar).members.clear()  # a list of a million headers is not needed
            yield info
        end = tar.offset
    # tarfile takes a damaged header for the end of the archive.
    with path.open("rb") as file:
        file.seek(end)
        if (block := file.read(tarfile.BLOCKSIZE)) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"a damaged header at byte {end}" if block else "no end mark")


def _refusal(info: tarfile.TarInfo) -> str | None:
    if info.issym() or info.islnk():
        return "it is a link"
    if info.issparse():
        return "it is a sparse file"
    if not info.isreg():
        return "it is not a regular file"
    if info.size > MAX_FILE_BYTES:
        return f"it has {info.size / 2**20:.0f} MiB, more than {MAX_FILE_BYTES // 2**20}"
    return None


def _unpacker(path: Path) -> str | None:
    """The program that unpacks a compressed tar; None for a plain one."""
    for suffix, program in _UNPACKERS.items():
        if path.name.lower().endswith(suffix):
            return program
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return None
    return next((program for magic, program in _MAGIC.items() if head.startswith(magic)), None)


class _TarReader:
    """Members by name; each read opens the tar anew, so threads share nothing."""

    def __init__(self, members: dict[str, _Member]) -> None:
        self._members = members

    def __call__(self, name: str) -> bytes:
        member = self._members[name]
        refuse_huge(member.size)
        return self._bytes(member, member.size)

    def peek(self, name: str) -> bytes:
        """The first bytes of a member."""
        member = self._members[name]
        return self._bytes(member, min(HEAD_BYTES, member.size))

    def _bytes(self, member: _Member, size: int) -> bytes:
        with member.path.open("rb") as file:
            file.seek(member.offset)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"the tar {member.path.name} ends early")
        return content
