"""The sections of the audit page on what the set is made of: labels, captions, diversity, target.

Each function returns the parts of its section, nothing where there is nothing to show.
"""

from typing import Any

from poise.audit.page.charts import Bar, Range, bars, curve, percent, ranges
from poise.audit.page.map import cluster_map
from poise.audit.page.sheets import Album, Tile, group, groups, sheet
from poise.audit.scan import Scan
from poise.report import page
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.words import count, is_number, listed, number, plain, plural, sentence

_BARS = 30  # a longer chart shows its two ends, the rest is folded
_ENDS = 12
_FOLDED = 300
_SUSPECTS = 24
_REGIONS, _EXAMPLES = 6, 4
_NAMED = 40


def labels(facts: Row, album: Album) -> list[Html]:
    """Class counts, classes too small to learn, labels that their neighbours contradict."""
    found, classes = section(facts, "labels"), section(facts, "classes")
    parts: list[Html] = []
    if classes:
        parts += _class_bars(classes, items(found, "tiny"))
    if not found:
        return parts
    told = (
        f"By their sizes the {plural(len(classes), 'class', 'classes')} are worth "
        f"{number(found.get('effective_classes'))} equal ones (entropy "
        f"{number(found.get('entropy'))} of {number(found.get('entropy_max'))} bits)."
    )
    for key in ("largest", "smallest"):
        pair = items(found, key)
        if len(pair) == 2:
            told += f" The {key} is {visible(pair[0])} with {plural(pair[1], 'image')}."
    parts.append(page.paragraph(told))
    if tiny := items(found, "tiny"):
        parts.append(page.paragraph(f"Too small to learn from: {_names(tiny)}."))
    return [*parts, *_suspects(found, album)]


def _names(names: list[Any]) -> str:
    return listed([visible(name) for name in names], _NAMED)


def _class_bars(classes: Row, tiny: list[Any]) -> list[Html]:
    rows = [
        Bar(name, float(amount), count(amount), low=name in tiny)
        for name, amount in sorted(classes.items(), key=lambda pair: -_amount(pair[1]))
        if is_number(amount)
    ]
    if not rows:
        return []
    words = "Images of each class: even bars are a balanced set; amber bars are too small to learn."
    if len(rows) <= _BARS:
        return [bars(rows), page.paragraph(words, "soft")]
    head = f"The {_ENDS} largest and {_ENDS} smallest of {len(rows):,} classes"
    folded = [bars(rows[:_FOLDED])]
    if len(rows) > _FOLDED:
        folded.append(page.paragraph(f"{len(rows) - _FOLDED:,} more are in audit.json.", "soft"))
    return [
        page.heading(head),
        bars([*rows[:_ENDS], *rows[-_ENDS:]]),
        page.paragraph(words, "soft"),
        page.details(plural(len(rows), "class", "classes"), folded),
    ]


def _suspects(found: Row, album: Album) -> list[Html]:
    rows = [row for row in items(found, "suspects") if isinstance(row, dict)]
    told = [visible(found.get("note") or "", 1000)]
    if is_number(found.get("neighbour_accuracy")):
        accuracy = percent(found["neighbour_accuracy"])
        told.append(f"{accuracy} of the images look most like others of their own class.")
        if unjudged := items(found, "unjudged"):
            told.append(f"Nothing can be said this way about {_names(unjudged)}.")
    parts = [page.paragraph(" ".join(part for part in told if part))]
    if not rows:
        return parts
    tiles = [
        Tile(
            str(row.get("path")),
            f"{row.get('label')} → {plain(row.get('neighbours'))}? ({percent(row.get('share'))})",
        )
        for row in rows[:_SUSPECTS]
    ]
    amount = max(len(rows), _whole(found.get("suspect_count")))
    more = f" The {len(tiles)} surest are shown." if amount > len(tiles) else ""
    return [
        *parts,
        page.heading(plural(amount, "label to look at", "labels to look at")),
        sheet(album, tiles),
        page.paragraph(
            "Own label → the label of the images that look most like it, and the share of them "
            "that carry it. Some are wrong labels, some only unusual pictures: decide by eye."
            + more,
            "soft",
        ),
    ]


def captions(facts: Row) -> list[Html]:
    """How many images have a caption, which are empty, which say the same."""
    found = section(facts, "captions")
    if not found:
        return []
    told = f"{plural(found.get('captioned'), 'image')} with a caption"
    parts = [page.paragraph(f"{told}, {plural(found.get('distinct'), 'different caption')}.")]
    empty = items(found, "empty")
    if empty:
        rows = [(visible(path),) for path in empty[:_NAMED]]
        amount = max(len(empty), _whole(found.get("empty_count")))
        title = plural(amount, "image without a caption", "images without a caption")
        parts.append(page.details(title, [page.table(("File",), rows, "w"), _more(amount)]))
    repeated = [row for row in items(found, "repeated") if isinstance(row, dict)]
    if repeated:
        rows_said = [
            (visible(row.get("caption")), count(row.get("count"))) for row in repeated[:_NAMED]
        ]
        parts += [
            page.heading("Captions that many images share"),
            page.table(("Caption", "Images"), rows_said, "wn"),
            _more(len(repeated)),
        ]
    return parts


def diversity(facts: Row, scan: Scan, album: Album) -> list[Html]:
    """How varied the images are, per class, and where they crowd or are missing."""
    found = section(facts, "diversity")
    if not found:
        return []
    parts: list[Html] = []
    if is_number(found.get("vendi")):
        told = (
            f"The {plural(found.get('images_used'), 'image')} compared are as varied as "
            f"{number(found.get('vendi'))} images that have nothing in common "
            f"(Vendi score, features “{visible(found.get('features'))}”)."
        )
        parts.append(page.paragraph(told))
    variety = [part for part in (_saturation(found), _per_class(found)) if part]
    if variety:
        parts.append(page.pair(variety) if len(variety) > 1 else variety[0])
    return [*parts, *_map(found, scan, album), *_regions(found, album)]


def _saturation(found: Row) -> Html:
    rows = [row for row in items(found, "saturation") if isinstance(row, dict)]
    points = [(row.get("n"), row.get("vendi")) for row in rows]
    known = [(float(n), float(v)) for n, v in points if is_number(n) and is_number(v)]
    if len(known) < 2:
        return Html("")
    state = (
        "It has levelled off: more images of the same kind add little."
        if found.get("saturated")
        else "It still rises: more images would add new kinds."
    )
    title = "Variety as images are added"
    words = f"The Vendi score of parts of the set, small to large. {state}"
    drawn = curve(known, "images", title)
    return Html(f"<div>{page.heading(title)}{drawn}{page.paragraph(words, 'soft')}</div>")


def _per_class(found: Row) -> Html:
    classes = section(found, "classes")
    rows = [(name, section(classes, name)) for name in classes]
    known = sorted(
        (
            Bar(name, float(row["vendi"]), number(row["vendi"]))
            for name, row in rows
            if is_number(row.get("vendi"))
        ),
        key=lambda bar: -bar.value,
    )
    if len(known) < 2:
        return Html("")
    shown = known if len(known) <= _BARS else [*known[:_ENDS], *known[-_ENDS:]]
    sizes = [row["n"] for _, row in rows if is_number(row.get("n"))]
    at = f" at {plural(min(sizes), 'image')} each" if sizes and min(sizes) == max(sizes) else ""
    words = f"The Vendi score of each class{at}: a short bar is a class of pictures much alike."
    if len(shown) < len(known):
        words += f" The {_ENDS} most and {_ENDS} least varied of {len(known):,}."
    if left_out := items(found, "classes_left_out"):
        words += f" Too small to be judged: {_names(left_out)}."
    chart = bars(shown)
    return Html(
        f"<div>{page.heading('Variety of each class')}{chart}{page.paragraph(words, 'soft')}</div>"
    )


def _map(found: Row, scan: Scan, album: Album) -> list[Html]:
    points, clusters = items(found, "map"), items(found, "clusters")
    drawn, shown = cluster_map(scan, album, points, clusters)
    if not shown:
        return []
    amount = (
        f"{shown:,} of {len(points):,} images" if shown < len(points) else plural(shown, "image")
    )
    words = (
        f"Map of {amount}: pictures near each other look alike (how far apart others lie means "
        "little); the numbers are regions, red ones crowded, blue ones near-empty."
    )
    return [page.heading("Map"), drawn, page.paragraph(words, "soft")]


def _regions(found: Row, album: Album) -> list[Html]:
    parts = []
    for kind, title, words in (
        (
            "crowded",
            "Crowded regions",
            "Many pictures of one kind: they are learnt first and drawn most often.",
        ),
        (
            "near-empty",
            "Near-empty regions",
            "Few pictures of one kind: collect more like these, or leave them out.",
        ),
    ):
        rows = [
            row
            for row in items(found, "clusters")
            if isinstance(row, dict) and row.get("kind") == kind
        ]
        cards = [
            group(album, _region(row), [str(p) for p in items(row, "examples")[:_EXAMPLES]])
            for row in rows[:_REGIONS]
        ]
        if cards:
            more = len(rows) - len(cards)
            rest = f" {more:,} more are in audit.json." if more else ""
            parts += [page.heading(title), groups(cards), page.paragraph(words + rest, "soft")]
    return [*parts, *_all_regions(found, quiet=not parts)]


def _all_regions(found: Row, quiet: bool) -> list[Html]:
    """The regions whose numbers stand on the map."""
    rows = [
        (
            visible(row.get("id")),
            count(row.get("size")),
            percent(row.get("share")),
            visible(row.get("class") or ""),
            visible(row.get("kind")),
        )
        for row in items(found, "clusters")[:_FOLDED]
        if isinstance(row, dict)
    ]
    if not rows:
        return []
    heads = ("Region", "Images", "Share", "Mostly", "Kind")
    even = [page.paragraph("No region is crowded or near-empty.")] if quiet else []
    return [*even, page.details(plural(len(rows), "region"), [page.table(heads, rows, "tnntt")])]


def _region(row: Row) -> Html:
    mostly = f", mostly {visible(row['class'])}" if row.get("class") else ""
    told = f"{plural(row.get('size'), 'image')} ({percent(row.get('share'))}){mostly}"
    return Html(f"<b>Region {page.text(visible(row.get('id')))}</b> · {page.text(told)}")


def target(facts: Row) -> list[Html]:
    """What the mix is against what it should be, and what would mend it."""
    found = section(facts, "target")
    rows = [row for row in items(found, "parts") if isinstance(row, dict)]
    if not rows:
        return [page.paragraph(sentence(visible(found.get("sentence", ""), 2000)))] if found else []
    chart = [
        Bar(
            str(row.get("name")),
            _amount(row.get("have")),
            f"{percent(row.get('have'))} / {percent(row.get('want'))}",
            low=_amount(row.get("missing")) > 0,
            beside=_amount(row.get("want")),
        )
        for row in rows[:_BARS]
    ]
    mends = [
        (
            visible(row.get("name")),
            plural(row.get("missing"), "image"),
            sentence(visible(row.get("mend"), 600)),
        )
        for row in rows[:_BARS]
        if row.get("mend")
    ]
    rest = f" {len(rows) - _BARS:,} more parts are in audit.json." if len(rows) > _BARS else ""
    return [
        page.paragraph(sentence(visible(found.get("sentence", ""), 2000))),
        bars(chart),
        page.paragraph(
            "Upper bar, what there is; paler bar below, what is wanted. Amber falls short." + rest,
            "soft",
        ),
        page.table(("Part", "To add", "What mends it"), mends, "tnw") if mends else Html(""),
    ]


def spread(facts: Row) -> list[Html]:
    """Brightness, contrast, colour and sharpness of most of the images."""
    found = section(facts, "spread")
    strips = []
    for key, name, highest in (
        ("brightness", "Brightness", 255.0),
        ("contrast", "Contrast", 128.0),
        ("saturation", "Colour", 255.0),
    ):
        row = section(found, key)
        low, median, high = (row.get(part) for part in ("low", "median", "high"))
        if is_number(low) and is_number(median) and is_number(high):
            strips.append(Range(name, low, median, high, 0.0, highest))
    sharp = section(found, "sharpness")
    parts = []
    if strips:
        words = (
            "Nine images in ten lie inside the bar, the stroke is the middle one; a short bar is a "
            "set whose pictures are all alike in this. Brightness and colour go from 0 to 255."
            " Contrast is the spread of brightness inside a picture."
        )
        parts += [ranges(strips), page.paragraph(words, "soft")]
    if sharp:
        told = ", ".join(number(sharp.get(part)) for part in ("low", "median", "high"))
        parts.append(page.paragraph(f"Sharpness (5 %, middle, 95 % of the images): {told}."))
    return parts


def _more(amount: int) -> Html:
    more = f"{amount - _NAMED:,} more are in audit.json." if amount > _NAMED else ""
    return page.paragraph(more, "soft")


def _whole(value: Any) -> int:
    return int(value) if is_number(value) else 0


def _amount(value: Any) -> float:
    return float(value) if is_number(value) else 0.0
