"""Draw what faults do to a training that nobody repairs, one SVG for each cause.

poise drill SOURCE --keep FOLDER --set stability.policy=warn
python scripts/drill_figures.py FOLDER OUT

Each figure shows error and gradient norm of the disturbed run beside the undisturbed one, when the
fault began and when it was said. A fault that shows in neither, or was called something else, is
left out and named.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from poise.artifacts import read_json, read_jsonl
from poise.stability.causes import title

PANELS = (("error", "Error"), ("grad_norm", "Gradient norm"))
INK, WITHOUT, WITH, SAID = "#808489", "#4a7fb5", "#d1503c", "#c98a1b"  # on white and on black
WIDTH, HEIGHT, LEFT, TOP, GAP = 230, 130, 46, 48, 60
BEFORE = 60  # updates before the fault that are shown
VISIBLE = math.log(1.25)  # least difference of three points in a row
TICKS = 5  # most numbers beside an axis

Point = tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """One fault with its curves, over updates of the run."""

    kind: str
    cause: str
    fault: int  # the last update before it
    said: int | None  # the update that showed it; None: it was missed
    named: str  # what it was called
    curves: dict[str, tuple[list[Point], list[Point]]]  # panel -> without the fault, with it


def main(folder: Path, out: Path) -> list[Path]:
    """Write drill-CAUSE.svg for each cause of a kept drill; the files."""
    plan = read_json(folder / "plan.json")
    if plan["settings"]["stability"]["policy"] == "repair":
        sys.exit("These runs were repaired; keep a drill with --set stability.policy=warn.")
    written: list[Path] = []
    for drawn in faults(folder, plan):
        path = out / f"drill-{drawn.cause}.svg"
        if path in written:
            print(f"{drawn.kind}: {drawn.cause} is drawn already")
        elif drawn.said is not None and drawn.named != drawn.cause:
            print(f"{drawn.kind}: called {drawn.named}, not {drawn.cause}")
        elif not visible(drawn):
            print(f"{drawn.kind}: nothing to be seen in error and gradient norm")
        else:
            out.mkdir(parents=True, exist_ok=True)
            path.write_text(figure(drawn), encoding="utf-8")
            written.append(path)
    return written


def faults(folder: Path, plan: dict[str, Any]) -> Iterator[Drawn]:
    """Every run with a single fault that has a cause."""
    batch = plan["settings"]["training"]["batch"]
    for path in sorted((folder / "results").glob("*.json")):
        outcomes = read_json(path).get("outcomes", [])
        run = folder / "runs" / path.stem
        if len(outcomes) != 1 or not (run / "metrics.jsonl").exists():
            continue
        row = outcomes[0]
        at = row["parameters"].get("at")  # None: there from the first update of a run of its own
        fault = (plan["base"] + at) if at is not None else began(run, plan["base"], batch)
        delay = row["delay_steps"] if row["detected"] else None
        first = max(0, fault - BEFORE)
        without = folder / "runs" / "undisturbed"
        curves = {
            key: (points(without, key, batch, first), points(run, key, batch, first))
            for key, _ in PANELS
        }
        yield Drawn(
            kind=row["kind"],
            cause=row["true_cause"],
            fault=fault,
            said=None if delay is None else fault + 1 + delay,
            named=row["named_cause"] or "",
            curves=curves,
        )


def began(run: Path, base: int, batch: int) -> int:
    """Where a run of a fault without a moment departs from the base: at its start, or after it."""
    rows = read_jsonl(run / "metrics.jsonl")
    without = read_jsonl(run.parent / "undisturbed" / "metrics.jsonl")
    own = {row["images_seen"]: row["error"] for row in rows if row["images_seen"] <= base * batch}
    same = all(own.get(row["images_seen"], row["error"]) == row["error"] for row in without)
    return base if own and same else 0


def points(run: Path, key: str, batch: int, first: int) -> list[Point]:
    """Updates from `first` on, and value; the value is nan where there is none to draw."""
    found = []
    for row in read_jsonl(run / "metrics.jsonl"):
        value = math.nan if row.get(key) is None else float(row[key])
        good = math.isfinite(value) and value > 0
        found.append((row["images_seen"] / batch, value if good else math.nan))
    return [point for point in found if point[0] >= first]


def visible(drawn: Drawn) -> bool:
    """Whether one of the curves leaves the undisturbed one, for three points or out of sight."""
    for without, with_ in drawn.curves.values():
        usual = dict(without)
        gaps = [
            abs(math.log(y / usual[x])) if math.isfinite(y) else math.inf
            for x, y in with_
            if x > drawn.fault and math.isfinite(usual.get(x, math.nan))
        ]
        if any(min(gaps[i : i + 3]) > VISIBLE for i in range(len(gaps) - 2)):
            return True
    return False


def figure(drawn: Drawn) -> str:
    """The whole drawing."""
    width, height = 2 * (LEFT + WIDTH) + GAP - LEFT + 12, TOP + HEIGHT + 58
    words = f"{title(drawn.cause)} ({drawn.kind})"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11" fill="{INK}">',
        f"<title>{escape(words)}</title>",
        f'<text x="{LEFT}" y="16" font-size="13" font-weight="bold">{escape(words)}</text>',
    ]
    for i, (key, name) in enumerate(PANELS):
        parts += panel(LEFT + i * (WIDTH + GAP), name, drawn, *drawn.curves[key])
    legend = (
        ("without the fault", f'stroke="{WITHOUT}" stroke-width="2"'),
        ("with the fault", f'stroke="{WITH}" stroke-width="2"'),
        ("the fault begins", f'stroke="{INK}" stroke-dasharray="3 2"'),
        (f"named {drawn.named}", f'stroke="{SAID}" stroke-width="2"'),
    )
    for i, (text, pen) in enumerate(legend if drawn.said is not None else legend[:-1]):
        x, y = LEFT + i * 118, height - 8
        parts.append(f'<path d="M{x} {y - 4}h14" {pen}/>')
        parts.append(f'<text x="{x + 19}" y="{y}">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def panel(
    x0: float, name: str, drawn: Drawn, without: Sequence[Point], with_: Sequence[Point]
) -> list[str]:
    """One panel with a logarithmic value axis."""
    both = [p for p in (*without, *with_) if math.isfinite(p[1])]
    first, last = min(x for x, _ in both), max(x for x, _ in both)
    low, high = (math.log10(f(y for _, y in both)) for f in (min, max))
    room = max(0.05 * (high - low), 0.02)
    low, high = low - room, high + room

    def at(x: float, y: float) -> Point:
        share = (math.log10(y) - low) / (high - low)
        return x0 + WIDTH * (x - first) / (last - first), TOP + HEIGHT * (1 - share)

    foot = TOP + HEIGHT
    parts = [
        f'<text x="{x0}" y="{TOP - 8}">{name}</text>',
        f'<rect x="{x0}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" '
        f'stroke="{INK}" stroke-opacity=".5"/>',
    ]
    for value in decades(low, high):
        y = at(first, value)[1]
        parts.append(f'<path d="M{x0} {y:.1f}h{WIDTH}" stroke="{INK}" stroke-opacity=".25"/>')
        parts.append(f'<text x="{x0 - 5}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for x, anchor in ((first, "start"), (last, "end")):
        place = at(x, 10**low)[0]
        parts.append(f'<text x="{place:.0f}" y="{foot + 14}" text-anchor="{anchor}">{x:.0f}</text>')
    parts.append(f'<text x="{x0 + WIDTH / 2}" y="{foot + 14}" text-anchor="middle">updates</text>')
    parts += marks(drawn, lambda x: at(min(max(x, first), last), 10**low)[0])
    for curve, colour in ((without, WITHOUT), (with_, WITH)):
        path = "".join(strokes([(x, y) if math.isnan(y) else at(x, y) for x, y in curve]))
        parts.append(f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
    return parts


def marks(drawn: Drawn, place: Any) -> list[str]:
    """Lines where the fault began and where it was said."""
    dashed = f'stroke="{INK}" stroke-dasharray="3 2"'
    parts = [f'<path d="M{place(drawn.fault):.1f} {TOP}v{HEIGHT}" {dashed}/>']
    if drawn.said is not None:
        at = f"M{place(drawn.said):.1f} {TOP}v{HEIGHT}"
        parts.append(f'<path d="{at}" stroke="{SAID}" stroke-width="1.6"/>')
    return parts


def strokes(curve: Sequence[Point]) -> Iterator[str]:
    """Moves and lines of a path; nothing is drawn over a gap."""
    pen = "M"
    for x, y in curve:
        if math.isnan(y):
            pen = "M"
        else:
            yield f"{pen}{x:.1f} {y:.1f}"
            pen = "L"


def decades(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, 2 to `TICKS`; of two digits where there are few."""
    exponents = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [s * 10.0**e for e in exponents for s in steps]
        found = [value for value in found if low <= math.log10(value) <= high]
        if len(found) <= TICKS:
            break
    if len(found) < 2:
        ends = (0.8 * low + 0.2 * high, 0.2 * low + 0.8 * high)
        found = [float(f"{10**end:.2g}") for end in ends]
    return found[:: -(-len(found) // TICKS)]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
