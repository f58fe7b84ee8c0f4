"""Going on with a study: its command, its workers, and what becomes of a run there was."""

import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import PLAN, Formula, run, variant

from poise.artifacts import RunDir, write_json
from poise.config import preset_named, resolve, to_toml
from poise.console import Screen
from poise.errors import PoiseError
from poise.tuning.begin import Request
from poise.tuning.dimension import Dimension, Space
from poise.tuning.final import _keep_other
from poise.tuning.ground import trained_settings
from poise.tuning.plan import read_plan
from poise.tuning.record import study_record
from poise.tuning.resume import resume_command, resumed


def test_the_command_names_what_a_study_needs() -> None:
    plain = resume_command("my photos", Path("runs/a"))
    assert shlex.split(plain) == ["poise", "tune", "my photos", "--run", "runs/a", "--resume"]
    url = "postgresql://me:secret@host/studies"
    told = resume_command("photos", Path("runs/a"), url, "ray")
    assert "postgresql://" in told and "secret" not in told and told.endswith("--engine ray")


@pytest.mark.parametrize(
    ("spent", "given", "workers"), [(0.0, 1, 1), (1800.0, 1, 2), (7000.0, 1, 4), (1800.0, None, 4)]
)
def test_workers_are_told_as_the_mean_over_the_budget(
    tmp_path: Path, spent: float, given: int | None, workers: int
) -> None:
    """Half an hour of four and an hour and a half of one are two hours of two, nearly."""
    variant(budget_seconds=7200.0, workers=4).write(tmp_path)
    write_json(tmp_path / "study.json", {"seconds": spent})
    plan = resumed(Request(PLAN.source, tmp_path, resume=True, workers=given))
    assert plan.workers == workers == read_plan(tmp_path).workers


@pytest.mark.parametrize(
    ("status", "rate", "budget", "kept"),
    [
        ("finished", 0.02, 60.0, False),
        ("finished", 0.02, 200.0, True),
        ("interrupted", 0.02, 200.0, False),
        ("finished", 0.01, 60.0, True),
        ("interrupted", 0.01, 60.0, True),
    ],
)
def test_a_run_is_kept_where_a_new_one_is_worth_it(
    tmp_path: Path, status: str, rate: float, budget: float, kept: bool
) -> None:
    """With other settings, or once it has ended and there is much more time."""
    plan = variant(preset="dit-s")
    overrides = {"training.weight_decay": 0.05}  # which the network without a preset refuses
    folder = RunDir(tmp_path / "best")
    config = resolve(preset_named("dit-s"), {**overrides, "training.lr": 0.02})
    folder.root.mkdir()
    folder.config.write_text(to_toml(config))
    write_json(folder.run, {"status": status, "budget_seconds": 60.0})
    _keep_other(folder, plan, {**overrides, "training.lr": rate}, budget, Screen(quiet=True))
    assert (tmp_path / "best-1").exists() == kept != folder.root.exists()


def test_settings_that_contradict_each_other_stand_in_the_record(tmp_path: Path) -> None:
    """Their trial fails; the record says so and goes on."""
    space = Space(
        "wide",
        (
            Dimension("model.channels", "choice", choices=(16, 32)),
            Dimension("training.optimizer", "choice", choices=("adam", "sgd")),
        ),
    )
    base: dict[str, Any] = {"model.channels": 32, "training.optimizer": "adam"}
    plan = variant(space=space, sampler="grid", trials=None)
    objective = Formula(
        plan,
        lambda settings: 1.0,
        ends=lambda e: "failed" if e.settings["training.optimizer"] == "sgd" else "",
    )
    study, _ = run(tmp_path, plan, objective, optuna.storages.InMemoryStorage(), base)
    record = study_record(study, plan, base, status="running", phase="search", seconds=1.0)
    failed = [row for row in record["trials"] if row["state"] == "failed"]
    assert {row["settings"]["model.channels"] for row in failed} == {16, 32}
    with pytest.raises(PoiseError):  # of which no rate for another width can be told
        trained_settings(plan, {"model.channels": 16, "training.optimizer": "sgd"})
