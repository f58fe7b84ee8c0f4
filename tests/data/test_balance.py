"""Draws follow their weights as closely as whole draws can, from any place of the stream on."""

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import dataset_of, distinct

from poise.data.balance import draws, expected_draws, sampling_weights
from poise.data.batches import batches
from poise.errors import UsageError

WEIGHTS = st.lists(st.floats(0, 1e6), min_size=1, max_size=60).filter(lambda w: sum(w) > 1e-3)


def data_of(count: int, labels: list[int] | None = None):
    return dataset_of(distinct(list(range(count))), labels)


@settings(max_examples=200, deadline=None)
@given(WEIGHTS, st.integers(0, 99), st.integers(0, 5))
def test_counts_are_within_one_of_the_expectation(w: list[float], seed: int, epoch: int) -> None:
    weights = np.array(w)
    drawn = draws(weights, seed, epoch)
    counts = np.bincount(drawn, minlength=len(w))
    assert len(drawn) == len(counts) == len(w)
    assert np.all(np.abs(counts - expected_draws(weights)) < 1 + 1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 9))
def test_classes_are_within_one_of_their_share_too(few: int, many: int, epoch: int) -> None:
    weights = np.repeat([1 / few, 3 / many], [few, many])
    of_few = int((draws(weights, 0, epoch) < few).sum())
    assert abs(of_few - (few + many) / 4) < 1 + 1e-6


def test_the_mean_over_epochs_is_the_weight() -> None:
    weights = np.array([0.0, 0.1, 0.25, 0.25, 1.0, 3.0])
    counts = sum(np.bincount(draws(weights, 0, e), minlength=6) for e in range(4000)) / 4000
    assert counts[0] == 0
    assert np.abs(counts - expected_draws(weights)).max() < 0.03  # 4 deviations of a coin


def test_equal_weights_are_no_weights_bit_by_bit() -> None:
    data, members = data_of(37), np.arange(3, 36)
    plain = batches(data, members, batch=10, seed=5)
    for value in (1.0, 0.1, 7e-9):
        weighed = batches(data, members, batch=10, seed=5, weights=np.full(33, value))
        for a, b in zip(islice(weighed, 12), plain, strict=False):
            assert torch.equal(a.indices, b.indices) and torch.equal(a.images, b.images)
        plain = batches(data, members, batch=10, seed=5)


@settings(max_examples=50, deadline=None)
@given(WEIGHTS, st.integers(1, 50), st.integers(0, 12))
def test_resumed_equals_unbroken(w: list[float], batch: int, skipped: int) -> None:
    data, members, weights = data_of(len(w) + 2), np.arange(len(w)) + 2, np.array(w)
    whole = batches(data, members, batch=batch, seed=1, weights=weights)
    start = skipped * batch
    tail = batches(data, members, batch=batch, seed=1, start=start, weights=weights)
    for a, b in zip(islice(whole, skipped, skipped + 3), tail, strict=False):
        assert torch.equal(a.indices, b.indices)


def test_every_epoch_of_the_stream_has_its_draws() -> None:
    weights = np.array([1.0, 1.0, 2.0, 8.0])
    stream = batches(data_of(4), np.arange(4), batch=3, seed=0, weights=weights)
    seen = torch.cat([b.indices for b in islice(stream, 80)])
    for e in range(60):
        counts = np.bincount(seen[4 * e : 4 * e + 4], minlength=4)
        assert np.all(np.abs(counts - expected_draws(weights)) <= 1)


def test_classes_are_weighed_by_their_size_in_training() -> None:
    data = data_of(30, [0] * 16 + [1] * 4 + [2] * 10)
    members = np.arange(20)  # the third class has no training image
    for balance, shares in (("sqrt", [4 / 6, 2 / 6]), ("equal", [1 / 2, 1 / 2])):
        weights = sampling_weights(data, members, balance)
        assert weights is not None
        mine = np.array([weights[:16].sum(), weights[16:].sum()]) / weights.sum()
        assert mine == pytest.approx(shares)
    assert sampling_weights(data, members, "none") is None
    assert sampling_weights(data, members, "prepared") is None


def test_prepared_weights_are_those_of_the_members() -> None:
    data = replace(data_of(6), weights=np.arange(6.0))
    found = sampling_weights(data, np.array([4, 1]), "prepared")
    assert found is not None and found.tolist() == [4, 1]
    assert sampling_weights(data, np.array([4, 1]), "none") is None


@pytest.mark.parametrize("balance", ["sqrt", "equal"])
def test_without_classes_the_way_out_is_named(balance: str) -> None:
    with pytest.raises(UsageError, match="poise prepare --balance"):
        sampling_weights(data_of(5), np.arange(5), balance)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [[1.0], [1, 1, -1], [0, 0, 0], [1, 1, np.nan], [1, 1, np.inf]])
def test_impossible_weights_are_refused_at_once(bad: list[float]) -> None:
    with pytest.raises(UsageError, match="Weights of shape"):
        batches(data_of(3), np.arange(3), batch=1, seed=0, weights=np.array(bad))
