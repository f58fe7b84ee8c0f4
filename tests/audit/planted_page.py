"""A scan and the facts of an audit, made by hand, without any of the audit's parts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.audit.look import Look, Problem
from poise.audit.scan import Scan
from poise.data.layout import Item
from poise.data.sources import Source

Pictures = Sequence[NDArray[np.uint8]]
SPLITS = ("train", "test")


def scan_of(
    pictures: Pictures,
    names: Sequence[str],
    label_names: Sequence[str] = (),
    broken: Sequence[int] = (),
) -> Scan:
    """Labels and splits go round; pictures are read as arrays."""
    classes = len(label_names)
    items = tuple(
        Item(name, i % classes if classes else None, SPLITS[i % 2]) for i, name in enumerate(names)
    )
    looks = tuple(
        _look(picture, name, i in broken)
        for i, (picture, name) in enumerate(zip(pictures, names, strict=True))
    )
    thumbs = np.stack([_thumb(picture) for picture in pictures])
    thumbs[list(broken)] = 0
    source = Source("planted", items, tuple(label_names), lambda i: pictures[i])
    return Scan(source, looks, thumbs)


def facts_of(scan: Scan, source: str = "photos/planted") -> dict[str, Any]:
    """Every part filled, from the first images of the scan."""
    names = [look.name for look in scan.looks if not look.broken]
    labels = list(scan.source.label_names)
    few = (names * 6)[:6]
    return {
        "format": 1,
        "source": source,
        "images": len(scan.looks),
        "readable": len(names),
        "resolution": 32,
        "files": [
            {
                "path": look.name,
                "problems": [{"kind": p.kind, "detail": p.detail} for p in look.problems],
            }
            for look in scan.looks
        ]
        + [{"path": "away.png", "problems": [{"kind": "symlink", "detail": "leads out"}]}],
        "problem_counts": {"truncated": 1, "symlink": 1, "alpha": 1, "too-dark": 2},
        "ranked": {
            kind: [
                {"path": name, "value": 1.5 * i, "flagged": kind == "too-dark" and i < 2}
                for i, name in enumerate(names[:48])
            ]
            for kind in ("blurred", "too-dark", "too-light", "flat", "near-empty")
        },
        "spread": {
            key: {"low": 20.0, "median": 90.0, "high": 200.0}
            for key in (
                "brightness",
                "contrast",
                "saturation",
                "sharpness",
                "width",
                "height",
                "aspect",
            )
        },
        "formats": {"JPEG": 9, "PNG": 3},
        "modes": {"RGB": 12},
        "sizes": {"32x32": 12},
        "duplicates": _duplicates(few),
        "duplicate_counts": {"bytes": {"groups": 1, "files": 2}, "near": {"groups": 2, "files": 4}},
        "classes": {name: 7 * i + 1 for i, name in enumerate(labels)},
        "splits": {"train": 8, "test": 4},
        "labels": _labels(few, labels) if labels else None,
        "captions": {
            "captioned": 9,
            "empty": few[:2],
            "repeated": [{"caption": "a photo", "count": 5}],
            "distinct": 4,
        },
        "diversity": diversity_of(names, labels),
        "target": {
            "kind": "shares",
            "sentence": "the set is 95 % cats where 50 % are wanted",
            "parts": [
                {"name": "cat", "have": 0.95, "want": 0.5, "missing": 0, "mend": "drop 45"},
                {
                    "name": "dog",
                    "have": 0.05,
                    "want": 0.5,
                    "missing": 45,
                    "mend": "collect 45 dogs",
                },
            ],
        },
        "findings": [
            {"severity": 3, "sentence": "two files are broken", "command": "poise prepare A B"},
            {
                "severity": 2,
                "sentence": "near copies lie across splits",
                "command": "poise prepare",
            },
            {"severity": 1, "sentence": "cats are most of it", "command": ""},
            {"severity": 1, "sentence": "some are dark", "command": ""},
            {"severity": 0, "sentence": "labels look right", "command": ""},
            {"severity": 0, "sentence": "the sixth line", "command": "poise audit again"},
        ],
        "verdict": ["two files are broken Mend it: `poise prepare A B`"],
    }


def diversity_of(names: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    """Three clusters, every image on the map."""
    chance = np.random.default_rng(0)
    places = chance.normal(size=(min(len(names), 1500), 2)).round(4).tolist()
    kinds = ("crowded", "near-empty", "usual")
    return {
        "features": "layout",
        "images_used": len(names),
        "vendi": 12.3,
        "real_max": len(names),
        "saturation": [{"n": n, "vendi": 2.0 * n**0.4} for n in (10, 100, 1000, 5000)],
        "saturated": False,
        "classes": {name: {"vendi": 3.0 + i, "n": 50} for i, name in enumerate(labels)},
        "clusters": [
            {
                "id": i,
                "size": 10 * (i + 1),
                "share": 0.1 * (i + 1),
                "x": float(i - 1),
                "y": float(1 - i),
                "examples": list(names[i : i + 4]),
                "class": labels[0] if labels else None,
                "kind": kind,
            }
            for i, kind in enumerate(kinds)
        ],
        "map": [
            {"path": name, "x": x, "y": y, "cluster": i % 3}
            for i, (name, (x, y)) in enumerate(zip(names, places, strict=False))
        ],
    }


def _duplicates(few: Sequence[str]) -> list[dict[str, Any]]:
    def group(kind: str, paths: Sequence[str], classes: bool, splits: bool) -> dict[str, Any]:
        paths = list(paths)
        return {"kind": kind, "paths": paths, "cross_class": classes, "cross_split": splits}

    return [
        group("near", few[:2], True, True),
        group("bytes", few[2:4], False, False),
        group("near", few[2:5], False, False),
    ]


def _labels(few: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
    return {
        "entropy": 1.2,
        "entropy_max": 2.0,
        "effective_classes": 2.3,
        "largest": [labels[-1], 100],
        "smallest": [labels[0], 1],
        "tiny": [labels[0]],
        "neighbour_accuracy": 0.81,
        "suspects": [
            {"path": path, "label": labels[0], "neighbours": labels[-1], "share": 0.9}
            for path in few[:3]
        ],
    }


def _look(picture: NDArray[np.uint8], name: str, broken: bool) -> Look:
    problems = (Problem("truncated", "it ends too early"),) if broken else ()
    height, width = picture.shape[:2]
    return Look(
        name=name,
        size=100,
        sha256="00",
        pixels="" if broken else "11",
        format="JPEG",
        mode="RGB",
        width=width,
        height=height,
        brightness=1.0,
        contrast=1.0,
        saturation=1.0,
        sharpness=1.0,
        problems=problems,
    )


def _thumb(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    image = Image.fromarray(picture).convert("RGB")
    return np.asarray(image.resize((32, 32), Image.Resampling.BOX))
