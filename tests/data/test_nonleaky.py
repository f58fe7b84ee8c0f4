"""Transforms are exactly what their label says, and none at all where it says nothing."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from poise.data.nonleaky import COLOUR, GEOMETRIC, augment_nonleaky, label_size
from poise.errors import UsageError


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int, side: int = 32, channels: int = 3) -> Tensor:
    """Images without detail finer than a few pixels, and nothing near the border."""
    g = drawn(9)
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, side)] * 2, indexing="ij")
    at = torch.rand(count, channels, 4, 2, generator=g) * 0.6 - 0.3
    spots = [
        torch.exp(-((x - a[..., 0, None, None]) ** 2 + (y - a[..., 1, None, None]) ** 2) / 0.03)
        for a in at.unbind(2)
    ]
    return torch.stack(spots).sum(0)


def moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Centre [2] and covariance [2, 2] of brightness, in sides of 2."""
    side = image.shape[-1]
    line = (torch.arange(side) + 0.5) * 2 / side - 1
    y, x = torch.meshgrid(line, line, indexing="ij")
    places = torch.stack([x, y]).reshape(2, -1).double()
    mass = image.reshape(-1).double()
    mass = mass / mass.sum()
    centre = places @ mass
    away = places - centre[:, None]
    return centre, (away * mass) @ away.T


def matrix_of(label: Tensor) -> tuple[Tensor, Tensor]:
    """The transform that a label of 9 numbers tells of: matrix [2, 2] and translation [2]."""
    a = label.double()
    mirrors = torch.diag(1 - 2 * a[:2])
    size = 2 ** (0.2 * a[2])
    c, s = a[3] + 1, a[4]
    turn = torch.stack([torch.stack([c, -s]), torch.stack([s, c])])
    # a stretch is the exponential of a symmetric matrix without trace, which the label holds
    log = torch.stack([torch.stack([a[5], a[6]]), torch.stack([a[6], -a[5]])])
    stretch = torch.linalg.matrix_exp(math.log(2) * 0.2 * log)
    return stretch @ turn @ mirrors * size, 0.25 * a[7:9]


def test_the_label_tells_the_whole_transform() -> None:
    """Centre and covariance of each image are mapped as the label, and nothing else, says."""
    images = smooth(60, 64, 1)
    done, labels = augment_nonleaky(images, drawn(), p=0.5)
    assert labels.shape == (60, GEOMETRIC) and (labels != 0).any(0).all()
    compared = 0
    for before, after, label in zip(images, done, labels, strict=True):
        matrix, shift = matrix_of(label)
        centre, spread = moments(before)
        sizes = torch.linalg.svdvals(matrix)
        if sizes.max() * 0.75 + shift.abs().max() > 1 or sizes.min() < 0.9:
            continue  # some of it left the image, or its reflection came into sight
        compared += 1
        new_centre, new_spread = moments(after)
        torch.testing.assert_close(new_centre, matrix @ centre + shift, atol=0.002, rtol=0)
        torch.testing.assert_close(new_spread, matrix @ spread @ matrix.T, atol=0.003, rtol=0)
    assert compared > 20


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.12, 0.6]), st.booleans())
def test_without_a_transform_an_image_is_unchanged_bit_by_bit(
    seed: int, p: float, colour: bool
) -> None:
    images = torch.rand(12, 3, 8, 8, generator=drawn(1)) * 2 - 1
    done, labels = augment_nonleaky(images, drawn(seed), p=p, colour=colour)
    assert labels.shape == (12, GEOMETRIC + COLOUR * colour) and labels.dtype == torch.float32
    told = (labels != 0).any(1)
    same = (done == images).flatten(1).all(1)
    assert torch.equal(same, ~told)
    assert done.isfinite().all() and labels.isfinite().all()
    if p == 0:
        assert bool(same.all())


def test_mirrors_are_exact() -> None:
    images = torch.rand(4000, 1, 4, 4, generator=drawn(1))
    done, labels = augment_nonleaky(images, drawn(), p=0.3)
    for label, wanted in (
        ([1, 0], images.flip(-1)),
        ([0, 1], images.flip(-2)),
        ([1, 1], images.flip(-1, -2)),
    ):
        want = torch.tensor([*label, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float32)
        only = (labels == want).all(1)
        assert int(only.sum()) > 20
        assert torch.equal(done[only], wanted[only])


def test_each_kind_is_drawn_as_often_as_asked() -> None:
    images = torch.zeros(20_000, 3, 1, 1)
    _, labels = augment_nonleaky(images, drawn(), p=0.12, colour=True)
    share = (labels != 0).float().mean(0)
    assert share.tolist() == pytest.approx([0.12] * 15, abs=0.01)
    on = labels != 0
    together = torch.corrcoef(on[:, [0, 1, 2, 3, 5, 7, 9, 10, 11, 12, 14]].T.float())
    assert (together - torch.eye(11)).abs().max() < 0.03


def test_a_constant_image_has_no_border() -> None:
    """Reflection fills what lies beyond; bicubic weights add up to one."""
    images = torch.full((64, 2, 8, 8), 0.7)
    done, _ = augment_nonleaky(images, drawn(), p=1)
    torch.testing.assert_close(done, images, atol=1e-5, rtol=0)


def test_shrinking_does_not_alias() -> None:
    """A checkerboard, too fine to be told smaller, becomes gray and not another pattern."""
    board = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1
    images = board.expand(400, 1, 32, 32)
    done, labels = augment_nonleaky(images, drawn(), p=0.3)
    others = (labels[:, [0, 1, 3, 4, 5, 6, 7, 8]] == 0).all(1)
    smaller = others & (labels[:, 2] < -1)
    assert int(smaller.sum()) >= 3
    assert done[smaller].std() < 0.35


def test_colours_keep_to_their_label() -> None:
    gray = torch.full((4000, 3, 1, 1), 0.25)
    done, labels = augment_nonleaky(gray, drawn(), p=0.5, colour=True)
    brightness, contrast, flipped = labels[:, 9], labels[:, 10], labels[:, 11]
    wanted = (0.25 + 0.2 * brightness) * 2 ** (0.5 * contrast) * (1 - 2 * flipped)
    torch.testing.assert_close(done, wanted[:, None, None, None].expand_as(done))

    colours = torch.rand(4000, 3, 1, 1, generator=drawn(3))
    done, labels = augment_nonleaky(colours, drawn(), p=0.5, colour=True)
    before, after = (x[:, :, 0, 0] - x[:, :, 0, 0].mean(1, keepdim=True) for x in (colours, done))
    chroma = before.norm(dim=1) * 2 ** (0.5 * labels[:, 10] + labels[:, 14])
    torch.testing.assert_close(after.norm(dim=1), chroma, atol=1e-5, rtol=1e-4)
    cosine = (before * after).sum(1) / (before.norm(dim=1) * after.norm(dim=1))
    torch.testing.assert_close(cosine, labels[:, 12] + 1, atol=1e-3, rtol=0)


def test_the_generator_alone_decides() -> None:
    images = smooth(16, 16)
    one, other = (augment_nonleaky(images, drawn(4), p=0.5, colour=True) for _ in range(2))
    assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
    alone, _ = augment_nonleaky(images[:, :1], drawn(4), p=0.5)
    assert alone.shape == (16, 1, 16, 16)
    assert not torch.equal(one[1], augment_nonleaky(images, drawn(5), p=0.5, colour=True)[1])


def test_pieces_do_not_show() -> None:
    images = smooth(130, 8)
    done, labels = augment_nonleaky(images, drawn(), p=0.5)
    assert len(done) == len(labels) == 130
    assert np.isfinite(done.numpy()).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_colour_is_for_colour_images(channels: int) -> None:
    with pytest.raises(UsageError, match="augment_colour"):
        label_size(colour=True, channels=channels)
    assert label_size(colour=False, channels=channels) == 9
