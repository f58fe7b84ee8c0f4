"""Incidents on the page: marked on the curves, told in a table, counted in the verdict."""

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_run import build, edit

from poise.artifacts import RunDir, append_jsonl
from poise.report.report import write_report
from poise.report.words import cause

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def page_of(run: RunDir) -> str:
    from plotly.offline import get_plotlyjs

    return write_report(run).read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def words_of(run: RunDir) -> str:
    page = re.sub(r"<(script|style).*?</\1>", " ", page_of(run), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def figures_of(page: str) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    return [json.loads(text) for text in found]


def bands_of(page: str) -> dict[str, Any]:
    """The layout of the first figure over training, that of the noise levels."""
    return next(f["layout"] for f in figures_of(page) if len(f["data"]) == 7)


def incident(images_seen: int, severity: str, name: str, **more: Any) -> dict[str, Any]:
    """A row as the guard writes it."""
    row = {
        "images_seen": images_seen,
        "severity": severity,
        "kind": name,
        "cause": name,
        "message": f"{name} was seen",
        "evidence": {"times": 30.5},
        "culprit": {},
        "action": "none",
        "cost": {},
        "also": [],
    }
    return {**row, **more}


def planted() -> list[dict[str, Any]]:
    files = {"files": ["one/a.png", "two/b.png"], "band": 0.2}
    return [
        incident(60_000, "warning", "bad-batch", culprit=files, action="skip"),
        incident(
            210_000,
            "critical",
            "lr-too-high",
            action="cut-rate",
            cost={"images": 12_800, "updates": 100},
            also=["oscillation"],
        ),
        incident(300_000, "info", "plateau"),
    ]


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = build(tmp_path / "run")
    run.log("events").unlink()
    for row in planted():
        append_jsonl(run.log("events"), row)
    for i in range(1, 11):
        sizes = {
            "weight_rms": 1.0,
            "activation_rms": 1.2 + 0.1 * i,
            "activation_rms_highest": 2.0 * i,
        }
        append_jsonl(run.log("magnitudes"), {"images_seen": i * 40_000, **sizes})
    return run


def test_curves_are_marked_with_what_it_was(run: RunDir) -> None:
    bands = bands_of(page_of(run))
    assert [shape["x0"] for shape in bands["shapes"]] == [60_000, 210_000]  # not the info
    colors = [shape["line"]["color"] for shape in bands["shapes"]]
    assert colors[0] != colors[1]
    notes = bands["annotations"]
    assert [note["text"] for note in notes] == ["1", "2"]
    assert notes[1]["hovertext"] == "learning rate too high, 210 k images: lr-too-high was seen"


def test_marks_in_one_place_are_one(run: RunDir) -> None:
    append_jsonl(run.log("events"), incident(209_900, "warning", "bad-batch"))
    bands = bands_of(page_of(run))
    assert [note["text"] for note in bands["annotations"]] == ["1", "4, 2"]
    assert "too high" in bands["annotations"][1]["hovertext"]
    assert "and 1 more" in bands["annotations"][1]["hovertext"]


def test_many_marks_keep_their_words(run: RunDir) -> None:
    for i in range(100):
        append_jsonl(run.log("events"), incident(3_000 * i, "warning", "bad-batch"))
    notes = bands_of(page_of(run))["annotations"]
    assert 12 < len(notes) <= 40 and all(note["hovertext"] for note in notes)
    assert {note["text"] for note in notes} == {"▾"}


def test_the_table_says_cause_action_cost_and_files(run: RunDir) -> None:
    words = words_of(run)
    for said in (
        "3 incidents",
        "1 60 k warning Bad batch Bad-batch was seen. skip one/a.png, two/b.png; band 0.200",
        "2 210 k critical Learning rate too high Lr-too-high was seen. cut rate "
        "(images 12,800; updates 100)",
        "times 30.5 oscillation",
    ):
        assert said in words, said


def test_the_verdict_has_them_in_one_line(run: RunDir) -> None:
    words = words_of(run)
    assert (
        "The run met 1 error and 1 warning; the last error, at 210 k images: Lr-too-high was "
        "seen. Action: cut rate." in words
    )


def test_other_events_stay_beside_them(run: RunDir) -> None:
    row = {"images_seen": 9, "severity": "info", "kind": "resumed", "message": "it was resumed"}
    append_jsonl(run.log("events"), row)
    assert "Other events No. Images seen Severity Kind What happened Evidence 4 9 info" in words_of(
        run
    )


def test_magnitudes_are_drawn(run: RunDir) -> None:
    figures = figures_of(page_of(run))
    names = [[trace["name"] for trace in figure["data"]] for figure in figures]
    assert ["largest block", "mean of the blocks", "weights"] in names
    run.log("magnitudes").unlink()
    assert len(figures_of(page_of(run))) == len(figures) - 1


def test_a_run_that_the_guard_stopped(run: RunDir) -> None:
    edit(run.run, status="stopped")
    words = words_of(run)
    assert "the guard stopped the run." in words and "Broken The guard stopped the run" in words


def test_hostile_incidents_are_inert(run: RunDir) -> None:
    row = dict.fromkeys(("kind", "cause", "message", "action"), HOSTILE)
    row |= {"severity": "critical", "evidence": {HOSTILE: HOSTILE}, "also": [HOSTILE, 3]}
    row |= {"culprit": {"files": [HOSTILE, {}], HOSTILE: HOSTILE}, "cost": {HOSTILE: HOSTILE}}
    append_jsonl(run.log("events"), {"images_seen": 5, **row})
    append_jsonl(
        run.log("events"),
        {**incident(6, "warning", "x"), "culprit": 3, "evidence": [], "cost": "z"},
    )
    page = page_of(run)
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    assert "\\u001b" in page


def test_names_in_words() -> None:
    assert cause("lr-too-high") == "learning rate too high"
    assert cause("ema-frozen") == "EMA frozen"
    assert cause("not_scored") == "not scored"
