"""The engines: the same results in the same order, whatever dies on the way."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from poise import engines
from poise.engines import cores, ordered_map
from poise.errors import DataError, UsageError


@dataclass(frozen=True)
class Found:
    number: int
    picture: NDArray[np.uint8]
    parts: tuple[Any, ...]


def look(number: int) -> Found:
    if number < 0:
        raise ValueError("negative")
    picture = np.random.default_rng(number).integers(0, 256, (3, number % 5, 2), dtype=np.uint8)
    return Found(number, picture, (str(number), None, (number,)))


def process_and_threads(_: int) -> tuple[int, str, bool]:
    silent = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    return os.getpid(), os.environ["OMP_NUM_THREADS"], silent


def square(number: int) -> int:
    if number == 5:
        raise ValueError("five")
    return number * number


class PickyError(Exception):
    """Cannot be made again from its message."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


def picky(number: int) -> int:
    raise PickyError("can", "not")


def usage(number: int) -> int:
    raise UsageError("seven", expected="eight", remedy="add one")


def deadly(number: int, *, folder: Path) -> int:
    """Kills its process at 7 always, and at 3 the first time."""
    once = folder / "three"
    if number == 7 or (number == 3 and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return -number


def buried(number: int) -> int:
    return 1000 + number


def same(one: Found, other: Found) -> bool:
    return (
        (one.number, one.parts) == (other.number, other.parts)
        and one.picture.dtype == other.picture.dtype
        and np.array_equal(one.picture, other.picture)
    )


def test_order_and_results_do_not_depend_on_the_number_of_workers() -> None:
    alone = list(ordered_map(look, range(40), workers=1))
    assert [found.number for found in alone] == list(range(40))
    for one, other in zip(alone, ordered_map(look, range(40), workers=2), strict=True):
        assert same(one, other)


def test_workers_are_other_processes_with_one_thread_each_that_leave_ctrl_c_alone() -> None:
    found = set(ordered_map(process_and_threads, range(20), workers=2))
    assert 1 <= len(found) <= 2 and os.getpid() not in {pid for pid, _, _ in found}
    assert {(threads, silent) for _, threads, silent in found} == {("1", True)}
    assert not any(running(pid) for pid, _, _ in found)


@pytest.mark.parametrize(("jobs", "workers"), [([], 2), ([1], 2), ([1, 2], 1)])
def test_little_work_starts_no_process(
    jobs: list[int], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = list(ordered_map(process_and_threads, jobs, workers=workers))
    assert [pid for pid, _, _ in found] == [os.getpid()] * len(jobs)


def test_jobs_are_taken_as_needed_and_closing_ends_the_processes() -> None:
    taken: list[int] = []

    def jobs() -> Iterator[int]:
        for number in range(10**9):
            taken.append(number)
            yield number

    results = ordered_map(process_and_threads, jobs(), workers=2)
    pids = {next(results)[0] for _ in range(10)}
    assert len(taken) <= 10 + 2 * 2
    results.close()
    assert not any(running(pid) for pid in pids)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_arrives_as_it_was_raised_with_its_job(workers: int) -> None:
    results, got = ordered_map(square, range(10), workers=workers), []
    with pytest.raises(ValueError, match="five") as caught:
        got.extend(results)
    notes = "\n".join(caught.value.__notes__)
    assert got == [0, 1, 4, 9, 16] and "while working on 5" in notes
    assert workers == 1 or "in square" in notes
    with pytest.raises(UsageError, match="seven") as refused:
        list(ordered_map(usage, range(2), workers=workers))
    assert (refused.value.expected, refused.value.remedy) == ("eight", "add one")


def test_an_error_that_cannot_travel_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="PickyError: cannot"):
        list(ordered_map(picky, range(2), workers=2))


def test_a_job_that_kills_is_tried_twice_and_the_others_lose_nothing(tmp_path: Path) -> None:
    function = partial(deadly, folder=tmp_path)
    results = ordered_map(function, range(20), workers=2, on_death=buried)
    assert list(results) == [1007 if n == 7 else -n for n in range(20)]
    results = ordered_map(function, range(20), workers=2)
    with pytest.raises(DataError, match="worked on 7 ended without a word"):
        list(results)


def test_no_job_is_blamed_where_no_process_can_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "begin_worker", os.abort)
    with pytest.raises(engines.PoiseError, match="before it had begun"):
        list(ordered_map(look, range(4), workers=2, on_death=look))


def test_wrong_words_are_refused_at_the_call() -> None:
    with pytest.raises(UsageError, match="no engine 'dask'"):
        ordered_map(look, range(3), engine="dask")
    with pytest.raises(UsageError, match="at least one"):
        ordered_map(look, range(3), workers=0)


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"poise\[ray\]"):
        ordered_map(look, range(3), engine="ray")


@pytest.mark.parametrize(
    ("quota", "found"), [("max 100000", 4), ("150000 100000", 2), ("1000 100000", 1), ("x", 4)]
)
def test_cores_are_those_of_the_affinity_and_of_the_container(
    quota: str, found: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(engines, "_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 5}, raising=False)
    assert cores() == found


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('begin')\nimport math\nfrom poise.engines import ordered_map\n"
        "print(list(ordered_map(math.factorial, range(6), workers=2)))\n"
    )
    text = script.read_text()
    for arguments in ([str(script)], ["-c", text]):
        done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True)
        assert (done.stdout, done.stderr) == ("begin\n[1, 1, 2, 6, 24, 120]\n", "")


def test_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    code = textwrap.dedent("""
        import sys, time, itertools, test_engines
        from poise.engines import ordered_map
        results = ordered_map(test_engines.process_and_threads, itertools.count(), workers=2)
        print(*{next(results)[0] for _ in range(50)}, flush=True)
        time.sleep(60)
    """)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids and all(map(running, pids))
        parent.kill()
    ends = time.monotonic() + 20
    while any(map(running, pids)) and time.monotonic() < ends:
        time.sleep(0.02)
    assert not any(map(running, pids))


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
        return subprocess.run(["ps", "-p", str(pid)], capture_output=True).returncode == 0
    return state != "Z"
