"""Carrying a learning rate from one width of a network to another, and making both widths.

What should stay the same is how far an update moves the features. Adam moves each number of a
matrix by about the rate, and the moves add up over its n inputs. Where a matrix is used as it is
stored the rate therefore falls as 1/n (muP: Yang et al. 2022, "Tensor Programs V", Table 3, hidden
weights). Where it has unit magnitude and is divided by sqrt(n) in use (`MPConv`), as n^-1/2.
"""

import math
from typing import Any

from poise.config import documented
from poise.errors import UsageError
from poise.settings import Config, ModelConfig

_LEAST = 8  # channels of a network, and of a head
_OF_SPEED = {"threads", "compile", "precision", "micro_batch", "ema_stds", "max_skipped"}


def carried_rate(rate: float, small: Config, large: Config) -> float:
    """The learning rate of `large` that corresponds to `rate` at `small`.

    The rule is that of the network and the optimiser of `large`; `small` gives the width alone.

    Raises:
        UsageError: the widths differ, and with this optimiser no single rate follows them.
    """
    if small.model.channels == large.model.channels:
        return rate
    return rate * math.pow(large.model.channels / small.model.channels, exponent_of(large))


def explain(rate: float, small: Config, large: Config) -> str:
    """What `carried_rate` does, by which rule, and what it leaves out of account.

    Raises:
        UsageError: as `carried_rate`.
    """
    carried, widths = carried_rate(rate, small, large), (small.model.channels, large.model.channels)
    if widths[0] == widths[1]:
        said = f"The width stays {widths[0]}, and so does the learning rate {rate:.3g}."
    else:
        kind = "of unit magnitude" if has_unit_weights(large.model) else "used as they are stored"
        said = (
            f"The learning rate {rate:.3g} of width {widths[0]} becomes {carried:.3g} at width "
            f"{widths[1]}: with {large.training.optimizer} and matrices {kind} it goes as "
            f"width^{exponent_of(large):g}."
        )
    other = _differences(small, large)
    return f"{said} Not covered by this rule: {', '.join(other)}." if other else said


def exponent_of(config: Config) -> float:
    """The power of the width that the best learning rate follows, all else being equal.

    -1/2 for matrices of unit magnitude under Adam, AdamW or RMSprop. EDM2's published rates, 0.017
    at 64 channels to 0.0065 at 448, fit width^-0.485 within 2 % (root mean square; at most 3.4 %)
    and width^-1/2 within 2.2 % (at most 3.6 %). In short trainings on digits it was -0.42 from 16
    to 64 channels, most of it above 32; on rung D -0.14 from 8 to 32 (docs/experiments.md).

    -1 for matrices as they are stored, by the needs of the inner ones, though one rate serves all;
    -0.90 was measured on adm from 8 to 32 channels.

    Not measured: Muon's update has the spectral norm 0.2 lr sqrt(n), a factor sqrt(n) less than an
    aligned one of Adam, so that its exponents are higher by 1/2: 0 and -1/2.

    Raises:
        UsageError: sgd. Weights that take in pixels, inner ones and those that give them out would
            need rates as n, 1 and 1/n (the same table), and there is one.
    """
    optimizer = config.training.optimizer
    if optimizer == "sgd":
        raise UsageError(
            "With training.optimizer = 'sgd' no learning rate can be carried to another width: the "
            "first layers would need a higher one, the last layers a lower one.",
            expected="adam, adamw, rmsprop or muon",
            remedy="search training.lr at the width that is to be trained.",
        )
    adam = -0.5 if has_unit_weights(config.model) else -1.0
    return adam + 0.5 if optimizer == "muon" else adam


def has_unit_weights(model: ModelConfig) -> bool:
    """Whether its learned layers divide unit weights by sqrt(n), from EDM2's rung D on."""
    rung = model.ladder or "G"
    return model.architecture == "mp_dit" or (model.architecture == "edm2" and rung in "DEFG")


def narrowed(config: Config, channels: int) -> dict[str, Any]:
    """The overrides that make a network of `config` of another width, narrower or wider.

    Heads keep their size where the width allows it, and become smaller elsewhere. As the resolution
    may be unknown, every level of a U-Net counts that could attend at the width it has.

    Args:
        config: a network that can be built.
        channels: its new width, `model.channels`.

    Raises:
        UsageError: no such network can be built.
    """
    for head in range(config.model.channels_per_head, _LEAST - 1, -1):
        if channels >= _LEAST and _can_be_built(config.model, channels, head):
            return {"model.channels": channels, "model.channels_per_head": head}
    raise UsageError(
        f"model.channels = {channels} makes no network of model.architecture = "
        f"{config.model.architecture!r}: it does not divide into whole heads or pairs.",
        expected=f"a multiple of {_LEAST}, which always does",
        remedy=f"take a width of {max(1, round(channels / _LEAST)) * _LEAST}.",
    )


def _can_be_built(model: ModelConfig, channels: int, head: int) -> bool:
    """Whether the width makes whole heads wherever that of `model` does, which may attend there."""
    if model.architecture in ("dit", "mp_dit"):
        paired = model.architecture == "dit" or head % 4 == 0  # rotations turn pairs, on two axes
        return channels % 4 == 0 and channels % head == 0 and paired
    if channels % 2 and not has_unit_weights(model) and model.ladder != "C":
        return False  # ADM tells noise levels by pairs of waves
    deepest = len(model.channel_mult) - 1
    return all(
        _whole(channels * mult, head)
        for i, mult in enumerate(model.channel_mult)
        if i == deepest or _whole(model.channels * mult, model.channels_per_head)
    )


def _whole(width: int, head: int) -> bool:
    """Whether U-Nets make whole heads of about `head` channels of this width."""
    heads = width // head
    return heads > 0 and width % heads == 0


def _differences(small: Config, large: Config) -> list[str]:
    """Settings besides the width that move the best rate and differ, `name 1 -> 2`."""
    own = {"model.channels", "training.lr", *(f"training.{name}" for name in _OF_SPEED)}
    return [
        f"{name} {old} -> {new}"
        for (name, old, _), (_, new, _) in zip(documented(small), documented(large), strict=True)
        if old != new
        and name not in own
        and (name.startswith(("model.", "diffusion.", "training.")) or name == "data.resolution")
    ]
