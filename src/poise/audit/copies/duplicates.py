"""Which files show the same picture: equal bytes, equal pixels, near copies, copies by features."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poise.audit.copies.candidates import Pairs, Progress, close_pairs, resemblance
from poise.audit.copies.hashing import Hashes
from poise.audit.copies.kin import alike_by_features
from poise.audit.copies.linking import Pictures, near_groups, net
from poise.audit.scan import Scan

Kind = Literal["bytes", "pixels", "near", "feature"]
KINDS: tuple[Kind, ...] = ("bytes", "pixels", "near", "feature")
_BEST = 2048  # pairs that compete for the closest


@dataclass(frozen=True)
class Group:
    """Items that are the same picture.

    `bytes`: equal files. `pixels`: all of equal pixels, if not all are equal files. `near`: all
    that look the same, exact copies included, if not all have equal pixels. `feature`: found by
    features alone.
    """

    kind: Kind
    members: tuple[int, ...]  # ascending
    cross_class: bool  # labels differ
    cross_split: bool  # given splits differ


@dataclass(frozen=True)
class Duplicates:
    """What was found.

    `groups`: worst first: across splits, across classes, then by size. `families`: items that
    likeness connects at all, chains included; for splits, where one leak is worse than a family
    too large.
    """

    groups: list[Group]
    families: list[tuple[int, ...]]


@dataclass(frozen=True)
class Closest:
    """Two items on different sides.

    `distance`: 0 the same, up to `near.NEAR` a near duplicate, about 1 unrelated. `hamming`: bits
    of the hash that differ, 0 to 64.
    """

    distance: float
    hamming: int
    first: int
    second: int


def find_duplicates(
    scan: Scan, features: NDArray[np.float32] | None = None, progress: Progress | None = None
) -> Duplicates:
    """All groups and families; broken files are in none.

    Args:
        scan: the looked at source.
        features: [N, D] of unit length, for the kind `feature`; rows of broken files do not matter.
        progress: called with the work done and the work in all, in no particular unit.
    """
    files = _equal(scan, [look.sha256 for look in scan.looks])
    pictures = _equal(scan, [look.pixels for look in scan.looks])
    groups = [_group(scan, "bytes", members) for members in files if len(members) > 1]
    for members in pictures:
        if len({scan.looks[i].sha256 for i in members}) > 1:
            groups.append(_group(scan, "pixels", members))
    firsts = np.array([members[0] for members in pictures], dtype=np.int64)
    kept = Pictures.of(scan.thumbs, firsts)
    place = np.searchsorted(firsts, kept.rows)
    near, linked = near_groups(kept, progress)
    kin = [] if features is None else alike_by_features(features, kept.rows, near)

    def items(part: Sequence[int]) -> tuple[int, ...]:
        return tuple(sorted(i for p in part for i in pictures[place[p]]))

    groups += [_group(scan, "near", items(part)) for part in near]
    groups += [_group(scan, "feature", items(part)) for part in kin]
    return Duplicates(sorted(groups, key=_badness), [items(part) for part in linked])


def closest_across(scan: Scan, sides: NDArray[np.int64]) -> list[Closest]:
    """Pairs of items on different sides, the closest first; empty if no two can be compared.

    Exact copies are found whatever they show, and then nothing else is looked for. Else pictures
    with structure are compared: the pairs of most similar transforms, however far apart.

    Args:
        scan: the looked at source.
        sides: [N], a number for each side; -1 for items on none.
    """
    equal = []
    for members in _equal(scan, [look.pixels for look in scan.looks]):
        placed = [i for i in members if sides[i] >= 0]
        equal += [Closest(0.0, 0, placed[0], i) for i in placed if sides[i] != sides[placed[0]]]
    if equal:
        return equal
    usable = np.array([not look.broken for look in scan.looks], dtype=np.bool_) & (sides >= 0)
    pictures = Pictures.of(scan.thumbs, np.flatnonzero(usable))
    best = _most_alike(pictures.hashes, sides[pictures.rows])
    apart = pictures.apart(best)
    codes = pictures.hashes.codes
    hamming = np.bitwise_count(codes[best.first] ^ codes[best.second, :1]).min(axis=1)
    rows = np.sort(pictures.rows[np.stack([best.first, best.second], axis=1)], axis=1).tolist()
    order = np.argsort(apart, kind="stable").tolist()
    return [Closest(float(apart[i]), int(hamming[i]), *rows[i]) for i in order]


def _most_alike(hashes: Hashes, sides: NDArray[np.int64]) -> Pairs:
    """Pairs across sides with the most similar transforms, from the narrowest net that has any."""
    if len(np.unique(sides)) < 2:
        return Pairs.joined([])
    for reach in (net(len(sides))[0], 32, 64):
        best = Pairs.joined([])
        for found in close_pairs(hashes.codes, reach):
            best = Pairs.joined([best, found.where(sides[found.first] != sides[found.second])])
            if len(best) > 4 * _BEST:
                best = _top(hashes, best)
        if len(best):
            return _top(hashes, best)
    return best


def _top(hashes: Hashes, pairs: Pairs) -> Pairs:
    order = np.argsort(-resemblance(hashes, pairs), kind="stable")
    return pairs.where(np.sort(order[:_BEST]))


def _equal(scan: Scan, keys: Sequence[str]) -> list[list[int]]:
    """Items with equal keys, in order of the first; broken ones left out."""
    groups = defaultdict[str, list[int]](list)
    for i, (look, key) in enumerate(zip(scan.looks, keys, strict=True)):
        if not look.broken:
            groups[key].append(i)
    return list(groups.values())


def _group(scan: Scan, kind: Kind, members: Sequence[int]) -> Group:
    items = [scan.source.items[i] for i in members]
    labels = {item.label for item in items} - {None}
    splits = {item.split for item in items} - {None}
    return Group(kind, tuple(members), len(labels) > 1, len(splits) > 1)


def _badness(group: Group) -> tuple[bool, bool, int, int, tuple[int, ...]]:
    return (
        not group.cross_split,
        not group.cross_class,
        -len(group.members),
        KINDS.index(group.kind),
        group.members,
    )
