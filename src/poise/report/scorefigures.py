"""Figures of scores: class shares, denoising by noise level, over training, over guidance."""

from collections.abc import Sequence
from html import escape
from typing import Any

from poise.report.conditioning import name_of, real_shares
from poise.report.figures import (
    IMAGES,
    INK,
    SIGMA,
    Axis,
    Curve,
    Figure,
    axis_of,
    drawable,
    layout_of,
    level,
    lines,
    shade,
    weights_name,
)
from poise.report.folder import Row, items, section
from poise.report.metrics import title
from poise.report.page import visible
from poise.report.words import is_number

MOST_CLASSES = 20  # drawn; of more, only those that are farthest from real images
_LOG = ("frechet_distance",)  # falls over orders of magnitude while training
_DASHES = ("solid", "dash", "dot", "dashdot")


def class_shares(scores: Row) -> Figure:
    """Shares of each class: asked for, seen in samples, seen in real images."""
    classes = section(scores, "classes")
    columns = {
        "asked for": _shares(items(classes, "asked")),
        "seen in samples": _shares(items(classes, "predicted")),
        "seen in real images": real_shares(scores),
    }
    drawn = {name: values for name, values in columns.items() if any(values)}
    amount = max((len(values) for values in drawn.values()), default=0)
    chosen = _farthest(list(drawn.values())[-2:], amount)
    names = [escape(name_of(scores, i)) for i in chosen]
    data = [
        {
            "type": "bar",
            "name": name,
            "x": names,
            "y": [drawable(values[i], False) if i < len(values) else None for i in chosen],
            "marker": {"color": INK if name == "seen in real images" else shade(k, 3)},
        }
        for k, (name, values) in enumerate(drawn.items())
    ]
    x = {**axis_of(Axis(""), []), "type": "category", "dtick": 1}
    y = {**axis_of(Axis("share"), []), "tickformat": ".0%", "rangemode": "tozero"}
    layout = layout_of(x, y, legend=True)
    return {"data": data if chosen else [], "layout": {**layout, "barmode": "group"}}


def denoising(scores: Row, key: str, y: Axis) -> Figure:
    """`mse`, `psnr` or `ssim` of each split over the noise level, with the baseline of mse."""
    told = section(scores, "denoising")
    names = {"train": "training", "val": "validation", "test": "test"}
    curves = []
    for i, (split, rows) in enumerate(section(told, "curves").items()):
        points = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        name = f"{names.get(split, visible(split))} images"
        points = [row for row in points if is_number(row.get("sigma"))]
        x = [float(row["sigma"]) for row in points]
        curves.append(Curve(name, x, [row.get(key) for row in points], shade(2 * i, 3)))
    if key == "mse":
        sigmas, baseline = items(told, "sigmas"), items(told, "baseline")
        both = list(zip(sigmas, baseline, strict=False))
        words = "best constant scaling"
        curves.append(Curve(words, [s for s, _ in both], [b for _, b in both], INK))
    return lines(curves, SIGMA, y, markers=True)


def over_training(rows: Sequence[Row], name: str) -> Figure:
    """One score of the snapshots over images seen, one line per kind of weights, real dashed."""
    kinds = sorted({str(row.get("weights")) for row in rows})
    curves = []
    for i, kind in enumerate(kinds):
        own = [row for row in rows if str(row.get("weights")) == kind]
        values = [section(row, "values").get(name) for row in own]
        x = [row["images_seen"] for row in own]
        curves.append(Curve(visible(weights_name(kind)), x, values, shade(i, len(kinds))))
    figure = lines(curves, IMAGES, Axis("", log=name in _LOG), markers=True)
    real = next(
        (v for row in reversed(rows) if is_number(v := section(row, "real").get(name))), None
    )
    return level(figure, real, "real images")


def against(tradeoff: Row, x: str, y: str) -> Figure:
    """Two scores against each other, one line per averaging length, joined over strength."""
    figure = _per_length(tradeoff, lambda row: section(row, "values").get(x), y)
    for trace in figure["data"]:
        trace["mode"] = "lines+markers+text"
        trace["textposition"] = "top center"
    real = section(tradeoff, "real")
    ends = [drawable(real.get(name), False) for name in (x, y)]
    if None not in ends and figure["data"]:
        star = {"symbol": "star", "size": 12, "color": INK}
        point: Figure = {"type": "scatter", "mode": "markers", "name": "real images"}
        figure["data"].append({**point, "x": [ends[0]], "y": [ends[1]], "marker": star})
    figure["layout"] |= {"hovermode": "closest"}
    figure["layout"]["xaxis"] = axis_of(Axis(title(x)), [])
    return figure


def over_strength(tradeoff: Row, name: str) -> Figure:
    """One score over guidance strength, one line per averaging length, real dashed."""
    figure = _per_length(tradeoff, lambda row: row.get("strength"), name)
    figure["layout"]["xaxis"] = axis_of(Axis("guidance strength"), [])
    return level(figure, section(tradeoff, "real").get(name), "real images")


def _per_length(tradeoff: Row, x: Any, y: str) -> Figure:
    """Lines of `x(row)` and the score y, one per averaging length; labels are strengths."""
    rows = [row for row in items(tradeoff, "rows") if isinstance(row, dict)]
    rows = [row for row in rows if is_number(row.get("strength"))]
    lengths = sorted({_length(row) for row in rows})
    data: list[Figure] = []
    for i, length in enumerate(lengths):
        own = sorted((r for r in rows if _length(r) == length), key=lambda r: float(r["strength"]))
        points = [(x(row), section(row, "values").get(y), row["strength"]) for row in own]
        points = [p for p in points if is_number(p[0]) and is_number(p[1])]
        if not points:
            continue
        color = INK if length < 0 else shade(i, len(lengths))
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": "raw weights" if length < 0 else f"EMA {length:.3f}",
                "x": [drawable(p[0], False) for p in points],
                "y": [drawable(p[1], False) for p in points],
                "text": [f"{p[2]:.3g}" for p in points],
                "cliponaxis": False,
                "line": {"color": color, "width": 1.6, "dash": _DASHES[i % len(_DASHES)]},
                "marker": {"size": 6, "color": color},
            }
        )
    layout = layout_of({}, axis_of(Axis(title(y)), []), legend=True)
    return {"data": data, "layout": layout}


def _length(row: Row) -> float:
    """The averaging length; -1 for raw weights."""
    std = row.get("std")
    return float(std) if is_number(std) else -1.0


def _shares(counts: list[Any]) -> list[float]:
    known = [float(n) if is_number(n) else 0.0 for n in counts]
    total = sum(known)
    return [n / total for n in known] if total else []


def _farthest(pair: list[list[float]], amount: int) -> list[int]:
    """All classes, or those whose two shares differ most, in their own order."""
    if amount <= MOST_CLASSES or len(pair) < 2:
        return list(range(min(amount, MOST_CLASSES)))
    first, second = ([*values, *[0.0] * (amount - len(values))] for values in pair)
    order = sorted(range(amount), key=lambda i: -abs(first[i] - second[i]))
    return sorted(order[:MOST_CLASSES])
