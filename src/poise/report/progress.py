"""Scores over training, and what guidance and averaging trade against each other."""

from poise.report import metrics, page, scorefigures
from poise.report.folder import Row, items, section
from poise.report.page import Html
from poise.report.words import count, is_number, plural

_SHOWN = (
    "frechet_distance",
    "kernel_distance",
    "precision",
    "recall",
    "density",
    "coverage",
    "fine_detail",
    "nearest_train_distance",
)
_FEWEST = 2  # scored snapshots that make a line
_PAIRS = (("recall", "precision"), ("coverage", "density"))


def snapshots(rows: list[Row]) -> list[Html]:
    """Each score over training, as far as snapshots were scored."""
    if len(rows) < _FEWEST:
        return []
    names = [n for n in _SHOWN if any(is_number(section(r, "values").get(n)) for r in rows)]
    small = [
        page.plot(
            metrics.title(name),
            scorefigures.over_training(rows, name),
            metrics.meaning(name, ""),
        )
        for name in names
    ]
    told = (
        f"{plural(len(rows), 'scored snapshot')}, {count(rows[-1].get('samples'))} samples each; "
        "the dashed level is what real images reach at these counts. Scores of so few samples "
        "tremble: trust trends, not single points."
    )
    copies = [row for row in rows if is_number(row.get("copies")) and row["copies"] > 0]
    if copies:
        first = copies[0]
        told += (
            f" Copies of training images were first flagged after "
            f"{plural(first['images_seen'], 'image')} seen ({count(first['copies'])})."
        )
    return [page.heading("Scores over training"), page.note(told), page.pair(small)]


def tradeoff(found: Row | None) -> list[Html]:
    """Guidance strength against averaging length: fidelity, variety, Fréchet distance."""
    if not items(found, "rows"):
        return []
    assert found is not None
    told = (
        "Stronger guidance buys fidelity with variety. Each line joins one averaging length over "
        "guidance strength, the labels; the best place is near the star of real images."
    )
    plots = [
        page.plot(
            f"{metrics.title(y)} against {metrics.title(x).lower()}",
            scorefigures.against(found, x, y),
            told,
        )
        for x, y in _PAIRS
        if _has(found, x) and _has(found, y)
    ]
    if _has(found, "frechet_distance"):
        figure = scorefigures.over_strength(found, "frechet_distance")
        words = (
            "The lowest point is the strength and the averaging length by this distance alone; "
            "see beside it what they cost in variety."
        )
        plots.append(page.plot("Fréchet distance over guidance strength", figure, words))
    many = f"{plural(found.get('samples'), 'sample')} for each point"
    return [page.heading("Guidance and averaging"), page.note(f"{many}."), page.pair(plots)]


def _has(found: Row, name: str) -> bool:
    rows = [row for row in items(found, "rows") if isinstance(row, dict)]
    return any(is_number(section(row, "values").get(name)) for row in rows)
