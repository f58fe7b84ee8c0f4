"""From the bytes of one file to pixels, and from any picture to a square of the wanted size.

Bytes are not trusted: the header is checked before memory is taken, a truncated file is an error.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from poise.errors import DataError

MAX_PIXELS = 64 * 2**20
MAX_SIDE = 30_000
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class Decoded:
    """A picture of 8 bits per channel, upright, without transparency."""

    image: Image.Image  # mode L or RGB
    mode: str  # as Pillow names what the file holds: RGBA, P, I;16, ...

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
    """Decode a PNG, JPEG, WebP, BMP or TIFF file in full; of an animation, the first frame.

    The EXIF orientation is applied; palettes and CMYK become RGB; transparency is laid on white;
    16 bits are scaled to 8; 1-bit becomes gray. Not for threads: see `decode_in_thread`.

    Raises:
        DataError: not such a file, truncated, damaged, or too large to be decoded safely.
    """
    with quiet_pillow():
        return decode_in_thread(content)


def decode_in_thread(content: bytes) -> Decoded:
    """`decode` for the inside of `quiet_pillow`, which the starter of the threads has opened."""
    with _opened(content) as image:
        mode = image.mode
        try:
            image.load()
            return Decoded(_plain(_upright(image)), mode)
        except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
            raise DataError(
                f"damaged or truncated: {error}",
                expected="a whole image file",
                remedy="Copy or download the file again.",
            ) from None


def read_header(content: bytes) -> tuple[int, int, bool]:
    """Width and height in pixels and whether the picture is gray, without decoding it.

    Raises:
        DataError: as `decode`, for what a header can show.
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
        raise DataError(
            "the file is empty" if not content else "not a PNG, JPEG, WebP, BMP or TIFF image",
            expected="a PNG, JPEG, WebP, BMP or TIFF image",
            remedy="Remove the file, or save the image anew.",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:
        raise DataError(
            f"damaged header: {error}",
            expected="a whole image file",
            remedy="Copy or download the file again.",
        ) from None
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        image.close()
        raise _too_large(f"the header claims {width}x{height} pixels")
    return image


def _too_large(text: str) -> DataError:
    return DataError(
        f"decompression bomb: {text.rstrip('.')}",
        expected=f"at most {MAX_PIXELS} pixels and {MAX_SIDE} per side",
        remedy="Make the image smaller if it is genuine; remove it if not.",
    )


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be parsed says nothing about the orientation
        turn = None
    return image if turn is None else image.transpose(turn)


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
        raise ValueError("pixels are neither 8-bit nor 16-bit numbers")
    scaled = (values.astype(np.uint32) + 128) // 257
    return Image.fromarray(scaled.astype(np.uint8))
