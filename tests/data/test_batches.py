"""The stream of batches is a function of its position; pixels keep their scale."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import dataset_of, distinct

from poise.data.batches import Batch, batches, measure_sigma_data, to_uint8, to_unit
from poise.errors import DataError, UsageError


def equal(a: Batch, b: Batch) -> bool:
    assert a.labels is not None and b.labels is not None
    return (
        torch.equal(a.images, b.images)
        and torch.equal(a.labels, b.labels)
        and torch.equal(a.indices, b.indices)
    )


def data_of(count: int):
    images = np.random.default_rng(0).integers(0, 256, (count, 3, 4, 4), np.uint8)
    return dataset_of(images, [n % 3 for n in range(count)])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 20), st.booleans())
def test_resumed_equals_unbroken(count: int, batch: int, skipped: int, flip: bool) -> None:
    data, members = data_of(count + 5), np.arange(2, count + 2)
    whole = islice(batches(data, members, batch=batch, seed=3, flip=flip), skipped, skipped + 4)
    tail = batches(data, members, batch=batch, seed=3, start=skipped * batch, flip=flip)
    assert all(equal(a, b) for a, b in zip(whole, tail, strict=False))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 70), st.integers(0, 100))
def test_every_epoch_holds_each_image_once(count: int, batch: int, start: int) -> None:
    data, members = data_of(count + 5), np.arange(count) + 3
    stream = batches(data, members, batch=batch, seed=0, start=start)
    seen = torch.cat([b.indices for b in islice(stream, (start + 3 * count) // batch + 2)])
    to_border = -start % count
    for epoch in range(2):
        part = seen[to_border + epoch * count : to_border + (epoch + 1) * count]
        assert sorted(part.tolist()) == members.tolist()


def test_batches_hold_the_images_of_their_indices() -> None:
    data = data_of(40)
    for one in islice(batches(data, np.arange(40), batch=16, seed=1), 6):
        assert one.images.dtype == torch.uint8 and one.indices.dtype == torch.int64
        assert np.array_equal(one.images.numpy(), data.images[one.indices.numpy()])
        assert data.labels is not None and one.labels is not None
        assert np.array_equal(one.labels.numpy(), data.labels[one.indices.numpy()])


def test_orders_differ_between_epochs_and_seeds() -> None:
    data, members = data_of(40), np.arange(40)
    first, second = islice(batches(data, members, batch=40, seed=1), 2)
    other = next(batches(data, members, batch=40, seed=2))
    assert not torch.equal(first.indices, second.indices)
    assert not torch.equal(first.indices, other.indices)


def test_flips_mirror_half_of_the_images() -> None:
    data = data_of(400)
    one = next(batches(data, np.arange(400), batch=400, seed=1, flip=True))
    original = torch.from_numpy(data.images)[one.indices]
    mirrored = (one.images == original.flip(-1)).flatten(1).all(1)
    kept = (one.images == original).flatten(1).all(1)
    assert bool((mirrored ^ kept).all()) and 150 < int(mirrored.sum()) < 250


def test_a_memory_map_gives_the_same_batches(tmp_path: Path) -> None:
    data = data_of(30)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=data.images.shape)
    mapped[:] = data.images
    mapped.flush()
    labels = [n % 3 for n in range(30)]
    for images in (np.memmap(tmp_path / "x", np.uint8, "r", shape=data.images.shape), mapped):
        other = dataset_of(images, labels)
        pairs = zip(
            islice(batches(data, np.arange(30), batch=7, seed=0), 9),
            batches(other, np.arange(30), batch=7, seed=0),
            strict=False,
        )
        assert all(equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("members", "batch", "start"), [(0, 1, 0), (5, 0, 0), (5, 1, -1)])
def test_impossible_streams_are_refused_at_once(members: int, batch: int, start: int) -> None:
    with pytest.raises(UsageError, match="Cannot draw"):
        batches(data_of(9), np.arange(members), batch=batch, seed=0, start=start)


def test_scale_there_and_back() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    unit = to_unit(every)
    assert unit.dtype == torch.float32 and unit[0] == -1 and unit[255] == 1
    assert torch.equal(to_uint8(unit), every)
    assert to_uint8(torch.tensor([-9.0, 9.0, 0.0])).tolist() == [0, 255, 128]


def test_sigma_data_is_the_deviation_about_the_channel_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 8, 8), np.uint8)
    images[:, 1] //= 2
    members = np.arange(5, 45)
    x = images[members] / 127.5 - 1
    expected = np.sqrt(((x - x.mean((0, 2, 3), keepdims=True)) ** 2).mean())
    assert abs(measure_sigma_data(images, members) - expected) < 1e-12


def test_flat_images_are_refused() -> None:
    flat = np.full((10, 3, 8, 8), 77, np.uint8)
    flat[:, 1] = 200  # one colour, though channels differ
    with pytest.raises(DataError, match="one flat colour"):
        measure_sigma_data(flat, np.arange(10))
    with pytest.raises(DataError, match="0 training images"):
        measure_sigma_data(distinct([1, 2]), np.arange(0))
