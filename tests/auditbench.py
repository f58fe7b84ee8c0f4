"""A folder of pictures with planted defects, and the truth about each of them.

Originals are procedural (1/f textures with shapes) and real photographs (crops of pictures that
come with scikit-image and scikit-learn). Copies, faults and oddities are planted from a seed.
Every file is in the manifest: which picture it shows, what was done to it, and how much.
"""

import io
import itertools
import os
import struct
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageEnhance, ImageFilter, ImageOps

CLASSES = ("amber", "birch", "coral", "dune")
SHARES = (0.4, 0.3, 0.2, 0.1)  # of the originals: a known imbalance
NEAR = (
    *("jpeg95", "jpeg75", "jpeg40", "half", "double", "crop2", "mirror", "upside-down"),
    *("turn90", "turn180", "turn270", "brighter", "darker", "gray-l", "gray-rgb", "contrast"),
)  # kinds that must be found as near duplicates
UNGRADED = ("crop6", "crop12", "blur1", "blur2", "blur4", "dark", "light", "rgba", "cmyk")
BROKEN = ("truncated", "garbage", "zero", "text", "bomb")
_PHOTOS = (
    *("astronaut", "coffee", "chelsea", "rocket", "hubble_deep_field", "retina"),
    "immunohistochemistry",
)


@dataclass(frozen=True)
class Planted:
    """One file: the number of the picture it shows, the kind of plant, its parameters."""

    group: int
    kind: str
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Truth:
    """What is in the folder, by path with / in it."""

    folder: Path
    files: dict[str, Planted] = field(default_factory=dict)

    def of(self, *kinds: str) -> list[str]:
        """Paths of files of these kinds."""
        return [path for path, planted in self.files.items() if planted.kind in kinds]

    def shown(self, group: int) -> list[str]:
        """Paths of the files that show one picture; its original first."""
        return [path for path, planted in self.files.items() if planted.group == group]

    def class_of(self, path: str) -> str:
        """The folder a file lies in."""
        return path.split("/")[-2]

    def split_of(self, path: str) -> str | None:
        """The split a file was given, if any."""
        return path.split("/")[0] if path.count("/") == 2 else None


@dataclass(frozen=True)
class Scores:
    """`precision` over all pairs found; `recall` of (original, copy) by kind; what was wrong."""

    precision: float
    recall: dict[str, float]
    wrong: list[tuple[str, str]]
    missed: list[tuple[str, str]]


def score_pairs(found: Iterable[Iterable[str]], truth: Truth) -> Scores:
    """Judge groups of paths as pairs."""
    pairs = {pair for group in found for pair in itertools.combinations(sorted(group), 2)}
    wrong = [p for p in pairs if truth.files[p[0]].group != truth.files[p[1]].group]
    originals = {p.group: path for path, p in truth.files.items() if p.kind == "original"}
    hits: dict[str, list[bool]] = defaultdict(list)
    missed = []
    for path, planted in truth.files.items():
        if planted.kind != "original" and planted.group in originals:
            first, second = sorted((originals[planted.group], path))
            hits[planted.kind].append((first, second) in pairs)
            if not hits[planted.kind][-1]:
                missed.append((planted.kind, path))
    recall = {kind: sum(each) / len(each) for kind, each in hits.items()}
    return Scores(1 - len(wrong) / max(1, len(pairs)), recall, sorted(wrong), missed)


def make(folder: Path, *, seed: int = 0, originals: int = 60, splits: bool = False) -> Truth:
    """Write the folder: about 21 files for each original, and some 60 more.

    Args:
        folder: made if it is not there.
        seed: another seed gives other pictures and other plants.
        originals: pictures that are copied; one in three is a photograph.
        splits: put everything under train/, and copies of every level of some under test/.
    """
    writer = _Writer(Truth(folder), np.random.default_rng(seed), "train/" if splits else "")
    pictures = [_original(writer, number) for number in range(originals)]
    for number, (name, picture) in enumerate(pictures):
        _copies(writer, number, name, picture)
    for number, (name, picture) in enumerate(pictures[:: max(1, originals // 10)]):
        _oddities(writer, number * max(1, originals // 10), name, picture)
        _flipped_label(writer, number * max(1, originals // 10), name, picture)
    _clean(writer, originals)
    _low_content(writer)
    _broken(writer, pictures[0][1])
    if splits:
        for number in range(0, originals, 3):
            _leaks(writer, number, *pictures[number])
    return writer.truth


class _Writer:
    """Writes files and remembers the truth."""

    def __init__(self, truth: Truth, random: np.random.Generator, root: str) -> None:
        self.truth, self.random, self.root = truth, random, root
        self.next_group = 10_000

    def new_group(self) -> int:
        self.next_group += 1
        return self.next_group

    def put(self, path: str, content: bytes, planted: Planted) -> str:
        path = path if path.startswith("test/") else self.root + path
        place = self.truth.folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        assert path not in self.truth.files
        place.write_bytes(content)
        self.truth.files[path] = planted
        return path


def _encoded(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    if kind == "PNG":
        options = {"compress_level": 1, **options}
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _class(number: int, originals_share: float) -> str:
    return CLASSES[int(np.searchsorted(np.cumsum(SHARES), originals_share, side="right"))]


def texture(random: np.random.Generator, width: int, height: int) -> Image.Image:
    """A 1/f texture in some colours, with a few ellipses, boxes and lines."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    amplitude = np.maximum(np.hypot(fy, fx), 1 / max(width, height)) ** -random.uniform(0.9, 1.4)
    layers = []
    for _ in range(2):
        noise = np.fft.rfft2(random.standard_normal((height, width)))
        layer = np.fft.irfft2(noise * amplitude, (height, width))
        layers.append((layer - layer.mean()) / layer.std())
    mixing = random.uniform(-1, 1, (2, 3))
    mixing[0] = random.uniform(0.5, 1, 3)
    values = random.uniform(90, 165, 3) + 38 * np.tensordot(layers, mixing, (0, 0))
    picture = Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(2, 7))):
        x, y = random.uniform(-0.1, 0.9) * width, random.uniform(-0.1, 0.9) * height
        box = (x, y, x + random.uniform(0.1, 0.5) * width, y + random.uniform(0.1, 0.5) * height)
        colour = tuple(int(v) for v in random.integers(0, 256, 3))
        shape = random.choice(["ellipse", "rectangle", "line"])
        if shape == "line":
            draw.line(box, fill=colour, width=int(random.integers(2, 7)))
        else:
            getattr(draw, shape)(box, fill=colour)
    return picture


@lru_cache(maxsize=1)
def _photographs() -> list[Image.Image]:
    """Crops of real photographs that do not overlap, in mixed order."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    whole = [Image.fromarray(getattr(data, name)()).convert("RGB") for name in _PHOTOS]
    whole += [Image.fromarray(pixels) for pixels in load_sample_images().images]
    crops = []
    for picture in whole:
        side = min(picture.size) // 2
        scaled = (
            picture
            if side <= 240
            else picture.resize(
                tuple(round(s * 240 / side) for s in picture.size), Image.Resampling.LANCZOS
            )
        )
        side = min(side, 240) - 1
        for top in range(0, scaled.height - side + 1, side):
            for left in range(0, scaled.width - side + 1, side):
                crops.append(scaled.crop((left, top, left + side, top + side)))
    structured = [crop for crop in crops if np.asarray(crop.convert("L")).std() > 25]
    order = np.random.default_rng(0).permutation(len(structured))
    return [structured[i] for i in order]


def _original(writer: _Writer, number: int) -> tuple[str, Image.Image]:
    photographs = _photographs()
    if number % 3 == 2 and number // 3 < len(photographs) // 2:
        picture = photographs[number // 3]
    else:
        width, height = (int(s) for s in writer.random.integers(96, 321, 2))
        picture = texture(writer.random, width, height)
    share = (number * 0.6180339887) % 1  # spread evenly over the classes
    name = f"{_class(number, share)}/{number:04d}"
    writer.put(f"{name}.png", _encoded(picture), Planted(number, "original"))
    return name, picture


def _changes(random: np.random.Generator) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """What is done to the pixels for each kind of copy that is saved without loss."""
    turn = Image.Transpose
    up, down = float(random.uniform(1.15, 1.35)), float(random.uniform(0.6, 0.85))
    return {
        "half": lambda p: p.resize((p.width // 2, p.height // 2), Image.Resampling.BICUBIC),
        "double": lambda p: p.resize((p.width * 3 // 2, p.height * 3 // 2)),
        "crop2": lambda p: p.crop((2, 2, p.width - 2, p.height - 2)),
        "crop6": lambda p: p.crop((6, 6, p.width - 6, p.height - 6)),
        "crop12": lambda p: p.crop((12, 12, p.width - 12, p.height - 12)),
        "mirror": ImageOps.mirror,
        "upside-down": ImageOps.flip,
        "turn90": lambda p: p.transpose(turn.ROTATE_90),
        "turn180": lambda p: p.transpose(turn.ROTATE_180),
        "turn270": lambda p: p.transpose(turn.ROTATE_270),
        "brighter": lambda p: ImageEnhance.Brightness(p).enhance(up),
        "darker": lambda p: ImageEnhance.Brightness(p).enhance(down),
        "contrast": lambda p: ImageEnhance.Contrast(p).enhance(down),
        "gray-l": lambda p: p.convert("L"),
        "gray-rgb": lambda p: p.convert("L").convert("RGB"),
    }


def _copies(writer: _Writer, number: int, name: str, picture: Image.Image) -> None:
    """Every kind of copy that must be found, beside the original."""
    same = _encoded(picture)
    writer.put(f"{name}-bytes.png", same, Planted(number, "bytes"))
    again = _encoded(picture, compress_level=6) if number % 2 else _encoded(picture, "BMP")
    suffix = "png" if number % 2 else "bmp"
    writer.put(f"{name}-pixels.{suffix}", again, Planted(number, "pixels"))
    for quality in (95, 75, 40):
        content = _encoded(picture, "JPEG", quality=quality)
        planted = Planted(number, f"jpeg{quality}", {"quality": quality})
        writer.put(f"{name}-jpeg{quality}.jpg", content, planted)
    for kind, change in _changes(writer.random).items():
        if kind in NEAR or number % 4 == 0:
            writer.put(f"{name}-{kind}.png", _encoded(change(picture)), Planted(number, kind))
    if number % 4 == 0:
        for sigma in (1, 2, 4):
            blurred = picture.filter(ImageFilter.GaussianBlur(sigma))
            planted = Planted(number, f"blur{sigma}", {"sigma": sigma})
            writer.put(f"{name}-blur{sigma}.png", _encoded(blurred), planted)


def _oddities(writer: _Writer, number: int, name: str, picture: Image.Image) -> None:
    """Modes, formats and exposures that a person wants to know of."""

    def put(kind: str, suffix: str, content: bytes, **parameters: Any) -> None:
        writer.put(f"{name}-{kind}.{suffix}", content, Planted(number, kind, parameters))

    for kind, factor in (("dark", 0.05), ("light", None)):
        values = np.asarray(picture, np.float32)
        values = values * factor if factor else 250 + values * 0.02
        put(kind, "png", _encoded(Image.fromarray(values.astype(np.uint8))))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees when it is shown
    stored = picture.transpose(Image.Transpose.ROTATE_90)
    put("exif-rotated", "jpg", _encoded(stored, "JPEG", quality=95, exif=exif), orientation=6)
    hidden = picture.convert("RGBA")
    hidden.putalpha(
        Image.fromarray(
            (np.mgrid[: picture.height, : picture.width][1] % 97 > 8).astype(np.uint8) * 255
        )
    )
    put("rgba", "png", _encoded(hidden))
    put("cmyk", "jpg", _encoded(picture.convert("CMYK"), "JPEG", quality=95))
    deep = np.asarray(picture.convert("L")).astype(np.uint16) * 231
    put("16-bit", "png", _encoded(Image.fromarray(deep)))
    put("palette", "png", _encoded(picture.quantize(64)))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    put("icc", "jpg", _encoded(picture, "JPEG", quality=93, icc_profile=profile))
    put("wrong-extension", "png", _encoded(picture, "JPEG", quality=90), really="JPEG")


def _flipped_label(writer: _Writer, number: int, name: str, picture: Image.Image) -> None:
    """The same bytes, and a JPEG of the mirror image, in another class."""
    own = CLASSES.index(name.split("/")[0])
    other = CLASSES[(own + 1) % len(CLASSES)]
    parameters = {"from": CLASSES[own], "to": other}
    path = f"{other}/{number:04d}-flipped"
    writer.put(f"{path}.png", _encoded(picture), Planted(number, "label-bytes", parameters))
    mirrored = _encoded(ImageOps.mirror(picture), "JPEG", quality=75)
    writer.put(f"{path}-near.jpg", mirrored, Planted(number, "label-near", parameters))


def _leaks(writer: _Writer, number: int, name: str, picture: Image.Image) -> None:
    """Copies of every level on the test side."""
    leaks = {
        "leak-bytes": ("png", _encoded(picture)),
        "leak-pixels": ("png", _encoded(picture, compress_level=9)),
        "leak-jpeg": ("jpg", _encoded(picture, "JPEG", quality=60)),
        "leak-mirror": ("jpg", _encoded(ImageOps.mirror(picture), "JPEG", quality=90)),
    }
    for kind, (suffix, content) in leaks.items():
        writer.put(f"test/{name}-{kind}.{suffix}", content, Planted(number, kind))


def _clean(writer: _Writer, originals: int) -> None:
    """Photographs with nothing wrong and no copy."""
    photographs = _photographs()
    for i, picture in enumerate(photographs[min(len(photographs) // 2, -(-originals // 3)) :]):
        name = f"{CLASSES[i % len(CLASSES)]}/clean-{i:03d}.jpg"
        planted = Planted(writer.new_group(), "clean")
        writer.put(name, _encoded(picture, "JPEG", quality=92), planted)


def _low_content(writer: _Writer) -> None:
    """Flat, nearly flat and nearly empty pictures, gradients: alike and yet no copies."""
    for i in range(10):
        level = tuple(int(v) for v in writer.random.integers(20, 236, 3))
        flat = Image.new("RGB", (100 + i, 120), level)
        writer.put(f"amber/flat-{i}.png", _encoded(flat), Planted(writer.new_group(), "flat"))
        noisy = np.asarray(flat) + writer.random.normal(0, 2, (120, 100 + i, 3))
        content = _encoded(Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)))
        writer.put(f"amber/noisy-{i}.png", content, Planted(writer.new_group(), "nearly-flat"))
        empty = flat.copy()
        x, y = (int(v) for v in writer.random.integers(5, 90, 2))
        ImageDraw.Draw(empty).ellipse((x, y, x + 5, y + 5), fill=(255, 255, 255))
        content = _encoded(empty)
        writer.put(f"birch/empty-{i}.png", content, Planted(writer.new_group(), "near-empty"))
        ramp = np.linspace(10 + 5 * i, 240 - 4 * i, 128)[None, :, None]
        content = _encoded(Image.fromarray(np.tile(ramp, (96, 1, 3)).astype(np.uint8)))
        writer.put(f"birch/ramp-{i}.png", content, Planted(writer.new_group(), "gradient"))


def _broken(writer: _Writer, picture: Image.Image) -> None:
    """Files that no decoder should trust, a symlink out of the folder, an animation."""
    whole = {
        "jpg": _encoded(picture, "JPEG", quality=90),
        "png": _encoded(picture),
        "webp": _encoded(picture, "WEBP", quality=80),
    }
    for (suffix, content), share in itertools.product(whole.items(), (0.3, 0.6, 0.9)):
        path = f"coral/truncated-{int(100 * share)}.{suffix}"
        planted = Planted(writer.new_group(), "truncated", {"kept": share, "format": suffix})
        writer.put(path, content[: int(share * len(content))], planted)
    for i, suffix in enumerate(("png", "jpg", "webp", "bmp")):
        for kind, content in (
            ("garbage", writer.random.bytes(3000 + i)),
            ("zero", b""),
            ("text", f"<html>{i}: not found</html>".encode()),
        ):
            writer.put(f"dune/{kind}-{i}.{suffix}", content, Planted(writer.new_group(), kind))
    writer.put("dune/bomb.png", bomb(60_000, 60_000), Planted(writer.new_group(), "bomb"))
    frames = [Image.new("RGB", (64, 48), (i * 60, 40, 90)) for i in range(4)]
    moving = _encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    writer.put("dune/animated.gif", moving, Planted(writer.new_group(), "animated", {"frames": 4}))
    folder = writer.truth.folder
    outside = folder.parent / f"{folder.name}-outside.png"
    outside.write_bytes(whole["png"])
    link = f"{writer.root}dune/link.png"
    os.symlink(outside, folder / link)
    writer.truth.files[link] = Planted(writer.new_group(), "symlink")


def bomb(width: int, height: int) -> bytes:
    """A small PNG whose header claims so many pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0" * 99)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def pairs_of(groups: Iterable[Iterable[str]]) -> Iterator[tuple[str, str]]:
    """All pairs within groups."""
    for group in groups:
        yield from itertools.combinations(sorted(group), 2)
