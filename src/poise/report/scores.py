"""One record of scores as sections of a page: tables, classes, denoising, pictures, protocol."""

from pathlib import Path

from poise.report import metrics, page, scorefigures
from poise.report.conditioning import name_of
from poise.report.figures import Axis
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.pictures import embed
from poise.report.reading import interval, reading_of
from poise.report.words import count, is_number, number, plain, plural, seconds, sentence, share

_LARGE, _MIDDLE = 700_000, 350_000  # bytes of one picture: the page must stay easy to send
_KINDS = {
    "fidelity": "Fidelity: do samples look real?",
    "diversity": "Diversity: is the variety of the data there?",
    "novelty": "Novelty: are samples new?",
    "denoising": "Denoising: is the training set known by heart?",
    "conditioning": "Conditioning: do samples show what was asked for?",
}
_SHORT = 4  # letters of a class that fit over a column
_ROWS = 20  # most classes shown one by one
_PICTURES = (
    (
        "worst.png",
        "Worst samples",
        "The samples that fit in least among real images, worst first: what goes wrong here?",
    ),
    (
        "best.png",
        "Best samples",
        "The samples that fit in best among real images, best first; chosen, so they flatter.",
    ),
    (
        "missing.png",
        "What is missing",
        "Real images of kinds that samples show too seldom or not at all.",
    ),
    (
        "closest.png",
        "Closest pairs",
        "Above, samples; below each of them the training image nearest to it, closest pairs first. "
        "Pairs that look the same are copies.",
    ),
    (
        "neighbours.png",
        "Neighbours of the first samples",
        "Above, the first samples, none chosen; below each of them the training image nearest to "
        "it. That they are of one kind is usual; that they are the same image is not.",
    ),
)


def tables(scores: Row) -> list[Html]:
    """A table of scores for each kind, or one table where kinds are not known."""
    found: dict[str, list[tuple[str, str, str, str]]] = {}
    table = section(scores, "metrics")
    for name in table:
        row = section(table, name)
        kind = _KINDS.get(str(row.get("kind")), "")
        found.setdefault(kind, []).append(_score(name, row))
    if not found:
        return [page.absent("No score could be computed.")]
    heads = ("Score", "Samples", "Real images", "What it says")
    parts: list[Html] = []
    for kind in [*_KINDS.values(), ""]:
        if kind in found:
            parts += [page.heading(kind)] if kind else []
            parts.append(page.table(heads, found[kind], "tnnw"))
    return parts


def classes(scores: Row) -> list[Html]:
    """Scores of each class, class shares, and which classes are taken for which."""
    return [*_per_class(scores), *_class_shares(scores), *_confusion(scores)]


def denoising(scores: Row) -> list[Html]:
    """Training against held-out images by noise level, and the gap between them."""
    if not section(scores, "denoising"):
        return []
    error = scorefigures.denoising(scores, "mse", Axis("mean squared error", log=True))
    psnr = scorefigures.denoising(scores, "psnr", Axis("dB"))
    told = (
        "Denoising error of training and of held-out images; lines that part at low noise mean "
        "that training images are known by heart."
    )
    pair = [
        page.plot("Denoising error over noise", error, told),
        page.plot("PSNR over noise", psnr, "Peak signal-to-noise ratio: higher is better."),
    ]
    return [page.heading("Denoising, by noise level"), page.pair(pair), *_gaps(scores)]


def pictures(scores: Row, folder: Path) -> list[Html]:
    """Worst and best samples, what is missing, closest pairs; what is not there is left out."""
    parts: list[Html] = []
    for file, title, words in _PICTURES:
        path = folder / file
        if not path.is_file():
            continue
        image = embed(path, _LARGE if file == "closest.png" else _MIDDLE)
        parts.append(page.heading(title))
        parts.append(
            page.picture(image, "large", title, words)
            if image
            else page.absent(f"{file} cannot be read.")
        )
        if file == "closest.png":
            parts.append(_pairs(scores))
    return parts


def protocol(scores: Row) -> Html:
    """How it was measured, to fold open."""
    features, sampler = section(scores, "features"), section(scores, "sampler")
    table = section(scores, "metrics")
    counts = next((n for name in table if (n := items(section(table, name), "n"))), [])
    facts = [
        ("against", scores.get("split")),
        ("samples from", scores.get("source")),
        ("real images from", scores.get("reference_source")),
        ("counts, samples against real images", " against ".join(count(n) for n in counts)),
        ("features", features.get("name")),
        ("digest of the features", features.get("digest")),
        ("resizer", features.get("resizer")),
        ("feature dimensions", features.get("dimensions")),
        ("images seen", count(scores["images_seen"]) if scores.get("images_seen") else None),
        ("weights", scores.get("weights")),
        ("sampler", plain(sampler) if sampler else None),
        ("guidance", plain(scores["guidance"]) if scores.get("guidance") else None),
        ("seed", number(scores["seed"]) if scores.get("seed") is not None else None),
        ("data", scores.get("data")),
        ("took", seconds(scores["seconds"]) if scores.get("seconds") is not None else None),
    ]
    rows = [(key, visible(value)) for key, value in facts if value not in (None, "")]
    own = [
        (metrics.title(name), visible(plain(given), 600))
        for name in table
        if (given := _own(scores, section(section(table, name), "protocol")))
    ]
    parts = [page.table(("Fact", "Value"), rows, "tw")]
    if own:
        parts += [page.heading("Of single scores"), page.table(("Score", "How"), own, "tw")]
    return page.details("How it was measured", parts)


def cautions(scores: Row) -> list[Html]:
    """The warnings of the record."""
    warnings = items(scores, "warnings")
    return [page.paragraph(f"Caution: {sentence(visible(plain(w), 600))}") for w in warnings]


def copying(scores: Row) -> list[Html]:
    """The test for copies in full, to fold open."""
    rows = section(scores, "copying")
    if not rows:
        return []
    facts = [
        (visible(key.replace("_", " ")), visible(plain(value), 600)) for key, value in rows.items()
    ]
    return [
        page.details("Test for copies, in full", [page.table(("Copying", "Value"), facts, "tw")])
    ]


def cell(row: Row) -> str:
    """A value with its interval in a second line."""
    reading = reading_of(row)
    if reading is None:
        return number(row.get("value"))
    return f"{number(reading.value)}\n{interval(reading).strip(' ()')}".rstrip()


def _score(name: str, row: Row) -> tuple[str, str, str, str]:
    mark = row.get("mark")
    told = metrics.meaning(name, row.get("better"))
    if isinstance(mark, str) and mark:
        told += f" Not to be read alone: {visible(mark)}"
    real = number(row["real"]) if row.get("real") is not None else "–"
    return visible(metrics.title(name)), cell(row), real, told


def _own(scores: Row, given: Row) -> Row:
    """What the protocol of one score has that the whole record does not say already."""
    known = {"features", "features_digest", "digest", "resizer", "data", "seed", "weights"}
    known |= {"sampler", "guidance", "reference", "dimensions", "images_seen", *scores}
    return {key: value for key, value in given.items() if key not in known}


def _per_class(scores: Row) -> list[Html]:
    rows = [row for row in items(scores, "per_class") if isinstance(row, dict)]
    if not rows:
        return []
    shown = ("kernel_distance", "precision", "recall", "coverage")
    body: list[tuple[str, ...]] = []
    order = sorted(rows, key=_coverage)[:_ROWS] if len(rows) > _ROWS else rows
    for row in order:
        values = section(row, "metrics")
        cells = [_beside(section(values, name)) for name in shown]
        counts = f"{number(row.get('samples'))} / {number(row.get('reference'))}"
        mark = sentence(visible(row.get("mark") or ""))
        body.append((visible(row.get("name", ""), 60), counts, *cells, mark))
    heads = ["Class", "Samples / real", *[metrics.title(name) for name in shown], "Note"]
    kinds = "tnnnnnw"
    if not any(row[-1] for row in body):
        heads, kinds, body = heads[:-1], kinds[:-1], [row[:-1] for row in body]
    more = ""
    if len(rows) > _ROWS:
        more = f"The {_ROWS} of {len(rows)} classes that are covered worst."
    note = "Each cell: value, 95 % interval, and what real images of the class reach."
    return [
        page.heading("Class by class"),
        page.paragraph(f"{note} {more}".strip(), "soft"),
        page.table(heads, body, kinds),
    ]


def _beside(row: Row) -> str:
    if not row:
        return "–"
    real = f"\nreal {number(row['real'])}" if is_number(row.get("real")) else ""
    return cell(row) + real


def _coverage(row: Row) -> float:
    value = section(section(row, "metrics"), "coverage").get("value")
    return float(value) if is_number(value) else 2.0


def _class_shares(scores: Row) -> list[Html]:
    told = section(scores, "classes")
    if not told:
        return []
    figure = scorefigures.class_shares(scores)
    accuracy = told.get("probe_accuracy")
    words = "Classes as a classifier sees them that was trained on the training images"
    if is_number(accuracy):
        words += f"; it is right for {share(accuracy)} of real images that it has not seen"
    amount = len(items(told, "names"))
    if amount > scorefigures.MOST_CLASSES:
        words += f". Of {amount} classes, those that are farthest from real images"
    note = sentence(visible(told.get("note") or ""))
    return [page.plot("Classes of the samples", figure, f"{words}. {note}".strip())]


def _confusion(scores: Row) -> list[Html]:
    rows = items(section(scores, "classes"), "confusion")
    rows = [row if isinstance(row, list) and all(is_number(n) for n in row) else [] for row in rows]
    if not any(sum(row) for row in rows):
        return []
    title = page.heading("Which class was asked for, and which one is seen")
    if len(rows) <= _ROWS:
        names = [name_of(scores, i) for i in range(len(rows))]
        numbers = names
        if max(map(len, names)) > _SHORT:
            numbers = [str(i + 1) for i in range(len(rows))]
            names = [f"{i + 1} {name}" for i, name in enumerate(names)]
        words = (
            "Rows are classes asked for, columns the classes seen under the same numbers, in "
            "percent of each row: off the diagonal, samples are of the wrong class."
        )
        shares = [[n / sum(row) if sum(row) else 0.0 for n in row] for row in rows]
        return [title, page.shaded(("Asked for", *numbers), names, shares), page.note(words)]
    worst = sorted(
        (row[i] / sum(row), i) for i, row in enumerate(rows) if i < len(row) and sum(row)
    )
    body = []
    for right, i in worst[:_ROWS]:
        other = max((j for j in range(len(rows[i])) if j != i), key=lambda j: (rows[i][j], -j))
        taken = f"{name_of(scores, other)} ({share(rows[i][other] / sum(rows[i]))})"
        body.append((name_of(scores, i), count(sum(rows[i])), share(right), taken))
    heads = ("Asked for", "Samples", "Seen as asked", "Most often taken for")
    words = f"The {len(body)} classes of {len(rows)} that are seen least often as asked."
    return [title, page.table(heads, body, "tnnt"), page.note(words)]


def _gaps(scores: Row) -> list[Html]:
    rows = [row for row in items(section(scores, "denoising"), "gap") if isinstance(row, dict)]
    body = [
        (
            number(row.get("sigma")),
            _percent(row),
            "yes" if row.get("significant") else "no",
        )
        for row in rows
    ]
    if not body:
        return []
    heads = ("Noise level σ", "Excess of held-out error", "Beyond chance")
    return [page.table(heads, body, "nnt")]


def _percent(row: Row) -> str:
    low, high = row.get("low"), row.get("high")
    told = share(row.get("ratio"))
    if is_number(low) and is_number(high):
        told += f"\n{100 * low:.3g} to {share(high)}"
    return told


def _pairs(scores: Row) -> Html:
    """What the test says of the closest pairs."""
    rows = section(scores, "copying")
    flagged, fewest = rows.get("flagged"), rows.get("detectable_from")
    if not is_number(flagged):
        return Html("")
    told = f"The test flags {plural(flagged, 'sample')} as nearer than chance allows"
    if is_number(fewest):
        told += f"; at these counts it can flag {plural(fewest, 'copy', 'copies')} or more"
    return page.note(f"{told}.")
