"""Denoising errors against the Gaussian's ideal denoiser, SSIM against scikit-image."""

import math
import time

import numpy as np
import pytest
import torch

from poise.errors import UsageError
from poise.evaluation.denoising import BandError, denoising_error, noise_levels, ssim
from poise.runtime import generator_at

SD = 0.5


def _ideal(x, sigma, labels):
    """The posterior mean of N(0, SD^2 I)."""
    s2 = sigma.view(-1, 1, 1, 1) ** 2
    return x * SD**2 / (SD**2 + s2)


def _gaussian_images(n, side=16):
    return SD * torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_noise_levels_are_log_spaced():
    s = noise_levels(5, 0.02, 20.0)
    np.testing.assert_allclose(s, np.geomspace(0.02, 20, 5), rtol=1e-12)


def test_the_ideal_denoiser_of_a_gaussian_has_its_exact_error():
    sigmas = noise_levels(6, 0.05, 10)
    found = denoising_error(_ideal, _gaussian_images(200), None, sigmas, seed=3, sigma_data=SD)
    n = 200 * 3 * 16 * 16
    for s, band in zip(sigmas.tolist(), found, strict=True):
        mse = s**2 * SD**2 / (s**2 + SD**2)
        assert band.sigma == s
        # The squared error is mse times a chi-square of n degrees, divided by n.
        assert abs(band.mse / mse - 1) < 4 * math.sqrt(2 / n)
        assert band.loss == pytest.approx(band.mse / mse, rel=1e-5)  # lambda is 1 / mse here


def test_bits_do_not_depend_on_the_batch_size():
    images, sigmas = _gaussian_images(37, 12).clamp(-1, 1), noise_levels(3, 0.1, 5)
    labels = torch.arange(37)

    def denoise(x, sigma, c):
        return _ideal(x, sigma, c) + 0.001 * c.view(-1, 1, 1, 1)

    runs = [
        denoising_error(denoise, images, labels, sigmas, seed=1, sigma_data=SD, batch=batch)
        for batch in (1, 5, 36, 128)
    ]
    assert all(run == runs[0] for run in runs)


def test_noise_follows_the_documented_stream():
    images, sigmas, seen = torch.zeros(3, 1, 4, 4), torch.tensor([0.5, 2.0]), []

    def denoise(x, sigma, c):
        assert sigma.shape == (len(x),) and c is None
        seen.append(x / sigma[0])
        return x

    denoising_error(denoise, images, None, sigmas, seed=9, sigma_data=SD, batch=2)
    noise = torch.randn(1, 4, 4, generator=generator_at(9, 2 * 2 + 1, "validation"))
    torch.testing.assert_close(seen[3][0], noise)


def test_psnr_and_ssim_see_the_clamped_estimate_and_a_mean_of_images():
    images = torch.ones(2, 3, 12, 12)
    errors = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)

    def constant(shift):
        band = denoising_error(
            lambda x, s, c: images + shift, images, None, torch.ones(1), seed=0, sigma_data=1.0
        )
        return band[0]

    below, above = constant(-errors), constant(errors)
    assert below.psnr == pytest.approx(
        (10 * math.log10(400) + 10 * math.log10(40000)) / 2, rel=1e-4
    )
    assert above.psnr == pytest.approx(100) and above.ssim == pytest.approx(1)
    assert above.mse == pytest.approx(below.mse, rel=1e-5)
    assert above.loss == pytest.approx(2 * above.mse)


def test_a_diverged_network_shows_as_nan():
    band = denoising_error(
        lambda x, s, c: x * torch.nan,
        torch.zeros(2, 1, 4, 4),
        None,
        torch.ones(1),
        seed=0,
        sigma_data=SD,
    )[0]
    assert isinstance(band, BandError) and math.isnan(band.loss) and math.isnan(band.psnr)


def test_ssim_equals_scikit_image():
    from skimage.data import astronaut
    from skimage.metrics import structural_similarity

    rng = np.random.default_rng(0)
    a = np.ascontiguousarray(astronaut()[100:164, 180:250]).astype(np.float64)
    for b in (np.clip(a + rng.normal(size=a.shape) * 20, 0, 255), a[::-1].copy(), a * 0.5):
        _, theirs = structural_similarity(
            a,
            b,
            data_range=255,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        x, y = (torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in (a, b))
        ours = ssim(x, y, 255)
        assert ours.shape == (1,)
        assert float(ours) == pytest.approx(theirs[5:-5, 5:-5].mean(), abs=1e-6)


def test_ssim_bounds_and_small_images():
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ssim(x, x, 1.0), torch.ones(4, dtype=torch.float64))
    assert (ssim(x, 1 - x, 1.0) < 0).all()
    for side in (3, 4, 10):
        assert ssim(x[..., :side, :side], x[..., :side, :side], 1.0).shape == (4,)
    with pytest.raises(UsageError, match="sides of at least 3"):
        ssim(x[..., :2], x[..., :2], 1.0)


def test_the_noise_of_a_validation_probe_is_cheap():
    images, sigmas = torch.zeros(256, 3, 32, 32), noise_levels(8, 0.02, 20)
    from poise.evaluation.denoising import _noise

    start = time.process_time()
    for j in range(len(sigmas)):
        _noise(0, range(j, 256 * 8, 8), images)
    assert time.process_time() - start < 2  # measured: 0.2 s


def test_bad_input_is_refused():
    good = torch.zeros(2, 1, 4, 4)
    with pytest.raises(UsageError, match="noise levels from"):
        noise_levels(8, 1.0, 0.5)
    for images, labels, sigmas in (
        (good.byte(), None, torch.ones(1)),
        (good[:0], None, torch.ones(1)),
        (good, torch.zeros(3), torch.ones(1)),
        (good, None, torch.zeros(1)),
    ):
        with pytest.raises(UsageError):
            denoising_error(lambda x, s, c: x, images, labels, sigmas, seed=0, sigma_data=SD)
