"""Fine detail of known spectra, of digits, and of blurred and noisy photographs."""

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits, load_sample_images

from poise.errors import DataError
from poise.evaluation.detail import detail_estimate, fine_detail


def to_bytes(x):
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


def blurred(images, sigma):
    return to_bytes(gaussian_filter(images.astype(float), (0, 0, sigma, sigma)))


def noisy(images, sigma):
    return to_bytes(images + np.random.default_rng(0).normal(size=images.shape) * sigma)


@pytest.fixture(scope="module")
def digits():
    return to_bytes(load_digits().images * 255 / 16)[:, None]


@pytest.fixture(scope="module")
def photos():
    """Crops of two photographs, made small: 32 x 32, in a random order, [600, 3, 32, 32]."""
    cut = []
    for photo in load_sample_images().images:
        small = photo[:426, :640].reshape(213, 2, 320, 2, 3).mean((1, 3)).transpose(2, 0, 1)
        cut += [
            small[:, r : r + 32, c : c + 32] for r in range(0, 181, 11) for c in range(0, 288, 14)
        ]
    order = np.random.default_rng(0).permutation(len(cut))
    return to_bytes(np.stack(cut))[order[:600]]


def test_white_noise_and_nothing_have_no_excess():
    rng = np.random.default_rng(0)
    flat = np.full((4, 3, 8, 10), 77, np.uint8)
    assert np.isnan(fine_detail(flat)).all()  # no detail, fine or coarse
    assert math.isnan(detail_estimate(flat, to_bytes(rng.normal(128, 20, flat.shape))).value)
    found = fine_detail(to_bytes(128 + 20 * rng.normal(size=(100, 3, 32, 24))))
    assert abs(found.mean()) < 0.05


@pytest.mark.parametrize(("u", "sign"), [(3, -1), (5, 1)])
def test_a_single_frequency_falls_into_its_band(u, sign):
    wave = 60 * np.cos(np.pi * u * (np.arange(8) + 0.5) / 8)
    x = to_bytes(128 + np.broadcast_to(wave, (1, 1, 8, 8)))
    assert sign * fine_detail(x)[0] > 5
    assert fine_detail(x.swapaxes(2, 3)) == pytest.approx(fine_detail(x), abs=1e-9)


def test_contrast_and_brightness_do_not_count(digits):
    flatter = detail_estimate(to_bytes(digits * 0.6 + 60), digits)
    assert flatter.value == pytest.approx(1, abs=0.01)


def test_batches_do_not_matter(photos):
    assert np.array_equal(fine_detail(photos[:200])[130:], fine_detail(photos[130:200]))


@pytest.mark.parametrize("grey", [False, True])
def test_blur_and_noise_of_photographs_are_seen_in_their_direction(photos, grey):
    x = to_bytes(photos.mean(1, keepdims=True)) if grey else photos
    samples, reference = x[:300], x[300:]
    assert detail_estimate(blurred(samples, 0.5), reference).interval()[1] < 0.9
    assert detail_estimate(noisy(samples, 8), reference).interval()[0] > 1.1
    low, high = detail_estimate(samples, reference).interval()
    assert low < 1 < high


def test_blur_of_digits_is_seen(digits):
    assert detail_estimate(blurred(digits[:300], 0.5), digits[300:600]).interval()[1] < 0.9


def test_the_interval_holds_for_disjoint_real_sets(digits):
    rng = np.random.default_rng(0)
    held, errors, values = 0, [], []
    for _ in range(60):
        rows = rng.permutation(len(digits))
        e = detail_estimate(digits[rows[:100]], digits[rows[100:300]])
        held += e.interval()[0] < 1 < e.interval()[1]
        errors.append(np.hypot(e.samples_error, e.reference_error))
        values.append(e.value)
    assert held >= 52
    assert np.mean(errors) == pytest.approx(np.std(values), rel=0.3)


def test_what_has_no_detail_is_refused(photos):
    with pytest.raises(DataError, match="uint8"):
        fine_detail(photos.astype(np.float64))
    with pytest.raises(DataError, match="3 x 8 pixels"):
        fine_detail(np.zeros((2, 1, 3, 8), np.uint8))
    with pytest.raises(DataError, match="of one size"):
        detail_estimate(photos, photos[:, :1])
    with pytest.raises(DataError, match="two images"):
        detail_estimate(photos[:1], photos)
