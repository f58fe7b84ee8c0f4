"""The Fréchet distance against closed forms and other people's code; the inception score too."""

import math

import numpy as np
import pytest
import second_opinions
import torch
from gauss_pair import BAD, GaussPair, gauss_pair
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import DataError, UsageError
from poise.evaluation.features import extract
from poise.evaluation.fidelity import (
    frechet_between,
    frechet_bias,
    frechet_distance,
    frechet_estimate,
    frechet_infinite,
)
from poise.evaluation.inception_score import inception_score
from poise.evaluation.moments import Moments

PAIR = gauss_pair()
NULL = GaussPair(PAIR.m1, PAIR.s1, PAIR.m1, PAIR.s1)


def _exact(m: np.ndarray, s: np.ndarray) -> Moments:
    return Moments(None, m, np.diag(s))


def test_sets_with_known_moments_have_the_closed_form():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(400, 5))
    found = Moments.of(z)
    white = (z - found.mean) @ np.linalg.inv(np.linalg.cholesky(found.covariance)).T
    a, b = np.array([1, 2, 3, 4, 5.0]), np.array([2, 2, 1, 4, 9.0])
    Q, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    fd = frechet_distance(white * np.sqrt(a) @ Q, (white[:, ::-1] * np.sqrt(b) + 0.5) @ Q)
    assert fd == pytest.approx(5 * 0.25 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-9)


def test_exact_moments_have_the_closed_form():
    assert PAIR.frechet == pytest.approx(0.28500, abs=1e-5)
    found = frechet_between(_exact(PAIR.m1, PAIR.s1), _exact(PAIR.m2, PAIR.s2))
    assert found == pytest.approx(PAIR.frechet, rel=1e-12)


def _others(a: np.ndarray, b: np.ndarray) -> dict[str, float]:
    """The same distance by torch-fidelity and torchmetrics."""
    second_opinions.torch_fidelity()
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    stats = [fid_features_to_statistics(torch.from_numpy(f)) for f in (a, b)]
    fid = fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    D = a.shape[1]
    network = torch.nn.Flatten()
    network.num_features = D
    metric = second_opinions.torchmetrics_image().FrechetInceptionDistance(
        feature=network, normalize=True, input_img_size=(1, 1, D), antialias=False
    )
    metric.set_dtype(torch.float64)
    for f, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(f).reshape(-1, 1, 1, D), real=real)
    return {"torch-fidelity": fid, "torchmetrics": float(metric.compute())}


@pytest.mark.parametrize("offset", [0.0, 300.0])
@pytest.mark.parametrize("n", [40, 700])  # fewer rows than dimensions, and more
@pytest.mark.parametrize("share", [1.0, 0.02])  # of the difference of the pair
def test_other_implementations_agree(offset, n, share):
    pair = gauss_pair(64)
    near = GaussPair(
        pair.m1, pair.s1, pair.m1 + share * 0.05, pair.s1 + share * (pair.s2 - pair.s1)
    )
    a, b = near.draw(n, n + 50, np.random.default_rng(n))
    if share < 1:
        b[:n] = a + 1e-3 * b[:n]  # near-identical sets
    ours = frechet_distance(a + offset, b + offset)
    # Without full rank theirs has rounding under the root, of the size of the covariance.
    error = 1e-6 * ours if n > 64 else 1e-5 * Moments.of(a).covariance.trace()
    for name, theirs in _others(a + offset, b + offset).items():
        assert abs(ours - theirs) < error, name


def test_identical_rank_deficient_sets_are_at_zero():
    x = np.random.default_rng(3).normal(size=(20, 64))
    assert 0 <= frechet_distance(x, x) < 1e-12 * x.var(0).sum()
    assert frechet_distance(x, x + 1) == pytest.approx(64, rel=1e-9)


def test_dead_and_constant_features_are_no_obstacle():
    rng = np.random.default_rng(4)
    a, b = PAIR.draw(300, 400, rng)
    dead = np.insert(a, 3, 0.0, 1), np.insert(b, 3, 0.0, 1)
    assert frechet_distance(*dead) == pytest.approx(frechet_distance(a, b), rel=1e-9)
    plain, found = frechet_estimate(a, b), frechet_estimate(*dead)
    assert found.samples_error == pytest.approx(plain.samples_error, rel=1e-6)
    assert found.reference_error == pytest.approx(plain.reference_error, rel=1e-6)
    constant = np.tile(a[:1], (40, 1))  # all samples are the same
    truth = np.square(a[0] - b.mean(0)).sum() + b.var(0, ddof=1).sum()
    for fd in (frechet_distance(constant, b), frechet_distance(b, constant)):
        assert fd == pytest.approx(truth, rel=1e-9)
    assert frechet_distance(constant, constant) == 0
    assert frechet_estimate(constant, b).samples_error == pytest.approx(0, abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), few=st.booleans())
def test_order_rotation_shift_and_exchange_change_nothing(seed, few):
    rng = np.random.default_rng(seed)
    a, b = gauss_pair(8).draw(*((6, 7) if few else (60, 50)), rng)
    Q, _ = np.linalg.qr(rng.normal(size=(8, 8)))
    before = frechet_distance(a, b)
    same = pytest.approx(before, rel=1e-7, abs=1e-7)
    assert frechet_distance(rng.permutation(a), rng.permutation(b)) == same
    assert frechet_distance(a @ Q + 3, b @ Q + 3) == same
    assert frechet_distance(b, a) == same
    assert frechet_distance(2 * a, 2 * b) == pytest.approx(4 * before, rel=1e-7, abs=1e-7)
    turned, plain = frechet_estimate(a @ Q, b @ Q), frechet_estimate(a, b)
    assert turned.value == same
    assert math.isnan(plain.samples_error) == few
    if not few:
        assert turned.samples_error == pytest.approx(plain.samples_error, rel=1e-5)
        assert frechet_estimate(b, a).samples_error == pytest.approx(
            plain.reference_error, rel=1e-5
        )


@pytest.mark.parametrize(
    ("d", "n", "simulated"), [(16, 500, 0.0546), (64, 1000, 0.0972), (128, 5000, 0.0371)]
)
def test_the_bias_is_what_simulation_gives(d, n, simulated):
    s = 1 / np.arange(1, d + 1)
    assert frechet_bias(s, n, n) == pytest.approx(simulated, rel=0.015)
    Q, _ = np.linalg.qr(np.random.default_rng(d).normal(size=(d, d)))
    assert frechet_bias(Q * s @ Q.T, n, n) == pytest.approx(frechet_bias(s, n, n), rel=1e-9)
    assert frechet_bias(s, n, math.inf) == pytest.approx(frechet_bias(s, n, n) / 2)
    assert frechet_bias(np.append(s, 0.0), n, n) == frechet_bias(s, n, n)


def test_value_bias_and_errors_are_those_of_repeats():
    rng = np.random.default_rng(5)
    n1, n2 = 500, 800
    found = [frechet_estimate(*PAIR.draw(n1, n2, rng)) for _ in range(80)]
    values = np.array([e.value for e in found])
    truth = PAIR.frechet + PAIR.frechet_bias(n1, n2)
    assert abs(values.mean() - truth) < 4 * values.std() / math.sqrt(len(values))
    errors = [np.mean([getattr(e, f"{s}_error") for e in found]) for s in ("samples", "reference")]
    assert np.allclose(errors, PAIR.frechet_errors(n1, n2), rtol=0.15)
    assert np.hypot(*errors) == pytest.approx(values.std(), rel=0.25)


def test_equal_distributions_are_at_their_bias():
    rng = np.random.default_rng(2)
    values = [frechet_distance(*NULL.draw(500, 700, rng)) for _ in range(60)]
    bias = frechet_bias(NULL.s1, 500, 700)
    assert NULL.frechet_bias(500, 700) == pytest.approx(bias)
    assert abs(np.mean(values) - bias) < 4 * np.std(values) / np.sqrt(60) + 0.01 * bias


def test_a_reference_of_moments_alone_has_no_error():
    a, b = PAIR.draw(200, 300, np.random.default_rng(6))
    whole, alone = frechet_estimate(a, b), frechet_estimate(a, Moments.of(b))
    assert (alone.value, alone.samples_error) == (whole.value, whole.samples_error)
    assert whole.value == pytest.approx(frechet_distance(a, b), rel=1e-12)
    assert math.isnan(alone.reference_error)
    unknown = frechet_estimate(a, Moments(None, b.mean(0), np.cov(b, rowvar=False)))
    assert unknown.value == pytest.approx(whole.value, rel=1e-9)


def test_extrapolation_removes_the_bias_of_the_samples_alone():
    rng = np.random.default_rng(7)
    reference = _exact(PAIR.m2, PAIR.s2)
    found = [frechet_infinite(PAIR.draw(600, 2, rng)[0], reference, seed=i) for i in range(50)]
    values = np.array([e.value for e in found])
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - PAIR.frechet) < 4 * error
    assert 4 * error < PAIR.frechet_bias(600, 10**9), "the bias would have been seen"
    assert np.mean([e.samples_error for e in found]) == pytest.approx(values.std(), rel=0.3)
    few = Moments.of(PAIR.draw(2, 300, rng)[1])
    bias = np.mean([frechet_infinite(PAIR.draw(3000, 2, rng)[0], few).value for _ in range(10)])
    assert bias - PAIR.frechet > PAIR.frechet_bias(10**9, 300) / 3


def test_extrapolation_is_decided_by_its_seed():
    a, b = PAIR.draw(100, 200, np.random.default_rng(8))
    reference = Moments.of(b)
    one = frechet_infinite(a, reference, seed=1)
    assert frechet_infinite(a, reference, seed=1) == one
    assert frechet_infinite(a, reference, seed=2) != one
    assert math.isnan(frechet_infinite(a[:30], reference).samples_error)
    with pytest.raises(DataError, match="29 samples"):
        frechet_infinite(a[:29], reference)


def test_images_lead_to_the_same_figure_as_their_features():
    pair = gauss_pair(16)
    a, b = pair.draw(400, 500, np.random.default_rng(9))
    seen = [extract(pair.extractor, pair.images(f)) for f in (a, b)]
    assert np.abs(seen[0] - a).max() < 0.5 * 4 / 18 + 1e-9
    found = frechet_estimate(*seen)
    rounding = 1 / (12 * 18**2)
    rendered = GaussPair(pair.m1, pair.s1 + rounding, pair.m2, pair.s2 + rounding)
    assert found.value == pytest.approx(frechet_distance(a, b), rel=0.02)
    error = math.hypot(*pair.frechet_errors(400, 500))
    assert abs(found.value - rendered.frechet - rendered.frechet_bias(400, 500)) < 4 * error


@pytest.mark.parametrize("distance", [frechet_distance, frechet_estimate])
@pytest.mark.parametrize(("other", "message"), BAD)
def test_bad_features_are_named(distance, other, message):
    with pytest.raises(DataError, match=message):
        distance(np.zeros((5, 3)), other)


def test_bad_moments_and_sizes_are_named():
    a = Moments.of(np.eye(3))
    with pytest.raises(DataError, match="3 dimensions beside a reference of 4"):
        frechet_between(a, Moments.of(np.eye(4)))
    with pytest.raises(DataError, match="single row"):
        frechet_between(a, Moments.streamed([np.zeros((1, 3))]))
    with pytest.raises(UsageError, match="0 and 5 rows"):
        frechet_bias(np.ones(3), 0, 5)
    with pytest.raises(DataError, match=r"\(3, 2\)"):
        frechet_bias(np.ones((3, 2)), 5, 5)


def test_the_inception_score_of_certain_answers_is_their_perplexity():
    p = np.array([1 / 2, 1 / 4, 1 / 8, 1 / 8])
    classes = np.tile(np.repeat(np.arange(4), [4, 2, 1, 1]), 50)
    with np.errstate(divide="ignore"):
        logs = np.log(np.eye(4)[classes])  # -inf where a class is impossible
    score, deviation = inception_score(logs, splits=5, seed=None)
    assert score.value == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-12)
    assert score.value == pytest.approx(3.363586, abs=1e-6)
    assert deviation == pytest.approx(0, abs=1e-12)
    assert inception_score(np.zeros((20, 7)))[0].value == pytest.approx(1)


def test_the_inception_score_agrees_with_torch_fidelity():
    second_opinions.torch_fidelity()
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = 4 * np.random.default_rng(10).normal(size=(503, 11))
    score, deviation = inception_score(logits, seed=None)
    theirs = isc_features_to_metric(torch.from_numpy(logits), shuffle=False)
    assert score.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9)
    assert score.samples_error == pytest.approx(deviation / 3)
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert inception_score(log_p, seed=None)[0].value == pytest.approx(score.value)


def test_the_inception_score_is_shuffled_by_its_seed():
    logits = 3 * np.eye(10)[np.arange(500) // 50]  # sorted by class: each split has one
    assert inception_score(logits, seed=None)[0].value == pytest.approx(1)
    assert inception_score(logits)[0].value > 2.5
    assert inception_score(logits, seed=1) == inception_score(logits, seed=1)
    assert inception_score(logits, seed=1) != inception_score(logits, seed=2)
    assert math.isnan(inception_score(logits, splits=1)[0].samples_error)


@pytest.mark.parametrize(
    ("logits", "error"),
    [
        (np.zeros((5, 3)), UsageError),
        (np.zeros(30), UsageError),
        (np.full((30, 3), np.nan), DataError),
        (np.full((30, 3), -np.inf), DataError),
    ],
)
def test_logits_that_mean_nothing_are_refused(logits, error):
    with pytest.raises(error):
        inception_score(logits)
