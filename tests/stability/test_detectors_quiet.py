"""Healthy runs with all the traps stay quiet; a state in JSON continues exactly."""

import json
from dataclasses import replace

import numpy as np
import pytest
from detector_readings import Plan, facts_of, healthy, run, serious, shaken

from poise.stability.detectors.all import step_detectors
from poise.stability.incident import Sign

HEALTHY = {
    "ordinary": Plan(updates=700, seed=1),
    "batch 8": Plan(updates=700, batch=8, seed=2, error_noise=0.55, grad_noise=0.6),
    "many epochs, flips, planned drop": Plan(
        updates=600, seed=3, train=90, flips=True, drop_at=300
    ),
    "copies and constant images": Plan(updates=600, seed=4, copies=5, flat_rate=0.02),
    "other noise": Plan(updates=600, seed=5, sigma_shift=1.5, error_noise=0.6),
    "fast descent, no warm-up": Plan(updates=400, seed=6, fall=10, warmup=0.0),
    "a bump": Plan(updates=400, seed=7, bump=(200, 8, 3.0)),
}


@pytest.mark.parametrize("plan", HEALTHY.values(), ids=HEALTHY.keys())
def test_healthy_runs_are_quiet(plan: Plan) -> None:
    assert serious(run(plan)) == []


def test_a_state_in_json_continues_exactly() -> None:
    plan = Plan(updates=240, seed=8, bump=(150, 60, 12.0))
    whole, first = step_detectors(facts_of(plan)), step_detectors(facts_of(plan))
    told: list[list[Sign]] = [[], []]
    for r in healthy(plan):
        r = shaken(r) if r.step % 90 == 0 else r
        if r.step in (3, 130, 158):
            kept = json.loads(json.dumps([d.state() for d in first], allow_nan=False))
            first = step_detectors(facts_of(plan))
            for detector, state in zip(first, kept, strict=True):
                detector.restore(state)
        for signs, detectors in zip(told, (whole, first), strict=True):
            signs += [s for d in detectors for s in d.look(r)]
    assert {s.cause for s in told[0]} >= {"weights-damaged", "divergence"}
    assert told[0] == told[1]
    assert [d.state() for d in whole] == [d.state() for d in first]


def test_readings_without_vitals_are_read_as_well() -> None:
    nothing = np.zeros(0, np.float32)
    detectors = step_detectors(facts_of(Plan()))
    for r in healthy(Plan(updates=120)):
        bare = replace(
            r, grad_norms=nothing, moments=nothing, before=nothing, after=nothing, ema=None
        )
        assert [s for d in detectors for s in d.look(bare)] == []
