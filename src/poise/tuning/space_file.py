"""A space file as plain tables: found, read, its names and words checked, in an order to ask in."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from poise.config import documented, parse_toml
from poise.errors import UsageError, nearest
from poise.settings import Config

SPECIAL = ("weights", "guidance")  # names that are no settings; searched on trained models
_WORDS = ("low", "high", "log", "times", "choices", "factors", "points", "when")
_MOST = 64  # dimensions; values of one of them
_LONGEST = 2**18  # characters of a file that are read, and one more
_SHOWN = 80  # characters of a name or value in a message
_LARGEST = 2**63  # of whole numbers: TOML has no larger ones
_REMEDY = "`poise config` lists every setting with its meaning."

# Settings that no trial may differ in, by their beginning, and why.
_KEPT = {
    "data.resolution": "it decides what is measured",
    "data.split": "it decides which images are trained on and compared with",
    "data.max_unreadable": "it decides which images are trained on and compared with",
    "data.memory_gib": "it changes speed and memory alone",
    "training.micro_batch": "it changes speed and memory alone",
    "training.threads": "it changes speed alone",
    "training.compile": "it changes speed alone",
    "sampling.batch": "it changes speed alone",
    "training.images": "the study decides how long a trial trains",
    "validation.": "trials are compared by it",
    "evaluation.": "trials are compared by it",
    "cadence.": "it says how often a run looks at itself, and changes no model",
    "stability.": "the guard judges all trials alike",
    "seed": "what it changes is luck, and --seeds measures that",
    "sinks": "it only copies logs",
}

# Words of [study]: what is expected, and whether a value is that.
_STUDY: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "description": ("a sentence", lambda v: isinstance(v, str)),
    "sampler": (
        "grid, random, tpe or gp",
        lambda v: isinstance(v, str) and v in ("grid", "random", "tpe", "gp"),
    ),
    "metrics": (
        'a list of names, such as ["frechet_distance"]',
        lambda v: isinstance(v, list) and bool(v) and all(isinstance(m, str) for m in v),
    ),
    "rungs": (
        "rising shares of a trial, the last of them 1",
        lambda v: (
            isinstance(v, list)
            and all(is_number(r) and 0 < r <= 1 for r in v)
            and v == sorted(set(v))
            and v[-1:] == [1]
        ),
    ),
    "final": ("true or false", lambda v: isinstance(v, bool)),
    "seeds": ("a whole number, 0 or more", lambda v: _is_whole(v, 0)),
    "trials": ("a whole number, 1 or more", lambda v: _is_whole(v, 1)),
    "samples": ("a whole number, 10 or more", lambda v: _is_whole(v, 10)),
    "images": ("a whole number, 1 or more", lambda v: _is_whole(v, 1)),
    "budget": ("a length of time such as '5m'", lambda v: isinstance(v, str)),
}


@dataclass(frozen=True)
class Tables:
    """What a space file says."""

    name: str  # of the built-in, or the path as it was given
    ours: bool  # built in: what does not fit is left out rather than refused
    dimensions: dict[str, dict[str, Any]]  # by name; a condition's dimension comes before it
    study: dict[str, Any]


def read_tables(source: str | Path) -> Tables:
    """The tables of a built-in space or of a file.

    Raises:
        UsageError: no such space, no TOML, or a name or word that it cannot hold.
    """
    name = str(source)
    ours = not name.endswith(".toml")
    tree = _parsed(_text_of_ours(name) if ours else _text_of_file(Path(source)), name)
    study = tree.pop("study", {})
    _check_study(study, name)
    found: dict[str, Any] = {}
    for key, value in _flat(tree):
        if key in found:
            raise UsageError(f"{name} holds {shown(key)} twice.", expected="each setting once")
        found[key] = value
    if len(found) > _MOST:
        raise UsageError(
            f"{name} holds {len(found):,} dimensions.",
            expected=f"at most {_MOST}, and far fewer for a search that ends",
        )
    tables = {key: _table(key, value, ours=name == "default") for key, value in found.items()}
    return Tables(name, ours, _in_order(tables), study)


def built_in() -> dict[str, str]:
    """The spaces that come with Poise, each with a sentence."""
    spaces = {}
    for entry in sorted(resources.files("poise.tuning.spaces").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".toml"):
            tree = parse_toml(entry.read_text(encoding="utf-8"))
            spaces[entry.name.removesuffix(".toml")] = str(tree["study"]["description"])
    return spaces


def is_number(value: Any) -> bool:
    """Whether a value is a finite number, and neither true nor false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < _LARGEST if isinstance(value, int) else math.isfinite(value)


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and is_number(value) and value >= least


def _text_of_ours(name: str) -> str:
    known = built_in()
    if name not in known:
        raise UsageError(
            f"There is no space {shown(name)}. {nearest(name[:_SHOWN], known)}".rstrip(),
            expected="one of " + ", ".join(known) + ", or a file that ends in .toml",
        )
    file = resources.files("poise.tuning.spaces") / f"{name}.toml"
    return file.read_text(encoding="utf-8")


def _text_of_file(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(_LONGEST + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        beside = sorted(p.name for p in path.parent.glob("*.toml")) if not path.exists() else []
        raise UsageError(
            f"The space {path} cannot be read: {reason}. {nearest(path.name, beside)}".rstrip(),
            expected="a TOML file, or one of " + ", ".join(built_in()),
        ) from None


def _parsed(text: str, name: str) -> dict[str, Any]:
    try:
        tree = parse_toml(text)
    except ValueError as error:
        raise UsageError(f"{name} is not valid TOML: {error}.") from None
    _refuse_huge(tree, name)
    return tree


def _refuse_huge(tree: Any, name: str) -> None:
    if isinstance(tree, dict | list):
        for value in tree.values() if isinstance(tree, dict) else tree:
            _refuse_huge(value, name)
    elif isinstance(tree, int) and abs(tree) >= _LARGEST:
        raise UsageError(f"{name} holds a whole number beyond 64 bits.", expected="smaller numbers")


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names with what stands under them; a table of words is not entered."""
    for key, value in tree.items():
        name = f"{path}{key}"
        if isinstance(value, dict) and name not in _SETTINGS and not set(value) & set(_WORDS):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _table(name: str, value: Any, *, ours: bool) -> dict[str, Any]:
    """What is said of one dimension, its words checked and its conditions flat."""
    _refuse_name(name)
    if value is True and not ours:
        known = _defaults()
        if name not in known:
            raise UsageError(
                f"{name} = true, and Poise proposes no range for this setting.",
                expected="a table such as { low = 0.1, high = 0.9 }, or true for one of "
                + ", ".join(known),
            )
        value = known[name]
    if not isinstance(value, dict):
        raise UsageError(
            f"{name} = {shown(value)} in a space.",
            expected="a table such as { low = 0.1, high = 0.9 } or { choices = [1, 2] }, or true",
        )
    for word in value:
        if word not in _WORDS:
            raise UsageError(
                f"{name} says {shown(word)}. {nearest(word[:_SHOWN], _WORDS)}".rstrip(),
                expected="words out of " + ", ".join(_WORDS),
            )
    _check_words(name, value)
    conditions = value.get("when", {})
    if not isinstance(conditions, dict):
        raise UsageError(
            f"{name}: when = {shown(conditions)}.",
            expected='a table such as { "training.optimizer" = ["sgd"] }',
        )
    when = {key: v if isinstance(v, list) else [v] for key, v in _flat(conditions)}
    return {**value, "when": when}


def _check_words(name: str, table: Mapping[str, Any]) -> None:
    """One way to say what is searched, and values of the right kind."""
    ways = [way for way in ("low", "times", "choices", "factors") if way in table]
    if "high" in table and "low" not in table:
        ways.append("high")
    if len(ways) != 1 or ("low" in table) != ("high" in table):
        raise UsageError(
            f"{name} says {', '.join(w for w in table if w not in ('log', 'points', 'when'))}."
            if set(table) - {"log", "points", "when"}
            else f"{name} says nothing of what to try.",
            expected="low and high, or times = [0.1, 10], or choices, or factors = [0.5, 1, 2]",
        )
    is_range = ways[0] in ("low", "times")
    if not is_range and {"log", "points"} & set(table):
        raise UsageError(
            f"{name} says {ways[0]} with log or points, which are words for a range.",
            expected="low and high, or times, where log or points is said",
        )
    for word in ("low", "high"):
        if word in table and not is_number(table[word]):
            raise UsageError(f"{name}: {word} = {shown(table[word])}.", expected="a number")
    values: Any = table[ways[0]]
    if ways[0] in ("times", "factors"):
        numbers = isinstance(values, list) and all(is_number(v) and v > 0 for v in values)
        if not numbers or (ways[0] == "times" and len(values) != 2):
            expected = "two numbers above 0, such as [0.1, 10]" if is_range else "numbers above 0"
            raise UsageError(f"{name}: {ways[0]} = {shown(values)}.", expected=expected)
    if not is_range and not (isinstance(values, list) and len(values) <= _MOST):
        raise UsageError(
            f"{name}: {ways[0]} = {shown(values)}.", expected=f"a list of at most {_MOST} values"
        )
    if not isinstance(table.get("log", False), bool):
        raise UsageError(f"{name}: log = {shown(table['log'])}.", expected="true or false")
    points = table.get("points", 2)
    if not _is_whole(points, 2) or points > _MOST:
        raise UsageError(
            f"{name}: points = {shown(points)}.", expected=f"a whole number from 2 to {_MOST}"
        )


def _refuse_name(name: str) -> None:
    if name not in _SETTINGS:
        leaves = {known.rpartition(".")[2]: known for known in _SETTINGS}
        hint = nearest(name[:_SHOWN], _SETTINGS) or nearest(
            name.rpartition(".")[2][:_SHOWN], leaves
        )
        raise UsageError(
            f"There is no setting {shown(name)} to search. {hint}".rstrip(),
            expected="a dotted name such as training.lr, or weights, or guidance",
            remedy=_REMEDY,
        )
    for beginning, reason in _KEPT.items():
        if name.startswith(beginning):
            raise UsageError(
                f"{name} cannot be searched: {reason}.",
                expected="settings that change what is learned or how is sampled",
                remedy=f"Set it for the whole study instead: --set {name}=...",
            )


def _check_study(study: Any, name: str) -> None:
    if not isinstance(study, dict):
        raise UsageError(f"{name}: study = {shown(study)}.", expected="a table [study]")
    for word, value in study.items():
        if word not in _STUDY:
            raise UsageError(
                f"[study] of {name} says {shown(word)}. {nearest(word[:_SHOWN], _STUDY)}".rstrip(),
                expected="words out of " + ", ".join(_STUDY),
            )
        expected, fits = _STUDY[word]
        if not fits(value):
            raise UsageError(f"[study] of {name} says {word} = {shown(value)}.", expected=expected)


def _in_order(tables: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """As in the file, but a dimension that others depend on before these."""
    ordered: dict[str, dict[str, Any]] = {}
    waiting = dict(tables)
    while waiting:
        ready = [name for name, table in waiting.items() if not set(table["when"]) & set(waiting)]
        if not ready:
            raise UsageError(
                f"The conditions of {' and '.join(list(waiting)[:3])} depend on each other.",
                expected="conditions on a dimension that has none of these, or on a setting",
            )
        ordered[ready[0]] = waiting.pop(ready[0])
    return ordered


def _defaults() -> dict[str, dict[str, Any]]:
    """Poise's own range of every setting that has one."""
    return read_tables("default").dimensions


def shown(value: Any) -> str:
    """A value as it was written; of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


_SETTINGS = (*(row[0] for row in documented(Config())), *SPECIAL)
