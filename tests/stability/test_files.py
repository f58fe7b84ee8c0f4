"""What stands out among files becomes an incident with names; ordinary sets have none."""

import json
from dataclasses import replace
from typing import Any

import pytest
from probe_rig import COUNT, pictures

from poise.data.imageset import Dataset
from poise.data.layout import Unreadable
from poise.stability.causes import CAUSES
from poise.stability.files import file_incidents


def rows(dataset: Dataset) -> list[dict[str, Any]]:
    found = [incident.row() for incident in file_incidents(dataset)]
    for row in found:
        assert row["cause"] in CAUSES and row["severity"] == "warning"
        assert row["images_seen"] == 0
        json.dumps(row, allow_nan=False)
    return found


def broken(count: int) -> tuple[Unreadable, ...]:
    return tuple(Unreadable(f"b{i}.png", f"reason {i}") for i in range(count))


@pytest.mark.parametrize("modes", [{"L": COUNT}, {"RGB": COUNT}, {"RGB": 3, "L": 2}, {}])
def test_ordinary_files_are_nothing_to_speak_of(modes: dict[str, int]) -> None:
    assert rows(replace(pictures(), modes=modes)) == []


def test_files_that_cannot_be_read_are_named_with_their_reasons() -> None:
    (row,) = rows(replace(pictures(), unreadable=broken(3)))
    assert (row["cause"], row["action"], row["cost"]) == (
        "corrupt-files",
        "leave-out",
        {"images": 3},
    )
    assert row["culprit"] == {"files": ["b0.png", "b1.png", "b2.png"]}
    assert row["evidence"]["files"] == 3 and row["evidence"]["of"] == COUNT + 3
    for i in range(3):
        assert f"b{i}.png (reason {i})" in row["message"]
    assert "more" not in row["message"] and f"3 of {COUNT + 3}" in row["message"]


def test_of_many_some_are_named() -> None:
    (row,) = rows(replace(pictures(), unreadable=broken(40)))
    assert "and 37 more" in row["message"]
    assert len(row["culprit"]["files"]) == 12 and row["evidence"]["files"] == 40
    assert row["cost"] == {"images": 40}


def test_kinds_that_are_converted_are_counted() -> None:
    modes = {"RGB": 90, "CMYK": 4, "I;16": 2}
    (row,) = rows(replace(pictures(), modes=modes))
    assert (row["cause"], row["action"]) == ("mixed-files", "convert")
    assert row["evidence"]["modes"] == modes
    assert "90 RGB, 4 CMYK, 2 I;16" in row["message"] and "grey" in row["message"]


def test_both_are_said() -> None:
    dataset = replace(pictures(), unreadable=broken(1), modes={"RGB": 90, "RGBA": 4})
    assert [row["cause"] for row in rows(dataset)] == ["corrupt-files", "mixed-files"]
