"""Verdicts on the classes of samples, against planted truth."""

import json
import math

import numpy as np
import pytest
from scipy.stats import chi2_contingency
from sklearn.datasets import load_digits

from poise.errors import DataError, UsageError
from poise.evaluation.conditioning import examine_classes
from poise.evaluation.extractors.domain import train_encoder

NAMES = [f"digit {k}" for k in range(10)]


@pytest.fixture(scope="module")
def judged():
    """Log-probabilities and labels of 500 reference digits and of 597 others, from one probe."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images * 255 / 16).round().astype(np.uint8)[order, None]
    y = data.target[order].astype(np.int64)
    probe = train_encoder(x[:700], y[:700], 10, images_seen=12_000)
    p = probe.classify(x[700:])
    return p[:500], y[700:1200], p[500:], y[1200:]


def answers(true, confusion, rng):
    """Log-probabilities of a probe with this confusion [true, named], certain of every answer."""
    named = (rng.random(len(true))[:, None] > confusion[true].cumsum(1)[:, :-1]).sum(1)
    return np.log(np.eye(len(confusion))[named] * 0.9 + 0.1 / len(confusion))


def weak_confusion(accuracy, rng):
    C = rng.dirichlet(np.ones(10), 10) * (1 - accuracy)
    return C + accuracy * np.eye(10)


def test_dropped_digits_are_named_and_nothing_else(judged):
    real, y_real, p, y = judged
    kept = ~np.isin(y, (3, 7))
    for labels in (y_real, None):
        found = examine_classes(p[kept], real, NAMES, labels=labels)
        assert found.missing == ("digit 3", "digit 7")
        assert found.scarce == found.overfull == ()
        assert found.p_value < 1e-6
        assert found.total_variation > 2 * found.total_variation_real
        assert found.divergence > 3 * found.divergence_real


def test_real_digits_are_balanced(judged):
    real, y_real, p, y = judged
    rng = np.random.default_rng(0)
    pooled, labels = np.concatenate([real, p]), np.concatenate([y_real, y])
    for _ in range(20):
        order = rng.permutation(len(labels))
        a, b = order[:500], order[500:]
        found = examine_classes(pooled[b], pooled[a], NAMES, labels=labels[a])
        assert found.missing == found.scarce == found.overfull == ()


@pytest.mark.parametrize("accuracy", [0.6, 0.8])
def test_a_weak_probe_still_names_dropped_classes(accuracy):
    rng = np.random.default_rng(0)
    false = hits = 0
    for _ in range(20):
        C = weak_confusion(accuracy, rng)
        y_real, y = rng.integers(0, 10, 2000), rng.integers(0, 10, 1000)
        real = answers(y_real, C, rng)
        found = examine_classes(answers(y, C, rng), real, NAMES, labels=y_real)
        false += bool(found.missing or found.scarce or found.overfull)
        kept = rng.choice([0, 1, 2, 4, 5, 6, 8, 9], 1000)
        found = examine_classes(answers(kept, C, rng), real, NAMES, labels=y_real)
        hits += found.missing == ("digit 3", "digit 7") and not found.scarce + found.overfull
    assert false <= 1
    assert hits >= 18


def test_errors_of_the_shares_are_as_large_as_stated():
    rng = np.random.default_rng(1)
    C = weak_confusion(0.7, rng)
    z = []
    for _ in range(150):
        y_real, y = rng.integers(0, 10, 800), rng.integers(0, 10, 500)
        found = examine_classes(answers(y, C, rng), answers(y_real, C, rng), NAMES, labels=y_real)
        z.append((np.array(found.estimated) - found.expected) / found.estimated_error)
    assert np.std(z) == pytest.approx(1, abs=0.12)
    assert abs(np.mean(z)) < 0.1


def test_an_overfull_and_a_scarce_class_are_named():
    rng = np.random.default_rng(2)
    shares = np.array([0.3, 0.04, *[0.66 / 8] * 8])
    y_real, y = rng.integers(0, 10, 2000), rng.choice(10, 2000, p=shares)
    C = weak_confusion(0.8, rng)
    found = examine_classes(answers(y, C, rng), answers(y_real, C, rng), NAMES, labels=y_real)
    assert (found.missing, found.scarce, found.overfull) == ((), ("digit 1",), ("digit 0",))
    np.testing.assert_allclose(found.estimated, shares, atol=0.04)


def test_wrong_labels_lower_the_agreement_by_their_share(judged):
    real, y_real, p, y = judged
    right = examine_classes(p, real, NAMES, asked=y, labels=y_real)
    assert right.agreement.value == (p.argmax(1) == y).mean()
    assert abs(right.agreement.value - right.agreement_real.value) < 4 * math.hypot(
        right.agreement.samples_error, right.agreement_real.reference_error
    )
    count = len(y) // 5
    asked = y.copy()
    asked[:count] = (asked[:count] + 1) % 10
    wrong = examine_classes(p, real, NAMES, asked=asked, labels=y_real)
    lost = right.agreement.value - wrong.agreement.value
    assert lost == pytest.approx(count / len(y), abs=0.02)
    assert np.sum(wrong.confusion) == len(y)
    assert np.trace(wrong.confusion) / len(y) == wrong.agreement.value
    assert wrong.asked == tuple(np.bincount(asked))
    assert wrong.class_agreement[2] == (p.argmax(1) == 2)[asked == 2].mean()


def test_an_asked_mixture_is_what_is_expected(judged):
    real, y_real, p, y = judged
    chosen = y < 5
    found = examine_classes(p[chosen], real, NAMES, asked=y[chosen], labels=y_real)
    assert found.missing == found.scarce == found.overfull == ()
    assert found.expected[7] == 0
    assert math.isnan(found.class_agreement[7])


def test_a_probe_near_chance_says_nothing():
    rng = np.random.default_rng(3)
    y_real, y = rng.integers(0, 10, 1000), rng.integers(0, 5, 1000)
    C = weak_confusion(0.05, rng)
    found = examine_classes(answers(y, C, rng), answers(y_real, C, rng), NAMES, labels=y_real)
    assert "says nothing" in found.note
    assert found.missing == found.scarce == found.overfull == ()


def test_chance_values_are_those_of_a_simulation():
    rng = np.random.default_rng(4)
    shares = rng.dirichlet(3 * np.ones(10))
    found = [
        examine_classes(
            *(np.log(np.eye(10)[rng.choice(10, n, p=shares)] + 0.01) for n in (600, 900)), NAMES
        )
        for _ in range(200)
    ]
    for name in ("total_variation", "divergence"):
        seen = np.mean([getattr(f, name) for f in found])
        assert seen == pytest.approx(np.mean([getattr(f, f"{name}_real") for f in found]), rel=0.08)
    p_values = [f.p_value for f in found]
    assert np.mean(p_values) == pytest.approx(0.5, abs=0.09)


def test_the_chi_square_test_agrees_with_scipy(judged):
    real, _, p, _ = judged
    found = examine_classes(p[:100], real, NAMES)
    expected = chi2_contingency([found.predicted, found.reference], correction=False).pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-9)


def test_json_is_finite_and_whole(judged):
    real, _, p, _ = judged
    found = examine_classes(p, real, NAMES)
    plain = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert plain["agreement"]["value"] is None and plain["asked"] == []
    assert plain["predicted"] == list(found.predicted)
    assert sum(plain["reference"]) == len(real)


def test_what_does_not_fit_is_refused(judged):
    real, y_real, p, y = judged
    with pytest.raises(UsageError):
        examine_classes(p[:, :1], real[:, :1], NAMES[:1])
    with pytest.raises(DataError):
        examine_classes(p[:, :9], real, NAMES)
    with pytest.raises(DataError):
        examine_classes(p[:0], real, NAMES)
    with pytest.raises(UsageError):
        examine_classes(p, real, NAMES, asked=y[:-1])
    with pytest.raises(UsageError):
        examine_classes(p, real, NAMES, labels=y_real + 1)
