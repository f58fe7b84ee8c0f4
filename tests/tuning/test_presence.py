"""Who counts as living: by its number on this machine, by its touches from another."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from poise.processes import this_process
from poise.tuning.presence import living, present


def test_a_worker_lives_while_its_block_runs(tmp_path: Path) -> None:
    with present(tmp_path) as me, present(tmp_path) as other:
        assert living(tmp_path, me) == {me, other}
    assert not list(tmp_path.iterdir())


def planted(folder: Path, name: str, *, age: float, **content: object) -> None:
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    then = time.time() - age
    os.utime(path, (then, then))


def test_a_number_decides_here_and_the_clock_elsewhere(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    done.wait()
    with present(tmp_path) as me:
        here, there = this_process(), this_process() | {"machine": "another"}
        planted(tmp_path, "killed", age=1, **here | {"pid": done.pid})
        planted(tmp_path, "slept", age=9999, **here)
        planted(tmp_path, "far", age=20, **there)
        planted(tmp_path, "far-and-gone", age=500, **there)
        (tmp_path / "rubbish.json").write_text("{")
        assert living(tmp_path, me) == {me, "slept", "far"}
