"""One page about a set of images: `write_page`. The verdict comes first, then what it rests on.

page      the story
faults    the sections on files: broken, copies, odd, sizes
mix       the sections on labels, captions, diversity, target
sheets    contact sheets
map       thumbnails where their features put them
charts    bars, a curve, ranges

The page holds no script and fetches nothing: names of files are the work of strangers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.artifacts import write_bytes
from poise.audit.page import charts, faults, map, mix, sheets
from poise.audit.page.sheets import Album
from poise.audit.scan import Scan
from poise.report import page
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.words import count, is_number, number, plural, sentence

_WORDS = {3: "Grave", 2: "Serious", 1: "Note", 0: "Fine"}
_STYLE = """
@media (max-width:560px){table.wtw,table.tnww,table.tnw{display:block}
.wtw thead,.tnww thead,.tnw thead{display:none}
.wtw tbody,.tnww tbody,.tnw tbody{display:block}
.wtw tr,.tnww tr,.tnw tr{display:grid;grid-template-columns:auto 1fr;gap:0 .8rem;
border-bottom:1px solid var(--line);padding:.3rem 0}
.wtw td,.tnww td,.tnw td{border:0;padding:.05rem 0;min-width:0}
.wtw td:first-child,.tnww td.w,.tnw td.w{grid-column:1/-1}
.tnww td.w,.tnw td.w,.wtw td+td{color:var(--soft)}}
"""
_FIRST = 5  # findings before the fold
_MORE_FINDINGS = 60


def write_page(facts: dict[str, Any], scan: Scan, path: Path) -> None:
    """Write the page: one file of HTML that needs nothing else.

    A function of its arguments alone: the same facts give the same bytes.

    Args:
        facts: what audit.json holds; parts that are missing or null are said to be so.
        scan: the images; up to 400 are read again, the others shown by their thumbnails.
        path: the file to write, as a rule audit.html.

    Raises:
        ArtifactError: the page cannot be written.
    """
    album = Album(scan)
    sections = _sections(facts, scan, album)
    shown = [(anchor, title, parts) for anchor, title, parts, _ in sections if parts]
    name = _name(facts)
    body = page.join(
        [
            _title(facts, name),
            *_in_short(facts),
            _nothing([quiet for _, _, parts, quiet in sections if not parts]),
            page.contents((anchor, title) for anchor, title, _ in shown),
            *[page.section(anchor, title, parts) for anchor, title, parts in shown],
        ]
    )
    style = _STYLE + charts.STYLE + sheets.STYLE + map.STYLE
    write_bytes(path, page.document(f"Audit: {name}", body, style=style, figures=False))


def _sections(
    facts: Row, scan: Scan, album: Album
) -> list[tuple[str, str, list[Html], tuple[str, bool]]]:
    """Anchor, title, parts, and what to say without parts: words, and whether it was looked for."""
    crossing, inside = faults.copies(facts)
    return [
        ("broken", "Broken files", faults.broken(facts), ("broken files", True)),
        (
            "conflicts",
            "Leaks and label conflicts",
            faults.conflicts(crossing, album),
            ("copies across splits or classes", True),
        ),
        ("duplicates", "Duplicates", faults.duplicates(facts, inside, album), ("duplicates", True)),
        ("odd", "Odd images", faults.odd(facts, album), ("odd images", True)),
        ("sizes", "Sizes and formats", faults.sizes(facts), ("sizes", False)),
        ("labels", "Labels", mix.labels(facts, album), ("labels (there are none)", False)),
        ("captions", "Captions", mix.captions(facts), ("captions (there are none)", False)),
        (
            "target",
            "Against the target",
            mix.target(facts),
            ("a target (none was given with --target)", False),
        ),
        ("diversity", "Diversity", mix.diversity(facts, scan, album), ("diversity", False)),
        ("spread", "Light, colour, sharpness", mix.spread(facts), ("light and colour", False)),
    ]


def _nothing(quiet: Sequence[tuple[str, bool]]) -> Html:
    clean = [words for words, looked in quiet if looked]
    absent = [words for words, looked in quiet if not looked]
    told = [f"Nothing found: {', '.join(clean)}."] if clean else []
    told += [f"Not judged: {', '.join(absent)}."] if absent else []
    return page.paragraph(" ".join(told), "soft")


def _name(facts: Row) -> str:
    source = str(facts.get("source") or "unnamed images").rstrip("/\\")
    return visible(source.replace("\\", "/").rsplit("/", 1)[-1] or source)


def _title(facts: Row, name: str) -> Html:
    classes, splits = section(facts, "classes"), section(facts, "splits")
    told = [
        f"{plural(facts.get('images'), 'file')} looked at, {count(facts.get('readable'))} readable"
    ]
    told.append(plural(len(classes), "class", "classes") if classes else "no classes")
    if splits:
        told.append("splits as given: " + ", ".join(f"{k} {count(v)}" for k, v in splits.items()))
    if is_number(facts.get("resolution")):
        side = number(facts["resolution"])
        told.append(f"proposed size for training {side}\u00a0×\u00a0{side} pixels")
    lead = page.paragraph(visible("; ".join(told) + ".", 1000), "lead")
    return page.join([Html(f"<h1>{page.text(name)}</h1>"), lead])


def _in_short(facts: Row) -> list[Html]:
    found = [row for row in items(facts, "findings") if isinstance(row, dict)]
    if not found:
        return [page.paragraph(visible(line, 2000)) for line in items(facts, "verdict")[:_FIRST]]
    found = [*_opening(facts, found), *found]
    parts = [_findings(found[:_FIRST])]
    rest = found[_FIRST : _FIRST + _MORE_FINDINGS]
    if rest:
        parts.append(page.details(f"{plural(len(rest), 'more line')}", [_findings(rest)]))
    return parts


def _opening(facts: Row, found: Sequence[Row]) -> list[Row]:
    """The first line of the verdict where it is none of the findings: that all is well."""
    first = str((items(facts, "verdict") or [""])[0])
    if not first or any(first.startswith(str(row.get("sentence"))) for row in found):
        return []
    told, _, command = first.removesuffix("`").partition(" Train: `")
    return [{"severity": 0, "sentence": told, "command": command}]


def _findings(rows: Sequence[Row]) -> Html:
    lines = []
    for row in rows:
        severity = row.get("severity")
        level = severity if isinstance(severity, int) and severity in _WORDS else 1
        told = sentence(visible(row.get("sentence", ""), 2000))
        lines.append((3 - level, _WORDS[level], told))
    return page.verdict(lines, [visible(row.get("command") or "", 2000) for row in rows])
