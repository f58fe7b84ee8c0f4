"""`poise prepare` against planted truth: nothing leaks, nothing is lost, figures are exact."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sets import picture, pixels_of, planted, prepare, rows_of, splits_of, tree

from poise.data.store import load_store, verify_store
from poise.errors import DataError, UsageError
from poise.prepare.prepare import report_lines
from poise.settings import DataConfig

BROKEN = {"cat/cut.png", "cat/empty.png", "cat/words.png"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "pets")


@pytest.fixture(scope="module")
def done(source: Path) -> tuple[Path, dict]:
    out = source.parent / "set"
    before = tree(source)
    made = prepare(source, out, resolution=8, group_by=r"/(p\d+)_", shard_items=7, balance="equal")
    assert tree(source) == before  # the original is never changed
    return out, made


def test_every_file_is_on_one_side_or_dropped_with_a_reason(source: Path, done) -> None:
    out, made = done
    sides = splits_of(out)
    assert set(sides) == set(tree(source))
    dropped = {path for path, side in sides.items() if side == "dropped"}
    assert dropped >= BROKEN
    reasons = {
        row["path"]: row["reason"]
        for row in json.loads((out / "splits.json").read_text("utf-8"))["dropped"]
    }
    assert reasons["cat/p00_a.png"] == "an exact copy of cat/copy of p00_a.png"
    assert reasons["cat/p00_b.png"] == "an exact copy of cat/p00_b.bmp"
    assert dropped - BROKEN == {"cat/p00_a.png", "cat/p00_b.png", "dog/p02_a.bmp"}
    assert reasons["cat/empty.png"].startswith("zero-byte")
    assert made["state"] == "finished" and made["summary"]["kept"] == len(sides) - len(dropped)


def test_groups_and_near_copies_stay_on_one_side(done) -> None:
    sides = splits_of(done[0])
    people: dict[str, set[str]] = {}
    for path, side in sides.items():
        name = path.rpartition("/")[2].removeprefix("copy of ")[:3]
        if side != "dropped":
            people.setdefault(name, set()).add(side)
    assert len(people) > 15 and all(len(found) == 1 for found in people.values())
    assert sides["cat/p01_a.png"] == sides["cat/p01_a near.jpg"]
    assert {"train", "val", "test"} <= set(sides.values())


def test_a_label_conflict_is_named(done) -> None:
    plan = json.loads((done[0] / "plan.json").read_text("utf-8"))
    assert plan["conflicts"] == [
        {"paths": ["cat/p02_a.png", "dog/p02_a.bmp"], "labels": ["cat", "dog"]}
    ]
    assert {row["path"]: row["label"] for row in rows_of(done[0])}["cat/p02_a.png"] == "cat"


def test_provenance_and_pixels(source: Path, done) -> None:
    out, made = done
    rows, pixels, files = rows_of(out), pixels_of(out, made), tree(source)
    assert len(made["shards"]) == -(-len(rows) // 7)
    for row, entry in zip(rows, pixels, strict=True):
        assert row["sha256"] == [files[row["path"]]]
        assert row["size"] == [24, 24] and row["resized"] == [24, 8] and row["cropped"] == 0
        assert row["group"] == row["path"].rpartition("/")[2].removeprefix("copy of ")[:3] or (
            row["group"] is None and "copy of" in row["path"]
        )
        if not row["path"].endswith("jpg"):
            wanted = Image.open(source / row["path"]).resize((8, 8), Image.Resampling.LANCZOS)
            np.testing.assert_array_equal(entry[0], np.asarray(wanted).transpose(2, 0, 1))


def test_statistics_are_those_of_the_training_images_alone(done) -> None:
    out, made = done
    train = np.array([row["split"] == "train" for row in rows_of(out)])
    values = pixels_of(out, made)[train][:, 0].astype(np.float64)
    facts, flat = made["statistics"], values.transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(facts["mean"], flat.mean(1), rtol=1e-12)
    np.testing.assert_allclose(facts["std"], flat.std(1), rtol=1e-12)
    assert facts["min"] == flat.min(1).tolist() and facts["max"] == flat.max(1).tolist()
    unit = (flat / 127.5 - 1) - (flat / 127.5 - 1).mean(1, keepdims=True)
    assert facts["sigma_data"] == pytest.approx(np.sqrt((unit**2).mean()), rel=1e-12)


def test_equal_weights_make_classes_equal(done) -> None:
    rows = [row for row in rows_of(done[0]) if row["split"] == "train"]
    total = {
        name: sum(row["weight"] for row in rows if row["label"] == name) for name in ("cat", "dog")
    }
    assert total["cat"] == pytest.approx(total["dog"], rel=1e-6)
    assert sum(total.values()) == pytest.approx(len(rows), rel=1e-6)


def test_it_loads_and_says_what_it_did(done) -> None:
    out, made = done
    verify_store(out)
    data = load_store(out, DataConfig())
    sides = splits_of(out)
    assert data.names == tuple(row["path"] for row in rows_of(out))
    assert data.given_splits == tuple(sides[name] for name in data.names)
    np.testing.assert_array_equal(data.images, pixels_of(out, made)[:, 0])
    lines = report_lines(made)
    assert 5 <= len(lines) <= 12 and any(line.startswith("Closest across train") for line in lines)
    page = (out / "prepare.html").read_text("utf-8")
    assert "cat/cut.png" in page and "an exact copy of" in page and "<script" not in page
    assert not [p for p in out.iterdir() if p.name.startswith(".")]


def test_distances_are_between_sides(done) -> None:
    sides = splits_of(done[0])
    for pair, found in done[1]["summary"]["distances"].items():
        assert {sides[path] for path in found["paths"]} == set(pair.split("-"))
        assert found["hamming"] > 0


def test_near_copies_can_be_dropped_and_the_largest_stays(source: Path, tmp_path: Path) -> None:
    picture(1, 48).save(tmp_path / "large.png")  # another picture; only the size counts
    grown = tmp_path / "pets"
    grown.mkdir()
    for n in range(12):
        picture(100 + n).save(grown / f"{n:02d}.png")
    picture(100).resize((40, 40), Image.Resampling.BICUBIC).save(grown / "zz large.png")
    made = prepare(grown, tmp_path / "set", drop=frozenset({"broken", "exact", "near"}))
    assert splits_of(tmp_path / "set")["00.png"] == "dropped"
    assert splits_of(tmp_path / "set")["zz large.png"] != "dropped"
    assert made["summary"]["dropped"] == {"near copy": 1}


def test_given_splits_hold_and_leaks_are_dropped_from_the_weaker(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for n in range(24):
        side = "train" if n < 18 else "test"
        path = root / side / "c" / f"{n:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(n).save(path)
    (root / "test" / "c" / "copy.png").write_bytes((root / "train" / "c" / "00.png").read_bytes())
    picture(1).save(root / "test" / "c" / "near.jpg", quality=92)
    prepare(root, tmp_path / "set")
    sides = splits_of(tmp_path / "set")
    assert sides["train/c/00.png"] == "dropped" and sides["test/c/copy.png"] == "test"
    assert sides["train/c/01.png"] == "dropped" and sides["test/c/near.jpg"] == "test"
    for path, side in sides.items():
        assert side == "dropped" or path.startswith("test/") == (side == "test")
    reasons = json.loads((tmp_path / "set" / "splits.json").read_text("utf-8"))["dropped"]
    assert {row["path"]: row["reason"] for row in reasons}["train/c/01.png"] == (
        "belongs to the group of test/c/near.jpg, which was given to test; "
        "this one was given to train"
    )


def test_copies_that_are_kept_stay_on_one_side(source: Path, tmp_path: Path) -> None:
    made = prepare(source, tmp_path / "set", drop=frozenset({"broken"}))
    sides = splits_of(tmp_path / "set")
    assert set(made["summary"]["dropped"]) == {"truncated", "zero-byte", "unreadable"}
    for one, other in (("p00_a.png", "copy of p00_a.png"), ("p00_b.png", "p00_b.bmp")):
        assert sides[f"cat/{one}"] == sides[f"cat/{other}"]
    assert sides["cat/p02_a.png"] == sides["dog/p02_a.bmp"]


def test_broken_files_cannot_be_kept(source: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"3 of \d+ images are broken: cat/cut.png"):
        prepare(source, tmp_path / "set", drop=frozenset({"exact"}))


def test_nothing_to_group_by(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="groups nothing"):
        prepare(source, tmp_path / "set", group_by="patient")
    with pytest.raises(UsageError, match="no regular expression"):
        prepare(source, tmp_path / "set", group_by="(p")


@pytest.mark.parametrize(
    "options",
    [
        {"drop": frozenset({"brokn"})},
        {"balance": "fair"},
        {"balance": "target"},
        {"clean": frozenset({"soap"})},
        {"split": (0.5, 0.5, 0.5)},
        {"resolution": 2},
        {"clip": 1},
    ],
)
def test_wrong_options_are_told_before_anything_is_read(tmp_path: Path, options) -> None:
    with pytest.raises(UsageError):
        prepare(tmp_path / "nowhere", tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


def test_out_must_not_lie_in_the_source(source: Path) -> None:
    for out in (source, source / "cat" / "set"):
        with pytest.raises(UsageError, match="lies in the source"):
            prepare(source, out)


def test_an_out_that_may_not_be_looked_at(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(path: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "set").mkdir()
    monkeypatch.setattr(Path, "iterdir", locked)
    with pytest.raises(UsageError, match="cannot be used: Permission denied"):
        prepare(source, tmp_path / "set")


def test_odd_kinds_are_dropped_when_they_are_named(tmp_path: Path) -> None:
    source = planted(tmp_path / "images")
    Image.new("RGB", (24, 24), "black").save(source / "cat" / "black.png")
    plans = [
        prepare(source, tmp_path / "out", drop=frozenset(drop), dry_run=True)
        for drop in (("broken", "exact"), ("broken", "exact", "flat"))
    ]
    dropped = [{row["path"]: row["reason"] for row in plan["dropped"]} for plan in plans]
    assert "cat/black.png" not in dropped[0]
    assert dropped[1]["cat/black.png"].startswith("flat")
    assert dropped[1].keys() - dropped[0].keys() == {"cat/black.png"}
