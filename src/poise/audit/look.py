"""One look at one file: what it is, what is wrong with it, and how it looks, in numbers."""

import hashlib
import io
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.audit.sharpness import sharpness
from poise.audit.whole import damage
from poise.data.decode import Decoded, Undecodable, decode_in_thread
from poise.data.listing import told
from poise.data.sources import Source
from poise.errors import DataError, PoiseError

SIDE = 32  # of a thumbnail, in pixels
LEFT_OUT = "left-out"
BROKEN = frozenset(
    {"unreadable", "truncated", "zero-byte", "decompression-bomb", "symlink", "missing-values"}
    | {LEFT_OUT}
)  # kinds of problems with which a file cannot be trained on
_SUFFIXES = {
    "png": "PNG",
    "apng": "PNG",
    "jpg": "JPEG",
    "jpeg": "JPEG",
    "jpe": "JPEG",
    "jfif": "JPEG",
    "mpo": "JPEG",
    "dib": "BMP",
    "webp": "WEBP",
    "bmp": "BMP",
    "tif": "TIFF",
    "tiff": "TIFF",
    "gif": "GIF",
}
_FLAT = 1.5  # standard deviation of each channel, in grey levels, within one colour
_AROUND = 6  # grey levels around the commonest that count as the same
_FINE = 4  # pixels, at least, under one pixel of a thumbnail before they are averaged
_LEVELS = np.arange(256)


@dataclass(frozen=True)
class Problem:
    """A kind, such as `truncated`, and what exactly was found."""

    kind: str
    detail: str


_UNPLACED = Problem(LEFT_OUT, "no folder and no table says what it is")


@dataclass(frozen=True)
class Look:
    """What one look at a file found; where it is broken, the measures are 0."""

    name: str
    size: int  # bytes of the file or array
    sha256: str  # of the file; of shape and values for arrays; "" if it could not be read
    pixels: str = ""  # sha256 of mode, size and upright decoded pixels; "" if broken
    format: str = ""  # JPEG, PNG, WEBP, BMP, TIFF, GIF, array, or ""
    mode: str = ""  # as Pillow names what the file holds; "4 channels" for such arrays
    width: int = 0  # upright
    height: int = 0
    brightness: float = 0.0  # mean luma, 0 to 255
    contrast: float = 0.0  # standard deviation of the luma
    saturation: float = 0.0  # mean of the largest minus the smallest of R, G, B in the thumbnail
    sharpness: float = -1.0  # see `sharpness.sharpness`; -1: cannot be told
    problems: tuple[Problem, ...] = ()
    plain: float = 0.0  # share of pixels within 6 grey levels of the commonest luma

    @property
    def broken(self) -> bool:
        """Whether it cannot be trained on."""
        return any(problem.kind in BROKEN for problem in self.problems)


def look_at(source: Source, index: int) -> tuple[Look, NDArray[np.uint8]]:
    """Read, decode and measure `source.items[index]`; no bad file raises.

    To be called inside of `quiet_pillow`.

    Returns:
        The look and the thumbnail, uint8 [32, 32, 3]: the whole upright picture squeezed to a
        square by averaging areas; zeros if it is broken.
    """
    look, thumb = _looked_at(source, index)
    if not source.items[index].unplaced:
        return look, thumb
    return replace(look, problems=(*look.problems, _UNPLACED)), thumb


def _looked_at(source: Source, index: int) -> tuple[Look, NDArray[np.uint8]]:
    name = source.items[index].name
    size, digest = 0, ""
    try:
        content = source.read(index)
        if isinstance(content, bytes):
            size, digest = len(content), hashlib.sha256(content).hexdigest()
            return _of_file(name, content, digest, of_files=source.read_file is not None)
        size = content.nbytes
        return _of_array(name, content)
    except PoiseError as error:
        problem = Problem(_kind_of(error), error.found)
    except MemoryError:
        problem = Problem("unreadable", "it does not fit into memory")
    except Exception as error:  # foreign bytes fail in many ways; each is told, none stops us
        problem = Problem("unreadable", told(error))
    return broken_look(name, problem, size, digest)


def broken_look(
    name: str, problem: Problem, size: int = 0, digest: str = ""
) -> tuple[Look, NDArray[np.uint8]]:
    """The look at a file that cannot be decoded, with a black thumbnail."""
    return Look(name, size, digest, problems=(problem,)), np.zeros((SIDE, SIDE, 3), np.uint8)


def _kind_of(error: PoiseError) -> str:
    if isinstance(error, Undecodable):
        return error.kind
    if isinstance(error, DataError) and "missing value" in error.found:
        return "missing-values"
    return "unreadable"


def _of_file(
    name: str, content: bytes, digest: str, *, of_files: bool
) -> tuple[Look, NDArray[np.uint8]]:
    decoded = decode_in_thread(content)
    image = decoded.image
    if problem := damage(content, decoded.format, decoded.frames, image):
        raise Undecodable("truncated", problem, expected="a whole file", remedy="")
    look = Look(
        name=name,
        size=len(content),
        sha256=digest,
        pixels=_digest(image.mode, image.size, image.tobytes()),
        format=decoded.format,
        mode=decoded.mode,
        problems=tuple(_oddities(name, decoded, of_files=of_files)),
    )
    return _measured(look, image, image.convert("L"))


def _of_array(name: str, array: NDArray[np.uint8]) -> tuple[Look, NDArray[np.uint8]]:
    values = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    channels = 1 if values.ndim == 2 else values.shape[2]
    mode = {1: "L", 3: "RGB"}.get(channels, f"{channels} channels")
    if channels in (1, 3):
        image = Image.fromarray(np.ascontiguousarray(values))
        luma = image.convert("L")
    else:  # shown: the first three channels, or the first one three times
        three = np.repeat(values[..., :1], 3, axis=2) if channels == 2 else values[..., :3]
        image = Image.fromarray(np.ascontiguousarray(three))
        mean: NDArray[np.float32] = values.mean(axis=2, dtype=np.float32)
        luma = Image.fromarray(np.rint(mean).astype(np.uint8))
    content = np.ascontiguousarray(array).tobytes()
    look = Look(
        name=name,
        size=array.nbytes,
        sha256=hashlib.sha256(f"{array.shape}:".encode() + content).hexdigest(),
        pixels=_digest(mode, image.size, content),
        format="array",
        mode=mode,
    )
    return _measured(look, image, luma)


def _digest(mode: str, size: tuple[int, int], content: bytes) -> str:
    sha = hashlib.sha256(f"{mode}:{size[0]}x{size[1]}:".encode())
    sha.update(content)
    return sha.hexdigest()


def _measured(look: Look, image: Image.Image, luma: Image.Image) -> tuple[Look, NDArray[np.uint8]]:
    """`look` with the measures of an upright picture, mode L or RGB, and of its luma."""
    brightness, contrast, plain = _spread(luma)
    thumb = _thumbnail(image)
    problems = look.problems
    if contrast < _FLAT and float(thumb.std(axis=(0, 1)).max()) < _FLAT:
        colour = "".join(f"{round(value):02x}" for value in thumb.mean(axis=(0, 1)).tolist())
        problems += (Problem("flat", f"one colour, about #{colour}"),)
    measured = replace(
        look,
        width=image.width,
        height=image.height,
        brightness=brightness,
        contrast=contrast,
        saturation=_saturation(thumb),
        sharpness=sharpness(np.asarray(luma), contrast),
        plain=plain,
        problems=problems,
    )
    return measured, thumb


def _spread(luma: Image.Image) -> tuple[float, float, float]:
    """Mean, standard deviation, and the share of pixels around the commonest level."""
    counts = np.array(luma.histogram())
    total = luma.width * luma.height
    mean = float(counts @ _LEVELS) / total
    variance = float(counts @ _LEVELS**2) / total - mean**2
    commonest = int(counts.argmax())
    around = counts[max(commonest - _AROUND, 0) : commonest + _AROUND + 1].sum()
    return mean, math.sqrt(max(variance, 0.0)), float(around) / total


def _saturation(thumb: NDArray[np.uint8]) -> float:
    red, green, blue = thumb[..., 0], thumb[..., 1], thumb[..., 2]
    highest = np.maximum(np.maximum(red, green), blue)
    return float(np.mean(highest - np.minimum(np.minimum(red, green), blue)))


def _thumbnail(image: Image.Image) -> NDArray[np.uint8]:
    """[32, 32, 3]; each pixel is the mean over 1/32 x 1/32 of the picture."""
    width, height = image.size
    if width % SIDE == 0 and height % SIDE == 0:
        thumb = np.array(image.reduce((width // SIDE, height // SIDE)))
    else:
        across, down = max(width // (SIDE * _FINE), 1), max(height // (SIDE * _FINE), 1)
        small = np.asarray(image.reduce((across, down)), np.float32)
        rows = np.tensordot(_areas(height, down), small, (1, 0))  # [32, w] or [32, w, 3]
        cells = np.tensordot(_areas(width, across), rows, (1, 1)).swapaxes(0, 1)
        thumb = np.rint(np.clip(cells, 0, 255)).astype(np.uint8)
    return thumb if thumb.ndim == 3 else np.repeat(thumb[..., None], 3, axis=2)


@lru_cache(maxsize=64)
def _areas(side: int, factor: int) -> NDArray[np.float32]:
    """[32, ceil(side / factor)]: what share of each cell every block of `factor` pixels covers."""
    edges = np.append(np.arange(0, side, factor), side)
    cells = np.linspace(0, side, SIDE + 1)
    low = np.maximum(cells[:-1, None], edges[None, :-1])
    high = np.minimum(cells[1:, None], edges[None, 1:])
    return np.asarray(np.maximum(high - low, 0) * (SIDE / side), np.float32)


def _oddities(name: str, decoded: Decoded, *, of_files: bool) -> list[Problem]:
    """What is unusual about the file, though its picture can be used.

    Rows of a table need no suffix; files do.
    """
    stored = decoded.stored or decoded.image
    found: list[Problem] = []
    suffix = PurePosixPath(name).suffix.lower().removeprefix(".")
    known = _SUFFIXES.get(suffix, "" if of_files else decoded.format)
    if known != decoded.format:
        named = f"named .{suffix}" if suffix else "and its name does not end like one"
        found.append(Problem("wrong-extension", f"is a {decoded.format}, {named}"))
    if decoded.frames > 1:
        word = "pages" if decoded.format == "TIFF" else "frames"
        found.append(
            Problem("animated", f"{decoded.frames} {word}; only the first is used as an image")
        )
    if stored.has_transparency_data:
        found.append(Problem("alpha", _transparency(stored)))
    if decoded.mode in ("P", "PA"):
        found.append(Problem("palette", "its colours are entries of a palette"))
    if decoded.mode == "CMYK":
        found.append(Problem("cmyk", "its colours are meant for print and look different in RGB"))
    if decoded.bits > 8:
        found.append(Problem("16-bit", f"{decoded.bits} bits per channel, of which 8 are kept"))
    if decoded.orientation != 1:
        found.append(
            Problem("exif-rotated", f"EXIF orientation {decoded.orientation}, which is applied")
        )
    if decoded.icc:
        found.append(Problem("icc", f"colour profile {_profile(decoded.icc)!r}, not applied"))
    return found


def _transparency(stored: Image.Image) -> str:
    """How much is transparent, and whether colours hide below."""
    rgba = np.asarray(stored.convert("RGBA"))
    clear = rgba[..., 3] == 0
    partly = float((rgba[..., 3] < 255).mean())
    if not partly:
        return "an alpha channel, opaque everywhere"
    text = f"{partly:.1%} of it is transparent and becomes white"
    below = rgba[clear][:, :3]
    if np.any((below != 0) & (below != 255)) or np.any(below.min(1, initial=255) != below.max(1)):
        text += "; hidden colours lie under the transparent part"
    return text


@lru_cache(maxsize=16)
def _profile(icc: bytes) -> str:
    try:
        from PIL import ImageCms

        return ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(icc))).strip()
    except Exception:  # a damaged profile has no name; the picture is whole all the same
        return "of unknown name"
