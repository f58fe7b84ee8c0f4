"""The Vendi score against closed forms; clusters and map of planted groups."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from poise.audit.content.clusters import (
    Clusters,
    cluster_kinds,
    cluster_of,
    components,
    find_clusters,
    flat_map,
    stable_order,
    usual_count,
)
from poise.audit.content.diversity import describe_diversity, is_saturated, vendi_curve, vendi_score


def unit(x: NDArray[np.float64]) -> NDArray[np.float32]:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def groups(sizes: list[int], spread: float = 0.02) -> NDArray[np.float32]:
    """Tight groups around orthogonal directions."""
    rng = np.random.default_rng(0)
    centres = np.repeat(np.eye(40)[: len(sizes)], sizes, 0)
    return unit(centres + spread * rng.normal(size=centres.shape))


@pytest.mark.parametrize(("n", "d"), [(1, 4), (7, 4), (7, 30)])
def test_identical_rows_score_one(n: int, d: int) -> None:
    row = np.random.default_rng(0).normal(size=(1, d))
    assert vendi_score(np.repeat(row, n, 0)) == pytest.approx(1)


def test_orthogonal_rows_score_their_number() -> None:
    assert vendi_score(np.eye(13)) == pytest.approx(13)
    assert vendi_score(np.eye(13)[:5]) == pytest.approx(5)
    assert vendi_score(np.zeros((0, 3))) == 0


def test_mixtures_of_orthogonal_rows_score_exp_of_the_entropy() -> None:
    # p = (1/2, 1/4, 1/8, 1/8): exp(1.75 ln 2) = 3.363586.
    assert vendi_score(np.repeat(np.eye(4), [4, 2, 1, 1], 0)) == pytest.approx(3.363586, abs=1e-6)


def test_two_rows_by_hand() -> None:
    # Eigenvalues of K / 2 are (1 +- cos) / 2.
    p = (1 + math.cos(0.7)) / 2
    expected = math.exp(-p * math.log(p) - (1 - p) * math.log(1 - p))
    assert vendi_score(np.array([[1, 0], [math.cos(0.7), math.sin(0.7)]])) == pytest.approx(
        expected
    )


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(2, 9), st.integers(1, 4), st.integers(0, 1000))
def test_copies_order_and_both_forms_do_not_matter(n: int, d: int, times: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d))
    score = vendi_score(x)
    assert 1 - 1e-9 <= score <= min(n, d) + 1e-9
    assert vendi_score(np.tile(x, (times, 1))) == pytest.approx(score)
    assert vendi_score(x[::-1] * 3) == pytest.approx(score)
    assert vendi_score(np.pad(x, ((0, 0), (0, 20)))) == pytest.approx(score)  # the other form


def test_the_curve_ends_when_nothing_new_comes() -> None:
    twelve = np.tile(np.eye(12, dtype=np.float32), (40, 1))
    curve = vendi_curve(twelve)
    assert [point["n"] for point in curve] == [50, 100, 200, 400, 480]
    assert curve[-1]["vendi"] == pytest.approx(12)
    assert is_saturated(curve)
    assert not is_saturated(vendi_curve(np.eye(480, dtype=np.float32)))
    assert not is_saturated(curve[:1])  # too few to tell
    assert not is_saturated([])


def test_classes_are_compared_at_equal_size_and_small_ones_are_named() -> None:
    names = [f"{i}.png" for i in range(100)]
    labels = np.repeat([0, 1, 2], [25, 65, 10])
    rows = np.eye(100, dtype=np.float32)
    rows[25:90] = rows[25]  # class 1: one picture
    found = describe_diversity(names, labels, ["a", "b", "c"], rows, np.ones(100, bool))
    curve = [{"n": 25, "vendi": 25.0}]
    assert found["classes"]["a"] == {"vendi": 25, "n": 25, "saturation": curve}
    assert found["classes"]["b"]["n"] == 25
    assert found["classes"]["b"]["vendi"] == pytest.approx(1, abs=1e-3)
    assert found["classes_left_out"] == ["c"]
    assert found["images_used"] == 100 and found["real_max"] == 100


def test_broken_images_count_for_nothing() -> None:
    features = groups([30, 30])
    names = [f"{i}.png" for i in range(60)]
    usable = np.arange(60) < 30
    found = describe_diversity(names, None, [], features, usable)
    assert found["vendi"] < 1.2
    assert sum(cluster["size"] for cluster in found["clusters"]) == 30
    assert {point["path"] for point in found["map"]} == set(names[:30])
    empty = describe_diversity(names, None, [], features, np.zeros(60, bool))
    assert empty["vendi"] == 0 and empty["clusters"] == [] and empty["map"] == []


def test_planted_groups_become_clusters_with_their_class_and_examples() -> None:
    sizes = [60, 50, 40, 30]
    names = [f"{i:03d}.png" for i in range(180)]
    labels = np.repeat(np.arange(4), sizes)
    features = groups(sizes)
    assert len(set(zip(find_clusters(features, 4).of, labels, strict=True))) == 4
    found = describe_diversity(names, labels, list("abcd"), features, np.ones(180, bool))
    assert sum(cluster["share"] for cluster in found["clusters"]) == pytest.approx(1, abs=1e-5)
    by_id = {cluster["id"]: cluster for cluster in found["clusters"]}
    for cluster in found["clusters"]:
        own = {names.index(path) for path in cluster["examples"]}
        assert {"abcd"[labels[i]] for i in own} == {cluster["class"]}
        assert 0 <= cluster["x"] <= 1 and 0 <= cluster["y"] <= 1
    for point in found["map"]:
        assert by_id[point["cluster"]]["class"] == "abcd"[labels[names.index(point["path"])]]


def test_everything_is_the_same_again() -> None:
    features = groups([30, 20, 10], 0.2)
    names = [f"{i}.png" for i in range(60)]
    usable = np.ones(60, bool)
    first = describe_diversity(names, None, [], features, usable)
    assert describe_diversity(names, None, [], features, usable) == first
    np.testing.assert_array_equal(cluster_of(features), cluster_of(features))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 31])
def test_sets_of_any_size_have_clusters_and_a_map(n: int) -> None:
    features = unit(np.random.default_rng(0).normal(size=(n, 8)))
    of = cluster_of(features)
    assert of.shape == (n,)
    assert flat_map(features).shape == (n, 2)
    same = np.repeat(features[:1], n, 0)
    assert set(cluster_of(same)) <= {0}
    assert np.isfinite(flat_map(same)).all()


def test_alike_images_lie_together_on_the_map() -> None:
    labels = np.repeat([0, 1, 2], 30)
    xy = flat_map(groups([30, 30, 30]))
    d = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(d, np.inf)
    assert (labels[d.argmin(1)] == labels).mean() > 0.97


def test_unusually_small_large_wide_and_narrow_clusters_are_named() -> None:
    sizes = [900, 100, 100, 90, 110, 100, 95, 105, 5]
    widths = [1, 1, 1.1, 0.9, 1, 20, 0.02, 1, 1]
    of = np.repeat(np.arange(9), sizes)
    kinds = cluster_kinds(Clusters(of, np.repeat(np.array(widths, float), sizes)))
    assert kinds == ["crowded", *["usual"] * 4, "near-empty", "crowded", "usual", "near-empty"]


def test_the_number_of_clusters_follows_the_images() -> None:
    assert [usual_count(n) for n in (0, 3, 8, 200, 60_000)] == [0, 3, 4, 10, 40]


def test_samples_are_nested_and_do_not_depend_on_the_order_of_the_names() -> None:
    names = [f"{i}.png" for i in range(50)]
    order = [names[i] for i in stable_order(names)]
    assert sorted(order) == sorted(names) and order != names
    assert [names[::-1][i] for i in stable_order(names[::-1])] == order
    more = [*names, "new.png"]
    assert [more[i] for i in stable_order(more) if more[i] != "new.png"] == order


def test_components_are_those_of_the_singular_values() -> None:
    x = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32) + 2
    s = np.linalg.svd(x - x.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.norm(components(x), axis=0), s, rtol=1e-4)
