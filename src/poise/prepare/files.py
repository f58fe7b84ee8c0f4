"""Writing into the folder of a prepared data set: whole files or nothing, and what a full disk is.

A file is written beside its place, flushed to disk and renamed. So a process that is killed leaves
at most a part that nobody reads and that the next one removes.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from poise.errors import ArtifactError

WORK = ".work"  # what an interrupted preparation goes on from; removed when it is done
_PART = ".part"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[BinaryIO]:
    """A file that takes its place when the block succeeds.

    Raises:
        ArtifactError: the disk is full or read-only; what was there before is untouched.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}{_PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {path}: {error.strerror or error}.",
            expected="a folder with free space that may be written to",
            remedy="Free some space and run the same command again; it goes on where it stopped.",
        ) from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """A whole file, as `writing` does it."""
    with writing(path) as file:
        file.write(content)


def as_json(value: Mapping[str, Any], rows: Mapping[str, Sequence[Any]] | None = None) -> bytes:
    """Readable JSON; each list of `rows` has one line per entry, after the other keys."""
    parts = [f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in value.items()]
    for key, entries in (rows or {}).items():
        lines = ",\n  ".join(json.dumps(entry) for entry in entries)
        parts.append(f"{json.dumps(key)}: [\n  {lines}\n ]" if lines else f"{json.dumps(key)}: []")
    return ("{\n " + ",\n ".join(parts) + "\n}\n").encode()


def is_part(name: str) -> bool:
    """Whether a file of this name was left half written."""
    return name.startswith(".") and name.endswith(_PART)


def remove_parts(out: Path) -> None:
    """Remove what a killed process left half written."""
    for part in out.rglob(f".*{_PART}"):
        part.unlink(missing_ok=True)


def remove_work(out: Path) -> None:
    """Remove what only an interrupted preparation needs."""
    shutil.rmtree(out / WORK, ignore_errors=True)
    remove_parts(out)


def read_note(path: Path) -> dict[str, Any] | None:
    """JSON that this package wrote; None if it is not there or cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
