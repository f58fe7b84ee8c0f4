"""Measures of copying against closed forms, second implementations and planted copies."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from poise.errors import DataError
from poise.evaluation.likelihood import feature_likelihood, fitted_variances, log_density
from poise.evaluation.memorisation import Neighbours, surroundings
from poise.evaluation.novelty import (
    authentic,
    carlini_copies,
    cells_of,
    copying_score,
    novelty,
)


def _mixture(rng, n):
    centres = 3 * np.random.default_rng(99).normal(size=(10, 32))
    return centres[rng.integers(10, size=n)] + rng.normal(size=(n, 32))


def _sets(seed, share, n=1000):
    """Train, held-out and samples, a share of them training images with a small change."""
    rng = np.random.default_rng(seed)
    train, val, samples = (_mixture(rng, n) for _ in range(3))
    copied = int(share * n)
    samples[:copied] = train[:copied] + 0.05 * rng.normal(size=(copied, 32))
    return train, val, samples


@pytest.fixture(scope="module")
def found():
    """What `novelty` gives for 0, 5 and 40 % of copies."""
    sets = {share: _sets(1, share) for share in (0.0, 0.05, 0.4)}
    return {share: novelty(surroundings(t, v, s), t, v, s) for share, (t, v, s) in sets.items()}


def test_without_copies_every_measure_is_that_of_real_images(found):
    values = found[0.0]
    assert list(values) == ["carlini_copies", "authentic", "c_t", "fld", "fld_gap"]
    for name, reach in (("authentic", 0.05), ("c_t", 3), ("fld", 1), ("fld_gap", 1.5)):
        estimate, real = values[name]
        assert estimate.value == pytest.approx(real, abs=reach)
    assert values["carlini_copies"][0].value == values["carlini_copies"][1] == 0


def test_copies_move_every_measure_its_way(found):
    none, some, many = (found[share] for share in (0.0, 0.05, 0.4))
    assert many["carlini_copies"][0].value == pytest.approx(0.4)
    assert some["carlini_copies"][0].value == pytest.approx(0.05)
    assert many["authentic"][0].value < none["authentic"][0].value - 0.2
    assert many["c_t"][0].value < -5 and many["c_t"][1] > -3
    for name in ("authentic", "c_t", "fld_gap"):
        values = [v[name][0].value for v in (none, some, many)]
        assert values == sorted(values, reverse=True)
    assert many["fld_gap"][0].value < many["fld_gap"][1] - 20
    assert many["fld"][0].value > none["fld"][0].value  # what is copied says less of the held-out


def test_without_held_out_images_training_images_stand_in():
    train, _, samples = _sets(2, 0.1)
    values = novelty(surroundings(train, None, samples), train, None, samples)
    assert list(values) == ["carlini_copies", "authentic"]
    estimate, real = values["authentic"]
    assert estimate.value < real - 0.03 and 0.5 < real < 0.95
    assert values["carlini_copies"][0].value == pytest.approx(0.1)


def test_authentic_of_the_line_is_one_third_and_is_counted_by_hand():
    train = np.array([[0.0], [1.0], [3.0]])
    samples = np.array([[-2.0], [1.5], [4.0], [5.5]])  # nearest 0, 1, 3, 3; theirs: 1, 1, 2, 2
    near = surroundings(train, None, samples)
    assert authentic(near, near.samples).value == pytest.approx(2 / 4)
    # In one dimension a uniform sample is authentic in 1/3 of cases, in the limit.
    rng = np.random.default_rng(3)
    near = surroundings(rng.random((4000, 1)), None, rng.random((4000, 1)))
    by_hand = authentic(near, near.samples)
    assert by_hand.value == pytest.approx(1 / 3, abs=4 * by_hand.samples_error)
    assert by_hand.samples_error == pytest.approx(np.sqrt(2 / 9 / 4000), rel=0.05)


def test_authentic_of_a_part_of_the_training_images_is_unbiased(monkeypatch):
    train, _, samples = _sets(4, 0.2, n=2000)
    whole = surroundings(train, None, samples)
    monkeypatch.setattr("poise.evaluation.memorisation.LEFT_OUT", 500)
    part = surroundings(train, None, samples)
    assert len(part.rows) == 500
    estimate = authentic(part, part.samples)
    assert estimate.value == pytest.approx(
        authentic(whole, whole.samples).value, abs=4 * estimate.samples_error
    )


def test_carlini_by_hand():
    d = np.array([[1.0, 3.0, 5.0, 7.0], [3.0, 4.0, 5.0, 6.0], [0.0, 0.0, 0.0, 0.0]])
    assert carlini_copies(Neighbours(d, np.zeros((3, 4), np.int64))).value == pytest.approx(2 / 3)


def test_c_t_equals_mann_whitney_in_each_cell():
    rng = np.random.default_rng(5)
    d, d_val = rng.random(300), rng.random(200) ** 0.8
    cells, cells_val = np.arange(300) % 3, np.arange(200) % 3
    cells_val[cells_val == 2] = 1
    cells_val[:10] = 2  # too few: this cell does not count
    z, n = [], []
    for cell in (0, 1):
        q, p = d[cells == cell], d_val[cells_val == cell]
        u = mannwhitneyu(q, p).statistic
        z.append((u - len(q) * len(p) / 2) / np.sqrt(len(q) * len(p) * (len(q) + len(p) + 1) / 12))
        n.append(len(p))
    estimate = copying_score(d, d_val, cells, cells_val)
    assert estimate.value == pytest.approx(np.average(z, weights=n))
    assert np.isnan(copying_score(d[:9], d_val[:9], cells[:9], cells_val[:9]).value)


def test_the_error_of_c_t_is_its_spread_over_repetitions():
    rng = np.random.default_rng(6)
    repeated = [
        copying_score(
            rng.random(120), rng.random(240), rng.integers(3, size=120), rng.integers(3, size=240)
        )
        for _ in range(400)
    ]
    spread = np.std([e.value for e in repeated])
    error = np.hypot(repeated[0].samples_error, repeated[0].reference_error)
    assert spread == pytest.approx(error, rel=0.15)


def test_cells_are_the_clusters_whatever_the_width():
    rng = np.random.default_rng(7)
    centres = 30 * rng.normal(size=(3, 100))
    kind = rng.integers(3, size=200)
    train, queries = (centres[kind] + rng.normal(size=(200, 100)) for _ in range(2))
    (cells,) = cells_of(train, queries)
    assert len({(int(a), int(b)) for a, b in zip(kind, cells, strict=True)}) == 3
    (single,) = cells_of(np.ones((20, 4)), np.ones((5, 4)))
    assert single.tolist() == [0] * 5


def test_density_and_fitted_width_in_closed_form():
    rng = np.random.default_rng(8)
    x = torch.from_numpy(rng.normal(size=(50, 4)))
    centre = torch.zeros(1, 4, dtype=torch.float64)
    d2 = (x[:, None] - centre).square().sum(2)
    variance = fitted_variances(d2, 4)
    assert variance.item() == pytest.approx(x.square().mean().item())
    normal = torch.distributions.MultivariateNormal(centre[0], variance * torch.eye(4))
    torch.testing.assert_close(log_density(d2, variance, 4), normal.log_prob(x))
    both = log_density(torch.cat([d2, d2], 1), variance.expand(2), 4)
    torch.testing.assert_close(both, normal.log_prob(x))  # a mean, not a sum, of densities


def test_fitted_widths_are_a_maximum_of_the_likelihood():
    rng = np.random.default_rng(9)
    centres, images = rng.normal(size=(4, 3)), rng.normal(size=(400, 3))
    d2 = torch.from_numpy(((images[:, None] - centres) ** 2).sum(2))
    variance = fitted_variances(d2, 3)
    best = log_density(d2, variance, 3).mean()
    for j, factor in itertools.product(range(4), (0.8, 1.25)):
        other = variance.clone()
        other[j] *= factor
        assert log_density(d2, other, 3).mean() < best


def test_likelihood_sees_missing_kinds_and_does_not_depend_on_the_unit():
    rng = np.random.default_rng(10)
    train, val, samples = (_mixture(rng, 600) for _ in range(3))
    near_one = samples[np.linalg.norm(samples - samples[0], axis=1) < 12]
    lacking = np.resize(near_one, (600, 32)) + 0.5 * rng.normal(size=(600, 32))
    good, bad = (feature_likelihood(train, val, s) for s in (samples, lacking))
    assert abs(good.fld.value) < 2 < 20 < bad.fld.value
    scaled = feature_likelihood(7 * train - 3, 7 * val - 3, 7 * samples - 3)
    assert scaled.fld.value == pytest.approx(good.fld.value, abs=1e-6)
    constant = [np.concatenate([f, np.ones((600, 1))], 1) for f in (train, val, samples)]
    assert feature_likelihood(*constant).fld.value == pytest.approx(good.fld.value, abs=1e-6)


def test_everything_is_deterministic_and_bad_input_is_named():
    train, val, samples = _sets(11, 0.1, n=200)
    first, second = (
        novelty(surroundings(train, val, samples), train, val, samples) for _ in range(2)
    )
    assert first == second
    with pytest.raises(DataError, match="samples features of 31 dimensions"):
        feature_likelihood(train, val, samples[:, 1:])
    with pytest.raises(DataError, match="train features of shape"):
        feature_likelihood(train[:3], val, samples)
