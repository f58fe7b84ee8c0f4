"""From what an examination found to a cause; every branch, by examinations that are made up."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from poise.stability.causes import CAUSES
from poise.stability.diagnosis import diagnose
from poise.stability.examine import Examination
from poise.stability.incident import Sign

HEALTHY = Examination(
    images_seen=96,
    input_finite=True,
    first_bad_layer=None,
    overflowed=False,
    bad_weights=(),
    absurd_weights=(),
    loss_finite=True,
    bad_gradients=(),
    was_bad=(),
    repeats=True,
    as_recorded=None,
    slope=1.0,
    ranked=((3, 2.0), (5, float("inf"))),
)
SYMPTOM = Sign(
    "divergence", "warning", 96, 64, "It rises.", {"examine": True, "rise": 2.0}, {"a": 1}
)


def diagnosed(of: Sign = SYMPTOM, dtype: torch.dtype = torch.float32, **found: Any) -> Sign:
    sign = diagnose(of, replace(HEALTHY, **found), dtype=dtype)
    assert sign.cause in CAUSES
    assert (sign.images_seen, sign.since) == (of.images_seen, of.since)
    evidence = json.loads(json.dumps(sign.evidence, allow_nan=False))
    assert evidence["rise"] == 2.0 and "examine" not in evidence
    assert evidence["examination"]["images_seen"] == 96
    json.dumps(sign.culprit)
    return sign


@pytest.mark.parametrize("cause", ["divergence", "non-finite-activation", "oscillation"])
def test_what_speaks_for_nothing_leaves_the_sign(cause: str) -> None:
    of = replace(SYMPTOM, cause=cause)
    sign = diagnosed(of)
    assert (sign.cause, sign.severity, sign.sentence) == (cause, "warning", "It rises.")
    assert sign.culprit == of.culprit
    assert of.evidence == {"examine": True, "rise": 2.0}  # the sign itself stays as it was


@pytest.mark.parametrize(
    ("found", "cause", "named"),
    [
        ({"bad_weights": ("a.weight", "b.weight")}, "weights-damaged", "a.weight and 1 more"),
        ({"repeats": False}, "unrepeatable-result", "hardware"),
        ({"as_recorded": False}, "unrepeatable-result", "hardware"),
        ({"input_finite": False}, "non-finite-input", "images"),
        (
            {"first_bad_layer": "enc.0", "loss_finite": False},
            "non-finite-activation",
            "enc.0",
        ),
        ({"loss_finite": False}, "non-finite-activation", "the loss"),
        ({"bad_gradients": ("c.weight",)}, "non-finite-gradient", "c.weight"),
        ({"was_bad": ("d.weight",)}, "non-finite-gradient", "d.weight"),
        ({"slope": -1.0}, "ascent", "slope -1.00"),
        ({"absurd_weights": ("e.weight",)}, "weights-damaged", "e.weight"),
    ],
)
def test_each_finding_has_its_cause(found: dict[str, Any], cause: str, named: str) -> None:
    sign = diagnosed(**found)
    assert (sign.cause, sign.severity) == (cause, "critical")
    assert named in sign.sentence
    assert sign.culprit["a"] == 1  # what was known stays


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_infinities_are_an_overflow_of_the_format(dtype: torch.dtype) -> None:
    sign = diagnosed(dtype=dtype, first_bad_layer="dec.1", loss_finite=False, overflowed=True)
    assert sign.cause == "precision-overflow"
    assert str(dtype).split(".")[1] in sign.sentence
    assert sign.culprit["layers"] == ["dec.1"]


def test_culprits_are_named() -> None:
    assert diagnosed(bad_weights=("a", "b")).culprit["tensors"] == ["a", "b"]
    assert diagnosed(was_bad=("d",)).culprit["tensors"] == ["d"]
    assert diagnosed(first_bad_layer="enc.0", loss_finite=False).culprit["layers"] == ["enc.0"]
    assert diagnosed(slope=-0.5).culprit["slope"] == -0.5


@pytest.mark.parametrize("slope", [1.0, 0.05, 0.0, -0.1, None])
def test_a_slope_that_is_not_clearly_downward_is_no_ascent(slope: float | None) -> None:
    assert diagnosed(slope=slope).cause == "divergence"


def test_what_explains_more_comes_first() -> None:
    """Damaged weights make everything after them bad; an input that is bad the activations."""
    everything: dict[str, Any] = {
        "bad_weights": ("w",),
        "repeats": False,
        "input_finite": False,
        "first_bad_layer": "enc.0",
        "loss_finite": False,
        "bad_gradients": ("g",),
        "slope": None,
    }
    order = []
    for key in ("bad_weights", "repeats", "input_finite", "first_bad_layer", "loss_finite"):
        order.append(diagnosed(**everything).cause)
        everything.pop(key)
    order.append(diagnosed(**everything).cause)
    assert order == [
        "weights-damaged",
        "unrepeatable-result",
        "non-finite-input",
        "non-finite-activation",
        "non-finite-activation",
        "non-finite-gradient",
    ]


def test_a_bad_number_that_is_not_met_again_is_not_called_an_ascent() -> None:
    of = replace(SYMPTOM, cause="non-finite-activation")
    assert diagnosed(of, slope=-1.0).cause == "non-finite-activation"
