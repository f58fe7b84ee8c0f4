"""Planted truth for each kind of problem, and cuts at every point."""

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_files import bomb, encoded, picture, source_of
from PIL import Image, ImageCms

from poise.audit.look import BROKEN, Look, look_at
from poise.data.decode import quiet_pillow
from poise.data.sources import Content
from poise.errors import DataError


def look(content: Content | Exception, name: str = "a") -> Look:
    return seen(content, name)[0]


def seen(content: Content | Exception, name: str = "a") -> tuple[Look, np.ndarray]:
    with quiet_pillow():
        found, thumb = look_at(source_of([(name, content)]), 0)
    assert thumb.shape == (32, 32, 3) and thumb.dtype == np.uint8
    assert found.broken == (found.pixels == "") and (not found.broken or not thumb.any())
    return found, thumb


def kinds(content: Content | Exception, name: str = "a") -> list[str]:
    return [problem.kind for problem in look(content, name).problems]


def detail(content: Content, kind: str) -> str:
    return next(problem.detail for problem in look(content).problems if problem.kind == kind)


def many(kind: str, **options: object) -> bytes:
    frames = [picture(n) for n in range(3)]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)


def deep() -> Image.Image:
    return Image.fromarray(np.asarray(picture(1))[..., 0].astype(np.uint16) * 257)


FILES: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(picture(1)),
    "palette png": lambda: encoded(picture(1).quantize(16)),
    "16-bit png": lambda: encoded(deep()),
    "jpeg": lambda: encoded(picture(1), "JPEG"),
    "progressive jpeg": lambda: encoded(picture(1), "JPEG", progressive=True),
    "cmyk jpeg": lambda: encoded(picture(1).convert("CMYK"), "JPEG"),
    "webp": lambda: encoded(picture(1), "WEBP"),
    "lossless webp": lambda: encoded(picture(1), "WEBP", lossless=True),
    "animated webp": lambda: many("WEBP"),
    "gif": lambda: encoded(picture(1), "GIF"),
    "animated gif": lambda: many("GIF"),
    "apng": lambda: many("PNG"),
    "bmp": lambda: encoded(picture(1), "BMP"),
    "tiff": lambda: encoded(picture(1), "TIFF"),
    "lzw tiff": lambda: encoded(picture(1), "TIFF", compression="tiff_lzw"),
    "pages": lambda: many("TIFF"),
}


@pytest.mark.parametrize("kind", FILES)
def test_any_cut_is_found(kind: str) -> None:
    whole = FILES[kind]()
    assert not look(whole).broken
    last = len(whole) - (16 if kind == "pages" else 1)  # behind its last page lies no picture

    @settings(max_examples=40, deadline=None, database=None)
    @given(st.integers(1, last))
    def cut(end: int) -> None:
        assert kinds(whole[:end])[0] in ("truncated", "unreadable")

    cut()
    for end in (1, 2, len(whole) // 2, last - 1, last):
        assert kinds(whole[:end])[0] in ("truncated", "unreadable")
    assert kinds(whole[: len(whole) // 2]) == ["truncated"]


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_told_and_never_raises(content: bytes) -> None:
    assert look(content).broken


@pytest.mark.parametrize("kind", FILES)
def test_damage_never_raises(kind: str) -> None:
    whole = FILES[kind]()
    rng = np.random.default_rng(0)
    for _ in range(30):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 4):
            content[place] = rng.integers(0, 256)
        look(bytes(content))


def test_what_is_no_image() -> None:
    assert kinds(b"") == ["zero-byte"]
    assert kinds(b"<html>not found</html>", "a.jpg") == ["unreadable"]
    assert kinds(bytes(5000), "a.jpg") == ["unreadable"]
    assert kinds(bomb(40_000, 40_000)) == kinds(bomb(9_000, 9_000)) == ["decompression-bomb"]
    assert kinds(OSError("no such file")) == ["unreadable"]
    assert kinds(MemoryError()) == ["unreadable"]
    assert kinds(RecursionError("deep")) == ["unreadable"]
    missing = DataError("holds 3 missing values (NaN or infinite) of 12")
    assert kinds(missing) == ["missing-values"]
    assert {"unreadable", "zero-byte", "decompression-bomb", "missing-values"} < BROKEN


def test_damage_that_decoders_pass_over() -> None:
    large = picture(1, 300, 200)
    jpeg = encoded(large, "JPEG", quality=90)
    for share in (0.3, 0.6, 0.9):
        cut = jpeg[: int(share * len(jpeg))]
        assert kinds(cut + b"\xff\xd9") == ["truncated"]  # an end was put behind the cut
        assert kinds(cut + bytes(len(jpeg) - len(cut))) == ["truncated"]  # room was reserved
    png = bytearray(encoded(picture(1)))
    png[-20] ^= 1  # the checksum of the pixels
    assert kinds(bytes(png)) == ["truncated"]


def test_gray_corners_and_trailing_bytes_are_no_damage() -> None:
    image = picture(1, 64, 64)
    image.paste((128, 128, 128), (0, 32, 64, 64))
    assert kinds(encoded(image, "JPEG")) == []
    assert kinds(encoded(Image.new("L", (40, 40), 128), "JPEG")) == ["flat"]
    for kind in ("JPEG", "PNG", "GIF"):
        assert not look(encoded(image, kind) + b"\0\0more").broken


def test_a_film_behind_a_picture_and_a_preview_before_it() -> None:
    film = b"ftypmp42" + b"\xff\xda" * 20
    jpeg = encoded(picture(1), "JPEG")
    assert kinds(jpeg + film) == []
    preview = Image.Exif()
    content = encoded(picture(1), "JPEG", exif=preview.tobytes() + jpeg)
    assert kinds(content) == []
    assert kinds(content[: len(content) * 9 // 10] + bytes(500)) == ["truncated"]


def test_a_phone_s_second_picture_is_no_animation() -> None:
    content = encoded(picture(1), "MPO", save_all=True, append_images=[picture(2)])
    assert kinds(content, "a.jpg") == [] and look(content).format == "JPEG"


@pytest.mark.parametrize("kind", ["animated gif", "animated webp", "apng", "pages"])
def test_animations(kind: str) -> None:
    assert "animated" in kinds(FILES[kind]()) and detail(FILES[kind](), "animated")[0] == "3"


def test_modes_and_depth() -> None:
    assert kinds(FILES["palette png"]()) == ["palette"]
    assert kinds(FILES["cmyk jpeg"]()) == ["cmyk"]
    assert kinds(FILES["16-bit png"]()) == ["16-bit"]
    assert kinds(encoded(deep(), "TIFF")) == ["16-bit"]
    assert look(FILES["16-bit png"]()).mode == "I;16"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for kind in ("JPEG", "PNG", "WEBP"):
        content = encoded(picture(1), kind, icc_profile=profile)
        assert kinds(content) == ["icc"] and "sRGB" in detail(content, "icc")
    assert kinds(encoded(picture(1), icc_profile=b"nonsense")) == ["icc"]


def test_sixteen_bit_colour_which_pillow_reads_as_eight() -> None:
    from struct import pack
    from zlib import compress, crc32

    def chunk(kind: bytes, body: bytes) -> bytes:
        return pack(">I", len(body)) + kind + body + pack(">I", crc32(kind + body))

    rows = np.random.default_rng(0).integers(0, 256, (8, 8 * 6), np.uint8)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
    content += chunk(b"IDAT", compress(data)) + chunk(b"IEND", b"")
    assert "16-bit" in kinds(content)


def test_transparency_and_what_it_hides() -> None:
    rgba = picture(1).convert("RGBA")
    assert "opaque" in detail(encoded(rgba), "alpha")
    alpha = Image.new("L", rgba.size, 255)
    alpha.paste(0, (0, 0, 24, 40))
    rgba.putalpha(alpha)
    assert "hidden colours" in detail(encoded(rgba), "alpha")
    assert "50.0%" in detail(encoded(rgba), "alpha")
    clean = Image.new("RGBA", rgba.size)
    clean.paste(rgba, mask=alpha)
    assert "hidden" not in detail(encoded(clean), "alpha")
    # What is seen is the same, so these are equal pixels.
    assert look(encoded(clean)).pixels == look(encoded(rgba)).pixels


def test_wrong_extensions() -> None:
    jpeg = encoded(picture(1), "JPEG")
    found = look(jpeg, "x.y/b.png").problems
    assert [(p.kind, p.detail) for p in found] == [("wrong-extension", "is a JPEG, named .png")]
    for name in ("a.jpg", "A.JPEG", "no-suffix", "a.unknown"):
        assert kinds(jpeg, name) == []


def test_the_way_up() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = picture(3)
    content = encoded(stored, exif=exif)
    assert kinds(content) == ["exif-rotated"]
    found = look(content)
    assert (found.width, found.height) == (40, 48)
    turned = stored.transpose(Image.Transpose.ROTATE_270)
    assert found.pixels == look(encoded(turned)).pixels != look(encoded(stored)).pixels


@pytest.mark.parametrize("size", [(64, 96), (300, 211), (17, 40), (45, 31)])
def test_thumbnails_turn_with_the_picture(size: tuple[int, int]) -> None:
    image = picture(4, *size)
    thumb = seen(encoded(image))[1].astype(int)
    # A reduction by whole factors leaves a narrower last block, so a mirror may differ a little.
    for turn, turned in (
        (Image.Transpose.FLIP_LEFT_RIGHT, thumb[:, ::-1]),
        (Image.Transpose.ROTATE_90, np.rot90(thumb)),
        (Image.Transpose.TRANSPOSE, thumb.transpose(1, 0, 2)),
    ):
        other = seen(encoded(image.transpose(turn)))[1]
        assert np.abs(other - turned).max() <= 4 and np.abs(other - turned).mean() < 0.7


def test_a_thumbnail_is_the_mean_over_areas() -> None:
    values = np.random.default_rng(5).integers(0, 256, (64, 96, 3), np.uint8)
    expected = values.reshape(32, 2, 32, 3, 3).mean((1, 3))
    assert np.abs(seen(encoded(Image.fromarray(values)))[1] - expected).max() <= 0.5
    stripes = np.zeros((40, 40), np.uint8)
    stripes[:, 20:] = 255
    thumb = seen(encoded(Image.fromarray(stripes)))[1]
    assert thumb[:, :16].max() == 0 and thumb[:, 16:].min() == 255


def test_measures() -> None:
    values = np.zeros((40, 40, 3), np.uint8)
    values[:, :10] = (255, 0, 0)
    found = look(encoded(Image.fromarray(values)))
    assert found.brightness == pytest.approx(76 / 4)  # 0.299 x 255, rounded
    assert found.contrast == pytest.approx(76 * np.sqrt(3) / 4)
    assert found.saturation == pytest.approx(255 / 4, abs=1)
    assert found.plain == 0.75
    content = encoded(Image.new("RGB", (40, 30), (200, 30, 30)), "JPEG")
    assert kinds(content) == ["flat"] and "#ca1e1e" in detail(content, "flat")
    assert look(content).sha256 == hashlib.sha256(content).hexdigest()
    assert look(content).size == len(content)


def test_equal_pixels_in_other_files_are_equal() -> None:
    first = look(encoded(picture(1)))
    again = look(encoded(picture(1), "BMP"), "b.bmp")
    array = look(np.asarray(picture(1)))
    assert first.pixels == again.pixels == array.pixels
    assert len({first.sha256, again.sha256, array.sha256}) == 3
    assert first.pixels != look(encoded(picture(2))).pixels
    wide = look(np.zeros((2, 8), np.uint8))
    assert wide.pixels != look(np.zeros((4, 4), np.uint8)).pixels


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_arrays_of_any_number_of_channels(channels: int) -> None:
    values = np.random.default_rng(channels).integers(0, 256, (32, 32, channels), np.uint8)
    found, thumb = seen(values, "image-000000.png")
    assert not found.problems and (found.format, found.width) == ("array", 32)
    shown = values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, 2)
    assert np.array_equal(thumb, shown)
    if channels != 3:
        assert found.brightness == pytest.approx(values.mean(), abs=0.5)
