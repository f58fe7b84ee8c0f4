"""What is kept, what is dropped and why, and on which side everything lies."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.audit.copies.duplicates import Closest, Duplicates, Group, closest_across
from poise.audit.look import BROKEN, LEFT_OUT
from poise.audit.quality import ODD
from poise.audit.scan import Scan
from poise.data.splits import SPLITS, STRENGTH, roots_of, split_groups
from poise.errors import DataError
from poise.prepare.options import Options
from poise.prepare.units import Unit, user_groups

EXACT = ("bytes", "pixels")
_HUGE = 10**12 - 1  # pixels that no picture has


@dataclass(frozen=True)
class Decision:
    """What becomes of each unit."""

    units: tuple[Unit, ...]
    sides: tuple[str | None, ...]  # train, val, test; None: dropped
    dropped: Mapping[int, tuple[str, str]]  # unit -> (cause, reason)
    groups: tuple[str | None, ...]  # the user's name of the group, if any
    conflicts: tuple[dict[str, Any], ...]  # exact copies in two classes

    def kept(self) -> list[int]:
        """Units that are not dropped, in order."""
        return [index for index, side in enumerate(self.sides) if side is not None]


@dataclass(frozen=True)
class _Kin:
    """Which units are alike: [U], equal numbers for units of one family."""

    exact: list[int]
    near: list[int]  # exact copies included
    all: list[int]  # what must lie on one side


def decide(
    seen: Scan,
    found: Duplicates,
    units: Sequence[Unit],
    options: Options,
    pattern: str | None = None,
) -> Decision:
    """Drop, group and divide.

    Of copies, the one in the strongest given split stays (test, then validation), then the one
    with most pixels, then the first by name.

    Raises:
        UsageError: the groups asked for do not exist.
        DataError: nothing is left, or too little to divide.
    """
    items = seen.source.items
    named = user_groups(seen, units, pattern)
    dropped = _unusable(seen, units, options.drop)
    for index, unit in enumerate(units):
        if unit.fault is not None:
            dropped.setdefault(index, ("no clip", unit.fault))
    kin = _kin(seen, found, units, named, dropped)
    conflicts = tuple(_conflicts(seen, units, kin.exact, dropped))
    given = [max((items[i].split for i in unit.files), key=STRENGTH.__getitem__) for unit in units]
    dropped = _copies(seen, units, kin, given, options, dropped)
    left = [index for index in range(len(units)) if index not in dropped]
    if not left:
        raise _nothing_left(seen, dropped, options)
    labels = [items[units[i].first].label for i in left]
    division = split_groups(
        [kin.all[i] for i in left],
        [_key(seen, units[i], named[i]) for i in left],
        None if None in labels else [label for label in labels if label is not None],
        [given[i] for i in left],
        options.split,
        options.seed,
    )
    sides: list[str | None] = [None] * len(units)
    for place, index in enumerate(left):
        sides[index] = division.sides[place]
    for place, kept in division.dropped.items():
        index, other = left[place], left[kept]
        dropped[index] = (
            "given to two splits",
            f"belongs to the group of {units[other].name}, which was given to {given[other]}; "
            f"this one was given to {given[index] or 'none'}",
        )
    first = tuple(names[0] if names else None for names in named)
    decision = Decision(tuple(units), tuple(sides), dropped, first, conflicts)
    _check_leaks(found.groups, decision, kin)
    return decision


def _nothing_left(
    seen: Scan, dropped: Mapping[int, tuple[str, str]], options: Options
) -> DataError:
    causes = Counter(cause for cause, _ in dropped.values())
    if causes.get("no clip"):
        return DataError(
            f"{seen.source.name} holds no clip of {options.clip} frames.",
            expected="folders of numbered frames, or animations, that are long enough",
            remedy="Ask for fewer frames, or prepare single images without --clip.",
        )
    found = ", ".join(f"{count:,} {cause}" for cause, count in causes.most_common())
    return DataError(
        f"{seen.source.name} holds no image that can be kept ({found or 'all are refused'}).",
        expected="images that can be read",
        remedy="Look at what poise audit says of this source.",
    )


def settle(
    seen: Scan,
    found: Duplicates,
    units: Sequence[Unit],
    options: Options,
    pattern: str | None = None,
) -> tuple[Decision, dict[str, Closest]]:
    """`decide`, and the closest pair across each two splits, such as "train-val".

    The pairs are searched for anew, on other ways than the families, so that they can prove them
    wrong.

    Raises:
        As `decide`.
    """
    decision = decide(seen, found, units, options, pattern)
    everywhere = closest_across(seen, _places(seen, decision, SPLITS))
    closest: dict[str, Closest] = {}
    for pair in (("train", "val"), ("train", "test"), ("val", "test")):
        at = _places(seen, decision, pair)
        among = [near for near in everywhere if at[near.first] >= 0 and at[near.second] >= 0]
        among = among or closest_across(seen, at)
        if among:
            closest["-".join(pair)] = among[0]
    return decision, closest


def _places(seen: Scan, decision: Decision, names: Sequence[str]) -> NDArray[np.int64]:
    """For each file which of the splits `names` it lies in, -1 for none of them; [N]."""
    at = np.full(len(seen.looks), -1, np.int64)
    for unit, side in zip(decision.units, decision.sides, strict=True):
        if side in names:
            at[list(unit.files)] = names.index(side)
    return at


def _unusable(
    seen: Scan, units: Sequence[Unit], drop: frozenset[str]
) -> dict[int, tuple[str, str]]:
    """Units with a file that cannot be trained on, or is odd in a way that is not wanted."""
    unwanted = BROKEN | (drop & set(ODD))
    found: dict[int, tuple[str, str]] = {}
    for index, unit in enumerate(units):
        for file in unit.files:
            look = seen.looks[file]
            problem = next((p for p in look.problems if p.kind in unwanted), None)
            if problem is not None:
                where = "" if len(unit.files) == 1 else f"{look.name}: "
                found[index] = (problem.kind, f"{where}{problem.kind}: {problem.detail}")
                break
    torn = BROKEN - {LEFT_OUT}
    broken = [(units[i].name, why) for i, (kind, why) in found.items() if kind in torn]
    if broken and "broken" not in drop:
        names = [f"{name} ({why})" for name, why in broken[:5]]
        raise DataError(
            f"{len(broken)} of {len(units)} images are broken: {'; '.join(names)}"
            + ("; ..." if len(broken) > 5 else "."),
            expected="only whole images, since --drop does not name broken",
            remedy="Repair or remove these files, or add broken to --drop.",
        )
    return found


def _kin(
    seen: Scan,
    found: Duplicates,
    units: Sequence[Unit],
    named: Sequence[tuple[str, ...]],
    dropped: Mapping[int, Any],
) -> _Kin:
    """Families among the usable units."""
    count, groups = len(seen.looks), found.groups
    same = roots_of(count, [g.members for g in groups if g.kind in EXACT])
    alike = roots_of(count, [g.members for g in groups if g.kind in (*EXACT, "near")])
    usable = [index for index in range(len(units)) if index not in dropped]

    def by(keys: Sequence[Any]) -> list[list[int]]:
        families: dict[Any, list[int]] = defaultdict(list)
        for index, key in keys:
            families[key].append(index)
        return list(families.values())

    def copies(roots: list[int]) -> list[list[int]]:
        return by([(i, tuple((roots[f], at) for f, at in units[i].frames)) for i in usable])

    exact = roots_of(len(units), copies(same))
    near = roots_of(len(units), copies(same) + copies(alike))
    everything = roots_of(count, [*(g.members for g in groups), *found.families])
    together = [
        *by([(i, everything[file]) for i in usable for file in units[i].files]),
        # Flat pictures have no hash; those that shrink to the same pixels belong together too.
        *by([(i, _shrunk(seen, units[i].first)) for i in usable]),
        *by([(i, name) for i in usable for name in named[i]]),
        *by([(i, units[i].sequence) for i in usable if units[i].sequence]),
    ]
    return _Kin(exact, near, roots_of(len(units), together))


def _shrunk(seen: Scan, file: int) -> bytes:
    """The thumbnail; of arrays with channels that it does not show, nothing that others have."""
    other = seen.looks[file].mode.endswith("channels")
    return seen.looks[file].pixels.encode() if other else seen.thumbs[file].tobytes()


def _copies(
    seen: Scan,
    units: Sequence[Unit],
    kin: _Kin,
    given: Sequence[str | None],
    options: Options,
    dropped: Mapping[int, tuple[str, str]],
) -> dict[int, tuple[str, str]]:
    """Copies of what stays, as far as they are to be dropped."""
    found = dict(dropped)
    for level, families, words in (
        ("exact", kin.exact, "an exact copy of"),
        ("near", kin.near, "a near copy of"),
    ):
        if level in options.drop:
            best = _best(seen, units, families, given, found)
            for index, root in enumerate(families):
                if index not in found and best[root] != index:
                    reason = f"{words} {units[best[root]].name}"
                    found[index] = (f"{level} copy", reason)
    return found


def _best(
    seen: Scan,
    units: Sequence[Unit],
    families: Sequence[int],
    given: Sequence[str | None],
    dropped: Mapping[int, Any],
) -> dict[int, int]:
    """Of each family the unit that stays."""

    def rank(index: int) -> tuple[int, int, str]:
        look = seen.looks[units[index].first]
        return -STRENGTH[given[index]], -look.width * look.height, units[index].name

    best: dict[int, int] = {}
    for index, root in enumerate(families):
        if index not in dropped and (root not in best or rank(index) < rank(best[root])):
            best[root] = index
    return best


def _conflicts(
    seen: Scan, units: Sequence[Unit], exact: Sequence[int], dropped: Mapping[int, Any]
) -> list[dict[str, Any]]:
    """Exact copies that lie in two classes: one label of each is wrong."""
    names = seen.source.label_names
    families: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(exact):
        if index not in dropped:
            families[root].append(index)
    found = []
    for members in families.values():
        labels = [seen.source.items[units[i].first].label for i in members]
        if len(set(labels)) > 1:
            found.append(
                {
                    "paths": [units[i].name for i in members],
                    "labels": [None if label is None else names[label] for label in labels],
                }
            )
    return found


def _key(seen: Scan, unit: Unit, named: Sequence[str]) -> str:
    """What the place of a unit hangs on: its named group, else its pixels.

    The smallest key of a family decides, so larger pictures come first: the family of an original
    does not move when smaller copies of it are added.
    """
    if named or unit.sequence:
        return f"group {min(named, default=unit.sequence)}"
    look = seen.looks[unit.first]
    return f"image {_HUGE - look.width * look.height:012d} {look.pixels} {unit.frames[0][1]}"


def _check_leaks(groups: Sequence[Group], decision: Decision, kin: _Kin) -> None:
    """Compare across splits once more, from the duplicates as they were found."""
    where: dict[int, set[str]] = defaultdict(set)
    for unit, side in zip(decision.units, decision.sides, strict=True):
        for file in unit.files:
            where[file] |= {side} - {None}  # type: ignore[arg-type]
    for group in groups:
        if len(set().union(*(where[member] for member in group.members))) > 1:
            raise AssertionError(f"{group} lies on two sides: a fault of Poise")
    families: dict[int, set[str | None]] = defaultdict(set)
    for root, side in zip(kin.all, decision.sides, strict=True):
        families[root] |= {side} - {None}
    if any(len(sides) > 1 for sides in families.values()):
        raise AssertionError("a family lies on two sides: a fault of Poise")
