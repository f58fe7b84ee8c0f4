"""The tiniest networks in training, and planted pictures, for probes and examinations."""

from collections.abc import Iterator

import numpy as np
import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch, batches
from poise.data.imageset import Dataset
from poise.data.splits import Splits
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.facts import Facts
from poise.stability.probes import ProbeKit, make_kit
from poise.training.loop import TrainState, weights_of

CLASSES = 3
COUNT = 96


def configured(**more: object) -> Config:
    settings: dict[str, object] = {
        "model.channels": 16,
        "model.channels_per_head": 16,
        "model.channel_mult": [1],
        "model.attn_resolutions": [],
        "data.augment": "none",
        "training.batch": 8,
        "training.images": 4000,
        "training.warmup": 0,
    }
    return resolve(None, settings | {k.replace("__", "."): v for k, v in more.items()})


def pictures() -> Dataset:
    """Stripes whose direction and width are the class, with a random phase and some noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    y, x = np.mgrid[:8, :8]
    waves = np.stack([x, y, x + y])[labels] * (0.8 + 0.3 * labels)[:, None, None]
    clean = np.sin(waves + rng.uniform(0, 6.3, COUNT)[:, None, None])
    images = 127.5 + 90 * clean + rng.normal(0, 6, clean.shape)
    return Dataset(
        images=images.clip(0, 255).astype(np.uint8)[:, None],
        labels=labels.astype(np.int64),
        label_names=("a", "b", "c"),
        names=tuple(f"{i}.png" for i in range(COUNT)),
        hashes=tuple(str(i) for i in range(COUNT)),
        given_splits=(None,) * COUNT,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={"8x8": COUNT},
        modes={"L": COUNT},
    )


def splits() -> Splits:
    order = np.arange(COUNT)
    return Splits(order[:64], order[64:80], order[80:], ())


def fresh(config: Config, *, trained: bool = False) -> TrainState:
    facts = DataFacts(8, 1, ("a", "b", "c"), 0.5)
    denoiser = build_denoiser(config, facts, Runtime(torch.device("cpu"), torch.float32))
    state = TrainState.fresh(denoiser, config.training)
    if trained:  # at the start gains and last layers are zero, and little depends on anything
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, w in denoiser.named_parameters():
                if name.endswith("gain"):
                    w.fill_(0.5)
                elif not w.any():
                    w.copy_(0.05 * torch.randn(w.shape, generator=generator))
    return state


def kit_of(config: Config, state: TrainState) -> ProbeKit:
    return make_kit(pictures(), splits(), state.denoiser, config)


def stream(config: Config) -> Iterator[Batch]:
    return batches(pictures(), splits().train, batch=config.training.batch, seed=config.seed)


def facts_of(state: TrainState | None = None, *, total_images: int = 4000) -> Facts:
    names = tuple(weights_of(state.denoiser)) if state else ("a.weight", "b.weight")
    return Facts(
        names=names,
        forced=(False,) * len(names),
        betas=(0.9, 0.99),
        train_images=64,
        file_names=str,
        profiles=("ema_0.050", "ema_0.100"),
        centres=tuple(0.05 * 2.0**i for i in range(8)),
        num_classes=CLASSES,
        batch=8,
        total_images=total_images,
        warmup_images=0,
        sigma_data=0.5,
        planned=lambda images: 0.01,
        weighted_draws=False,
        policy="repair",
    )


def everything(state: TrainState) -> dict[str, torch.Tensor]:
    """All tensors of a state and the random state, copied."""
    found = {f"weights/{k}": v for k, v in state.denoiser.state_dict().items()}
    for name, w in weights_of(state.denoiser).items():
        found |= {f"{key}/{name}": v for key, v in state.optimizer.state.get(w, {}).items()}
        if w.grad is not None:
            found[f"grad/{name}"] = w.grad
    for std, averages in state.ema.profiles.items():
        found |= {f"{std}/{k}": v for k, v in averages.items()}
    found["random"] = torch.random.get_rng_state()
    return {name: value.detach().clone() for name, value in found.items()}


def assert_untouched(before: dict[str, torch.Tensor], state: TrainState) -> None:
    after = everything(state)
    assert before.keys() == after.keys()
    for name, old in before.items():
        assert torch.equal(old.nan_to_num(7.0), after[name].nan_to_num(7.0)), name


def hooks_of(state: TrainState) -> int:
    return sum(len(m._forward_hooks) for m in state.denoiser.modules())
