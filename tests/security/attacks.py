"""Attacks to plant: payloads that leave a canary, bombs, names; and a look at peak memory."""

import os
import pickle
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TAG = "<img src=x onerror=alert(1)>"
CLOSING = "<\u2215script><script>alert(1)"  # no file name holds a slash
CODES = "\x1b[31mred\x1b]0;owned\x07\r\nDone. Report: fake \u202e"
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Payload:
    """Unpickles as `touch canary`."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.canary}",)


def live(canary: Path) -> bytes:
    """A pickle that was seen to work: it made the canary, which is gone again."""
    content = pickle.dumps(Payload(canary))
    pickle.loads(content)
    assert canary.exists()
    canary.unlink()
    return content


class Peak:
    """What a block took at most beyond what was in use before, in MiB."""

    mib = 0.0


@contextmanager
def peak() -> Iterator[Peak]:
    """Measured by the system, so that what libraries take counts too."""
    found = Peak()
    try:
        _RESET.write_text("5")
    except OSError:
        pytest.skip("this system does not say how much memory was in use at most")
    before = _highest()
    yield found
    found.mib = (_highest() - before) / 1024


def _highest() -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def photos(folder: Path, count: int = 12, side: int = 8) -> Path:
    """PNGs of noise, all different."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = np.random.default_rng(len(str(folder)))
    for number in range(count):
        pixels = chance.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def png(width: int, height: int, *, whole: bool) -> bytes:
    """A black PNG of 1 bit; where it is not whole, little more than its header."""
    packer = zlib.compressobj(1)
    rows = bytes(100 * (1 + -(-width // 8))) if whole else bytes(100)
    body = b"".join(packer.compress(rows) for _ in range(-(-height // 100) if whole else 1))
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", body + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def gif(frames: int) -> bytes:
    """A GIF of 8x8 black pixels and as many frames of one pixel."""
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * frames + b";"


def fits(side: int) -> bytes:
    """The header of a FITS file that claims a square of bytes."""
    cards = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "2", "NAXIS1": str(side), "NAXIS2": str(side)}
    text = "".join(f"{key:8}= {value:>20}".ljust(80) for key, value in cards.items())
    return (text + "END".ljust(80)).ljust(2880).encode()


def tree(root: Path) -> set[str]:
    """Every path below `root`."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def contents(root: Path) -> bytes:
    """All bytes of all files below `root`."""
    return b"\n".join(p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file())
