"""Features of small pictures: what a row may depend on, and that alike pictures lie together."""

import numpy as np
import pytest
from numpy.typing import NDArray

from poise.audit.content.features import choose_space, describe
from poise.errors import DataError, UsageError

WIDTHS = {"layout": 176, "pixels": 768, "random_conv": 488}


def noise(count: int, seed: int = 0) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 8, 8, 3))
    return coarse.repeat(4, 1).repeat(4, 2).astype(np.uint8)


@pytest.mark.parametrize("name", WIDTHS)
def test_rows_have_unit_length_and_depend_on_their_own_picture_only(name: str) -> None:
    thumbs = noise(260)  # more than a chunk
    f = describe(thumbs, name)
    assert f.shape == (260, WIDTHS[name])
    assert f.dtype == np.float32
    np.testing.assert_allclose((f.astype(float) ** 2).sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(describe(thumbs[-3:], name), f[-3:], atol=1e-5)


@pytest.mark.parametrize("name", WIDTHS)
def test_flat_and_empty_pictures_are_described_too(name: str) -> None:
    thumbs = np.stack([np.full((32, 32, 3), v, np.uint8) for v in (0, 127, 128, 255)])
    f = describe(thumbs, name)
    assert np.isfinite(f).all()
    np.testing.assert_allclose((f.astype(float) ** 2).sum(1), 1, atol=1e-5)
    assert describe(thumbs[:0], name).shape == (0, WIDTHS[name])


@pytest.mark.parametrize("name", WIDTHS)
def test_a_faint_change_keeps_the_angle_and_another_picture_does_not(name: str) -> None:
    thumbs = noise(40)
    brighter = np.clip(thumbs.astype(int) + 6, 0, 255).astype(np.uint8)
    cosine = describe(thumbs, name) @ describe(brighter, name).T
    own = np.diag(cosine)
    assert own.min() > 0.98
    assert (cosine - np.diag(own)).max() < own.min()


def test_layout_tells_the_direction_of_edges_and_the_place_of_colours() -> None:
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::8] = stripes[:, 1::8] = stripes[:, 2::8] = stripes[:, 3::8] = 255
    upright, lying = stripes, stripes.transpose(1, 0, 2)
    left = np.full((32, 32, 3), 128, np.uint8)
    left[:, :16, 0] = 255
    f = describe(np.stack([upright, lying, left, left[:, ::-1]]))
    assert f[0] @ f[1] < 0.3
    assert f[2] @ f[3] < f[2] @ f[2] - 0.05


def test_neighbours_tell_handwritten_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = (digits.images[:600] * 255 / 16).round().astype(np.uint8)
    thumbs = gray.repeat(4, 1).repeat(4, 2)[..., None].repeat(3, 3)
    f = describe(thumbs)
    cosine = f @ f.T
    np.fill_diagonal(cosine, -1)
    nearest = digits.target[:600][cosine.argmax(1)]
    assert (nearest == digits.target[:600]).mean() > 0.95


def test_auto_is_layout_and_other_names_are_refused_with_the_nearest() -> None:
    thumbs = noise(3)
    assert choose_space("auto") == "layout"
    np.testing.assert_array_equal(describe(thumbs), describe(thumbs, "layout"))
    with pytest.raises(UsageError, match="Did you mean 'layout'"):
        describe(thumbs, "layuot")


@pytest.mark.parametrize("thumbs", [np.zeros((2, 32, 32, 3)), np.zeros((2, 16, 16, 3), np.uint8)])
def test_other_arrays_are_refused(thumbs: NDArray[np.uint8]) -> None:
    with pytest.raises(DataError, match="uint8"):
        describe(thumbs)
