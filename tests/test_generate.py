"""Image i depends on the seed, i and its label: not on how many are drawn, nor on the batch."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.diffusion.denoiser import Denoiser
from poise.generate import generate, initial_noise
from poise.runtime import Runtime
from poise.settings import SamplingConfig

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def denoiser() -> Denoiser:
    config = resolve(None, {"model.channels": 16, "model.channels_per_head": 16})
    facts = DataFacts(8, 3, ("a", "b", "c"), 0.5)
    built = build_denoiser(config, facts, Runtime(torch.device("cpu"), torch.float32))
    with torch.no_grad():
        for name, w in built.named_parameters():
            if name.endswith("gain"):
                w.fill_(0.5)
    return built.eval()


def drawn(
    denoiser: Denoiser, count: int, *, batch: int, labels: list[int] | None = None, seed: int = 0
) -> NDArray[np.uint8]:
    settings = SamplingConfig(steps=4, batch=batch)
    labels = [i % 3 for i in range(count)] if labels is None else labels
    return generate(denoiser, count=count, shape=SHAPE, labels=labels, settings=settings, seed=seed)


@pytest.mark.parametrize("batch", [1, 3, 7, 8, 16, 64])
def test_the_batch_size_does_not_change_an_image(denoiser: Denoiser, batch: int) -> None:
    assert np.array_equal(drawn(denoiser, 20, batch=batch), drawn(denoiser, 20, batch=20))


@pytest.mark.parametrize("count", [1, 2, 9, 17])
def test_the_count_does_not_change_an_image(denoiser: Denoiser, count: int) -> None:
    assert np.array_equal(drawn(denoiser, count, batch=16), drawn(denoiser, 20, batch=16)[:count])


def test_other_images_and_other_seeds_differ(denoiser: Denoiser) -> None:
    images = drawn(denoiser, 20, batch=20)
    assert len({image.tobytes() for image in images}) == 20
    others = drawn(denoiser, 20, batch=20, seed=1)
    assert not {image.tobytes() for image in images} & {image.tobytes() for image in others}


def test_a_label_changes_its_own_image_alone(denoiser: Denoiser) -> None:
    one = drawn(denoiser, 6, batch=6, labels=[0] * 6)
    other = drawn(denoiser, 6, batch=6, labels=[0, 0, 2, 0, 0, 0])
    same = [np.array_equal(a, b) for a, b in zip(one, other, strict=True)]
    assert same == [True, True, False, True, True, True]


def test_each_image_is_drawn_with_its_label() -> None:
    """A denoiser that paints its label: what comes out says what went in."""

    def paint(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None
        return (labels.float() / 10).reshape(-1, 1, 1, 1).expand_as(x)

    labels = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    settings = SamplingConfig(steps=4, batch=4)
    images = generate(paint, count=11, shape=SHAPE, labels=labels, settings=settings, seed=0)
    wanted = np.round((np.array(labels) / 10 + 1) * 127.5)
    assert (np.abs(images.reshape(11, -1) - wanted[:, None]) <= 1).all()


def test_progress_counts_images_up_to_the_end() -> None:
    said: list[tuple[int, int]] = []
    generate(
        lambda x, sigma, labels: x,
        count=10,
        shape=SHAPE,
        labels=None,
        settings=SamplingConfig(steps=2, batch=4),
        seed=0,
        progress=lambda done, total: said.append((done, total)),
    )
    assert said == [(4, 10), (8, 10), (10, 10)]


def test_noise_of_an_image_is_standard_normal_and_its_own() -> None:
    noise = initial_noise(0, range(500), SHAPE)
    assert noise.mean().item() == pytest.approx(0, abs=5 / noise.numel() ** 0.5)
    assert noise.std().item() == pytest.approx(1, abs=5 / (2 * noise.numel()) ** 0.5)
    correlations = torch.corrcoef(noise.flatten(1)) - torch.eye(500)
    assert correlations.square().mean().item() == pytest.approx(1 / 192, rel=0.05)
    assert torch.equal(initial_noise(0, [499], SHAPE)[0], noise[499])
    assert not torch.equal(initial_noise(1, [499], SHAPE)[0], noise[499])
