"""The section on samples: what the model draws now, and how it came to it."""

from pathlib import Path

from poise.report import page
from poise.report.folder import RunFiles
from poise.report.page import Html
from poise.report.pictures import embed
from poise.report.words import plural

_LARGE, _SMALL = 700_000, 150_000  # bytes of one picture: the page must stay easy to send
_GRIDS = 6


def samples(files: RunFiles) -> list[Html]:
    """The samples that were scored, or else the last grid; below them the earlier grids."""
    if not files.grids:
        return [page.absent("No samples have been drawn yet.")]
    if files.scored is not None:
        return [*_scored(files.scored), *_over_training(files.grids)]
    seen, path = files.grids[-1]
    last = embed(path, _LARGE)
    when = f"after {plural(seen, 'image')} seen"
    parts = [
        page.picture(
            last,
            "large",
            f"Grid of samples {when}",
            f"Samples {when}, none chosen: look for variety, and for shapes that do not belong.",
        )
        if last
        else page.absent(f"{path.name} cannot be read.")
    ]
    return [*parts, *_over_training(files.grids[:-1])]


def _scored(path: Path) -> list[Html]:
    image = embed(path, _LARGE)
    if image is None:
        return [page.absent(f"{path.name} cannot be read.")]
    words = (
        "The first of the samples that were scored, none chosen, in the order of their classes: "
        "look for variety, and for shapes that do not belong."
    )
    return [page.picture(image, "large", "Samples that were scored", words)]


def _over_training(earlier: list[tuple[int, Path]]) -> list[Html]:
    parts: list[Html] = []
    most = _GRIDS - 1
    if len(earlier) > most:
        earlier = [earlier[i * (len(earlier) - 1) // (most - 1)] for i in range(most)]
    small = []
    for seen, path in earlier:
        image = embed(path, _SMALL)
        words = f"{plural(seen, 'image')} seen"
        small.append(
            page.picture(image, "small", f"Samples at {words}", f"{words}.")
            if image
            else page.absent(f"{path.name} cannot be read.")
        )
    if small:
        parts += [
            page.heading("Over training"),
            page.grids(small),
            page.paragraph(
                "Every grid starts from the same noise, so one place in the grid is one image "
                "taking shape.",
                "soft",
            ),
        ]
    return parts
