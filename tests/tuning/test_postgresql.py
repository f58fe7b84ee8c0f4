"""A study on a real PostgreSQL server, which the test starts in a folder of its own."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from optuna.trial import TrialState
from studies import run, variant

from poise.errors import UsageError
from poise.tuning.storage import open_storage, open_study

pytest.importorskip("psycopg")
PASSWORD = "a@b:c/d%e{f}"  # each of them means something in a URL or in Optuna


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path  # of its socket

    def url(
        self,
        database: str = "postgres",
        *,
        password: str = PASSWORD,
        port: int | None = None,
        user: str = "poise",
        scheme: str = "postgresql",
    ) -> str:
        secret = quote(password, safe="")
        return f"{scheme}://{user}:{secret}@127.0.0.1:{port or self.port}/{database}"


def binaries() -> Path | None:
    """The folder with initdb, pg_ctl and postgres, of the newest version there is."""
    on_path = shutil.which("pg_ctl")
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda p: float(p.parent.name), reverse=True
    )
    for folder in [*([Path(on_path).resolve().parent] if on_path else []), *found]:
        if all((folder / name).exists() for name in ("initdb", "pg_ctl", "postgres")):
            return folder
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(folder: Path, programs: Path) -> Iterator[Server]:
    """initdb refuses to run as root, so that root lends the folder to the user nobody."""
    owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    if owner:
        os.chown(folder, owner.pw_uid, owner.pw_gid)

    def call(name: str, *arguments: str) -> None:
        with output.open("a") as file:  # a pipe would be held open by the server
            done = subprocess.run(
                [str(programs / name), "-D", str(folder / "data"), *arguments],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                user=owner.pw_uid if owner else None,
                group=owner.pw_gid if owner else None,
                extra_groups=[] if owner else None,
            )
        assert done.returncode == 0, output.read_text()

    output, password = folder / "output", folder / "password"
    password.write_text(PASSWORD)
    port = free_port()
    call("initdb", "-U", "poise", "-A", "scram-sha-256", "--pwfile", str(password), "--no-sync")
    call(
        "pg_ctl",
        *("start", "-w", "-t", "60", "-l", "log"),
        *("-o", f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"),
    )
    try:
        yield Server(port, folder)
    finally:
        call("pg_ctl", "stop", "-w", "-m", "immediate")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL here: neither pg_ctl on PATH nor /usr/lib/postgresql/*/bin")
    with tempfile.TemporaryDirectory(prefix="poise-pg-", dir="/tmp") as folder:  # a socket's path
        Path(folder).chmod(0o755)  # is short, and each folder above it open to the user
        with started(Path(folder), programs) as running:
            yield running


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The name of an empty one."""
    import psycopg

    with psycopg.connect(server.url(), autocommit=True) as session:
        session.execute("drop database if exists tuning with (force)")
        session.execute("create database tuning")
    return "tuning"


def side_by_side(code: str, urls: Sequence[str]) -> list[int]:
    begin = "import sys; from pathlib import Path; from poise.tuning.storage import *\n"
    processes = [subprocess.Popen([sys.executable, "-c", begin + code, url]) for url in urls]
    return [process.wait(120) for process in processes]


def test_two_processes_share_a_study_and_its_numbers(
    server: Server, database: str, tmp_path: Path
) -> None:
    code = (
        "study = open_study(open_storage(Path(), sys.argv[1]), 'study', ['minimize', 'maximize'])\n"
        "for _ in range(15):\n"
        "    trial = study.ask()\n"
        "    trial.set_user_attr('process', trial.suggest_float('x', 0, 1))\n"
        "    study.tell(trial, (1.0, trial.number))\n"
    )
    socket_url = server.url(database).replace(f"127.0.0.1:{server.port}", "")
    by_socket = f"{socket_url}?host={server.folder}&port={server.port}"
    urls = [server.url(database, scheme="postgres"), by_socket]
    assert side_by_side(code, urls) == [0, 0]
    study = open_study(open_storage(tmp_path, urls[0]), "study", ["minimize", "maximize"])
    assert [trial.number for trial in study.trials] == list(range(30))
    assert all(trial.state == TrialState.COMPLETE for trial in study.trials)
    assert [trial.values for trial in study.trials] == [[1.0, float(n)] for n in range(30)]
    assert list(tmp_path.iterdir()) == []


def test_many_may_be_the_first_to_open_a_database(server: Server, database: str) -> None:
    code = "open_study(open_storage(Path(), sys.argv[1]), 'study', ['minimize']).ask()"
    assert side_by_side(code, [server.url(database)] * 4) == [0] * 4
    study = open_study(open_storage(Path(), server.url(database)), "study", ["minimize"])
    assert [trial.number for trial in study.trials] == list(range(4))


def refused(url: str) -> str:
    begun = time.monotonic()
    with pytest.raises(UsageError) as caught:
        open_storage(Path(), url)
    assert time.monotonic() - begun < 15
    text = str(caught.value)
    assert PASSWORD not in text and quote(PASSWORD, safe="") not in text
    assert "hunter2" not in text and "***@" in text
    return text


def test_a_server_that_refuses_is_understood(server: Server) -> None:
    assert "a user and a password" in refused(server.url(password="hunter2"))
    assert "a user and a password" in refused(server.url(user="nobody"))
    assert 'database "none" does not exist' in refused(server.url("none"))
    assert "createdb" in refused(server.url("none"))
    assert "a server that answers" in refused(server.url(port=free_port()))


def test_a_server_that_may_not_be_written_to_is_understood(server: Server, database: str) -> None:
    import psycopg

    with psycopg.connect(server.url(database), autocommit=True) as session:
        session.execute("create role reader login password 'hunter2'")
        session.execute("revoke create on schema public from public")
    url = server.url(database, user="reader", password="hunter2")
    assert "tables can be made" in refused(url)


def test_a_server_that_never_answers_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.tuning.storage._CONNECT_SECONDS", 2)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        server = Server(deaf.getsockname()[1], Path())
        assert "a server that answers" in refused(server.url())


def test_a_whole_study_with_halving_and_repeats(
    server: Server, database: str, tmp_path: Path
) -> None:
    """The same trials as in memory, whatever keeps them."""
    plan = variant(trials=12, rungs=(1 / 9, 1 / 3, 1.0), seeds=2)
    storage = open_storage(tmp_path, server.url(database))
    kept, _ = run(tmp_path / "database", plan, storage=storage)
    known, _ = run(tmp_path / "memory", plan)
    assert [t.params for t in kept.trials] == [t.params for t in known.trials]
    assert [t.state for t in kept.trials] == [t.state for t in known.trials]
    assert [t.values for t in kept.trials] == [t.values for t in known.trials]
