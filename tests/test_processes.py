"""A process is known by its machine, its number and its start."""

import subprocess
import sys
from typing import Any

import psutil
import pytest

from poise.processes import is_running, this_process


def test_this_one_runs() -> None:
    assert is_running(this_process()) is True


def test_one_that_has_ended_does_not() -> None:
    ended = subprocess.Popen([sys.executable, "-c", "pass"])
    ended.wait()
    assert is_running(this_process() | {"pid": ended.pid}) is False
    assert is_running(this_process() | {"pid": 2**70}) is False


def test_a_number_given_anew_is_another_process() -> None:
    me = this_process()
    assert is_running(me | {"started": me["started"] - 60}) is False


@pytest.mark.skipif(sys.platform == "win32", reason="there are no zombies")
def test_one_that_nobody_waited_for_has_ended() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    written = this_process() | {
        "pid": child.pid,
        "started": psutil.Process(child.pid).create_time(),
    }
    assert is_running(written) is True
    child.kill()
    while psutil.Process(child.pid).status() != psutil.STATUS_ZOMBIE:
        pass
    assert is_running(written) is False
    child.wait()


@pytest.mark.parametrize(
    "written",
    [
        None,
        [],
        "x",
        {},
        {"machine": "another"},
        this_process() | {"machine": "another"},
        this_process() | {"pid": "1"},
        this_process() | {"pid": True},
        this_process() | {"pid": -1},
        this_process() | {"started": "soon"},
        this_process() | {"started": None},
    ],
)
def test_what_cannot_be_known_is_not_guessed(written: Any) -> None:
    assert is_running(written) is None
