"""Detectors of what must hold exactly: each planted fault is named, with its place and its size."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from detector_readings import Fault, Plan, facts_of, healthy, marked, run, serious, shaken

from poise.stability.detectors.averages import Averages
from poise.stability.detectors.growth import SteadyGrowth
from poise.stability.detectors.inputs import InputFaults, ValueRange
from poise.stability.detectors.moments import SecondMoment
from poise.stability.detectors.nonfinite import NonFinite
from poise.stability.detectors.rate import LearningRate
from poise.stability.detectors.system import DataStarvation
from poise.stability.detectors.weights import Stale, Untouched
from poise.stability.incident import Sign
from poise.stability.reading import Reading

AT = 52
SHORT = Plan(updates=92)


def from_on(change: Fault, at: int = AT, until: int = 10**9) -> Fault:
    return lambda r: change(r) if at <= r.step < until else r


def only(signs: list[Sign], cause: str) -> Sign:
    assert {s.cause for s in serious(signs)} == {cause}
    return signs[0]


def scaled(factor: float) -> Fault:
    return lambda r: replace(r, used_lr=r.used_lr * factor)


@pytest.mark.parametrize(("factor", "delay"), [(20.0, 0), (2.0, 1), (5.0, 0)])
def test_a_jump_of_the_rate_is_named_with_its_ratio(factor: float, delay: int) -> None:
    sign = only(run(SHORT, from_on(scaled(factor))), "lr-too-high")
    assert sign.images_seen == (AT + delay) * 16
    assert sign.since == (AT - 1) * 16
    assert sign.evidence["ratio"] == pytest.approx(factor)


def test_a_rate_far_below_its_plan_is_slow_convergence() -> None:
    sign = only(run(SHORT, from_on(scaled(0.01))), "slow-convergence")
    assert sign.evidence["ratio"] == pytest.approx(0.01)


@pytest.mark.parametrize("rate", [1.01, 1.002, 1.05])
def test_a_drift_is_named_with_its_rate_and_its_limit(rate: float) -> None:
    fault = from_on(lambda r: replace(r, used_lr=r.used_lr * rate ** (r.step - AT + 1)))
    sign = only(run(SHORT, fault), "lr-drift")
    assert sign.images_seen == (AT + 7) * 16
    assert sign.evidence["rate_per_update"] == pytest.approx(rate - 1)
    at_ten = AT - 1 + math.log(10) / math.log(rate)
    assert sign.evidence["projected_update"] == pytest.approx(at_ten, abs=1.5)


def test_a_factor_that_the_guard_set_is_none_and_an_unknown_one_is_found() -> None:
    plan, seen = Plan(updates=30), []
    for expected in (0.5, 1.0):
        detector = LearningRate(facts_of(plan))
        detector.expected_scale = expected
        halved = (replace(r, lr=0.5 * r.lr, used_lr=0.5 * r.used_lr) for r in healthy(plan))
        seen.append([s.cause for r in halved for s in detector.look(r)])
    assert seen == [[], ["slow-convergence"]]


def lagging(factor: float, tensors: slice) -> Fault:
    def change(r: Reading) -> Reading:
        moments = r.moments.copy()
        moments[tensors] *= factor
        return replace(r, moments=moments)

    return change


@pytest.mark.parametrize("factor", [1e-6, 0.5, 30.0, 0.0, math.nan])
def test_a_second_moment_that_its_gradients_did_not_make_is_named(factor: float) -> None:
    signs = run(SHORT, from_on(lagging(factor, slice(5, 8)), AT, AT + 1))
    sign = only(signs, "second-moment-lag")
    assert sign.images_seen == AT * 16
    assert sign.culprit["count"] == 3
    assert sign.culprit["tensors"][0] == facts_of(SHORT).names[5]
    if factor not in (0.0,) and math.isfinite(factor):
        assert sign.evidence["factor"] == pytest.approx(factor, rel=1e-3)
    assert sign.evidence["lost"] == (factor == 0 or math.isnan(factor))


def test_clipped_gradients_leave_only_the_lower_bound() -> None:
    plan = Plan(updates=50)
    detector = SecondMoment(replace(facts_of(plan), exact_moments=False))
    smaller = (replace(r, grad_norms=r.grad_norms * 7) for r in healthy(plan))
    assert [s for r in smaller for s in detector.look(r)] == []
    shrunk = (from_on(lagging(0.5, slice(0, 2)), 30)(r) for r in healthy(plan))
    assert [s.cause for r in shrunk for s in detector.look(r)][:1] == ["second-moment-lag"]


def test_optimisers_without_second_moment_are_not_judged() -> None:
    plan = Plan(updates=30)
    detector = SecondMoment(replace(facts_of(plan), betas=None))
    nothing = np.full(plan.tensors, np.nan, np.float32)
    assert [s for r in healthy(plan) for s in detector.look(replace(r, moments=nothing))] == []


def test_a_weight_changed_between_updates_is_named_with_the_change() -> None:
    def change(r: Reading) -> Reading:
        before = r.before.copy()
        before[3] += 2.5
        return replace(r, before=before)

    sign = only(run(SHORT, from_on(change, AT, AT + 1)), "weights-damaged")
    assert (sign.images_seen, sign.severity) == (AT * 16, "critical")
    assert sign.culprit == {"tensors": [facts_of(SHORT).names[3]], "count": 1}
    assert sign.evidence["change"] == pytest.approx(2.5, rel=1e-4)


def test_rounding_after_every_update_is_stagnation_and_one_shake_is_damage() -> None:
    sign = only(run(SHORT, from_on(shaken)), "precision-stagnation")
    assert sign.images_seen == (AT + 2) * 16
    sign = only(run(SHORT, from_on(shaken, AT, AT + 1)), "weights-damaged")
    assert sign.images_seen == AT * 16


def test_the_first_reading_after_a_rollback_is_compared_with_nothing() -> None:
    plan = Plan(updates=60)
    readings = list(healthy(plan))
    for detector in (
        Untouched(facts_of(plan)),
        SecondMoment(facts_of(plan)),
        Stale(facts_of(plan)),
    ):
        assert [s for r in readings + readings[20:] for s in detector.look(r)] == []


def frozen(tensors: list[int], *, put_back: bool, handled: bool) -> list[Reading]:
    """A healthy run in which some tensors stand still from update 52 on."""
    readings = list(healthy(SHORT))
    stand, v = readings[AT - 1].before, readings[AT - 1].moments
    for i, r in enumerate(readings[AT - 1 :], AT - 1):
        before, after, moments = r.before.copy(), r.after.copy(), r.moments.copy()
        before[tensors] = stand[tensors]
        if not put_back:
            after[tensors] = stand[tensors]
        if not handled:
            moments[tensors] = v[tensors]
        readings[i] = replace(r, before=before, after=after, moments=moments)
    return readings


@pytest.mark.parametrize("put_back", [False, True])
def test_tensors_that_updates_do_not_move_are_named(put_back: bool) -> None:
    tensors = [4, 5, 6, 7]
    readings = frozen(tensors, put_back=put_back, handled=put_back)
    detector = Stale(facts_of(SHORT))
    (sign,) = [s for r in readings for s in detector.look(r)]
    assert sign.cause == "stale-layer"
    assert sign.culprit["tensors"] == [facts_of(SHORT).names[i] for i in tensors]
    assert sign.images_seen <= (AT + 14) * 16
    others = [Untouched(facts_of(SHORT)), SecondMoment(facts_of(SHORT))]
    assert [s for r in readings for d in others for s in d.look(r)] == []


def test_steps_that_change_nearly_nothing_are_stagnation() -> None:
    readings = frozen(list(range(SHORT.tensors)), put_back=False, handled=True)
    detector = Stale(facts_of(SHORT))
    assert [s.cause for r in readings for s in detector.look(r)] == ["precision-stagnation"]


def test_what_never_moved_by_design_is_left_alone() -> None:
    detector = Stale(facts_of(SHORT))
    for r in healthy(SHORT):
        before, norms = r.before.copy(), r.grad_norms.copy()
        before[[0, 1]] = 1.0
        norms[0] = 0.0  # a weight without gradient; and 1: forced, one number, so +-1 for ever
        assert detector.look(replace(r, before=before, grad_norms=norms)) == []


@pytest.mark.parametrize("profile", [0, 1])
def test_an_average_that_stands_still_is_named(profile: int) -> None:
    stand = next(r.ema for r in healthy(SHORT) if r.step == AT)
    assert stand is not None

    def change(r: Reading) -> Reading:
        if r.ema is None:
            return r
        ema = r.ema.copy()
        ema[profile] = stand[profile]
        return replace(r, ema=ema)

    sign = only(run(SHORT, from_on(change)), "ema-frozen")
    assert sign.culprit["profiles"] == [facts_of(SHORT).profiles[profile]]
    assert sign.images_seen == (AT + 12) * 16


@pytest.mark.parametrize("value", [math.nan, 400.0])
def test_a_damaged_average_is_named_at_the_next_look(value: float) -> None:
    def change(r: Reading) -> Reading:
        if r.ema is None:
            return r
        ema = r.ema.copy()
        ema[1, 7] = value
        return replace(r, ema=ema)

    detector = Averages(facts_of(SHORT))
    signs = [s for r in healthy(SHORT) for s in detector.look(from_on(change)(r))]
    assert signs[0].cause == "ema-damaged"
    assert signs[0].images_seen == AT * 16
    assert signs[0].culprit["profiles"] == ["ema_0.100"]
    assert signs[0].culprit["tensors"] == [facts_of(SHORT).names[7]]


def stopped(r: Reading, reason: str, **more: object) -> Reading:
    reasons = frozenset({reason, "gradient"})
    return replace(r, applied=False, reasons=reasons, grad_norm=math.nan, **more)


def test_non_finite_numbers_are_told_apart_by_place() -> None:
    reading = list(healthy(Plan(updates=30)))[20]
    some = reading.grad_norms.copy()
    some[[2, 9]] = np.inf
    lost = reading.before.copy()
    lost[4] = np.nan
    error = reading.image_error.copy()
    error[0] = np.nan
    cases = [
        (stopped(reading, "gradient", grad_norms=some), "non-finite-gradient", [2, 9]),
        (stopped(reading, "loss", image_error=error), "non-finite-activation", []),
        (stopped(reading, "loss", before=lost), "weights-damaged", [4]),
    ]
    names = facts_of(SHORT).names
    for case, cause, tensors in cases:
        (sign,) = NonFinite(facts_of(SHORT)).look(case)
        assert sign.cause == cause
        assert sign.culprit.get("tensors", []) == [names[i] for i in tensors]
        assert bool(sign.evidence.get("examine")) == (cause == "non-finite-activation")
    assert NonFinite(facts_of(SHORT)).look(reading) == []


def test_bad_images_are_named_by_file_and_a_broken_shard_by_its_folder() -> None:
    plan = Plan(updates=40)
    detector = InputFaults(facts_of(plan))
    signs = []
    for r in healthy(plan):
        broken = (r.indices >= 1000) & (r.indices < 1500)
        if r.step >= 15 and broken.any():
            r = marked(r, "range", broken)
            signs += detector.look(r)
            assert signs[-1].images_seen == r.images_seen
        else:
            assert detector.look(r) == []
    assert {s.cause for s in signs} == {"out-of-range-data"}
    assert signs[0].severity == "warning" and signs[-1].severity == "critical"
    assert signs[-1].evidence["for_good"]
    assert all(name.startswith("set/shard2/") for name in signs[-1].culprit["files"])
    shard = signs[-1].culprit["shard"]
    assert shard["folder"] == "set/shard2" and 1000 <= shard["first"] < shard["last"] < 1500


@pytest.mark.parametrize(
    ("reason", "cause"), [("non-finite", "non-finite-input"), ("label", "bad-label")]
)
def test_one_bad_image_is_named_before_the_update(reason: str, cause: str) -> None:
    def change(r: Reading) -> Reading:
        return marked(r, reason, np.arange(r.batch) == 3)

    plan = replace(SHORT, left_out=(AT,))
    sign = only(run(plan, from_on(change, AT, AT + 1)), cause)
    reading = healthy(plan)[AT - 1]
    assert sign.culprit["indices"] == [int(reading.indices[3])]
    assert not sign.evidence["for_good"]


def latents(r: Reading, factor: float) -> Reading:
    spread = 200 * factor * math.exp(0.1 * math.sin(r.step * r.step))
    return replace(r, inputs=replace(r.inputs, low=127 - spread, high=127 + spread))


def test_latents_on_another_scale_are_named_and_their_own_spread_is_not() -> None:
    for factor, delay in ((8.0, 0), (0.1, 2)):
        detector = ValueRange(facts_of(SHORT))
        signs = []
        for r in healthy(SHORT):
            signs += detector.look(latents(r, factor if r.step >= AT else 1.0))
        assert signs[0].cause == "out-of-range-data"
        assert signs[0].images_seen == (AT + delay) * 16
        assert signs[0].evidence["factor"] == pytest.approx(factor, rel=0.3)


def test_waiting_for_data_is_named_and_one_short_wait_is_not() -> None:
    slow = only(
        run(SHORT, from_on(lambda r: replace(r, waited=0.3, seconds=0.4))), "data-starvation"
    )
    assert slow.images_seen <= (AT + 20) * 16
    detector = DataStarvation(facts_of(SHORT))
    once = (replace(r, waited=3.0, seconds=3.1) if r.step == AT else r for r in healthy(SHORT))
    assert [s for r in once for s in detector.look(r)] == []


def test_a_batch_that_comes_very_late_is_named() -> None:
    detector = DataStarvation(facts_of(SHORT))
    hung = (replace(r, waited=12.0, seconds=12.1) if r.step == AT else r for r in healthy(SHORT))
    (sign,) = [s for r in hung for s in detector.look(r)]
    assert sign.cause == "data-starvation" and "12.0 s" in sign.sentence


def test_weights_that_grow_by_a_steady_share_are_named_and_learning_is_not() -> None:
    readings = list(healthy(SHORT))
    assert [s for r in readings for s in SteadyGrowth(facts_of(SHORT)).look(r)] == []
    grown, detector, signs = 1.0, SteadyGrowth(facts_of(SHORT)), []
    for r in readings:
        before = r.before * grown
        grown *= 1.01 if r.step >= AT else 1.0
        signs += detector.look(replace(r, before=before, after=r.after * grown))
    (sign,) = signs
    assert sign.cause == "weight-growth"
    assert sign.evidence["share"] == pytest.approx(0.01, rel=0.3)
    assert sign.images_seen <= (AT + 13) * 16


def test_a_schedule_that_jumps_up_is_named_and_one_that_drops_or_warms_up_is_not() -> None:
    def planned(factor: Callable[[int], float]) -> list[Sign]:
        detector = LearningRate(facts_of(SHORT))
        found = []
        for r in healthy(SHORT):
            k = factor(r.step)
            rates = {"lr": r.lr * k, "schedule_lr": r.schedule_lr * k, "used_lr": r.used_lr * k}
            found += detector.look(replace(r, **rates))
        return found

    assert planned(lambda step: 0.1 if step >= AT else 1.0) == []
    assert planned(lambda step: min(1.0, (step + 10) / 60)) == []
    (sign,) = planned(lambda step: 12.0 if step >= AT else 1.0)
    assert sign.cause == "lr-too-high" and sign.evidence["leap"] == pytest.approx(12.0, rel=0.05)
    assert sign.images_seen == AT * 16
