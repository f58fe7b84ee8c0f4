"""Every setting of a run as frozen data, with a sentence under each field.

A `Config` is built once (defaults, then preset, then `key=value` overrides), checked, written to
the run folder, and never changed afterwards. Facts about the data are not settings: see
`artifacts.DataFacts`.
"""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from poise.errors import UsageError, nearest


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class DataConfig(_Section):
    """How images become training data."""

    resolution: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="Side of the square images in pixels; unset: chosen from the data.",
    )
    split: tuple[float, float, float] = Field(
        (0.8, 0.1, 0.1),
        description="Shares of training, validation and test images; they add up to 1.",
    )
    split_seed: int = Field(0, description="Changes which images fall into which split.")
    flip: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Random horizontal flips; auto: only if the classes look the same mirrored.",
    )
    max_unreadable: float = Field(
        0.05, ge=0, le=1, description="Share of unreadable files above which the run is refused."
    )
    memory_gib: float = Field(
        4.0, gt=0, description="Above this size the decoded images go to a memory-mapped file."
    )


class ModelConfig(_Section):
    """The EDM2 network (config G)."""

    channels: int = Field(32, ge=8, description="Channels of the first level.")
    channel_mult: tuple[int, ...] = Field(
        (1, 2), min_length=1, description="Width of each level, in multiples of `channels`."
    )
    num_blocks: int = Field(1, ge=1, description="Residual blocks per level.")
    attn_resolutions: tuple[int, ...] = Field(
        (8,), description="Resolutions whose blocks attend to the whole image."
    )
    channels_per_head: int = Field(64, ge=8, description="Channels of one attention head.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of activations dropped in each block."
    )
    res_balance: float = Field(
        0.3, gt=0, lt=1, description="Weight of the residual branch in a sum."
    )
    attn_balance: float = Field(
        0.3, gt=0, lt=1, description="Weight of the attention branch in a sum."
    )
    label_balance: float = Field(
        0.5, gt=0, lt=1, description="Weight of the class in the embedding."
    )
    concat_balance: float = Field(
        0.5, gt=0, lt=1, description="Weight of the skip in a concatenation."
    )
    clip_act: float = Field(
        256.0, gt=0, description="Activations are clamped to plus or minus this."
    )


class DiffusionConfig(_Section):
    """Which noise levels the network learns."""

    P_mean: float = Field(-0.8, description="Mean of ln(sigma) while training.")
    P_std: float = Field(1.4, gt=0, description="Standard deviation of ln(sigma) while training.")


class TrainingConfig(_Section):
    """The optimisation. Every schedule is a function of images seen."""

    images: int = Field(
        1_000_000,
        ge=1,
        description="Images the network sees; schedules are drawn over this length.",
    )
    batch: int = Field(64, ge=1, description="Images per update.")
    micro_batch: int | None = Field(
        None, ge=1, description="Images per forward pass; unset: the batch. The update is the same."
    )
    lr: float = Field(0.01, gt=0, description="Highest learning rate (Adam).")
    warmup: float = Field(0.02, ge=0, le=1, description="Share of the run in which the rate rises.")
    decay: Literal["inverse_sqrt", "cosine", "constant"] = Field(
        "inverse_sqrt", description="How the rate falls after warm-up."
    )
    decay_start: float = Field(
        0.3, gt=0, le=1, description="Share of the run after which inverse_sqrt begins to fall."
    )
    betas: tuple[float, float] = Field((0.9, 0.99), description="Adam's averaging constants.")
    eps: float = Field(1e-8, gt=0, description="Adam's guard against division by zero.")
    ema_stds: tuple[float, ...] = Field(
        (0.05, 0.10),
        min_length=1,
        description="Relative widths of the averaged weights; the last one is sampled by default.",
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Arithmetic of the network; auto: bf16 where the machine does it fast."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; unset: one per core, or with a budget what is measured faster.",
    )
    max_skipped: int = Field(
        50, ge=1, description="Non-finite updates in a row after which the run stops."
    )


class CadenceConfig(_Section):
    """How often the run looks at itself: times over the whole run."""

    logs: int = Field(400, ge=1, description="Lines of metrics.jsonl.")
    checkpoints: int = Field(50, ge=1, description="Saved states to resume from; two are kept.")
    validations: int | None = Field(
        None,
        ge=1,
        description="Passes over the validation probe; unset: at most 10, within 5% of training.",
    )
    grids: int | None = Field(
        None,
        ge=1,
        description="Sample grids at fixed seeds; unset: at most 8, within 5% of training.",
    )
    snapshots: int = Field(4, ge=1, description="Averaged weights kept for sampling.")


class ValidationConfig(_Section):
    """The denoising error on held-out images, with noise fixed per image and level."""

    images: int | None = Field(
        None, ge=1, description="Images of the validation probe; unset: at most 256, within the 5%."
    )
    bands: int = Field(8, ge=8, description="Noise levels, evenly spaced in ln(sigma).")
    sigma_min: float = Field(0.02, gt=0, description="Lowest noise level of the probe.")
    sigma_max: float = Field(20.0, gt=0, description="Highest noise level of the probe.")


class SamplingConfig(_Section):
    """The deterministic Heun sampler of EDM."""

    steps: int = Field(18, ge=2, description="Noise levels visited; 2 steps - 1 network calls.")
    sigma_min: float = Field(0.002, gt=0, description="Last noise level before zero.")
    sigma_max: float = Field(80.0, gt=0, description="First noise level.")
    rho: float = Field(
        7.0, gt=0, description="Spacing of the noise levels; larger: finer near zero."
    )
    batch: int = Field(64, ge=1, description="Images drawn at once; changes speed, not images.")


class EvaluationConfig(_Section):
    """Scores of samples against held-out images."""

    samples: int | None = Field(
        None, ge=10, description="Images drawn; unset: 100 to 2000, within 10% of training."
    )
    features: Literal["auto", "pixels", "random_conv"] = Field(
        "auto",
        description="Feature space of the scores; auto: pixels up to 16x16, else random_conv.",
    )
    neighbours: int = Field(5, ge=1, description="k of precision, recall, density and coverage.")


class Config(_Section):
    """All settings of one run."""

    seed: int = Field(0, ge=0, description="One number from which all randomness follows.")
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    training: TrainingConfig = TrainingConfig()
    cadence: CadenceConfig = CadenceConfig()
    validation: ValidationConfig = ValidationConfig()
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()


class Preset(BaseModel):
    """A named set of overrides and the image sizes it is meant for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    resolutions: tuple[int, int]  # smallest and largest side in pixels
    worthwhile_images: int  # a budget that affords fewer images is better spent on a smaller preset
    settings: dict[str, Any]  # dotted key -> value


def presets() -> list[Preset]:
    """All presets, smallest network first."""
    found = []
    for entry in resources.files("poise.presets").iterdir():
        if entry.name.endswith(".toml"):
            raw = tomllib.loads(entry.read_text(encoding="utf-8"))
            found.append(Preset(name=entry.name[:-5], **raw))
    return sorted(found, key=lambda p: (p.resolutions[0], p.settings["model.channels"], p.name))


def preset_named(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        UsageError: there is none.
    """
    known = {p.name: p for p in presets()}
    if name not in known:
        raise UsageError(
            f"There is no preset {name!r}. {nearest(name, known)}".rstrip(),
            expected="one of " + ", ".join(known),
            remedy="`poise presets` lists them with their sizes.",
        )
    return known[name]


def resolve(preset: Preset | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Defaults, then the preset, then `overrides` (dotted keys), checked.

    Raises:
        UsageError: an unknown key (with the nearest name) or a value out of range.
    """
    tree: dict[str, Any] = {}
    for source in (preset.settings if preset else {}, overrides or {}):
        for key, value in source.items():
            _assign(tree, key, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error) from None
    _check_together(config)
    return config


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["training.lr=0.01", "data.flip=on"]` as dotted keys and values: TOML, or a bare word.

    Raises:
        UsageError: a text without `=`.
    """
    values: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key.strip():
            raise UsageError(
                f"--set {pair!r} is not a setting.",
                expected="key=value, such as training.lr=0.005",
                remedy="`poise config` lists every key.",
            )
        try:
            values[key.strip()] = tomllib.loads(f"value = {text.strip()}")["value"]
        except tomllib.TOMLDecodeError:
            values[key.strip()] = text.strip()
    return values


def documented(config: Config) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, value, sentence), in the order of this file."""
    rows: list[tuple[str, Any, str]] = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, _Section):
            for leaf, leaf_field in type(value).model_fields.items():
                key = f"{name}.{leaf}"
                rows.append((key, getattr(value, leaf), leaf_field.description or ""))
        else:
            rows.append((name, value, field.description or ""))
    return rows


def to_toml(config: Config) -> str:
    """The settings as TOML, each with its sentence as a comment; an unset one is commented out."""
    lines: list[str] = []
    section = ""
    for key, value, sentence in documented(config):
        head, _, leaf = key.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines.append(f"# {sentence}")
        lines.append(f"{leaf} = {_toml_value(value)}" if value is not None else f"# {leaf} =")
    return "\n".join(lines) + "\n"


def from_toml(text: str) -> Config:
    """The settings written by `to_toml`.

    Raises:
        UsageError: unknown keys or values out of range.
    """
    try:
        return Config.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The settings are not valid TOML: {error}.") from None
    except ValidationError as error:
        raise _explain(error) from None


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    known = {row[0] for row in documented(Config())}
    if key not in known:
        leaves = {name.rpartition(".")[2]: name for name in known}
        hint = nearest(key, known) or nearest(key.rpartition(".")[2], leaves)
        raise UsageError(
            f"There is no setting {key!r}. {hint}".rstrip(),
            expected="a dotted name such as training.lr",
            remedy="`poise config` lists every setting with its meaning.",
        )
    section, _, leaf = key.rpartition(".")
    (tree.setdefault(section, {}) if section else tree)[leaf] = value


def _explain(error: ValidationError) -> UsageError:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = [row[0] for row in documented(Config())]
        return UsageError(
            f"There is no setting {key!r}. {nearest(key, known)}".rstrip(),
            remedy="`poise config` lists every setting with its meaning.",
        )
    return UsageError(
        f"{key} = {first['input']!r} cannot be used.",
        expected=first["msg"],
        remedy="`poise config` shows each setting with its meaning and its value.",
    )


def _check_together(config: Config) -> None:
    split = config.data.split
    if min(split) < 0 or abs(sum(split) - 1) > 1e-6 or split[0] == 0 or split[1] == 0:
        raise UsageError(
            f"data.split = {list(split)} cannot be used.",
            expected="three shares that add up to 1, training and validation above 0",
            remedy="for example --set data.split=[0.8,0.1,0.1]",
        )
    training = config.training
    micro = training.micro_batch
    if micro is not None and training.batch % micro:
        raise UsageError(
            f"training.micro_batch = {micro} does not divide training.batch = {training.batch}.",
            expected="a divisor of the batch",
        )
    for section, low, high in (
        ("validation", config.validation.sigma_min, config.validation.sigma_max),
        ("sampling", config.sampling.sigma_min, config.sampling.sigma_max),
    ):
        if low >= high:
            raise UsageError(f"{section}.sigma_min = {low} is not below sigma_max = {high}.")
    for std in training.ema_stds:
        if not 0 < std < 12**-0.5:
            raise UsageError(
                f"training.ema_stds holds {std}.",
                expected="relative widths between 0 and 0.2887 (a power function has no wider)",
            )


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
