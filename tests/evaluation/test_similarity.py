"""Image similarity against scikit-image, closed forms, and a planted network."""

import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from poise.errors import DataError, UsageError
from poise.evaluation import similarity
from poise.evaluation.similarity import lpips, ms_ssim, mse, over_images, psnr, ssim


def _pair(h, w, seed=0, noise=20.0):
    """A photograph and its noisy self, float64 [h, w, 3] in 0..255."""
    from skimage.data import astronaut

    rng = np.random.default_rng(seed)
    a = np.ascontiguousarray(astronaut()[100 : 100 + h, 180 : 180 + w]).astype(np.float64)
    return a, np.clip(a + rng.normal(size=a.shape) * noise, 0, 255)


def _tensors(*images):
    return [torch.from_numpy(image.transpose(2, 0, 1).copy())[None] for image in images]


def _skimage_map(a, b, **more):
    """The SSIM of each channel at each place where the window fits."""
    from skimage.metrics import structural_similarity

    _, full = structural_similarity(
        a,
        b,
        data_range=255,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
        **more,
    )
    return full[5:-5, 5:-5]


def test_mse_and_psnr_equal_scikit_image():
    from skimage.metrics import mean_squared_error, peak_signal_noise_ratio

    a, b = _pair(64, 70)
    x, y = _tensors(a, b)
    assert float(mse(x, y)) == pytest.approx(mean_squared_error(a, b), rel=1e-12)
    found = float(psnr(x, y, 255))
    assert found == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), rel=1e-12)
    unit = (x / 127.5 - 1, y / 127.5 - 1)
    assert float(psnr(*unit, 2)) == pytest.approx(found, rel=1e-9)


def test_psnr_of_a_known_error_and_its_cap():
    x = torch.zeros(3, 1, 4, 4)
    y = torch.tensor([0.0, 0.1, 1e-9]).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    assert psnr(x, y, 1).tolist() == pytest.approx([100, 20, 100])
    assert psnr(x * 127, y * 127, 127).tolist() == pytest.approx([100, 20, 100])


def test_ssim_equals_scikit_image():
    a, b = _pair(64, 70)
    for other in (b, a[::-1].copy(), a * 0.5):
        ours = ssim(*_tensors(a, other), 255)
        assert ours.shape == (1,)
        assert float(ours) == pytest.approx(_skimage_map(a, other).mean(), abs=1e-6)


def test_ssim_bounds_and_small_images():
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ssim(x, x, 1.0), torch.ones(4, dtype=torch.float64))
    assert (ssim(x, 1 - x, 1.0) < 0).all()
    for side in (3, 4, 10):
        assert ssim(x[..., :side, :side], x[..., :side, :side], 1.0).shape == (4,)
    with pytest.raises(UsageError, match="sides of at least 3"):
        ssim(x[..., :2], x[..., :2], 1.0)


def _halved(image):
    """Means of 2 x 2 cells [H, W, 3]; repeating the edge makes an odd side even."""
    image = np.pad(image, [(0, s % 2) for s in image.shape[:2]] + [(0, 0)], mode="edge")
    return (image[::2, ::2] + image[1::2, ::2] + image[::2, 1::2] + image[1::2, 1::2]) / 4


def _ms_ssim_by_scikit_image(a, b):
    product = np.ones(3)
    weights = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
    for scale, weight in enumerate(weights):
        # With so large a K1 the luminance term is 1, and contrast times structure is left.
        parts = _skimage_map(a, b, K1=1e6) if scale < 4 else _skimage_map(a, b)
        product *= parts.mean((0, 1)) ** weight
        a, b = _halved(a), _halved(b)
    return product.mean()


@pytest.mark.parametrize("shape", [(161, 161), (176, 190), (203, 167)])
def test_ms_ssim_equals_its_definition_by_scikit_image(shape):
    a, b = _pair(*shape, noise=40)
    b = b * 0.8 + 10
    ours = float(ms_ssim(*_tensors(a, b), 255))
    assert 0.5 < ours < 0.98
    assert ours == pytest.approx(_ms_ssim_by_scikit_image(a, b), abs=1e-9)


def test_ms_ssim_of_flat_images_is_the_luminance_alone():
    x = torch.full((1, 2, 170, 164), 0.25)
    y = torch.full((1, 2, 170, 164), 0.75)
    luminance = (2 * 0.25 * 0.75 + 1e-4) / (0.25**2 + 0.75**2 + 1e-4)
    assert float(ms_ssim(x, y, 1)) == pytest.approx(luminance**0.1333, rel=1e-9)


def test_ms_ssim_bounds_and_the_size_it_needs():
    x = torch.rand(2, 1, 161, 163, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(ms_ssim(x, x, 1.0), torch.ones(2, dtype=torch.float64))
    assert ms_ssim(x, 1 - x, 1.0).tolist() == [0, 0]  # negative correlations count as none
    y = x.roll(1, 3)
    assert torch.equal(ms_ssim(x, y, 1.0), ms_ssim(y, x, 1.0))
    with pytest.raises(DataError, match="sides above 160"):
        ms_ssim(x[..., :160], x[..., :160], 1.0)


@pytest.mark.parametrize("measure", [psnr, ssim, ms_ssim])
def test_bits_do_not_depend_on_the_batch(measure):
    g = torch.Generator().manual_seed(3)
    x, y = (torch.rand(3, 2, 165, 161, generator=g) for _ in range(2))
    alone = torch.cat([measure(x[i : i + 1], y[i : i + 1], 1.0) for i in range(3)])
    assert alone.dtype == torch.float64 and torch.equal(measure(x, y, 1.0), alone)


@pytest.mark.parametrize("measure", [mse, lpips])
def test_images_of_different_shapes_are_refused(measure):
    with pytest.raises(UsageError, match="one shape"):
        measure(torch.zeros(2, 3, 40, 40), torch.zeros(2, 3, 40, 41))


def test_a_mean_over_images_has_its_standard_error():
    values = torch.tensor([1.0, 2.0, 4.0, 5.0])
    found = over_images(values)
    assert found.value == 3
    assert found.samples_error == pytest.approx(np.std(values.numpy(), ddof=1) / 2)
    assert math.isnan(found.reference_error)
    assert over_images(values[:1]).value == 1 and math.isnan(over_images(values[:1]).samples_error)


@pytest.fixture
def _fresh():
    similarity._lpips_network.cache_clear()
    yield
    similarity._lpips_network.cache_clear()


class _Network:
    """Stands for `lpips.LPIPS`: the mean absolute difference, [B, 1, 1, 1]."""

    def __init__(self):
        self.built, self.seen = [], []

    def __call__(self, x, y):
        assert not torch.is_grad_enabled()
        self.seen.append((x, y))
        return (x - y).abs().mean((1, 2, 3), keepdim=True)

    def to(self, device):
        self.device = device
        return self

    def module(self):
        return SimpleNamespace(LPIPS=lambda **settings: self.built.append(settings) or self)


@pytest.mark.usefixtures("_fresh")
def test_lpips_asks_the_package_once_with_three_channels_in_float32(monkeypatch):
    network = _Network()
    monkeypatch.setitem(sys.modules, "lpips", network.module())
    x, y = torch.zeros(4, 1, 31, 40, dtype=torch.float64), torch.ones(4, 1, 31, 40).double()
    y[1] = 0.5
    found = lpips(x, y)
    assert found.dtype == torch.float64 and found.tolist() == [1, 0.5, 1, 1]
    lpips(x[:2].expand(-1, 3, -1, -1), y[:2].expand(-1, 3, -1, -1))
    assert network.built == [{"net": "alex", "version": "0.1", "verbose": False}]
    assert network.device == "cpu"
    assert [a.shape for a, _ in network.seen] == [(4, 3, 31, 40), (2, 3, 31, 40)]
    assert all(t.dtype == torch.float32 for pair in network.seen for t in pair)


@pytest.mark.usefixtures("_fresh")
def test_lpips_names_the_extra_where_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    x = torch.zeros(1, 3, 40, 40)
    with pytest.raises(UsageError, match=r"pip install 'poise\[lpips\]'"):
        lpips(x, x)


@pytest.mark.usefixtures("_fresh")
def test_lpips_says_which_weights_it_lacks(monkeypatch):
    def offline(**settings):
        raise OSError("no route to host")

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=offline))
    x = torch.zeros(1, 3, 40, 40)
    with pytest.raises(UsageError, match=r"no route to host(.|\n)*alexnet-owt-7be5be79\.pth"):
        lpips(x, x)


@pytest.mark.parametrize("shape", [(1, 2, 40, 40), (1, 3, 30, 40)])
def test_lpips_refuses_images_its_network_cannot_read(shape):
    with pytest.raises(DataError, match="sides of at least 31"):
        lpips(torch.zeros(shape), torch.zeros(shape))
