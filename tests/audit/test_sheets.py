"""Pictures on the page are the pictures of the set, small, whole, and few are read again."""

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from planted_page import diversity_of, scan_of

from poise.audit.page import sheets
from poise.audit.page.map import cluster_map
from poise.audit.page.sheets import Album, Tile
from poise.audit.scan import Scan
from poise.report.page import Html


def noise(count: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8))


def pictures_of(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/webp;base64,([^"]*)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in found]


def names(count: int) -> list[str]:
    return [f"{i:04d}.png" for i in range(count)]


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 3), (31, 48, 3), (1, 1)])
def test_tiny_pictures_keep_every_pixel(shape: tuple[int, ...]) -> None:
    pixels = noise(1, shape)
    html = Album(scan_of(pixels, ["a.png"])).draw("a.png")
    (shown,) = pictures_of(html)
    wanted = Image.fromarray(pixels[0]).convert("RGB")
    assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(wanted))
    assert 'class="pixels"' in html


@given(st.integers(1, 600), st.integers(1, 600))
@settings(max_examples=25, deadline=None)
def test_any_proportions_fit_a_tile(width: int, height: int) -> None:
    scan = scan_of([np.full((height, width, 3), 200, np.uint8)], ["a.png"])
    (shown,) = pictures_of(Album(scan).draw("a.png"))
    assert max(shown.size) == min(160, max(width, height))
    longest = max(width, height)
    scale = min(1.0, 160 / longest)
    assert abs(shown.width - width * scale) < 1.01 and abs(shown.height - height * scale) < 1.01


def test_files_are_read_once_and_at_most_400_of_them() -> None:
    read: list[int] = []
    pictures = noise(500, (4, 4, 3))
    scan = scan_of(pictures, names(500))

    def reader(i: int) -> np.ndarray:
        read.append(i)
        return pictures[i]

    scan = replace(scan, source=replace(scan.source, read=reader))
    album = Album(scan)
    for name in [*names(500), *names(500)]:
        assert len(pictures_of(album.draw(name))) == 1
    assert read == list(range(400))


def test_pixels_that_are_decoded_again_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheets, "_PIXELS", 10_000)
    read: list[int] = []
    pictures = noise(4, (60, 60, 3))
    scan = scan_of(pictures, names(4))

    def reader(i: int) -> np.ndarray:
        read.append(i)
        return pictures[i]

    album = Album(replace(scan, source=replace(scan.source, read=reader)))
    assert all(len(pictures_of(album.draw(name))) == 1 for name in names(4))
    assert read == [0, 1]


@pytest.mark.parametrize(
    "content", [b"", b"not a picture", OSError("gone"), np.zeros((9, 18, 5), np.uint8)]
)
def test_what_cannot_be_read_again_is_shown_by_its_thumbnail(content: object) -> None:
    scan = scan_of([np.full((90, 180, 3), (250, 10, 10), np.uint8)], ["a.png"])

    def reader(i: int) -> object:
        if isinstance(content, Exception):
            raise content
        return content

    album = Album(replace(scan, source=replace(scan.source, read=reader)))
    (shown,) = pictures_of(album.draw("a.png"))
    assert shown.size == (64, 32)  # the squeezed thumbnail in the proportions of the picture
    red, green, _ = np.asarray(shown.convert("RGB")).reshape(-1, 3).mean(0)
    assert red > 200 and green < 60


def test_broken_and_unknown_files_have_no_picture() -> None:
    album = Album(scan_of(noise(2, (8, 8)), names(2), broken=(1,)))
    assert pictures_of(album.draw("0001.png")) == []
    assert pictures_of(album.draw("elsewhere.png")) == []


def test_sharpness_is_judged_by_the_middle_at_its_own_pixels() -> None:
    picture = np.zeros((500, 400, 3), np.uint8)
    picture[170:330, 120:280] = 255
    (shown,) = pictures_of(Album(scan_of([picture], ["a.png"])).draw("a.png", detail=True))
    assert shown.size == (160, 160) and np.asarray(shown.convert("L")).min() > 250


def test_a_group_shows_both_sides_of_a_conflict() -> None:
    scan = scan_of(noise(40, (8, 8)), names(40), ("cat", "dog"))
    album = Album(scan)
    paths = [*names(40)[::2], "0001.png"]  # twenty cats of the training split and one test dog
    assert [album.class_of(path) for path in sheets.spread_out(album, paths, 4)] == [
        "cat", "dog", "cat", "cat",
    ]  # fmt: skip
    html = sheets.group(album, Html("head"), paths)
    assert "dog, test" in html and len(pictures_of(html)) == 4 and "and 17 more" in html


@given(st.text(min_size=1))
@settings(max_examples=40, deadline=None)
def test_no_name_adds_an_element(name: str) -> None:
    scan = scan_of([np.zeros((2, 2), np.uint8)], [name], (name,))
    html = sheets.sheet(Album(scan), [Tile(name, name, flagged=True)])
    tags = re.findall(r"<[^>]*>", html.replace("<wbr>", ""))
    assert [tag.split()[0].strip("</>") for tag in tags] == [
        "div", "figure", "img", "figcaption", "b", "b", "span", "span", "span", "span",
        "figcaption", "figure", "div",
    ]  # fmt: skip


def on_map(scan: Scan, diversity: dict) -> tuple[Image.Image | None, int, str]:
    html, shown = cluster_map(scan, Album(scan), diversity["map"], diversity["clusters"])
    found = pictures_of(html)
    return (found[0] if found else None), shown, html


def test_the_map_puts_pictures_where_their_coordinates_say() -> None:
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    scan = scan_of([np.full((8, 8, 3), c, np.uint8) for c in colours], names(3))
    given_places = [(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    points = [
        {"path": path, "x": x, "y": y, "cluster": 0}
        for path, (x, y) in zip(names(3), given_places, strict=True)
    ]
    image, shown, _ = on_map(scan, {"map": points, "clusters": []})
    assert shown == 3 and image is not None
    pixels = np.asarray(image.convert("RGBA")).astype(int)
    for (x, y), colour in zip(given_places, colours, strict=True):
        column = 20 if x == 0 else image.width - 20
        row = image.height - 20 if y == 0 else 20
        assert np.abs(pixels[row, column, :3] - colour).max() < 40
    assert pixels[20, 20, 3] == 0  # nothing lies at the upper left


def test_the_map_frames_and_numbers_what_is_remarkable() -> None:
    scan = scan_of(noise(90, (8, 8, 3)), names(90), ("<b>",))
    image, shown, html = on_map(scan, diversity_of(names(90), ("<b>",)))
    assert image is not None and 60 < shown <= 90
    assert html.count('<span class="crowded"') == 1 and html.count('<span class="near-empty"') == 1


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_points_or_none_make_a_map_or_none(count: int) -> None:
    scan = scan_of(noise(2, (8, 8)), names(2))
    points = [{"path": name, "x": 0.5, "y": 0.5, "cluster": 0} for name in names(count)]
    odd = [{"path": "0000.png", "x": float("nan"), "y": None}, {"path": "away", "x": 1, "y": 1}]
    image, shown, _ = on_map(scan, {"map": [*points, *odd], "clusters": [{"id": 0}]})
    assert shown == count and (image is None) == (count == 0)


def test_1500_points_on_a_map_of_bounded_size() -> None:
    scan = scan_of(noise(1500, (8, 8, 3)), names(1500))
    image, shown, html = on_map(scan, diversity_of(names(1500), ()))
    assert image is not None and image.width <= 960 and image.height <= 680
    assert shown > 500 and len(html) < 1_000_000
