"""Sources with planted copies, groups and faults, and a quiet way to prepare them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from poise.console import Screen
from poise.prepare.prepare import Options, prepare_source

SIDE = 24


def picture(seed: int, side: int = SIDE) -> Image.Image:
    """Clouds with some detail; no two seeds look alike."""
    rng = np.random.default_rng(seed)
    image = np.zeros((side, side, 3), np.float32)
    for size in (2, 3, 5, 9, 24):
        noise = rng.normal(size=(size, size, 3)).astype(np.float32)
        layers = [
            np.asarray(Image.fromarray(part).resize((side, side)))
            for part in np.moveaxis(noise, 2, 0)
        ]
        image += np.stack(layers, -1)
    return Image.fromarray((image * 28 + 128).clip(0, 255).astype(np.uint8))


def planted(root: Path, count: int = 40) -> Path:
    """`count` pictures in two classes, copies of all kinds, groups, and broken files.

    Pictures p00_a.png, p00_b.png, p01_a.png, ...: two different ones per person.
    """
    for n in range(count):
        path = root / ("cat" if n % 8 < 6 else "dog") / f"p{n // 2:02d}_{'ab'[n % 2]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(n).save(path)
    cat = root / "cat"
    (cat / "copy of p00_a.png").write_bytes((cat / "p00_a.png").read_bytes())
    Image.open(cat / "p00_b.png").save(cat / "p00_b.bmp")  # equal pixels, other bytes
    Image.open(cat / "p01_a.png").save(cat / "p01_a near.jpg", quality=90)
    Image.open(cat / "p02_a.png").save(root / "dog" / "p02_a.bmp")  # in two classes
    (cat / "cut.png").write_bytes((cat / "p02_b.png").read_bytes()[:300])
    (cat / "empty.png").write_bytes(b"")
    (cat / "words.png").write_text("no image")
    return root


def prepare(source: Path | str, out: Path, **options: Any) -> dict[str, Any]:
    """In this process, without a word."""
    return prepare_source(str(source), out, Options(**{"workers": 1} | options), Screen(quiet=True))


def tree(root: Path) -> dict[str, str]:
    """Every file below `root` with the hash of its content."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def splits_of(out: Path) -> dict[str, str]:
    """Path -> train, val, test or dropped; a path named twice is an error."""
    raw = json.loads((out / "splits.json").read_text("utf-8"))
    found: dict[str, str] = {}
    for side in ("train", "val", "test", "dropped"):
        for row in raw[side]:
            path = row["path"] if side == "dropped" else row
            assert path not in found, path
            found[path] = side
    return found


def rows_of(out: Path) -> list[dict[str, Any]]:
    """items.jsonl."""
    return [json.loads(line) for line in (out / "items.jsonl").read_text("utf-8").splitlines()]


def pixels_of(out: Path, manifest: dict[str, Any]) -> np.ndarray:
    """All shards as one array [N, T, C, H, W], read without any code of Poise."""
    parts = [np.fromfile(out / shard["file"], np.uint8) for shard in manifest["shards"]]
    shape = [manifest[key] for key in ("frames", "channels", "height", "width")]
    return np.concatenate(parts).reshape(-1, *shape)
