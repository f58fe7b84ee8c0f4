"""What an interval of updates comes to in a line of the logs, against sums done by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
from detector_readings import Plan, facts_of, healthy, marked

from poise.stability.reading import Reading
from poise.stability.summary import Summary, block_of

PLAN = Plan(updates=40, tensors=12, flat_rate=0.1)
READINGS = healthy(PLAN)


def summed(readings: tuple[Reading, ...]) -> Summary:
    summary = Summary(facts_of(PLAN))
    for reading in readings:
        summary.add(reading)
    return summary


def test_the_block_of_a_tensor() -> None:
    assert block_of("network.enc.8x8_block0.conv.weight") == "enc.8x8_block0"
    assert block_of("network.dec.8x8_up.weight") == "dec.8x8_up"
    assert block_of("network.blocks.3.attn.qkv.weight") == "blocks.3"
    assert block_of("network.out_gain") == "out_gain"
    assert block_of("weighting.weight") == "weighting"


def test_norms_of_blocks_are_geometric_means() -> None:
    """Four tensors a block; one tensor's norms say nothing about another block."""
    row = summed(READINGS[:7]).take()
    norms = np.stack([r.grad_norms for r in READINGS[:7]]).astype(np.float64)
    blocks = np.sqrt((norms.reshape(7, 3, 4) ** 2).sum(2))
    assert list(row["block_grad_norms"]) == [f"enc.{i}_block" for i in range(3)]
    expected = np.exp(np.log(blocks).mean(0)).tolist()
    assert list(row["block_grad_norms"].values()) == pytest.approx(expected)


def test_the_gradient_over_its_second_moment() -> None:
    """The first update has no moments yet: it is no part of the mean."""
    assert np.isnan(READINGS[0].moments).all()
    row = summed(READINGS[:5]).take()
    ratios = [r.grad_norms.astype(np.float64) / np.sqrt(r.moments) for r in READINGS[1:5]]
    assert row["second_moment_rms"] == pytest.approx(np.mean([np.median(r) for r in ratios]))
    assert row["second_moment_rms_highest"] == pytest.approx(np.max(ratios))


def test_what_was_left_out_is_counted_by_its_reasons() -> None:
    where = np.arange(PLAN.batch) < 2
    spoiled = marked(READINGS[3], "range", where)
    both = replace(
        spoiled,
        reasons=frozenset({"input", "loss"}),
        grad_norms=np.full_like(spoiled.grad_norms, np.nan),
    )
    summary = summed((*READINGS[:3], both, *READINGS[4:6]))
    row = summary.take()
    assert row["left_out"] == {"input": 1, "loss": 1}
    assert row["used_lr"] == READINGS[5].used_lr
    assert row["one_colour"] == sum(int(r.inputs.flat.sum()) for r in READINGS[:6]) > 0
    applied = (*READINGS[:3], *READINGS[4:6])
    assert row["block_grad_norms"] == pytest.approx(summed(applied).take()["block_grad_norms"])
    json.dumps(row, allow_nan=False)


def test_an_interval_in_which_nothing_was_applied() -> None:
    idle = [replace(r, applied=False, reasons=frozenset({"loss"})) for r in READINGS[:3]]
    row = summed(tuple(idle)).take()
    assert row["left_out"] == {"loss": 3} and row["block_grad_norms"] == {}
    assert row["second_moment_rms"] == 0


def test_an_interval_begins_with_nothing() -> None:
    summary = summed(READINGS[:9])
    summary.take()
    for reading in READINGS[9:13]:
        summary.add(reading)
    assert summary.take() == summed(READINGS[9:13]).take()


def test_sums_in_json_continue_exactly() -> None:
    one, other = summed(READINGS[:8]), Summary(facts_of(PLAN))
    other.sums = json.loads(json.dumps(one.sums, allow_nan=False))
    for reading in READINGS[8:12]:
        one.add(reading)
        other.add(reading)
    assert one.take() == other.take()


def test_the_time_of_an_update_and_the_share_of_waiting() -> None:
    summary = summed(tuple(replace(r, seconds=0.4, waited=0.1) for r in READINGS[:10]))
    assert summary.timing() == pytest.approx({"update_s": 0.4, "waited_share": 0.25})
    assert summary.timing() == {"update_s": 0.0, "waited_share": 0.0}
