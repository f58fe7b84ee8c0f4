"""From presets and overrides to a checked `Config`, and to TOML and back.

A `Config` is built once (defaults, what the network implies, preset, then `key=value` overrides),
checked, written to the run folder, and never changed afterwards.
"""

import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from poise.errors import UsageError, nearest
from poise.settings import Config, ModelConfig, Section

# What a rung of EDM2's ablation, or a transformer, changes outside of the network. It stands above
# the preset, whose rate is that of rung G, and below what the user sets.
_IMPLIED: dict[str, dict[str, Any]] = {
    "A": {
        "diffusion.weighting": "edm",
        "training.betas": [0.9, 0.999],
        "training.decay": "constant",
        "training.lr": 0.001,
    },
    "B": {"training.decay": "constant", "training.lr": 0.001},
    "C": {"training.decay": "constant", "training.lr": 0.001},
    "D": {"training.decay": "constant"},
    "dit": {"training.decay": "constant", "training.lr": 0.0005},
}

# What an optimiser brings along where the network uses its weights as they are.
_IMPLIED_BY_OPTIMISER: dict[str, dict[str, Any]] = {"adamw": {"training.weight_decay": 0.01}}

_LONGEST, _DEEPEST = 2**18, 100  # characters of settings; points in one of their lines
_SHOWN = 200  # characters of a value in a message

# More than any machine has: a settings file of others must not exhaust this one.
_LARGEST = dict.fromkeys(
    ("model.channels", "model.num_blocks", "model.depth", "model.patch", "training.threads"), 2**16
) | dict.fromkeys(("training.batch", "sampling.steps", "sampling.batch", "validation.bands"), 2**24)
_LARGEST_INTEGER = 2**63 - 1  # of every other setting
_MOST_VALUES, _LARGEST_FACTOR = 64, 2**10  # of a list; of `channel_mult` and its kin

_FIRST = {"edm2": "G", "adm": "A", "dit": "dit"}  # the rung of an architecture unless one is set
_FREE = {"A", "B", "C", "D", "dit"}  # networks whose stored weights keep the size they have


class Preset(BaseModel):
    """A named set of overrides and the image sizes it is meant for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str
    resolutions: tuple[int, int]  # smallest and largest side in pixels
    worthwhile_images: int  # a budget that affords fewer images is better spent on a smaller preset
    automatic: bool = True  # whether a run may choose it by itself
    counted_at: tuple[int, int, int]  # side, channels and classes for which its size is told
    settings: dict[str, Any]  # dotted key -> value


def presets() -> list[Preset]:
    """All presets, those that a run may choose first, smallest network first."""
    found = []
    for entry in resources.files("poise.presets").iterdir():
        if entry.name.endswith(".toml"):
            raw = tomllib.loads(entry.read_text(encoding="utf-8"))
            found.append(Preset(name=entry.name[:-5], **raw))
    return sorted(
        found,
        key=lambda p: (not p.automatic, p.resolutions[0], p.settings["model.channels"], p.name),
    )


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
    """Defaults, the preset, what the network implies, then `overrides` (dotted keys), checked.

    Raises:
        UsageError: an unknown key (with the nearest name) or a value out of range.
    """
    tree: dict[str, Any] = {}
    chosen = {**(preset.settings if preset else {}), **(overrides or {})}
    rung = chosen.get("model.ladder") or _FIRST.get(str(chosen.get("model.architecture")), "G")
    implied = _IMPLIED.get(str(rung), {})
    chosen_by_preset = preset.settings if preset else {}
    if not {"model.ladder", "model.architecture"} & set(overrides or {}):
        implied = {**implied, **chosen_by_preset}  # the preset is made for this network
    optimiser = str(chosen.get("training.optimizer"))
    if rung in _FREE:
        implied = {**_IMPLIED_BY_OPTIMISER.get(optimiser, {}), **implied}
    for source in (chosen_by_preset, implied, overrides or {}):
        for key, value in source.items():
            _assign(tree, key, value)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise _explain(error) from None
    _refuse_absurd(config)
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
            values[key.strip()] = parse_toml(f"value = {text.strip()}")["value"]
        except ValueError:
            values[key.strip()] = text.strip()
    return values


def parse_toml(text: str) -> dict[str, Any]:
    """TOML of settings; what no settings need, and a parser would choke on, is refused first.

    Raises:
        ValueError: not TOML, too long, nested without end, or a number of thousands of digits.
    """
    if len(text) > _LONGEST or any(line.count(".") > _DEEPEST for line in text.splitlines()):
        raise ValueError(f"more than {_LONGEST:,} characters, or {_DEEPEST} points in a line")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested without end") from None


def documented(config: Config) -> list[tuple[str, Any, str]]:
    """Every setting as (dotted key, value, sentence), in the order of this file."""
    rows: list[tuple[str, Any, str]] = []
    for name, field in Config.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, Section):
            for leaf, leaf_field in type(value).model_fields.items():
                key = f"{name}.{leaf}"
                rows.append((key, getattr(value, leaf), leaf_field.description or ""))
        else:
            rows.append((name, value, field.description or ""))
    return rows


def values_of(config: Config) -> dict[str, Any]:
    """The value of every setting by its dotted name."""
    return {key: value for key, value, _ in documented(config)}


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
        config = Config.model_validate(parse_toml(text))
    except ValidationError as error:  # a ValueError too
        raise _explain(error) from None
    except ValueError as error:
        raise UsageError(f"The settings are not valid TOML: {error}.") from None
    _refuse_absurd(config)
    return config


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
        f"{key} = {_shown(first['input'])} cannot be used.",
        expected=first["msg"],
        remedy="`poise config` shows each setting with its meaning and its value.",
    )


def _refuse_absurd(config: Config) -> None:
    """
    Raises:
        UsageError: a number beyond what any machine could use.
    """
    for key, value, _ in documented(config):
        limit = _LARGEST_FACTOR if "channel_mult" in key else _LARGEST.get(key, _LARGEST_INTEGER)
        values = value if isinstance(value, tuple) else (value,)
        if len(values) > _MOST_VALUES:
            raise UsageError(
                f"{key} holds {len(values):,} values.", expected=f"at most {_MOST_VALUES}"
            )
        if any(isinstance(v, int) and abs(v) > limit for v in values):
            raise UsageError(
                f"{key} = {_shown(value)} cannot be used.", expected=f"a number up to {limit:,}"
            )


def _shown(value: Any) -> str:
    """A value as it was written; of a long one the beginning."""
    try:
        text = repr(value)
    except ValueError:  # Python writes out no whole number of more than 4300 digits
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def refuse_contradictions(config: Config) -> None:
    """Settings of the optimisation that cancel each other, or would change nothing.

    Raises:
        UsageError: with a sentence that says why.
    """
    training, model = config.training, config.model
    rung = model.ladder or _FIRST.get(model.architecture, "G")
    for name in ("l1", "l2", "weight_decay"):
        value = getattr(training, name)
        if value and rung not in _FREE:
            raise UsageError(
                f"training.{name} = {value} contradicts forced weight normalisation: after each "
                "update this network brings every matrix back to unit size, so that nothing "
                "shrinks, and only the effective rate changes.",
                expected=f"training.{name}=0 with this network",
                remedy="Change training.lr, or take model.ladder=D, model.architecture=adm or dit.",
            )
    if training.momentum is not None and training.optimizer in ("adam", "adamw"):
        raise UsageError(
            f"training.momentum = {training.momentum} would change nothing: the momentum of "
            f"{training.optimizer} is the first of training.betas.",
            expected="training.momentum with sgd, rmsprop or muon",
            remedy=f"for example --set training.betas=[{training.momentum},{training.betas[1]}]",
        )
    if training.update_clip and training.optimizer == "sgd":
        raise UsageError(
            "training.update_clip compares gradients with their second moments, and sgd has none.",
            expected="training.update_clip with adam, adamw, rmsprop or muon",
            remedy="take training.grad_clip=quantile, which needs no moments.",
        )
    _check_clipping(config)
    steps = training.decay_steps
    if any(not 0 < at < 1 for at in steps) or list(steps) != sorted(set(steps)):
        raise UsageError(
            f"training.decay_steps = {list(steps)} cannot be used.",
            expected="rising shares of the run between 0 and 1, such as [0.5, 0.75]",
        )


def _check_clipping(config: Config) -> None:
    kind, at = config.training.grad_clip, config.training.grad_clip_at
    if kind == "none" and at is not None:
        raise UsageError(
            f"training.grad_clip_at = {at} would change nothing: training.grad_clip is none.",
            expected="training.grad_clip=value, norm, adaptive or quantile",
        )
    if kind == "quantile" and at is not None and at >= 1:
        raise UsageError(
            f"training.grad_clip_at = {at} is no quantile.",
            expected="a number between 0 and 1: this share of recent norms is left as it is",
        )
    if config.training.grad_normalise and kind in ("norm", "quantile"):
        raise UsageError(
            f"training.grad_clip = {kind!r} bounds the norm of the gradient, and "
            "training.grad_normalise makes it 1 at every update: one of them would change nothing.",
            expected="training.grad_normalise with grad_clip none, value or adaptive",
        )


def _check_together(config: Config) -> None:
    split = config.data.split
    if min(split) < 0 or abs(sum(split) - 1) > 1e-6 or split[0] == 0 or split[1] == 0:
        raise UsageError(
            f"data.split = {list(split)} cannot be used.",
            expected="three shares that add up to 1, training and validation above 0",
            remedy="for example --set data.split=[0.8,0.1,0.1]",
        )
    _check_network(config.model)
    refuse_contradictions(config)
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
    sampling = config.sampling
    if sampling.churn and sampling.solver not in ("heun", "euler"):
        raise UsageError(
            f"sampling.churn = {sampling.churn} is for heun and euler, and sampling.solver = "
            f"{sampling.solver!r} takes no fresh noise.",
            expected="sampling.churn=0, or sampling.solver=heun or euler",
        )
    for std in training.ema_stds:
        if not 0 < std < 12**-0.5:
            raise UsageError(
                f"training.ema_stds holds {std}.",
                expected="relative widths between 0 and 0.2887 (a power function has no wider)",
            )


def _check_network(model: ModelConfig) -> None:
    transformer = model.architecture in ("dit", "mp_dit")
    if model.ladder is not None and (
        transformer or (model.architecture == "adm" and model.ladder not in "AB")
    ):
        raise UsageError(
            f"model.ladder = {model.ladder!r} is no rung of model.architecture = "
            f"{model.architecture!r}.",
            expected="A or B with adm, A to G with edm2, none with a transformer",
        )
    if transformer and (model.normalisation != "auto" or not model.skips):
        raise UsageError(
            "model.normalisation and model.skips are settings of U-Nets.",
            expected="model.normalisation=auto and model.skips=true with a transformer",
        )
    normalised = model.architecture == "mp_dit" or (
        model.architecture == "edm2" and (model.ladder or "G") in "DEFG"
    )
    if normalised and model.init != "auto":
        raise UsageError(
            f"model.init = {model.init!r} would change nothing: this network brings every weight "
            "to unit size whatever it starts from.",
            expected="model.init=auto, or a network that uses its weights as they are",
            remedy="take model.ladder=C, model.architecture=adm or model.architecture=dit.",
        )
    if len(model.resample_filter) % 2:
        raise UsageError(
            f"model.resample_filter = {list(model.resample_filter)} has an odd length.",
            expected="an even number of values, such as [1, 1] or [1, 3, 3, 1]",
        )


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return repr(value)
