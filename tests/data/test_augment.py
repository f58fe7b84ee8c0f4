"""Flips are allowed exactly where left and right are alike."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from poise.data.augment import (
    classifier_augment,
    flip_asymmetry,
    flip_images,
    flips_keep_classes,
)
from poise.errors import UsageError


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


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_classifiers_crops_are_windows_of_the_reflected_image() -> None:
    images = torch.arange(200 * 2 * 7 * 5).reshape(200, 2, 7, 5)
    done = classifier_augment(images, drawn(), flip=False, crop=3)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3)), mode="reflect")
    found = set()
    for n, image in enumerate(done.numpy()):
        places = [
            (y, x)
            for y in range(7)
            for x in range(7)
            if np.array_equal(padded[n, :, y : y + 7, x : x + 5], image)
        ]
        assert len(places) == 1
        found.add(places[0])
    assert {y for y, _ in found} == {x for _, x in found} == set(range(7))


def test_a_classifiers_flips_are_flips() -> None:
    images = torch.rand(50, 3, 6, 6, generator=drawn(1))
    assert torch.equal(classifier_augment(images, drawn()), flip_images(images, drawn()))
    assert torch.equal(classifier_augment(images, drawn(), flip=False), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_classifiers_colours_move_within_bounds(channels: int) -> None:
    """Bytes and floats are treated alike; a gray image has brightness to lose and nothing else."""
    images = torch.randint(0, 256, (60, channels, 6, 6), generator=drawn(1), dtype=torch.uint8)
    done = classifier_augment(images, drawn(), flip=False, colour=0.4)
    assert done.dtype == torch.uint8 and not torch.equal(done, images)
    floats = classifier_augment(images / 127.5 - 1, drawn(), flip=False, colour=0.4)
    assert floats.dtype == torch.float32 and floats.abs().max() <= 1
    torch.testing.assert_close((floats + 1) * 127.5, done.float(), atol=0.51, rtol=0)
    flat = torch.zeros(500, channels, 2, 2)
    moved = classifier_augment(flat, drawn(), flip=False, colour=0.4)
    assert (moved == moved[:, :1, :1, :1]).all()
    assert 0.35 < moved.abs().max() <= 0.4


@pytest.mark.parametrize("wrong", [{"crop": 8}, {"crop": -1}, {"colour": 1.5}])
def test_a_classifiers_impossible_variants_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="crop = "):
        classifier_augment(torch.zeros(1, 1, 8, 8), drawn(), **wrong)
