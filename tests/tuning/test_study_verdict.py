"""What a study concludes: intervals against scipy, planted importance, the words."""

import math
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from studies import PLAN, SPACE, Formula, run, variant

from poise.tuning import verdict
from poise.tuning.desk import trial_of
from poise.tuning.schedule import Trial, best_of, pareto

FLOATS = st.floats(-100, 100)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=2, max_size=9))
def test_the_interval_is_that_of_a_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    best, default = [b for b, _ in pairs], [d for _, d in pairs]
    found = verdict.difference(best, default)
    assert found is not None and found.low is not None and found.high is not None
    changes = np.subtract(best, default)
    spread = changes.std(ddof=1)
    if spread < 1e-6:
        return
    known = stats.ttest_1samp(changes, 0.0).confidence_interval(0.95)
    assert found.low == pytest.approx(known.low, rel=1e-9, abs=1e-9)
    assert found.high == pytest.approx(known.high, rel=1e-9, abs=1e-9)


def test_ninety_five_of_a_hundred_intervals_hold_the_truth() -> None:
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        default = [draw.gauss(10, 1) for _ in range(3)]
        best = [d - 0.5 + draw.gauss(0, 1) for d in default]
        found = verdict.difference(best, default)
        assert found is not None and found.low is not None and found.high is not None
        held += found.low <= -0.5 <= found.high
    assert abs(held / 2000 - 0.95) < 0.015


@pytest.mark.parametrize(
    ("best", "better", "word"),
    [
        ([1.0, 1.1, 0.9], "lower", "better"),
        ([9.0, 9.1, 8.9], "lower", "worse"),
        ([9.0, 9.1, 8.9], "higher", "better"),
        ([1.0, 9.0, 5.0], "lower", "no-better"),
        ([1.0], "lower", "unknown"),
        ([], "lower", "unknown"),
    ],
)
def test_the_verdict_follows_the_interval(best: list[float], better: str, word: str) -> None:
    found = verdict.difference(best, [5.0, 5.1, 4.9][: len(best)])
    assert verdict.judged(found, better) == word


def test_importance_finds_the_setting_that_was_planted(tmp_path: Path) -> None:
    plan = variant(trials=40, sampler="random")

    def only_rate(settings: dict[str, object]) -> float:
        return math.log10(float(str(settings["training.lr"])) / 0.01) ** 2

    study, _ = run(tmp_path, plan, Formula(plan, only_rate))
    trials = [trial_of(frozen, plan, set()) for frozen in study.trials]
    found = verdict.importance(trials, SPACE)
    assert sum(found.values()) == pytest.approx(1.0)
    assert found["training.lr"] > 0.8
    told = verdict.sentences(plan, {}, {}, None, found, {})[2]
    assert "training.lr mattered most" in told
    assert "diffusion.P_mean" in told.partition(";")[0]


def trial(number: int, *costs: float, proxy: float = 0.0, **more: object) -> Trial:
    base = Trial(number, "search", "complete", costs=costs, proxy=(proxy,))
    return replace(base, **more)  # type: ignore[arg-type]


def test_too_few_trials_tell_no_importance() -> None:
    trials = [trial(i, float(i), settings={"training.lr": 0.01 * (i + 1)}) for i in range(4)]
    assert verdict.importance(trials, SPACE) == {}
    assert "cannot be told" in verdict.sentences(PLAN, {}, {}, None, {}, {})[2]


def test_noise_is_no_importance() -> None:
    """Where errors do not follow from settings, none of these mattered more than another."""
    told = 0
    for seed in range(5):
        draw = random.Random(seed)
        points = [
            {
                "training.lr": 10 ** draw.uniform(-4, 0),
                "diffusion.P_mean": draw.uniform(-2, 2),
                "training.batch": draw.randint(8, 256),
                "training.decay": draw.choice(("constant", "cosine")),
            }
            for _ in range(30)
        ]
        noise = [draw.gauss(0, 1) for _ in points]
        trials = [
            Trial(i, "search", "stopped", 0, (value,), settings=point)
            for i, (point, value) in enumerate(zip(points, noise, strict=True))
        ]
        told += bool(verdict.importance(trials, SPACE))
        rates = [math.log10(t.settings["training.lr"]) for t in trials]
        known = [
            replace(t, proxy=(3 * rate + value,))
            for t, rate, value in zip(trials, rates, noise, strict=True)
        ]
        assert verdict.importance(known, SPACE)["training.lr"] > 0.5
    assert told <= 1


def test_agreement_is_a_rank_correlation() -> None:
    same = [trial(i, float(i) ** 3, proxy=float(i)) for i in range(8)]
    against = [trial(i, -float(i), proxy=float(i)) for i in range(8)]
    assert verdict.agreement(same, PLAN) == pytest.approx(1.0)
    assert verdict.agreement(against, PLAN) == pytest.approx(-1.0)
    assert verdict.agreement(same[:7], PLAN) is None
    itself = variant(metrics=("validation_error",))
    assert verdict.agreement(same, itself) is None


def test_the_default_is_trained_where_the_best_was_luck() -> None:
    default = trial(0, 3.0, role="default")
    lucky = trial(1, 1.0, settings={"training.lr": 0.5})
    again = [
        trial(2 + 2 * i + j, cost, role="repeat", of=of, seed=i + 1)
        for i in range(3)
        for j, (of, cost) in enumerate([(0, 3.0 + 0.1 * i), (1, 5.0 - 0.1 * i)])
    ]
    trials = [default, lucky, *again]
    plan = variant(seeds=3)
    assert verdict.chosen(trials[:2], plan) == 1
    assert verdict.chosen(trials, plan) == 0
    found = verdict.repeats(trials, plan)
    pair = [[cost for (cost,) in found[who]] for who in ("best", "default")]
    change = verdict.difference(*pair)
    assert verdict.judged(change, "lower") == "worse"
    told = verdict.sentences(plan, {}, {}, change, {}, {})
    assert told[0] == "What to set: nothing; preset nano stays as it is."
    assert "the preset is best as it is" in told[1] and "3 fresh seeds" in told[1]


def test_sentences_name_what_changed_and_how_sure_it_is() -> None:
    change = verdict.difference([2.0, 2.1, 1.9], [4.0, 4.1, 3.9])
    told = verdict.sentences(
        PLAN,
        {"training.lr": 0.0123456, "training.batch": 64},
        {"sampling.steps": 18, "weights": "ema_0.050"},
        change,
        {"training.lr": 0.97, "training.batch": 0.03},
        {"training.lr": 0.03, "training.batch": 64},
    )
    assert told[0] == (
        "What to set: training.lr = 0.0123, sampling.steps = 18, weights = ema_0.050."
    )
    assert "50% better than the preset's over 3 fresh seeds" in told[1]
    assert told[2].startswith("What did not matter: training.batch")


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=12))
def test_the_front_is_what_nothing_beats(costs: list[tuple[float, float]]) -> None:
    front = pareto(costs)
    assert front
    for i, (a, b) in enumerate(costs):
        beaten = any(x <= a and y <= b and (x < a or y < b) for x, y in costs)
        assert (i in front) != beaten
    assert best_of([trial(i, *c) for i, c in enumerate(costs)]).number in front
