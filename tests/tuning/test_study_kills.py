"""Workers that are killed without warning: no finished trial is lost, none is counted twice."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import tiny
from studies import Formula, bowl, run, variant

from poise.tuning.desk import trial_of
from poise.tuning.schedule import ENDED
from poise.tuning.storage import open_storage, open_study
from poise.tuning.worker import directions

PLAN = variant(
    trials=60, rungs=(1 / 9, 1 / 3, 1.0), seeds=3, study="killed", sampler="random", seed=3
)
KILLS = 50


class Confirming(Formula):
    """Writes down the number of each trial after the storage has taken its end."""

    def __init__(self, path: Path, seconds: float) -> None:
        super().__init__(PLAN, seconds=seconds)
        self._path = path

    def over(self, number: int) -> None:
        with self._path.open("a") as file:
            file.write(f"{number}\n")


def child(root: Path) -> int:
    """A worker in a process of its own; its number."""
    number = os.fork()
    if number:
        return number
    try:
        run(root, PLAN, Confirming(root / "confirmed", 0.02), open_storage(root, None))
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fifty_kills(tmp_path: Path) -> None:
    draw = random.Random(1)
    kills = 0
    while kills < KILLS:
        workers = [child(tmp_path) for _ in range(draw.choice((1, 1, 2)))]
        time.sleep(draw.uniform(0.02, 0.25))
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
            os.waitpid(worker, 0)
            kills += 1
    confirmed = [int(line) for line in (tmp_path / "confirmed").read_text().split()]
    assert confirmed, "the workers never got anywhere"
    assert len(confirmed) == len(set(confirmed))

    storage = open_storage(tmp_path, None)
    before = open_study(storage, PLAN.study, directions(PLAN.better)).trials
    for number in confirmed:
        assert before[number].state.is_finished()

    study, _ = run(tmp_path, PLAN, Confirming(tmp_path / "confirmed", 0.0), storage)
    trials = [trial_of(frozen, PLAN, set()) for frozen in study.trials]
    assert [t.number for t in trials] == list(range(len(trials)))
    assert sum(t.role == "default" for t in trials) == 1
    assert sum(t.role == "search" for t in trials) == 59
    repeats = sorted((t.of, t.seed) for t in trials if t.role == "repeat")
    assert len(repeats) == len(set(repeats)) == 6
    assert all(t.state in ENDED for t in trials)
    for number in confirmed:
        assert study.trials[number].values == before[number].values
    for trial in trials:
        assert len(trial.proxy) == trial.rung + 1  # each rung once
        assert not trial.costs or trial.costs[0] == pytest.approx(bowl(trial.settings))
    searched = [str(t.settings) for t in trials if t.role != "repeat"]
    assert len(searched) == len(set(searched))


@pytest.mark.slow
def test_fifty_kills_of_a_study_that_trains(tmp_path: Path) -> None:
    """The command itself, with two workers now and then, on digits."""
    draw, root = random.Random(2), tmp_path / "run"
    words = ["tune", "digits", "--run", str(root), "--space", "quick", "--images", "1500"]
    words += ["--trials", "40", "--seeds", "2", "--metric", "validation_error"]
    settings = {k: v for k, v in tiny.SETTINGS.items() if not k.startswith("cadence")}
    words += [part for k, v in settings.items() for part in ("--set", f"{k}={v}")]
    ended: dict[int, object] = {}
    kills = 0
    while kills < KILLS:
        more = ["--resume"] if (root / "plan.json").exists() else []
        process = tiny.start(*words, *more, "--workers", draw.choice(("1", "2")))
        time.sleep(draw.uniform(4, 12))
        process.kill()
        code, output = tiny.finish(process)
        kills += 1
        if code == 0:
            break
        assert code == -signal.SIGKILL, output
        path = root / "study.json"
        record = json.loads(path.read_text()) if path.exists() else {"trials": []}
        for row in record["trials"]:
            if row["state"] in ENDED:
                known = ended.setdefault(row["number"], row)
                assert row == known  # what has ended stays as it was
    assert tiny.call(*words, "--resume") == 0
    record = json.loads((root / "study.json").read_text())
    rows = record["trials"]
    assert record["status"] == "finished"
    assert [row["number"] for row in rows] == list(range(len(rows)))
    assert len([row for row in rows if row["role"] != "repeat"]) == 40
    assert sorted((r["of"], r["seed"]) for r in rows if r["role"] == "repeat") == sorted(
        (of, seed) for of in {r["of"] for r in rows if r["role"] == "repeat"} for seed in (1, 2)
    )
    for number, row in ended.items():
        assert rows[number] == row
