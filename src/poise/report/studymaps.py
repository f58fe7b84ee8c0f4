"""Figures of all settings of a study together: parallel lines, and a map over two of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from poise.report.figures import INK, Axis, Figure, axis_of, layout_of, shade
from poise.report.studyfigures import LINES, SIGNS, TICKS, categories, joined, texts_of, told_of
from poise.report.studyrecord import Dimension, Metric, Study, Trial, shown, wide
from poise.report.words import is_number, number

_AXES = 8  # most settings side by side
_FIFTHS = ("best fifth", "second", "third", "fourth", "last fifth")
_TEXTED = 10  # most columns of a map whose cells show their value
_ABSENT = object()


@dataclass(frozen=True)
class Scale:
    """Where the values of one axis lie between 0 and 1."""

    marks: list[tuple[float, str]]
    texts: list[str]  # of categories; empty: a range
    low: float
    high: float
    log: bool

    def place(self, value: Any) -> float | None:
        """The height of a value; None where it has none."""
        if self.texts:
            position = self.texts.index(shown(value)) if shown(value) in self.texts else None
            return None if position is None else position / max(1, len(self.texts) - 1)
        at = _height(value, self.log)
        return None if at is None else (at - self.low) / (self.high - self.low or 1.0)


def parallel(study: Study, metric: Metric) -> Figure:
    """A line for each trial through all its settings to its value, coloured by fifths."""
    ranked = study.ranked(metric)
    ranked = ranked[:: max(1, -(-len(ranked) // LINES))]
    weight = dict(study.importance)
    known = [d for d in study.dimensions if len({shown(t.point.get(d.name)) for t in ranked}) > 1]
    kept = sorted(known, key=lambda d: -weight.get(d.name, 0.0))[:_AXES]
    scales = [_scale(d, [t.point[d.name] for t in ranked if d.name in t.point]) for d in kept]
    values = [trial.values[metric.name] for trial in ranked]
    scales.append(_scale(Dimension(metric.name, wide(values), (), False), values))
    names = [*[dimension.leaf for dimension in kept], "value"]
    groups: list[list[list[tuple[float, float, str]]]] = [[] for _ in _FIFTHS]
    for rank, trial in enumerate(ranked):
        own = [trial.point.get(d.name, _ABSENT) for d in kept] + [trial.values[metric.name]]
        line = [
            (float(i), at, f"{trial.title}: {names[i]} {shown(value)}")
            for i, (value, scale) in enumerate(zip(own, scales, strict=True))
            if value is not _ABSENT and (at := scale.place(value)) is not None
        ]
        groups[rank * len(_FIFTHS) // len(ranked)].append(line)
    data = [
        joined(groups[i])
        | {
            "mode": "lines",
            "name": _FIFTHS[i],
            "line": {"color": shade(i, len(_FIFTHS)), "width": 2.0 if i == 0 else 1.0},
            "opacity": 1.0 if i == 0 else 0.6,
        }
        for i in reversed(range(len(_FIFTHS)))
        if groups[i]
    ]
    return {"data": data if known else [], "layout": _beside(names, scales)}


def cells(study: Study, metric: Metric) -> Figure | None:
    """A map of the value over the two settings of a grid; None where the trials form none."""
    pair = study.trained[:2]
    if len(pair) < 2 or (len(study.trained) > 2 and study.plan.get("space") != "lr-range"):
        return None
    own = [
        t for t in study.searched if t.role != "default" and all(d.name in t.settings for d in pair)
    ]
    values = [[shown(t.settings[d.name]) for t in own] for d in pair]
    placed = dict(zip(zip(*values, strict=True), own, strict=True))
    ticks = [texts_of([t.settings[d.name] for t in own], d) for d in pair]
    whole = len(ticks[0]) * len(ticks[1])
    if min(map(len, ticks)) < 2 or whole > 2 * len(placed):
        return None
    return _map(metric, pair, ticks, placed)


def _map(
    metric: Metric,
    pair: Sequence[Dimension],
    ticks: Sequence[list[str]],
    placed: dict[tuple[str, ...], Trial],
) -> Figure:
    reached = {at: t.values[metric.name] for at, t in placed.items() if metric.name in t.values}
    if not reached:  # nothing but the proxy is known
        reached = {at: trial.proxy[-1][1] for at, trial in placed.items() if trial.proxy}
    # Colours follow ranks: one cell close to divergence would leave all others alike.
    ranks = {v: i for i, v in enumerate(sorted(set(reached.values()), key=metric.order))}
    grid = [[reached.get((x, y)) for x in ticks[0]] for y in ticks[1]]
    heat = {
        "type": "heatmap",
        "x": [escape(x) for x in ticks[0]],
        "y": [escape(y) for y in ticks[1]],
        "z": [[None if v is None else ranks[v] for v in row] for row in grid],
        "text": [["" if v is None else number(v) for v in row] for row in grid],
        "colorscale": [[i / 4, shade(i, 5)] for i in range(5)],
        "showscale": False,
        "hovertemplate": "%{x}, %{y}: %{text}<extra></extra>",
        "xgap": 1,
        "ygap": 1,
    }
    if len(ticks[0]) <= _TEXTED:
        heat |= {"texttemplate": "%{text}", "textfont": {"size": 10}}
    data = [heat] if reached else []
    for state, (symbol, color) in SIGNS.items():
        at = [(x, y, t) for (x, y), t in placed.items() if t.state == state]
        at = [(x, y, t) for x, y, t in at if state != "stopped" or (x, y) not in reached]
        if at:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state,
                    "x": [escape(x) for x, _, _ in at],
                    "y": [escape(y) for _, y, _ in at],
                    "hovertext": [escape(told_of(trial)) for _, _, trial in at],
                    "hoverinfo": "text",
                    "marker": {"symbol": symbol, "size": 10, "color": color},
                }
            )
    axes = [categories(d.title, t) for d, t in zip(pair, ticks, strict=True)]
    layout = layout_of(axes[0], axes[1], legend=False) | {"hovermode": "closest"}
    return {"data": data, "layout": layout}


def _scale(dimension: Dimension, values: Sequence[Any]) -> Scale:
    log = dimension.log
    heights = [at for value in values if (at := _height(value, log)) is not None]
    if dimension.choices or len(heights) < len(values) or not heights:
        texts = texts_of(values, dimension)
        marks = [(i / max(1, len(texts) - 1), text[:9]) for i, text in enumerate(texts)]
        return Scale(marks if len(marks) <= TICKS else [marks[0], marks[-1]], texts, 0, 1, False)
    marks = [(0.0, shown(min(values))), (1.0, shown(max(values)))]
    return Scale(marks, [], min(heights), max(heights), log)


def _height(value: Any, log: bool) -> float | None:
    if not is_number(value) or (log and value <= 0):
        return None
    return math.log10(value) if log else float(value)


def _beside(names: Sequence[str], scales: Sequence[Scale]) -> Figure:
    """Upright axes with their names below and what their ends and categories mean."""
    x = {**axis_of(Axis(""), []), "tickvals": list(range(len(names))), "zeroline": False}
    x |= {"ticktext": [escape(name) for name in names], "range": [-0.5, len(names) - 0.5]}
    y = {"visible": False, "range": [-0.12, 1.12], "fixedrange": True, "type": "linear"}
    layout = layout_of(x | {"gridcolor": INK}, y, legend=True) | {"hovermode": "closest"}
    layout["margin"] = {**layout["margin"], "l": 12}
    layout["annotations"] = [
        {
            "x": i,
            "y": at,
            "text": escape(text),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 3,
            "yanchor": "top" if at == 0 else "bottom" if at == 1 else "middle",
            "font": {"size": 10},
        }
        for i, scale in enumerate(scales)
        for at, text in scale.marks
    ]
    return layout
