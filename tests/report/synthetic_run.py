"""Run folders with planted content, as training would leave them."""

import json
import math
import random
from pathlib import Path
from typing import Any

from PIL import Image
from synthetic_scores import scores, snapshots, tradeoff

from poise.artifacts import RunDir, append_jsonl, write_bytes, write_json
from poise.config import resolve, to_toml

SIGMAS = (0.03, 0.08, 0.2, 0.55, 1.5, 4.0, 10.0)
NAMES = [f"digit {i}" for i in range(10)]


def about(status: str = "finished", seen: int = 400_000) -> dict[str, Any]:
    """A run.json."""
    return {
        "source": "sklearn:digits",
        "preset": "nano",
        "command": ["poise", "run", "digits", "--minutes", "4"],
        "created": "2025-01-02T03:04:05+00:00",
        "seed": 0,
        "budget_seconds": 240,
        "data": {
            "images": 1797,
            "resolution": 8,
            "channels": 1,
            "label_names": NAMES,
            "sigma_data": 0.7432,
            "flip": False,
            "fingerprint": "ab12" * 16,
            "splits": {"train": 1437, "val": 180, "test": 180},
        },
        "model": {"parameters": 612_345, "flops_per_image": 61_000_000},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "device": "cpu", "threads": 2},
        "status": status,
        "images_seen": seen,
        "seconds": 200.4,
        "planned_images": 400_000,
    }


def audit() -> dict[str, Any]:
    """An audit.json with a little of everything."""
    classes = {name: 170 + 3 * i for i, name in enumerate(NAMES)}
    return {
        "images": 1797,
        "unreadable": [{"path": "three/broken.png", "reason": "truncated file"}],
        "ignored": {"count": 2, "examples": ["notes.txt", "Thumbs.db"]},
        "duplicates": [
            {"kind": "exact", "paths": ["one/a.png", "one/b.png"], "cross_class": False},
            {"kind": "near", "paths": ["one/c.png", "seven/d.png"], "cross_class": True},
        ],
        "classes": classes,
        "split_classes": {
            "train": {k: round(0.8 * v) for k, v in classes.items()},
            "val": {k: round(0.1 * v) for k, v in classes.items()},
            "test": {k: round(0.1 * v) for k, v in classes.items()},
        },
        "sizes": {"8x8": 1797},
        "modes": {"L": 1797},
        "channels": 1,
        "resolution": 8,
        "brightness": {"mean": 0.305, "std": 0.376, "constant_images": 0},
        "warnings": ["1 file cannot be read", "1 pair of near duplicates has two classes"],
        "verdict": ["The data is usable; two things deserve a look."],
    }


def build(root: Path, rows: int = 400) -> RunDir:
    """A finished run with everything in it."""
    run = RunDir(root)
    chance = random.Random(0)
    write_json(run.run, about())
    write_json(run.audit, audit())
    write_bytes(run.config, to_toml(resolve(None, {"training.lr": 0.004})).encode())
    for i in range(1, rows + 1):
        _log(run, i, rows, chance)
    for i in range(1, 11):
        _validate(run, i, chance)
    for row in events():
        append_jsonl(run.log("events"), row)
    for i in range(1, 9):
        picture(run.samples / f"{i * 50_000:012d}.png", chance)
    for name in ("closest", "worst", "best", "missing"):
        picture(run.samples / f"{name}.png", chance)
    write_json(run.scores("val"), scores("val"))
    write_json(run.scores("test"), scores("test"))
    for row in snapshots():
        append_jsonl(run.log("scores"), row)
    write_json(run.root / "tradeoff.json", tradeoff())
    return run


def events() -> list[dict[str, Any]]:
    """A warning, a decision, an error."""
    return [
        {
            "images_seen": 90_000,
            "severity": "warning",
            "kind": "gradient_spike",
            "message": "the gradient norm rose to 40 times its usual value",
            "grad_norm": 41.7,
            "usual": 1.02,
        },
        {
            "images_seen": 90_000,
            "severity": "info",
            "kind": "decision",
            "message": "one update was skipped and training went on",
        },
        {
            "images_seen": 210_000,
            "severity": "error",
            "kind": "not_finite",
            "message": "three updates in a row were not finite; returned to 200,000 images",
            "loss": math.nan,
        },
    ]


def picture(path: Path, chance: random.Random, size: tuple[int, int] = (80, 64)) -> None:
    """A small grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("L", size, chance.randbytes(size[0] * size[1])).save(path)


def _log(run: RunDir, i: int, rows: int, chance: random.Random) -> None:
    at = i / rows
    fall = 0.1 + 0.9 * math.exp(-6 * at)
    bands = [
        {"sigma": s, "error": fall * (0.4 + 0.1 * j) * chance.uniform(0.85, 1.15), "count": 40}
        for j, s in enumerate(SIGMAS)
    ]
    bands[0]["error"] = None if i % 50 == 0 else bands[0]["error"]
    seen = round(400_000 * at)
    row = {
        "images_seen": seen,
        "step": seen // 128,
        "loss": math.nan if i == 210 else 2 * fall - 0.8 + chance.uniform(-0.05, 0.05),
        "error": fall * chance.uniform(0.9, 1.1),
        "lr": 0.004 * min(1, at / 0.02) * min(1, math.sqrt(0.3 / at)),
        "grad_norm": 41.7 if i == 90 else chance.lognormvariate(0, 0.2),
        "weight_rms": 1 + 0.001 * at,
        "update_ratio": 0.01 * min(1, 0.3 / at),
        "skipped": 3 if i >= 210 else 0,
        "bands": bands,
    }
    append_jsonl(run.log("metrics"), row)
    rate = {"images_seen": seen, "seconds": 190 * at, "images_per_second": chance.gauss(2100, 60)}
    append_jsonl(run.log("timing"), rate)


def _validate(run: RunDir, i: int, chance: random.Random) -> None:
    for weights, gain in (("raw", 1.0), ("ema_0.050", 0.88), ("ema_0.100", 0.85)):
        level = gain * (0.15 + 0.8 * math.exp(-0.4 * i)) * chance.uniform(0.99, 1.01)
        bands = [
            {
                "sigma": s,
                "loss": level * (1.3 - abs(math.log(s)) / 6),
                "mse": level * s / (1 + s),
                "psnr": 30 - 8 * math.log10(s / 0.02) / gain,
                "ssim": 1 / (1 + s * gain),
            }
            for s in SIGMAS
        ]
        row = {
            "images_seen": i * 40_000,
            "weights": weights,
            "split": "val",
            "loss": level,
            "bands": bands,
        }
        append_jsonl(run.log("validation"), row)


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text()), **changes})
