"""From a sign that needs a closer look, and the look, to a cause."""

from dataclasses import replace

import torch

from poise.stability.examine import Examination
from poise.stability.incident import Sign

_BACKWARDS = -0.2  # slope below which the gradient points uphill


def diagnose(sign: Sign, found: Examination, *, dtype: torch.dtype) -> Sign:
    """The sign with the cause that the examination speaks for; its own where it speaks for none.

    Args:
        sign: of `divergence`, `non-finite-activation` or a like symptom.
        found: of the update that showed it.
        dtype: in which the network computes.
    """
    evidence = {**sign.evidence, "examination": found.to_json()}
    evidence.pop("examine", None)
    sign = replace(sign, evidence=evidence)
    if found.bad_weights:
        return _as(
            sign,
            "weights-damaged",
            f"{_names(found.bad_weights)} hold values that are not finite.",
            tensors=found.bad_weights,
        )
    if not found.repeats or found.as_recorded is False:
        return _as(
            sign,
            "unrepeatable-result",
            "The same batch with the same weights gave other numbers when it was computed again: "
            "the hardware, or an operation that is not deterministic.",
        )
    if found.place == "input":
        return _as(sign, "non-finite-input", "The images that reach the network are not finite.")
    if found.place in ("activation", "loss"):
        return _overflow(sign, found, dtype)
    if found.place == "backward" or found.was_bad:
        tensors = found.bad_gradients or found.was_bad
        return _as(
            sign,
            "non-finite-gradient",
            f"The loss is finite, but the gradients of {_names(tensors)} are not.",
            tensors=tensors,
        )
    if sign.cause == "non-finite-activation":
        return sign
    if found.slope is not None and found.slope < _BACKWARDS:
        return _as(
            sign,
            "ascent",
            f"The loss falls where its gradient points (slope {found.slope:.2f}, +1 is right): "
            "the updates climb.",
            slope=found.slope,
        )
    if found.absurd_weights:
        return _as(
            sign,
            "weights-damaged",
            f"Single weights of {_names(found.absurd_weights)} dwarf all others.",
            tensors=found.absurd_weights,
        )
    return sign


def _overflow(sign: Sign, found: Examination, dtype: torch.dtype) -> Sign:
    layer = found.first_bad_layer or "the loss"
    if found.overflowed:
        return _as(
            sign,
            "precision-overflow",
            f"{layer} gives out infinities in {str(dtype).removeprefix('torch.')}, from inputs and "
            "weights that are finite: its numbers are too large for the format.",
            layers=(layer,),
        )
    return _as(
        sign,
        "non-finite-activation",
        f"{layer} gives out values that are not finite, from inputs and weights that are.",
        layers=(layer,),
    )


def _as(sign: Sign, cause: str, sentence: str, **culprit: object) -> Sign:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in culprit.items()}
    return replace(
        sign,
        cause=cause,
        severity="critical",
        sentence=sentence,
        culprit={**sign.culprit, **plain},
    )


def _names(tensors: tuple[str, ...]) -> str:
    more = f" and {len(tensors) - 1} more" if len(tensors) > 1 else ""
    return f"{tensors[0]}{more}"
