"""Figures of a study: history, slices, proxy curves, importance, repeats, Pareto front."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Any

from poise.report.figures import (
    IMAGES,
    INK,
    Axis,
    Figure,
    axis_of,
    drawable,
    layout_of,
    shade,
    thin,
)
from poise.report.folder import items, section
from poise.report.page import visible
from poise.report.studyrecord import (
    LOST,
    Dimension,
    Metric,
    Study,
    Trial,
    shown,
    spread,
    wide,
    within_reach,
)
from poise.report.words import count, is_number, number

_BLUE, _RED, _AMBER, _PINK = "#4a7fb5", "#c0392b", "#c98a1b", "#c2457f"
SIGNS = {  # of trials that ended without a value: plotly's symbol, colour
    "stopped": ("triangle-down", INK),
    "diverged": ("x", _RED),
    "failed": ("square", _AMBER),
}
_NAMED = 12  # most categories that all have their name below the axis
_BARS = 12  # most settings in the figure of importance
LINES = 150  # most trials side by side
_DECADES = 30.0  # largest over smallest from which a small figure has ticks at powers of ten
TICKS = 5  # most rungs that get a tick each


@dataclass(frozen=True)
class Point:
    """A trial where it is drawn; y None: it ended without a value."""

    x: Any
    y: float | None
    told: str
    state: str = "complete"
    default: bool = False


def history(study: Study, metric: Metric, *, by_time: bool) -> Figure:
    """The value of each trial, and the best so far, over its number or over the hours spent."""
    ended = [trial for trial in study.searched if trial.state in (*LOST, "complete")]
    ended.sort(key=lambda trial: (trial.ended, trial.number) if by_time else ("", trial.number))
    spent = [cost / 60 for cost in accumulate(trial.cost for trial in ended)]
    points: list[Point] = []
    x: list[float] = []
    best: list[float] = []
    for trial, at in zip(ended, spent if by_time else [t.number for t in ended], strict=True):
        points.append(_point(trial, at, trial.values.get(metric.name)))
        value = points[-1].y
        if value is not None:
            x.append(at)
            best.append(value if not best else min(best[-1], value, key=metric.order))
    last = points[-1].x if points else 0
    kept = thin(x, best)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": [drawable(x[i], False) for i in kept] + [drawable(last, False)] * bool(kept),
        "y": [drawable(value, False) for value in [*[best[i] for i in kept], *best[-1:]]],
        "line": {"color": _BLUE, "width": 1.6, "shape": "hv"},
        "hoverinfo": "skip",
    }
    title = "minutes spent by all workers" if by_time else "trial"
    return _scatter(points, axis_of(Axis(title), []), metric, [line] if kept else [])


def slices(study: Study, dimension: Dimension, metric: Metric) -> Figure:
    """The value of each trial over one setting; of a free setting, of all that was tried."""
    points = []
    for trial in study.searched:
        tries = [
            Point(own[dimension.name], float(row[metric.name]), trial.title)
            for own, row in trial.tried
            if dimension.free and dimension.name in own and is_number(row.get(metric.name))
        ]
        if dimension.name in trial.point and not tries:
            own = trial.point[dimension.name]
            tries = [_point(trial, own, trial.values.get(metric.name))]
        points += tries
    known = [float(p.x) for p in points if is_number(p.x)]
    if not dimension.choices and len(known) == len(points):
        axis = Axis("", log=dimension.log and spread(known) > 1)
        whole = {"dtick": 1} if axis.log and spread(known) > _DECADES else {}
        return _small(_scatter(points, axis_of(axis, known) | whole, metric))
    order = texts_of([point.x for point in points], dimension)
    points = [Point(shown(p.x), p.y, p.told, p.state, p.default) for p in points]
    return _small(_scatter(points, categories("", order), metric))


def proxies(study: Study) -> Figure:
    """The validation error of each trial over images seen; a trial that was stopped ends."""
    groups: dict[str, list[Trial]] = {}
    for trial in study.searched:
        if trial.proxy:
            kind = trial.role if trial.role == "default" else trial.state
            kind = "best" if trial.number == study.best.get("number") else kind
            groups.setdefault(kind, []).append(trial)
    colors = {"default": INK, "complete": _BLUE, "stopped": _AMBER, "diverged": _RED, "best": _PINK}
    order = ["stopped", "diverged", "complete", "default", "best"]
    data = []
    for kind in sorted(groups, key=lambda kind: order.index(kind) if kind in order else -1):
        drawn = groups[kind][:: max(1, len(groups[kind]) // LINES)]
        bold = kind in ("default", "best")
        data.append(
            joined([[(*pair, trial.title) for pair in trial.proxy] for trial in drawn])
            | {
                "mode": "lines+markers",
                "name": escape(kind),
                "line": {"color": colors.get(kind, INK), "width": 2.4 if bold else 1.1},
                "marker": {"size": 5},
                "opacity": 1.0 if bold else 0.75,
            }
        )
    seen = sorted({at for own in groups.values() for trial in own for at, _ in trial.proxy})
    errors = [value for own in groups.values() for trial in own for _, value in trial.proxy]
    x = axis_of(Axis(IMAGES.title, log=True, images=True), seen)
    if len(seen) <= TICKS:
        x |= {"tickvals": seen, "ticktext": [count(at) for at in seen]}
    near = within_reach(errors)
    y = axis_of(Axis("validation error", log=True), near)
    if len(near) < len(errors):  # one that ran away would leave the others no room
        y["range"] = [math.log10(0.95 * min(near)), math.log10(1.05 * max(near))]
    return {"data": data, "layout": layout_of(x, y, legend=True) | {"hovermode": "closest"}}


def importance(study: Study) -> Figure:
    """A bar for each setting, the most important on top."""
    drawn = [(name, share) for name, share in study.importance if share >= 0][:_BARS][::-1]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [drawable(share, False) for _, share in drawn],
        "y": [escape(visible(name, 40)) for name, _ in drawn],
        "text": [f"{100 * share:.0f} %" for _, share in drawn],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "marker": {"color": _BLUE},
    }
    x = {
        **axis_of(Axis("share of what settings explain"), []),
        "tickformat": ".0%",
        "rangemode": "tozero",
    }
    y = {**axis_of(Axis(""), []), "type": "category", "dtick": 1}
    layout = layout_of(x, y, legend=False)
    layout["margin"] = {**layout["margin"], "l": 12, "r": 44}
    return {"data": [bars] if drawn else [], "layout": layout}


def repeats(study: Study, metric: Metric) -> Figure:
    """The default and the best with the same seeds: a line for each seed."""
    told = section(study.best, "repeats")
    both = [items(section(told, name), metric.name) for name in ("default", "best")]
    amount = max(len(values) for values in both)
    data = []
    for i in range(amount):
        pair = [drawable(v[i], False) if i < len(v) else None for v in both]
        data.append(_pair(pair, f"seed {i + 1}", shade(i, amount), "lines+markers"))
    data = [trace for trace in data if any(value is not None for value in trace["y"])]
    known = [[float(value) for value in values if is_number(value)] for values in both]
    if data:
        means = [drawable(sum(own) / len(own), False) if own else None for own in known]
        data.append(_pair(means, "mean", INK, "markers"))
        data[-1]["marker"] = {"symbol": "line-ew-open", "size": 36, "line": {"width": 2}}
        data[-1]["marker"]["color"] = INK
    x = {**categories("", ["default", "best"]), "range": [-0.6, 1.6]}
    layout = layout_of(x, axis_of(Axis(metric.title), []), legend=True)
    return {"data": data, "layout": layout | {"hovermode": "closest"}}


def front(study: Study, x: Metric, y: Metric) -> Figure:
    """Two metrics of each trial against each other, with the trials nothing else beats."""
    best = {n for n in items(study.record, "pareto") if isinstance(n, int)}
    both = [t for t in study.searched if x.name in t.values and y.name in t.values]
    points = [_point(trial, trial.values[x.name], trial.values[y.name]) for trial in both]
    ends = sorted((t.values[x.name], t.values[y.name]) for t in both if t.number in best)
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "front",
        "x": [drawable(a, False) for a, _ in ends],
        "y": [drawable(b, False) for _, b in ends],
        "line": {"color": _AMBER, "width": 1.6},
        "hoverinfo": "skip",
    }
    values = [trial.values[x.name] for trial in both]
    axis = axis_of(Axis(x.title, log=wide(values)), values)
    return _scatter(points, axis, y, [line] if ends else [])


def _point(trial: Trial, x: Any, y: float | None) -> Point:
    return Point(x, y, told_of(trial), trial.state, trial.role == "default")


def told_of(trial: Trial) -> str:
    return f"{trial.title}: {trial.diagnosis}" if trial.diagnosis else trial.title


def _scatter(
    points: list[Point], x: Figure, metric: Metric, first: Iterable[Figure] = ()
) -> Figure:
    """Points with a value; those without one stand in a strip below the axis, by their fate."""
    groups: dict[str, list[Point]] = {"trial": [], "default": [], **{state: [] for state in LOST}}
    for point in points:
        if point.y is not None:
            groups["default" if point.default else "trial"].append(point)
        elif point.state in LOST:
            groups[point.state].append(point)
    signs = {"trial": ("circle", _BLUE), "default": ("star", INK), **SIGNS}
    data = list(first)
    for name, own in groups.items():
        kept = thin(range(len(own)), [point.y for point in own])
        if kept:
            data.append(_markers(name, [own[i] for i in kept], *signs[name]))
    values = [point.y for point in points if point.y is not None]
    y = axis_of(Axis(metric.title, log=wide(values)), values)
    layout = layout_of(x, y, legend=True) | {"hovermode": "closest"}
    if any(groups[state] for state in LOST):
        strip = {"domain": [0, 0.09], "range": [-1, 1], "visible": False, "fixedrange": True}
        layout["yaxis2"] = strip
        layout["yaxis"] = {**y, "domain": [0.12, 1]}
        layout["xaxis"] = {**x, "anchor": "y2"}
    return {"data": data, "layout": layout}


def _small(figure: Figure) -> Figure:
    """The same for a small place: the page says once what the marks and the upright axis are."""
    layout = figure["layout"]
    y = {**layout["yaxis"], "title": {"text": ""}}
    margin = {**layout["margin"], "l": 12, "b": 28}
    return {**figure, "layout": layout | {"showlegend": False, "yaxis": y, "margin": margin}}


def _markers(name: str, own: Sequence[Point], symbol: str, color: str) -> Figure:
    lost = name in LOST
    size = 12 if name == "default" else 7
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [_at(point.x) for point in own],
        "y": [0 if lost else drawable(point.y, False) for point in own],
        "yaxis": "y2" if lost else "y",
        "hovertext": [
            escape(point.told + ("" if lost else f": {number(point.y)}")) for point in own
        ],
        "hoverinfo": "text",
        "marker": {"symbol": symbol, "size": size, "color": color, "opacity": 0.85},
    }


def _at(x: Any) -> Any:
    return drawable(x, False) if is_number(x) else escape(str(x))


def joined(paths: Iterable[list[tuple[float, float, str]]]) -> Figure:
    """Lines of (x, y, told) as one trace, with gaps between."""
    x: list[float | None] = []
    y: list[float | None] = []
    told: list[str] = []
    for path in paths:
        x += [*[drawable(a, False) for a, _, _ in path], None]
        y += [*[drawable(b, False) for _, b, _ in path], None]
        told += [*[escape(words) for _, _, words in path], ""]
    return {"type": "scatter", "x": x, "y": y, "hovertext": told, "hoverinfo": "text"}


def _pair(y: list[float | None], name: str, color: str, mode: str) -> Figure:
    line: Figure = {"type": "scatter", "mode": mode, "name": name, "x": ["default", "best"], "y": y}
    return line | {"line": {"color": color, "width": 1.4}, "marker": {"size": 8, "color": color}}


def categories(title: str, order: Sequence[str]) -> Figure:
    shown_order = [escape(text) for text in order]
    return {
        **axis_of(Axis(title), []),
        **({"dtick": 1} if len(order) <= _NAMED else {}),
        "type": "category",
        "categoryorder": "array",
        "categoryarray": shown_order,
    }


def texts_of(values: Iterable[Any], dimension: Dimension) -> list[str]:
    """The distinct values as text: choices in their order, numbers by size, then the rest."""
    distinct = {shown(value): value for value in values}
    given = [shown(choice) for choice in dimension.choices]

    def key(text: str) -> tuple[int, float, str]:
        if text in given:
            return 0, given.index(text), text
        value = distinct[text]
        return (1, float(value), text) if is_number(value) else (2, 0.0, text)

    return sorted(distinct, key=key)
