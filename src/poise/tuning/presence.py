"""Which workers live: each keeps touching a file of its own while it does."""

import os
import platform
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

from poise.artifacts import read_json, write_json
from poise.errors import ArtifactError
from poise.processes import is_running, this_process

_EVERY = 5.0  # seconds between two touches
_DEAD = 120.0  # seconds without one after which a worker of another machine is given up


@contextmanager
def present(folder: Path) -> Iterator[str]:
    """While the block runs this process counts as living; yields its name."""
    name = f"{platform.node()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"
    path = folder / f"{name}.json"
    write_json(path, this_process())
    over = Event()

    def beat() -> None:
        while not over.wait(_EVERY):
            try:
                os.utime(path)
            except OSError:  # the disk is away for a moment, or for good: then others will see
                continue

    thread = Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield name
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def living(folder: Path, me: str) -> set[str]:
    """The names of the workers that live; times are compared as the file system tells them."""
    mine = folder / f"{me}.json"
    os.utime(mine)
    now = mine.stat().st_mtime
    return {path.stem for path in folder.glob("*.json") if _lives(path, now)}


def _lives(path: Path, now: float) -> bool:
    try:
        raw = read_json(path)
        here = is_running(raw)  # also one that slept for hours
        return now - path.stat().st_mtime <= _DEAD if here is None else here
    except (OSError, ArtifactError):
        return False
