"""The Vendi score against closed forms and repeats, and groups against planted shares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import DataError, UsageError
from poise.evaluation.diversity import groups, vendi

KINDS = np.repeat(np.eye(4), [4, 2, 1, 1], axis=0)


@pytest.mark.parametrize(("q", "expected"), [(1, 3.363586), (2, 2.909091)])
@pytest.mark.parametrize("repeats", [1, 3])  # as many rows as matter for either form
def test_vendi_of_one_hot_features_is_the_effective_number(q, expected, repeats):
    for width in (4, 100):
        x = np.pad(3 * KINDS, ((0, 0), (0, width - 4)))
        assert vendi(np.tile(x, (repeats, 1)), q).value == pytest.approx(expected, abs=1e-6)


def test_vendi_follows_its_definition_from_the_similarities():
    x = np.random.default_rng(0).normal(size=(40, 12))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    p = np.linalg.eigvalsh(unit @ unit.T / 40)
    p = p[p > 1e-12]
    assert vendi(x).value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-10)
    assert vendi(x, 0.5).value == pytest.approx((p**0.5).sum() ** 2, rel=1e-8)
    assert vendi(x, 2).value == pytest.approx(1 / np.square(unit @ unit.T / 40).sum(), rel=1e-10)
    assert vendi(x, 1 + 1e-6).value == pytest.approx(vendi(x).value, rel=1e-5)


@given(st.integers(2, 30), st.integers(1, 30), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_vendi_stays_in_its_range_and_ignores_scale_order_and_rotation(n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + 0.1
    found = vendi(x)
    assert 1 - 1e-9 <= found.value <= min(n, d) + 1e-9 and found.samples_error >= 0
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
    other = vendi(rng.permutation(x * rng.uniform(0.5, 2, (n, 1))) @ turn)
    assert other.value == pytest.approx(found.value, rel=1e-8)
    assert other.samples_error == pytest.approx(found.samples_error, abs=1e-6 * n)


@pytest.mark.parametrize("q", [1, 2])
def test_the_error_of_vendi_is_that_of_repeats(q):
    p = np.array([30, 20, 10, 10, 10, 10, 5, 5]) / 100
    draws = {
        "kinds": lambda rng: np.eye(8)[rng.choice(8, 400, p=p)],
        "continuous": lambda rng: rng.normal(size=(400, 16)) / np.arange(1, 17),
        "fewer rows": lambda rng: rng.normal(size=(150, 200)) / np.arange(1, 201),
    }
    for draw in draws.values():
        found = [vendi(draw(np.random.default_rng(i)), q) for i in range(60)]
        spread = np.std([e.value for e in found], ddof=1)
        assert np.mean([e.samples_error for e in found]) == pytest.approx(spread, rel=0.3)
        assert all(np.isnan(e.reference_error) for e in found)


def test_vendi_grows_with_the_number_of_rows():
    x = np.random.default_rng(0).normal(size=(5000, 64))
    assert [round(vendi(x[:n]).value) for n in (50, 500, 5000)] == pytest.approx(
        [34.4, 60.1, 63.6], abs=1
    )


def test_vendi_refuses_what_has_no_direction():
    with pytest.raises(DataError, match="zeros"):
        vendi(np.zeros((3, 2)))
    with pytest.raises(UsageError, match="order q = 0"):
        vendi(KINDS, 0)


def blobs(counts, seed=0):
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(len(counts))
    return np.repeat(centres, counts, axis=0) + rng.normal(size=(sum(counts), len(counts)))


def test_groups_count_planted_shares_and_judge_them():
    reference, samples = blobs([400, 300, 200, 100]), blobs([450, 60, 200, 300], 1)
    g = groups(reference, samples, 4)
    assert g.reference.tolist() == [400, 300, 200, 100]
    assert g.samples.tolist() == [450, 60, 200, 300]
    assert g.under.tolist() == [False, True, False, False]
    assert g.over.tolist() == [False, False, False, True]
    a, b = np.array([300 / 1000, 60 / 1010])
    pooled = 360 / 2010
    z = (b - a) / np.sqrt(pooled * (1 - pooled) * (1 / 1000 + 1 / 1010))
    assert g.z[1] == pytest.approx(z, rel=1e-12)
    kinds = np.repeat(np.arange(4), [400, 300, 200, 100])
    assert kinds[g.nearest].tolist() == [0, 1, 2, 3]
    distance = np.linalg.norm(reference[:400] - reference[:400].mean(0), axis=1)
    assert g.nearest[0] == distance.argmin()


def test_groups_cry_wolf_seldom_though_the_dimensions_are_many():
    alarms = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        scale = 1 / np.sqrt(np.arange(1, 201))
        g = groups(rng.normal(size=(400, 200)) * scale, rng.normal(size=(1000, 200)) * scale)
        assert len(g.reference) <= 20
        alarms.append(g.different.any())
    assert sum(alarms) <= 3


def test_groups_are_the_same_for_any_number_of_threads():
    reference, samples = blobs([100] * 5), blobs([100] * 5, 1)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(groups(reference, samples))
    finally:
        torch.set_num_threads(before)
    assert (found[0].samples == found[1].samples).all()
    assert (found[0].nearest == found[1].nearest).all()


def test_groups_of_few_different_images():
    reference = np.repeat(np.eye(2), [30, 10], axis=0)
    g = groups(reference, np.eye(2), 10)
    assert g.reference.tolist() == [30, 10] and g.samples.tolist() == [1, 1]
    one = groups(np.ones((30, 2)), np.ones((5, 2)))
    assert one.reference.tolist() == [30] and not one.different.any()
    with pytest.raises(UsageError, match="41 groups of 40"):
        groups(reference, reference, 41)
