"""Which images train, which validate, which test: by hash, so that adding files moves nothing.

Images with equal pixels form a group, and a group never lies on two sides. The place of a group is
a number u in [0, 1) that depends on the seed and its content alone: test below the test share,
then validation, then training.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.imageset import Dataset
from poise.errors import DataError, UsageError, nearest

SPLITS = ("train", "val", "test")
STRENGTH = {"test": 2, "val": 1, "train": 0, None: 0}  # who keeps an image given to two splits
_POPULOUS = 10  # images from which a class must be represented everywhere


@dataclass(frozen=True)
class Splits:
    """Indices into the data set, ascending; `dropped` with the reason for each."""

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    dropped: tuple[tuple[int, str], ...]

    def of(self, name: str) -> NDArray[np.int64]:
        """The indices of `train`, `val` or `test`.

        Raises:
            UsageError: there is no such split.
        """
        if name not in SPLITS:
            raise UsageError(
                f"There is no split {name!r}. {nearest(name, SPLITS)}".rstrip(),
                expected="train, val or test",
            )
        return {"train": self.train, "val": self.val, "test": self.test}[name]

    def to_json(self, dataset: Dataset) -> dict[str, Any]:
        """The names of the images of each split, as plain data."""
        rows: dict[str, Any] = {s: [dataset.names[i] for i in self.of(s)] for s in SPLITS}
        rows["dropped"] = [{"path": dataset.names[i], "reason": why} for i, why in self.dropped]
        return rows


@dataclass(frozen=True)
class Division:
    """Where each item went, and which item of its group stays for each that was dropped."""

    sides: tuple[str | None, ...]  # train, val, test; None: dropped
    dropped: Mapping[int, int]


@dataclass(frozen=True)
class _Group:
    """Images that must stay together."""

    members: tuple[int, ...]  # ascending
    label: int  # of the first member; 0 without labels
    u: float


def split(dataset: Dataset, shares: tuple[float, float, float], seed: int) -> Splits:
    """Divide the images into training, validation and test; images with equal pixels stay together.

    Given splits are kept; what is missing is taken from the training side. An image given to two
    splits stays in test (else in validation) and is dropped from the other. Small sets are the one
    exception to the hash rule, as `split_groups` says.

    Args:
        dataset: the images.
        shares: of training, validation and test; they add up to 1.
        seed: another seed gives another division.

    Raises:
        DataError: too few different images to divide.
    """
    labels = None if dataset.labels is None else dataset.labels.tolist()
    made = split_groups(
        duplicate_roots(dataset), dataset.hashes, labels, dataset.given_splits, shares, seed
    )
    dropped = tuple(
        (
            index,
            f"same pixels as {dataset.names[kept]}, which was given to {made.sides[kept]}; "
            f"this copy was given to {dataset.given_splits[index] or 'none'}",
        )
        for index, kept in sorted(made.dropped.items())
    )
    sides = {
        s: np.array([i for i, at in enumerate(made.sides) if at == s], np.int64) for s in SPLITS
    }
    result = Splits(sides["train"], sides["val"], sides["test"], dropped)
    _verify(dataset, result)
    return result


def split_groups(
    roots: Sequence[int],
    keys: Sequence[str],
    labels: Sequence[int] | None,
    given: Sequence[str | None],
    shares: tuple[float, float, float],
    seed: int,
) -> Division:
    """Divide items into training, validation and test, whole groups at a time.

    The place of a group follows from the seed and the smallest of its keys, so other items that
    come or go do not move it. A group given to two splits stays in test (else in validation) and
    is dropped from the other. Splits that were given are not added to; what is missing is taken
    from the training side. Small sets are the exception: a class with two groups or more keeps one
    for training; an empty split, and a class of 10 items or more that a split lacks, takes the
    training group with the smallest place. A class of a single group trains.

    Args:
        roots: [N], equal for items of one group.
        keys: [N], what the place of an item hangs on: its content, or the name of its group.
        labels: [N] classes, None without.
        given: [N], the split each item was given, or None.
        shares: of training, validation and test; they add up to 1.
        seed: another seed gives another division.

    Raises:
        DataError: too few groups to divide.
    """
    groups, places, dropped = _groups(roots, keys, labels, given, seed)
    pool = [group for group, side in places.items() if side not in ("val", "test")]
    present = set(places.values())
    test = 0.0 if "test" in present else shares[2]
    val = 0.0 if "val" in present else shares[1]
    whole = shares[0] + val + test
    for group in pool:
        below_val = group.u < (test + val) / whole
        places[group] = "test" if group.u < test / whole else "val" if below_val else "train"
    _keep_training(pool, places)
    for name, share in (("test", test), ("val", val)):
        if share > 0:
            _fill(name, pool, places)
    sides: list[str | None] = [None] * len(roots)
    for group in groups:
        for index in group.members:
            sides[index] = places[group]
    for name, share in zip(SPLITS, shares, strict=True):
        if share > 0 and name not in sides:
            raise DataError(
                _too_few(len(roots), len(groups), name),
                expected="different images for each split that has a share",
                remedy="Add different images, or give less to the other splits.",
            )
    return Division(tuple(sides), dropped)


def _too_few(items: int, groups: int, name: str) -> str:
    """Why nothing is left for a split."""
    if items == 1:
        return f"There is only 1 different image; nothing is left for {name}."
    if items == groups:
        return f"There are only {items} different images; nothing is left for {name}."
    kept = "group that must stay" if groups == 1 else "groups that each must stay"
    return (
        f"The {items:,} images that are kept are only {groups} {kept} together (copies, or what "
        f"was asked to be grouped); nothing is left for {name}."
    )


def _groups(
    roots: Sequence[int],
    keys: Sequence[str],
    labels: Sequence[int] | None,
    given: Sequence[str | None],
    seed: int,
) -> tuple[list[_Group], dict[_Group, str | None], dict[int, int]]:
    """The groups, the split each was given, and the items that given splits drop."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(roots):
        members[root].append(index)
    groups: list[_Group] = []
    places: dict[_Group, str | None] = {}
    dropped: dict[int, int] = {}
    for twins in members.values():
        side = max((given[i] for i in twins), key=lambda s: STRENGTH[s])
        kept = [i for i in twins if STRENGTH[given[i]] == STRENGTH[side]]
        dropped |= {i: kept[0] for i in twins if STRENGTH[given[i]] != STRENGTH[side]}
        label = 0 if labels is None else labels[kept[0]]
        group = _Group(tuple(kept), label, _position(seed, min(keys[i] for i in twins)))
        groups.append(group)
        places[group] = side
    return groups, places, dropped


def duplicate_roots(dataset: Dataset) -> list[int]:
    """For each image the first image with the same pixels, as decoded or as resized; [N]."""
    first: dict[bytes | str, int] = {}
    twins = []
    for index in range(len(dataset)):
        processed = hashlib.sha256(np.ascontiguousarray(dataset.images[index]).data).digest()
        for key in (processed, dataset.hashes[index]):
            twins.append((first.setdefault(key, index), index))
    return roots_of(len(dataset), twins)


def roots_of(count: int, groups: Iterable[Sequence[int]]) -> list[int]:
    """For each of `count` things the smallest one it is joined to, by any chain of groups."""
    parents = list(range(count))

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for group in groups:
        for member in group[1:]:
            a, b = root(group[0]), root(member)
            parents[max(a, b)] = min(a, b)
    return [root(index) for index in range(count)]


def _position(seed: int, key: str) -> float:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: below 1 as a float


def _keep_training(pool: list[_Group], places: dict[_Group, str | None]) -> None:
    """Give each class a training group: the one farthest from the border."""
    for groups in _by_class(pool).values():
        if all(places[group] != "train" for group in groups):
            places[max(groups, key=lambda g: (g.u, g.members))] = "train"


def _fill(name: str, pool: list[_Group], places: dict[_Group, str | None]) -> None:
    """Give split `name` an image of each populous class, and at least one image."""
    for groups in _by_class(pool).values():
        populous = sum(len(group.members) for group in groups) >= _POPULOUS
        if populous and all(places[group] != name for group in groups):
            _take(name, groups, places, keep=1)
    if all(place != name for place in places.values()):
        for groups in sorted(_by_class(pool).values(), key=lambda gs: min(g.u for g in gs)):
            if _take(name, groups, places, keep=1):
                return
        _take(name, pool, places, keep=1)  # every class is a single group


def _take(name: str, groups: list[_Group], places: dict[_Group, str | None], keep: int) -> bool:
    """Move the training group with the smallest u to `name`, if `keep` others remain."""
    training = [group for group in groups if places[group] == "train"]
    if len(training) <= keep:
        return False
    places[min(training, key=lambda g: (g.u, g.members))] = name
    return True


def _by_class(groups: list[_Group]) -> Mapping[int, list[_Group]]:
    classes: dict[int, list[_Group]] = defaultdict(list)
    for group in groups:
        classes[group.label].append(group)
    return dict(sorted(classes.items()))


def _verify(dataset: Dataset, splits: Splits) -> None:
    """Compare the pixels across splits once more, independently of how groups were made."""
    side: dict[bytes, str] = {}
    for name in SPLITS:
        for index in splits.of(name):
            digest = hashlib.sha256(np.ascontiguousarray(dataset.images[index]).data).digest()
            if side.setdefault(digest, name) != name:
                raise AssertionError(
                    f"{dataset.names[index]} lies in {name} and in {side[digest]}: a fault of Poise"
                )
    counts = [len(splits.of(name)) for name in SPLITS]
    if sum(counts) + len(splits.dropped) != len(dataset):
        raise AssertionError(f"{counts} and {len(splits.dropped)} dropped of {len(dataset)}")
