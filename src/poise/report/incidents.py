"""The section on incidents and decisions: what the guard saw and did, and other events."""

from typing import Any

from poise.report import page
from poise.report.folder import Row, RunFiles, items, section
from poise.report.page import Html
from poise.report.words import cause, count, listed, plain, plural, sentence

_MOST = 200  # rows of one table
_FILES = 6  # named in one row


def incidents(files: RunFiles) -> list[Html]:
    """Incidents with cause, action and cost; below them the other events, as they were logged."""
    if not files.events:
        return [page.absent("Nothing out of the ordinary has been recorded.")]
    numbered = list(enumerate(files.events, start=1))
    named = [(n, row) for n, row in numbered if row.get("cause")]
    other = [(n, row) for n, row in numbered if not row.get("cause")]
    return [*_incidents(named), *_events(other, alone=not named)]


def told(row: Row) -> str:
    """An incident in a line, for a mark on a curve."""
    name = cause(str(row.get("cause") or row.get("kind", "")))
    words = f"{name}, {count(row['images_seen'])} images"
    return f"{page.visible(words)}: {page.visible(row.get('message', ''), 120)}"


def _incidents(named: list[tuple[int, Row]]) -> list[Html]:
    if not named:
        return []
    rows = [
        (
            str(n),
            count(row["images_seen"]),
            page.visible(row.get("severity", ""), 20),
            sentence(page.visible(cause(str(row["cause"])), 60)).rstrip("."),
            sentence(page.visible(row.get("message", ""), 600)),
            _action(row),
            _culprit(section(row, "culprit")),
        )
        for n, row in named[:_MOST]
    ]
    heads = ("No.", "Images seen", "Severity", "Cause", "What happened", "Action", "Where")
    return [
        page.heading(plural(len(named), "incident")),
        page.table(heads, rows, "nnttwtw"),
        _more(len(named)),
        page.details("Evidence, in numbers", [_evidence(named)]),
    ]


def _evidence(named: list[tuple[int, Row]]) -> Html:
    rows = [
        (str(n), page.visible(plain(section(row, "evidence")), 1000), _also(row))
        for n, row in named[:_MOST]
    ]
    return page.table(("No.", "Evidence", "Seen with it"), rows, "nwt")


def _action(row: Row) -> str:
    """What was done, with what it cost."""
    action, cost = row.get("action"), section(row, "cost")
    if action in (None, "", "none"):
        return "none"
    words = page.visible(cause(str(action)), 60)
    return f"{words} ({page.visible(plain(cost), 200)})" if cost else words


def _culprit(culprit: Row) -> str:
    """Files first: they are what a person can look at."""
    parts = []
    names = [page.visible(name, 120) for name in items(culprit, "files")]
    if names:
        parts.append(listed(names, _FILES))
    rest: dict[str, Any] = {key: value for key, value in culprit.items() if key != "files"}
    if rest:
        parts.append(page.visible(plain(rest), 400))
    return "; ".join(parts)


def _also(row: Row) -> str:
    names = [page.visible(cause(str(name)), 60) for name in items(row, "also")]
    return listed(names, 5)


def _events(other: list[tuple[int, Row]], *, alone: bool) -> list[Html]:
    if not other:
        return []
    known = ("images_seen", "severity", "kind", "message")
    rows = [
        (
            str(n),
            count(row["images_seen"]),
            page.visible(row.get("severity", "")),
            page.visible(str(row.get("kind", "")).replace("_", " ")),
            sentence(page.visible(row.get("message", ""), 600)),
            page.visible(plain({k: v for k, v in row.items() if k not in known}), 1000),
        )
        for n, row in other[:_MOST]
    ]
    heads = ("No.", "Images seen", "Severity", "Kind", "What happened", "Evidence")
    table = page.table(heads, rows, "nnttww")
    return [*([] if alone else [page.heading("Other events")]), table, _more(len(other))]


def _more(amount: int) -> Html:
    more = f"{amount - _MOST:,} more are in events.jsonl." if amount > _MOST else ""
    return page.paragraph(more, "soft")
