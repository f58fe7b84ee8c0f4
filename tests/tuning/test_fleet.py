"""Workers in processes of their own: what they see, how they end, and what follows a death."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poise.engines import cores
from poise.errors import Interrupted, PoiseError, UsageError
from poise.signals import catch_signals
from poise.tuning import fleet
from poise.tuning.fleet import run_workers


@pytest.fixture(autouse=True)
def _prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_NEWS_SECONDS", 0.05)


@pytest.fixture
def one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_devices", lambda: ["0"])


def look(seat: int) -> dict[str, Any]:
    import torch

    return {
        "seat": seat,
        "pid": os.getpid(),
        "session": os.getsid(0),
        "threads": (os.environ["OMP_NUM_THREADS"], torch.get_num_threads()),
        "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "deaf": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, set()),
    }


def work(seat: str, *, folder: Path) -> str:
    """Does what its seat is called; `deadly` and `fatal` kill themselves, once or always."""
    with (folder / seat).open("a") as file:
        file.write(f"{os.getpid()}\n")
    begun = len((folder / seat).read_text().split())
    if seat == "fatal" or (seat == "deadly" and begun == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if seat == "wrong":
        raise UsageError("found", expected="expected", remedy="remedy")
    if seat.startswith("patient"):
        with catch_signals() as caught:
            (folder / f"{seat}-ready").touch()
            while not caught.names:
                time.sleep(0.01)
            time.sleep(0.1)  # state is saved
            (folder / f"{seat}-saved").write_text(" ".join(caught.names))
        raise Interrupted("Stopped by a signal; the state is saved.")
    return f"{seat} {begun}"


def all_there(folder: Path, *names: str) -> bool:
    return all((folder / name).exists() for name in names)


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.01)


def running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return state.stdout.strip() not in ("",) and not state.stdout.startswith("Z")


def pids(folder: Path, *names: str) -> list[int]:
    return [int(pid) for name in names for pid in (folder / name).read_text().split()]


def silence() -> None:
    pass


def test_one_seat_works_here_and_the_news_go_on() -> None:
    news: list[bool] = []
    until_told = threading.Event()

    def on_news() -> None:
        news.append(threading.current_thread() is threading.main_thread())
        until_told.set()

    def here(seat: str) -> int:
        assert threading.current_thread() is threading.main_thread()
        assert until_told.wait(30)
        return os.getpid()

    assert run_workers(here, ["seat"], engine="local", on_news=on_news) == [os.getpid()]
    assert news[0] is False and news[-1] is True
    with pytest.raises(ZeroDivisionError):
        run_workers(lambda _: 1 // 0, [1], engine="local", on_news=on_news)


def test_each_seat_has_a_process_with_its_share_of_cores_and_a_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet, "_devices", lambda: ["GPU-a", "GPU-b"])
    news: list[int] = []
    found = run_workers(look, [5, 6, 7], engine="local", on_news=lambda: news.append(1))
    assert [one["seat"] for one in found] == [5, 6, 7] and news
    assert [one["device"] for one in found] == ["GPU-a", "GPU-b", "GPU-a"]
    share = max(1, cores() // 3)
    assert {one["threads"] for one in found} == {(str(share), share)}
    assert len({one["pid"] for one in found} | {os.getpid()}) == 4
    assert all(one["session"] == one["pid"] and one["deaf"] for one in found)
    assert all(not one["blocked"] & {signal.SIGINT, signal.SIGTERM} for one in found)
    assert not any(running(one["pid"]) for one in found)


def test_devices_are_those_that_this_process_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert fleet._devices() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert fleet._devices() == ["3", "5"]


@pytest.mark.usefixtures("one_device")
def test_a_worker_that_was_killed_is_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    found = run_workers(
        partial(work, folder=tmp_path),
        ["deadly", "calm"],
        engine="local",
        on_news=silence,
        say=said.append,
    )
    assert found == ["deadly 2", "calm 1"]
    assert said == ["Worker 1 of 2 ended without a word (SIGKILL); it is started again."]


@pytest.mark.usefixtures("one_device")
def test_a_worker_that_always_dies_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_RESTARTS", 3)
    said: list[str] = []
    function = partial(work, folder=tmp_path)
    found = run_workers(
        function, ["fatal", "calm"], engine="local", on_news=silence, say=said.append
    )
    assert found == ["calm 1"]
    assert len(pids(tmp_path, "fatal")) == 4 == len(said) and said[-1].endswith("and is lost.")
    with pytest.raises(PoiseError, match="All 2 workers"):
        run_workers(function, ["fatal"] * 2, engine="local", on_news=silence, say=said.append)


@pytest.mark.usefixtures("one_device")
def test_an_error_stops_the_others_who_save_their_state_and_arrives_as_it_was(
    tmp_path: Path,
) -> None:
    def on_news() -> None:
        if all_there(tmp_path, "patient-ready"):
            (tmp_path / "go").touch()

    function = partial(wait_for_go, folder=tmp_path)
    with pytest.raises(UsageError, match="found") as caught:
        run_workers(function, ["patient", "wrong"], engine="local", on_news=on_news)
    assert (caught.value.expected, caught.value.remedy) == ("expected", "remedy")
    assert (tmp_path / "patient-saved").read_text() == "SIGTERM"
    assert not any(map(running, pids(tmp_path, "patient", "wrong")))


def wait_for_go(seat: str, *, folder: Path) -> str:
    if seat == "wrong":
        until(lambda: (folder / "go").exists())
    return work(seat, folder=folder)


def parent_of_two(folder: Path) -> "subprocess.Popen[str]":
    code = textwrap.dedent("""
        import sys
        from functools import partial
        from pathlib import Path
        import test_fleet
        from poise.tuning import fleet
        fleet._devices = lambda: []
        work = partial(test_fleet.work, folder=Path(sys.argv[1]))
        try:
            fleet.run_workers(
                work, ["patient1", "patient2"], engine="local", on_news=test_fleet.silence
            )
        except KeyboardInterrupt:
            print("interrupted", flush=True)
    """)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    until(lambda: all_there(folder, "patient1-ready", "patient2-ready"))
    return parent


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_reaches_each_worker_once(
    number: signal.Signals, tmp_path: Path
) -> None:
    with parent_of_two(tmp_path) as parent:
        os.killpg(parent.pid, number)  # as a terminal does
        try:
            assert parent.communicate(timeout=30)[0] == "interrupted\n"
        finally:
            parent.kill()
    saved = [(tmp_path / f"patient{n}-saved").read_text() for n in (1, 2)]
    assert saved == ["SIGTERM", "SIGTERM"]
    assert not any(map(running, pids(tmp_path, "patient1", "patient2")))


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    with parent_of_two(tmp_path) as parent:
        workers = pids(tmp_path, "patient1", "patient2")
        assert all(map(running, workers))
        parent.kill()
    until(lambda: not any(map(running, workers)))


def test_wrong_words_are_refused() -> None:
    with pytest.raises(UsageError, match="no engine 'dask'"):
        run_workers(look, [1, 2], engine="dask", on_news=silence)
    assert run_workers(look, [], engine="local", on_news=silence) == []
    assert multiprocessing.active_children() == []
