"""Which images are drawn: planted repeats, cut sets, constant shards; and sets that are so."""

from dataclasses import replace

import numpy as np
import pytest
from detector_readings import Plan, facts_of, healthy

from poise.stability.detectors.detector import Detector
from poise.stability.detectors.draws import ConstantImages, Repeats
from poise.stability.incident import Sign
from poise.stability.reading import Reading

AT = 60
PLAN = Plan(updates=160, tensors=2)


def signs_of(detector: Detector, readings: list[Reading]) -> list[Sign]:
    return [s for r in readings for s in detector.look(r)]


def drawn(r: Reading, indices: np.ndarray, *, prints: np.ndarray | None = None) -> Reading:
    prints = (indices * 2 if prints is None else prints).astype(np.uint32)
    return replace(r, indices=indices, inputs=replace(r.inputs, prints=prints))


@pytest.mark.parametrize("flipped", [False, True])
def test_the_same_batch_for_ever_is_named(flipped: bool) -> None:
    rng = np.random.default_rng(0)
    readings = list(healthy(PLAN))
    same = readings[AT - 1].indices
    for i in range(AT - 1, len(readings) - 1):
        prints = same * 2 + rng.integers(0, 2, len(same)) if flipped else None
        readings[i] = drawn(readings[i], same, prints=prints)
    signs = signs_of(Repeats(facts_of(PLAN)), readings)
    assert signs[0].cause == "repeated-batches"
    assert signs[0].images_seen <= (AT + 10) * 16


def test_batches_that_come_twice_each_are_named() -> None:
    readings = list(healthy(PLAN))
    for i in range(AT, len(readings) - 1, 2):
        readings[i] = drawn(readings[i], readings[i - 1].indices)
        readings[i - 1] = drawn(readings[i - 1], readings[i - 1].indices)
    signs = signs_of(Repeats(facts_of(PLAN)), readings)
    assert signs[0].cause == "repeated-batches"
    assert signs[0].images_seen <= (AT + 20) * 16


@pytest.mark.parametrize("by_content", [False, True])
@pytest.mark.parametrize(("kept", "train"), [(64, 4000), (40, 300), (200, 4000)])
def test_a_set_cut_to_few_images_is_memorisation(kept: int, train: int, by_content: bool) -> None:
    plan = replace(PLAN, updates=400, train=train)
    rng = np.random.default_rng(1)
    readings = list(healthy(plan))
    for i in range(150, len(readings)):
        few = rng.permutation(train)[:kept][:0]
        few = rng.integers(0, kept, readings[i].batch)
        claimed = readings[i].indices if by_content else few
        readings[i] = drawn(readings[i], claimed, prints=few * 2)
    (sign, *_) = signs_of(Repeats(facts_of(plan)), readings)
    assert sign.cause == "memorisation"
    assert sign.images_seen <= (150 + 250) * 16
    assert sign.evidence["distinct"] <= kept < sign.evidence["expected"]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(updates=300, train=60, tensors=2),
        Plan(updates=300, train=17, tensors=2, flips=True),
        Plan(updates=300, train=10, tensors=2),
        Plan(updates=300, train=1437, tensors=2, copies=30),
        Plan(updates=300, train=500, batch=128, tensors=2),
        Plan(updates=300, train=3, batch=1, tensors=2),
    ],
    ids=lambda plan: f"train{plan.train}-batch{plan.batch}",
)
def test_small_sets_and_copies_repeat_by_nature(plan: Plan) -> None:
    assert signs_of(Repeats(facts_of(plan)), list(healthy(plan))) == []


def test_images_repeated_on_purpose_are_none() -> None:
    facts = replace(facts_of(PLAN), weighted_draws=True)
    rng = np.random.default_rng(2)
    often = (4000 * rng.random((len(healthy(PLAN)), 16)) ** 6).astype(np.int64)
    readings = [drawn(r, row[: r.batch]) for r, row in zip(healthy(PLAN), often, strict=True)]
    assert signs_of(Repeats(facts), readings) == []


def blackened(r: Reading, share: float) -> Reading:
    flat = r.inputs.flat | (r.indices < share * 4000)
    return replace(r, inputs=replace(r.inputs, flat=flat))


@pytest.mark.parametrize("share", [1.0, 0.4])
def test_a_shard_that_turns_black_is_named(share: float) -> None:
    readings = [blackened(r, share) if r.step >= AT else r for r in healthy(PLAN)]
    signs = signs_of(ConstantImages(facts_of(PLAN)), readings)
    assert signs[0].cause == "constant-data"
    assert signs[0].images_seen <= (AT + 4) * 16
    assert "no progress" in signs[0].sentence
    assert len(signs) <= 3


@pytest.mark.parametrize("share", [0.005, 0.1, 0.9])
def test_constant_images_that_were_there_all_along_are_none(share: float) -> None:
    readings = [blackened(r, share) for r in healthy(replace(PLAN, updates=300))]
    assert signs_of(ConstantImages(facts_of(PLAN)), readings) == []
