"""Error and gradients against their past: planted courses are named, bumps that heal are not."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from detector_readings import CENTRES, Plan, facts_of, healthy, serious

from poise.stability.detectors.dynamics import Dynamics
from poise.stability.incident import Sign
from poise.stability.reading import Reading

AT = 160
PLAN = Plan(updates=260, tensors=24)
SPIKE = {"applied": False, "reasons": frozenset({"error-spike"})}


def louder(r: Reading, factor: float | np.ndarray, *, gradient: float = 1.0) -> Reading:
    error = (r.image_error * factor).astype(np.float32)
    return replace(
        r,
        image_error=error,
        error=float(error.mean()),
        grad_norm=r.grad_norm * gradient,
        grad_norms=(r.grad_norms * gradient).astype(np.float32),
    )


def signs_of(change: Callable[[Reading], Reading], plan: Plan = PLAN, at: int = AT) -> list[Sign]:
    detector = Dynamics(facts_of(plan))
    readings = (change(r) if r.step >= at else r for r in healthy(plan))
    return serious([s for r in readings for s in detector.look(r)])


def test_a_batch_that_the_gate_stopped_is_named_with_its_worst_image() -> None:
    def change(r: Reading) -> Reading:
        if r.step != AT:
            return r
        factor = np.ones(r.batch)
        factor[5] = 1e4
        return replace(louder(r, factor, gradient=50), **SPIKE)

    (sign,) = signs_of(change)
    assert sign.cause == "bad-batch"
    assert sign.images_seen == (AT + 2) * 16 and sign.since == (AT - 1) * 16
    bad = int(healthy(PLAN)[AT - 1].indices[5])
    assert sign.culprit["indices"] == [bad]
    assert sign.culprit["files"] == [facts_of(PLAN).file_names(bad)]


@pytest.mark.parametrize(("factor", "within"), [(2.2, 30), (10.0, 9), (100.0, 6)])
def test_an_error_that_rises_and_stays_is_divergence(factor: float, within: int) -> None:
    signs = signs_of(lambda r: louder(r, factor))
    assert signs[0].cause in ("divergence", "lr-too-high")
    assert signs[0].evidence["examine"]
    assert signs[0].images_seen <= (AT + within) * 16


def test_ascent_behind_a_closed_gate_asks_for_an_examination() -> None:
    def change(r: Reading) -> Reading:
        grown = louder(r, min(1.5 ** (r.step - AT), 6.0), gradient=2)
        return replace(grown, **SPIKE) if r.step >= AT + 4 else grown

    sign = signs_of(change)[0]
    assert sign.cause == "divergence"
    assert sign.images_seen <= (AT + 10) * 16


def test_larger_updates_make_it_the_rate() -> None:
    def change(r: Reading) -> Reading:
        ratio = None if r.update_ratio is None else 20 * r.update_ratio
        return replace(louder(r, 10.0), update_ratio=ratio)

    sign = signs_of(change)[-1]
    assert sign.cause == "lr-too-high"
    assert sign.evidence["update_factor"] > 4


def test_a_denoiser_that_says_nothing_any_more_is_named() -> None:
    def useless(r: Reading) -> Reading:
        error = np.full(r.batch, 0.98, np.float32)
        return replace(r, image_error=error, error=0.98)

    signs = [s for s in signs_of(useless) if s.cause == "lr-too-high"]
    assert signs and signs[0].images_seen <= (AT + 24) * 16


@pytest.mark.parametrize("shape", ["box", "triangle"])
@pytest.mark.parametrize(("length", "factor"), [(3, 4.0), (6, 3.0), (10, 4.0), (10, 2.0)])
def test_a_bump_that_heals_is_left_alone(shape: str, length: int, factor: float) -> None:
    def change(r: Reading) -> Reading:
        age = (r.step - AT) / length
        if age >= 1:
            return r
        rise = math.log(factor) * (1.0 if shape == "box" else 1 - abs(2 * age - 1))
        return louder(r, math.exp(rise), gradient=math.exp(rise))

    assert signs_of(change) == []


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.6), (0.6, 2.5), (0.05, 0.15)])
@pytest.mark.parametrize("factor", [8.0, 50.0])
def test_one_noise_band_that_breaks_is_named(low: float, high: float, factor: float) -> None:
    def change(r: Reading) -> Reading:
        inside = (r.sigma >= low) & (r.sigma < high)
        return louder(r, np.where(inside, factor, 1.0))

    signs = signs_of(change)
    assert {s.cause for s in signs} == {"broken-band"}
    assert signs[0].images_seen <= (AT + 32) * 16
    found_low, found_high = signs[0].culprit["sigma"]
    assert found_low < high and found_high > low  # and no further than a band away
    assert found_low > low / 3.5 and found_high < high * 3.5


def weaker(r: Reading, tensors: list[int], factor: float) -> Reading:
    norms = r.grad_norms.copy()
    norms[tensors] *= factor
    total = float(np.sqrt((norms.astype(np.float64) ** 2).sum()))
    return replace(r, grad_norms=norms, grad_norm=total)


@pytest.mark.parametrize(
    ("factor", "cause"), [(1e-3, "vanishing-gradients"), (1e4, "exploding-gradients")]
)
def test_tensors_whose_gradients_change_are_named_with_their_blocks(
    factor: float, cause: str
) -> None:
    tensors = [8, 9, 10, 11]
    sign = signs_of(lambda r: weaker(r, tensors, factor))[0]
    assert sign.cause == cause
    assert sorted(sign.culprit["tensors"]) == sorted(facts_of(PLAN).names[i] for i in tensors)
    assert sign.culprit["blocks"] == ["network.enc.2_block"] or len(sign.culprit["blocks"]) == 1
    assert sign.images_seen <= (AT + 8) * 16


def test_gradients_that_follow_the_error_do_not_explode() -> None:
    signs = signs_of(lambda r: louder(r, 300.0, gradient=300.0))
    assert {s.cause for s in signs} <= {"divergence", "lr-too-high"}


@pytest.mark.parametrize("period", [2.0, 6.0, 12.0])
def test_a_swing_with_one_period_is_oscillation(period: float) -> None:
    plan = replace(PLAN, updates=330)

    def change(r: Reading) -> Reading:
        swing = math.exp(0.8 * math.cos(2 * math.pi * r.step / period))
        return louder(r, swing, gradient=swing)

    signs = [s for s in signs_of(change, plan) if s.cause == "oscillation"]
    assert signs[0].evidence["period"] == pytest.approx(period, rel=0.2)
    assert signs[0].images_seen <= (AT + 80) * 16


def test_updates_too_small_to_learn_are_slow_convergence() -> None:
    def change(r: Reading) -> Reading:
        error = np.full(r.batch, 0.99, np.float32)
        ratio = None if r.update_ratio is None else 1e-6
        return replace(r, image_error=error, error=0.99, update_ratio=ratio)

    signs = signs_of(change, at=0)
    assert [s.cause for s in signs] == ["slow-convergence"]


def test_large_updates_that_learn_nothing_are_a_rate_that_is_too_high() -> None:
    def stuck(size: float) -> list[str]:
        detector, found = Dynamics(facts_of(PLAN)), []
        for r in healthy(replace(PLAN, fall=1e6, updates=160)):
            ratio = None if r.update_ratio is None else size
            found += detector.look(replace(r, update_ratio=ratio))
        return [sign.cause for sign in found]

    assert stuck(0.06) == ["lr-too-high"]
    assert stuck(0.004) == []  # small steps may need longer


def test_a_standstill_is_mentioned_and_no_more() -> None:
    plan = Plan(updates=3700, tensors=2, batch=4, fall=30)
    detector = Dynamics(replace(facts_of(plan), total_images=100_000))
    signs = [s for r in healthy(plan) for s in detector.look(r)]
    assert {(s.cause, s.severity) for s in signs} == {("plateau", "info")}


def test_numbers_that_are_not_finite_change_no_baseline() -> None:
    def broken(r: Reading) -> Reading:
        error = np.full(r.batch, np.nan, np.float32)
        gone = {"image_error": error, "error": math.nan, "grad_norm": math.nan}
        norms = np.full_like(r.grad_norms, np.nan)
        return replace(r, applied=False, reasons=frozenset({"loss"}), grad_norms=norms, **gone)

    with_nan, without = Dynamics(facts_of(PLAN)), Dynamics(facts_of(PLAN))
    for r in healthy(PLAN):
        if r.step % 3 == 0:
            with_nan.look(broken(r))
        else:
            with_nan.look(r)
            without.look(r)
    assert with_nan.state()["course"] == without.state()["course"]
    assert with_nan.state()["gradients"]["mean"] == without.state()["gradients"]["mean"]


def test_the_bands_of_the_readings_are_those_of_the_facts() -> None:
    assert len(CENTRES) == len(facts_of(PLAN).centres) == 8
