"""What the guard makes of signs: which it believes, when, and what is to be done. No training."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import pytest
from detector_readings import Plan, facts_of, healthy
from hypothesis import given
from hypothesis import strategies as st

from poise.stability.causes import CAUSES
from poise.stability.guard import Guard, Order
from poise.stability.incident import Sign
from poise.stability.policy import LADDERS, REWINDS, SYMPTOMS, Action, Limits, action_for

PLAN = Plan(updates=400, tensors=4)
WITHIN = {"lasting-non-finite", "rate-off-plan", "rate-far-off-plan"}  # of the table alone


def sign(cause: str, severity: Any = "critical", at: int = 0, **more: Any) -> Sign:
    return Sign(cause, severity, at, max(at - 8, 0), f"{cause}, planted.", **more)


@dataclass
class Said:
    """A detector of probes that says what was planted."""

    signs: list[Sign] = field(default_factory=list)

    def look(self, probe: Any) -> list[Sign]:
        said, self.signs = self.signs, []
        return said

    def state(self) -> dict[str, Any]:
        return {"signs": [vars(s) for s in self.signs]}

    def restore(self, state: dict[str, Any]) -> None:
        self.signs = [Sign(**s) for s in state["signs"]]


@dataclass
class Watched:
    """A guard on a healthy run of readings in which it finds nothing by itself."""

    guard: Guard
    step: int = 0
    orders: list[Order] = field(default_factory=list)

    def wait(self, updates: int, diagnose: Callable[[Sign], Sign] | None = None) -> list[Order]:
        found = []
        for reading in healthy(PLAN)[self.step : self.step + updates]:
            found += self.guard.note(reading, diagnose)
        self.step += updates
        return found


def watched(**options: Any) -> Watched:
    return Watched(Guard(facts_of(PLAN), **options))


def named(orders: list[Order]) -> list[tuple[str, str]]:
    return [(o.sign.cause, o.action) for o in orders]


def test_all_causes_of_the_table_are_known() -> None:
    assert {cause for cause in LADDERS if cause not in CAUSES} == WITHIN
    assert CAUSES.keys() >= SYMPTOMS
    assert {a for ladder in LADDERS.values() for a in ladder} <= set(get_args(Action))
    assert all(ladder for ladder in LADDERS.values())
    assert set(get_args(Action)) - {"none", "skip", "stop"} >= REWINDS


def test_a_ladder_is_climbed_and_its_last_step_stays() -> None:
    assert [action_for("ascent", n, "repair") for n in range(5)] == [
        *LADDERS["ascent"],
        *["stop"] * 2,
    ]
    assert action_for("plateau", 0, "repair") == "none"
    for policy in ("warn", "off"):
        left_out = {cause for cause, ladder in LADDERS.items() if ladder[0] == "skip"}
        for cause in LADDERS:
            assert action_for(cause, 3, policy) == ("skip" if cause in left_out else "none")


def test_a_healthy_run_has_no_orders() -> None:
    w = watched()
    assert w.wait(PLAN.updates) == []
    assert w.guard.quiet_for() > 10**6


def test_an_exact_sign_is_an_incident_at_once() -> None:
    w = watched()
    (order,) = w.guard.note_sign(sign("weights-damaged", at=64))
    assert (order.action, order.also) == ("rollback", ())
    row = order.incident(images=32).row()
    assert row["cause"] == row["kind"] == "weights-damaged"
    assert (row["images_seen"], row["action"], row["cost"]) == (64, "rollback", {"images": 32})


def test_a_detector_of_readings_is_heard_at_once() -> None:
    w = watched()
    w.wait(20)
    spoilt = replace(healthy(PLAN)[20], before=healthy(PLAN)[20].before * float("nan"))
    assert named(w.guard.note(spoilt)) == [("weights-damaged", "rollback")]


def test_a_symptom_waits_until_it_is_settled() -> None:
    w = watched(limits=Limits(settle=3))
    assert w.guard.note_sign(sign("divergence")) == []
    assert w.wait(2) == []
    assert named(w.wait(1)) == [("divergence", "cut-rate")]
    assert w.wait(20) == []


def test_a_symptom_goes_when_what_is_exact_explains_it() -> None:
    w = watched()
    assert w.guard.note_sign(sign("exploding-gradients")) == []
    assert w.guard.note_sign(sign("bad-batch")) == []
    (order,) = w.guard.note_sign(sign("second-moment-lag"))
    assert order.sign.cause == "second-moment-lag"
    assert order.also == ("bad-batch", "exploding-gradients")
    assert w.wait(20) == []


def test_of_several_symptoms_the_worst_and_most_specific_is_named() -> None:
    w = watched()
    for cause in ("divergence", "broken-band", "plateau"):
        w.guard.note_sign(sign(cause))
    w.guard.note_sign(sign("dead-units", "warning"))
    (order,) = w.wait(2)
    assert order.sign.cause == "broken-band"
    assert order.also == ("dead-units", "divergence", "plateau")
    assert CAUSES["broken-band"].specificity > CAUSES["divergence"].specificity


def test_a_sign_that_comes_again_keeps_its_worst_and_its_beginning() -> None:
    w = watched()
    w.guard.note_sign(sign("divergence", "warning", at=80))
    w.guard.note_sign(sign("divergence", "critical", at=88))
    w.guard.note_sign(sign("divergence", "warning", at=96))
    (order,) = w.wait(2)
    assert order.sign.severity == "critical" and order.sign.since == 72


def test_a_closer_look_is_taken_when_a_sign_asks_for_it() -> None:
    w = watched()
    asked: list[Sign] = []

    def diagnose(s: Sign) -> Sign:
        asked.append(s)
        return replace(s, cause="ascent")

    w.guard.note_sign(sign("divergence", evidence={"examine": True}))
    assert named(w.wait(2, diagnose)) == [("ascent", "rollback")]
    assert [s.cause for s in asked] == ["divergence"]
    w.guard.note_sign(sign("oscillation"))
    assert named(w.wait(2, diagnose)) == [("oscillation", "cut-rate")]
    assert len(asked) == 1


def test_symptoms_in_the_shadow_of_an_incident_are_not_reported() -> None:
    """Said and not repaired: what follows from it will be seen for some time."""
    w = watched(limits=Limits(shadow=10))
    said = min(SYMPTOMS - LADDERS.keys())
    assert w.guard.note_sign(sign(said, "warning")) == []
    assert named(w.wait(2)) == [(said, "none")]
    w.guard.note_sign(sign("divergence"))
    assert w.wait(4) == []
    assert named(w.guard.note_sign(sign("ema-damaged"))) == [("ema-damaged", "restore-ema")]
    w.wait(6)
    w.guard.note_sign(sign("divergence"))
    assert named(w.wait(2)) == [("divergence", "cut-rate")]


def test_the_shadow_of_a_skip_is_short() -> None:
    w = watched(limits=Limits(settle=2, shadow=40))
    w.guard.note_sign(sign("bad-label"))
    w.guard.note_sign(sign("exploding-gradients"))  # of the same batch
    assert w.wait(2) == []
    w.wait(1)
    w.guard.note_sign(sign("exploding-gradients"))
    assert named(w.wait(2)) == [("exploding-gradients", "rollback")]


def test_the_same_incident_is_said_once_and_later_again() -> None:
    w = watched(limits=Limits(again=10))
    first = sign("second-moment-lag", culprit={"tensors": ["a"]})
    assert len(w.guard.note_sign(first)) == 1
    w.wait(5)
    assert w.guard.note_sign(first) == []
    other = sign("second-moment-lag", culprit={"tensors": ["b"]})
    assert len(w.guard.note_sign(other)) == 1
    w.wait(6)
    assert len(w.guard.note_sign(first)) == 1


@pytest.mark.parametrize("cause", ["bad-label", "non-finite-input", "out-of-range-data"])
def test_every_bad_batch_counts_and_the_remedy_gets_stronger(cause: str) -> None:
    w = watched()
    actions = []
    for _ in range(3):
        actions += [o.action for o in w.guard.note_sign(sign(cause))]
        w.wait(1)
    assert actions == ["skip", "skip", "screen"]


def test_numbers_that_stay_bad_are_another_case() -> None:
    w = watched()
    for updates, action in ((1, "skip"), (2, "skip"), (3, "rollback")):
        found = sign("non-finite-gradient", evidence={"updates": updates})
        assert [o.action for o in w.guard.note_sign(found)] == [action]


def test_a_rate_that_is_not_as_planned_is_exact() -> None:
    off = {"setting": "learning rate"}
    w = watched()
    assert named(w.guard.note_sign(sign("lr-too-high", "warning", culprit=off))) == [
        ("lr-too-high", "hold-rate")
    ]
    w = watched()
    assert named(w.guard.note_sign(sign("lr-too-high", culprit=off))) == [
        ("lr-too-high", "rollback")
    ]
    assert watched().guard.note_sign(sign("lr-too-high")) == []  # a symptom, without a setting


def test_the_guards_own_rate_is_expected() -> None:
    w = watched()
    w.wait(10)
    w.guard.expect_scale(0.5)
    half = [replace(r, lr=r.lr / 2, used_lr=r.used_lr / 2) for r in healthy(PLAN)[10:30]]
    assert [o for r in half for o in w.guard.note(r)] == []
    w.guard.expect_scale(1.0)
    late = [replace(r, lr=r.lr / 8, used_lr=r.used_lr / 8) for r in healthy(PLAN)[30:40]]
    assert {o.sign.cause for r in late for o in w.guard.note(r)} == {"slow-convergence"}


def test_after_too_many_repairs_the_run_stops() -> None:
    w = watched(max_repairs=2)
    actions = []
    for i in range(4):
        found = sign("weights-damaged", culprit={"tensors": [f"{i}"]})
        actions += [o.action for o in w.guard.note_sign(found)]
    assert actions == ["rollback", "rollback", "stop", "stop"]
    # left out batches are no repairs
    w = watched(max_repairs=0)
    assert [o.action for o in w.guard.note_sign(sign("bad-label"))] == ["skip"]


def test_warn_says_it_and_orders_nothing() -> None:
    w = watched(policy="warn", max_repairs=0)
    for cause in ("weights-damaged", "ema-damaged", "ascent"):
        assert named(w.guard.note_sign(sign(cause))) == [(cause, "none")]
    assert named(w.guard.note_sign(sign("bad-label"))) == [("bad-label", "skip")]
    off = sign("lr-drift", culprit={"setting": "learning rate"})
    assert named(w.guard.note_sign(off)) == [("lr-drift", "none")]
    assert w.guard.record.repairs == 0


def test_information_is_said_and_does_not_count_against_a_checkpoint() -> None:
    w = watched()
    w.wait(3)
    w.guard.note_sign(sign("plateau", "info"))
    assert named(w.wait(2)) == [("plateau", "none")]
    assert w.guard.quiet_for() > 10**6
    w.guard.note_sign(sign("divergence"))  # no shadow lies on it
    assert named(w.wait(2)) == [("divergence", "cut-rate")]
    w.wait(5)
    assert w.guard.quiet_for() == 7


def test_slow_data_explain_nothing_about_the_network() -> None:
    w = watched()
    w.guard.note_sign(sign("divergence"))
    (order,) = w.guard.note_sign(sign("data-starvation", "warning"))
    assert named([order]) == [("data-starvation", "none")] and order.also == ()
    assert named(w.wait(2)) == [("divergence", "cut-rate")]


def test_information_does_not_climb_the_ladder() -> None:
    w = watched()
    w.guard.note_sign(sign("stale-layer", "info", culprit={"tensors": ["a"]}))
    (order,) = w.guard.note_sign(sign("stale-layer", "warning", culprit={"tensors": ["b"]}))
    assert order.action == "rollback"


def test_probes_are_read_by_their_own_detectors() -> None:
    said = Said()
    w = watched(probe_detectors=[said])
    said.signs = [sign("unrepeatable-result")]
    assert named(w.guard.note_probe(object())) == [("unrepeatable-result", "rollback")]
    said.signs = [sign("activation-growth", "warning")]
    assert w.guard.note_probe(object()) == []
    assert named(w.wait(2)) == [("activation-growth", "rollback")]


def test_a_rollback_forgets_what_was_said_but_not_what_was_done() -> None:
    w = watched(max_repairs=5)
    w.wait(10)
    kept = json.loads(json.dumps(w.guard.state(), allow_nan=False))
    found = sign("ascent", culprit={"tensors": ["a"]})
    actions = []
    for _ in range(3):
        actions += [o.action for o in w.guard.note_sign(found)]
        record = json.loads(json.dumps(w.guard.record_state()))
        w.guard.restore(kept)
        assert w.guard.record.acted == {}
        w.guard.restore_record(record)
    assert actions == ["rollback", "rollback", "stop"]
    assert w.guard.record.repairs == 3


ACTS = st.lists(
    st.tuples(
        st.sampled_from(sorted(CAUSES)),
        st.sampled_from(["info", "warning", "critical"]),
        st.integers(0, 4),  # updates until the next
        st.booleans(),  # of the planned rate
    ),
    max_size=12,
)


@given(before=ACTS, after=ACTS, strikes=st.dictionaries(st.integers(0, 99), st.integers(1, 3)))
def test_a_state_in_json_continues_exactly(
    before: Any, after: Any, strikes: dict[int, int]
) -> None:
    limits = Limits(again=6, shadow=5)

    def act(w: Watched, acts: Any) -> list[Order]:
        found = []
        for cause, severity, updates, rate in acts:
            culprit = {"setting": "learning rate"} if rate else {"tensors": ["a"]}
            found += w.guard.note_sign(sign(cause, severity, 8 * w.step, culprit=culprit))
            found += w.wait(updates)
        return found

    one = watched(limits=limits, max_repairs=3, probe_detectors=[Said()])
    act(one, before)
    one.guard.record.strikes.update(strikes)
    state = json.loads(json.dumps(one.guard.state(), allow_nan=False))
    other = watched(limits=limits, max_repairs=3, probe_detectors=[Said()])
    other.guard.restore(state)
    other.step = one.step
    assert act(one, after) == act(other, after)
    assert one.guard.record == other.guard.record
    assert one.guard.record.strikes == strikes
    assert one.guard.state() == other.guard.state()
