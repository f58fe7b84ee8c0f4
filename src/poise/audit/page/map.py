"""The map of a set: thumbnails where their features put them, like near like."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from poise.audit.page.sheets import Album, uri
from poise.audit.scan import Scan
from poise.report.page import Html, text, visible
from poise.report.words import is_number

STYLE = """
.map{position:relative;overflow:hidden;background:var(--tint)}.map.wide{min-width:560px}
.map img{width:100%;background:none}
.map span{position:absolute;transform:translate(-50%,-50%);font-size:.8rem;line-height:1;
font-weight:650;padding:.2rem .35rem;border-radius:1rem;background:var(--paper);color:var(--ink);
border:1px solid var(--line)}
.map .crowded{background:#c0392b;color:#fff;border-color:#fff}
.map .near-empty{background:#2c6fb0;color:#fff;border-color:#fff}
"""
_WIDTH = 960  # pixels of the whole picture; its height is two thirds
_FRAMES = {"crowded": (192, 57, 43, 255), "near-empty": (44, 111, 176, 255)}
_MOST_NUMBERS = 40
_NARROW = 16  # columns up to which the map fits a phone
_NEAR = 2  # cells a thumbnail may be moved to find room


def cluster_map(
    scan: Scan, album: Album, points: Sequence[Any], clusters: Sequence[Any]
) -> tuple[Html, int]:
    """A picture of thumbnails at their places, the clusters' numbers over it.

    Args:
        scan: the thumbnails.
        album: where paths lead.
        points: rows of path, x, y, cluster.
        clusters: rows of id, x, y, kind; frames and numbers are coloured by kind.

    Returns:
        the map, and how many pictures found room on it; nothing and 0 without any point.
    """
    known = [
        (index, float(point["x"]), float(point["y"]), point.get("cluster"))
        for point in points
        if isinstance(point, dict)
        and is_number(point.get("x"))
        and is_number(point.get("y"))
        and (index := album.index(str(point.get("path")))) is not None
    ]
    if not known:
        return Html(""), 0
    # A few outliers would squeeze everything else together: they are moved to the edge.
    places = np.array([(x, y) for _, x, y, _ in known])
    low, high = np.percentile(places, 1, axis=0), np.percentile(places, 99, axis=0)
    wide = np.where(high > low, high - low, 1.0)
    places = np.clip((places - low) / wide, 0.0, 1.0)
    columns = int(np.clip(np.ceil(np.sqrt(len(known) * 3.5)), 8, 40))
    cells = _settle(places, columns)
    kinds = {row.get("id"): str(row.get("kind")) for row in clusters if isinstance(row, dict)}
    shown = [(cell, known[n][0], kinds.get(known[n][3], "")) for cell, n in sorted(cells.items())]
    image = _paint(scan, shown, columns)
    spots = _numbers(clusters, low, wide)
    told = "Map of the images: thumbnails placed by what they look like"
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{told}">'
        f'<div class="{"map wide" if columns > _NARROW else "map"}">'
        f'<img width="{image.width}" height="{image.height}" src="{uri(image)}" alt="{told}">'
        f"{spots}</div></div>"
    ), len(shown)


def _settle(places: NDArray[np.float64], columns: int) -> dict[tuple[int, int], int]:
    """Every cell (row, column) with the point in it; a point whose cell is taken moves a little.

    Args:
        places: [N, 2] from 0 to 1.
        columns: cells per row; there are two thirds as many rows.
    """
    rows = _rows(columns)
    near = sorted(
        ((a, b) for a in range(-_NEAR, _NEAR + 1) for b in range(-_NEAR, _NEAR + 1)),
        key=lambda step: (step[0] ** 2 + step[1] ** 2, step),
    )
    taken: dict[tuple[int, int], int] = {}
    for n, (x, y) in enumerate(places):
        row, column = round((1 - float(y)) * (rows - 1)), round(float(x) * (columns - 1))
        for down, right in near:
            cell = (row + down, column + right)
            if cell not in taken and 0 <= cell[0] < rows and 0 <= cell[1] < columns:
                taken[cell] = n
                break
    return taken


def _rows(columns: int) -> int:
    return max(1, round(columns * 2 / 3))


def _paint(
    scan: Scan, shown: Sequence[tuple[tuple[int, int], int, str]], columns: int
) -> Image.Image:
    side = _WIDTH // columns
    canvas = Image.new("RGBA", (columns * side, _rows(columns) * side))
    pen = ImageDraw.Draw(canvas)
    for (row, column), index, kind in shown:
        look = scan.looks[index]
        smooth = max(look.width, look.height) > scan.thumbs.shape[1]
        method = Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
        left, top = column * side, row * side
        thumb = Image.fromarray(scan.thumbs[index]).resize((side - 2, side - 2), method)
        canvas.paste(thumb, (left + 1, top + 1))
        if kind in _FRAMES:
            box = (left, top, left + side - 1, top + side - 1)
            pen.rectangle(box, outline=_FRAMES[kind], width=2)
    return canvas


def _numbers(clusters: Sequence[Any], low: NDArray[np.float64], wide: NDArray[np.float64]) -> Html:
    """The clusters' numbers at their centres; the remarkable ones alone when there are many."""
    rows = [
        row
        for row in clusters
        if isinstance(row, dict) and is_number(row.get("x")) and is_number(row.get("y"))
    ]
    if len(rows) > _MOST_NUMBERS:
        rows = [row for row in rows if row.get("kind") in _FRAMES][:_MOST_NUMBERS]
    rows.sort(key=lambda row: row.get("kind") in _FRAMES)  # the remarkable ones lie on top
    spots = []
    for row in rows:
        x, y = np.clip((np.array([row["x"], row["y"]]) - low) / wide, 0.02, 0.98)
        kind = str(row.get("kind")) if row.get("kind") in _FRAMES else ""
        spots.append(
            f'<span class="{kind}" style="left:{100 * x:.1f}%;top:{100 * (1 - y):.1f}%">'
            f"{text(visible(row.get('id')))}</span>"
        )
    return Html("".join(spots))
