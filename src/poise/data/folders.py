"""The files of a folder; symbolic links that lead out of it are never followed."""

import os
from pathlib import Path

from poise.data.layout import Unreadable, is_hidden, is_image
from poise.data.listing import HEAD_BYTES, Listing, refuse_huge, sort_out

ERRORS = (OSError, ValueError)
_TAR = ".tar"


def list_folder(root: Path) -> Listing:
    """All files below `root` that a file manager would show, in order of their names."""
    files: list[str] = []
    closed: list[str] = []
    refused: list[Unreadable] = []
    empty: list[str] = []
    _scan(root, "", root.resolve(), (files, closed, refused, empty))

    def peek(name: str) -> bytes:
        with (root / name).open("rb") as file:
            return file.read(HEAD_BYTES)

    images, others = sort_out(files, peek, ERRORS)
    warnings: tuple[str, ...] = ()
    if empty:
        some = "1 folder holds" if len(empty) == 1 else f"{len(empty)} folders hold"
        warnings = (f"{some} nothing, such as {empty[0]}.",)
    return Listing(images, others, refused, _FolderReader(root), closed, warnings=warnings)


def _scan(
    folder: Path,
    prefix: str,
    root: Path,
    found: tuple[list[str], list[str], list[Unreadable], list[str]],
) -> None:
    """Collect files, those that must not be opened, refused ones, and empty folders."""
    files, closed, refused, empty = found
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        refused.append(Unreadable(prefix or ".", f"the folder cannot be listed: {error.strerror}"))
        return
    if not entries and prefix:
        empty.append(prefix)
    for entry in entries:
        name = prefix + entry.name
        if is_hidden(entry.name):
            continue
        if entry.is_dir(follow_symlinks=False):
            _scan(folder / entry.name, name + "/", root, found)
        elif entry.is_symlink() and (reason := _link_reason(folder / entry.name, root)):
            if is_image(name) or name.endswith(_TAR) or entry.is_dir():
                refused.append(Unreadable(name, reason))
            else:
                closed.append(name)
        elif not entry.is_file():
            # A pipe named like an image would block the reader forever.
            refused.append(Unreadable(name, "it is not a regular file"))
        else:
            files.append(name)


def _link_reason(path: Path, root: Path) -> str | None:
    """Why a symbolic link is not followed; None if it names a file inside the folder."""
    try:
        target = path.resolve(strict=True)
    except (OSError, RuntimeError):
        return "it is a symbolic link to nothing"
    if not target.is_relative_to(root):
        return "it is a symbolic link that leads out of the folder"
    return "it is a symbolic link to a folder" if target.is_dir() else None


class _FolderReader:
    """Files below a folder, by name."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, name: str) -> bytes:
        path = self._root / name
        refuse_huge(path.stat().st_size)
        return path.read_bytes()
