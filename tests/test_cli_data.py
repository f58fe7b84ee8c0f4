"""`poise audit` and `poise prepare` as a user meets them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from PIL import Image

from poise import arguments
from poise.errors import UsageError


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """190 cats, 10 dogs; copies, a near copy in the other class, broken files, a blank image."""
    root = tmp_path_factory.mktemp("pets") / "pets"
    rng = np.random.default_rng(5)
    for kind, count in (("cat", 190), ("dog", 10)):
        (root / kind).mkdir(parents=True)
        for index in range(count):
            picture(rng).save(root / kind / f"{index:03d}.png")
    whole = (root / "cat" / "000.png").read_bytes()
    (root / "cat" / "copy of 000.png").write_bytes(whole)
    (root / "cat" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "empty.png").write_bytes(b"")
    (root / "dog" / "words.png").write_text("not an image")
    Image.open(root / "cat" / "001.png").convert("RGB").save(root / "dog" / "001.jpg", quality=80)
    Image.new("RGB", (48, 48), "white").save(root / "cat" / "blank.png")
    return root


def picture(rng: np.random.Generator) -> Image.Image:
    """Random clouds, sharp at the pixel."""
    image = np.zeros((48, 48, 3))
    for size in (2, 4, 8, 16, 48):
        noise = rng.random((size, size, 3)) * 255 - 128
        layer = [
            Image.fromarray(c.astype(np.float32)).resize((48, 48)) for c in noise.transpose(2, 0, 1)
        ]
        image += np.stack([np.asarray(part) for part in layer], -1) / (1 + size / 16)
    return Image.fromarray((image / 4 + 128).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def audited(pets: Path) -> Path:
    out = pets.parent / "audit"
    assert tiny.call("audit", str(pets), "--out", str(out), "--workers", "1") == 0
    return out


def facts_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "audit.json").read_text("utf-8"))
    return found


def test_the_audit_names_what_was_planted(audited: Path) -> None:
    facts = facts_of(audited)
    kinds = {row["path"]: {p["kind"] for p in row["problems"]} for row in facts["files"]}
    assert len(kinds) == 206
    assert "truncated" in kinds["cat/cut.png"]
    assert "zero-byte" in kinds["cat/empty.png"]
    assert "unreadable" in kinds["dog/words.png"]
    assert "flat" in kinds["cat/blank.png"]
    assert facts["classes"] == {"cat": 192, "dog": 11}
    groups = {group["kind"]: group for group in facts["duplicates"]}
    assert groups["bytes"]["paths"] == ["cat/000.png", "cat/copy of 000.png"]
    assert groups["near"]["paths"] == ["cat/001.png", "dog/001.jpg"]
    assert groups["near"]["cross_class"] and not groups["bytes"]["cross_class"]
    assert {group["kind"] for group in facts["duplicates"][:1]} == {"near"}  # conflicts first


def test_a_set_of_cats_is_called_so(audited: Path) -> None:
    verdict = facts_of(audited)["verdict"]
    assert 1 <= len(verdict) <= 5
    assert any("cat" in line and "95" in line and "poise prepare" in line for line in verdict[:2])


def test_the_page_stands_alone(audited: Path) -> None:
    page = (audited / "audit.html").read_text("utf-8")
    assert "default-src 'none'" in page
    assert "cat/cut.png" in page and 'src="http' not in page


def test_nothing_was_changed_and_a_second_audit_says_the_same(
    pets: Path, audited: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(pets.rglob("*"))}
    assert tiny.call("audit", str(pets), "--out", str(tmp_path), "--workers", "2") == 0
    assert before == {path: path.stat().st_mtime_ns for path in sorted(pets.rglob("*"))}
    assert facts_of(tmp_path) == facts_of(audited)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [*facts_of(tmp_path)["verdict"], str(tmp_path / "audit.html")]


def test_a_target_says_what_is_missing(pets: Path, tmp_path: Path) -> None:
    (tmp_path / "target.toml").write_text("[classes]\ncat = 1\ndog = 1\n")
    target = str(tmp_path / "target.toml")
    assert tiny.call("audit", str(pets), "--out", str(tmp_path), "--target", target) == 0
    parts = {part["name"]: part for part in facts_of(tmp_path)["target"]["parts"]}
    assert parts["dog"]["missing"] == 192 - 11
    assert parts["dog"]["want"] == 0.5


def test_a_prepared_set_trains_and_keeps_families_together(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    assert tiny.call("prepare", str(pets), str(out), "--resolution", "16", "--balance", "sqrt") == 0
    splits = json.loads((out / "splits.json").read_text("utf-8"))
    sides = {path: side for side in ("train", "val", "test") for path in splits[side]}
    dropped = {row["path"]: row["reason"] for row in splits["dropped"]}
    assert sides["cat/001.png"] == sides["dog/001.jpg"]
    assert {"cat/cut.png", "cat/empty.png", "dog/words.png"} <= set(dropped)
    assert len(sides) + len(dropped) == 206
    run = tmp_path / "run"
    options = tiny.set_options(model__attn_resolutions=[8])
    assert tiny.call("train", str(out), "--run", str(run), "--images", "64", *options) == 0
    used = json.loads((run / "splits.json").read_text("utf-8"))
    assert {side: sorted(used[side]) for side in ("train", "val", "test")} == {
        side: sorted(splits[side]) for side in ("train", "val", "test")
    }


def test_a_dry_run_writes_nothing(
    pets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "set"
    assert tiny.call("prepare", str(pets), str(out), "--dry-run") == 0
    assert not out.exists()
    assert "train" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options",
    [
        ("--drop", "brokn"),
        ("--balance", "fair"),
        ("--split", "80/20"),
        ("--engine", "dask"),
        ("--clean", "soap"),
        ("--missing", "ignore"),
    ],
)
def test_wrong_words_are_answered_with_the_known_ones(
    pets: Path, tmp_path: Path, options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert tiny.call("prepare", str(pets), str(tmp_path / "set"), *options) == 2
    assert options[1] in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_shares_and_words() -> None:
    assert arguments.parse_shares("80/10/10") == pytest.approx((0.8, 0.1, 0.1))
    assert arguments.parse_shares("0.5/0.5/0") == pytest.approx((0.5, 0.5, 0))
    assert arguments.parse_parts("drop", "none", ("a", "b")) == frozenset()
    assert arguments.parse_parts("drop", "a, b", ("a", "b")) == {"a", "b"}
    for wrong in ("80/20", "80/10/20", "0/50/50", "a/b/c", "80/10/-10"):
        with pytest.raises(UsageError, match="is no split"):
            arguments.parse_shares(wrong)
