"""Fidelity against diversity over training, and what was chosen after it."""

from collections.abc import Sequence
from html import escape

from poise.report import metrics, page
from poise.report.figures import (
    INK,
    Axis,
    Figure,
    axis_of,
    drawable,
    layout_of,
    shade,
    weights_name,
)
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.words import count, is_number, number, plural

_PAIRS = (("recall", "precision"), ("coverage", "density"))
_FEWEST = 2  # points that make a path
_MOST = 30  # candidates in a table


def fidelity(rows: Sequence[Row]) -> list[Html]:
    """The way of the scored snapshots through fidelity and diversity."""
    told = (
        "Each point is a scored snapshot, the labels images seen: upwards single samples look "
        "more real, to the right more of the variety is there; the star is what real images reach."
    )
    plots = []
    for x, y in _PAIRS:
        figure = _path(rows, x, y)
        if figure["data"]:
            title = f"{metrics.title(y)} against {metrics.title(x).lower()}"
            plots.append(page.plot(title, figure, told))
    return [page.heading("Fidelity and diversity"), page.pair(plots)] if plots else []


def chosen(choices: Row | None) -> list[Html]:
    """The weights and the guidance that samples are drawn with since they were searched."""
    parts: list[Html] = []
    for name in ("weights", "guidance"):
        choice = section(choices, name)
        if choice:
            parts += _choice(name, choice)
    return parts


def _path(rows: Sequence[Row], x: str, y: str) -> Figure:
    names = sorted({str(row.get("weights")) for row in rows})
    data: list[Figure] = []
    for i, name in enumerate(names):
        points = [
            (values[x], values[y], count(row["images_seen"]))
            for row in rows
            if str(row.get("weights")) == name
            and is_number((values := section(row, "values")).get(x))
            and is_number(values.get(y))
        ]
        if len(points) < _FEWEST:
            continue
        color = shade(i, len(names))
        trace: Figure = {"type": "scatter", "mode": "lines+markers+text"}
        data.append(
            {
                **trace,
                "name": escape(visible(weights_name(name))),
                "x": [drawable(point[0], False) for point in points],
                "y": [drawable(point[1], False) for point in points],
                "text": _ends([point[2] for point in points]),
                "textposition": "top center",
                "cliponaxis": False,
                "line": {"color": color, "width": 1.2},
                "marker": {"size": 6, "color": color},
            }
        )
    real = next((r for row in reversed(rows) if (r := section(row, "real"))), {})
    star = [drawable(real.get(name), False) for name in (x, y)]
    if data and None not in star:
        mark = {"symbol": "star", "size": 12, "color": INK}
        point: Figure = {"type": "scatter", "mode": "markers", "name": "real images"}
        data.append({**point, "x": [star[0]], "y": [star[1]], "marker": mark})
    axes = [axis_of(Axis(metrics.title(name)), []) for name in (x, y)]
    return {"data": data, "layout": {**layout_of(*axes, legend=True), "hovermode": "closest"}}


def _ends(labels: list[str]) -> list[str]:
    """First and last; more would cover each other."""
    shown = {0, len(labels) - 1}
    return [label if i in shown else "" for i, label in enumerate(labels)]


def _choice(name: str, choice: Row) -> list[Html]:
    metric = str(choice.get("metric") or "")
    rows = [row for row in items(choice, "tried") if isinstance(row, dict)]
    fixed = section(choice, "confirmed")
    if name == "weights":
        told = f"Samples are drawn from {visible(weights_name(choice.get('name')))}"
    else:
        told = f"Samples are drawn with guidance of strength {number(choice.get('strength'))}"
    if metric:
        told += f", chosen by {visible(metrics.title(metric))}"
    if is_number(fixed.get("after")) and is_number(fixed.get("before")):
        told += f": {number(fixed['after'])} on fresh seeds, before {number(fixed['before'])}"
    parts = [page.heading(f"Chosen {name}"), page.paragraph(f"{told}.")]
    if rows:
        body = [
            (visible(row.get("candidate", "")), number(row.get(metric))) for row in rows[:_MOST]
        ]
        table = page.table(("Candidate", visible(metrics.title(metric))), body, "wn")
        parts.append(page.details(f"{plural(len(rows), 'candidate')} tried", [table]))
    return parts
