"""Which files show the same picture: equal bytes, equal pixels, near copies, copies by features."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from poise.audit.candidates import Pairs, Progress, close_pairs, resemblance
from poise.audit.hashing import Hashes
from poise.audit.kin import alike_by_features
from poise.audit.linking import Pictures, near_groups, net
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
class Closest:
    """The two most similar items on different sides.

    `distance`: 0 the same, up to `near.NEAR` a near duplicate, about 1 unrelated; infinite, and the
    items -1, if no two could be compared. `hamming`: bits of the hash that differ, 0 to 64.
    """

    distance: float
    hamming: int
    first: int
    second: int


def find_duplicates(
    scan: Scan, features: NDArray[np.float32] | None = None, progress: Progress | None = None
) -> list[Group]:
    """All groups, worst first: across splits, across classes, then by size.

    Broken files are in no group.

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
    near = near_groups(kept, progress)
    kin = [] if features is None else alike_by_features(features, kept.rows, near)
    found: tuple[tuple[Kind, list[list[int]]], ...] = (("near", near), ("feature", kin))
    for kind, parts in found:
        for part in parts:
            members = sorted(i for p in part for i in pictures[place[p]])
            groups.append(_group(scan, kind, members))
    return sorted(groups, key=_badness)


def closest_across(scan: Scan, sides: NDArray[np.int64]) -> Closest:
    """The closest pair of items on different sides, however far apart.

    Exact copies are found whatever they show. Else only pictures with structure are compared.

    Args:
        scan: the looked at source.
        sides: [N], a number for each side; -1 for items on none.
    """
    for members in _equal(scan, [look.pixels for look in scan.looks]):
        placed = [i for i in members if sides[i] >= 0]
        other = [i for i in placed if sides[i] != sides[placed[0]]]
        if other:
            return Closest(0.0, 0, placed[0], other[0])
    usable = np.array([not look.broken for look in scan.looks], dtype=np.bool_) & (sides >= 0)
    pictures = Pictures.of(scan.thumbs, np.flatnonzero(usable))
    best = _most_alike(pictures.hashes, sides[pictures.rows])
    if not len(best):
        return Closest(float("inf"), 64, -1, -1)
    apart = pictures.apart(best)
    i = int(np.argmin(apart))
    first, second = best.first[i], best.second[i]
    codes = pictures.hashes.codes
    hamming = int(np.bitwise_count(codes[first] ^ codes[second, 0]).min())
    rows = sorted(int(pictures.rows[place]) for place in (first, second))
    return Closest(float(apart[i]), hamming, rows[0], rows[1])


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
