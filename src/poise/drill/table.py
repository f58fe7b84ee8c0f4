"""What a drill found, and what it can do, as text for a terminal of 100 columns."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from poise.drill.kind import Fault, Kind

_WIDTH = 100
_HEAD = ("fault", "delay", "named cause", "true, if other", "action", "gap", "lost")
_WIDTHS = (21, 6, 21, 21, 15, 6, 4)
_RIGHT = {1, 5, 6}  # columns of numbers


def report(found: Mapping[str, Any]) -> str:
    """The result of a drill, as `--json` writes it, as lines of at most 100 characters."""
    lines = []
    if found["faults"]:
        lines += [_line(_HEAD), *(_line(_cells(row)) for row in found["faults"])]
        lines += [_note(row) for row in found["faults"] if row["reason"]]
        lines += ["delay and lost in updates; gap of the validation error to the undisturbed run"]
    return "\n".join([*lines, *_verdict(found)])


def kinds(known: Mapping[str, Kind], defaults: Mapping[str, Fault]) -> str:
    """Every kind with its row, true cause, parameters, defaults and sentence.

    Args:
        known: the kinds by name.
        defaults: a fault of each with the parameters that it has unless others are given.
    """
    lines = []
    for name, kind in known.items():
        cause = kind.cause or "nothing is wrong: a trap"
        lines.append(f"{name:22}{kind.row:>8}   {cause}")
        given = ", ".join(f"{k} = {_value(v)}" for k, v in defaults[name].parameters().items())
        for text, first, then in ((kind.sentence, 4, 4), (given or "no parameters", 4, 6)):
            lines += textwrap.wrap(
                text, _WIDTH, initial_indent=" " * first, subsequent_indent=" " * then
            )
    return "\n".join(lines)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    other = row["named_cause"] != row["true_cause"]
    return (
        row["kind"],
        "missed" if not row["detected"] else f"{row['delay_steps']}",
        row["named_cause"] or "-",
        row["true_cause"] if other else "",
        row["action"] or "-",
        "-" if row["gap"] is None else f"{row['gap']:+.1%}"[:6],
        f"{row['lost']['updates']}",
    )


def _line(cells: Sequence[str]) -> str:
    return " ".join(
        cell[:width].rjust(width) if i in _RIGHT else cell[:width].ljust(width)
        for i, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ).rstrip()


def _note(row: Mapping[str, Any]) -> str:
    text = " ".join(f"  {row['kind']}: {row['reason']}".split("\n"))
    return textwrap.shorten(text, _WIDTH, placeholder=" ...")


def _verdict(found: Mapping[str, Any]) -> Iterable[str]:
    score, healthy = found.get("score"), found["healthy"]
    if score and score["faults"]:
        n = score["faults"]
        delays = (
            f"; delay: median {score['delay_median']}, 90% within {score['delay_p90']} updates"
            if score["delay_median"] is not None
            else ""
        )
        yield (
            f"faults: {n}, detected {score['detected']} ({score['detected'] / n:.0%}), "
            f"right cause {score['correct']} ({score['correct'] / n:.0%}){delays}"
        )
    if healthy["steps"]:
        yield (
            f"healthy updates: {healthy['steps']:,}; false alarms per 1,000: warnings "
            f"{healthy['warnings_per_1000']:.2g}, actions {healthy['actions_per_1000']:.2g}"
        )
        for run in healthy["runs"]:
            for said in run["said"]:
                yield textwrap.shorten(f"  {run['run']}: {said}", _WIDTH, placeholder=" ...")
    if found["overhead"] is not None:
        yield f"the guard costs {found['overhead']:.1%} of the time of an update"
    if found.get("unfinished"):
        yield f"interrupted: {found['unfinished']}"


def _value(value: Any) -> str:
    if value is None:
        return "for good"
    return f"{value:g}" if isinstance(value, float) else f"{value}" or "(any)"
