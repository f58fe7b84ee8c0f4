"""Kernel distances against closed forms, the whole matrix, and other people's code."""

import math

import numpy as np
import pytest
import second_opinions
import torch
from gauss_pair import BAD, GaussPair, gauss_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import DataError, UsageError
from poise.evaluation.kernels import (
    cmmd,
    kernel_distance,
    kernel_estimate,
    kernel_subsets,
    rbf_distance,
)

PAIR = gauss_pair()
WIDTH = 2.0


def _rbf(a: np.ndarray, b: np.ndarray):
    return rbf_distance(a, b, WIDTH)


def test_the_closed_form_has_its_check_value():
    assert PAIR.kernel == pytest.approx(0.012829, abs=1e-6)


@pytest.mark.parametrize(
    ("estimate", "truth"), [(kernel_estimate, PAIR.kernel), (_rbf, PAIR.rbf(2))]
)
def test_estimates_are_unbiased_and_know_their_errors(estimate, truth):
    rng = np.random.default_rng(4)
    found = [estimate(*PAIR.draw(400, 600, rng)) for _ in range(80)]
    values = np.array([e.value for e in found])
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    error = np.mean([math.hypot(e.samples_error, e.reference_error) for e in found])
    assert error == pytest.approx(values.std(), rel=0.25)


@pytest.mark.parametrize("estimate", [kernel_estimate, _rbf])
def test_each_set_causes_its_own_error(estimate):
    rng = np.random.default_rng(5)
    samples, reference = PAIR.draw(200, 1000, rng)
    found = [estimate(PAIR.draw(200, 2, rng)[0], reference) for _ in range(50)]
    error = np.mean([e.samples_error for e in found])
    assert error == pytest.approx(np.std([e.value for e in found]), rel=0.3)
    error = estimate(samples, reference).samples_error
    exchanged = estimate(reference, samples)
    assert exchanged.reference_error == pytest.approx(error, rel=1e-9)


@pytest.mark.parametrize("estimate", [kernel_estimate, _rbf])
def test_equal_distributions_are_at_zero_within_their_errors(estimate):
    null = GaussPair(PAIR.m1, PAIR.s1, PAIR.m1, PAIR.s1)
    rng = np.random.default_rng(6)
    found = [estimate(*null.draw(300, 300, rng)) for _ in range(60)]
    values = np.array([e.value for e in found])
    assert abs(values.mean()) < 4 * values.std() / math.sqrt(len(values))
    error = np.mean([math.hypot(e.samples_error, e.reference_error) for e in found])
    assert 0.7 * values.std() < error < 2 * values.std()


def test_blocks_equal_the_whole_matrix(monkeypatch):
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(300, 8)), rng.normal(size=(170, 8)) + 0.2

    def k(a, b):
        return (a @ b.T / 8 + 1) ** 3

    def g(a, b):
        return np.exp(-np.square(a[:, None] - b).sum(2) / (2 * WIDTH**2))

    whole = (k(x, x).sum() - np.trace(k(x, x))) / (300 * 299)
    whole += (k(y, y).sum() - np.trace(k(y, y))) / (170 * 169) - 2 * k(x, y).mean()
    biased = g(x, x).mean() + g(y, y).mean() - 2 * g(x, y).mean()
    before = kernel_estimate(x, y)
    for rows in (2048, 64):
        monkeypatch.setattr("poise.evaluation.distances.ROWS", rows)
        found = kernel_estimate(x, y)
        assert found.value == kernel_distance(x, y) == pytest.approx(whole, rel=1e-10)
        assert found.samples_error == pytest.approx(before.samples_error, rel=1e-10)
        assert rbf_distance(x, y, WIDTH, biased=True).value == pytest.approx(biased, rel=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance` will save:UserWarning")
def test_other_implementations_agree_on_full_sets(offset):
    second_opinions.torch_fidelity()
    from torch_fidelity.metric_kid import kid_features_to_metric

    a, b = (f + offset for f in PAIR.draw(600, 600, np.random.default_rng(7)))
    ours = kernel_distance(a, b)
    x, y = torch.from_numpy(a), torch.from_numpy(b)
    theirs = kid_features_to_metric(
        x, y, kid_subsets=1, kid_subset_size=600, rng_seed=0, verbose=False
    )
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    network = torch.nn.Flatten()
    network.num_features = 32
    metric = second_opinions.torchmetrics_image().KernelInceptionDistance(
        feature=network, subsets=1, subset_size=600, normalize=True
    )
    metric.update(x, real=True)
    metric.update(y, real=False)
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-9)


def test_subsets_as_large_as_the_sets_are_the_full_estimate():
    a, b = PAIR.draw(150, 150, np.random.default_rng(8))
    mean, deviation = kernel_subsets(a, b, subsets=3)
    assert mean == pytest.approx(kernel_distance(a, b), rel=1e-9)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_subsets_average_to_the_full_estimate_and_vary_as_small_sets_do():
    a, b = PAIR.draw(3000, 2000, np.random.default_rng(9))
    mean, deviation = kernel_subsets(a, b, subsets=60, size=100)
    error = deviation / math.sqrt(60)
    assert abs(mean - kernel_distance(a, b)) < 4 * error
    small = kernel_estimate(*PAIR.draw(100, 100, np.random.default_rng(0)))
    assert deviation == pytest.approx(
        math.hypot(small.samples_error, small.reference_error), rel=0.5
    )
    assert kernel_subsets(a, b, 3, 50, seed=1) == kernel_subsets(a, b, 3, 50, seed=1)
    assert kernel_subsets(a, b, 3, 50, seed=1) != kernel_subsets(a, b, 3, 50, seed=2)


def test_the_clip_distance_is_its_definition():
    a, b = PAIR.draw(120, 90, np.random.default_rng(10))
    u, v = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (a, b))

    def k(x, y):
        return np.exp((x @ y.T - 1) / 100)

    value = k(u, u).mean() + k(v, v).mean() - 2 * k(u, v).mean()
    found = cmmd(a, 5 * b)
    assert found.value == pytest.approx(1000 * value, rel=1e-8)
    within = [(k(f, f).sum() - len(f)) / (len(f) * (len(f) - 1)) for f in (u, v)]
    bias = 1000 * sum((1 - m) / len(f) for m, f in zip(within, (u, v), strict=True))
    corrected = cmmd(a, b, biased=False)
    assert corrected.value == pytest.approx(found.value - bias, rel=1e-6)
    assert corrected.samples_error == pytest.approx(found.samples_error, rel=1e-9)
    assert cmmd(a, a).value == pytest.approx(0, abs=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_order_and_rotation_change_nothing(seed):
    rng = np.random.default_rng(seed)
    a, b = gauss_pair(8).draw(40, 30, rng)
    Q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    for estimate in (kernel_estimate, _rbf, cmmd):
        plain = estimate(a, b)
        for other in (estimate(a @ Q, b @ Q), estimate(rng.permutation(a), rng.permutation(b))):
            assert other.value == pytest.approx(plain.value, rel=1e-8, abs=1e-10)
            assert other.samples_error == pytest.approx(plain.samples_error, rel=1e-8)
    shifted = _rbf(a + 300, b + 300)
    assert shifted.value == pytest.approx(_rbf(a, b).value, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("distance", [kernel_distance, kernel_estimate, kernel_subsets, _rbf, cmmd])
@pytest.mark.parametrize(("other", "message"), BAD)
def test_bad_features_are_named(distance, other, message):
    with pytest.raises(DataError, match=message):
        distance(np.ones((5, 3)), other)


def test_bad_settings_are_named():
    x = np.ones((5, 3))
    with pytest.raises(UsageError, match="0 subsets"):
        kernel_subsets(x, x, subsets=0)
    with pytest.raises(UsageError, match="width"):
        rbf_distance(x, x, 0.0)
    with pytest.raises(DataError, match="reference features with a row of zeros"):
        cmmd(x, 0 * x)
