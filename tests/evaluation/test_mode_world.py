"""Diversity and coverage of images whose faults are known by counting."""

import numpy as np
import pytest
from mode_world import (
    DISTANCE,
    PROTOTYPES,
    RADIUS,
    K,
    features,
    generate,
    kinds,
    skewed,
    truth,
    without,
)

from poise.evaluation.coverage import (
    coverage_null,
    precision_recall_density_coverage,
    rarity,
    realism,
)
from poise.evaluation.diversity import groups, vendi

N = 2560  # 40 of each kind


@pytest.fixture(scope="module")
def real():
    return features(generate(N, seed=1000))


def compared(real, images):
    """Scores beside those of other real images."""
    null = precision_recall_density_coverage(real, features(generate(len(images), 1001)), 3)
    found = precision_recall_density_coverage(real, features(images), 3)
    return {name: found[name] / null[name] for name in found}


def test_the_world_is_a_code():
    d = np.linalg.norm(PROTOTYPES[:, None] - PROTOTYPES, axis=2)
    assert np.allclose(d[~np.eye(K, dtype=bool)], DISTANCE) and RADIUS < DISTANCE / 4
    found = truth(generate(N, seed=0))
    assert found.precision == 1 and found.coverage == 1 and found.kinds > 62


@pytest.mark.parametrize("dropped", [8, 32])
def test_dropped_kinds_lower_recall_and_coverage_alone(real, dropped):
    images = generate(N, seed=2, p=without(dropped))
    t, found = truth(images), compared(real, images)
    assert t.coverage == 1 - dropped / K
    assert t.total_variation == pytest.approx(dropped / K, abs=0.06)
    assert found["recall"] == pytest.approx(t.coverage, abs=0.04)
    assert found["precision"] == pytest.approx(1, abs=0.04)
    # Each kind is a world of its own: its expected coverage at its counts is exact.
    reals = np.bincount(kinds(real), minlength=K)
    pairs = zip(reals.tolist(), t.counts.tolist(), strict=True)
    expected = sum(n * coverage_null(n, m, 3) for n, m in pairs if m) / N
    values = precision_recall_density_coverage(real, features(images), 3)
    assert values["coverage"] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("invalid", [0.1, 0.4])
def test_invalid_images_lower_precision_and_density(real, invalid):
    images = generate(N, seed=3, invalid=invalid)
    t, found = truth(images), compared(real, images)
    assert t.precision == pytest.approx(1 - invalid, abs=1e-3)
    assert found["precision"] == pytest.approx(t.precision, abs=0.04)
    assert found["density"] == pytest.approx(t.precision, abs=0.06)
    valid = kinds(images) >= 0
    assert np.isnan(rarity(real, features(images))[~valid]).all()
    assert (realism(real, features(images))[~valid] < 0.5).all()


def test_collapsed_kinds_keep_precision_and_lose_recall(real):
    images = generate(N, seed=4, jitter=0.05)
    t, found = truth(images), compared(real, images)
    assert t.precision == 1 and t.coverage == 1
    assert found["recall"] < 0.05 and found["coverage"] < 0.5 and found["precision"] > 0.95


@pytest.mark.parametrize("p", [None, without(60), skewed(1), skewed(3)])
def test_vendi_of_kinds_is_their_effective_number(p):
    images = generate(500, seed=5, p=p)
    t = truth(images)
    assert vendi(np.eye(K)[kinds(images)]).value == pytest.approx(t.kinds, rel=1e-12)
    p = t.counts / t.counts.sum()
    assert vendi(np.eye(K)[kinds(images)], 2).value == pytest.approx(1 / (p @ p), rel=1e-12)
    assert t.divergence == pytest.approx(np.log(K / t.kinds))


def test_groups_find_dropped_kinds_and_few_others():
    found = missed = wrong = different = 0
    for seed in range(20):
        reference = generate(1920, 2000 + seed)
        f = features(reference)
        alike = groups(f, features(generate(1920, seed)))
        assert not alike.under.any() and alike.over.sum() <= 1
        different += alike.different.sum()
        g = groups(f, features(generate(1920, seed, p=without(6))), K)
        lost = kinds(reference)[g.nearest] < 6
        assert (np.diff(g.reference) <= 0).all()
        found += (g.under & lost).sum()
        missed += (~g.under & lost).sum()
        wrong += (g.under & ~lost).sum()
    assert found >= 110 and missed == 0 and wrong == 0 and different <= 20  # of 1000
