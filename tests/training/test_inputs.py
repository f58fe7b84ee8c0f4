"""What is seen of a batch before it is trained on, against planted faults."""

import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.data.batches import Batch
from poise.training.inputs import BRIGHTEST, check_inputs, mended_labels


def batch(images: torch.Tensor, labels: torch.Tensor | None = None) -> Batch:
    return Batch(images, labels, torch.arange(len(images)))


def bytes_of(count: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_a_healthy_batch_is_quiet(kind: torch.dtype) -> None:
    images = bytes_of()
    check = check_inputs(batch(images.to(kind), torch.arange(6)), num_classes=6, limit=BRIGHTEST)
    assert not check.bad.any()
    assert not check.flat.any()
    assert check.reasons == ("",) * 6
    seen = images.to(kind).float()
    assert (check.low, check.high) == (seen.min().item(), seen.max().item())
    assert len(set(check.prints.tolist())) == 6


def test_every_planted_fault_is_named_for_its_image() -> None:
    images = bytes_of(8).float()
    images[1, 2, 3, 3] = torch.nan
    images[2, 0, 0, 0] = -torch.inf
    images[3, 1, 1, 1] = 260
    images[4, 1, 1, 1] = -3
    images[5, 0, 0, 0] = 255.9  # what a filter may overshoot by
    labels = torch.tensor([0, 9, 0, 9, 0, 0, 3, -1])
    check = check_inputs(batch(images, labels), num_classes=3, limit=BRIGHTEST)
    wanted = ("", "non-finite", "non-finite", "range", "range", "", "label", "label")
    assert check.reasons == wanted
    assert check.bad.tolist() == [bool(reason) for reason in wanted]
    assert check.low == -np.inf
    assert check.high == 260
    mended = mended_labels(labels, check)
    assert ((mended >= 0) & (mended < 3)).all()
    assert torch.equal(mended[[0, 5]], labels[[0, 5]])


def test_latents_have_no_range_and_networks_without_classes_no_labels() -> None:
    images = 1000 * torch.randn(4, 2, 3, 3)
    images[2, 0, 0, 0] = torch.inf
    found = check_inputs(batch(images, torch.full((4,), 99)), num_classes=0, limit=None)
    assert found.reasons == ("", "", "non-finite", "")


def test_a_batch_scaled_twice_is_out_of_range_in_every_image() -> None:
    check = check_inputs(batch(bytes_of().float() * 127.5), num_classes=0, limit=BRIGHTEST)
    assert check.reasons == ("range",) * 6


def test_a_batch_of_nothing_but_nan_has_no_lowest_value() -> None:
    check = check_inputs(batch(torch.full((2, 1, 2, 2), torch.nan)), num_classes=0, limit=None)
    assert np.isnan([check.low, check.high]).all()
    assert not check.flat.any()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 255), min_size=1, max_size=5))
def test_one_colour_throughout_is_flat(values: list[int]) -> None:
    flat = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 2, 3, 3)
    images = torch.cat([flat, bytes_of(1)[:, :2, :3, :3]])
    check = check_inputs(batch(images), num_classes=0, limit=BRIGHTEST)
    assert check.flat.tolist() == [True] * len(values) + [False]
    assert not check.bad.any()


def test_prints_are_those_of_the_bytes_wherever_they_lie(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    images = bytes_of()
    wanted = [zlib.crc32(image.numpy().tobytes()) for image in images]
    path = tmp_path_factory.mktemp("mapped") / "images.npy"
    np.save(path, images.numpy())
    mapped = torch.from_numpy(np.load(path, mmap_mode="r+"))
    for same in (images, mapped, images.contiguous(memory_format=torch.channels_last)):
        check = check_inputs(batch(same), num_classes=0, limit=BRIGHTEST)
        assert check.prints.tolist() == wanted
    other = images.clone()
    other[4, 0, 0, 0] ^= 1
    prints = check_inputs(batch(other), num_classes=0, limit=BRIGHTEST).prints
    assert [i for i in range(6) if prints[i] != wanted[i]] == [4]
