"""Precision, recall, density and coverage against prdc and exact null values."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from poise.errors import DataError, UsageError
from poise.evaluation.coverage import coverage_null, precision_recall_density_coverage


@pytest.mark.parametrize(
    ("n", "m", "d", "k", "offset"), [(300, 200, 4, 5, 0), (150, 400, 32, 3, 300), (90, 90, 2, 1, 0)]
)
def test_equals_prdc(monkeypatch, n, m, d, k, offset):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prdc import compute_prdc
    rng = np.random.default_rng(n)
    real = rng.normal(size=(n, d)) + offset
    fake = 1.1 * rng.normal(size=(m, d)) + offset + 0.1
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        theirs = compute_prdc(real, fake, nearest_k=k)
    for rows in (2048, 37):
        monkeypatch.setattr("poise.evaluation.distances.ROWS", rows)
        ours = precision_recall_density_coverage(real, fake, k)
        assert ours == pytest.approx({name: float(theirs[name]) for name in ours}, abs=1e-9)


def test_a_single_point_repeated_has_precision_but_no_coverage():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(1000, 8))
    fake = np.repeat(real[:1] * 0.1, 1000, axis=0)
    found = precision_recall_density_coverage(real, fake)
    assert found["precision"] == 1 and found["recall"] == 0 and found["coverage"] < 0.1


def test_coverage_null_is_the_printed_values_and_the_simulated_mean():
    assert coverage_null(1000, 1000, 5) == pytest.approx(0.9690, abs=5e-5)
    assert coverage_null(1000, 1000, 3) == pytest.approx(0.8754, abs=5e-5)
    assert coverage_null(1000, 500, 5) == pytest.approx(0.8690, abs=5e-5)
    rng = np.random.default_rng(1)
    draws = [
        precision_recall_density_coverage(rng.normal(size=(200, 3)), rng.normal(size=(100, 3)))
        for _ in range(60)
    ]
    coverage = np.array([d["coverage"] for d in draws])
    density = np.array([d["density"] for d in draws])
    assert abs(coverage.mean() - coverage_null(200, 100, 5)) < 4 * coverage.std() / 60**0.5
    assert density.mean() == pytest.approx(1, abs=4 * density.std() / 60**0.5)


def test_bad_input_is_refused():
    x = np.zeros((10, 2))
    for k in (0, 10):
        with pytest.raises(UsageError, match=f"k = {k} neighbours"):
            precision_recall_density_coverage(x, x, k)
    with pytest.raises(DataError, match="fake features of 3 dimensions"):
        precision_recall_density_coverage(x, np.zeros((10, 3)))
    with pytest.raises(UsageError, match="k = 5"):
        coverage_null(5, 10, 5)
