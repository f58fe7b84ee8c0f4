"""prepare.html: what was kept, what was not and why, and what cleaning did, to be looked at."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.audit.copies.near import NEAR
from poise.data.sources import Source
from poise.data.splits import SPLITS
from poise.prepare.files import write
from poise.prepare.shards import before_and_after
from poise.report import page
from poise.report.page import Html, visible
from poise.report.pictures import Picture

PAGE = "prepare.html"
_SHOWN = 8  # pictures before and after
_SIDE = 160  # pixels of such a picture that are shown, from its middle
_ROWS = 500  # dropped files in the page; plan.json has all


def write_page(
    out: Path, plan: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], source: Source
) -> None:
    """Write OUT/prepare.html.

    Raises:
        ArtifactError: the disk is full.
    """
    facts = plan["summary"]
    frames, channels, height, width = plan["shape"]
    entries = "clips" if frames > 1 else "images"
    rows = [
        ("Kept", f"{facts['kept']:,} of {facts['entries']:,} {entries}"),
        ("Size", f"{width} x {height} pixels, {channels} channels"),
        *((f"{name}", f"{count:,}") for name, count in facts["splits"].items()),
    ]
    parts = [
        ("numbers", "What there is", [page.table(("", ""), rows, "tn")]),
        ("splits", "Classes and splits", _classes(facts)),
        ("distances", "The closest pairs across splits", _distances(facts)),
        ("conflicts", "One picture, two classes", _conflicts(plan)),
        ("dropped", "What was left out", _dropped(plan)),
        ("cleaned", "Before and after cleaning", _cleaned(plan, shards, source)),
    ]
    shown = [(anchor, title, body) for anchor, title, body in parts if body]
    body = page.join(
        [
            Html(f"<h1>{page.text(visible(plan['source']))}, prepared</h1>"),
            page.contents((anchor, title) for anchor, title, _ in shown),
            *(page.section(anchor, title, inner) for anchor, title, inner in shown),
        ]
    )
    write(out / PAGE, page.document(f"{plan['source']}, prepared", body, figures=False))


def _classes(facts: Mapping[str, Any]) -> list[Html]:
    if not facts["classes"]:
        return []
    weights = facts["weights"]
    rows = [
        (
            visible(name),
            *(f"{sides.get(side, 0):,}" for side in SPLITS),
            f"{weights[name]:.2f}" if name in weights else "1",
        )
        for name, sides in facts["classes"].items()
    ]
    words = "Weight: how often training draws an image of the class, 1 in the mean."
    headers = ("Class", *SPLITS, "Weight")
    return [page.table(headers, rows, "tnnnn"), page.paragraph(words, "soft")]


def _distances(facts: Mapping[str, Any]) -> list[Html]:
    rows = [
        (
            pair.replace("-", " and "),
            f"{found['distance']:.3g}",
            f"{found['hamming']} of 64",
            " and ".join(visible(path) for path in found["paths"]),
        )
        for pair, found in facts["distances"].items()
        if found
    ]
    near = any(found and found["distance"] <= NEAR for found in facts["distances"].values())
    words = (
        f"The pairs that come closest: 0 is the same picture, up to {NEAR} may be a near copy. "
        + ("Look at these. " if near else "No copies lie on two sides. ")
        + "If a pair shows the same thing, group it (--group-by) or drop near copies "
        "(--drop broken,exact,near)."
    )
    headers = ("Splits", "Distance", "Bits", "Pair")
    return [page.table(headers, rows, "tnnw"), page.paragraph(words, "soft")] if rows else []


def _conflicts(plan: Mapping[str, Any]) -> list[Html]:
    rows = [
        (visible(path), visible(label))
        for found in plan["conflicts"][:_ROWS]
        for path, label in zip(found["paths"], found["labels"], strict=True)
    ]
    words = "These files are exact copies of each other in different classes: one label is wrong."
    return [page.paragraph(words), page.table(("File", "Class"), rows, "wt")] if rows else []


def _dropped(plan: Mapping[str, Any]) -> list[Html]:
    rows = [(visible(row["path"]), visible(row["reason"])) for row in plan["dropped"][:_ROWS]]
    if not rows:
        return [page.paragraph("Nothing.")]
    more = len(plan["dropped"]) - len(rows)
    end = f"{more:,} more are in plan.json." if more else ""
    return [page.table(("File", "Reason"), rows, "ww"), page.paragraph(end, "soft")]


def _cleaned(
    plan: Mapping[str, Any], shards: Sequence[Mapping[str, Any]], source: Source
) -> list[Html]:
    """The first pictures of which cleaning changed something."""
    kinds = tuple(plan["request"]["clean"])
    if not kinds:
        return []
    done = [what for shard in shards for what in shard["cleaned"]]
    changed = [(row, what) for row, what in zip(plan["items"], done, strict=True) if what]
    words = f"{len(changed):,} of {len(done):,} had something to clean."
    parts = [page.paragraph(words)]
    for row, what in changed[:_SHOWN]:
        pair = before_and_after(source, row["frames"][0][0], row["sha256"][0], kinds)
        captions = ("before", f"after: {', '.join(what)}")
        pictures = [
            page.picture(_picture(pixels), "small", caption, f"{visible(row['path'])}, {caption}")
            for pixels, caption in zip(pair, captions, strict=True)
        ]
        parts.append(page.pair(pictures))
    return parts


def _picture(pixels: NDArray[np.uint8]) -> Picture:
    """The middle of a picture, exact."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    part = pixels[top : top + _SIDE, left : left + _SIDE]
    if part.ndim == 3 and part.shape[2] != 3:
        part = part[..., 0]
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(part)).save(stream, "PNG")
    content = base64.b64encode(stream.getvalue()).decode("ascii")
    return Picture(f"data:image/png;base64,{content}", part.shape[1], part.shape[0], False)
