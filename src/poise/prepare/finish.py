"""What is written after the last shard: provenance, splits, statistics, and at the very end the
manifest that makes the folder a data set.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.data.splits import SPLITS as SIDES
from poise.data.store import FORMAT, ITEMS, KIND, MANIFEST, PLAN, SHARDS, SPLITS, checksum
from poise.prepare.files import as_json, write


def write_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """plan.json: readable, the long lists with one line per entry."""
    lists = ("conflicts", "dropped", "items")
    head = {"kind": KIND + ", plan", "format": FORMAT}
    head |= {key: value for key, value in plan.items() if key not in lists}
    write(out / PLAN, as_json(head, {name: plan[name] for name in lists}))


def finish(
    out: Path, plan: Mapping[str, Any], shards: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Write items.jsonl, splits.json and manifest.json; what the manifest holds."""
    cleaned = [done for shard in shards for done in shard["cleaned"]]
    lines = [
        json.dumps({**row, "cleaned": done}) + "\n"
        for row, done in zip(plan["items"], cleaned, strict=True)
    ]
    items = "".join(lines).encode()
    splits: dict[str, list[Any]] = {
        name: [row["path"] for row in plan["items"] if row["split"] == name] for name in SIDES
    }
    splits["dropped"] = [{"path": row["path"], "reason": row["reason"]} for row in plan["dropped"]]
    others = {ITEMS: items, SPLITS: as_json({}, splits)}
    for name, content in others.items():
        write(out / name, content)
    others[PLAN] = (out / PLAN).read_bytes()
    files = {name: _facts(content) for name, content in others.items()}
    files |= {s["file"]: {"bytes": s["bytes"], "sha256": s["sha256"]} for s in shards}
    frames, channels, height, width = plan["shape"]
    manifest: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "source": plan["source"],
        "items": len(plan["items"]),
        "frames": frames,
        "channels": channels,
        "height": height,
        "width": width,
        "dtype": "uint8",
        "label_names": plan["label_names"],
        "summary": plan["summary"],
        "statistics": statistics(shards),
        "warnings": plan["warnings"],
        "shards": [{key: s[key] for key in ("file", "items", "bytes", "sha256")} for s in shards],
        "files": files,
    }
    manifest["sha256"] = checksum(manifest)
    _settle(out / SHARDS)
    write(out / MANIFEST, as_json(manifest))
    _settle(out)
    return manifest


def statistics(shards: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of the training images alone, exact: from counts of the 256 values of each channel.

    `mean`, `std`, `min` and `max` per channel, 0 to 255; `sigma_data`: the standard deviation of
    all pixels in [-1, 1] about the mean of their channel.
    """
    counts = np.sum([np.asarray(shard["counts"], np.int64) for shard in shards], axis=0)
    values, totals = np.arange(256), counts.sum(1)
    means = counts @ values / totals
    squares = (counts * (values - means[:, None]) ** 2).sum(1)
    return {
        "of": "train",
        "mean": means.tolist(),
        "std": np.sqrt(squares / totals).tolist(),
        "min": [int(np.flatnonzero(row)[0]) for row in counts],
        "max": [int(np.flatnonzero(row)[-1]) for row in counts],
        "sigma_data": float(np.sqrt(squares.sum() / totals.sum()) / 127.5),
    }


def _facts(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _settle(folder: Path) -> None:
    """Make the names in a folder survive a loss of power, where the system allows it."""
    with contextlib.suppress(OSError):  # some cannot; the files themselves were flushed
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
