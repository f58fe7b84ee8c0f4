"""Draw weight magnitude, activation magnitude and update size of several runs as one SVG.

python scripts/magnitudes_figure.py OUT.svg NAME=RUN [NAME=RUN ...]
"""

import math
import sys
from html import escape
from pathlib import Path

from poise.artifacts import read_jsonl

PANELS = [  # title, log, key, whether relative to the first value
    ("Weights: size, relative to the first", "magnitudes", "weight_rms", True),
    ("Activations: size, mean over blocks", "magnitudes", "activation_rms", False),
    ("Update: |change| / |weights|", "metrics", "update_ratio", False),
]
COLOURS = ["#c0392b", "#1f618d", "#117864", "#7d3c98", "#b9770e", "#515a5a", "#212f3c"]
WIDTH, HEIGHT, LEFT, TOP, GAP = 300, 200, 62, 40, 80


def main(out: Path, runs: dict[str, Path]) -> None:
    """Write the figure."""
    total = len(PANELS) * (WIDTH + GAP) + LEFT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {HEIGHT + 110}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{total}" height="{HEIGHT + 110}" fill="white"/>',
    ]
    for i, (title, log, key, relative) in enumerate(PANELS):
        curves = {name: points(run, log, key, relative) for name, run in runs.items()}
        parts += panel(LEFT + i * (WIDTH + GAP), title, curves)
    for i, name in enumerate(runs):
        x, y = LEFT + i * 170, TOP + HEIGHT + 56
        parts.append(f'<rect x="{x}" y="{y - 9}" width="14" height="4" fill="{COLOURS[i]}"/>')
        parts.append(f'<text x="{x + 20}" y="{y}">{escape(name)}</text>')
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")


def points(run: Path, log: str, key: str, relative: bool) -> list[tuple[float, float]]:
    """Images seen and value, where there is one."""
    rows = [row for row in read_jsonl(run / f"{log}.jsonl") if row.get(key)]
    scale = rows[0][key] if relative else 1.0
    return [(row["images_seen"], row[key] / scale) for row in rows]


def panel(x0: float, title: str, curves: dict[str, list[tuple[float, float]]]) -> list[str]:
    """One panel with a logarithmic value axis."""
    every = [p for curve in curves.values() for p in curve]
    right = max(x for x, _ in every)
    low = math.floor(math.log10(min(y for _, y in every)) * 20 - 0.01) / 20
    high = math.ceil(math.log10(max(y for _, y in every)) * 20 + 0.01) / 20

    def at(x: float, y: float) -> tuple[float, float]:
        share = (math.log10(y) - low) / (high - low)
        return x0 + WIDTH * x / right, TOP + HEIGHT * (1 - share)

    parts = [
        f'<text x="{x0}" y="{TOP - 14}" font-weight="bold">{escape(title)}</text>',
        f'<rect x="{x0}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#999"/>',
        f'<text x="{x0 + WIDTH}" y="{TOP + HEIGHT + 18}" text-anchor="end">'
        f"{right:,.0f} images seen</text>",
    ]
    for i in range(5):
        value = 10 ** (low + (high - low) * i / 4)
        y = at(0, value)[1]
        parts.append(f'<line x1="{x0}" x2="{x0 + WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{x0 - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for colour, curve in zip(COLOURS, curves.values(), strict=False):
        line = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in curve)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
    return parts


if __name__ == "__main__":
    named = [argument.partition("=") for argument in sys.argv[2:]]
    main(Path(sys.argv[1]), {name: Path(run) for name, _, run in named})
