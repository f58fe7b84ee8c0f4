"""Checkpoints of the EDM2 and EDM reference implementations become Poise snapshots.

What a file is, is read from its content; `tensors` and `nvlabs` do the reading. The result samples
like any snapshot of a run, and carries the licence of the weights along.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from poise.artifacts import DataFacts, save_tensors
from poise.config import resolve, to_toml
from poise.errors import ArtifactError, UsageError
from poise.interop.nvlabs import (
    ADMConfig,
    ReferenceConfig,
    attending,
    buffer_names,
    inferred_config,
    parse_config,
    translated,
)
from poise.interop.pickles import Made, attributes_of, class_of, is_object
from poise.interop.tensors import CheckpointFile, open_checkpoint
from poise.settings import Config

LICENCE = (
    "CC BY-NC-SA 4.0 (NVIDIA): not for commercial use; what is made of these weights is shared "
    "under the same terms"
)
_WIDEST = 12**-0.5  # relative width that no average reaches
_SIZE = 2**20  # bytes of a training_options.json, at most


@dataclass(frozen=True)
class _Class:
    """A preconditioned network of the reference."""

    architecture: str
    inside: tuple[str, str]  # attribute and class of the network itself
    positional: tuple[str, ...]  # arguments in order


_CLASSES = {
    "Precond": _Class(
        "edm2",
        ("unet", "UNet"),
        (
            *("img_resolution", "img_channels", "label_dim"),
            *("use_fp16", "sigma_data", "logvar_channels"),
        ),
    ),
    "EDMPrecond": _Class(
        "adm",
        ("model", "DhariwalUNet"),
        (
            *("img_resolution", "img_channels", "label_dim", "use_fp16"),
            *("sigma_min", "sigma_max", "sigma_data", "model_type"),
        ),
    ),
}

_RGB = "RGB, x / 127.5 - 1; no augmentation"
# EDM2's latents of sd-vae-ft-mse: mean and deviation of each channel over ImageNet
_LATENT_MEANS, _LATENT_STDS = (5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28)
_LATENTS = (
    "latents z of the VAE sd-vae-ft-mse, fed images in [0, 1], standardised by channel to "
    "(z - m) * 0.5 / s with m = {means}, s = {stds}; before decoding, undo it: z = x * s / 0.5 + m"
)


@dataclass(frozen=True)
class ImportedCheckpoint:
    """What was found in a checkpoint and written as a snapshot."""

    out: Path
    architecture: str  # "edm2" or "adm"
    parameters: int
    resolution: int
    channels: int
    classes: int  # 0: unconditional
    images_seen: int | None  # None: neither the file nor its name says
    weights: tuple[str, ...]  # the last one is sampled unless another is asked for
    licence: str
    notes: tuple[str, ...]  # what had to be assumed

    @property
    def summary(self) -> str:
        """One line per fact."""
        labels = f"{self.classes} classes" if self.classes else "no classes"
        seen = "unknown" if self.images_seen is None else f"{self.images_seen:,}"
        lines = [
            f"{self.architecture}, {self.parameters:,} parameters",
            f"{self.resolution}x{self.resolution}, {self.channels} channels, {labels}",
            f"images seen: {seen}; weights: {', '.join(self.weights)}",
            f"licence of the weights: {self.licence}",
            *self.notes,
            f"snapshot: {self.out}",
        ]
        return "\n".join(lines)


@dataclass
class _Found:
    """A checkpoint in our terms."""

    config: ReferenceConfig
    weights: dict[str, dict[str, Tensor]]  # by "raw", "ema_0.100" or "ema", then by our names
    images_seen: int | None
    encoder: Any = None  # how its images became the network's input
    loss: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def import_checkpoint(
    source: Path, out: Path, *, std: float | None = None, licence: str | None = None
) -> ImportedCheckpoint:
    """Convert an EDM2 or EDM (ADM) network snapshot or training state to a Poise snapshot.

    Nothing in the file is executed; see `pickles`.

    Args:
        source: `network-snapshot-*.pkl`, a released `.pkl`, or `training-state-*.pt`.
        out: the snapshot, a `.safetensors` file; written atomically, fp32.
        std: relative width of the average; of a snapshot: where its name does not say, of a
            training state: which of its averages is sampled by default.
        licence: the terms of weights that the user trained; None: those of NVIDIA's weights.

    Raises:
        ArtifactError: the file is none of these, is damaged, or asks for more than data needs.
        UsageError: a network that Poise's settings cannot express, or an average that is not there.
    """
    if std is not None and not 0 < std < _WIDEST:
        raise UsageError(f"--std {std} is no width.", expected="0 < std < 0.2887, such as 0.130")
    with open_checkpoint(source) as file:
        found = _read(file, std)
    config = _settings(found)
    cfg = found.config
    facts = DataFacts(
        cfg.img_resolution,
        cfg.img_channels,
        tuple(str(i) for i in range(cfg.label_dim)),
        cfg.sigma_data,
        latents=cfg.img_channels in (4, 8),
    )
    buffers = buffer_names(cfg)
    first = next(iter(found.weights.values()))
    tensors = {f"raw/{name}": first[name] for name in buffers}
    for head, weights in found.weights.items():  # buffers are fixed: they stand under raw/ alone
        tensors |= {f"{head}/{name}": w for name, w in weights.items() if name not in buffers}
    imported = ImportedCheckpoint(
        out=out,
        architecture="adm" if isinstance(cfg, ADMConfig) else "edm2",
        parameters=sum(w.numel() for name, w in first.items() if name not in buffers),
        resolution=cfg.img_resolution,
        channels=cfg.img_channels,
        classes=cfg.label_dim,
        images_seen=found.images_seen,
        weights=tuple(found.weights),
        licence=licence or LICENCE,
        notes=tuple(found.notes),
    )
    meta = {
        "kind": "snapshot",
        "images_seen": found.images_seen or 0,
        "weights": list(found.weights),
        "config": to_toml(config),
        "facts": facts.to_json(),
        "preprocessing": _preprocessing(found),
        "licence": imported.licence,
        "imported_from": source.name,
    }
    save_tensors(out, tensors, meta)
    return imported


def _read(file: CheckpointFile, std: float | None) -> _Found:
    root = file.root
    if type(root) is dict and is_object(root.get("ema")):
        return _network_snapshot(file, root, std)
    if type(root) is dict and (type(root.get("net")) is dict or is_object(root.get("net"))):
        return _training_state(file, root, std)
    held = ", ".join(str(key)[:30] for key in list(root)[:8]) if type(root) is dict else "no dict"
    raise ArtifactError(
        f"{file.path} holds no network: {held or 'nothing'}.",
        expected="`ema`, a network (.pkl), or `net` with its weights (.pt)",
    )


def _network_snapshot(file: CheckpointFile, root: dict[str, Any], std: float | None) -> _Found:
    """`{ema: network, encoder, loss_fn, ...}`, named after images and width of the average."""
    config = parse_config(_arguments(file, root["ema"]))
    kimg, named_std = _numbers_of(file.path)
    width = named_std if std is None else std
    name = "ema" if width is None else _profile_name(width)
    weights = {name: translated(file.state_dict(root["ema"]), config)}
    found = _Found(config, weights, _images_seen(kimg, config), root.get("encoder"))
    if is_object(root.get("loss_fn")):
        found.loss = attributes_of(root["loss_fn"])
    return found


def _training_state(file: CheckpointFile, root: dict[str, Any], std: float | None) -> _Found:
    """`{net, ema: {stds, emas}, state, loss_fn, ...}` of EDM2, or EDM's `{net: network, ...}`."""
    notes: list[str] = []
    raw = file.state_dict(root["net"])
    if is_object(root["net"]):
        config = parse_config(_arguments(file, root["net"]))
    else:
        config = parse_config({**inferred_config(raw), **_options_beside(file.path, raw, notes)})
    averages = root.get("ema") or {"stds": [], "emas": []}
    stds, emas = (averages.get(k) if type(averages) is dict else None for k in ("stds", "emas"))
    if type(stds) is not list or type(emas) is not list or len(stds) != len(emas):
        raise ArtifactError(f"{file.path} has an `ema` without `stds` and `emas`.")
    if not all(type(s) is float and 0 < s < _WIDEST for s in stds):
        raise ArtifactError(f"{file.path} has averages that are no widths.")
    sets = {"raw": translated(raw, config)}
    by_name = {_profile_name(s): ema for s, ema in zip(stds, emas, strict=True)}
    if std is not None:
        if _profile_name(std) not in by_name:
            raise UsageError(
                f"{file.path} has no average of width {std}.",
                expected="one of " + (", ".join(map(str, stds)) or "none: it has raw weights only"),
            )
        by_name[_profile_name(std)] = by_name.pop(_profile_name(std))  # the last one is sampled
    for name, ema in by_name.items():
        sets[name] = translated(file.state_dict(ema), config)
    state = root.get("state")
    seen = state.get("cur_nimg") if type(state) is dict else None
    if type(seen) is not int or not 0 <= seen < 2**53:
        seen = _images_seen(_numbers_of(file.path)[0], config)
    loss = root.get("loss_fn")
    return _Found(config, sets, seen, loss=loss if type(loss) is dict else {}, notes=notes)


def _arguments(file: CheckpointFile, record: Made) -> dict[str, Any]:
    """The configuration of a pickled network: the arguments it was made with."""
    name = class_of(record)
    kind = _CLASSES.get(name)
    state = attributes_of(record)
    inner: Any = "nothing"
    if kind is not None:
        modules = state.get("_modules")
        inner = modules.get(kind.inside[0]) if type(modules) is dict else None
        inner = class_of(inner) if is_object(inner) else "nothing"
    if kind is None or inner != kind.inside[1]:
        what = name if kind is None else f"{name} around {inner}"
        raise ArtifactError(
            f"{file.path} holds a network of the class {what[:100]}, which is not supported.",
            expected="EDM2's Precond around UNet, or EDM's EDMPrecond around DhariwalUNet (ADM)",
        )
    args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs")
    known = type(args) in (tuple, list) and type(kwargs) is dict
    if not known or len(args) > len(kind.positional):
        raise ArtifactError(f"{file.path} does not say how its network was configured.")
    given = dict(zip(kind.positional, args, strict=False))
    return {**given, **(kwargs or {}), "architecture": kind.architecture}


def _options_beside(path: Path, raw: Mapping[str, Tensor], notes: list[str]) -> dict[str, Any]:
    """What shapes cannot tell, from the `training_options.json` of the same folder."""
    options = path.with_name("training_options.json")
    if not options.is_file():
        notes.append(
            "assumed the reference's balances, clipping, filter, sigma_data and channels per head: "
            "a training state does not hold them, and no training_options.json lies beside it"
        )
        return {}
    try:
        if options.stat().st_size > _SIZE:
            raise ValueError("too large")
        network = json.loads(options.read_text(encoding="utf-8"))["network_kwargs"]
        name = str(network.pop("class_name", "Precond"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ArtifactError(f"{options} has no network_kwargs: {error}.") from None
    if name.rpartition(".")[2] != "Precond":
        raise ArtifactError(f"{options} is of another network: {name[:100]}.", expected="Precond")
    notes.append("balances and the like were taken from training_options.json beside it")
    shown = inferred_config(raw)
    return {key: value for key, value in network.items() if key not in shown}


def _settings(found: _Found) -> Config:
    """The settings that build the same network, and what is known of its training."""
    cfg = found.config
    sides, narrow = attending(cfg)
    same = {"channel_mult", "channel_mult_emb", "num_blocks", "channels_per_head", "dropout"}
    model: dict[str, Any] = {
        "architecture": "adm",
        "channels": cfg.model_channels,
        "attn_resolutions": sides,
    }
    unfit = [f"a deepest level narrower than {cfg.channels_per_head} channels"] if narrow else []
    if not isinstance(cfg, ADMConfig):
        model["architecture"] = "edm2"
        same |= {"channel_mult_noise", "resample_filter", "clip_act", "res_balance"}
        same |= {"attn_balance", "label_balance", "concat_balance"}
        unfit += ["clip_act = None"] if cfg.clip_act is None else []
        unfit += ["logvar_channels other than 128"] if cfg.logvar_channels != 128 else []
    if unfit:
        raise UsageError(
            f"Poise has no setting for {' and '.join(unfit)}.",
            remedy="poise.interop.nvlabs.denoiser_from_state_dict builds such a network.",
        )
    model |= cfg.model_dump(include=same)
    overrides = {f"model.{key}": value for key, value in model.items()}
    overrides["sampling.steps"] = 40 if isinstance(cfg, ADMConfig) else 32
    overrides["training.precision"] = "fp32"
    overrides["training.images"] = max(found.images_seen or 1, 1)
    overrides["training.label_dropout"] = 0.0
    for key in ("P_mean", "P_std"):
        if type(found.loss.get(key)) is float:
            overrides[f"diffusion.{key}"] = found.loss[key]
    try:
        return resolve(overrides=overrides)
    except UsageError as error:
        raise UsageError(
            f"Poise's settings cannot express this network: {error.found}",
            remedy="poise.interop.nvlabs.denoiser_from_state_dict builds such a network.",
        ) from None


def _preprocessing(found: _Found) -> str:
    """How images become the network's input, and back."""
    encoder = found.encoder
    name = class_of(encoder) if is_object(encoder) else ""
    if name != "StabilityVAEEncoder" and found.config.img_channels not in (4, 8):
        return _RGB
    given = attributes_of(encoder).get("_init_kwargs") if is_object(encoder) else None
    given = given if type(given) is dict else {}
    means, stds = given.get("raw_mean", _LATENT_MEANS), given.get("raw_std", _LATENT_STDS)
    return _LATENTS.format(means=_listed(means), stds=_listed(stds))


def _listed(values: Any) -> str:
    numbers = values if type(values) in (list, tuple) else ()
    return str([float(v) for v in numbers if type(v) in (int, float) and abs(v) < 1e6])


def _numbers_of(path: Path) -> tuple[int | None, float | None]:
    """Thousands of images and width of the average, as `...-2147483-0.130.pkl` says them."""
    match = re.search(r"-(\d{6,7})(?:-(0\.\d{3}))?$", path.stem)
    if match is None:
        return None, None
    std = float(match[2]) if match[2] else None
    return int(match[1]), std if std and std < _WIDEST else None


def _images_seen(kimg: int | None, config: ReferenceConfig) -> int | None:
    if kimg is None:
        return None
    # EDM2 counts in steps of 1024 images and names files by the thousands, rounded down
    return kimg * 1000 if isinstance(config, ADMConfig) else (kimg * 1000 + 999) // 1024 * 1024


def _profile_name(std: float) -> str:
    """As `training.ema.profile_name`, which lies above this layer."""
    return f"ema_{std:.3f}"
