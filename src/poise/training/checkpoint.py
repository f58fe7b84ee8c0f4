"""Training state as tensors and back: a checkpoint resumes, a snapshot samples."""

import math
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
from poise.training.optim import optimizer_tensors, restore_optimizer

_PLAIN = ("images_seen", "step", "lr_scale", "micro_batch")  # of the state, beside its tensors
_SHOWN = 5  # names in a message


class IncompleteCheckpoint(ArtifactError):
    """A checkpoint that lacks an entry, or holds one that nobody knows.

    Nothing is filled in: a run that goes on from half a state goes on wrong.
    """

    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


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
    optimizer = optimizer_tensors(state.optimizer, weights_of(state.denoiser))
    further = {f"optimizer/{k}": v for k, v in optimizer.items()}
    further |= {f"extra/{k}": v for k, v in extra.items()}
    plain = {name: getattr(state, name) for name in _PLAIN}
    # what the state itself does not tell a reader: the names of its lazy and foreign tensors
    plain |= {"kind": "checkpoint", "further": sorted(further)}
    save_tensors(path, _own(state) | further, {**plain, **meta})


@torch.no_grad()
def load_checkpoint(path: Path, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Restore `state` in place; returns the caller's tensors and plain data.

    Raises:
        ArtifactError: damaged, of another kind, or of another network.
        IncompleteCheckpoint: an entry is missing or unknown. In every case the state is untouched.
    """
    tensors, meta = load_tensors(path)
    if meta.get("kind") != "checkpoint":
        raise ArtifactError(f"{path} is not a checkpoint.", expected="a file of checkpoints/")
    own = _own(state)
    _refuse_odd(path, meta)
    _refuse_incomplete(path, own, tensors, meta)
    _refuse_other_network(path, own, tensors)
    parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "extra": {}, "gate": {}, "clip": {}}
    for key, tensor in tensors.items():
        head, _, name = key.partition("/")
        parts.setdefault(head, {})[name] = tensor
    restore_optimizer(state.optimizer, weights_of(state.denoiser), parts["optimizer"])
    state.denoiser.load_state_dict(parts["denoiser"])
    for name, averages in _profiles(state).items():
        for key, average in averages.items():
            average.copy_(parts[name][key])
    if state.gate is not None:
        state.gate.restore(parts["gate"])
    state.clip.restore(parts["clip"])
    for name in _PLAIN:
        setattr(state, name, meta[name])
    return parts["extra"], meta


def _own(state: TrainState) -> dict[str, Tensor]:
    """The tensors that every checkpoint of this state has, by name."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "denoiser": state.denoiser.state_dict(),
        **_profiles(state),
        "gate": {} if state.gate is None else state.gate.tensors(),
        "clip": state.clip.tensors(),
    }
    return {f"{head}/{k}": v for head, part in parts.items() for k, v in part.items()}


def _refuse_odd(path: Path, meta: Mapping[str, Any]) -> None:
    """Plain data that no checkpoint of ours holds."""
    listed, scale, micro = meta.get("further", []), meta.get("lr_scale", 1), meta.get("micro_batch")
    counts = [meta.get("images_seen", 0), meta.get("step", 0), 1 if micro is None else micro]
    odd = [n for n in counts if not isinstance(n, int) or isinstance(n, bool) or n < 0]
    heads = ("optimizer/", "extra/")
    strange = not isinstance(listed, list) or not all(
        isinstance(name, str) and name.startswith(heads) for name in listed
    )
    real = isinstance(scale, float | int) and math.isfinite(scale) and scale >= 0
    if odd or strange or not real:
        raise ArtifactError(
            f"{path} holds numbers or names that no checkpoint has.",
            expected="a checkpoint that this run has written",
            remedy="Use an earlier file of the same run.",
        )


def _refuse_incomplete(
    path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]
) -> None:
    listed = meta.get("further", [])
    missing = sorted({*own, *listed} - tensors.keys())
    missing += [name for name in ("further", *_PLAIN) if name not in meta]
    unknown = sorted(tensors.keys() - {*own, *listed})
    if not missing and not unknown:
        return
    found = [f"{path} is incomplete: it lacks {_names(missing)}."] if missing else []
    found += [f"{path} holds what this run does not know: {_names(unknown)}."] if unknown else []
    error = IncompleteCheckpoint(
        " ".join(found),
        expected="all entries of a checkpoint of this run, and no others",
        remedy="Resume with the settings of the run's config.toml, or from an earlier checkpoint.",
    )
    error.missing, error.unknown = tuple(missing), tuple(unknown)
    raise error


def _refuse_other_network(
    path: Path, own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> None:
    for name, tensor in own.items():
        there = tensors[name]
        if (there.shape, there.dtype) != (tensor.shape, tensor.dtype):
            raise ArtifactError(
                f"{path} belongs to another network: {name} is {list(there.shape)} {there.dtype}.",
                expected=f"{list(tensor.shape)} {tensor.dtype}",
                remedy="Resume with the settings of the run's config.toml.",
            )


def _names(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


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
