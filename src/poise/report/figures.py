"""Figures as plotly's own JSON, built from log rows.

Plain dictionaries and not plotly's Python objects: the page draws them with the JavaScript that
plotly ships, so a figure here is exactly what is drawn, and importing this module costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from poise.report.folder import Row
from poise.report.words import is_number

Figure = dict[str, Any]  # {"data": [...], "layout": {...}}
POINTS = 400  # most points of one curve
_MARKS = 40  # most vertical lines of one figure
INK = "#808489"  # one grey that reads on white, on black and on paper
_GRID = "rgba(128,132,137,0.22)"
_SCALE = ((74, 95, 193), (138, 79, 176), (194, 69, 127), (221, 107, 77), (217, 154, 43))
_SEVERITY = {"error": "#c0392b", "critical": "#c0392b", "warning": "#c98a1b"}
_LEVEL = 0.01  # relative spread below which a line counts as level
_LABELS = 12  # most numbers over a figure; more would cover each other


@dataclass(frozen=True)
class Curve:
    """One line of a figure; a y that is not a finite number is a gap."""

    name: str
    x: Sequence[float]
    y: Sequence[Any]
    color: str = "#4a7fb5"


@dataclass(frozen=True)
class Axis:
    """What an axis shows."""

    title: str
    log: bool = False
    images: bool = False  # ticks as 200k, 1.2M


@dataclass(frozen=True)
class Mark:
    """An incident as a vertical line."""

    images_seen: float
    label: str
    severity: str
    told: str = ""  # shown where the pointer is over the label


IMAGES = Axis("images seen", images=True)
SIGMA = Axis("noise level σ", log=True)


def column(rows: Sequence[Row], key: str, name: str) -> Curve:
    """One value of every row over images seen."""
    return Curve(name, [row["images_seen"] for row in rows], [row.get(key) for row in rows])


def bands_over_training(rows: Sequence[Row]) -> list[Curve]:
    """Training error of each noise level over images seen, lowest noise first."""
    found: dict[float, tuple[list[float], list[Any]]] = {}
    for row in rows:
        for band in _bands(row):
            x, y = found.setdefault(band["sigma"], ([], []))
            x.append(row["images_seen"])
            y.append(band.get("error"))
    ordered = sorted(found)
    return [
        Curve(f"σ {sigma:.3g}", *found[sigma], color=shade(i, len(ordered)))
        for i, sigma in enumerate(ordered)
    ]


def validation_over_training(rows: Sequence[Row]) -> list[Curve]:
    """Mean validation error over images seen, one curve per kind of weights."""
    return _per_weights(
        rows,
        lambda own: ([row["images_seen"] for row in own], [row.get("loss") for row in own]),
    )


def validation_over_noise(rows: Sequence[Row], key: str) -> list[Curve]:
    """`key` of the last validation over the noise level, one curve per kind of weights."""

    def last(own: Sequence[Row]) -> tuple[list[float], list[Any]]:
        bands = sorted(_bands(own[-1]), key=lambda band: float(band["sigma"]))
        return [band["sigma"] for band in bands], [band.get(key) for band in bands]

    return _per_weights(rows, last)


def weights_name(name: object) -> str:
    """`ema_0.050` as `EMA 0.050`, `raw` as `raw weights`."""
    text = str(name)
    return "raw weights" if text == "raw" else text.replace("ema_", "EMA ")


def lines(
    curves: Sequence[Curve], x: Axis, y: Axis, marks: Sequence[Mark] = (), markers: bool = False
) -> Figure:
    """A line figure that leaves touch scrolling alone; empty curves are left out."""
    data = [_trace(curve, x, y, markers) for curve in curves]
    data = [trace for trace in data if any(value is not None for value in trace["y"])]
    layout = layout_of(
        axis_of(x, [value for trace in data for value in trace["x"]]),
        axis_of(y, [value for trace in data for value in trace["y"]]),
        legend=len(data) > 1,
    )
    return {"data": data, "layout": {**layout, **_vertical(marks)}}


def layout_of(x: Figure, y: Figure, *, legend: bool) -> Figure:
    """A layout that leaves touch scrolling alone, for two axes in plotly's words."""
    return {
        "autosize": True,
        "margin": {"l": 62, "r": 12, "t": 18, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
        "showlegend": legend,
        "legend": {"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0},
        "hovermode": "x unified",
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": "#222222"}},
        "dragmode": False,
        "xaxis": x,
        "yaxis": y,
    }


def level(figure: Figure, y: object, name: str) -> Figure:
    """The figure with a dashed horizontal line, such as what real images reach."""
    known = [x for trace in figure["data"] for x in trace["x"] if x is not None]
    log = figure["layout"]["yaxis"]["type"] == "log"
    at = drawable(y, log)
    if at is None or not known:
        return figure
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": escape(name),
        "x": [min(known), max(known)],
        "y": [at, at],
        "line": {"color": INK, "width": 1.2, "dash": "dash"},
    }
    return {"data": [*figure["data"], line], "layout": {**figure["layout"], "showlegend": True}}


def is_empty(figure: Figure) -> bool:
    """Whether there is no finite value to draw."""
    return not figure["data"]


def thin(x: Sequence[float], y: Sequence[float | None], most: int = POINTS) -> list[int]:
    """Positions to draw: all, or the lowest and highest of each stretch, so that spikes stay."""
    if len(x) <= most:
        return list(range(len(x)))
    stretches = (most - 2) // 2
    kept = {0, len(x) - 1}
    for i in range(stretches):
        stretch = range(i * len(x) // stretches, (i + 1) * len(x) // stretches)
        known = [(value, j) for j in stretch if (value := y[j]) is not None]
        kept.update({min(known)[1], max(known)[1]} if known else {stretch[0]})
    return sorted(kept)


def shade(position: int, of: int) -> str:
    """A colour from blue (low) over red to amber (high)."""
    at = position / max(1, of - 1) * (len(_SCALE) - 1)
    low = min(int(at), len(_SCALE) - 2)
    mixed = (
        round(a + (b - a) * (at - low)) for a, b in zip(_SCALE[low], _SCALE[low + 1], strict=True)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def _bands(row: Row) -> list[Row]:
    bands = row.get("bands")
    if not isinstance(bands, list):
        return []
    return [b for b in bands if isinstance(b, dict) and is_number(b.get("sigma"))]


def _per_weights(
    rows: Sequence[Row], values: Callable[[Sequence[Row]], tuple[list[float], list[Any]]]
) -> list[Curve]:
    names = sorted({str(row.get("weights")) for row in rows}, key=lambda n: (n != "raw", n))
    curves = []
    for i, name in enumerate(names):
        x, y = values([row for row in rows if str(row.get("weights")) == name])
        color = INK if name == "raw" else shade(i, len(names))
        curves.append(Curve(weights_name(name), x, y, color))
    return curves


def _trace(curve: Curve, x: Axis, y: Axis, markers: bool) -> Figure:
    xs = [drawable(value, x.log) for value in curve.x]
    ys = [drawable(value, y.log) for value in curve.y]
    known = [i for i, value in enumerate(xs) if value is not None]
    xs, ys = [xs[i] for i in known], [ys[i] for i in known]
    kept = thin([value for value in xs if value is not None], ys)
    return {
        "type": "scatter",
        "mode": "lines+markers" if markers or len(kept) < 3 else "lines",
        "name": escape(curve.name),  # plotly reads a little HTML in names
        "x": [xs[i] for i in kept],
        "y": [ys[i] for i in kept],
        "line": {"color": curve.color, "width": 1.6},
        "marker": {"size": 5},
    }


def drawable(value: Any, log: bool) -> float | None:
    """The value as it is drawn; None where it cannot be."""
    if not is_number(value) or (log and value <= 0):
        return None
    return float(f"{value:.6g}")


def axis_of(axis: Axis, values: Sequence[float | None]) -> Figure:
    """An axis in plotly's words, with ticks that suit these values."""
    shown: Figure = {
        "title": {"text": escape(axis.title), "standoff": 8},
        "type": "log" if axis.log else "linear",
        "gridcolor": _GRID,
        "linecolor": _GRID,
        "zeroline": False,
        "automargin": True,
        "fixedrange": True,
        "hoverformat": ".4~s" if axis.images else ".3~g",
        "nticks": 6,
    }
    if axis.images:
        shown["tickformat"] = "~s"
    elif axis.log:
        known = [value for value in values if value] or [1.0]
        shown["dtick"] = _log_ticks(min(known), max(known))
        shown["tickformat"] = ".3~g"
    else:
        known = [value for value in values if value is not None] or [0.0]
        middle = (min(known) + max(known)) / 2
        if max(known) - min(known) < _LEVEL * abs(middle):  # else a level line looks like a storm
            shown["range"] = sorted((0.95 * middle, 1.05 * middle))
    return shown


def _log_ticks(low: float, high: float) -> str | int:
    """Ticks at 1, 2, 5; even steps within a third of a decade, powers over many."""
    decades = math.log10(high / low)
    if 0 < decades < 0.35:
        step = (high - low) / 4
        power = 10 ** math.floor(math.log10(step))
        return f"L{min((1, 2, 5, 10), key=lambda n: abs(n * power - step)) * power:.6g}"
    return "D1" if decades < 0.8 else "D2" if decades < 3.5 else math.ceil(decades / 6)


def _vertical(marks: Sequence[Mark]) -> Figure:
    """Lines, each with its number above it, or with a small triangle where there are many."""
    shown = list(marks)[:: max(1, math.ceil(len(marks) / _MARKS))]
    color = [_SEVERITY.get(mark.severity, INK) for mark in shown]
    shapes = [
        {
            "type": "line",
            "x0": mark.images_seen,
            "x1": mark.images_seen,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": ink, "width": 1, "dash": "dot"},
        }
        for mark, ink in zip(shown, color, strict=True)
    ]
    notes = [
        {
            "x": mark.images_seen,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "showarrow": False,
            "text": escape(mark.label) if len(shown) <= _LABELS else "▾",
            "hovertext": escape(mark.told),
            "captureevents": True,
            "font": {"size": 10, "color": ink},
        }
        for mark, ink in zip(shown, color, strict=True)
    ]
    return {"shapes": shapes, "annotations": notes}
