"""Pages about samples and about several runs: what they say, escaped, and always the same."""

import html
import random
import re
from pathlib import Path
from typing import Any

import pytest
import synthetic_scores as planted
from synthetic_run import edit, picture

from poise.artifacts import write_json
from poise.errors import ArtifactError
from poise.report.comparison import comparison_findings, write_comparison
from poise.report.evaluation import verdict_lines, write_evaluation

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e"


def read(path: Path) -> str:
    from plotly.offline import get_plotlyjs

    return path.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def words(path: Path) -> str:
    page = re.sub(r"<(script|style).*?</\1>", " ", read(path), flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


@pytest.fixture
def evaluated(tmp_path: Path) -> Path:
    folder, chance = tmp_path / "evaluation", random.Random(0)
    record = planted.scores(foreign=True) | {"classes": planted.confused()["classes"]}
    record["metrics"]["fld"]["mark"] = "Only one fit was tried."
    write_json(folder / "evaluation.json", record)
    for name in ("scored", "closest", "worst", "best", "missing"):
        picture(folder / f"{name}.png", chance)
    return folder


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    folder = tmp_path / "comparison"
    write_json(folder / "comparison.json", planted.comparison())
    picture(folder / "sheet.png", random.Random(0))
    return folder


def test_an_evaluation_says_verdict_pictures_tables(evaluated: Path) -> None:
    told = words(write_evaluation(evaluated))
    for said in (
        "500 samples, compared with photos (all of the reference).",
        "Fidelity: do samples look real?",
        "Recall 0.780 0.720 to 0.840 0.790 Share of real images",
        "Not to be read alone: Only one fit was tried.",
        "Worst samples",
        "What is missing",
        "The test flags 0 samples as nearer than chance allows; at these counts it can flag 10",
        "plane 50 / 50",
        "0.660 to 0.860 real 0.780",
        "it is right for 93 % of real images",
        "4 cat 10 90",
        "0.0800 0.5 %",
        "samples from out/samples",
        "resizer none",
    ):
        assert said in told, said
    order = [told.index(part) for part in ("wrong class", "Worst samples", "Fidelity: do")]
    assert order == sorted(order)
    assert "images seen" not in told  # there was no training


def test_an_evaluation_is_the_same_twice_and_holds_scripts_only_for_figures(
    evaluated: Path,
) -> None:
    first = write_evaluation(evaluated).read_bytes()
    assert write_evaluation(evaluated).read_bytes() == first
    assert b"Plotly" in first
    edit(evaluated / "evaluation.json", classes=None, denoising=None)
    plain = read(write_evaluation(evaluated))
    assert "<script" not in plain and "script-src" not in plain


def test_pictures_that_are_not_there_are_left_out(evaluated: Path) -> None:
    for path in evaluated.glob("*.png"):
        path.unlink()
    assert "There are no pictures beside these scores." in words(write_evaluation(evaluated))


@pytest.mark.parametrize("content", ["[1]", "{", None])
def test_a_folder_without_a_record_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        for name in ("evaluation", "comparison"):
            (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(ArtifactError):
        write_evaluation(tmp_path)
    with pytest.raises(ArtifactError):
        write_comparison(tmp_path)


def test_an_empty_record_still_gives_a_page(tmp_path: Path) -> None:
    write_json(tmp_path / "evaluation.json", {})
    write_json(tmp_path / "comparison.json", {})
    assert "There are no scores to judge by." in words(write_evaluation(tmp_path))
    assert "There is nothing to compare." in words(write_comparison(tmp_path))


def test_of_many_classes_the_worst_rows_are_shown(evaluated: Path) -> None:
    size = 60
    classes = planted.scores()["classes"] | {
        "names": [f"kind {i}" for i in range(size)],
        "confusion": [[9 if i == j else 1 for j in range(size)] for i in range(size)],
    }
    classes["confusion"][41] = [60 if j == 7 else 0 for j in range(size)]
    per_class = [planted.scores()["per_class"][0] | {"name": f"kind {i}"} for i in range(size)]
    edit(evaluated / "evaluation.json", classes=classes, per_class=per_class)
    told = words(write_evaluation(evaluated))
    assert "Most often taken for kind 41 60 0 % kind 7 (100 %)" in told
    assert "The 20 of 60 classes that are covered worst." in told


def hostile(value: Any) -> Any:
    """The same with markup in place of every text, and beside it in every key but known ones."""
    if isinstance(value, dict):
        return {**{key: hostile(item) for key, item in value.items()}, HOSTILE: HOSTILE}
    if isinstance(value, list):
        return [hostile(item) for item in value]
    return HOSTILE if isinstance(value, str) else value


def test_hostile_records_are_inert(evaluated: Path, compared: Path) -> None:
    record, pair = planted.dropper(), planted.comparison()
    write_json(evaluated / "evaluation.json", hostile(record))
    write_json(compared / "comparison.json", hostile(pair))
    for path in (write_evaluation(evaluated), write_comparison(compared)):
        page = read(path)
        assert "<script>alert" not in page and "\x1b" not in page and "\u202e" not in page
        assert "&lt;script&gt;alert" in page and "\\u202e" in page
    assert not any("\x1b" in line or "\u202e" in line for line in verdict_lines(hostile(record)))


def test_a_comparison_says_which_is_clearly_better_in_what(compared: Path) -> None:
    told = words(write_comparison(compared))
    for said in (
        "runs/b is clearly better than runs/a in Fréchet distance (-0.800), Fine detail (-0.250), "
        "and clearly worse in Recall (-0.100).",
        "difference -0.800 -0.915 to -0.685 clearly better",
        "difference -0.100 -0.135 to -0.0650 clearly worse",
        "difference +0.0100 -0.0255 to 0.0455 0.800",
        "Caution: 500 samples of each run.",
    ):
        assert said in told, said
    page = write_comparison(compared).read_bytes()
    assert write_comparison(compared).read_bytes() == page and b"<script" not in page


def test_a_comparison_in_which_nothing_is_clear_says_so() -> None:
    record = planted.comparison()
    for row in record["metrics"].values():
        row["differences"][1]["clear"] = False
    (found,) = comparison_findings(record)
    assert "No score tells runs/b from runs/a" in found.sentence


def test_a_clear_difference_without_a_real_value_takes_no_side() -> None:
    record = planted.comparison()
    record["metrics"] = {"fine_detail": record["metrics"]["fine_detail"] | {"real": None}}
    (found,) = comparison_findings(record)
    assert "different from runs/a in Fine detail" in found.sentence
