"""The learning rate as a function of images seen."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.settings import TrainingConfig
from poise.training.schedules import learning_rate


def settings(**changes: Any) -> TrainingConfig:
    base = {"images": 100_000, "batch": 100, "lr": 0.01, "warmup": 0.1, "decay": "constant"}
    return TrainingConfig(**(base | changes))


def test_warm_up_is_a_share_of_the_run_and_rises_linearly() -> None:
    s = settings()
    rates = [learning_rate(s, seen) for seen in range(0, 100_000, 100)]
    for i, rate in enumerate(rates):
        assert rate == pytest.approx(0.01 * min((i + 1) / 100, 1), rel=1e-12)


@given(
    warmup=st.floats(0, 1),
    images=st.integers(1, 10**9),
    batch=st.integers(1, 4096),
    decay=st.sampled_from(["inverse_sqrt", "cosine", "constant"]),
)
def test_first_update_is_never_wasted(warmup: float, images: int, batch: int, decay: str) -> None:
    s = settings(warmup=warmup, images=images, batch=batch, decay=decay)
    assert 0 < learning_rate(s, 0) <= s.lr


@given(
    seen=st.integers(0, 99_999),
    scale=st.integers(2, 1000),
    decay=st.sampled_from(["inverse_sqrt", "cosine", "constant"]),
)
def test_a_longer_run_has_the_same_shape(seen: int, scale: int, decay: str) -> None:
    one = settings(decay=decay)
    long = settings(decay=decay, images=100_000 * scale, batch=100 * scale)
    assert learning_rate(long, seen * scale) == pytest.approx(learning_rate(one, seen), rel=1e-9)


def test_inverse_square_root_starts_where_it_was_told() -> None:
    s = settings(decay="inverse_sqrt", decay_start=0.25)
    assert learning_rate(s, 20_000) == learning_rate(s, 25_000) == 0.01
    assert learning_rate(s, 100_000) == pytest.approx(0.005)
    assert learning_rate(s, 50_000) == pytest.approx(0.01 / math.sqrt(2))


def test_cosine_falls_from_the_rate_to_zero() -> None:
    s = settings(decay="cosine", warmup=0)
    assert learning_rate(s, 0) == 0.01
    assert learning_rate(s, 25_000) == pytest.approx(0.01 * (2 + math.sqrt(2)) / 4)
    assert learning_rate(s, 50_000) == pytest.approx(0.005)
    assert learning_rate(s, 100_000) == pytest.approx(0, abs=1e-12)
