"""Figures of kept drills: what is drawn, where the marks are, and what is left out."""

import json
import runpy
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

SCRIPT = runpy.run_path(str(Path(__file__).parents[1] / "scripts" / "drill_figures.py"))
BASE, STEPS, BATCH = 100, 60, 4


def write_run(folder: Path, errors: list[float | None]) -> None:
    """A run with a log line every 10 updates."""
    folder.mkdir(parents=True)
    rows = [
        {"images_seen": 10 * BATCH * n, "error": error, "grad_norm": 20.0}
        for n, error in enumerate(errors, start=1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def add_fault(root: Path, kind: str, cause: str, errors: list[float | None], **row: Any) -> None:
    """A disturbed run and what was made of it; a fault at update 120, named 5 updates later."""
    outcome = {
        "kind": kind,
        "parameters": {"at": 20},
        "detected": True,
        "delay_steps": 4,
        "true_cause": cause,
        "named_cause": cause,
        **row,
    }
    (root / "results").mkdir(exist_ok=True)
    (root / "results" / f"{kind}-0.json").write_text(json.dumps({"outcomes": [outcome]}))
    write_run(root / "runs" / f"{kind}-0", errors)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A drill of 160 updates whose undisturbed error is 0.5 throughout."""
    root = tmp_path / "keep"
    write_run(root / "runs" / "undisturbed", [0.5] * 16)
    settings = {"stability": {"policy": "warn"}, "training": {"batch": BATCH}}
    plan = {"base": BASE, "steps": STEPS, "settings": settings}
    (root / "plan.json").write_text(json.dumps(plan))
    return root


RISEN: list[float | None] = [*[0.5] * 12, 2.0, 4.0, 8.0, 16.0]


def test_a_fault_is_drawn_small_and_whole(kept: Path, tmp_path: Path) -> None:
    add_fault(kept, "gradient-flipped", "ascent", RISEN)
    (path,) = SCRIPT["main"](kept, tmp_path / "out")
    assert path.name == "drill-ascent.svg" and path.stat().st_size < 8000
    tree = ET.parse(path)
    texts = [node.text for node in tree.iter() if node.tag.endswith("text")]
    assert texts[0] == "The updates climb instead of descending (gradient-flipped)"
    assert {"60", "160", "named ascent", "Error", "Gradient norm"} <= set(texts)


def test_marks_stand_where_it_happened(kept: Path) -> None:
    add_fault(kept, "gradient-flipped", "ascent", RISEN)
    plan = json.loads((kept / "plan.json").read_text())
    (drawn,) = SCRIPT["faults"](kept, plan)
    assert (drawn.fault, drawn.said) == (120, 125)
    without, with_ = drawn.curves["error"]
    assert [x for x, _ in with_] == [60, 70, 80, 90, 100, 110, 120, 130, 140, 150, 160]
    assert without[-1] == (160, 0.5) and with_[-1] == (160, 16.0)


def test_a_gap_is_not_drawn_over(kept: Path, tmp_path: Path) -> None:
    add_fault(kept, "lr-jump", "lr-too-high", [*[0.5] * 12, 2.0, None, None, 2.0])
    (path,) = SCRIPT["main"](kept, tmp_path / "out")
    moved = [node.get("d", "") for node in ET.parse(path).iter() if node.get("stroke") == "#d1503c"]
    assert sorted(d.count("M") for d in moved) == [
        1,
        1,
        2,
    ]  # legend, one panel, the one with the gap


@pytest.mark.parametrize(
    ("errors", "row", "why"),
    [
        ([0.5] * 16, {}, "nothing to be seen"),
        ([*[0.5] * 12, 0.9, 0.5, 0.5, 0.5], {}, "nothing to be seen"),
        (RISEN, {"named_cause": "divergence"}, "called divergence"),
    ],
)
def test_what_would_mislead_is_left_out_and_named(
    kept: Path, tmp_path: Path, capsys: Any, errors: list[float | None], row: Any, why: str
) -> None:
    add_fault(kept, "gradient-flipped", "ascent", errors, **row)
    assert SCRIPT["main"](kept, tmp_path / "out") == []
    assert why in capsys.readouterr().out


def test_faults_of_the_first_update_begin_there(kept: Path) -> None:
    add_fault(kept, "lr-low", "slow-convergence", [1.0] * 16, parameters={"magnitude": 0.01})
    add_fault(kept, "momentum-high", "oscillation", RISEN, parameters={"magnitude": 5})
    plan = json.loads((kept / "plan.json").read_text())
    found = {drawn.kind: drawn.fault for drawn in SCRIPT["faults"](kept, plan)}
    assert found == {"lr-low": 0, "momentum-high": BASE}


def test_runs_that_were_repaired_are_refused(kept: Path, tmp_path: Path) -> None:
    plan = json.loads((kept / "plan.json").read_text())
    plan["settings"]["stability"]["policy"] = "repair"
    (kept / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(SystemExit, match="policy=warn"):
        SCRIPT["main"](kept, tmp_path / "out")


def test_axes_have_numbers_however_narrow() -> None:
    for low, high in ((-0.31, -0.29), (-0.3, 0.1), (-2.0, 7.0), (1.1, 2.2)):
        found = SCRIPT["decades"](low, high)
        assert 2 <= len(found) <= 5 and found == sorted(found)
