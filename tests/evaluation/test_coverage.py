"""Precision, recall, density and coverage against prdc and exact null values."""

import contextlib
import io
import warnings

import numpy as np
import pytest

from poise.errors import DataError, UsageError
from poise.evaluation.coverage import (
    coverage_estimates,
    coverage_null,
    precision_recall_density_coverage,
    rarity,
    rarity_summary,
    realism,
)


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
    with pytest.raises(UsageError, match="k = 10"):
        realism(x, x, 10)
    with pytest.raises(UsageError, match="k = 10"):
        rarity(x, x, 10)


def test_copies_that_set_a_radius_lie_outside_whatever_the_offset_and_the_blocks(monkeypatch):
    rng = np.random.default_rng(0)
    grid = rng.integers(0, 4, (200, 6)).astype(np.float64)  # whole numbers: distances are exact
    fake = np.concatenate([grid[:60], rng.integers(0, 4, (90, 6))]).astype(np.float64)
    d2 = np.square(grid[:, None] - grid).sum(2) + np.diag(np.full(200, np.inf))
    r2 = np.sort(d2, axis=1)[:, 2]
    inside = np.square(grid[:, None] - fake).sum(2) < r2[:, None]
    for rows in (512, 19):
        monkeypatch.setattr("poise.evaluation.distances.ROWS", rows)
        for offset in (0, 1 / 3, 100.7):
            found = precision_recall_density_coverage(grid + offset, fake + offset, 3)
            assert found["precision"] == pytest.approx(inside.any(0).mean(), abs=1e-12)
            assert found["density"] == pytest.approx(inside.sum() / 3 / 150, abs=1e-12)
            assert found["coverage"] == pytest.approx(inside.any(1).mean(), abs=1e-12)
    assert precision_recall_density_coverage(np.ones((9, 2)), np.ones((9, 2)), 3) == dict.fromkeys(
        ("precision", "recall", "density", "coverage"), 0
    )


def test_errors_are_the_spread_over_repeats_of_either_set():
    """Away from 0 and 1, where the jackknife is not stretched."""
    n, m, d, k = 160, 200, 32, 3

    def draw_real(rng):
        return rng.normal(size=(n, d))

    def draw_fake(rng):
        return 0.95 * rng.normal(size=(m, d)) + 0.3

    spread = {"samples_error": {}, "reference_error": {}}
    found = []
    for fixed in range(4):
        rng = np.random.default_rng(fixed)
        real, fake = draw_real(rng), draw_fake(rng)
        own = [coverage_estimates(real, draw_fake(rng), k) for _ in range(16)]
        other = [coverage_estimates(draw_real(rng), fake, k) for _ in range(16)]
        found += own + other
        for which, repeats in (("samples_error", own), ("reference_error", other)):
            for name in repeats[0]:
                variance = np.var([e[name].value for e in repeats], ddof=1)
                spread[which].setdefault(name, []).append(variance)
    for which, names in spread.items():
        for name, variances in names.items():
            simulated = np.sqrt(np.mean(variances))
            claimed = np.sqrt(np.mean([getattr(e[name], which) ** 2 for e in found]))
            assert 0.75 < claimed / simulated < 1.45, (name, which, claimed / simulated)


def test_errors_near_one_are_at_most_too_large():
    rng = np.random.default_rng(0)
    found = [
        coverage_estimates(rng.normal(size=(300, 8)), rng.normal(size=(300, 8))) for _ in range(60)
    ]
    for name in found[0]:
        claimed = np.mean([np.hypot(e[name].samples_error, e[name].reference_error) for e in found])
        assert 0.75 < claimed / np.std([e[name].value for e in found]) < 2.5


def test_few_images_have_estimates_too():
    rng = np.random.default_rng(0)
    found = coverage_estimates(rng.normal(size=(4, 2)), rng.normal(size=(7, 2)), 3)
    assert all(np.isfinite([e.value, *e.interval()]).all() for e in found.values())


def test_realism_and_rarity_follow_their_definitions(monkeypatch):
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(130, 5)) + 50, 1.3 * rng.normal(size=(90, 5)) + 50
    d = np.linalg.norm(real[:, None] - real, axis=2) + np.diag(np.full(130, np.inf))
    r = np.sort(d, axis=1)[:, 2]
    d = np.linalg.norm(real[:, None] - fake, axis=2)
    kept = r <= np.sort(r)[64]
    expected = (r[kept, None] / d[kept]).max(0)
    rare = np.where(d < r[:, None], r[:, None], np.inf).min(0)
    for rows in (512, 37):
        monkeypatch.setattr("poise.evaluation.distances.ROWS", rows)
        assert realism(real, fake) == pytest.approx(expected, rel=1e-9)
        found = rarity(real, fake)
        assert (np.isnan(found) == np.isinf(rare)).all() and np.isnan(found).any()
        assert found[~np.isnan(found)] == pytest.approx(rare[np.isfinite(rare)], rel=1e-9)
        assert np.isnan(found).mean() == pytest.approx(
            1 - precision_recall_density_coverage(real, fake, 3)["precision"]
        )
    assert rarity_summary(found) == {
        "median": pytest.approx(np.median(rare[np.isfinite(rare)])),
        "outside": pytest.approx(np.isinf(rare).mean()),
    }
    assert np.isnan(rarity_summary(np.array([np.nan]))["median"])


def test_a_copy_has_endless_realism_and_sparse_regions_are_rare():
    rng = np.random.default_rng(4)
    dense, sparse = rng.normal(size=(300, 2)), 100 + 10 * rng.normal(size=(100, 2))
    real = np.concatenate([dense, sparse])
    kept = realism(real, real)
    assert np.isinf(kept[:150]).any() and (kept > 0).all()
    found = rarity(real, np.concatenate([rng.normal(size=(50, 2)), 100 + rng.normal(size=(50, 2))]))
    assert np.nanmax(found[:50]) < np.nanmin(found[50:])
