"""One finding of an audit, and the words and groups that findings are made of."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise.data.splits import roots_of

FINE, NOTE, SERIOUS, GRAVE = range(4)
_SHOWN = 3


@dataclass(frozen=True)
class Finding:
    """One sentence of the verdict.

    Attributes:
        severity: 0 fine, 1 worth knowing, 2 serious, 3 grave.
        sentence: what, how many, and why it matters; ends in a full stop.
        command: mends it; "" where only a person can.
    """

    severity: int
    sentence: str
    command: str = ""


def source_of(facts: Mapping[str, Any]) -> str:
    """The source as a shell needs it written."""
    return shlex.quote(str(facts.get("source", "SOURCE")))


def prepare_with(facts: Mapping[str, Any], options: str) -> str:
    """The command that prepares the source with these options."""
    return f"poise prepare {source_of(facts)} OUT {options}".rstrip()


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 image`, `1,000 images`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def percent(share: float) -> str:
    """In whole percent, but never 0 % or 100 % of what is neither."""
    if 0 < share < 0.01:
        return "less than 1%"
    if 0.99 < share < 1:
        return "more than 99%"
    return f"{share:.0%}"


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    text = ", ".join(repr(name) for name in names[:_SHOWN])
    return text + (f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else "")


def joined_groups(
    facts: Mapping[str, Any],
    kinds: Sequence[str],
    flag: str = "",
    without: Sequence[Sequence[str]] = (),
) -> list[list[str]]:
    """Groups of these kinds with the flag set; nested and touching ones made one.

    Groups that touch a path of `without` are left out.
    """
    known = {path for group in without for path in group}
    number: dict[str, int] = {}
    chosen = [
        [number.setdefault(path, len(number)) for path in group["paths"]]
        for group in facts.get("duplicates") or ()
        if group["kind"] in kinds and (not flag or group[flag]) and known.isdisjoint(group["paths"])
    ]
    joined: dict[int, list[str]] = {}
    for path, root in zip(number, roots_of(len(number), chosen), strict=True):
        joined.setdefault(root, []).append(path)
    return [sorted(paths) for paths in joined.values()]


def pair_of(groups: Sequence[Sequence[str]]) -> str:
    """Two members of the first group."""
    return f"{groups[0][0]} and {groups[0][-1]}"
