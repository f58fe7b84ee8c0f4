"""Runs side by side from their files: planted differences are named, unlike protocols are said."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import synthetic_scores as planted
from hypothesis import given
from hypothesis import strategies as st
from synthetic_run import build, edit

import poise
from poise.artifacts import RunDir, append_jsonl, write_bytes, write_json
from poise.cli import app
from poise.config import resolve, to_toml
from poise.errors import ArtifactError, UsageError
from poise.report.folder import read_run
from poise.report.rivals import Rival, differing, judged
from poise.report.sidebyside import write_side_by_side

HOSTILE = "<script>alert(1)</script>\x1b\u202e"


def read(path: Path) -> str:
    from plotly.offline import get_plotlyjs

    return path.read_text("utf-8").replace(get_plotlyjs(), "")


def words(path: Path) -> str:
    page = re.sub(r"<(script|style).*?</\1>", " ", read(path), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def figures(path: Path) -> list[dict[str, Any]]:
    found = re.findall(r'<script type="application/json">(.*?)</script>', read(path), flags=re.S)
    return [json.loads(text) for text in found]


@pytest.fixture
def pair(tmp_path: Path) -> list[RunDir]:
    runs = [build(tmp_path / name, rows=40) for name in ("first", "second")]
    for run in runs:
        run.scores("test").unlink()
    return runs


def told(records: list[dict[str, Any]], pair: list[RunDir]) -> list[str]:
    for run, record in zip(pair, records, strict=True):
        write_json(run.scores("val"), record)
    rivals = [Rival(run.root.name, read_run(run), "#000") for run in pair]
    return [finding.sentence for finding in judged(rivals)]


def better() -> dict[str, Any]:
    """Clearly better in two scores, clearly worse in one."""
    record = planted.scores("val")
    planted.put(record, "kernel_distance", -0.01, -0.0102, -0.0098)
    planted.put(record, "precision", 0.95, 0.94, 0.96)
    planted.put(record, "recall", 0.5, 0.48, 0.52)
    return record


def test_clear_differences_are_named_and_turn_round_with_the_order(pair: list[RunDir]) -> None:
    plain = planted.scores("val")
    said = " ".join(told([plain, better()], pair))
    assert "second is beyond chance better than first in Kernel distance, Precision, and" in said
    assert "and worse in Recall." in said
    said = " ".join(told([better(), plain], pair))
    assert "second is beyond chance better than first in Recall, and worse in Kernel" in said
    said = " ".join(told([plain, plain], pair))
    assert "No score tells second from first beyond chance." in said


def test_of_other_counts_only_what_does_not_lean_is_compared(pair: list[RunDir]) -> None:
    record = better() | {"samples": 300}
    said = " ".join(told([planted.scores("val"), record], pair))
    assert "better than first in Kernel distance, and worse in nothing" in said
    assert "different numbers of images" in said and "Precision, and" not in said


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the split": lambda r: r.update(split="test"),
    "the real images": lambda r: r.update(data="cd34"),
    "the features": lambda r: r["features"].update(digest="0"),
    "the resizer": lambda r: r["features"].update(resizer="lanczos"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_unlike_protocols_are_said_and_nobody_is_called_better(
    what: str, pair: list[RunDir]
) -> None:
    record = better()
    CHANGES[what](record)
    assert differing([planted.scores("val"), record]) == [what]
    said = " ".join(told([planted.scores("val"), record], pair))
    assert f"cannot be compared: {what} differ" in said and "beyond chance" not in said


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=2), st.lists(st.floats(0.01, 1), min_size=2))
def test_clear_agrees_with_the_interval_of_the_difference(
    values: list[float], errors: list[float]
) -> None:
    from poise.report.rivals import _clear

    def rival(value: float, error: float) -> Any:
        row = {"value": value, "low": value - error, "high": value + error, "better": "higher"}
        record = {"split": "val", "metrics": {"precision": row}}
        return Rival("x", type("Files", (), {"scores": [record]})(), "#000")

    said = _clear(*[rival(v, e) for v, e in zip(values, errors, strict=False)], "precision")
    change, width = values[1] - values[0], (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    if abs(abs(change) - width) > 1e-9:
        assert said == ("" if abs(change) < width else "better" if change > 0 else "worse")


def test_the_page_lays_curves_over_each_other(pair: list[RunDir], tmp_path: Path) -> None:
    pair[1].log("validation").unlink()
    for seen, loss in ((100_000, 0.5), (400_000, 0.25)):
        row = {"images_seen": seen, "weights": "ema_0.100", "loss": loss, "bands": []}
        append_jsonl(pair[1].log("validation"), row)
    page = write_side_by_side(pair, tmp_path / "out.html")
    over_images, over_time = figures(page)[:2]
    assert [trace["name"] for trace in over_images["data"]] == ["first", "second"]
    assert over_images["data"][1]["y"] == [0.5, 0.25]
    assert over_time["data"][1]["x"] == [47.5, 190.0]  # a quarter, and all, of 190 s
    assert "Validation error at the end, lowest first: first 0." in words(page)


def test_the_page_says_what_differs_and_where_to_go_on(pair: list[RunDir], tmp_path: Path) -> None:
    write_bytes(pair[1].config, to_toml(resolve(None, {"training.lr": 0.009})).encode())
    edit(pair[1].run, status="stopped", command=["poise", "train", "x", "--run", "runs/b c"])
    before = {p: p.read_bytes() for run in pair for p in run.root.rglob("*") if p.is_file()}
    page = write_side_by_side(pair, tmp_path / "out.html")
    said = words(page)
    for planted_words in (
        "2 runs side by side, from their files: first, second.",
        "Broken second was stopped before its end.",
        "Weak first met 1 critical incident.",
        "poise compare RUN 'runs/b c'",
        "training.lr 0.00400 0.00900",
        "Recall 0.780 0.720 to 0.840 real 0.790 0.780 0.720 to 0.840 real 0.790 higher",
        "incidents warning 1; error 1",
    ):
        assert planted_words in said, planted_words
    assert said.count("400 k images seen.") == 2
    first = page.read_bytes()
    assert write_side_by_side(pair, page).read_bytes() == first and len(first) < 10_000_000
    assert before == {p: p.read_bytes() for run in pair for p in run.root.rglob("*") if p.is_file()}


def test_runs_of_one_name_are_told_apart_and_bare_ones_shown(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / name / "run") for name in "ab"]
    for run in runs:
        write_json(run.run, {})
    said = words(write_side_by_side(runs, tmp_path / "out.html"))
    assert f"{runs[0].root}, {runs[1].root}" in said
    assert "No run has been scored yet." in said and "settings of a run are missing" in said


def hostile(value: Any) -> Any:
    if isinstance(value, dict):
        return {**{key: hostile(item) for key, item in value.items()}, HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_files_are_inert(pair: list[RunDir], tmp_path: Path) -> None:
    for run in pair[1:]:
        for path in (run.run, run.scores("val")):
            write_json(path, hostile(json.loads(path.read_text())))
        append_jsonl(run.log("events"), hostile({"images_seen": 1, "severity": "error"}))
        row = {"images_seen": 2, "severity": "critical", "kind": HOSTILE, "message": HOSTILE}
        append_jsonl(run.log("events"), row)
    evil = tmp_path / "<script>alert(1)<"
    pair[1].root.rename(evil)
    page = read(write_side_by_side([pair[0], RunDir(evil)], tmp_path / "out.html"))
    assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
    assert "&lt;script&gt;alert" in page


def test_the_command_and_its_refusals(
    pair: list[RunDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    app(["report", "first", "second"], standalone_mode=False)
    assert capsys.readouterr().out.strip() == "report-comparison.html"
    assert not pair[0].report.exists()
    app(["report", "first", "second", "--out", "b/c.html"], standalone_mode=False)
    assert (tmp_path / "b/c.html").read_bytes() == Path("report-comparison.html").read_bytes()
    app(["report", "first"], standalone_mode=False)
    assert (pair[0].root / "model-card.md").is_file()
    first = poise.load("first")
    for wrong in (lambda: first.report(out="x.html"), lambda: first.report(poise.load("first"))):
        with pytest.raises(UsageError):
            wrong()
    (pair[1].root / "run.json").write_text("[]")
    with pytest.raises(ArtifactError, match="does not describe a run"):
        first.report(poise.load("second"))
