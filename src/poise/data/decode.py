"""From the bytes of one file to pixels, and from any picture to a square of the wanted size.

Bytes are not trusted: the header is checked before memory is taken, a truncated file is an error.
"""

import contextlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from poise.errors import DataError

MAX_PIXELS = 64 * 2**20
MAX_SIDE = 30_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
_KNOWN = "PNG, JPEG, WebP, BMP, TIFF or GIF image"
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"RIFF")
_FAILURES = (  # what Pillow's decoders raise on foreign bytes
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError),
    *(ArithmeticError, NotImplementedError, struct.error, zlib.error),
)
_ORIENTATION = 0x0112  # the EXIF tag
_BITS_PER_SAMPLE = 258  # the TIFF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Undecodable(DataError):
    """A file from which no picture, or only a part of one, can be had.

    `kind` is `zero-byte`, `unreadable` (not an image), `truncated` (it begins as an image and ends
    early or is damaged), or `decompression-bomb`.
    """

    def __init__(self, kind: str, found: str, *, expected: str, remedy: str) -> None:
        super().__init__(found, expected=expected, remedy=remedy)
        self.kind = kind


@dataclass(frozen=True)
class Decoded:
    """A picture of 8 bits per channel, upright, without transparency; and what its file held."""

    image: Image.Image  # mode L or RGB
    mode: str  # as Pillow names what the file holds: RGBA, P, I;16, ...
    format: str = ""  # PNG, JPEG, WEBP, BMP, TIFF or GIF
    bits: int = 8  # per channel in the file, 1 to 32
    frames: int = 1  # of an animation; pages of a TIFF
    orientation: int = 1  # EXIF, 1 (upright) to 8; already applied to `image`
    icc: bytes = b""  # colour profile, not applied
    stored: Image.Image | None = None  # upright, before transparency or depth was removed

    @property
    def gray(self) -> bool:
        """Whether it has one channel."""
        return self.image.mode == "L"


@contextlib.contextmanager
def quiet_pillow() -> Iterator[None]:
    """No warnings inside. Warning filters belong to the process: open it outside of threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(content: bytes) -> Decoded:
    """Decode a PNG, JPEG, WebP, BMP, TIFF or GIF file in full; of an animation, the first frame.

    The EXIF orientation is applied; palettes and CMYK become RGB; transparency is laid on white;
    16 bits are scaled to 8; 1-bit becomes gray. Not for threads: see `decode_in_thread`.

    Raises:
        Undecodable: not such a file, truncated, damaged, or too large to be decoded safely.
    """
    with quiet_pillow():
        return decode_in_thread(content)


def decode_in_thread(content: bytes) -> Decoded:
    """`decode` for the inside of `quiet_pillow`, which the starter of the threads has opened."""
    with _opened(content) as image:
        mode, kind = image.mode, _format_of(image)
        try:
            # Counted first: to count the frames of a GIF is to seek, and seeking unloads it.
            frames = 1 if kind == "JPEG" else int(getattr(image, "n_frames", 1))
            image.load()
            orientation, stored = _upright(image)
            return Decoded(
                _plain(stored),
                mode,
                kind,
                _bits(image, mode, content),
                frames,
                orientation,
                image.info.get("icc_profile") or b"",
                stored,
            )
        except Image.DecompressionBombError as error:  # a frame beyond what the header said
            raise _too_large(str(error)) from None
        except _FAILURES as error:
            raise _damaged(f"damaged or truncated: {error}") from None


def decode_frames(content: bytes) -> Iterator[Image.Image]:
    """Every frame of an animation or page of a TIFF in order, mode L or RGB, as `decode` does one.

    Inside of `quiet_pillow`. Frames of a TIFF may differ in size.

    Raises:
        Undecodable: as `decode`; a damaged frame is named by its number, from 1.
    """
    with _opened(content) as image:
        many = _format_of(image) != "JPEG"
        position = 0
        while True:
            try:
                if position >= (getattr(image, "n_frames", 1) if many else 1):
                    return
                image.seek(position)
                _check_size(image)
                image.load()
                frame = _plain(_upright(image)[1])
            except Image.DecompressionBombError as error:
                raise _too_large(f"frame {position + 1}: {error}") from None
            except _FAILURES as error:
                raise _damaged(f"frame {position + 1} is damaged or truncated: {error}") from None
            yield frame
            position += 1


def read_header(content: bytes) -> tuple[int, int, bool]:
    """Width and height in pixels and whether the picture is gray, without decoding it.

    Raises:
        Undecodable: as `decode`, for what a header can show.
    """
    with _opened(content) as image:
        return (*image.size, image.mode in ("1", "L", "LA", "La", "I") or image.mode[:4] == "I;16")


def fit(image: Image.Image, resolution: int, channels: int) -> NDArray[np.uint8]:
    """The centre square, resized with antialiasing (Lanczos; enlarged with bicubic).

    Args:
        image: mode L or RGB.
        resolution: side of the result in pixels.
        channels: 1 or 3.

    Returns:
        uint8 [channels, resolution, resolution].
    """
    wanted = "L" if channels == 1 else "RGB"
    width, height = image.size
    side = min(width, height)
    if (width, height) != (resolution, resolution):
        left, top = (width - side) // 2, (height - side) // 2
        method = Image.Resampling.LANCZOS if side > resolution else Image.Resampling.BICUBIC
        box = (left, top, left + side, top + side)
        image = image.resize((resolution, resolution), method, box)
    if image.mode != wanted:
        image = image.convert(wanted)
    pixels = np.array(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _opened(content: bytes) -> Image.Image:
    """The lazily opened picture, its size checked."""
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from None
    except UnidentifiedImageError:
        if content.startswith(_MAGIC):
            raise _damaged("its header ends early or is damaged") from None
        raise Undecodable(
            "unreadable" if content else "zero-byte",
            f"not a {_KNOWN}" if content else "the file is empty",
            expected=f"a {_KNOWN}",
            remedy="Remove the file, or save the image anew.",
        ) from None
    except _FAILURES as error:
        raise _damaged(f"damaged header: {error}") from None
    try:
        _check_size(image)
    except Undecodable:
        image.close()
        raise
    return image


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise _too_large(f"the header claims {width}x{height} pixels")


def _damaged(text: str) -> Undecodable:
    return Undecodable(
        "truncated",
        text,
        expected="a whole image file",
        remedy="Copy or download the file again.",
    )


def _too_large(text: str) -> Undecodable:
    return Undecodable(
        "decompression-bomb",
        f"decompression bomb: {text.rstrip('.')}",
        expected=f"at most {MAX_PIXELS} pixels and {MAX_SIDE} per side",
        remedy="Make the image smaller if it is genuine; remove it if not.",
    )


def _format_of(image: Image.Image) -> str:
    """A phone's JPEG with a depth map or a second view behind it (MPO) is a JPEG."""
    return "JPEG" if image.format == "MPO" else image.format or ""


def _bits(image: Image.Image, mode: str, content: bytes) -> int:
    """Bits per channel of the file; Pillow reads 16-bit colour as 8-bit and does not say so."""
    if image.format == "PNG":
        return content[24]  # of the IHDR chunk, always the first
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        return int(max(tags.get(_BITS_PER_SAMPLE, (1,))))
    return 1 if mode == "1" else 8


def _upright(image: Image.Image) -> tuple[int, Image.Image]:
    """The EXIF orientation and the picture as it is meant to be seen."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        turn = _TURNS.get(orientation)
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation
        turn = None
    return (1, image) if turn is None else (orientation, image.transpose(turn))


def _plain(image: Image.Image) -> Image.Image:
    """Mode L or RGB, 8 bits, on white."""
    mode = image.mode
    if mode in ("I", "F") or mode.startswith("I;16"):
        return _from_deep(image)
    if mode in ("P", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    elif mode in ("1", "L", "RGB") and "transparency" in image.info:
        image = image.convert("RGBA" if mode == "RGB" else "LA")
    elif mode in ("La", "RGBa"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    if image.mode in ("LA", "RGBA"):
        target = image.mode.removesuffix("A")
        white = Image.new(target, image.size, "white")
        white.paste(image.convert(target), mask=image.getchannel("A"))
        return white
    if image.mode == "1":
        return image.convert("L")
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _from_deep(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit: 65535 becomes 255."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise Undecodable(
            "unreadable",
            "its pixels are neither 8-bit nor 16-bit numbers",
            expected="8 or 16 bits per channel",
            remedy="Save it anew with 8 or 16 bits; or give all as one .npy, whose numbers may be "
            "of any kind.",
        )
    scaled = (values.astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8))
