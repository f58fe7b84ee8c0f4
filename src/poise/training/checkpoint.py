"""Training state as tensors and back: a checkpoint resumes, a snapshot samples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from poise.artifacts import DataFacts, load_tensors, save_tensors
from poise.config import to_toml
from poise.errors import ArtifactError
from poise.settings import Config
from poise.training.ema import profile_name
from poise.training.loop import TrainState, weights_of

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


def save_checkpoint(
    path: Path, state: TrainState, extra: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    """Everything needed to go on as if nothing had happened.

    Args:
        path: written atomically.
        state: the training state.
        extra: further tensors of the caller, such as the sums of an unfinished log interval.
        meta: further plain data of the caller.
    """
    tensors: dict[str, Tensor] = {
        f"denoiser/{k}": v for k, v in state.denoiser.state_dict().items()
    }
    for name, weight in weights_of(state.denoiser).items():
        moments = state.optimizer.state.get(weight, {})
        tensors.update({f"adam/{key}/{name}": moments[key] for key in _MOMENTS if key in moments})
    for std, averages in state.ema.profiles.items():
        tensors.update({f"{profile_name(std)}/{k}": v for k, v in averages.items()})
    tensors.update({f"extra/{k}": v for k, v in extra.items()})
    save_tensors(
        path,
        tensors,
        {"kind": "checkpoint", "images_seen": state.images_seen, "step": state.step, **meta},
    )


@torch.no_grad()
def load_checkpoint(path: Path, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore `state` in place; returns the caller's tensors and plain data.

    Raises:
        ArtifactError: damaged, of another kind, or of another network.
    """
    tensors, meta = load_tensors(path)
    if meta.get("kind") != "checkpoint":
        raise ArtifactError(f"{path} is not a checkpoint.", expected="a file of checkpoints/")
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        head, _, name = key.partition("/")
        parts.setdefault(head, {})[name] = tensor
    try:
        state.denoiser.load_state_dict(parts["denoiser"])
        for std, averages in state.ema.profiles.items():
            for name, average in averages.items():
                average.copy_(parts[profile_name(std)][name])
        for name, weight in weights_of(state.denoiser).items():
            if f"step/{name}" in parts.get("adam", {}):
                state.optimizer.state[weight] = {
                    key: _like(parts["adam"][f"{key}/{name}"], weight) for key in _MOMENTS
                }
    except (KeyError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} belongs to another network or other averages: {error}.",
            remedy="Resume with the settings of the run's config.toml.",
        ) from None
    state.images_seen, state.step = int(meta["images_seen"]), int(meta["step"])
    return parts.get("extra", {}), meta


def save_snapshot(
    path: Path, state: TrainState, config: Config, facts: DataFacts, best: str | None = None
) -> None:
    """Raw and averaged weights with all that sampling needs on another machine.

    Args:
        path: written atomically.
        state: the training state.
        config: the resolved settings.
        facts: what the model knows of its data.
        best: the weights to sample with unless others are asked for; None: the widest average.
    """
    tensors = {f"raw/{k}": v for k, v in state.denoiser.state_dict().items()}
    for name, weights in _profiles(state).items():  # buffers are fixed: they stand under raw/ alone
        tensors.update({f"{name}/{k}": v for k, v in weights.items()})
    names = ["raw", *_profiles(state)]
    names.sort(key=lambda name: name == best)  # the best comes last
    meta = {
        "kind": "snapshot",
        "images_seen": state.images_seen,
        "weights": names,
        "config": to_toml(config),
        "facts": facts.to_json(),
        "preprocessing": "centre crop to a square, antialiased resize, x / 127.5 - 1",
    }
    save_tensors(path, tensors, meta)


def _profiles(state: TrainState) -> dict[str, dict[str, Tensor]]:
    return {profile_name(std): weights for std, weights in state.ema.profiles.items()}


def _like(tensor: Tensor, weight: Tensor) -> Tensor:
    """On the weight's device and, where the shape is the weight's, in its memory layout."""
    tensor = tensor.to(weight.device)
    if tensor.shape == weight.shape:
        return torch.empty_like(weight).copy_(tensor)
    return tensor
