"""The mix of images expected in use, against the mix there is: what is missing, what to do.

A target is a TOML file of one of two forms::

    [classes]              # shares, in any unit; they are scaled to a sum of 1
    cat = 50
    dog = 50

    examples = "phone/"    # any source of images like those expected; relative to this file
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.content.clusters import Features, find_clusters
from poise.audit.content.features import describe
from poise.audit.content.labels import class_counts
from poise.config import parse_toml
from poise.errors import DataError, UsageError, nearest

_FORM = 'a table `[classes]` of name = share, or `examples = "folder"`'
_FEWEST_EXAMPLES = 10
_PER_REGION = 15  # examples, so that the share of a region is known to about a quarter
_MOST_REGIONS = 20
_NOISE = 2.0  # standard errors of a share by examples that count as equal
_EQUAL = 0.01  # difference of shares that counts as none
_K = 5  # neighbours of coverage
_ROWS = 1024


@dataclass(frozen=True)
class Target:
    """A target that was read.

    Attributes:
        path: its file.
        shares: class -> share, summing to 1; empty for a target by examples.
        examples: source of examples; None for a target by shares.
    """

    path: Path
    shares: Mapping[str, float]
    examples: str | None = None


def read(path: str | Path) -> Target:
    """Read a target.

    Raises:
        UsageError: no such file, not TOML, not one of the two forms, a share that is not a
            number of 0 or more, or shares that are all 0.
    """
    path = Path(path)
    try:
        raw = parse_toml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"the target {path} cannot be read: {error.strerror}", expected=f"a file with {_FORM}"
        ) from None
    except ValueError as error:  # also of wrong UTF-8
        raise UsageError(f"the target {path} is not TOML: {error}", expected=_FORM) from None
    unknown = [key for key in raw if key not in ("classes", "examples")]
    if unknown:
        raise UsageError(
            f"{path}: unknown entry {unknown[0]!r}",
            expected=_FORM,
            remedy=nearest(unknown[0], ("classes", "examples")),
        )
    if len(raw) != 1:
        raise UsageError(f"{path} holds {'both forms' if raw else 'nothing'}", expected=_FORM)
    if "classes" in raw:
        return Target(path, _shares(raw["classes"], path))
    examples = raw["examples"]
    if not isinstance(examples, str) or not examples:
        raise UsageError(f"{path}: examples = {examples!r}", expected="the path of a source")
    if examples != "digits":
        examples = str(path.parent / Path(examples).expanduser())
    return Target(path, {}, examples)


def _shares(table: Any, path: Path) -> dict[str, float]:
    if not isinstance(table, dict) or not table:
        raise UsageError(f"{path}: classes = {table!r}", expected="name = share for each class")
    for name, value in table.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 <= value < math.inf:
            raise UsageError(
                f"{path}: the share of class {name!r} is {value!r}", expected="a number, 0 or more"
            )
    total = math.fsum(table.values())
    if not 0 < total < math.inf:
        raise UsageError(f"{path}: the shares sum to {total}", expected="at least one above 0")
    return {name: value / total for name, value in table.items()}


def target_shares(path: str | Path) -> dict[str, float]:
    """The class shares of a target, summing to 1, for balancing.

    Raises:
        UsageError: as `read`, and for a target by examples, which names no class.
    """
    target = read(path)
    if not target.shares:
        raise UsageError(
            f"{path} names examples and no class shares",
            expected="a table `[classes]` of name = share",
            remedy="write down the shares that you expect",
        )
    return dict(target.shares)


def check_classes(target: Target, label_names: Sequence[str]) -> None:
    """Refuse a target by shares that names a class the data have not.

    Raises:
        UsageError: naming the nearest class.
    """
    if not target.shares:
        return
    if not label_names:
        raise UsageError(
            f"{target.path} gives shares of classes, and the images have no classes",
            remedy='name a folder of examples instead: examples = "folder"',
        )
    for name in target.shares:
        if name not in label_names:
            raise UsageError(
                f"{target.path}: the images have no class {name!r}",
                expected=f"one of {', '.join(label_names[:10])}"
                + (", ..." if len(label_names) > 10 else ""),
                remedy=nearest(name, label_names),
            )


def compare(
    target: Target,
    labels: NDArray[np.int64] | None,
    label_names: Sequence[str],
    features: Features,
    usable: NDArray[np.bool_],
    space: str = "auto",
) -> dict[str, Any]:
    """The data against the target.

    Args:
        target: what `read` gave.
        labels: int [N], -1 where an image has none; None: no classes.
        label_names: name of each label.
        features: float32 [N, D] of unit length, of the data.
        usable: bool [N]; the others are left out.
        space: the name that `describe` was called with for the data.

    Returns:
        kind ("shares" or "examples"), path of the target, sentence, and parts [{"name", "have",
        "want" (shares), "missing" (images to add), "surplus" (images to drop instead), "mend"}],
        the most lacking first. By shares, adding all that is missing gives the target (up to
        rounding up) without dropping an image; so does dropping all that is surplus. By examples
        the parts are regions of pictures that look alike, and coverage is the share of examples
        that have an image of the data among their likes (Naeem et al. 2020, equation 5).

    Raises:
        UsageError: a class that the data have not; examples that do not exist.
        DataError: fewer than 10 readable examples.
    """
    if target.examples is not None:
        found = _by_examples(target.examples, features[usable], space)
        return found | {"path": str(target.path)}
    check_classes(target, label_names)
    counts = class_counts(labels, label_names, usable)
    parts = _plan(counts, {name: target.shares.get(name, 0.0) for name in counts})
    sentence = _sentence(parts, "class")
    return {"kind": "shares", "path": str(target.path), "sentence": sentence, "parts": parts}


def _plan(counts: Mapping[str, int], want: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parts when all shares must match at once."""
    wanted = [name for name in counts if want[name] > 0]
    # The size of the set in which the fullest part has its share, and of the one in which the
    # emptiest has.
    grown = max(counts[name] / want[name] for name in wanted)
    shrunk = min(counts[name] / want[name] for name in wanted)
    total = max(sum(counts.values()), 1)
    parts = []
    for name, count in counts.items():
        # The small number keeps rounding errors from asking for one image more.
        missing = max(0, math.ceil(want[name] * grown - count - 1e-6)) if want[name] else 0
        surplus = max(0, count - math.floor(want[name] * shrunk + 1e-6))
        parts.append(_part(name, count / total, want[name], missing, surplus, shrunk > 0, True))
    return sorted(parts, key=lambda part: part["have"] - part["want"])


def _part(
    name: str, have: float, want: float, missing: int, surplus: int, droppable: bool, weigh: bool
) -> dict[str, Any]:
    return {
        "name": name,
        "have": have,
        "want": want,
        "missing": missing,
        "surplus": surplus if droppable or not want else 0,
        "mend": _mend(have, want, missing, surplus, droppable, weigh),
    }


def _mend(
    have: float, want: float, missing: int, surplus: int, droppable: bool, weigh: bool
) -> str:
    """One sentence: collect, draw more or less often (where `weigh`), or drop."""
    if abs(have - want) < _EQUAL and (have > 0) == (want > 0):
        return "As wanted."
    if not want:
        never = ", or never draw them" if weigh else ""
        return f"Not in the target: drop its {_images(surplus)}{never}."
    if not have:
        return f"Collect {_images(missing)}: there is none to draw more often."
    often = f"draw its images {want / have:.2g} times as often (--balance target)"
    if have < want:
        return f"Collect {_images(missing)}{f', or {often}' if weigh else ''}."
    drop = f"drop {_images(surplus)}" if droppable and surplus else ""
    ways = [way for way in (often if weigh else "", drop) if way]
    if not ways:
        return "Collect the others."
    text = ", or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _sentence(parts: Sequence[Mapping[str, Any]], what: str) -> str:
    off = sum(abs(part["have"] - part["want"]) for part in parts) / 2
    lacking = [part for part in parts if part["mend"] != "As wanted." and part["missing"]]
    fullest = max(parts, key=lambda part: part["have"] - part["want"])
    if off < _EQUAL or all(part["mend"] == "As wanted." for part in parts):
        return "The images have the mix of the target."
    text = f"{off:.0%} of the images are of another kind than the target asks for: "
    if lacking:
        worst = max(lacking, key=lambda part: part["want"] - part["have"])
        text += (
            f"{what} {worst['name']!r} is {worst['have']:.0%} where {worst['want']:.0%} are wanted"
        )
        text += f" ({_images(worst['missing'])} to add), and " if fullest is not worst else "."
    return text + (
        f"{what} {fullest['name']!r} is {fullest['have']:.0%} where {fullest['want']:.0%} are "
        "wanted."
    )


def _by_examples(source: str, features: Features, space: str) -> dict[str, Any]:
    from poise.audit.scan import scan

    seen = scan(source)
    whole = np.array([not look.broken for look in seen.looks], bool)
    if whole.sum() < _FEWEST_EXAMPLES:
        raise DataError(
            f"{source} holds {int(whole.sum())} readable examples",
            expected=f"at least {_FEWEST_EXAMPLES}; a few hundred tell more",
        )
    examples = describe(seen.thumbs, space)[whole]
    names = [look.name for look, good in zip(seen.looks, whole, strict=True) if good]
    return compare_examples(features, examples, names)


def compare_examples(data: Features, examples: Features, names: Sequence[str]) -> dict[str, Any]:
    """What `compare` gives, from the features of both [N, D] and [M, D] and the M names."""
    count = max(2, min(_MOST_REGIONS, len(examples) // _PER_REGION))
    clusters = find_clusters(np.concatenate([data, examples]), count)
    of_data, of_examples = clusters.of[: len(data)], clusters.of[len(data) :]
    have = np.bincount(of_data, minlength=clusters.count)
    want = np.bincount(of_examples, minlength=clusters.count) / len(examples)
    shares = have / max(len(data), 1)
    missing = _to_add(have, want, len(examples))
    parts = []
    for c in range(clusters.count):
        members = np.flatnonzero(of_examples == c)
        if len(members):
            distance = clusters.distance[len(data) + members]
            name = f"like {names[int(members[distance.argmin()])]}"
        else:
            name = f"region {c}, unlike all examples"
        close = abs(shares[c] - want[c]) <= _error(float(want[c]), len(examples))
        surplus = max(0, math.floor(have[c] - want[c] * len(data)))
        part = _part(name, float(shares[c]), float(want[c]), int(missing[c]), surplus, True, False)
        parts.append(part | {"missing": 0, "surplus": 0, "mend": "As wanted."} if close else part)
    parts.sort(key=lambda part: part["have"] - part["want"])
    covered = coverage(examples, data)
    sentence = _sentence(parts, "the part").removesuffix(".")
    return {
        "kind": "examples",
        "sentence": f"{sentence}; {covered:.0%} of the examples have an image like them.",
        "coverage": covered,
        "parts": parts,
    }


def _error(share: float, examples: int) -> float:
    """How far a share may be off because the examples are few."""
    return max(_EQUAL, _NOISE * math.sqrt(max(share * (1 - share), 1 / examples) / examples))


def _to_add(have: NDArray[np.int64], want: NDArray[np.float64], examples: int) -> NDArray[np.int64]:
    """Images to add to each lacking region so that all of these reach their shares at once.

    The other regions stay as they are: shares by examples are too rough to scale everything to
    the one that is most over-full. With W the lacking regions' share and n_W their images, the
    added A solve W (n + A) = n_W + A.
    """
    n = int(have.sum())
    error = np.array([_error(float(w), examples) for w in want])
    lacking = want - have / max(n, 1) > error
    w = float(want[lacking].sum())
    if not lacking.any():
        return np.zeros(len(have), np.int64)
    # Without any other region every share is a share of the lacking ones: match their mix.
    added = (w * n - have[lacking].sum()) / (1 - w) if w < 1 else 0.0
    wanted = np.ceil(want * (n + added) - have - 1e-6)
    return np.where(lacking, np.maximum(wanted, 0), 0).astype(np.int64)


def coverage(examples: Features, data: Features) -> float:
    """Share of examples with an image of the data nearer than their fifth nearest other example.

    Args:
        examples: unit-length features [M, D], M at least 2.
        data: the same of the images [N, D].
    """
    k = min(_K, len(examples) - 1)
    covered = 0
    for start in range(0, len(examples), _ROWS):
        part = examples[start : start + _ROWS]
        inside = part @ examples.T
        inside[np.arange(len(part)), np.arange(start, start + len(part))] = -np.inf
        radius = np.partition(inside, -k, axis=1)[:, -k]  # a cosine: larger is nearer
        best = np.full(len(part), -np.inf, np.float32)
        for column in range(0, len(data), 8 * _ROWS):
            best = np.maximum(best, (part @ data[column : column + 8 * _ROWS].T).max(1))
        covered += int((best >= radius - 1e-6).sum())
    return covered / len(examples)
