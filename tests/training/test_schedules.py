"""The learning rate and the batch as functions of images seen."""

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from poise.data.batches import batches
from poise.data.imageset import Dataset
from poise.settings import TrainingConfig
from poise.training.schedules import batch_size, learning_rate, plateau_factor

DECAYS = [
    "inverse_sqrt",
    "constant",
    "cosine",
    "linear",
    "step",
    "cyclical",
    "one_cycle",
    "plateau",
]


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
    decay=st.sampled_from(DECAYS),
    ramp=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_first_update_is_never_wasted(
    warmup: float, images: int, batch: int, decay: str, ramp: float
) -> None:
    s = settings(warmup=warmup, images=images, batch=batch, decay=decay, batch_ramp=ramp)
    assert 0 < learning_rate(s, 0) <= s.lr


@given(
    lr=st.floats(1e-8, 10),
    warmup=st.floats(0, 1),
    images=st.integers(1, 10**7),
    share=st.floats(0, 1.5),
    decay=st.sampled_from(DECAYS),
    floor=st.none() | st.floats(0, 1),
    cycles=st.integers(1, 9),
)
def test_the_rate_is_never_negative_nor_above_the_highest(
    lr: float,
    warmup: float,
    images: int,
    share: float,
    decay: str,
    floor: float | None,
    cycles: int,
) -> None:
    s = settings(
        lr=lr, warmup=warmup, images=images, decay=decay, decay_floor=floor, decay_cycles=cycles
    )
    rate = learning_rate(s, int(share * images))
    assert 0 <= rate <= lr
    if floor is not None and warmup == 0:
        assert rate >= lr * floor * (1 - 1e-12)


@given(
    seen=st.integers(0, 99_999),
    scale=st.integers(2, 1000),
    decay=st.sampled_from(["inverse_sqrt", "cosine", "constant", "linear", "one_cycle"]),
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
    bounded = settings(decay="inverse_sqrt", decay_start=0.25, decay_floor=0.6)
    assert learning_rate(bounded, 100_000) == pytest.approx(0.006)


def test_cosine_falls_from_the_rate_to_zero() -> None:
    s = settings(decay="cosine", warmup=0)
    assert learning_rate(s, 0) == 0.01
    assert learning_rate(s, 25_000) == pytest.approx(0.01 * (2 + math.sqrt(2)) / 4)
    assert learning_rate(s, 50_000) == pytest.approx(0.005)
    assert learning_rate(s, 100_000) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "points"),
    [
        ({"decay": "linear"}, {0: 1, 25_000: 0.75, 100_000: 0}),
        ({"decay": "linear", "decay_floor": 0.2}, {0: 1, 50_000: 0.6, 100_000: 0.2}),
        ({"decay": "step", "decay_factor": 0.1}, {0: 1, 49_999: 1, 50_000: 0.1, 75_000: 0.01}),
        ({"decay": "step", "decay_steps": ()}, {99_999: 1}),
        (
            {"decay": "cyclical", "decay_floor": 0.1, "decay_cycles": 2},
            {0: 0.1, 12_500: 0.55, 25_000: 1, 50_000: 0.1, 75_000: 1, 100_000: 0.1},
        ),
        ({"decay": "one_cycle"}, {0: 1 / 25, 15_000: 0.52, 30_000: 1, 65_000: 0.5, 100_000: 0}),
        ({"decay": "plateau"}, {0: 1, 99_999: 1}),
    ],
)
def test_every_decay_goes_through_its_points(
    changes: dict[str, Any], points: dict[int, float]
) -> None:
    s = settings(warmup=0, **changes)
    for seen, share in points.items():
        assert learning_rate(s, seen) == pytest.approx(0.01 * share, abs=1e-12)


@given(
    errors=st.lists(st.floats(0.01, 2), max_size=30),
    patience=st.integers(0, 4),
    factor=st.floats(0.05, 0.9),
)
def test_plateau_is_that_of_torch(errors: list[float], patience: int, factor: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=factor, patience=patience, min_lr=0.01
    )
    for error in errors:
        oracle.step(error)
    s = settings(decay="plateau", decay_patience=patience, decay_factor=factor)
    # torch leaves out changes below 1e-8, and the floor is reached either way
    assert plateau_factor(errors, s) == pytest.approx(optimizer.param_groups[0]["lr"], abs=2e-8)


def test_plateau_takes_what_is_no_number_for_no_improvement() -> None:
    s = settings(decay="plateau", decay_patience=1, decay_factor=0.5)
    assert plateau_factor([], s) == 1
    assert plateau_factor([1.0, 0.9, 0.8, 0.7], s) == 1  # healthy: it goes down
    assert plateau_factor([1.0, math.nan, math.nan], s) == 0.5
    assert plateau_factor([1.0, math.nan, 0.5, math.nan], s) == 1
    assert plateau_factor([1.0] * 5, settings(decay="cosine")) == 1


def test_the_batch_grows_to_its_full_size_and_stays() -> None:
    s = settings(batch=64, batch_ramp=0.5)
    sizes = [batch_size(s, seen) for seen in range(0, 100_000, 500)]
    assert sizes[0] == 16 and sizes[-1] == 64
    assert sizes == sorted(sizes)
    assert set(sizes) == {16, 24, 32, 40, 48, 56, 64}  # eighths
    assert batch_size(s, 25_000) == 40 and batch_size(s, 50_000) == 64
    assert {batch_size(settings(batch=64), seen) for seen in (0, 7, 10**9)} == {64}
    pieces = settings(batch=60, micro_batch=20, batch_ramp=1.0, batch_ramp_from=0.1)
    assert {batch_size(pieces, seen) for seen in range(0, 100_001, 1000)} == {20, 40, 60}


@hypothesis_settings(max_examples=30, deadline=None)
@given(batch=st.integers(1, 50), ramp=st.floats(0.05, 1), skipped=st.integers(0, 12))
def test_resumed_with_a_ramp_equals_unbroken(batch: int, ramp: float, skipped: int) -> None:
    s = settings(images=300, batch=batch, batch_ramp=ramp)
    images = np.random.default_rng(0).integers(0, 256, (23, 1, 4, 4), np.uint8)
    data = planted(images)

    def stream(start: int) -> Any:
        return batches(
            data,
            np.arange(23),
            batch=lambda seen: batch_size(s, seen),
            seed=3,
            start=start,
            flip=True,
        )

    whole = list(islice(stream(0), skipped + 3))
    start = sum(len(one.images) for one in whole[:skipped])
    tail = list(islice(stream(start), 3))
    for one, other in zip(whole[skipped:], tail, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.images, other.images)
    seen = 0
    for one in whole:
        assert len(one.images) == batch_size(s, seen)
        seen += len(one.images)


def planted(images: np.ndarray) -> Dataset:
    names = tuple(map(str, range(len(images))))
    return Dataset(images, None, (), names, names, (None,) * len(images), (), (), (), "", {}, {})
