"""`poise drill` from the command line: words in, JSON and a table out, the right exit code."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tiny
from staged import BATCH, Moment, Played, event

from poise.api import drills
from poise.drill import runner

KEYS = [
    *("kind", "parameters", "detected", "delay_steps", "true_cause", "named_cause", "action"),
    *("gap", "lost"),
]
OPTIONS = [
    *("--base", "10", "--steps", "20", "--healthy-steps", "0"),
    *("--set", f"training.batch={BATCH}", "--set", "training.threads=1"),
]
FAULTS = """
healthy_steps = 40
[[fault]]
kind = "nan-pixel"
at = 5
[[fault]]
kind = "noise-batch"
at = 6
"""


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> Played:
    """A training that is only played, whose guard sees NaN and nothing else."""

    def say(moment: Moment) -> list[dict[str, Any]]:
        finite = moment.batch.images.float().isfinite().all()
        return [] if finite else [event(moment, "non-finite-input")]

    learn, real = Played(say), runner.drill

    def drill(*given: Any, **more: Any) -> Any:
        return real(*given, **{**more, "learn": learn, "measure": lambda *_: 1.0})

    monkeypatch.setattr(drills, "run_drill", drill)
    return learn


def test_json_and_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "faults.toml").write_text(FAULTS)
    out = tmp_path / "out.json"
    files = ["--faults", str(tmp_path / "faults.toml"), "--json", str(out)]
    assert tiny.call("drill", "digits", *files, *OPTIONS) == 0
    found = json.loads(out.read_text())
    assert list(found) == ["faults", "healthy", "overhead"]
    assert [list(row)[: len(KEYS)] for row in found["faults"]] == [KEYS, KEYS]
    assert [row["detected"] for row in found["faults"]] == [True, False]
    assert found["faults"][0]["parameters"]["at"] == 5
    assert set(found["healthy"]) >= {"steps", "warnings", "actions"}
    assert found["healthy"]["steps"] == 30  # the command line wins over the file
    assert isinstance(found["overhead"], float)
    shown = capsys.readouterr().out
    assert "nan-pixel" in shown and "missed" in shown and "faults: 2, detected 1 (50%)" in shown


def test_the_kinds_are_listed_without_images(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.call("drill", "--list") == 0
    shown = capsys.readouterr().out
    assert "nan-pixel" in shown and "sigkill" in shown and "at = 40" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "SOURCE"),
        (["digits", "--only", "nan-pixle"], "nan-pixel"),
        (["digits", "--faults", "nowhere.toml"], "nowhere.toml"),
        (["digits", "--base", "0"], "--base"),
        (["digits", "--preset", "nanoo"], "nano"),
        (["digits", "--set", "training.lrr=1"], "training.lr"),
    ],
)
def test_wrong_use(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.call("drill", *words) == 2
    assert said in capsys.readouterr().err


def test_ctrl_c_writes_what_is_done(
    tmp_path: Path, played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(moment: Moment) -> Exception | None:
        if "noise" in moment.folder:
            os.kill(os.getpid(), signal.SIGINT)
        return None

    played.raises = stop
    (tmp_path / "faults.toml").write_text(FAULTS)
    out = tmp_path / "out.json"
    files = ["--faults", str(tmp_path / "faults.toml"), "--json", str(out)]
    assert tiny.call("drill", "digits", *files, *OPTIONS) == 130
    found = json.loads(out.read_text())
    assert [row["kind"] for row in found["faults"]] == ["nan-pixel"]
    assert "1 of 2" in found["unfinished"]
    assert "--keep" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_drill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real training, real faults, the real guard: what is certain is certain."""
    monkeypatch.setattr(drills, "run_drill", runner.drill)
    kinds = "nan-pixel,range-batch,newest-truncated,sigterm-step,sigterm-sampling,log-raises"
    out = tmp_path / "out.json"
    options = ["--base", "100", "--steps", "100", "--healthy-steps", "100", "--json", str(out)]
    assert tiny.call("drill", "digits", "--only", kinds, *options) == 0
    found = json.loads(out.read_text())
    rows = {row["kind"]: row for row in found["faults"]}
    assert set(rows) == set(kinds.split(","))
    for kind, row in rows.items():
        assert row["detected"] and row["named_cause"] == row["true_cause"], kind
        assert row["gap"] is not None and abs(row["gap"]) < 0.01, kind
    assert rows["sigterm-step"]["gap"] == rows["newest-truncated"]["gap"] == 0.0
    assert found["healthy"]["actions"] == 0
