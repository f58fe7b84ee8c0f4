"""Labels and captions with planted truth."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from poise.audit.content.labels import (
    class_counts,
    describe_captions,
    describe_labels,
    entropy_bits,
)

CLASSES = ["ant", "bee", "cat", "dog"]


def separable(per_class: int = 150) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), per_class)
    x = np.eye(12)[labels] + 0.15 * rng.normal(size=(len(labels), 12))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels


def judge(features, labels, classes=CLASSES, digests=None, usable=None):  # type: ignore[no-untyped-def]
    names = [f"{i}.png" for i in range(len(labels))]
    usable = np.ones(len(labels), bool) if usable is None else usable
    found = describe_labels(names, labels, classes, features, usable, digests or names)
    assert found is not None
    return found


def test_entropy_is_exact() -> None:
    assert entropy_bits([4, 2, 1, 1]) == 1.75
    assert entropy_bits([8, 8, 8, 8]) == 2
    assert entropy_bits([5, 0]) == 0
    assert entropy_bits([]) == 0
    p = 950 / 1000
    exact = -p * math.log2(p) - (1 - p) * math.log2(1 - p)
    assert entropy_bits([950, 50]) == pytest.approx(exact, abs=1e-15)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=8))
def test_entropy_lies_between_none_and_equal_shares(counts: list[int]) -> None:
    assert 0 <= entropy_bits(counts) <= math.log2(len(counts)) + 1e-12
    assert entropy_bits([*counts, 0]) == entropy_bits(counts)


def test_counts_and_balance() -> None:
    labels = np.repeat([0, 1, 2, 3], [40, 20, 10, 11])
    labels[-1] = -1
    usable = np.ones(81, bool)
    assert class_counts(labels, CLASSES, usable) == {"ant": 40, "bee": 20, "cat": 10, "dog": 10}
    found = judge(np.eye(81, dtype=np.float32), labels)
    assert found["entropy"] == 1.75
    assert found["entropy_max"] == 2
    assert found["effective_classes"] == 2**1.75
    assert found["largest"] == ["ant", 40] and found["smallest"][1] == 10
    assert found["tiny"] == ["cat", "dog"]
    usable[:40] = False
    assert class_counts(labels, CLASSES, usable)["ant"] == 0


def test_no_classes_no_facts() -> None:
    f, usable = np.eye(3, dtype=np.float32), np.ones(3, bool)
    assert describe_labels(list("abc"), None, [], f, usable, list("abc")) is None
    assert class_counts(None, [], usable) == {}


def test_flipped_labels_are_found_and_right_ones_left_alone() -> None:
    features, labels = separable()
    rng = np.random.default_rng(1)
    flipped = rng.choice(len(labels), 12, replace=False)  # 2 %
    labels[flipped] = (labels[flipped] + rng.integers(1, 4, 12)) % 4
    found = judge(features, labels)
    suspects = {int(row["path"][:-4]) for row in found["suspects"]}
    assert suspects == set(flipped.tolist())
    assert found["suspect_count"] == 12
    assert found["neighbour_accuracy"] == pytest.approx(588 / 600, abs=0.002)
    for row in found["suspects"]:
        index = int(row["path"][:-4])
        assert row["label"] == CLASSES[labels[index]]
        assert row["neighbours"] == CLASSES[index // 150]
        assert row["share"] >= 0.9
    shares = [row["share"] for row in found["suspects"]]
    assert shares == sorted(shares, reverse=True)


def test_nothing_is_said_where_the_features_do_not_know_the_classes() -> None:
    features, labels = separable()
    labels = np.random.default_rng(2).permutation(labels)
    found = judge(features, labels)
    assert found["suspects"] == [] and found["suspect_count"] == 0
    assert found["neighbour_accuracy"] < 0.4
    assert "cannot judge" in found["note"]
    assert found["unjudged"] == CLASSES


def test_classes_that_look_alike_are_neither_accused_nor_believed() -> None:
    features, labels = separable()
    mixed = labels >= 2
    labels[mixed] = 2 + np.random.default_rng(3).integers(0, 2, int(mixed.sum()))
    labels[0], labels[200] = 1, 2  # one flip between known classes, one into an unknown one
    found = judge(features, labels)
    assert set(found["unjudged"]) == {"cat", "dog"}
    assert [row["path"] for row in found["suspects"]] == ["0.png"]


def test_a_small_class_beside_a_dominant_one_is_not_called_wrong() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 12))
    labels = (np.arange(400) >= 380).astype(np.int64)
    found = judge((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), labels)
    assert found["neighbour_accuracy"] > 0.9  # always naming the large class is right so often
    assert found["suspects"] == []
    assert found["note"]


def test_copies_do_not_vouch_for_one_another() -> None:
    features, labels = separable()
    # Twelve copies of one ant, all called bees: by themselves they would be each other's proof.
    features[:12] = features[0]
    labels[:12] = 1
    digests = ["same"] * 12 + [f"{i}" for i in range(12, 600)]
    found = judge(features, labels, digests=digests)
    assert {row["path"] for row in found["suspects"]} == {f"{i}.png" for i in range(12)}
    assert found["voters"] == 589
    labels[:6] = 0  # the same picture under two labels: it votes for none
    assert judge(features, labels, digests=digests)["voters"] == 588


def test_broken_images_neither_vote_nor_are_judged() -> None:
    features, labels = separable()
    labels[5] = 3
    usable = np.ones(600, bool)
    usable[5] = False
    found = judge(features, labels, usable=usable)
    assert found["suspects"] == [] and found["voters"] == 599


def test_too_few_images_or_classes_are_not_judged() -> None:
    features, labels = separable(8)
    assert "too few" in judge(features, labels)["note"]
    features, labels = separable()
    assert "only one class" in judge(features, labels * 0)["note"]
    everything = judge(features, labels * 0, classes=["ant"])
    assert everything["entropy"] == 0 and everything["neighbour_accuracy"] is None


def test_captions() -> None:
    names = list("abcdefg")
    captions = ["A cat", " a cat ", None, "  ", "dog", "dog", "broken"]
    usable = np.array([True] * 6 + [False])
    assert describe_captions(names, captions, usable) == {
        "captioned": 4,
        "empty": ["c", "d"],
        "empty_count": 2,
        "repeated": [{"caption": "A cat", "count": 2}, {"caption": "dog", "count": 2}],
        "distinct": 2,
    }
    assert describe_captions(names, [None] * 7) is None
