"""From settings and data facts to a denoiser, fresh or from a snapshot. Only this module maps
`Config` to constructors; the classes take plain arguments."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from poise.artifacts import DataFacts, load_tensors
from poise.config import from_toml
from poise.data.nonleaky import label_size
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.formulations import DDPM, EDM, Flow, Formulation
from poise.errors import ArtifactError, UsageError, nearest
from poise.models.adm import ADM, NoUncertainty
from poise.models.dit import DiT
from poise.models.edm2 import Uncertainty, UNet
from poise.models.layers import reinitialise_
from poise.models.mp_dit import MPDiT
from poise.runtime import Runtime, choose_runtime, seed_at
from poise.settings import Config, DataConfig, DiffusionConfig, ModelConfig


def build_denoiser(config: Config, facts: DataFacts, runtime: Runtime) -> Denoiser:
    """A fresh denoiser on the runtime's device; its weights follow from `config.seed`.

    Raises:
        UsageError: the network does not fit the resolution, or the augmentation the channels.
    """
    # drawn on the CPU for any device, so that the same seed gives the same weights; "meta" has none
    place = "meta" if runtime.device.type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(place):
        torch.manual_seed(seed_at(config.seed, 0, "weights"))
        network = _network(config.model, facts, _augment_dim(config.data, facts))
        if config.model.init != "auto" and place != "meta":
            reinitialise_(network, config.model.init)
        learned = config.diffusion.weighting == "uncertainty"
        uncertainty = Uncertainty() if learned else NoUncertainty()
    denoiser = Denoiser(
        network,
        uncertainty,
        sigma_data=facts.sigma_data,
        dtype=runtime.dtype,
        formulation=formulation_of(config.diffusion, facts.sigma_data),
    ).to(runtime.device)
    for parameter in denoiser.parameters():  # channels-last is the fast layout of convolutions
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return denoiser


def _augment_dim(data: DataConfig, facts: DataFacts) -> int:
    """The width of augmentation labels; 0 without augmentation ("auto" is not settled yet)."""
    size = label_size(colour=data.augment_colour, channels=facts.channels)
    return size if data.augment == "nonleaky" else 0


def _network(model: ModelConfig, facts: DataFacts, augment_dim: int) -> nn.Module:
    common: dict[str, Any] = {
        "resolution": facts.resolution,
        "channels_in": facts.channels,
        "num_classes": len(facts.label_names),
        "channels": model.channels,
        "channels_per_head": model.channels_per_head,
        "dropout": model.dropout,
        "augment_dim": augment_dim,
    }
    balances = {"res_balance", "attn_balance", "label_balance", "clip_act"}
    given = "silu" if model.activation == "auto" else model.activation
    if model.architecture == "dit":
        smooth = "gelu" if model.activation == "auto" else model.activation
        return DiT(**common, depth=model.depth, patch=model.patch, activation=smooth)
    if model.architecture == "mp_dit":
        common |= model.model_dump(include=balances)
        return MPDiT(**common, depth=model.depth, patch=model.patch, activation=given)
    common |= model.model_dump(
        include={"channel_mult", "num_blocks", "attn_resolutions", "skips", "resample_filter"}
    )
    norm = None if model.normalisation == "auto" else model.normalisation
    rung = model.ladder or ("A" if model.architecture == "adm" else "G")
    if rung in "AB":
        emb = model.channel_mult_emb or 4
        norm = norm or "group"
        return ADM(**common, channel_mult_emb=emb, normalisation=norm, activation_name=given)
    common |= model.model_dump(
        include=balances | {"concat_balance", "channel_mult_noise", "channel_mult_emb"}
    )
    return UNet(**common, ladder=rung, normalisation=norm, activation_name=given)


def formulation_of(settings: DiffusionConfig, sigma_data: float) -> Formulation:
    """What the network predicts, as its settings say."""
    if settings.formulation == "edm":
        return EDM(sigma_data)
    if settings.formulation == "flow":
        return Flow()
    return DDPM(settings.formulation, settings.schedule, settings.diffusion_steps)


@dataclass(frozen=True)
class Snapshot:
    """A model ready to sample, with what it was trained on."""

    denoiser: Denoiser
    facts: DataFacts
    config: Config
    runtime: Runtime  # the arithmetic it was trained in, on this machine's device
    weights: str  # "raw" or the averaged profile, such as "ema_0.100"
    images_seen: int


def load_snapshot(path: Path, weights: str | None = None) -> Snapshot:
    """The denoiser of a snapshot file, in evaluation mode.

    Args:
        path: a file of a run's `snapshots/`.
        weights: which of the weights it holds; None: the best by validation error.

    Raises:
        ArtifactError: missing, damaged or of another kind.
        UsageError: it holds no such weights.
    """
    tensors, meta = load_tensors(path)
    if meta.get("kind") != "snapshot":
        raise ArtifactError(
            f"{path} is a {meta.get('kind', 'file of another kind')}, not a snapshot.",
            expected="a file of a run's snapshots/ folder",
        )
    weights = weights or meta["weights"][-1]
    if weights not in meta["weights"]:
        raise UsageError(
            f"{path} holds no weights {weights!r}. {nearest(weights, meta['weights'])}".rstrip(),
            expected="one of " + ", ".join(meta["weights"]),
        )
    state: dict[str, torch.Tensor] = {}
    for prefix in ("raw/", f"{weights}/"):  # an average replaces the weights and not the buffers
        state |= {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return snapshot_of(meta, state, weights, int(meta["images_seen"]))


def snapshot_of(
    meta: Mapping[str, Any], state: Mapping[str, torch.Tensor], weights: str, images_seen: int
) -> Snapshot:
    """The denoiser of a snapshot's `meta` with the weights and buffers of `state`, to sample."""
    config, facts = from_toml(meta["config"]), DataFacts.from_json(meta["facts"])
    runtime = choose_runtime(config.training.precision)
    # shapes first: a file may ask for a network that no memory holds
    nowhere = Runtime(torch.device("meta"), runtime.dtype)
    shapes = build_denoiser(config, facts, nowhere).state_dict()
    wrong = sorted(
        name
        for name in shapes.keys() | state.keys()
        if name not in shapes or name not in state or shapes[name].shape != state[name].shape
    )
    if wrong:
        raise ArtifactError(
            f"The weights of a snapshot are not those of its own settings: {', '.join(wrong[:3])}.",
            remedy="Use another snapshot of the run.",
        )
    denoiser = build_denoiser(config, facts, runtime)
    denoiser.load_state_dict(state)
    denoiser.eval().requires_grad_(False)
    return Snapshot(denoiser, facts, config, runtime, weights, images_seen)
