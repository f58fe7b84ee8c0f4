"""Image files as data URIs, kept small enough for a page that can be mailed."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

_WIDTHS = (1600, 1000, 700, 450)


@dataclass(frozen=True)
class Picture:
    """One image ready for the page."""

    uri: str
    width: int  # of the original, in pixels
    height: int
    reduced: bool  # compressed or scaled down to fit


def embed(path: Path, allowance: int) -> Picture | None:
    """The image in at most about `allowance` bytes before base64; None if it cannot be read."""
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            image.load()
            width, height = image.size
            if len(content) <= allowance:
                return Picture(_uri("png", content), width, height, reduced=False)
            small = _reduce(image.convert("RGB"), allowance)
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    return Picture(_uri("jpeg", small), width, height, reduced=True)


def _reduce(image: Image.Image, allowance: int) -> bytes:
    """JPEG at the largest width that fits, or the smallest one tried."""
    content = b""
    for width in _WIDTHS:
        if width > image.width and content:
            continue
        height = max(1, round(image.height * width / image.width))
        scaled = image if width >= image.width else image.resize((width, height))
        stream = io.BytesIO()
        scaled.save(stream, "JPEG", quality=85)
        content = stream.getvalue()
        if len(content) <= allowance:
            break
    return content


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
