"""The journal survives whatever kills its writers; a storage that cannot be used says why."""

import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState

from poise.errors import ArtifactError, PoiseError, UsageError
from poise.tuning import storage
from poise.tuning.storage import lock, open_storage, open_study, shown

KILLS = 50


def finish(study: optuna.Study, value: float) -> int:
    trial = study.ask()
    trial.suggest_float("x", 0, 1)
    trial.set_user_attr("folder", f"trials/{trial.number:04d}")
    study.tell(trial, value)
    return trial.number


def numbers(root: Path) -> list[int]:
    trials = open_study(open_storage(root, None), "study", ["minimize"]).trials
    return [trial.number for trial in trials]


def work_for_ever(root: Path, pipe: int) -> None:
    """In a forked process: finish trials, and confirm each as a line once it is told."""
    study = open_study(open_storage(root, None), "study", ["minimize"])
    while True:
        os.write(pipe, f"{finish(study, time.time())}\n".encode())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # to fork beside threads
def test_fifty_kills_lose_no_finished_trial_and_count_none_twice(tmp_path: Path) -> None:
    open_study(open_storage(tmp_path, None), "study", ["minimize"])
    confirmed: list[int] = []
    for kill in range(KILLS):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                work_for_ever(tmp_path, write)
            finally:
                os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            said = [pipe.readline()]  # it is at work
            time.sleep(0.002 * (kill % 17))  # anywhere in a trial
            os.kill(child, signal.SIGKILL)
            said += pipe.read().split(b"\n")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        confirmed += [int(line) for line in said if line.strip()]
    trials = open_study(open_storage(tmp_path, None), "study", ["minimize"]).trials
    assert [trial.number for trial in trials] == list(range(len(trials)))
    finished = [trial.number for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(confirmed) == len(set(confirmed)) >= KILLS
    assert set(confirmed) <= set(finished) and len(finished) <= len(confirmed) + KILLS
    assert all(t.user_attrs["folder"] == f"trials/{t.number:04d}" for t in trials if t.values)
    lines = (tmp_path / storage.JOURNAL).read_bytes().split(b"\n")
    assert all(json.loads(line) for line in lines[:-1])


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 500), junk=st.binary(max_size=80).filter(lambda b: b"\n" not in b))
def test_a_half_record_is_cut_and_all_whole_ones_stay(
    tmp_path_factory: pytest.TempPathFactory, cut: int, junk: bytes
) -> None:
    root = tmp_path_factory.mktemp("study")
    study = open_study(open_storage(root, None), "study", ["minimize"])
    for _ in range(3):
        finish(study, 1.0)
    journal = root / storage.JOURNAL
    whole = journal.read_bytes()
    last = whole.rstrip(b"\n").rsplit(b"\n", 1)[1]
    journal.write_bytes(whole + last[: min(cut, len(last))] + junk)
    finish(study, 2.0)  # of a process that had the journal open all the while
    assert journal.read_bytes().startswith(whole)
    assert finish(open_study(open_storage(root, None), "study", ["minimize"]), 3.0) == 4
    assert numbers(root) == list(range(5))
    assert all(json.loads(line) for line in journal.read_bytes().splitlines())


@pytest.mark.parametrize("tail", [0, 1, 2**16 - 1, 2**16, 3 * 2**16 + 5])
@pytest.mark.parametrize("head", [b"", b"one\n", b"one\ntwo\n"])
def test_a_tail_of_any_length_is_cut_at_the_last_newline(
    tmp_path: Path, head: bytes, tail: int
) -> None:
    path = tmp_path / "log"
    path.write_bytes(head + b"\0" * tail)
    storage._cut_tail(path)
    assert path.read_bytes() == head


def test_two_processes_share_a_journal(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from poise.tuning.storage import *\n"
        "study = open_study(open_storage(Path(sys.argv[1]), None), 'study', ['minimize'])\n"
        "for _ in range(40): study.tell(study.ask(), 1.0)\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    trials = open_study(open_storage(tmp_path, None), "study", ["minimize"]).trials
    assert [(t.number, t.state) for t in trials] == [(n, TrialState.COMPLETE) for n in range(80)]


def test_a_study_of_other_metrics_is_refused(tmp_path: Path) -> None:
    place = open_storage(tmp_path, None)
    open_study(place, "study", ["minimize", "maximize"])
    assert open_study(place, "study", ["minimize", "maximize"]).trials == []
    with pytest.raises(ArtifactError, match=r"directions minimize, maximize\.\nExpected: minimize"):
        open_study(place, "study", ["minimize"])
    assert open_study(place, "another", ["minimize"]).trials == []


def test_the_lock_of_a_study_is_free_again_after_it_and_after_its_holder_was_killed(
    tmp_path: Path,
) -> None:
    code = (
        "import sys, time; from pathlib import Path; from poise.tuning.storage import lock\n"
        "with lock(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)\n"
    )
    with lock(tmp_path):
        pass
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ArtifactError, match="hangs or was suspended"), lock(tmp_path, 0.2):
            raise AssertionError("it is held")
        holder.kill()
    with lock(tmp_path, 20.0):
        pass


# ------------------------------------------------------------------------------- what is refused


def refused(root: Path, url: str | None, kind: type[PoiseError] = UsageError) -> str:
    with pytest.raises(kind) as caught:
        open_storage(root, url)
    assert "secret" not in str(caught.value)
    error: BaseException | None = caught.value
    while error is not None and not error.__suppress_context__:  # what a traceback would show
        error = error.__cause__ or error.__context__
        assert "secret" not in str(error)
    return str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("postgre://u:secret@h/d", r"Did you mean 'postgres'"),
        ("study.db", r"with ://"),
        ("oracle://u:secret@h/d", r"No storage is known for oracle://u:***@h/d"),
        ("postgresql://u:secret@h:port/d", r"cannot be read"),
        ("postgresql://u:sec@secret@h/d", r"%40 for @"),
        ("postgresql+nonsense://u:secret@h/d", r"needs the package nonsense"),
        ("postgresql+psycopg2://u:secret@h/d", r"pip install psycopg2"),
        ("mysql://u:secret@h/d", r"needs the package pymysql"),
        ("sqlite://", r"names no file"),
        ("sqlite:///:memory:", r"names no file"),
        ("sqlite:////no/such/folder/study.db", r"unable to open"),
        ("journal://folder/file", r"names no file"),
        ("journal:///proc/poise/study.log", r"cannot be written"),
        ("postgresql://u:secret@127.0.0.1:9/d", r"server that answers within 10 s"),
        ("postgresql://127.0.0.1:9/d?password=secret", r"server that answers within 10 s"),
    ],
)
def test_a_storage_that_cannot_be_had_says_why(url: str, said: str, tmp_path: Path) -> None:
    assert said in refused(tmp_path, url)


def test_without_psycopg_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "poise[postgresql]" in refused(tmp_path, "postgres://u:secret@h/d")


def test_without_redis_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install redis" in refused(tmp_path, "redis://u:secret@h")


def test_rubbish_is_no_journal_and_stays_as_it_was(tmp_path: Path) -> None:
    journal = tmp_path / storage.JOURNAL
    for rubbish in (b"\x89PNG\r\n\x1a\n\0\0", b"\0" * 100, b"no newline at all", b'{"a": 1}\n'):
        journal.write_bytes(rubbish)
        assert "is no journal" in refused(tmp_path, None)
        assert journal.read_bytes() == rubbish


def test_a_journal_damaged_within_is_told(tmp_path: Path) -> None:
    finish(open_study(open_storage(tmp_path, None), "study", ["minimize"]), 1.0)
    journal = tmp_path / storage.JOURNAL
    first, rest = journal.read_bytes().split(b"\n", 1)
    for broken in (first[:-9] + b"\n" + rest, b'{"op_code":7}\n', b'{"op_code":"x"}\n'):
        journal.write_bytes(broken)
        assert "is damaged" in refused(tmp_path, None, ArtifactError)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "cannot be written" in refused(tmp_path / "file", None)
    (tmp_path / "study" / storage.JOURNAL).mkdir(parents=True)
    assert "cannot be written" in refused(tmp_path / "study", None)
    if os.geteuid() != 0:
        (tmp_path / "read-only").mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
        assert "cannot be written" in refused(tmp_path / "read-only", None)


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me@host/db?password=secret&x=1", "postgresql://me@host/db?password=***&x=1"),
        ("redis://:secret@host", "redis://:***@host"),
        ("sqlite:///a:b/study.db", "sqlite:///a:b/study.db"),
        ("postgresql://host/db", "postgresql://host/db"),
    ],
)
def test_a_url_is_shown_without_its_password(url: str, printed: str) -> None:
    assert shown(url) == printed


@given(st.text(alphabet="abz@:/?#%&= ", max_size=12), st.sampled_from(["host", "host/db?x=1"]))
def test_no_password_is_shown_whatever_its_signs(signs: str, rest: str) -> None:
    assert "secret" not in shown(f"postgresql://me:secret{signs}secret@{rest}")


def test_sqlite_and_a_journal_elsewhere_keep_a_study(tmp_path: Path) -> None:
    for url in (f"sqlite:///{tmp_path}/study.db", f"journal://{tmp_path}/a%20b/study.log"):
        assert finish(open_study(open_storage(tmp_path, url), "study", ["minimize"]), 1.0) == 0
        assert finish(open_study(open_storage(tmp_path, url), "study", ["minimize"]), 1.0) == 1
    assert (tmp_path / "a b" / "study.log").exists()
    with sqlite3.connect(tmp_path / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone() == (2,)
    database.close()


def test_records_on_redis_are_never_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Server:
        """Optuna's client of Redis, with the records in a list."""

        records: list[dict[str, Any]] = []  # noqa: RUF012

        def __init__(self, url: str) -> None:
            assert url == "redis://host?socket_connect_timeout=10"

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self.records.extend(logs)

        def read_logs(self, start: int) -> Iterator[dict[str, Any]]:
            yield from self.records[start:]

        def load_snapshot(self) -> bytes:
            raise AssertionError("a pickle from elsewhere")

        save_snapshot = load_snapshot

    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "redis", type("redis", (), {"RedisError": OSError}))
    monkeypatch.setattr("optuna.storages.journal.JournalRedisBackend", Server)
    for count in range(60):  # Optuna makes a snapshot after some 100 records
        study = open_study(open_storage(tmp_path, "redis://host"), "study", ["minimize"])
        assert finish(study, 1.0) == count
