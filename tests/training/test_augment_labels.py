"""What an image went through is told to the network: nothing leaks, and nothing else changes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser, load_snapshot
from poise.config import resolve
from poise.data.batches import Batch, batches
from poise.data.dataset import Dataset
from poise.data.settling import settle_data, wants_augmentation
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss, Weighting, denoising_loss
from poise.diffusion.noise import Noised
from poise.errors import UsageError
from poise.generate import generate, sampling_levels
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.compiling import CompiledLoss
from poise.training.loop import (
    LossFunction,
    TrainState,
    noised_batch,
    steps,
    update,
    weights_of,
)

CPU = torch.device("cpu")
SHAPES = Runtime(CPU, torch.float32)
NETWORKS = [
    {"model.architecture": "adm"},
    *({"model.ladder": rung} for rung in "BCDEFG"),
    {"model.architecture": "dit", "model.depth": 2},
    {"model.architecture": "mp_dit", "model.depth": 2},
]
SMALL = {
    "data.augment": "nonleaky",
    "data.augment_p": 0.3,
    "model.channels": 16,
    "model.channel_mult": [1],
    "model.attn_resolutions": [],
    "model.channels_per_head": 16,
    "training.batch": 8,
    "training.images": 80,
}


def configured(**more: object) -> Config:
    return resolve(None, SMALL | {key.replace("__", "."): value for key, value in more.items()})


def facts(channels: int = 1, classes: int = 0) -> DataFacts:
    return DataFacts(8, channels, tuple(str(i) for i in range(classes)), 0.5)


def fresh(config: Config, channels: int = 1) -> TrainState:
    return TrainState.fresh(build_denoiser(config, facts(channels), SHAPES), config.training)


def waken(denoiser: Denoiser) -> Denoiser:
    """Weights that start at zero drawn at random, so that every input shows at the output."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for w in denoiser.parameters():
            if w.ndim == 0 or not w.any():
                w.copy_(0.3 * torch.randn(w.shape, generator=generator))
    return denoiser


def batch(position: int, count: int = 8, channels: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, None, torch.arange(position, position + count))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda n: "-".join(map(str, n.values())))
@torch.no_grad()
def test_a_label_of_zeros_is_the_network_without_augmentation(network: dict[str, object]) -> None:
    config = resolve(None, SMALL | network)
    plain = resolve(None, SMALL | network | {"data.augment": "none"})
    denoiser = build_denoiser(config, facts(3, 4), SHAPES).eval()
    without = build_denoiser(plain, facts(3, 4), SHAPES).eval()
    # everything else starts from the same weights, under the same names
    more = denoiser.state_dict().keys() - without.state_dict().keys()
    assert more and all("emb_augment" in name for name in more)
    assert without.state_dict().keys() <= denoiser.state_dict().keys()
    for name, weight in without.network.state_dict().items():
        assert torch.equal(weight, denoiser.network.state_dict()[name])

    waken(denoiser)
    own = {k: v for k, v in denoiser.state_dict().items() if k not in more}
    without.load_state_dict(own)
    x = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    sigma, labels = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0, 1, 3])
    for given in (labels, None):
        want = without(x, sigma, given)
        assert torch.equal(denoiser(x, sigma, given), want)
        assert torch.equal(denoiser(x, sigma, given, torch.zeros(3, 9)), want)
        told = denoiser(x, sigma, given, torch.eye(9)[:3])
        assert ((told - want).flatten(1).abs().amax(1) > 1e-4).all()


def test_a_label_that_nobody_reads_is_an_error() -> None:
    denoiser = build_denoiser(configured(data__augment="none"), facts(), SHAPES)
    with pytest.raises(AssertionError, match="augment_dim"):
        denoiser(torch.zeros(1, 1, 8, 8), torch.ones([]), None, torch.zeros(1, 9))


def test_colours_are_told_too_and_need_three_channels() -> None:
    config = configured(data__augment_colour=True)
    noised, _ = noised_batch(fresh(config, 3), batch(0, channels=3), config, CPU)
    assert noised.augment is not None and noised.augment.shape == (8, 15)
    with pytest.raises(UsageError, match="augment_colour"):
        build_denoiser(config, facts(1), SHAPES)


@pytest.mark.parametrize("augment", ["auto", "none"])
def test_noise_is_the_same_with_and_without(augment: str) -> None:
    config, plain = configured(), configured(data__augment=augment)
    one, _ = noised_batch(fresh(config), batch(0, 64), config, CPU)
    other, _ = noised_batch(fresh(plain), batch(0, 64), plain, CPU)
    assert torch.equal(one.sigma, other.sigma) and other.augment is None
    assert one.augment is not None
    kept = (one.augment == 0).all(1)
    assert 0 < int(kept.sum()) < 64
    assert torch.equal(one.x[kept], other.x[kept])
    assert not torch.equal(one.x[~kept], other.x[~kept])


def test_micro_batches_take_their_own_labels_along() -> None:
    whole, parts = configured(), configured(training__micro_batch=2)
    gradients = []
    for config in (whole, parts):
        state = fresh(config)
        waken(state.denoiser)
        update(state, batch(0), config)
        gradients.append({k: w.grad for k, w in weights_of(state.denoiser).items()})
    assert any("emb_augment" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_a_compiled_loss_takes_the_label() -> None:
    config = configured()
    eager, compiled = (waken(fresh(config).denoiser) for _ in range(2))
    noised, _ = noised_batch(fresh(config), batch(0), config, CPU)
    notes: list[str] = []
    loss = CompiledLoss(8, notes.append, backend="eager")
    want = denoising_loss(eager, noised, None)
    torch.testing.assert_close(loss(compiled, noised, None, Weighting()).error, want.error)
    assert notes == []


def test_resumed_equals_unbroken_bit_by_bit(tmp_path: Path) -> None:
    config = configured()
    state, other = fresh(config), fresh(config)
    for i in range(6):
        update(state, batch(8 * i), config)
        if i == 2:
            save_checkpoint(tmp_path / "c.safetensors", state, {}, {})
    load_checkpoint(tmp_path / "c.safetensors", other)
    for i in range(3, 6):
        update(other, batch(8 * i), config)
    for name, weight in state.denoiser.state_dict().items():
        assert torch.equal(weight, other.denoiser.state_dict()[name]), name


@torch.no_grad()
def test_a_snapshot_knows_its_network(tmp_path: Path) -> None:
    config = configured(training__precision="fp32")
    state = fresh(config)
    waken(state.denoiser)
    save_snapshot(tmp_path / "s.safetensors", state, config, facts())
    again = load_snapshot(tmp_path / "s.safetensors", "raw").denoiser
    x, sigma = torch.ones(2, 1, 8, 8), torch.ones([])
    told = torch.eye(9)[:2]
    assert torch.equal(
        again.cpu()(x, sigma, None, told), state.denoiser.eval()(x, sigma, None, told)
    )


def test_auto_is_for_long_trainings_on_small_sets_of_images_that_are_large_enough() -> None:
    assert wants_augmentation(16, 1000, 1_000_001)
    assert not wants_augmentation(16, 1000, 1_000_000)
    assert not wants_augmentation(8, 1437, 10**8)  # handwritten digits
    assert not wants_augmentation(64, 1_200_000, 10**9)  # ImageNet


def test_auto_is_settled_and_said() -> None:
    from_16 = np.random.default_rng(0).integers(0, 256, (20, 1, 16, 16), np.uint8)
    said: list[str] = []
    data = planted(from_16)
    config = resolve(None, {"training.images": 40_000, "data.balance": "none"})
    settled = settle_data(config, data, np.arange(20), said.append).data
    assert (settled.augment, settled.resolution) == ("nonleaky", 16)
    assert settled.flip in ("on", "off") and "seen 2,000 times" in said[0]
    short = resolve(None, {"training.images": 900})
    assert settle_data(short, data, np.arange(20), said.append).data.augment == "none"
    with pytest.raises(UsageError, match="poise prepare --balance"):
        settle_data(resolve(None, {"data.balance": "equal"}), data, np.arange(20), said.append)


# --- the proof: an asymmetric set, mirrored samples counted ---------------------------------------


def planted(images: np.ndarray) -> Dataset:
    n = len(images)
    return Dataset(
        images=images,
        labels=None,
        label_names=(),
        names=tuple(map(str, range(n))),
        hashes=tuple(map(str, range(n))),
        given_splits=(None,) * n,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={},
        modes={},
    )


def bright_on_the_left(count: int) -> np.ndarray:
    """[N, 1, 4, 4]: a left half of 180 to 255, a right half of 0 to 75."""
    levels = np.random.default_rng(0).integers(0, 76, (count, 1, 4, 2)).repeat(2, axis=3)
    levels[..., :2] += 180
    return levels.astype(np.uint8)


def withheld(
    denoiser: Denoiser, noised: Noised, labels: Tensor | None, weighting: Weighting
) -> Loss:
    return denoising_loss(denoiser, replace(noised, augment=None), labels, weighting)


def mirrored_and_upright(loss: LossFunction | None, **network: object) -> tuple[int, int]:
    """Of 120 samples of a network that saw the set under strong augmentation."""
    config = configured(training__batch=32, training__images=3200, sampling__steps=6, **network)
    small = DataFacts(4, 1, (), 0.5)
    denoiser = build_denoiser(config, small, SHAPES)
    state = TrainState.fresh(denoiser, config.training)
    state.loss = loss
    stream = batches(planted(bright_on_the_left(256)), np.arange(256), batch=32, seed=0)
    for _ in steps(state, stream, config, until=3200):
        pass
    with torch.no_grad():
        drawn = generate(
            denoiser.eval(),
            count=120,
            shape=(1, 4, 4),
            labels=None,
            settings=config.sampling,
            levels=sampling_levels(config.sampling, denoiser.formulation),
            seed=0,
            device=CPU,
        )
    samples = torch.as_tensor(drawn).float()
    left_over_right = (samples[..., :2] - samples[..., 2:]).mean((1, 2, 3))
    return int((left_over_right < 0).sum()), int((left_over_right > 90).sum())


def test_told_transforms_do_not_leak_and_untold_ones_do() -> None:
    adm = {"model__architecture": "adm", "training__lr": 0.003}
    mirrored, upright = mirrored_and_upright(None, **adm)
    assert mirrored == 0 and upright >= 114
    mirrored, upright = mirrored_and_upright(withheld, **adm)
    assert mirrored >= 30  # so that the count above could have failed
    mirrored, upright = mirrored_and_upright(None, training__lr=0.05)  # the default network
    assert mirrored <= 3 and upright >= 108
