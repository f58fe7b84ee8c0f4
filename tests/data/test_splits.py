"""Splits: nothing leaks, nothing moves, given splits hold."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import dataset_of, distinct

from poise.data.splits import SPLITS, Splits, split, split_groups
from poise.errors import DataError, UsageError

SHARES = (0.8, 0.1, 0.1)


def sides(splits: Splits) -> dict[int, str]:
    return {int(i): name for name in SPLITS for i in splits.of(name)}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 200), st.integers(0, 9))
def test_adding_files_moves_nothing(first: int, added: int, seed: int) -> None:
    keys = list(range(first, first + 300))
    more = [*keys, *(k + 1000 for k in keys[:added]), *keys[:added:3]]  # new images and copies
    before = sides(split(dataset_of(distinct(keys)), SHARES, seed))
    after = sides(split(dataset_of(distinct(more)), SHARES, seed))
    assert all(after[i] == side for i, side in before.items())


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 4)), min_size=10, max_size=120),
    st.integers(0, 1000),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_no_image_is_on_two_sides(rows, seed: int, with_given: bool, random) -> None:
    keys, labels = [key for key, _ in rows], [label for _, label in rows]
    given_splits = [random.choice(SPLITS) for _ in rows] if with_given else None
    data = dataset_of(distinct(keys), labels, given_splits)
    try:
        result = split(data, SHARES, seed)
    except DataError:
        assert len(set(keys)) < 3 or with_given
        return
    where: dict[int, set[str]] = {}
    for index, side in sides(result).items():
        where.setdefault(keys[index], set()).add(side)
    assert all(len(found) == 1 for found in where.values())
    assert sorted([*sides(result), *(i for i, _ in result.dropped)]) == list(range(len(rows)))
    assert all(len(result.of(name)) for name in SPLITS)
    if given_splits:
        # a split whose images all have a copy in a stronger one is gone, and is made anew
        left = {given_splits[index] for index in sides(result)}
        for index, side in sides(result).items():
            assert given_splits[index] in (side, "train")
            assert side == "train" or given_splits[index] == side or side not in left
    else:
        assert not result.dropped


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 14), min_size=2, max_size=8), st.integers(0, 100))
def test_small_classes(sizes: list[int], seed: int) -> None:
    labels = [k for k, size in enumerate(sizes) for _ in range(size)]
    if len(labels) < 10 or max(sizes) < 4:
        return
    result = split(dataset_of(distinct(list(range(len(labels)))), labels), SHARES, seed)
    per_class = {name: np.bincount(np.array(labels)[result.of(name)], minlength=len(sizes))
                 for name in SPLITS}  # fmt: skip
    assert per_class["train"].min() >= 1
    for k, size in enumerate(sizes):
        if size >= 10:
            assert per_class["val"][k] >= 1 and per_class["test"][k] >= 1


def test_shares_are_kept_in_expectation_and_seeds_differ() -> None:
    data = dataset_of(distinct(list(range(5000))))
    first, second = split(data, SHARES, 0), split(data, SHARES, 1)
    for name, share in zip(SPLITS, SHARES, strict=True):
        assert abs(len(first.of(name)) / 5000 - share) < 0.02
    assert set(first.val) != set(second.val)
    none = split(data, (0.9, 0.1, 0.0), 0)
    assert len(none.test) == 0


def test_the_order_of_files_does_not_matter() -> None:
    keys = list(range(200))
    forward = sides(split(dataset_of(distinct(keys)), SHARES, 0))
    backward = sides(split(dataset_of(distinct(keys[::-1])), SHARES, 0))
    assert all(forward[i] == backward[199 - i] for i in keys)


def test_equal_after_resizing_counts_as_equal() -> None:
    data = dataset_of(distinct([*range(100), *range(100)]))
    hashes = (*data.hashes[:100], *(f"{h[::-1]}" for h in data.hashes[:100]))
    object.__setattr__(data, "hashes", hashes)
    found = sides(split(data, SHARES, 0))
    assert all(found[i] == found[i + 100] for i in range(100))


@pytest.mark.parametrize("names", [("train", "test"), ("train", "val"), ("train",)])
def test_given_splits_are_completed_from_training(names: tuple[str, ...]) -> None:
    given_splits: list[str | None] = [names[i % len(names)] for i in range(3000)]
    result = split(dataset_of(distinct(list(range(3000))), None, given_splits), SHARES, 0)
    found = sides(result)
    for index, name in enumerate(given_splits):
        assert found[index] == name or (name == "train" and found[index] not in names)
    training = given_splits.count("train")
    for name in {"val", "test"} - set(names):
        share = 0.1 / (0.8 + 0.1 * len({"val", "test"} - set(names)))
        assert abs(len(result.of(name)) / training - share) < 0.025


def test_a_copy_given_to_two_splits_is_dropped_from_the_weaker() -> None:
    keys = [*range(20), 0, 1, 2]
    given_splits: list[str | None] = ["train"] * 18 + ["val", "test", "test", "val", "val"]
    keys[20], keys[21], keys[22] = 0, 1, 19  # test copies train 0, val copies 1, val copies test
    data = dataset_of(distinct(keys), None, given_splits)
    result = split(data, SHARES, 0)
    reasons = dict(result.dropped)
    assert sorted(reasons) == [0, 1, 22]
    assert "00020.png" in reasons[0] and "given to test" in reasons[0]
    assert "00019.png" in reasons[22]
    assert {19, 20} <= set(result.test) and {18, 21} == set(result.val)
    as_json = result.to_json(data)
    assert as_json["dropped"][0]["path"] == "00000.png" and as_json["val"][0] == "00018.png"


def test_too_few_different_images() -> None:
    with pytest.raises(DataError, match="are only 1 group that must stay"):
        split(dataset_of(distinct([5] * 40)), SHARES, 0)


def test_unknown_split() -> None:
    with pytest.raises(UsageError, match="Did you mean 'train'"):
        split(dataset_of(distinct(list(range(50)))), SHARES, 0).of("trian")


@settings(max_examples=40, deadline=None)
@given(st.integers(100, 300), st.integers(0, 60), st.integers(0, 99), st.integers(0, 99))
def test_groups_stay_together_and_new_items_move_none(kinds, added, seed, drawn) -> None:
    groups = np.random.default_rng(drawn).integers(0, kinds, 500).tolist()
    more = [*groups, *range(1000, 1000 + added), *groups[:added]]  # new groups, and old ones grow
    before, after = (
        split_groups(those, [f"group {k}" for k in those], None, [None] * len(those), SHARES, seed)
        for those in (groups, more)
    )
    assert after.sides[: len(groups)] == before.sides
    together: dict[int, set[str | None]] = {}
    for group, side in zip(more, after.sides, strict=True):
        together.setdefault(group, set()).add(side)
    assert all(len(sides) == 1 and None not in sides for sides in together.values())


def test_a_group_given_to_two_splits_stays_in_the_stronger() -> None:
    given_splits = ["train"] * 30 + ["val", "test", None]
    roots = [*range(30), 3, 3, 3]
    made = split_groups(roots, [str(k) for k in roots], None, given_splits, SHARES, 0)
    assert made.sides[31] == "test" and made.dropped == {3: 31, 30: 31, 32: 31}
    assert [made.sides[i] for i in (3, 30, 32)] == [None] * 3


@pytest.mark.parametrize(
    ("roots", "text"),
    [
        ([0], "only 1 different image;"),
        ([0, 1], "only 2 different images;"),
        ([0, 0, 2], "3 images that are kept are only 2 groups that each must stay together"),
    ],
)
def test_why_nothing_is_left_for_a_split(roots: list[int], text: str) -> None:
    keys, given = [str(n) for n in range(len(roots))], [None] * len(roots)
    with pytest.raises(DataError, match=text):
        split_groups(roots, keys, None, given, (0.8, 0.1, 0.1), 0)
