"""Odd pictures among usual ones are found; sets that are odd as a whole are left alone."""

import io
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import pytest
import skimage.data
from numpy.typing import NDArray
from odd_files import source_of
from PIL import Image, ImageFilter

from poise.audit import quality
from poise.audit.look import Look, Problem, look_at
from poise.audit.quality import SHOWN, flag, proposed_resolution, ranked, soft_set, spread
from poise.audit.scan import Scan
from poise.audit.sharpness import sharpness
from poise.data.sources import open_source

NAMES = ("astronaut", "coffee", "chelsea", "rocket", "camera", "coins", "brick", "grass", "gravel")


@lru_cache
def photographs() -> dict[str, Image.Image]:
    found = {name: getattr(skimage.data, name)() for name in NAMES}
    return {name: Image.fromarray(values).convert("L") for name, values in found.items()}


def crops(sides: Sequence[int]) -> list[Image.Image]:
    """Parts of each photograph, shrunk to each side; never enlarged."""
    found = []
    for index, image in enumerate(photographs().values()):
        rng = np.random.default_rng(index)
        for side in sides:
            whole = int(rng.integers(min(side, *image.size), min(image.size) + 1))
            x, y = (int(rng.integers(0, length - whole + 1)) for length in image.size)
            part = image.crop((x, y, x + whole, y + whole))
            found.append(part.resize((min(side, whole),) * 2, Image.Resampling.LANCZOS))
    return found


def stored(image: Image.Image, quality: int) -> Image.Image:
    """As a JPEG of that quality brings it back; 100: as it is."""
    if quality == 100:
        return image
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def measured(image: Image.Image) -> float:
    values = np.asarray(image)
    return sharpness(values, float(values.std()))


def scan_of(pictures: Sequence[NDArray[np.uint8]]) -> Scan:
    source = source_of([(f"{index:03d}", values) for index, values in enumerate(pictures)])
    pairs = [look_at(source, index) for index in range(len(pictures))]
    return Scan(source, tuple(p[0] for p in pairs), np.stack([p[1] for p in pairs]))


def flagged(scan: Scan, kind: str) -> list[int]:
    found = flag(scan.looks)
    return [n for n, problems in enumerate(found) if any(p.kind == kind for p in problems)]


def usual(count: int = 40, side: int = 48) -> list[NDArray[np.uint8]]:
    """Sharp parts of photographs; a crop from behind the subject would be soft by itself."""
    parts = crops([side] * (count // len(NAMES) + 2))
    return [np.asarray(part) for part in parts if measured(part) > 0.3][:count]


def test_blur_of_two_pixels_is_found_and_clean_photographs_are_not() -> None:
    clean = crops((40, 64, 96, 150, 250, 380))
    qualities = (75, 85, 95, 100)
    false = blurred = found = 0
    for index, image in enumerate(clean):
        false += 0 <= measured(stored(image, qualities[index % 4])) < 0.25
        for sigma in (2, 4):
            soft = image.filter(ImageFilter.GaussianBlur(sigma))
            blurred += 1
            found += 0 <= measured(stored(soft, qualities[(index + sigma) % 4])) < 0.25
    assert found / blurred >= 0.95
    assert false / len(clean) <= 0.01


def test_a_shallow_depth_of_field_is_sharp() -> None:
    for image in crops((300,)):
        soft = image.filter(ImageFilter.GaussianBlur(5))
        soft.paste(image.crop((40, 60, 190, 210)), (40, 60))
        assert measured(soft) > 0.25


def test_sharpness_does_not_depend_on_contrast_or_turns() -> None:
    image = crops((128,))[1]
    pale = image.point(lambda value: 100 + value // 3)
    assert measured(pale) == pytest.approx(measured(image), rel=0.15)
    assert measured(image.transpose(Image.Transpose.ROTATE_90)) == pytest.approx(measured(image))


def test_sharpness_is_not_told_where_it_cannot_be() -> None:
    assert measured(Image.new("L", (64, 64), 90)) == -1
    assert measured(crops((128,))[0].resize((31, 31))) == -1


def test_large_pictures_are_judged_at_a_smaller_size() -> None:
    small = crops((300,))[0].resize((1024, 1024), Image.Resampling.BICUBIC)
    large = small.resize((2048, 2048), Image.Resampling.BICUBIC)
    assert measured(large) == pytest.approx(measured(small), rel=0.1)


def test_planted_odd_pictures_are_found_and_no_others() -> None:
    pictures = usual()
    odd: dict[str, Callable[[], NDArray[np.uint8]]] = {
        "too-dark": lambda: pictures[0] // 12,
        "too-light": lambda: 255 - (255 - pictures[0]) // 12,
        "blurred": lambda: np.asarray(
            Image.fromarray(pictures[5]).filter(ImageFilter.GaussianBlur(2.5))
        ),
        "size-outlier": lambda: np.asarray(Image.fromarray(pictures[5]).resize((400, 400))),
        "aspect-outlier": lambda: np.asarray(Image.fromarray(pictures[5]).resize((48, 144))),
        "too-small": lambda: np.asarray(Image.fromarray(pictures[5]).resize((24, 24))),
        "near-empty": lambda: np.pad(pictures[0][:5, :5], (0, 43), constant_values=140),
    }
    pictures += [make() for make in odd.values()]
    scan = scan_of(pictures)
    for place, kind in enumerate(odd):
        assert 40 + place in flagged(scan, kind), kind
        # One picture may be odd in two ways: an enlarged one is soft.
        assert all(n >= 40 for n in flagged(scan, kind)), kind


def test_a_set_that_is_dark_as_a_whole_is_not_dark() -> None:
    dark = [values // 10 for values in usual(60)]
    assert len(flagged(scan_of(dark), "too-dark")) <= 2
    black = scan_of([*dark, np.zeros((48, 48), np.uint8) + np.uint8(1)])
    assert 60 in flagged(black, "too-dark")


def test_digits_and_drawings_are_not_flagged() -> None:
    source = open_source("digits")
    scan = Scan(source, tuple(look_at(source, n)[0] for n in range(300)), np.zeros(0, np.uint8))
    assert sum(bool(problems) for problems in flag(scan.looks)) <= 5
    assert proposed_resolution(scan.looks) == 8
    rng = np.random.default_rng(0)
    drawings = []
    for _ in range(60):  # a thin frame somewhere on white paper
        page = np.full((64, 64), 255, np.uint8)
        x, y, w, h = (int(v) for v in rng.integers(4, 28, 4))
        page[y : y + h, x] = page[y : y + h, x + w] = page[y, x : x + w] = 0
        drawings.append(page)
    assert sum(bool(problems) for problems in flag(scan_of(drawings).looks)) <= 3


def test_a_soft_set_is_a_fact_about_the_set() -> None:
    sharp = usual(45, 64)
    soft = [np.asarray(Image.fromarray(v).filter(ImageFilter.GaussianBlur(2.5))) for v in sharp]
    assert soft_set(scan_of(sharp)) < 0.05
    assert soft_set(scan_of(soft)) > 0.9
    assert len(flagged(scan_of(soft), "blurred")) <= 2
    mixed = scan_of([*sharp, *soft[:15]])
    assert len(set(flagged(mixed, "blurred")) & set(range(45, 60))) >= 14


def test_the_proposed_resolution_is_the_rule_of_training() -> None:
    def look(side: int) -> Look:
        return Look("a", 1, "", "x", width=side, height=side + 9)

    for side, wanted in ((1, 8), (8, 8), (31, 16), (32, 32), (63, 32), (4000, 64)):
        assert proposed_resolution([look(side)] * 3) == wanted
    assert proposed_resolution([]) == 8


def test_lists_and_spread() -> None:
    pictures = [np.full((16, 16), level, np.uint8) for level in range(60)]
    scan = scan_of(pictures)
    lists = ranked(quality.flagged(scan))
    assert {len(rows) for kind, rows in lists.items() if kind != "blurred"} == {SHOWN}
    assert lists["blurred"] == []
    assert lists["too-dark"][0] == {"path": "000", "value": 0.0, "flagged": True}
    assert lists["too-light"][0]["path"] == "059" and not lists["too-light"][0]["flagged"]
    assert all(row["flagged"] for row in lists["flat"])
    assert spread(scan)["brightness"] == pytest.approx({"low": 2.95, "median": 29.5, "high": 56.05})
    assert "sharpness" not in spread(scan)


def test_broken_and_no_pictures() -> None:
    broken = Look("a", 0, "", problems=(Problem("zero-byte", "the file is empty"),))
    scan = Scan(source_of([("a", b"")]), (broken,), np.zeros((1, 32, 32, 3), np.uint8))
    assert flag(scan.looks) == [()] and flag([]) == []
    assert spread(scan) == {} and soft_set(scan) == 0
    assert ranked(scan)["flat"] == []
