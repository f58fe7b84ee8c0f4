"""Files with planted oddities and damage."""

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from poise.data.layout import Item
from poise.data.sources import Content, Source


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth coloured picture without symmetry."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file's content."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def bomb(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes whose header claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def source_of(files: Sequence[tuple[str, Content | Exception]]) -> Source:
    """A source of named contents; an exception is raised when its item is read."""

    def read(index: int) -> Content:
        content = files[index][1]
        if isinstance(content, Exception):
            raise content
        return content

    return Source("planted", tuple(Item(name, None, None) for name, _ in files), (), read)


def write_all(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder
