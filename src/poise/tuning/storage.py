"""Where a study keeps its trials: a journal in its folder, or a database that many machines share.

The journal is Optuna's: one JSON record a line, only ever appended to. A database is named by a
URL, whose password no message shows.
"""

import importlib
import importlib.util
import os
import re
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from poise.errors import ArtifactError, UsageError, nearest

if TYPE_CHECKING:
    import optuna
    from sqlalchemy import URL

Answer = TypeVar("Answer")
JOURNAL = "journal.log"
_BEGINS = b'{"op_code":'  # each record of Optuna's journal
_BLOCK = 2**16  # bytes read at once in search of the end of a line
_CONNECT_SECONDS = 10
_SQLITE_SECONDS = 60  # to wait for another writer
_TRIES = 5  # where several processes make the tables of a new database at once
_DRIVERS = {"postgresql": "psycopg", "mysql": "pymysql", "sqlite": "pysqlite"}
_TIMED = ("psycopg", "psycopg2", "pymysql", "mysqldb")  # drivers that know connect_timeout
_INSTALL = {"psycopg": "pip install 'poise[postgresql]'"}
_SCHEMES = ("journal", "mysql", "postgres", "postgresql", "redis", "rediss", "sqlite")
_DATABASES = {"sqlalchemy", "psycopg", "redis", "pymysql"}
_PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds between tries to reach a storage that went away
_SAID = 500  # characters of what a server says
_RACED = re.compile(r"already exists|duplicate key|UNIQUE constraint|Duplicate entry")
_ADVICE = (  # what a message has in it, what was expected, what to do
    (
        r"(?i)password|authentication|access denied|role .* does not exist|pg_hba",
        "a user and a password that the server accepts",
        "Check both. In a URL, the signs @ : / of a password are written %40 %3A %2F.",
    ),
    (
        r"(?i)database .*does not exist|unknown database",
        "a database that is there; its tables are made by Poise",
        "Make it: createdb NAME, or CREATE DATABASE NAME.",
    ),
    (
        r"(?i)permission denied|readonly|read-only|unable to open|not a database|optuna version",
        "a database in which tables can be made and written",
        "Give the user the right to do so, or name another database.",
    ),
    (
        r"",
        f"a server that answers within {_CONNECT_SECONDS} s",
        "Check host and port, that the server runs, and that this machine may reach it.",
    ),
)
_EXAMPLE = "postgresql://USER:PASSWORD@HOST/DATABASE, or journal:///FOLDER/FILE"


def open_storage(root: Path, url: str | None) -> "optuna.storages.BaseStorage":
    """The storage at `url`; None: the file journal of the study in `root`, made if need be.

    Args:
        root: the folder of the study.
        url: `postgresql://`, `mysql://`, `sqlite:///FILE` (for one machine), `redis://`, or
            `journal:///FILE` for a journal elsewhere. A driver may be named as SQLAlchemy does.

    Raises:
        UsageError: no storage can be had: the scheme is unknown, a driver is missing, the server
            does not answer within 10 s or refuses, or a file cannot be written or is no journal.
        ArtifactError: a journal is damaged.
    """
    _quiet()
    if url is None:
        return _journal(root / JOURNAL)
    scheme, mark, _ = url.partition("://")
    family = scheme.lower().partition("+")[0]
    if not mark or family not in _SCHEMES:
        raise UsageError(
            f"No storage is known for {shown(url)}.",
            expected=f"a URL that begins with one of {', '.join(_SCHEMES)}: {_EXAMPLE}",
            remedy=nearest(family, _SCHEMES) if mark else "Write a URL, with ://.",
        )
    if family == "journal":
        place = urlsplit(url)
        if place.netloc or len(place.path) < 2:
            raise UsageError(f"{shown(url)} names no file.", expected="journal:///FOLDER/FILE")
        return _journal(Path(unquote(place.path)))
    return _redis(url) if family.startswith("redis") else _database(url, family)


def open_study(
    storage: "optuna.storages.BaseStorage", name: str, directions: list[str]
) -> "optuna.Study":
    """The study called `name`, made if it is not there.

    Args:
        directions: "minimize" or "maximize", one for each metric.

    Raises:
        ArtifactError: there is one of that name with other directions.
    """
    import optuna

    _quiet()
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        directions=[optuna.study.StudyDirection[direction.upper()] for direction in directions],
        load_if_exists=True,
    )
    found = [direction.name.lower() for direction in study.directions]
    if found != directions:
        raise ArtifactError(
            f"The storage has a study {name!r} with the directions {', '.join(found)}.",
            expected=", ".join(directions),
            remedy="Go on with the metrics it was begun with, or begin another study.",
        )
    return study


@contextmanager
def lock(root: Path, timeout: float = 120.0) -> Iterator[None]:
    """Held by one process of the study at a time; the system frees it when its holder is killed.

    Not to be taken twice by one thread. `timeout` is in seconds.

    Raises:
        ArtifactError: it was not free within `timeout`.
    """
    held = FileLock(root / "lock")
    try:
        held.acquire(timeout=timeout)
    except Timeout:
        raise ArtifactError(
            f"{root / 'lock'} was not free for {timeout:.0f} s.",
            expected="that whoever works on this study holds it for moments",
            remedy="Another `poise tune` on this folder hangs or was suspended, here or on another "
            "machine: look for it, and let it go on or end it. The file itself may stay.",
        ) from None
    try:
        yield
    finally:
        held.release()


@contextmanager
def spoken() -> Iterator[None]:
    """What a storage raises when it goes away in the middle, as an error of ours.

    Raises:
        ArtifactError: instead of what the storage raised.
    """
    try:
        yield
    except Exception as error:
        if not _is_of_storage(error):
            raise
        raise ArtifactError(
            f"The storage of the study does not answer any more: {type(error).__name__}.",
            expected="a database that is there until the study is over",
            remedy="Bring it back and go on with --resume: what was finished is kept there.",
        ) from error


def patiently(ask: Callable[[], Answer]) -> Answer:
    """`ask()`, again after some time where the storage is away for a moment.

    Raises:
        ArtifactError: it stayed away.
    """
    for pause in _PAUSES:
        try:
            return ask()
        except Exception as error:
            if not _is_of_storage(error):
                raise
            time.sleep(pause)
    with spoken():
        return ask()


def _is_of_storage(error: Exception) -> bool:
    """Whether a database or its driver raised it."""
    packages = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    name = type(error).__name__
    return bool(packages & _DATABASES) or name == "StorageInternalError"


def shown(url: str) -> str:
    """`url` as it may be printed or kept: `user:***@host`."""
    scheme, mark, rest = url.partition("://")
    before, _, after = rest.rpartition("@")
    user, colon, _ = before.partition(":")
    if colon:
        rest = f"{user}:***@{after}"
    return re.sub(r"(?i)(passw\w*|pwd|sslpassword)=[^&#]*", r"\1=***", f"{scheme}{mark}{rest}")


def _quiet() -> None:
    """Optuna speaks of each trial, of what may change in it and of packages it could use."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)


# --------------------------------------------------------------------------------------- journals


class _JournalLock:
    """The lock of a journal: on taking it, the half record of a writer that was killed goes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(f"{path}.lock", poll_interval=0.01)

    def acquire(self) -> bool:
        self._lock.acquire()
        try:
            _cut_tail(self._path)
        except BaseException:
            self._lock.release()
            raise
        return True

    def release(self) -> None:
        self._lock.release()


def _cut_tail(path: Path) -> None:
    """Shorten the file to its last newline."""
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - _BLOCK)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def _journal(path: Path) -> "optuna.storages.BaseStorage":
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    guard: Any = _JournalLock(path)  # has the two methods that Optuna's own locks have
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+b") as file:
            file.seek(0)
            head = file.read(len(_BEGINS))
        if not _BEGINS.startswith(head):  # which an empty one does
            raise UsageError(
                f"{path} is no journal of a study: it begins with {head!r}.",
                expected="a journal that Poise or Optuna wrote, or no file at all",
                remedy="Name another file; this one was left as it is.",
            )
        guard.acquire()
        guard.release()
    except OSError as error:
        raise UsageError(
            f"The journal {path} cannot be written: {error.strerror or error}.",
            expected="a folder in which files may be made and changed",
            remedy="Choose another folder, or give a database with --storage.",
        ) from error
    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=guard))
    except (ValueError, LookupError, TypeError, AttributeError, AssertionError) as error:
        raise ArtifactError(
            f"The journal {path} is damaged: {type(error).__name__}: {error}.",
            expected="one JSON record of Optuna on each line",
            remedy="Take it from a backup, or begin another study; finished trials keep their own "
            "folders.",
        ) from error


class _Records:
    """A journal without its snapshots, which Optuna would unpickle from the server."""

    def __init__(self, backend: Any) -> None:
        self.read_logs = backend.read_logs
        self.append_logs = backend.append_logs


def _redis(url: str) -> "optuna.storages.BaseStorage":
    if importlib.util.find_spec("redis") is None:
        raise _driver_missing(url, "redis")
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalRedisBackend

    redis: Any = importlib.import_module("redis")
    timed = url
    if "socket_connect_timeout=" not in url:
        timed += f"{'&' if '?' in url else '?'}socket_connect_timeout={_CONNECT_SECONDS}"
    records: Any = _Records(JournalRedisBackend(timed))
    try:
        return JournalStorage(records)
    except (redis.RedisError, ValueError) as error:
        raise _refused(url, str(error), urlsplit(url).password) from None


# -------------------------------------------------------------------------------------- databases


def _database(url: str, family: str) -> "optuna.storages.BaseStorage":
    from optuna.exceptions import StorageInternalError
    from sqlalchemy.exc import NoSuchModuleError, SQLAlchemyError

    place = _place(url, family)
    driver = place.drivername.partition("+")[2]
    for tried in range(1, _TRIES + 1):
        try:
            return _connected(place, driver)
        except (ImportError, NoSuchModuleError):
            raise _driver_missing(url, driver) from None
        except (SQLAlchemyError, StorageInternalError, RuntimeError, AssertionError) as error:
            cause = error.__cause__ if isinstance(error, StorageInternalError) else error
            text = str(getattr(cause, "orig", None) or cause or error)
            if tried == _TRIES or not _RACED.search(text):
                secrets = (place.password, place.query.get("password"))
                raise _refused(url, text, *secrets) from None
    raise AssertionError("the last try returns or raises")


def _place(url: str, family: str) -> "URL":
    """The URL with its driver; no message of SQLAlchemy's gets out, for they hold the URL."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    if url.partition("?")[0].count("@") > 1:
        raise UsageError(
            f"{shown(url)} has more than one @.", expected="a URL whose password has %40 for @"
        )
    try:
        place = make_url(url)
    except (ArgumentError, ValueError):
        raise UsageError(f"{shown(url)} cannot be read.", expected=f"a URL: {_EXAMPLE}") from None
    family = {"postgres": "postgresql"}.get(family, family)
    if family == "sqlite" and place.database in (None, "", ":memory:"):
        raise UsageError(f"{shown(url)} names no file.", expected="sqlite:///FOLDER/FILE")
    driver = place.drivername.partition("+")[2] or _DRIVERS[family]
    return place.set(drivername=f"{family}+{driver}")


def _connected(place: "URL", driver: str) -> "optuna.storages.BaseStorage":
    from optuna.storages import RDBStorage

    arguments: dict[str, Any] = {}
    if place.get_backend_name() == "sqlite":
        arguments["timeout"] = _SQLITE_SECONDS
    elif driver in _TIMED and "connect_timeout" not in place.query:
        arguments["connect_timeout"] = _CONNECT_SECONDS
    storage = RDBStorage.__new__(RDBStorage)  # at hand, so that what it opens is closed again
    try:
        RDBStorage.__init__(
            storage,
            place.render_as_string(hide_password=False),
            engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
        )
    except BaseException:
        if hasattr(storage, "engine"):
            storage.engine.dispose()
        raise
    weakref.finalize(storage, storage.engine.dispose)
    return storage


def _driver_missing(url: str, driver: str) -> UsageError:
    return UsageError(
        f"{shown(url)} needs the package {driver}, which is not installed.",
        remedy=_INSTALL.get(driver, f"pip install {driver}"),
    )


def _refused(url: str, text: str, *secrets: Any) -> UsageError:
    """What the server or its driver said, without the `secrets`, and what to do about it."""
    text = " ".join(text.split())
    expected, remedy = next(words for sign, *words in _ADVICE if re.search(sign, text))
    for secret in filter(None, secrets):
        text = text.replace(str(secret), "***")
    return UsageError(
        f"The storage {shown(url)} cannot be used: {text[:_SAID]}",
        expected=expected,
        remedy=remedy,
    )
