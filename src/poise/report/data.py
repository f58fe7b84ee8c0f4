"""The section on the data: what was found, how it was split, what could not be used."""

from typing import Any

from poise.report import page
from poise.report.folder import Row, items, section
from poise.report.page import Html
from poise.report.words import count, is_number, listed, number, plain, plural, sentence

_CLASSES = 200  # most rows of the class table
_OPEN = 24  # a longer class table is folded
_NAMED = 20  # most files named


def data(audit: Row | None, facts: Row) -> list[Html]:
    """The audit, or in words that there is none yet.

    Args:
        audit: audit.json.
        facts: `data` of run.json.
    """
    splits = section(facts, "splits")
    told = "; ".join(f"{name} {count(splits[name])}" for name in splits)
    split = page.paragraph(f"Split: {told}." if told else "The images have not been split yet.")
    if audit is None:
        return [page.absent("The data has not been audited yet."), split]
    return [
        *[page.paragraph(_line(item)) for item in items(audit, "verdict")],
        page.paragraph(_overview(audit)),
        split,
        *_warnings(audit),
        *_classes(audit),
        *_unreadable(audit),
        *_duplicates(audit),
    ]


def _overview(audit: Row) -> str:
    sizes, modes = section(audit, "sizes"), section(audit, "modes")
    parts = [plural(audit.get("images"), "image")]
    for name, found in (("sizes", sizes), ("pixel formats", modes)):
        ordered = sorted(found.items(), key=lambda pair: (-_amount(pair[1]), pair[0]))
        if ordered:
            parts.append(f"{name}: " + listed([f"{k} ({count(v)})" for k, v in ordered], 6))
    bright = section(audit, "brightness")
    if bright:
        flat = bright.get("constant_images")
        parts.append(
            f"brightness {number(bright.get('mean'))}, spread {number(bright.get('std'))}"
            + (f", {plural(flat, 'image')} of one single colour" if is_number(flat) else "")
        )
    if is_number(audit.get("dropped")) and audit["dropped"] > 0:
        parts.append(f"{plural(audit['dropped'], 'copy', 'copies')} kept out of all splits")
    ignored = section(audit, "ignored")
    if ignored.get("count"):
        named = listed(items(ignored, "examples"), 5)
        parts.append(f"{plural(ignored['count'], 'other file')} left aside ({named})")
    return "; ".join(parts) + "."


def _warnings(audit: Row) -> list[Html]:
    lines = [(1, "Weak", _line(item)) for item in items(audit, "warnings")]
    return [page.heading("Warnings"), page.verdict(lines)] if lines else []


def _classes(audit: Row) -> list[Html]:
    classes, splits = section(audit, "classes"), section(audit, "split_classes")
    if not classes:
        return [page.paragraph("The images have no classes.")]
    names = [name for name in ("train", "val", "test") if name in splits]
    heads = ("Class", "Images", *[{"val": "Validation"}.get(n, n.capitalize()) for n in names])
    rows = [
        (
            name,
            count(classes[name]),
            *[count(section(splits, split).get(name, 0)) for split in names],
        )
        for name in list(classes)[:_CLASSES]
    ]
    parts = [page.table(heads, rows, "t" + "n" * (len(heads) - 1))]
    if len(classes) > _CLASSES:
        more = len(classes) - _CLASSES
        parts.append(page.paragraph(f"{more:,} more classes are in audit.json.", "soft"))
    if len(rows) > _OPEN:
        return [page.details(plural(len(classes), "class", "classes"), parts)]
    return [page.heading("Classes"), *parts]


def _unreadable(audit: Row) -> list[Html]:
    found = items(audit, "unreadable")
    if not found:
        return [page.paragraph("Every image could be read.")]
    rows = [
        (str(item.get("path")), sentence(str(item.get("reason", ""))))
        if isinstance(item, dict)
        else (str(item), "")
        for item in found[:_NAMED]
    ]
    return [
        page.heading(plural(len(found), "unreadable file")),
        page.table(("File", "Why"), rows, "ww"),
        _more(len(found)),
    ]


def _duplicates(audit: Row) -> list[Html]:
    found = [item for item in items(audit, "duplicates") if isinstance(item, dict)]
    if not found:
        return [page.paragraph("No duplicates were found.")]
    found = sorted(found, key=lambda group: not group.get("cross_class"))  # worst first
    rows = [
        (
            str(group.get("kind", "")),
            "yes" if group.get("cross_class") else "no",
            listed(items(group, "paths"), 6),
        )
        for group in found[:_NAMED]
    ]
    return [
        page.heading(plural(len(found), "group of duplicates", "groups of duplicates")),
        page.table(("Kind", "Across classes", "Files"), rows, "ttw"),
        _more(len(found)),
    ]


def _more(amount: int) -> Html:
    more = f"{amount - _NAMED:,} more are in audit.json." if amount > _NAMED else ""
    return page.paragraph(more, "soft")


def _amount(value: Any) -> float:
    return float(value) if is_number(value) else 0.0


def _line(item: Any) -> str:
    return sentence(item if isinstance(item, str) else plain(item))
