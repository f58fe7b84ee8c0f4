"""What a drill trains: a network small enough for minutes, the images at a size that fits it.

The length, the cadence and how often the guard looks inside the network are set for a short run;
everything else is as the user, the preset or the defaults have it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from poise.budget import settle, smallest_fitting
from poise.config import Preset, from_toml, preset_named, presets, resolve, to_toml
from poise.data.dataset import Dataset
from poise.data.settling import settle_data
from poise.data.splits import Splits
from poise.errors import UsageError
from poise.settings import Config

BETWEEN_CHECKPOINTS = 25  # updates
BETWEEN_PROBES = 20
BETWEEN_LOGS = 10
MANY_LOOKS = 10  # grids and validations, where a fault shows in them
_BETWEEN_SAVES = 4  # updates, where a process is killed in the midst of one
_LARGEST = 32  # pixels that are drilled as they are
_REDUCED = 16  # side of images that were larger
_OWN = {"training.images", "cadence.checkpoints", "cadence.logs"}  # what a drill decides itself


def drill_preset(resolution: int) -> Preset:
    """The smallest sensible network for images of this side: one block a level, 16 channels."""
    halvings = 2 if resolution > _REDUCED else 1
    while resolution % 2**halvings:
        halvings -= 1
    return Preset(
        name="drill",
        description="A network for fire drills.",
        resolutions=(resolution, resolution),
        worthwhile_images=1,
        automatic=False,
        counted_at=(resolution, 3, 10),
        settings={
            "model.channels": 16,
            "model.channels_per_head": 16,
            "model.channel_mult": [1, *[2] * halvings],
            "model.num_blocks": 1,
            "model.attn_resolutions": [4, 8],
            "training.batch": 32,
            "training.lr": 0.01,
            "training.warmup": 0.1,
            "training.precision": "fp32",
        },
    )


def early_config(preset: str | None, overrides: Mapping[str, Any]) -> Config:
    """The settings by which images are read; a wrong one fails here, before any work.

    Raises:
        UsageError: an unknown preset or setting, or one that the drill decides itself.
    """
    for key in sorted(_OWN & set(overrides)):
        raise UsageError(
            f"{key} is decided by the drill.",
            expected="--base and --steps for its length, in updates",
            remedy=f"Leave --set {key}=... away.",
        )
    return resolve(preset_named(preset) if preset else None, overrides)


def fit_images(
    dataset: Dataset, *, own: bool, overrides: Mapping[str, Any], say: Callable[[str], None]
) -> Dataset:
    """The images, reduced to 16x16 where they are larger than 32x32 and nobody chose their size.

    Args:
        dataset: as it was read.
        own: the user chose the network.
        overrides: the user's settings.
        say: told what was done.
    """
    if own or "data.resolution" in overrides or dataset.resolution <= _LARGEST:
        return dataset
    say(
        f"The drill reduces the images from {dataset.resolution} to {_REDUCED} pixels, so that it "
        f"takes minutes (--set data.resolution={dataset.resolution}, or --preset, to keep them)."
    )
    return replace(dataset, images=_reduced(dataset.images, _REDUCED))


def _reduced(images: Any, side: int, chunk: int = 1024) -> Any:
    """uint8 [N, C, H, W] at another side, antialiased."""
    parts = []
    for start in range(0, len(images), chunk):
        part = torch.from_numpy(np.ascontiguousarray(images[start : start + chunk])).float()
        small = F.interpolate(part, (side, side), mode="bilinear", antialias=True)
        parts.append(small.round().clamp(0, 255).to(torch.uint8).numpy())
    return np.concatenate(parts)


def usual_preset(resolution: int) -> str | None:
    """The preset that `poise train` takes without a budget; None: no preset fits these images."""
    try:
        return smallest_fitting(presets(), resolution)[0].name
    except UsageError:
        return None


def drill_config(
    dataset: Dataset,
    splits: Splits,
    preset: str | None,
    overrides: Mapping[str, Any],
    updates: int,
    checkpoint_every: int = BETWEEN_CHECKPOINTS,
) -> Config:
    """The settled settings of a run of so many updates.

    Args:
        dataset: the images, at the size they are trained on.
        splits: of the images.
        preset: its name, or None for the drill's own network.
        overrides: the user's settings, which win.
        updates: the length, >= 1.
        checkpoint_every: updates between two checkpoints.

    Raises:
        UsageError: the preset or a setting does not fit the images.
    """
    chosen = preset_named(preset) if preset else drill_preset(dataset.resolution)
    if preset:
        smallest_fitting(presets(), dataset.resolution, chosen)
    config = resolve(chosen, overrides)
    training = config.training.model_copy(
        update={
            "images": updates * config.training.batch,
            "compile": "on" if config.training.compile == "on" else "off",
            "threads": config.training.threads or torch.get_num_threads(),
        }
    )
    stability: dict[str, Any] = {
        name: value
        for name, value in {"probe_every": BETWEEN_PROBES, "preflight": False}.items()
        if f"stability.{name}" not in overrides
    }
    cadence: dict[str, Any] = {
        name: value
        for name, value in {
            "checkpoints": max(1, updates // checkpoint_every),
            "logs": max(1, updates // BETWEEN_LOGS),
            "grids": 1,
            "snapshots": 1,
        }.items()
        if f"cadence.{name}" not in overrides
    }
    config = config.model_copy(
        update={
            "training": training,
            "stability": config.stability.model_copy(update=stability),
            "cadence": config.cadence.model_copy(update=cadence),
        }
    )
    return settle_data(settle(config, len(splits.val)), dataset, splits.train, lambda _: None)


def with_many_looks(config: Config) -> Config:
    """The same run with more grids of samples and validations, which change nothing of it."""
    cadence = config.cadence.model_copy(update={"grids": MANY_LOOKS, "validations": MANY_LOOKS})
    return config.model_copy(update={"cadence": cadence})


def with_many_saves(config: Config) -> Config:
    """The same run with a checkpoint every few updates."""
    updates = config.training.images // config.training.batch
    cadence = config.cadence.model_copy(update={"checkpoints": max(1, updates // _BETWEEN_SAVES)})
    return config.model_copy(update={"cadence": cadence})


def with_parts(config: Config, parts: int) -> Config:
    """The same run with each batch trained in parts, two at least, as equal as they can be."""
    batch = config.training.batch
    sizes = [size for size in range(1, batch) if batch % size == 0] or [batch]
    micro = min(sizes, key=lambda size: abs(size - batch / parts))
    training = config.training.model_copy(update={"micro_batch": micro})
    return config.model_copy(update={"training": training})


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """`config` with other values of some settings (dotted keys), checked.

    Raises:
        UsageError: a value that does not go with the others.
    """
    tree = config.model_dump()
    for key, value in overrides.items():
        section, _, leaf = key.rpartition(".")
        (tree[section] if section else tree)[leaf] = value
    return from_toml(to_toml(Config.model_validate(tree)))
