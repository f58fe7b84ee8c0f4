"""Pictures and data sets with known content, for the tests of this folder."""

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.data.dataset import Dataset


def noise(seed: int, side: int = 12, channels: int = 3) -> NDArray[np.uint8]:
    """[side, side, 3] or [side, side], different for each seed."""
    shape = (side, side) if channels == 1 else (side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def encoded(pixels: NDArray[np.uint8] | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """The file's content."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_bomb(width: int, height: int) -> bytes:
    """A PNG of some dozen bytes whose header claims width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 100)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
    )


def write_tree(root: Path, files: dict[str, bytes]) -> Path:
    """Write files below `root`."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def flat_files(count: int, first: int = 0, folder: str = "") -> dict[str, bytes]:
    """`count` different PNGs."""
    return {f"{folder}{n:03d}.png": encoded(noise(n)) for n in range(first, first + count)}


def dataset_of(
    images: NDArray[np.uint8],
    labels: list[int] | None = None,
    given: list[str | None] | None = None,
    names: list[str] | None = None,
) -> Dataset:
    """A data set from pixels [N, C, H, W] without reading files."""
    classes = () if labels is None else tuple(f"c{k}" for k in range(max(labels) + 1))
    return Dataset(
        images=images,
        labels=None if labels is None else np.array(labels, np.int64),
        label_names=classes,
        names=tuple(names or [f"{n:05d}.png" for n in range(len(images))]),
        hashes=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in images),
        given_splits=tuple(given or [None] * len(images)),
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={"4x4": len(images)},
        modes={"L": len(images)},
    )


def distinct(keys: list[int], side: int = 4) -> NDArray[np.uint8]:
    """[N, 1, side, side]; equal keys give equal images, different keys different ones."""
    images = np.zeros((len(keys), 1, side, side), np.uint8)
    for row, key in enumerate(keys):
        images[row, 0, 0, :4] = np.frombuffer(struct.pack(">I", key), np.uint8)
    return images
