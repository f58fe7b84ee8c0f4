"""Hidden labels: as many as asked, decided by the position alone, and hidden as rows of zeros."""

import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import TrainState, noised_batch, update

CPU = torch.device("cpu")
CLASSES = 5


def configured(share: float, **more: object) -> Config:
    small = {
        "model.channels": 8,
        "model.channel_mult": [1],
        "model.attn_resolutions": [],
        "model.channels_per_head": 8,
        "training.label_dropout": share,
    }
    return resolve(None, small | {key.replace("__", "."): value for key, value in more.items()})


def fresh(config: Config, classes: int = CLASSES) -> TrainState:
    facts = DataFacts(4, 1, tuple(str(i) for i in range(classes)), 0.5)
    denoiser = build_denoiser(config, facts, Runtime(CPU, torch.float32))
    return TrainState.fresh(denoiser, config.training)


def batch(count: int, *, labelled: bool = True) -> Batch:
    labels = torch.arange(count) % CLASSES if labelled else None
    return Batch(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), labels, torch.arange(count))


def rows_at(position: int, config: Config, count: int = 2000) -> Tensor:
    state = fresh(config)
    state.images_seen = position
    rows = noised_batch(state, batch(count), config, CPU)[1]
    assert rows is not None
    return rows


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_is_hidden_and_the_others_keep_their_label(share: float) -> None:
    rows = rows_at(0, configured(share))
    assert rows.shape == (2000, CLASSES) and rows.dtype == torch.float32
    hidden = rows.abs().sum(dim=1) == 0
    deviation = (share * (1 - share) / 2000) ** 0.5
    assert hidden.float().mean().item() == pytest.approx(share, abs=4 * deviation)
    labels = torch.arange(2000) % CLASSES
    wanted = torch.eye(CLASSES)[labels] * ~hidden[:, None]
    assert torch.equal(rows, wanted)
    # whatever the class
    for c in range(CLASSES):
        own = hidden[labels == c].float().mean().item()
        assert own == pytest.approx(share, abs=4 * deviation * CLASSES**0.5)


def test_what_is_hidden_depends_on_seed_and_position_alone() -> None:
    config = configured(0.5)
    rows = rows_at(64, config)
    torch.manual_seed(99)
    assert torch.equal(rows, rows_at(64, config))
    assert not torch.equal(rows, rows_at(128, config))
    assert not torch.equal(rows, rows_at(64, configured(0.5, seed=1)))


def test_a_larger_share_hides_the_same_and_more() -> None:
    few, many = (rows_at(0, configured(share)).sum(dim=1) == 0 for share in (0.2, 0.6))
    assert few.sum() < many.sum()
    assert bool((many | ~few).all())


def test_the_noise_does_not_depend_on_the_share() -> None:
    noised = [
        noised_batch(fresh(config), batch(8), config, CPU)[0]
        for config in (configured(0.0), configured(0.5))
    ]
    assert torch.equal(noised[0].x, noised[1].x)


def test_without_dropout_labels_stay_indices() -> None:
    config = configured(0.0)
    labels = noised_batch(fresh(config), batch(16), config, CPU)[1]
    assert labels is not None and torch.equal(labels, torch.arange(16) % CLASSES)


def test_a_run_without_classes_has_no_labels_to_hide() -> None:
    config = configured(0.5)
    state = fresh(config, classes=0)
    assert noised_batch(state, batch(8, labelled=False), config, CPU)[1] is None
    assert bool(update(state, batch(8, labelled=False), config).applied)


@pytest.mark.parametrize("architecture", ["edm2", "adm", "dit", "mp_dit"])
@torch.no_grad()
def test_a_hidden_label_is_what_sampling_without_labels_asks_for(architecture: str) -> None:
    """The guide of classifier-free guidance is the model that learned from hidden labels."""
    config = configured(0.1, model__architecture=architecture, model__depth=2)
    denoiser = fresh(config).denoiser.eval()
    for w in denoiser.parameters():
        if w.ndim == 0 or not w.any():
            w.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    sigma = torch.tensor([0.1, 1.0, 10.0])
    hidden = denoiser(x, sigma, torch.zeros(3, CLASSES))
    torch.testing.assert_close(hidden, denoiser(x, sigma, None), rtol=1e-3, atol=1e-4)
    assert (hidden - denoiser(x, sigma, torch.tensor([0, 1, 2]))).abs().max() > 1e-2
