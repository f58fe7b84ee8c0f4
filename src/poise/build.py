"""From settings and data facts to a denoiser, fresh or from a snapshot. Only this module maps
`Config` to constructors; the classes take plain arguments."""

from dataclasses import dataclass
from pathlib import Path

import torch

from poise.artifacts import DataFacts, load_tensors
from poise.config import Config, from_toml
from poise.diffusion.denoiser import Denoiser
from poise.errors import ArtifactError, UsageError, nearest
from poise.models.edm2 import Uncertainty, UNet
from poise.runtime import Runtime, choose_runtime, seed_at


def build_denoiser(config: Config, facts: DataFacts, runtime: Runtime) -> Denoiser:
    """A fresh denoiser on the runtime's device; its weights follow from `config.seed`.

    Raises:
        UsageError: the network does not fit the resolution.
    """
    # drawn on the CPU for any device, so that the same seed gives the same weights; "meta" has none
    place = "meta" if runtime.device.type == "meta" else "cpu"
    with torch.random.fork_rng(devices=[]), torch.device(place):
        torch.manual_seed(seed_at(config.seed, 0, "weights"))
        network = UNet(
            resolution=facts.resolution,
            channels_in=facts.channels,
            num_classes=len(facts.label_names),
            **config.model.model_dump(),
        )
        uncertainty = Uncertainty()
    denoiser = Denoiser(network, uncertainty, sigma_data=facts.sigma_data, dtype=runtime.dtype).to(
        runtime.device
    )
    for parameter in denoiser.parameters():  # channels-last is the fast layout of convolutions
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    return denoiser


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
        weights: which of the weights it holds; None: the widest average.

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
    config, facts = from_toml(meta["config"]), DataFacts.from_json(meta["facts"])
    runtime = choose_runtime(config.training.precision)
    denoiser = build_denoiser(config, facts, runtime)
    state: dict[str, torch.Tensor] = {}
    for prefix in ("raw/", f"{weights}/"):  # an average replaces the weights and not the buffers
        state |= {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    denoiser.load_state_dict(state)
    denoiser.eval().requires_grad_(False)
    return Snapshot(denoiser, facts, config, runtime, weights, int(meta["images_seen"]))
