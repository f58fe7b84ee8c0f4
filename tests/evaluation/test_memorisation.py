"""Copies planted among novel samples are found; without copies nothing is."""

import json

import numpy as np
import pytest
from copy_bench import copy_report
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from poise.errors import DataError
from poise.evaluation.memorisation import (
    benjamini_hochberg,
    p_values,
    search,
    surroundings,
)


def nearest(train, queries):
    found = search(train, queries, 1)
    return found.distances[:, 0], found.indices[:, 0]


def _mixture(rng, n):
    centres = 3 * np.random.default_rng(99).normal(size=(10, 32))
    return centres[rng.integers(10, size=n)] + rng.normal(size=(n, 32))


def test_nearest_equals_brute_force_in_any_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(300, 7)) + 1e3, rng.normal(size=(90, 7)) + 1e3
    queries[3] = train[42]
    brute = np.linalg.norm(queries[:, None] - train, axis=2)
    for rows in (2048, 50):
        monkeypatch.setattr("poise.evaluation.memorisation._ROWS", rows)
        monkeypatch.setattr("poise.evaluation.memorisation._COLUMNS", rows)
        d, index = nearest(train, queries)
        np.testing.assert_array_equal(index, brute.argmin(1))
        np.testing.assert_allclose(d, brute.min(1), rtol=1e-10)
        assert d[3] == 0


def test_planted_copies_are_flagged_with_few_false_alarms():
    false, power = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        train, val, samples = (_mixture(rng, 2000) for _ in range(3))
        samples[:100] = train[500:600]
        samples[100:200] = train[700:800] + 0.3 * rng.normal(size=(100, 32))
        report = copy_report(train, val, samples)
        flagged = np.array(report["flagged_indices"])
        false.append((flagged >= 200).mean())
        power.append((flagged < 200).sum() / 200)
        assert report["exact_duplicates"] == 100
        assert report["flagged"] == len(flagged)
        of_train = dict(zip(flagged, report["flagged_train_indices"], strict=True))
        assert all(of_train[i] == 500 + i for i in range(100))
        assert report["suspicious"] >= 200 > 4 * report["suspicious_expected"]
        json.dumps(report, allow_nan=False)
    assert np.mean(false) < 0.15
    assert min(power) > 0.97


def test_without_copies_nothing_is_flagged():
    alarms = 0
    for seed in range(10):
        rng = np.random.default_rng(100 + seed)
        report = copy_report(*(_mixture(rng, 600) for _ in range(3)))
        alarms += report["flagged"] > 0
        assert report["median_ratio"] == pytest.approx(1, abs=0.05)
        assert report["exact_duplicates"] == 0
    assert alarms <= 4  # expected 1 of 10


def test_copying_everything_and_leaking_splits():
    rng = np.random.default_rng(7)
    train, val = _mixture(rng, 500), _mixture(rng, 200)
    report = copy_report(train, val, train[:300])
    assert report["median_ratio"] == 0 and report["flagged"] == 300
    assert copy_report(train, train[:200], val)["median_ratio"] is None


def test_neighbours_equal_brute_force_without_the_image_itself_and_its_views(monkeypatch):
    rng = np.random.default_rng(1)
    x = 1e4 + rng.normal(size=(120, 5))
    train, rows = np.concatenate([x, x[:, ::-1]]), np.array([0, 7, 119])
    monkeypatch.setattr("poise.evaluation.memorisation._COLUMNS", 100)
    found = search(train, x[rows], 30, own=rows, images=120)
    brute = np.linalg.norm(x[rows][:, None] - train, axis=2)
    brute[np.arange(3), rows] = brute[np.arange(3), rows + 120] = np.inf
    np.testing.assert_array_equal(found.indices, brute.argsort(1)[:, :30])
    np.testing.assert_allclose(found.distances, np.sort(brute, 1)[:, :30], rtol=1e-10)
    few = search(train[[0, 1, 120, 121]], x[:2], 50, own=np.arange(2), images=2)
    assert np.isfinite(few.distances).sum(1).tolist() == [2, 2]


def test_repeated_training_images_calibrate_once_and_not_by_each_other():
    rng = np.random.default_rng(2)
    x, samples = rng.normal(size=(60, 8)), rng.normal(size=(5, 8))
    repeated = np.concatenate([x, x[:20], x[:20]])
    once, thrice = (surroundings(t, None, samples).calibration() for t in (x, repeated))
    np.testing.assert_allclose(np.sort(thrice), np.sort(once), rtol=1e-12)
    assert len(surroundings(x, samples, samples).calibration()) == 65


def test_p_values_by_hand():
    calibration = np.exp(np.arange(19.0, -1.0, -1.0))
    # The lowest ten are fitted: exp(0) to exp(9) lie 10 to 1, on average 5.5, below exp(10).
    at_one = (1 + 0.25 * 10 / 5.5) ** -4
    at_half = (1 + 0.25 * (10 + np.log(2)) / 5.5) ** -4
    p = p_values(calibration, np.array([1e12, np.exp(19.0), 1.0, 0.5, 1e-300, 0.0]))
    np.testing.assert_allclose(
        p, [1, 1, 3 / 21, 2 / 21 * at_half / at_one, 2 / 2100, 2 / 2100], rtol=1e-12
    )
    np.testing.assert_allclose(p_values(np.zeros(9), np.zeros(1)), [1])


@given(st.integers(0, 2**32 - 1), st.integers(12, 300))
def test_p_values_rise_with_distance_and_do_not_depend_on_the_unit(seed, n):
    rng = np.random.default_rng(seed)
    calibration, d = rng.lognormal(size=n), np.sort(rng.lognormal(sigma=3, size=40))
    p = p_values(calibration, d)
    assert (np.diff(p) >= 0).all() and p[0] > 0 and p[-1] <= 1
    np.testing.assert_allclose(p_values(1e3 * calibration, 1e3 * d), p, rtol=1e-9)


def test_p_values_of_novel_images_are_rarely_small_even_beyond_the_resolution():
    """Distances whose cubes, or other powers, are uniform near 0, as those to points in space."""
    rng = np.random.default_rng(3)
    for power in (2.0, 10.0):
        small = np.zeros(3)
        for _ in range(400):
            calibration, d = (rng.random(n) ** (1 / power) for n in (150, 2000))
            small += [(p_values(calibration, d) <= at).mean() for at in (1e-3, 1e-2, 1e-1)]
        assert (small / 400 <= [1e-3, 1e-2, 1e-1]).all()


def test_the_step_up_rule_by_hand():
    # Thresholds .02, .04, .06, .08, .1: the fourth passes, which carries the third (.07) with it.
    p = np.array([0.5, 0.07, 0.01, 0.03, 0.075])
    np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), [1, 2, 3, 4])
    assert len(benjamini_hochberg(np.array([0.5, 0.2]), 0.1)) == 0


@pytest.mark.parametrize("held_out", [True, False])
def test_detectable_from_is_the_smallest_number_that_can_be_flagged(held_out):
    rng = np.random.default_rng(8)
    train, M = rng.normal(size=(80, 16)), 4000
    val = rng.normal(size=(20, 16)) if held_out else None
    fewest = copy_report(train, val, rng.normal(size=(M, 16)) + 9)["detectable_from"]
    assert fewest == (8 if held_out else 10)
    for copies, flagged in ((fewest - 1, 0), (fewest, fewest)):
        samples = np.concatenate([train[:copies], rng.normal(size=(M - copies, 16)) + 9])
        assert copy_report(train, val, samples)["flagged"] == flagged


def test_the_interval_of_the_share_is_clopper_and_pearsons():
    rng = np.random.default_rng(9)
    train, val = _mixture(rng, 500), _mixture(rng, 500)
    samples = np.concatenate([train[:10], 50 + _mixture(rng, 90)])
    report = copy_report(train, val, samples)
    # Nine of ten are no false alarms on average: roots of the binomial tails at 2.5 %.
    assert report["share"] == 0.1 and report["expected_false"] == pytest.approx(1)
    assert binom.sf(8, 100, report["share_low"]) == pytest.approx(0.025)
    assert binom.cdf(10, 100, report["share_high"]) == pytest.approx(0.025)
    assert report["calibration"] == {"held_out": 500, "left_out": 500}
    none = copy_report(train, val, 50 + _mixture(rng, 90))
    assert none["share_low"] == 0 < none["share_high"] < 0.05


def test_bad_input_is_named():
    x = np.zeros((5, 3))
    with pytest.raises(DataError, match="samples features of 4 dimensions"):
        copy_report(x, x, np.zeros((5, 4)))
    with pytest.raises(DataError, match="samples features that are not finite"):
        surroundings(x, None, np.full((5, 3), np.inf))
    with pytest.raises(DataError, match="5 training rows for 2 views"):
        copy_report(x, x, x, views=2)
