"""Fréchet and kernel distances against their closed forms for Gaussians."""

import numpy as np
import pytest

from poise.errors import DataError
from poise.evaluation.fidelity import frechet_distance, kernel_distance, moments


def _bias(eigenvalues: np.ndarray, n: int, m: int) -> float:
    """First-order bias of the Fréchet distance of two samples of one Gaussian."""
    l = eigenvalues  # noqa: E741
    pairs = np.outer(l, l) * (1 + np.eye(len(l))) / (l[:, None] + l)
    return (1 / n + 1 / m) * (l.sum() + pairs.sum() / 2)


def test_moments_equal_numpy_despite_a_large_offset():
    x = np.random.default_rng(0).normal(size=(500, 6)) + 1e6
    m, S = moments(x)
    np.testing.assert_allclose(m, x.mean(0), rtol=1e-14)
    np.testing.assert_allclose(S, np.cov(x - 1e6, rowvar=False), atol=1e-8)


def test_frechet_distance_of_sets_with_known_moments_is_the_closed_form():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 5))
    m, S = moments(z)
    white = (z - m) @ np.linalg.inv(np.linalg.cholesky(S)).T  # mean 0, covariance I exactly
    a, b = np.array([1, 2, 3, 4, 5.0]), np.array([2, 2, 1, 4, 9.0])
    Q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    fd = frechet_distance(white * np.sqrt(a) @ Q, (white[:, ::-1] * np.sqrt(b) + 0.5) @ Q)
    assert fd == pytest.approx(5 * 0.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-9)


def test_frechet_distance_of_equal_distributions_is_its_bias():
    rng = np.random.default_rng(2)
    l = 1 / np.arange(1, 17)  # noqa: E741
    draws = [
        frechet_distance(*(rng.normal(size=(500, 16)) * np.sqrt(l) for _ in range(2)))
        for _ in range(60)
    ]
    error = np.std(draws) / np.sqrt(len(draws))
    assert abs(np.mean(draws) - _bias(l, 500, 500)) < 4 * error + 0.01 * _bias(l, 500, 500)


def test_frechet_distance_of_identical_rank_deficient_sets_is_zero():
    x = np.random.default_rng(3).normal(size=(20, 64))
    assert 0 <= frechet_distance(x, x) < 1e-5 * x.var(0).sum()


def _expected_kernel(m1, S1, m2, S2):
    d, m = len(m1), m1 @ m2
    quadratic = m1 @ S2 @ m1 + m2 @ S1 @ m2 + np.trace(S1 @ S2)
    e1, e2 = m / d, (quadratic + m**2) / d**2
    e3 = (m**3 + 3 * m * quadratic + 6 * m2 @ S1 @ S2 @ m1) / d**3
    return e3 + 3 * e2 + 3 * e1 + 1


def test_kernel_distance_is_unbiased_for_the_closed_form():
    d, rng = 32, np.random.default_rng(4)
    S1 = np.diag(1 / np.arange(1, d + 1))
    m1, m2, S2 = np.full(d, 0.3), np.full(d, 0.35), 1.5 * S1
    truth = (
        _expected_kernel(m1, S1, m1, S1)
        + _expected_kernel(m2, S2, m2, S2)
        - 2 * _expected_kernel(m1, S1, m2, S2)
    )
    assert truth == pytest.approx(0.012829, abs=1e-6)
    draws = [
        kernel_distance(
            rng.normal(size=(1000, d)) * np.sqrt(np.diag(S1)) + m1,
            rng.normal(size=(1000, d)) * np.sqrt(np.diag(S2)) + m2,
        )
        for _ in range(40)
    ]
    assert abs(np.mean(draws) - truth) < 4 * np.std(draws) / np.sqrt(len(draws))


def test_kernel_distance_in_blocks_equals_the_whole_matrix(monkeypatch):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(300, 8)), rng.normal(size=(170, 8)) + 0.2

    def k(a, b):
        return (a @ b.T / 8 + 1) ** 3

    whole = (k(x, x).sum() - np.trace(k(x, x))) / (300 * 299)
    whole += (k(y, y).sum() - np.trace(k(y, y))) / (170 * 169) - 2 * k(x, y).mean()
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)
    monkeypatch.setattr("poise.evaluation.distances.ROWS", 64)
    assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("other", "message"),
    [
        (np.zeros((5, 4)), "4 dimensions beside others of 3"),
        (np.zeros((1, 3)), "at least two rows"),
        (np.full((5, 3), np.nan), "not finite"),
        (np.zeros(5), "shape"),
    ],
)
def test_bad_features_are_named(distance, other, message):
    with pytest.raises(DataError, match=message):
        distance(np.zeros((5, 3)), other)
