"""The range test reads planted curves rightly, and a real network's limit by order of magnitude."""

import itertools
import math

import pytest
import torch

from poise.artifacts import DataFacts
from poise.config import resolve
from poise.data.batches import Batch
from poise.runtime import Runtime
from poise.stability.range_test import RangeTest, range_test, rates_around, read_curve

CPU = Runtime(torch.device("cpu"), torch.float32)
RATES = rates_around(0.01)
SMALL = {
    "model.channels": 16,
    "model.channel_mult": [1],
    "model.attn_resolutions": [],
    "model.channels_per_head": 16,
    "training.batch": 16,
}


def curve(errors: list[float], noise: float = 0.0) -> RangeTest:
    rows = [[e * (1 + noise * k) for k in (-1, 0, 1)] for e in errors]
    return read_curve(RATES[: len(errors)], rows)


def test_the_rates_are_geometric_and_hold_the_rate_in_question() -> None:
    ratios = [b / a for a, b in itertools.pairwise(RATES)]
    assert ratios == pytest.approx([2.0] * 11)
    assert RATES[0] == pytest.approx(0.01 / 32) and RATES[-1] == pytest.approx(0.64)


def test_a_network_that_blows_up() -> None:
    errors = [1.1, 1.1, 1.09, 1.05, 0.9, 0.7, 0.5, 0.4, 3.0, 1e5, math.inf, math.inf]
    found = curve(errors, 0.02)
    assert (found.limit, found.diverges) == (RATES[7], RATES[8])
    assert found.proposal is not None and found.proposal < RATES[7]
    assert found.judge(0.01)[0]
    fine, sentence = found.judge(0.1)
    assert not fine and "too high" in sentence and "Proposed" in sentence
    fine, sentence = found.judge(0.03)
    assert not fine and "close to the limit" in sentence


def test_a_network_with_forced_norms_comes_back_to_one_and_stays() -> None:
    errors = [1.1, 1.1, 1.0, 0.8, 0.6, 0.5, 0.6, 0.97, 0.99, 1.0, 0.98, 1.01]
    found = curve(errors)
    assert found.diverges == RATES[7] and found.limit == RATES[6]


def test_a_spike_that_heals_is_no_limit() -> None:
    errors = [1.1, 1.1, 1.0, 0.8, 0.7, 2.0, 0.6, 0.5, 0.45, 0.44, 0.43, 0.43]
    found = curve(errors)
    assert found.diverges is None and found.limit == RATES[-1]
    assert found.judge(0.01)[0]


def test_one_wild_batch_of_three_is_no_limit() -> None:
    rows = [[1.0 - 0.05 * i] * 3 for i in range(12)]
    rows[6][1] = 40.0
    assert read_curve(RATES, rows).diverges is None


def test_every_rate_too_high_and_none_that_teaches() -> None:
    blown = curve([1.1, 9.0, 1e3, 1e5, math.inf])
    assert blown.limit is None and not blown.judge(0.01)[0]
    still = curve([1.1] * 12, 0.01)
    assert (still.limit, still.diverges, still.proposal) == (None, None, None)
    assert still.judge(0.01)[0]


def test_a_test_cut_short_says_nothing_of_higher_rates() -> None:
    rows = [[1.0 - 0.1 * i] * 3 for i in range(5)]
    found = read_curve(RATES[:5], rows, complete=False)
    fine, sentence = found.judge(0.5)
    assert fine and "time was up" in sentence


def shapes(count: int) -> list[Batch]:
    """Dark and bright squares: something that can be learned."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 2, (count * 16, 1, 2, 2), generator=generator) * 255
    images = base.repeat_interleave(4, 2).repeat_interleave(4, 3).to(torch.uint8)
    return [
        Batch(images[i * 8 : i * 8 + 8], None, torch.arange(i * 8, i * 8 + 8)) for i in range(count)
    ]


@pytest.mark.parametrize(
    ("network", "sound", "wild"),
    [({}, 0.01, 20.0), ({"model.architecture": "adm"}, 0.001, 20.0)],
)
def test_a_real_network_knows_its_limit(
    network: dict[str, object], sound: float, wild: float
) -> None:
    facts = DataFacts(8, 1, (), 1.0)
    low = range_test(resolve(None, SMALL | network | {"training.lr": sound}), facts, shapes(3), CPU)
    assert low.judge(sound)[0], low
    assert low.start == pytest.approx(1.0, abs=0.3)
    high = range_test(resolve(None, SMALL | network | {"training.lr": wild}), facts, shapes(3), CPU)
    assert not high.judge(wild)[0], high


def test_the_random_numbers_of_the_caller_stay() -> None:
    config = resolve(None, SMALL | {"model.dropout": 0.1})
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one = range_test(config, DataFacts(8, 1, (), 1.0), shapes(3), CPU, rates=(0.001, 0.01))
    assert torch.equal(before, torch.get_rng_state())
    again = range_test(config, DataFacts(8, 1, (), 1.0), shapes(3), CPU, rates=(0.001, 0.01))
    assert one == again


def test_no_rate_is_begun_after_the_time() -> None:
    config = resolve(None, SMALL)
    found = range_test(config, DataFacts(8, 1, (), 1.0), shapes(1), CPU, seconds=0.0)
    assert len(found.rates) == 1 and not found.complete
