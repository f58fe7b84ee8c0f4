"""Bars, a curve and ranges for the audit page, as HTML and SVG that need no script."""

from collections.abc import Sequence
from dataclasses import dataclass

from poise.report.page import Html, text, visible
from poise.report.words import is_number, number, share

STYLE = """
table.bars{width:100%;max-width:46rem}table.bars td,table.bars th{border:0;
padding:.14rem .7rem .14rem 0;vertical-align:middle;color:var(--ink);font-weight:400}
table.bars th{min-width:5.7rem;max-width:11rem;white-space:normal;overflow-wrap:anywhere}
table.bars td.n{white-space:nowrap}
table.bars td.bar{width:70%;min-width:5rem}
.bar i{display:block;height:.8rem;min-width:2px;background:#4a7fb5;border-radius:2px}
.bar i+i{margin-top:2px}.bar i.low{background:#c98a1b}
.bar i.want{background:var(--soft);opacity:.55}
.range{position:relative;height:.8rem;background:var(--tint);border-radius:2px}
.range i{position:absolute;top:0;bottom:0;height:auto;opacity:.75}
.range b{position:absolute;top:-.15rem;bottom:-.15rem;width:2px;background:var(--ink)}
svg.curve{display:block;width:100%;max-width:36rem;height:auto;font:11px system-ui,sans-serif}
svg.curve text{fill:var(--soft)}svg.curve .grid{stroke:var(--line)}
svg.curve .line{fill:none;stroke:#4a7fb5;stroke-width:2}svg.curve circle{fill:#4a7fb5}
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 400, 220, 44, 24, 12, 38


def percent(value: object) -> str:
    """A share of 1 in percent that no line break divides."""
    return share(value).replace(" ", "\u00a0")


@dataclass(frozen=True)
class Bar:
    """One line of a bar chart."""

    name: str
    value: float
    told: str  # the value in words
    low: bool = False  # drawn in the colour of a warning
    beside: float | None = None  # a second, paler bar below, on the same scale


def bars(rows: Sequence[Bar]) -> Html:
    """Horizontal bars from zero, as long as their values."""
    most = max((max(row.value, row.beside or 0.0) for row in rows), default=0.0)
    lines = []
    for row in rows:
        beside = (
            "" if row.beside is None else f'<i class="want" style="{_long(row.beside, most)}"></i>'
        )
        kind = ' class="low"' if row.low else ""
        lines.append(
            f'<tr><th scope="row">{text(visible(row.name))}</th><td class="bar">'
            f'<i{kind} style="{_long(row.value, most)}"></i>{beside}</td>'
            f'<td class="n">{text(row.told)}</td></tr>'
        )
    return Html('<table class="bars"><tbody>' + "\n".join(lines) + "</tbody></table>")


def _long(value: float, most: float) -> str:
    return f"width:{100 * value / most if most > 0 else 0:.1f}%"


@dataclass(frozen=True)
class Range:
    """Where most values of one measure lie, on a scale from `lowest` to `highest`."""

    name: str
    low: float
    median: float
    high: float
    lowest: float
    highest: float


def ranges(rows: Sequence[Range]) -> Html:
    """For each measure a strip from low to high, with a stroke at the median."""
    lines = []
    for row in rows:
        low, median, high = (_part(row, value) for value in (row.low, row.median, row.high))
        told = f"{number(row.low)} · {number(row.median)} · {number(row.high)}"
        lines.append(
            f'<tr><th scope="row">{text(row.name)}</th><td class="bar"><div class="range">'
            f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
            f'<b style="left:{median:.1f}%"></b></div></td><td class="n">{text(told)}</td></tr>'
        )
    return Html('<table class="bars"><tbody>' + "\n".join(lines) + "</tbody></table>")


def _part(row: Range, value: float) -> float:
    wide = row.highest - row.lowest
    return 100 * min(1.0, max(0.0, (value - row.lowest) / wide)) if wide > 0 else 0.0


def curve(points: Sequence[tuple[float, float]], x_title: str, title: str) -> Html:
    """A line through points of finite, not negative numbers, both axes from zero."""
    known = sorted((x, y) for x, y in points if is_number(x) and is_number(y))
    if not known:
        return Html("")
    right, top = _round_up(max(x for x, _ in known)), _round_up(max(y for _, y in known))
    inner, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    at = [(_LEFT + inner * x / right, _TOP + tall * (1 - y / top)) for x, y in known]
    parts = []
    for i in range(5):
        y, x = _TOP + tall * (1 - i / 4), _LEFT + inner * i / 4
        parts.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{_tick(top * i / 4)}</text>'
            f'<text x="{x:.1f}" y="{_TOP + tall + 16}" text-anchor="middle">'
            f"{_tick(right * i / 4)}</text>"
        )
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in at)
    return Html(
        f'<svg class="curve" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{text(title)}">{"".join(parts)}<polyline class="line" points="{line}"/>{dots}'
        f'<text x="{_LEFT + inner / 2:.0f}" y="{_HEIGHT - 5}" text-anchor="middle">'
        f"{text(x_title)}</text></svg>"
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 6, 8 or 10 times a power of ten."""
    power = 10.0 ** (len(f"{int(value)}") - 1) if value >= 1 else 1.0
    return next((step * power for step in (1, 2, 4, 6, 8) if step * power >= value), 10 * power)


def _tick(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"
