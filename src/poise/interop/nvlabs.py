"""Networks of the EDM2 and EDM reference implementations: their configurations and their weights.

A configuration has the reference's own keys, and weights its own names. Every key and every name is
used or refused. The formulas are those of `models`; nothing here computes.

Weights that others published keep their terms: NVIDIA's are CC BY-NC-SA 4.0, not for commercial
use.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.errors import ArtifactError, UsageError, nearest
from poise.models import adm
from poise.models.adm import ADM, NoUncertainty
from poise.models.edm2 import Uncertainty, UNet

# keys of the reference that cannot change D(x, sigma, labels), and why
_WITHOUT_EFFECT = {
    "use_fp16": "the reference uses it on CUDA devices only; here the arithmetic is fp32",
    "sigma_min": "a limit that the reference's samplers heed; the network is defined beyond it",
    "sigma_max": "as sigma_min",
    "label_dropout": "hides labels while training; here the training loop does that",
}
_NAMED = 5  # names shown of a longer list
_Mult = Annotated[int, Field(ge=1, le=2**10)]
_Width = Field(ge=1, le=2**16)
_Balance = Field(0.5, ge=0, le=1)


class EDM2Config(BaseModel):
    """The keys of the EDM2 network with the reference's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    img_resolution: int = Field(ge=1, le=2**14)
    img_channels: int = _Width
    label_dim: int = Field(0, ge=0, le=2**24)
    sigma_data: float = Field(0.5, gt=0)
    logvar_channels: int = Field(128, ge=1, le=2**16)
    model_channels: int = Field(192, ge=1, le=2**16)
    channel_mult: tuple[_Mult, ...] = Field((1, 2, 3, 4), min_length=1, max_length=14)
    channel_mult_noise: _Mult | None = None
    channel_mult_emb: _Mult | None = None
    num_blocks: int = Field(3, ge=1)
    attn_resolutions: tuple[int, ...] = (16, 8)
    channels_per_head: int = Field(64, ge=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    resample_filter: tuple[float, ...] = Field((1, 1), min_length=2, max_length=64)
    res_balance: float = Field(0.3, ge=0, le=1)
    attn_balance: float = Field(0.3, ge=0, le=1)
    label_balance: float = _Balance
    concat_balance: float = _Balance
    clip_act: float | None = Field(256.0, gt=0)


class ADMConfig(BaseModel):
    """The keys of the preconditioned ADM network of EDM (2022) with the reference's defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    img_resolution: int = Field(ge=1, le=2**14)
    img_channels: int = _Width
    label_dim: int = Field(0, ge=0, le=2**24)
    sigma_data: float = Field(0.5, gt=0)
    model_type: Literal["DhariwalUNet"] = "DhariwalUNet"
    model_channels: int = Field(192, ge=2, le=2**16)
    channel_mult: tuple[_Mult, ...] = Field((1, 2, 3, 4), min_length=1, max_length=14)
    channel_mult_emb: _Mult = 4
    num_blocks: int = Field(3, ge=1)
    attn_resolutions: tuple[int, ...] = (32, 16, 8)
    channels_per_head: int = Field(64, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    augment_dim: Literal[0] = 0  # the labels of augmentations have no part in sampling


ReferenceConfig = EDM2Config | ADMConfig


def denoiser_from_state_dict(
    state_dict: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Denoiser:
    """The denoiser that the reference would build from `config` and fill with `state_dict`.

    Args:
        state_dict: tensors by the reference's names (`unet.*` and `logvar_*`, or `model.*`).
        config: the reference's keys (`img_resolution`, `img_channels`, `label_dim`,
            `model_channels`, ...) and `architecture`, "edm2" or "adm"; if it is absent, names that
            start with `model.` mean "adm". Absent keys have the reference's defaults.

    Returns:
        fp32, on the CPU, in evaluation mode; `.train()` switches dropout on. It shares no memory
        with `state_dict`. ADM has no log-variance: `log_variance` is zero.

    Raises:
        UsageError: an unknown key of the configuration, or a value that cannot be used.
        ArtifactError: a missing or surplus tensor, or one of another shape.
    """
    parsed = parse_config(config, state_dict)
    tensors = translated(state_dict, parsed)
    denoiser = _on_meta(parsed)
    denoiser.load_state_dict(tensors, assign=True)
    return denoiser.eval()


def parse_config(config: Mapping[str, Any], names: Iterable[str] = ()) -> ReferenceConfig:
    """The reference's keys, checked; `names` of tensors tell the architecture if it is absent.

    Raises:
        UsageError: an unknown key, or a value that cannot be used.
    """
    given = {key: _plain(key, value) for key, value in config.items()}
    guess = "adm" if any(name.startswith("model.") for name in names) else "edm2"
    architecture = given.pop("architecture", guess)
    if architecture not in ("edm2", "adm"):
        raise UsageError(f"architecture = {architecture!r} is unknown.", expected="edm2 or adm")
    given = {key: value for key, value in given.items() if key not in _WITHOUT_EFFECT}
    try:
        if architecture == "adm":
            return ADMConfig.model_validate(given)
        parsed = EDM2Config.model_validate(given)
    except ValidationError as error:
        raise _explained(error, architecture) from None
    taps = parsed.resample_filter
    if len(taps) % 2 or not sum(taps):
        raise UsageError(
            f"resample_filter = {list(taps)} cannot be used.",
            expected="an even number of values that do not add up to 0, such as [1, 1]",
        )
    return parsed


@torch.no_grad()
def translated(state_dict: Mapping[str, Tensor], config: ReferenceConfig) -> dict[str, Tensor]:
    """Copies of the tensors in fp32 under the names of our denoiser's state_dict.

    Raises:
        UsageError: the network cannot be built.
        ArtifactError: a missing or surplus tensor, or one of another shape.
    """
    if len(config.channel_mult) * config.num_blocks > len(state_dict):
        raise ArtifactError(
            f"{len(config.channel_mult)} levels of {config.num_blocks} blocks have more weights "
            f"than the {len(state_dict)} tensors that were given.",
            expected="weights of this configuration",
        )
    denoiser = _on_meta(config)
    ours = denoiser.state_dict()
    names = {reference_name(name, config): name for name in ours}
    filters = _filters(denoiser.network) if isinstance(config, ADMConfig) else set()
    surplus = sorted(state_dict.keys() - names.keys() - filters)
    _require(not surplus, "There are tensors that this configuration has no place for", surplus)
    missing = sorted(names.keys() - state_dict.keys())
    _require(not missing, "Tensors are missing", missing)
    odd = [
        name
        for name in sorted(state_dict)
        if not isinstance(state_dict[name], Tensor) or not state_dict[name].is_floating_point()
    ]
    _require(not odd, "These are no tensors of floating-point numbers", odd)
    misshaped = [
        f"{name} {list(state_dict[name].shape)} instead of {list(ours[names[name]].shape)}"
        for name in sorted(names)
        if state_dict[name].shape != ours[names[name]].shape
    ]
    _require(not misshaped, "Tensors have other shapes than this configuration", misshaped)
    box = torch.full((1, 1, 2, 2), 0.25)
    other = [
        name
        for name in sorted(filters & state_dict.keys())
        if state_dict[name].shape != box.shape or not torch.equal(state_dict[name].cpu(), box)
    ]
    _require(not other, "Resampling filters are not the mean of 2x2 pixels", other)
    return {
        name: state_dict[theirs].detach().to("cpu", torch.float32, copy=True).contiguous()
        for theirs, name in names.items()
    }


def reference_name(ours: str, config: ReferenceConfig) -> str:
    """What the reference calls an entry of our denoiser's state_dict."""
    if isinstance(config, ADMConfig):
        return ours.replace("network.", "model.", 1)
    head = ours.replace("network.", "unet.", 1).replace("uncertainty.", "logvar_", 1)
    return head.replace(".attention.", ".attn_")


def inferred_config(state_dict: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of EDM2 weights tell of their configuration.

    Balances, the clipping of activations, channels per head and dropout leave no trace in shapes.

    Raises:
        ArtifactError: these are no weights of an EDM2 network.
    """
    pattern = re.compile(r"unet\.enc\.(\d+)x\1_block(\d+)\.(conv_res1|attn_qkv)\.weight")
    widths: dict[int, int] = {}
    blocks, attends = 0, set()
    for name, tensor in state_dict.items():
        if match := pattern.fullmatch(name):
            side, block = int(match[1]), int(match[2])
            if match[3] == "attn_qkv":
                attends.add(side)
            else:
                widths[side], blocks = tensor.shape[0], max(blocks, block + 1)
    try:
        emb, noise = state_dict["unet.emb_noise.weight"].shape
        channels = state_dict["unet.out_conv.weight"].shape[0]
        logvar = state_dict["logvar_linear.weight"].shape[1]
        sides = sorted(widths, reverse=True)
        unit = math.gcd(emb, noise, *widths.values())
        resolution = sides[0]
    except (KeyError, IndexError, ValueError):
        raise ArtifactError(
            "The training state holds no weights of an EDM2 network.",
            expected="tensors named unet.* and logvar_*",
        ) from None
    label = state_dict.get("unet.emb_label.weight")
    return {
        "img_resolution": resolution,
        "img_channels": channels,
        "label_dim": 0 if label is None else label.shape[-1],
        "model_channels": unit,
        "channel_mult": [widths[side] // unit for side in sides],
        "channel_mult_noise": noise // unit,
        "channel_mult_emb": emb // unit,
        "num_blocks": blocks,
        "attn_resolutions": sorted(attends, reverse=True),
        "logvar_channels": logvar,
    }


def _on_meta(config: ReferenceConfig) -> Denoiser:
    """The denoiser without numbers, for names and shapes, or to be given tensors."""
    with torch.device("meta"):
        network = _network(config)
        if isinstance(config, ADMConfig):
            return Denoiser(network, NoUncertainty(), sigma_data=config.sigma_data)
        uncertainty = Uncertainty(config.logvar_channels)
    return Denoiser(network, uncertainty, sigma_data=config.sigma_data)


def attending(config: ReferenceConfig) -> tuple[list[int], bool]:
    """Sides at which blocks attend, and whether the deepest level is too narrow to.

    In the reference a level narrower than one head has no attention, whatever was asked for.

    Raises:
        UsageError: the deepest level is too narrow where another attends.
    """
    sides = [config.img_resolution >> level for level in range(len(config.channel_mult))]
    widths = [config.model_channels * mult for mult in config.channel_mult]
    found = [
        side
        for side, width in zip(sides, widths, strict=True)
        if side in config.attn_resolutions and width >= config.channels_per_head
    ]
    narrow = widths[-1] < config.channels_per_head
    if narrow and found:
        raise UsageError(
            f"channels_per_head = {config.channels_per_head} leaves the deepest level, "
            f"{widths[-1]} wide, without attention where others have it.",
            expected="a deepest level of at least one head",
        )
    return found, narrow


def buffer_names(config: ReferenceConfig) -> set[str]:
    """Which entries of our denoiser's state_dict are no parameters."""
    return {name for name, _ in _on_meta(config).named_buffers()}


def _network(config: ReferenceConfig) -> nn.Module:
    sides, narrow = attending(config)
    deepest = config.img_resolution >> (len(config.channel_mult) - 1)
    width = config.model_channels * config.channel_mult[-1]
    common: dict[str, Any] = {
        "resolution": config.img_resolution,
        "channels_in": config.img_channels,
        "num_classes": config.label_dim,
        "channels": config.model_channels,
        "channels_per_head": width if narrow else config.channels_per_head,
        "attn_resolutions": sides,
    }
    same = {"channel_mult", "channel_mult_emb", "num_blocks", "dropout"}
    network: ADM | UNet
    if isinstance(config, ADMConfig):
        network = ADM(**common, **config.model_dump(include=same))
    else:
        same |= {"channel_mult_noise", "resample_filter", "res_balance", "attn_balance"}
        same |= {"label_balance", "concat_balance"}
        clip = float("inf") if config.clip_act is None else config.clip_act
        network = UNet(**common, **config.model_dump(include=same), clip_act=clip)
    if narrow:
        _remove_attention(network.dec[f"{deepest}x{deepest}_in0"])
    return network


def _remove_attention(block: Any) -> None:
    """Take the attention out of the one block that otherwise always has it."""
    if isinstance(block, adm.Block):
        block.heads = 0
        del block.norm2, block.qkv, block.proj
    else:
        block.attention = None


def _filters(network: nn.Module) -> set[str]:
    """Names of the constant buffers with which the reference's ADM resamples."""
    return {
        f"model.{name}.{part}.resample_filter"
        for name, module in network.named_modules()
        if getattr(module, "resample", "keep") != "keep"
        for part in ("conv0", "skip")
    }


def _plain(key: str, value: Any) -> Any:
    """A value that is a number, a word, None, or a list of them."""
    if isinstance(value, np.generic):
        value = value.item()
    items: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
    items = [item.item() if isinstance(item, np.generic) else item for item in items]
    for item in items:
        if not isinstance(item, bool | int | float | str | None):
            raise UsageError(
                f"{key} holds a {type(item).__name__}.", expected="numbers, words, or lists of them"
            )
    return tuple(items) if isinstance(value, list | tuple) else value


def _explained(error: ValidationError, architecture: str) -> UsageError:
    first = error.errors()[0]
    key = str(first["loc"][0])
    known = [*(ADMConfig if architecture == "adm" else EDM2Config).model_fields, *_WITHOUT_EFFECT]
    if first["type"] == "extra_forbidden":
        return UsageError(
            f"The configuration has a key {key!r} that {architecture} does not know. "
            f"{nearest(key, known)}".rstrip(),
            expected="some of architecture, " + ", ".join(known),
        )
    if first["type"] == "missing":
        return UsageError(f"The configuration has no {key}.", expected=f"{key}, a whole number")
    return UsageError(
        f"{key} = {str(first['input'])[:100]!r} is not supported by {architecture}.",
        expected=first["msg"],
    )


def _require(good: bool, what: str, names: Sequence[str]) -> None:
    if not good:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        raise ArtifactError(
            f"{what}: {', '.join(names[:_NAMED])}{more}.",
            expected="exactly the tensors of the network that the configuration describes",
            remedy="Check channel_mult, num_blocks, attn_resolutions, label_dim and the like.",
        )
