"""A snapshot holds all that sampling needs, and the weights it names."""

from pathlib import Path

import pytest
import torch

from poise.artifacts import DataFacts, load_tensors
from poise.build import build_denoiser, load_snapshot
from poise.config import resolve
from poise.errors import ArtifactError, UsageError
from poise.runtime import Runtime
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.loop import TrainState

CPU = Runtime(torch.device("cpu"), torch.float32)
FACTS = DataFacts(8, 2, ("a", "b"), 0.25)
CONFIG = resolve(
    None,
    {
        "model.channels": 16,
        "model.channels_per_head": 16,
        "training.precision": "fp32",
        "seed": 5,
    },
)


def state() -> TrainState:
    """Weights and averages that differ from each other everywhere."""
    made = TrainState.fresh(build_denoiser(CONFIG, FACTS, CPU), CONFIG.training)
    for i, averages in enumerate(made.ema.profiles.values(), start=1):
        for average in averages.values():
            average.add_(0.01 * i)
    made.images_seen, made.step = 1280, 10
    return made


@pytest.mark.parametrize(
    ("asked", "held"),
    [(None, "ema_0.100"), ("raw", "raw"), ("ema_0.050", "ema_0.050"), ("ema_0.100", "ema_0.100")],
)
def test_a_snapshot_gives_back_the_weights_it_was_asked_for(
    tmp_path: Path, asked: str | None, held: str
) -> None:
    made, path = state(), tmp_path / "a.safetensors"
    save_snapshot(path, made, CONFIG, FACTS)
    found = load_snapshot(path, asked)
    assert (found.weights, found.images_seen) == (held, 1280)
    assert (found.facts, found.config) == (FACTS, CONFIG)
    profiles = {"ema_0.050": made.ema.profiles[0.05], "ema_0.100": made.ema.profiles[0.1]}
    wanted = dict(made.denoiser.state_dict()) | profiles.get(held, {})
    got = found.denoiser.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert not found.denoiser.training
    assert found.denoiser.sigma_data == FACTS.sigma_data

    x = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    sigma, labels = torch.tensor([0.1, 5.0]), torch.tensor([0, 1])
    with torch.no_grad():
        made.denoiser.eval().load_state_dict(wanted)
        assert torch.equal(found.denoiser(x, sigma, labels), made.denoiser(x, sigma, labels))


def test_unknown_weights_and_other_kinds_are_refused(tmp_path: Path) -> None:
    made = state()
    snapshot, checkpoint = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_snapshot(snapshot, made, CONFIG, FACTS)
    save_checkpoint(checkpoint, made, {}, {})
    with pytest.raises(UsageError, match=r"no weights 'ema_0\.10'. Did you mean 'ema_0\.100'"):
        load_snapshot(snapshot, "ema_0.10")
    with pytest.raises(ArtifactError, match="is a checkpoint, not a snapshot"):
        load_snapshot(checkpoint)
    with pytest.raises(ArtifactError, match="is not a checkpoint"):
        load_checkpoint(snapshot, made)


def test_a_checkpoint_of_another_network_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state(), {}, {})
    wider = resolve(None, {"model.channels": 32, "model.channels_per_head": 16})
    other = TrainState.fresh(build_denoiser(wider, FACTS, CPU), wider.training)
    with pytest.raises(ArtifactError, match="belongs to another network"):
        load_checkpoint(path, other)
    assert (other.images_seen, other.step) == (0, 0)


def test_a_snapshot_is_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_snapshot(path, state(), CONFIG, FACTS)
    tensors, meta = load_tensors(path)
    assert meta["weights"] == ["raw", "ema_0.050", "ema_0.100"]
    assert {name.split("/")[0] for name in tensors} == set(meta["weights"])
    assert meta["facts"]["sigma_data"] == 0.25
