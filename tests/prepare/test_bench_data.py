"""Rates from the file to the batch: every row is there, and what is timed is the real work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from poise.errors import DataError, UsageError
from poise.prepare import bench
from poise.prepare.bench import DECODER, measure
from poise.prepare.bench_table import table

FILES = {"read", "sha256", DECODER, "decode", "raw look", "audit's look"}
STORE = {"resize", "plain write", "store write", "plain file read", "store read"}
FEED = {"feed from memory", "feed from a mapped file"}


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "_FEED_BYTES", 2**18)


def folder_of(place: Path, count: int = 9, side: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for i in range(count):
        pixels = rng.integers(0, 256, (side, side + i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / f"{i}.jpg")
    return place


def checked(found: dict[str, Any]) -> dict[str, Any]:
    assert json.loads(json.dumps(found)) == found
    assert max(map(len, table(found).splitlines())) <= 100
    for row in found["rows"].values():
        for values in row.values():
            if isinstance(values, dict):
                assert 0 < values["low"] <= values["median"] <= values["high"]
    return found


def test_every_stage_stands_beside_its_raw_library(tmp_path: Path) -> None:
    spent: list[int] = []
    source = folder_of(tmp_path)
    found = checked(measure(source, seconds=0.2, progress=lambda done, _: spent.append(done)))
    rows = found["rows"]
    assert set(rows) == FILES | STORE | FEED | {"Pillow resize"}
    assert rows[DECODER]["times_decoder"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert rows["decode"]["raw"] == DECODER
    assert all(rows[row["raw"]] for row in rows.values() if "raw" in row)
    assert {name for name, row in rows.items() if "share_of_copy" in row} == FEED | {"store read"}
    assert (found["images"], found["left_out"], found["channels"]) == (9, 0, 3)
    assert found["resolution"] == 40 and found["rounds"] >= 1 and spent == sorted(spent)
    text = table(found)
    assert all(name in text for name in rows) and "memory copy" in text


def test_the_sample_is_even_and_broken_files_are_counted(tmp_path: Path) -> None:
    source = folder_of(tmp_path, 10)
    (source / "0.jpg").write_bytes(b"nothing")
    found = checked(measure(source, images=4, seconds=0.05, resolution=16))
    assert (found["images"], found["left_out"], found["resolution"]) == (3, 1, 16)
    assert "1 left out" in table(found)
    for file in source.iterdir():
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="None of 10"):
        measure(source)


def test_arrays_have_no_decoder_to_be_compared_with(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 9), dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=pixels)
    found = checked(measure(tmp_path / "set.npz", seconds=0.05))
    assert set(found["rows"]) == STORE | FEED | {"read", "audit's look", "Pillow resize"}
    assert found["file_bytes"] is None and found["channels"] == 1
    assert not any("times_decoder" in row for row in found["rows"].values())
    assert "arrays" in table(found)


def test_gray_and_colour_together_are_measured_in_colour(tmp_path: Path) -> None:
    folder_of(tmp_path, 2)
    Image.new("L", (50, 30), 90).save(tmp_path / "gray.png")
    assert checked(measure(tmp_path, seconds=0.01))["channels"] == 3


def test_numbers_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="images = 0"):
        measure(tmp_path, images=0)
    with pytest.raises(UsageError, match="resolution = 0"):
        measure(tmp_path, resolution=0)
