"""The built-in features: fixed, and sensitive to what spoils generated images."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from poise.errors import DataError, UsageError
from poise.evaluation.extractors.fixed import Pixels, RandomConv
from poise.evaluation.features import build_features, extract
from poise.evaluation.fidelity import frechet_distance
from poise.evaluation.kernels import kernel_distance


@pytest.fixture(scope="module")
def photographs():
    """Two disjoint sets of 32 x 32 crops of photographs, uint8 [600, 3, 32, 32] each."""
    from skimage.data import astronaut, chelsea, coffee

    rng, crops = np.random.default_rng(0), []
    for image in (astronaut(), chelsea(), coffee()):
        rows = rng.integers(0, image.shape[0] - 32, 400)
        columns = rng.integers(0, image.shape[1] - 32, 400)
        crops += [image[r : r + 32, c : c + 32] for r, c in zip(rows, columns, strict=True)]
    x = torch.from_numpy(np.stack(crops).transpose(0, 3, 1, 2).copy())
    x = x[torch.from_numpy(rng.permutation(len(x)))]
    return x[:600], x[600:]


def _blur(x):
    return functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


DEGRADED = {
    "blur": _blur,
    "noise": lambda x: x + 10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)),
    "channels swapped": lambda x: x[:, [2, 1, 0]],
    "contrast": lambda x: (x - 128) * 0.7 + 128,
    "layout": lambda x: x.roll((16, 16), (2, 3)),
    "checkerboard": lambda x: x + 8 * (-1.0) ** torch.arange(32),
}


@pytest.fixture(scope="module")
def floor(photographs):
    """Features of the first set, and both distances of real images from real ones."""
    f, f_other = (extract(RandomConv(), x) for x in photographs)
    return f, frechet_distance(f, f_other), kernel_distance(f, f_other)


@pytest.mark.parametrize("kind", DEGRADED)
def test_random_conv_sees_planted_degradations(photographs, floor, kind):
    spoilt = DEGRADED[kind](photographs[1].float()).round().clamp(0, 255).byte()
    f_spoilt = extract(RandomConv(), spoilt)
    f, frechet, kernel = floor
    # 600 images in 488 dimensions: most of the Fréchet floor is bias, which both figures share.
    assert frechet_distance(f, f_spoilt) > 1.4 * frechet
    assert kernel_distance(f, f_spoilt) > 5 * abs(kernel)


def test_random_conv_is_the_same_every_time_and_for_any_batch():
    x = torch.randint(256, (10, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    a, b = RandomConv(), RandomConv()
    assert a.digest == b.digest == "6a8cd4a00057"  # a new digest makes old scores incomparable
    np.testing.assert_array_equal(extract(a, x), extract(b, x))
    np.testing.assert_allclose(extract(a, x, batch=3), extract(a, x), atol=1e-5)
    np.testing.assert_array_equal(extract(a, x.numpy()), extract(a, x))


@pytest.mark.parametrize("shape", [(8, 8), (9, 13), (28, 28), (96, 64)])
def test_random_conv_takes_any_resolution_and_grey_as_equal_channels(shape):
    grey = torch.randint(256, (4, 1, *shape), generator=torch.Generator().manual_seed(1)).byte()
    f = extract(RandomConv(), grey)
    assert f.shape == (4, 488) and f.dtype == np.float64
    np.testing.assert_allclose(f, extract(RandomConv(), grey.expand(-1, 3, -1, -1)), atol=1e-5)


def test_random_conv_of_other_channel_counts():
    x = torch.randint(256, (4, 7, 16, 16), generator=torch.Generator().manual_seed(1)).byte()
    two = x[:, [0, 1, 0]]
    np.testing.assert_array_equal(extract(RandomConv(), x[:, :2]), extract(RandomConv(), two))
    # Runs of 3, 2 and 2 neighbours; equal channels in a run are their own mean.
    seven = x[:, [0, 0, 0, 1, 1, 2, 2]]
    three = extract(RandomConv(), x[:, :3])
    np.testing.assert_allclose(extract(RandomConv(), seven), three, atol=2e-4)
    four = extract(RandomConv(), x[:, [0, 0, 1, 2]])
    np.testing.assert_allclose(four, three, atol=2e-4)


def test_pixels_are_exact():
    x = torch.arange(48).byte().view(1, 3, 4, 4)
    np.testing.assert_allclose(extract(Pixels(), x)[0], np.arange(48) / 127.5 - 1, atol=1e-7)


def test_build_features():
    assert build_features("auto", 16).name == "pixels"
    assert build_features("auto", 17).name == "random_conv"
    assert build_features("pixels", 64).name == "pixels"
    with pytest.raises(UsageError, match="Did you mean 'pixels'"):
        build_features("pixel", 8)  # type: ignore[arg-type]


def test_bad_images_and_features_are_named():
    class Broken:
        name, digest = "broken", "0"

        def __call__(self, images):
            f = torch.zeros(len(images), 3)
            f[images[:, 0, 0, 0] == 7] = torch.nan
            return f

    x = torch.zeros(9, 1, 8, 8, dtype=torch.uint8)
    x[5] = 7
    with pytest.raises(DataError, match="'broken' features of image 5 "):
        extract(Broken(), x, batch=4)
    for bad in (x.float(), x[0], x[:0]):
        with pytest.raises(DataError, match="uint8"):
            extract(Pixels(), bad)
    for bad in (x[..., :7], x[..., :7, :]):
        with pytest.raises(DataError, match="random_conv"):
            extract(RandomConv(), bad)
