"""Flips are allowed exactly where left and right are alike."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from poise.data.augment import flip_asymmetry, flip_images, flips_keep_classes


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray]:
    raw = load_digits()
    return np.rint(raw.images * (255 / 16)).astype(np.uint8)[:, None], raw.target.astype(np.int64)


@pytest.mark.parametrize("kept", [tuple(range(10)), (0, 8), (0, 1, 8), (3,)])
def test_digits_must_not_be_flipped(digits, kept: tuple[int, ...]) -> None:
    chosen = np.isin(digits[1], kept)
    assert not flips_keep_classes(digits[0][chosen], digits[1][chosen])


def test_digits_without_labels_or_few_of_them(digits) -> None:
    assert not flips_keep_classes(digits[0], None)
    assert not flips_keep_classes(digits[0][:200], digits[1][:200])


@pytest.mark.parametrize("count", [100, 1000])
@pytest.mark.parametrize("with_labels", [True, False])
def test_images_seen_from_both_sides_may_be_flipped(digits, count: int, with_labels: bool) -> None:
    drawn = np.random.default_rng(0).random(len(digits[0])) < 0.5
    images = digits[0].copy()
    images[drawn] = images[drawn][..., ::-1]
    labels = digits[1][:count] % 2 if with_labels else None
    assert flips_keep_classes(images[:count], labels)


def test_the_estimate_does_not_grow_with_chance() -> None:
    rng = np.random.default_rng(0)
    found = [flip_asymmetry(rng.integers(0, 256, (9, 1, 8, 8), np.uint8), None) for _ in range(100)]
    assert abs(np.mean(found)) < 0.003 and min(found) < 0 < max(found)


def test_a_planted_antisymmetric_mean_is_measured() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(128, 20, (4000, 1, 8, 8))
    images[..., :4] += 5
    images[..., 4:] -= 5
    found = flip_asymmetry(images.round().astype(np.uint8), None)
    assert found == pytest.approx(25 / 400, rel=0.05)


def test_one_lopsided_class_is_enough() -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (2000, 1, 8, 8), np.uint8)
    labels = np.arange(2000) % 20
    images[labels == 3, :, :, :4] += 40
    assert not flips_keep_classes(images, labels)


def test_constant_images_may_be_flipped() -> None:
    assert flips_keep_classes(np.full((20, 1, 4, 4), 9, np.uint8), None)


def test_flip_images_depends_on_the_generator_only() -> None:
    images = torch.arange(5 * 3 * 4 * 4, dtype=torch.uint8).reshape(5, 3, 4, 4)
    one = flip_images(images, torch.Generator().manual_seed(1))
    assert torch.equal(one, flip_images(images, torch.Generator().manual_seed(1)))
    assert one.dtype == torch.uint8 and torch.equal(one.sort(-1).values, images.sort(-1).values)
