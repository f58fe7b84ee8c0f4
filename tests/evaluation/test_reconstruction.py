"""Figures of pairs of images against scikit-image, closed forms and planted errors."""

import math

import numpy as np
import pytest

from poise.errors import DataError, UsageError
from poise.evaluation import reconstruction as module
from poise.evaluation.reconstruction import reconstruction, reconstruction_floor


@pytest.fixture(autouse=True)
def _no_lpips(monkeypatch):
    """The package may be installed or not; the tests do not depend on it."""

    def missing(x, y):
        raise UsageError("LPIPS needs the package lpips", remedy="pip install 'poise[lpips]'")

    monkeypatch.setattr(module, "lpips", missing)


def _photographs(n=6, side=48, channels=3):
    from skimage.data import astronaut

    image = astronaut()
    crops = [image[40 * i : 40 * i + side, 150 : 150 + side] for i in range(n)]
    return np.stack(crops).transpose(0, 3, 1, 2)[:, :channels].copy()


def _noisy(images, levels):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=images.shape) * np.reshape(levels, (-1, 1, 1, 1))
    return np.clip(images + noise, 0, 255).round().astype(np.uint8)


def test_identical_images_are_perfect():
    images = _photographs(3)
    found = reconstruction(images, images)
    assert found.images == 3
    for name, value in {"mse": 0, "psnr": 100, "psnr_of_mean_mse": 100, "ssim": 1}.items():
        assert found.figures[name].value == pytest.approx(value)
        assert found.figures[name].samples_error == pytest.approx(0, abs=1e-12)


def test_figures_equal_scikit_image_and_both_means_of_psnr_are_told_apart():
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    a = _photographs(6)
    b = _noisy(a, [1, 2, 5, 10, 40, 60])
    found = reconstruction(a, b, batch=4).figures
    errors = np.square(a / 127.5 - b / 127.5).mean((1, 2, 3))
    ratios = [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
    similarities = [
        structural_similarity(
            x.astype(float),
            y.astype(float),
            data_range=255,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )[1][:, 5:-5, 5:-5].mean()
        for x, y in zip(a, b, strict=True)
    ]
    for name, values in {"mse": errors, "psnr": ratios, "ssim": similarities}.items():
        assert found[name].value == pytest.approx(np.mean(values), rel=1e-6)
        assert found[name].samples_error == pytest.approx(np.std(values, ddof=1) / 6**0.5, rel=1e-5)
    pooled = found["psnr_of_mean_mse"]
    assert pooled.value == pytest.approx(10 * math.log10(4 / errors.mean()))
    assert found["psnr"].value > pooled.value + 5
    above, below = (10 * math.log10(4 / (errors.mean() * f)) for f in (1 - 1e-6, 1 + 1e-6))
    slope = (above - below) / (2e-6 * errors.mean())
    assert pooled.samples_error == pytest.approx(slope * found["mse"].samples_error, rel=1e-4)


def test_batches_change_nothing():
    a = _photographs(5)
    b = _noisy(a, [3, 4, 5, 6, 7])
    assert reconstruction(a, b, batch=1) == reconstruction(a, b, batch=2) == reconstruction(a, b)


def test_what_cannot_be_had_is_left_out_with_a_reason():
    a = _photographs(2)
    found = reconstruction(a, a)
    assert found.figures.keys() == {"mse", "psnr", "psnr_of_mean_mse", "ssim"}
    assert "48x48" in found.left_out["ms_ssim"] and "package lpips" in found.left_out["lpips"]
    large = _photographs(1, 161)
    assert reconstruction(large, large).figures["ms_ssim"].value == pytest.approx(1)
    tiny = a[:, :, :2]
    assert reconstruction(tiny, tiny).left_out.keys() == {"ssim", "ms_ssim", "lpips"}


def test_lpips_sees_images_between_minus_one_and_one(monkeypatch):
    def distance(x, y):
        assert x.min() == -1 and y.max() == 1
        return (x - y).abs().amax((1, 2, 3))

    monkeypatch.setattr(module, "lpips", distance)
    black = np.zeros((2, 1, 8, 8), np.uint8)
    assert reconstruction(black, black + 255).figures["lpips"].value == 2


def test_one_pair_has_no_standard_error():
    a = _photographs(1)
    found = reconstruction(a, _noisy(a, [5])).figures
    assert all(math.isnan(figure.samples_error) for figure in found.values())


@pytest.mark.parametrize("channels", [1, 3])
def test_the_floor_is_what_pillow_loses(channels, tmp_path):
    from PIL import Image

    a = _photographs(3, channels=channels)
    copies = []
    for i, image in enumerate(a):
        path = tmp_path / f"{i}.jpg"
        pixels = np.squeeze(image.transpose(1, 2, 0))
        Image.fromarray(pixels).save(path, quality=95, subsampling=2)
        copies.append(np.asarray(Image.open(path)).reshape(48, 48, channels).transpose(2, 0, 1))
    found = reconstruction_floor(a, batch=2)
    assert found == reconstruction(a, np.stack(copies))
    assert 30 < found.figures["psnr"].value < 55 and 0.9 < found.figures["ssim"].value < 1


def test_images_that_cannot_be_written_to_are_read():
    a = _photographs(2)
    a.flags.writeable = False
    assert reconstruction(a, a).images == reconstruction_floor(a).images == 2


def test_bad_input_is_refused():
    a = _photographs(2)
    for originals, copies in ((a, a[:1]), (a, a.astype(float)), (a[0], a[0]), (a[:0], a[:0])):
        with pytest.raises(DataError):
            reconstruction(originals, copies)
    with pytest.raises(DataError, match="grey or RGB"):
        reconstruction_floor(a[:, :2])
