"""Copies planted among novel samples are found; without copies nothing is."""

import json

import numpy as np
import pytest

from poise.errors import DataError
from poise.evaluation.memorisation import (
    benjamini_hochberg,
    conformal_p,
    copy_report,
    nearest,
)


def _mixture(rng, n):
    centres = 3 * np.random.default_rng(99).normal(size=(10, 32))
    return centres[rng.integers(10, size=n)] + rng.normal(size=(n, 32))


def test_nearest_equals_brute_force_in_any_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    train, queries = rng.normal(size=(300, 7)) + 1e3, rng.normal(size=(90, 7)) + 1e3
    queries[3] = train[42]
    brute = np.linalg.norm(queries[:, None] - train, axis=2)
    for rows in (2048, 50):
        monkeypatch.setattr("poise.evaluation.distances.ROWS", rows)
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


def test_p_values_and_step_up_rule_by_hand():
    p = conformal_p(np.array([3.0, 1.0, 2.0, 4.0]), np.array([0.5, 1.0, 3.5, 9.0]))
    np.testing.assert_allclose(p, [0.2, 0.4, 0.8, 1.0])
    # Thresholds .02, .04, .06, .08, .1: the fourth passes, which carries the third (.07) with it.
    p = np.array([0.5, 0.07, 0.01, 0.03, 0.075])
    np.testing.assert_array_equal(benjamini_hochberg(p, 0.1), [1, 2, 3, 4])
    assert len(benjamini_hochberg(np.array([0.5, 0.2]), 0.1)) == 0


def test_detectable_from_is_the_smallest_number_that_can_be_flagged():
    rng = np.random.default_rng(8)
    train, val = rng.normal(size=(400, 16)), rng.normal(size=(99, 16))
    fewest = copy_report(train, val, rng.normal(size=(200, 16)) + 9)["detectable_from"]
    assert fewest == 20
    for copies, flagged in ((fewest - 1, 0), (fewest, fewest)):
        samples = np.concatenate([train[:copies], rng.normal(size=(200 - copies, 16)) + 9])
        assert copy_report(train, val, samples)["flagged"] == flagged


def test_bad_input_is_named():
    x = np.zeros((5, 3))
    with pytest.raises(DataError, match="samples features of 4 dimensions"):
        copy_report(x, x, np.zeros((5, 4)))
    with pytest.raises(DataError, match="queries features that are not finite"):
        nearest(x, np.full((5, 3), np.inf))
