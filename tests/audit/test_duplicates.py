"""Copies are found in every disguise, look-alikes are not, and chains are broken."""

from pathlib import Path

import numpy as np
import pytest
from auditbench import texture
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps

from poise.audit.content.features import describe
from poise.audit.copies.duplicates import Closest, closest_across, find_duplicates
from poise.audit.copies.hashing import turned
from poise.audit.copies.linking import Pictures, near_groups
from poise.audit.copies.near import NEAR, Pairs, distances
from poise.audit.look import Look, Problem
from poise.audit.scan import Scan
from poise.data.layout import Item, Split
from poise.data.sources import open_source

Pixels = NDArray[np.uint8]


def thumb(picture: Image.Image) -> Pixels:
    return np.asarray(picture.convert("RGB").resize((32, 32), Image.Resampling.BOX))


def textures(seed: int, count: int, side: int = 96) -> list[Image.Image]:
    random = np.random.default_rng(seed)
    return [texture(random, side, side) for _ in range(count)]


def groups_of(thumbs: Pixels) -> list[list[int]]:
    pictures = Pictures.of(thumbs, np.arange(len(thumbs)))
    return [[int(pictures.rows[i]) for i in group] for group in near_groups(pictures)[0]]


def scan_of(
    tmp_path: Path,
    thumbs: Pixels,
    rows: list[tuple[str, str, int | None, Split | None]],
    broken: tuple[int, ...] = (),
) -> Scan:
    """A scan of items with (sha256, pixels, label, split)."""
    Image.fromarray(thumbs[0]).save(tmp_path / "a.png")
    source = open_source(tmp_path)
    items = tuple(Item(f"{i}.png", row[2], row[3]) for i, row in enumerate(rows))
    object.__setattr__(source, "items", items)
    problem = (Problem("truncated", ""),)
    looks = tuple(
        Look(f"{i}.png", 1, row[0], pixels=row[1], problems=problem if i in broken else ())
        for i, row in enumerate(rows)
    )
    return Scan(source, looks, thumbs)


def test_levels_are_nested_and_leaks_come_first(tmp_path: Path) -> None:
    a, b, c = textures(0, 3)
    mirrored = ImageOps.mirror(a)
    thumbs = np.stack([thumb(p) for p in (a, a, a, mirrored, b, b, c, c)])
    rows: list[tuple[str, str, int | None, Split | None]] = [
        ("a", "A", 0, "train"),
        ("a", "A", 0, "train"),
        ("a2", "A", 0, "train"),
        ("a3", "A3", 0, "test"),
        ("b", "B", 0, None),
        ("b", "B", 1, "train"),
        ("", "", 0, None),
        ("", "", 0, None),
    ]
    found = find_duplicates(scan_of(tmp_path, thumbs, rows, broken=(6, 7))).groups
    told = [(g.kind, g.members, g.cross_class, g.cross_split) for g in found]
    assert told == [
        ("near", (0, 1, 2, 3), False, True),
        ("bytes", (4, 5), True, False),
        ("pixels", (0, 1, 2), False, False),
        ("bytes", (0, 1), False, False),
    ]


@pytest.mark.parametrize("orientation", range(8))
def test_every_orientation_is_found(orientation: int) -> None:
    thumbs = np.stack([thumb(p) for p in textures(1, 12)])
    both = np.concatenate([thumbs, turned(thumbs, orientation)])
    assert groups_of(both) == [[i, i + 12] for i in range(12)]


def test_changes_of_light_and_colour_are_seen_through() -> None:
    pictures = textures(2, 20)
    changed = [ImageEnhance.Contrast(p).enhance(0.5).convert("L") for p in pictures]
    thumbs = np.stack([thumb(p) for p in (*pictures, *changed)])
    assert groups_of(thumbs) == [[i, i + 20] for i in range(20)]


def test_opposite_colours_are_another_picture() -> None:
    random = np.random.default_rng(3)
    gray = np.asarray(textures(3, 1, 32)[0].convert("L"), np.float64)
    tint = np.where(random.random((32, 32, 1)) < 0.5, [60, 0, -60], [-60, 0, 60])
    both = [np.clip(gray[..., None] * 0.4 + 80 + s * tint, 0, 255) for s in (1, -1)]
    pair = Pairs(np.array([0]), np.array([1]), np.array([0]))
    assert distances(np.stack(both).astype(np.uint8), pair)[0] > NEAR


def test_digits_and_crops_of_one_texture_are_no_copies() -> None:
    from skimage import data
    from sklearn.datasets import load_digits

    digits = [Image.fromarray((d * 15).astype(np.uint8)) for d in load_digits().images[:600]]
    assert sum(map(len, groups_of(np.stack([thumb(d) for d in digits])))) <= 4
    for pixels in (data.grass(), data.gravel()):
        crops = [
            pixels[y : y + 64, x : x + 64] for y in range(0, 449, 64) for x in range(0, 449, 64)
        ]
        assert groups_of(np.stack([thumb(Image.fromarray(c)) for c in crops])) == []


def test_a_stereo_pair_is_two_pictures() -> None:
    from skimage import data

    left, right, _ = data.stereo_motorcycle()
    assert groups_of(np.stack([thumb(Image.fromarray(p)) for p in (left, right)])) == []


def test_who_only_chains_is_let_go() -> None:
    first, last = (np.asarray(p, np.float64) for p in textures(4, 2, 32))
    steps = np.linspace(0, 1, 25)[:, None, None, None]
    chain = ((1 - steps) * first + steps * last).astype(np.uint8)
    groups = groups_of(chain)
    assert len(groups) > 1
    assert not any({0, 24} <= set(group) for group in groups)


def test_the_closest_pair_across_sides(tmp_path: Path) -> None:
    pictures = textures(5, 30)
    pictures[20] = ImageOps.mirror(ImageEnhance.Brightness(pictures[4]).enhance(0.8))
    thumbs = np.stack([thumb(p) for p in pictures])
    scan = scan_of(tmp_path, thumbs, [(f"{i}", f"{i}", None, None) for i in range(30)])
    sides = np.arange(30) // 15
    near = closest_across(scan, sides)[0]
    assert (near.first, near.second) == (4, 20) and near.distance < 0.1 and near.hamming <= 4
    sides[20] = 0
    assert closest_across(scan, sides)[0].distance > NEAR
    assert closest_across(scan, np.zeros(30, int)) == []


def test_equal_pixels_across_sides_are_found_whatever_they_show(tmp_path: Path) -> None:
    flat = np.full((3, 32, 32, 3), 7, np.uint8)
    scan = scan_of(
        tmp_path, flat, [("a", "P", None, None), ("b", "Q", None, None), ("c", "P", None, None)]
    )
    assert closest_across(scan, np.array([0, 1, 1])) == [Closest(0.0, 0, 0, 2)]


def test_features_report_only_what_is_far_closer_than_usual(tmp_path: Path) -> None:
    thumbs = np.stack([thumb(p) for p in textures(6, 200, 32)])
    rows: list[tuple[str, str, int | None, Split | None]]
    rows = [(f"{i}", f"{i}", None, None) for i in range(200)]
    features = describe(thumbs)
    assert find_duplicates(scan_of(tmp_path, thumbs, rows), features).groups == []
    features[150] = features[20]
    found = find_duplicates(scan_of(tmp_path, thumbs, rows), features).groups
    assert [(g.kind, g.members) for g in found] == [("feature", (20, 150))]
