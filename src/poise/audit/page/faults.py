"""The sections of the audit page on files: broken ones, copies, odd ones, sizes and formats.

Each function returns the parts of its section, nothing where there is nothing to show.
"""

from collections import Counter
from collections.abc import Sequence

from poise.audit.look import BROKEN
from poise.audit.page import sheets
from poise.audit.page.charts import Bar, bars
from poise.audit.page.sheets import Album, Tile
from poise.report import page
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.words import count, is_number, number, plural, sentence

_OPEN, _FILES = 12, 200  # rows of a table of files: before it is folded, at most
_UNFOLDED, _GROUPS = 8, 24  # groups of copies with pictures: before the fold, at most
_NAMED_GROUPS, _NAMED_MEMBERS = 60, 4  # and by name only
_FLAGGED, _NEAREST = 24, 8  # pictures of one odd kind: flagged, and where none is
_DUPLICATES = {
    "bytes": ("the same file", "Equal byte for byte."),
    "pixels": ("the same pixels", "Equal pixels in different files."),
    "near": (
        "near copies",
        "Saved again, resized, brightened, cropped a little, turned, mirrored.",
    ),
    "feature": ("look alike", "Alike in their features only: look before you drop one."),
}
_ODD = {
    "blurred": (
        "Blurred",
        "The middle of each picture at its own pixels, least sharp first; sharp photographs have "
        "0.3 to 2.",
    ),
    "too-dark": ("Too dark", "Darkest first; the number is brightness, from 0 to 255."),
    "too-light": ("Too light", "Lightest first; the number is brightness, from 0 to 255."),
    "flat": ("Flat", "Least contrast first; the number is the spread of brightness."),
    "near-empty": (
        "Near-empty",
        "The number is the share of the picture with one brightness, largest first.",
    ),
}
_MEANING = {
    "wrong-extension": "The suffix names another format than the file holds; it is read all right.",
    "animated": "Only the first frame is used.",
    "alpha": "Transparency; the picture is laid on white.",
    "palette": "Colours from a palette; they become RGB.",
    "cmyk": "Print colours; they become RGB and may shift.",
    "16-bit": "Scaled to 8 bits.",
    "exif-rotated": "Stored turned; it is set upright.",
    "icc": "Has a colour profile of its own.",
    "size-outlier": "Far larger or smaller than the others.",
    "aspect-outlier": "Far wider or taller than the others: the centre square leaves much out.",
    "too-small": "Smaller than the side for training: it would be enlarged.",
}


def copies(facts: Row) -> tuple[list[Row], list[Row]]:
    """Groups of duplicates: those that cross splits or classes, and the others."""
    groups = _apart([row for row in items(facts, "duplicates") if isinstance(row, dict)])
    crossing = [row for row in groups if row.get("cross_split") or row.get("cross_class")]
    crossing.sort(key=lambda row: not _is_sure(row))
    inside = [row for row in groups if not (row.get("cross_split") or row.get("cross_class"))]
    return crossing, inside


def broken(facts: Row) -> list[Html]:
    found = [problem for problem in _problems(facts) if _is_broken(problem[1])]
    if not found:
        return []
    rows = [(visible(path), kind, sentence(visible(why))) for path, kind, why in found[:_FILES]]
    kinds = Counter(kind for _, kind, _ in found).most_common()
    told = ", ".join(f"{kind} {count(amount)}" for kind, amount in kinds)
    heads = ("File", "What it is", "Why")
    parts = [page.paragraph(f"These files cannot be used: {visible(told, 1000)}.")]
    parts.append(page.table(heads, rows[:_OPEN], "wtw"))
    if rest := rows[_OPEN:]:
        parts.append(page.details(plural(len(rest), "more file"), [page.table(heads, rest, "wtw")]))
    if len(found) > _FILES:
        words = f"{len(found) - _FILES:,} more are in audit.json."
        parts.append(page.paragraph(words, "soft"))
    return parts


def _is_broken(kind: str) -> bool:
    return kind in BROKEN or kind == "refused"


def _problems(facts: Row) -> list[tuple[str, str, str]]:
    """Path, kind and detail of every problem of every file."""
    return [
        (str(row.get("path")), str(problem.get("kind")), str(problem.get("detail") or ""))
        for row in items(facts, "files")
        if isinstance(row, dict)
        for problem in items(row, "problems")
        if isinstance(problem, dict)
    ]


def _apart(groups: Sequence[Row]) -> list[Row]:
    """Without groups that lie inside a larger one: the same pictures would be shown again."""
    members = [frozenset(_paths(row)) for row in groups]
    holding: dict[str, list[int]] = {}
    for i, paths in enumerate(members):
        for path in paths:
            holding.setdefault(path, []).append(i)
    return [
        row
        for i, row in enumerate(groups)
        if not any(
            members[i] < members[j] or (members[i] == members[j] and j < i)
            for j in holding.get(next(iter(members[i]), ""), [])
        )
    ]


def _paths(row: Row) -> list[str]:
    """The paths of a group."""
    return [str(path) for path in items(row, "paths")]


def _is_sure(row: Row) -> bool:
    """Whether the pictures of a group are copies, and not only alike."""
    return row.get("kind") != "feature"


def conflicts(groups: Sequence[Row], album: Album) -> list[Html]:
    if not groups:
        return []
    leaks = sum(bool(row.get("cross_split")) and _is_sure(row) for row in groups)
    conflicts = sum(bool(row.get("cross_class")) and _is_sure(row) for row in groups)
    unsure = sum(not _is_sure(row) for row in groups)
    told = []
    if leaks:
        told.append(
            f"{plural(leaks, 'group of copies lies', 'groups of copies lie')} on two sides of a "
            "split: scores on them are worth nothing."
        )
    if conflicts:
        told.append(
            f"{plural(conflicts, 'group of copies carries', 'groups of copies carry')} more than "
            "one label: look which is right."
        )
    if unsure:
        told.append(
            f"{plural(unsure, 'group', 'groups')} of pictures that only look alike come last: see "
            "whether they show the same thing."
        )
    reading = (
        "Each card is one group, pictures that are copies of each other, class and split below."
    )
    return [
        page.paragraph(" ".join(told)),
        *_cards(groups, reading, album),
    ]


def duplicates(facts: Row, groups: Sequence[Row], album: Album) -> list[Html]:
    counts = section(facts, "duplicate_counts")
    rows = []
    for kind in counts:
        row, (name, told) = section(counts, kind), _DUPLICATES.get(kind, (kind, ""))
        if row.get("groups"):
            rows.append((visible(name), count(row.get("groups")), count(row.get("files")), told))
    parts = [page.table(("Kind", "Groups", "Files", "Meaning"), rows, "tnnw")] if rows else []
    if groups:
        reading = "Each card is one group: keep one picture of it."
        parts += _cards(groups, reading, album)
    return parts


def _cards(groups: Sequence[Row], reading: str, album: Album) -> list[Html]:
    """The worst groups with pictures, more of them to be opened, the others by name."""
    cards = [sheets.group(album, _head(row, album), _paths(row)) for row in groups[:_GROUPS]]
    parts = [sheets.groups(cards[:_UNFOLDED]), page.paragraph(reading, "soft")]
    if more := cards[_UNFOLDED:]:
        parts.append(page.details(plural(len(more), "more group"), [sheets.groups(more)]))
    return [*parts, *_named(groups[_GROUPS:])]


def _head(row: Row, album: Album) -> Html:
    """What kind of group it is, the worst first: leak, conflict, kind of copy."""
    paths = _paths(row)
    marks = []
    for key, word, of in (
        ("cross_split", "Leak", album.split_of),
        ("cross_class", "Label conflict", album.class_of),
    ):
        if row.get(key):
            named = sorted({of(path) for path in paths} - {""})
            told = f"{word}: {visible(' / '.join(named[:4]))}" if named else word
            told = told if _is_sure(row) else f"Perhaps a {told[0].lower()}{told[1:]}"
            marks.append(f'<b class="{"s0" if _is_sure(row) else "s1"}">{page.text(told)}</b>')
    kind = str(row.get("kind"))
    words = visible(_DUPLICATES.get(kind, (kind, ""))[0])
    marks.append(page.text(f"{words}, {plural(len(paths), 'file')}"))
    return Html(" · ".join(marks))


def _named(groups: Sequence[Row]) -> list[Html]:
    """Groups without pictures."""
    if not groups:
        return []
    rows = []
    for row in groups[:_NAMED_GROUPS]:
        paths = _paths(row)
        kind = str(row.get("kind"))
        names = "  |  ".join(visible(path) for path in paths[:_NAMED_MEMBERS])
        more = len(paths) - _NAMED_MEMBERS
        names += f" and {more:,} more" if more > 0 else ""
        rows.append((visible(_DUPLICATES.get(kind, (kind, ""))[0]), names))
    parts = [page.table(("Kind", "Files"), rows, "tw")]
    if len(groups) > len(rows):
        words = f"{len(groups) - len(rows):,} more are in audit.json."
        parts.append(page.paragraph(words, "soft"))
    return [page.details(plural(len(groups), "more group") + ", by name", parts)]


def odd(facts: Row, album: Album) -> list[Html]:
    ranked, parts, quiet = section(facts, "ranked"), [], []
    for kind, (title, reading) in _ODD.items():
        rows = [row for row in items(ranked, kind) if isinstance(row, dict)]
        flagged = [row for row in rows if row.get("flagged")]
        if flagged:
            amount = section(facts, "problem_counts").get(kind, len(flagged))
            more = f", the worst {_FLAGGED} shown" if len(flagged) > _FLAGGED else ""
            parts += [
                page.heading(f"{title}: {count(amount)} flagged{more}"),
                _ranked(rows[: max(_NEAREST, min(_FLAGGED, len(flagged) + 4))], kind, album),
                page.paragraph(reading, "soft"),
            ]
        elif rows:
            shown = _ranked(rows[:_NEAREST], kind, album)
            words = f"{title}: none flagged; the nearest to it"
            quiet.append(page.details(words, [shown, page.paragraph(reading, "soft")]))
    parts += _other(facts)
    if quiet and not parts:
        parts.append(page.paragraph("No image stands out."))
    return [*parts, *quiet]


def _ranked(rows: Sequence[Row], kind: str, album: Album) -> Html:
    tiles = []
    for row in rows:
        path = str(row.get("path"))
        note = " · ".join(part for part in (number(row.get("value")), album.class_of(path)) if part)
        tiles.append(Tile(path, note, bool(row.get("flagged")), detail=kind == "blurred"))
    return sheets.sheet(album, tiles)


def _other(facts: Row) -> list[Html]:
    """Kinds of problem without a contact sheet."""
    examples: dict[str, list[tuple[str, str]]] = {}
    for path, kind, detail in _problems(facts):
        if not _is_broken(kind) and kind not in _ODD:
            examples.setdefault(kind, []).append((path, detail))
    if not examples:
        return []
    rows = [
        (
            visible(kind),
            count(len(examples[kind])),
            _MEANING.get(kind, ""),
            "; ".join(
                f"{visible(path)} ({visible(detail)})" if detail else visible(path)
                for path, detail in examples[kind][:3]
            ),
        )
        for kind in sorted(examples, key=lambda kind: (-len(examples[kind]), kind))
    ]
    heads = ("Also", "Files", "Meaning", "For example")
    return [page.heading("Unusual files"), page.table(heads, rows, "tnww")]


def sizes(facts: Row) -> list[Html]:
    parts: list[Html] = []
    for key, title in (("sizes", "Sizes in pixels"), ("formats", "Formats"), ("modes", "Pixels")):
        found = [(k, v) for k, v in section(facts, key).items() if is_number(v)]
        found.sort(key=lambda pair: -pair[1])
        rows = [Bar(name or "unknown", float(n), count(n)) for name, n in found[:12]]
        if len(rows) == 1:
            parts.append(page.paragraph(f"{title}: all {visible(rows[0].name)}."))
        elif rows:
            parts.append(Html(f"<div>{page.heading(title)}{bars(rows)}</div>"))
    spread = section(facts, "spread")
    lines = []
    for key, title in (("width", "Width"), ("height", "Height"), ("aspect", "Width / height")):
        row = section(spread, key)
        if row and row.get("low") != row.get("high"):
            lines.append((title, *[number(row.get(part)) for part in ("low", "median", "high")]))
    if lines:
        heads = ("Of the images", "Low 5\u00a0%", "Middle", "High 5\u00a0%")
        parts.append(page.table(heads, lines, "tnnn"))
    return parts
