"""Planted truth for each decoding rule, and bytes that are not to be trusted."""

import numpy as np
import pytest
from pictures import encoded, noise, png_bomb
from PIL import Image

from poise.data.decode import (
    Undecodable,
    decode,
    decode_frames,
    fit,
    quiet_pillow,
    read_header,
)
from poise.errors import DataError


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(decode(content).image)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_give_the_exact_pixels(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(pixels(encoded(noise(1), kind, **options)), noise(1))


def test_other_formats_are_refused() -> None:
    with pytest.raises(DataError, match="not a PNG, JPEG, WebP, BMP, TIFF or GIF"):
        decode(encoded(noise(1), "PPM"))


@pytest.mark.parametrize("mode", ["L", "LA", "1", "I;16"])
def test_gray_modes_stay_gray(mode: str) -> None:
    image = Image.new(mode, (4, 4), 0) if mode != "LA" else Image.new("LA", (4, 4), (0, 255))
    content = encoded(image)
    assert decode(content).gray
    assert read_header(content) == (4, 4, True)
    assert pixels(content).max() == 0


def test_transparency_is_laid_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    image.putpixel((1, 0), (200, 0, 0, 0))
    assert pixels(encoded(image)).tolist() == [[[200, 0, 0], [255, 255, 255]]]
    half = Image.new("LA", (1, 1), (0, 51))  # 20 % black on white
    assert pixels(encoded(half)).tolist() == [[204]]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_palette_with_and_without_transparency(as_bytes: bool) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(encoded(image)).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    clear = encoded(image, transparency=b"\xff\x00" if as_bytes else 1)
    assert pixels(clear).tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(("mode", "key"), [("L", 7), ("RGB", (7, 7, 7))])
def test_a_transparent_colour_becomes_white(mode: str, key: object) -> None:
    image = Image.new(mode, (2, 1), key)
    image.putpixel((0, 0), 9 if mode == "L" else (9, 9, 9))
    found = pixels(encoded(image, transparency=key))
    assert found[0, 0].max() == 9 and found[0, 1].min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], np.uint16)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(pixels(encoded(Image.fromarray(values))), expected)
    assert np.array_equal(pixels(encoded(Image.fromarray(values), "TIFF")), expected)


def test_floating_point_and_32_bit_pixels_are_refused() -> None:
    for values in (np.array([[0.5]], np.float32), np.array([[70_000]], np.int32)):
        with pytest.raises(Undecodable, match="neither 8-bit nor 16-bit") as caught:
            decode(encoded(Image.fromarray(values), "TIFF"))
        assert caught.value.kind == "unreadable"  # nothing is missing from the file


def test_cmyk_becomes_rgb() -> None:
    decoded = decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert (decoded.image.mode, decoded.mode) == ("RGB", "CMYK")
    assert np.asarray(decoded.image).min() >= 254


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(kind: str) -> None:
    stored = Image.new("L", (16, 8), 0)
    stored.paste(255, (0, 0, 8, 8))  # left half white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned a quarter clockwise: the left becomes the top
    shown = pixels(encoded(stored, kind, exif=exif))
    assert shown.shape == (16, 8)
    assert shown[:7].min() > 240 and shown[9:].max() < 15


def test_broken_exif_changes_nothing() -> None:
    content = encoded(noise(1, 8), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff nonsense")
    assert pixels(content).shape == (8, 8, 3)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(noise(n)) for n in range(3)]
    content = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(pixels(content), noise(0))


def test_a_gif_is_decoded() -> None:
    image = Image.fromarray(noise(1)).quantize(16)
    content = encoded(image, "GIF")
    decoded = decode(content)
    assert (decoded.format, decoded.mode, decoded.frames) == ("GIF", "P", 1)
    assert np.array_equal(np.asarray(decoded.image), np.asarray(image.convert("RGB")))
    clear = encoded(image, "GIF", transparency=image.getpixel((0, 0)))
    assert pixels(clear)[0, 0].tolist() == [255, 255, 255]


def test_what_the_file_held_is_told() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    decoded = decode(encoded(noise(1, 8), "JPEG", exif=exif, icc_profile=b"profile"))
    assert (decoded.format, decoded.bits, decoded.frames) == ("JPEG", 8, 1)
    assert (decoded.orientation, decoded.icc) == (8, b"profile")
    deep = Image.fromarray(noise(1, 8, 1).astype(np.uint16) * 257)
    assert decode(encoded(deep)).bits == decode(encoded(deep, "TIFF")).bits == 16
    assert decode(encoded(Image.new("1", (8, 8)))).bits == 1
    stored = decode(encoded(Image.new("RGBA", (2, 2), (9, 8, 7, 0)))).stored
    assert stored is not None and stored.getpixel((0, 0)) == (9, 8, 7, 0)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_all_frames(kind: str) -> None:
    images = [Image.fromarray(noise(n)).quantize(200).convert("RGB") for n in range(3)]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(images[0], kind, save_all=True, append_images=images[1:], **options)
    assert decode(content).frames == 3
    with quiet_pillow():
        frames = [np.asarray(frame).astype(int) for frame in decode_frames(content)]
        assert len(frames) == 3
        for frame, image in zip(frames, images, strict=True):  # a GIF has one palette of 256
            assert np.abs(frame - np.asarray(image)).mean() <= (40 if kind == "GIF" else 0)
        if kind in ("GIF", "PNG"):
            with pytest.raises(DataError, match=r"frame \d is damaged"):
                list(decode_frames(content[: len(content) * 9 // 10]))
        assert len(list(decode_frames(encoded(images[0])))) == 1


def test_bad_bytes_are_errors() -> None:
    jpeg = encoded(noise(1, 64), "JPEG")
    png = encoded(noise(1, 64))
    for content, kind, text in (
        (b"", "zero-byte", "empty"),
        (b"just some text", "unreadable", "not a PNG"),
        (jpeg[: len(jpeg) // 2], "truncated", "truncated"),
        (jpeg[:10], "truncated", "header"),
        (png[: len(png) // 2], "truncated", "truncated"),
        (png_bomb(40_000, 40_000), "decompression-bomb", "decompression bomb"),
        (png_bomb(9_000, 9_000), "decompression-bomb", "bomb: the header claims 9000x9000"),
        (png_bomb(30_001, 1), "decompression-bomb", "decompression bomb"),
    ):
        with pytest.raises(Undecodable, match=text) as caught:
            decode(content)
        assert caught.value.kind == kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_damaged_bytes_raise_nothing_but_data_errors(kind: str) -> None:
    whole = bytearray(encoded(noise(3, 16), kind))
    rng = np.random.default_rng(0)
    for _ in range(150):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 4):
            content[place] = rng.integers(0, 256)
        try:
            decode(bytes(content[: rng.integers(1, len(content) + 1)]))
        except DataError:
            continue


def test_fit_crops_the_centre_and_keeps_pixels_that_fit() -> None:
    wide = np.zeros((8, 16, 3), np.uint8)
    wide[:, 4:12] = noise(5, 8)
    assert np.array_equal(fit(Image.fromarray(wide), 8, 3), noise(5, 8).transpose(2, 0, 1))


@pytest.mark.parametrize("resolution", [4, 8, 64])
def test_fit_resizes_smoothly(resolution: int) -> None:
    ramp = np.tile(np.arange(32, dtype=np.uint8) * 8, (32, 1))
    found = fit(Image.fromarray(ramp), resolution, 1)
    assert found.shape == (1, resolution, resolution) and found.dtype == np.uint8
    assert abs(found.mean() - ramp.mean()) < 2
    assert fit(Image.fromarray(ramp), resolution, 3).shape[0] == 3


def test_fit_does_not_alias() -> None:
    stripes = np.tile(np.array([0, 255], np.uint8), (32, 16))
    assert np.abs(fit(Image.fromarray(stripes), 8, 1).astype(int)[..., 1:-1] - 127.5).max() < 20
