"""The drill keeps score: who is found, when, by which name, at what price. Trainings are played."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from staged import BATCH, Moment, Played, event

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.console import Screen
from poise.data.imageset import Dataset
from poise.drill import plan, table
from poise.drill.faults import KINDS, fault
from poise.drill.healthy import judged, total
from poise.drill.overhead import interleave, share, updates_of_overhead
from poise.drill.runner import Request, drill
from poise.drill.score import Injected, delay, lost_by, match
from poise.drill.witness import Seen
from poise.errors import Interrupted, TrainingError, UsageError
from poise.runtime import Runtime

BASE, STEPS = 10, 30
SMALL = {"training.batch": BATCH, "training.threads": 1}
NAN = {"kind": "nan-pixel", "at": 7}


def play(learn: Played, *runs: list[Any], **more: Any) -> dict[str, Any]:
    """A drill on the digits with a played training; the error of disturbed runs is 10 % higher."""

    def measure(run: Any, dataset: Any, splits: Any) -> float:
        return 1.0 if run.root.name == "undisturbed" else 1.1

    settings: dict[str, Any] = {"healthy_steps": 0, "overrides": SMALL} | more
    save = settings.pop("save", lambda found: None)
    request = Request("digits", runs=runs, base=BASE, steps=STEPS, **settings)
    return drill(request, Screen(quiet=True), learn=learn, measure=measure, save=save)


def sees_nan(moment: Moment) -> list[dict[str, Any]]:
    if moment.batch.images.float().isfinite().all():
        return []
    return [event(moment, "non-finite-input")]


def update(moment: Moment) -> int:
    """Updates since the base, counted from 1."""
    return moment.images_seen // BATCH - BASE


def test_a_fault_that_is_named_at_once() -> None:
    found = play(Played(sees_nan), [fault("nan-pixel", at=7)])
    (row,) = found["faults"]
    assert row["detected"] is True and row["delay_steps"] == 0
    assert row["true_cause"] == row["named_cause"] == "non-finite-input"
    assert row["action"] == "skip"
    assert row["gap"] == pytest.approx(0.1)
    assert row["lost"] == {"images": BATCH, "updates": 1}
    assert row["parameters"]["at"] == 7
    assert found["healthy"]["steps"] == BASE + STEPS
    assert found["healthy"]["warnings"] == found["healthy"]["actions"] == 0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_surviving_in_silence_is_a_miss() -> None:
    (row,) = play(Played(), [fault("nan-pixel", at=7)])["faults"]
    assert row["detected"] is False
    assert row["delay_steps"] is row["named_cause"] is row["action"] is None


def test_the_delay_counts_updates_after_the_first_disturbed_one() -> None:
    def say(moment: Moment) -> list[dict[str, Any]]:
        late = update(moment) == 8 + 5 and "nan" in moment.folder
        return [event(moment, "bad-batch", severity="warning")] if late else []

    (row,) = play(Played(say), [fault("nan-pixel", at=7)])["faults"]
    assert row["delay_steps"] == 5
    assert row["detected"] and row["named_cause"] == "bad-batch" and not row["correct"]


def test_what_was_said_before_the_fault_or_without_it_does_not_count() -> None:
    def say(moment: Moment) -> list[dict[str, Any]]:
        early = update(moment) == 3 and "nan" in moment.folder
        always = update(moment) == 20
        return [event(moment, "plateau")] if early or always else []

    found = play(Played(say), [fault("nan-pixel", at=7)])
    assert found["faults"][0]["detected"] is False
    assert found["healthy"]["actions"] == 1  # the undisturbed run said it too: a false alarm


def test_a_plain_line_is_no_detection() -> None:
    def say(moment: Moment) -> list[dict[str, Any]]:
        row = {"images_seen": moment.images_seen, "severity": "info", "kind": "resumed"}
        return [{**row, "message": "The run was resumed here."}] if update(moment) == 9 else []

    assert play(Played(say), [fault("nan-pixel", at=7)])["faults"][0]["detected"] is False


def test_updates_are_counted_on_over_a_rollback() -> None:
    went: list[int] = []

    def back(moment: Moment) -> int:
        if update(moment) == 10 and "nan" in moment.folder and not went:
            went.append(1)
            return 6 * BATCH
        return 0

    def say(moment: Moment) -> list[dict[str, Any]]:
        return [event(moment, "divergence")] if went and update(moment) == 9 else []

    (row,) = play(Played(say, back=back), [fault("nan-pixel", at=7)])["faults"]
    assert row["delay_steps"] == (10 + 5) - 8  # 10 updates, 6 back, 5 more; it began in the 8th
    assert row["lost"] == {"images": (6 + 1) * BATCH, "updates": 6 + 1}


def test_a_clean_stop_has_no_gap_but_a_reason() -> None:
    def stop(moment: Moment) -> str:
        return "It climbs." if update(moment) == 12 and "nan" in moment.folder else ""

    (row,) = play(Played(sees_nan, stop=stop), [fault("nan-pixel", at=7)])["faults"]
    assert row["detected"] and row["gap"] is None
    assert "It climbs." in row["reason"]


def test_a_crash_counts_as_a_miss() -> None:
    def raises(moment: Moment) -> Exception | None:
        return ZeroDivisionError("oh") if update(moment) == 9 and "nan" in moment.folder else None

    (row,) = play(Played(sees_nan, raises=raises), [fault("nan-pixel", at=7)])["faults"]
    assert row["detected"] is False and row["named_cause"] == "crash"
    assert "ZeroDivisionError" in row["reason"]


def test_two_faults_of_a_run_are_told_apart() -> None:
    def say(moment: Moment) -> list[dict[str, Any]]:
        rows = sees_nan(moment)
        if moment.batch.images.float().nan_to_num().max() > 255:
            rows += [event(moment, "out-of-range-data", action="none", severity="warning")]
        return rows

    pair = [fault("range-batch", at=12), fault("nan-pixel", at=7)]
    first, second = play(Played(say), pair)["faults"]
    assert (first["named_cause"], first["delay_steps"]) == ("out-of-range-data", 0)
    assert (second["named_cause"], second["delay_steps"]) == ("non-finite-input", 0)
    assert first["run"] == second["run"]


def test_an_undisturbed_run_that_fails_ends_the_drill() -> None:
    with pytest.raises(TrainingError, match="undisturbed"):
        play(Played(stop=lambda moment: "Bad." if update(moment) == 2 else ""))


def test_healthy_seeds_and_traps_count_false_alarms() -> None:
    def say(moment: Moment) -> list[dict[str, Any]]:
        if moment.policy == "off":
            return []
        if moment.seed == 3 and moment.images_seen == 5 * BATCH:
            return [event(moment, "plateau", severity="warning", action="none")]
        trap = "catapult" in moment.folder and update(moment) == 20
        return [event(moment, "bad-batch")] if trap else []

    traps = [[fault("catapult")], [fault("noise-shift")]]
    found = play(Played(say), *traps, healthy_steps=50, seeds=(0, 3))
    runs = {run["run"]: run for run in found["healthy"]["runs"]}
    assert found["faults"] == []
    assert (runs["seed 3"]["warnings"], runs["seed 3"]["actions"]) == (1, 0)
    assert (runs["catapult"]["warnings"], runs["catapult"]["actions"]) == (0, 1)
    assert runs["noise-shift"]["steps"] == BASE + STEPS
    assert runs["seed 0"]["steps"] == runs["seed 3"]["steps"] == 50
    assert {"batch-8", "clean-resume"} <= runs.keys()  # the other traps come by themselves
    steps = sum(run["steps"] for run in runs.values())
    assert found["healthy"]["steps"] == steps
    assert found["healthy"]["warnings_per_1000"] == pytest.approx(1000 / steps)


def test_only_some_kinds_and_those_that_do_not_exist() -> None:
    runs = [[fault("nan-pixel", at=7)], [fault("noise-batch")]]
    found = play(Played(), *runs, only=frozenset(["noise-batch"]))
    assert [row["kind"] for row in found["faults"]] == ["noise-batch"]
    with pytest.raises(UsageError, match=r"'nan-pixle'.*nan-pixel"):
        play(Played(), *runs, only=frozenset(["nan-pixle"]))


def test_what_the_drill_decides_cannot_be_set() -> None:
    with pytest.raises(UsageError, match=r"training\.images"):
        play(Played(), overrides={**SMALL, "training.images": 5})
    with pytest.raises(UsageError, match="--healthy-steps"):
        play(Played(), healthy_steps=-1)


def test_a_kept_drill_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = [[fault("nan-pixel", at=7)], [fault("noise-batch")], [fault("nan-pixel", at=9)]]
    saved: list[dict[str, Any]] = []
    learn = Played(sees_nan)

    def stopped(moment: Moment) -> Exception | None:
        return Interrupted("ctrl-c") if "noise" in moment.folder else None

    first = Played(sees_nan, raises=stopped)
    with pytest.raises(Interrupted):
        play(first, *runs, keep=tmp_path, save=saved.append)
    assert [row["kind"] for row in saved[0]["faults"]] == ["nan-pixel"]
    assert "1 of 3" in saved[0]["unfinished"]

    found = play(learn, *runs, keep=tmp_path, save=saved.append)
    assert [row["kind"] for row in found["faults"]] == ["nan-pixel", "noise-batch", "nan-pixel"]
    assert "unfinished" not in found and found == saved[1]
    assert not any("undisturbed" in name for name in learn.ran)
    assert sum("nan-pixel" in name for name in learn.ran) == 1

    again = Played(sees_nan)
    assert play(again, *runs, keep=tmp_path) == found
    assert again.ran == []


def test_a_kept_drill_refuses_another_plan(tmp_path: Path) -> None:
    play(Played(), keep=tmp_path)
    with pytest.raises(UsageError, match="another folder"):
        play(Played(), keep=tmp_path, overrides={**SMALL, "training.lr": 0.5})


def test_what_does_not_fit_is_named_and_left_out(tmp_path: Path) -> None:
    overrides = {**SMALL, "diffusion.weighting": "edm"}
    runs = [[fault("log-variance-runaway")], [fault("nan-pixel", at=7)]]
    found = play(Played(sees_nan), *runs, overrides=overrides)
    assert [row["kind"] for row in found["faults"]] == ["nan-pixel"]
    assert found["skipped"][0]["kinds"] == ["log-variance-runaway"]


# --- the score by itself


def seen(update: int, cause: str, severity: str = "critical") -> Seen:
    return Seen({"cause": cause, "kind": cause, "severity": severity, "images_seen": 0}, update)


def test_alone_the_first_of_the_strongest_names_the_fault() -> None:
    one = [Injected(fault("nan-pixel"), "non-finite-input", 5)]
    events = [seen(4, "ascent"), seen(6, "plateau", "warning"), seen(8, "a"), seen(9, "b")]
    (event_,) = match(one, events)
    assert event_ is events[2] and delay(event_, one[0]) == 3
    assert match(one, events[:1]) == [None]


def test_of_several_each_first_gets_its_own_name_then_the_nearest() -> None:
    two = [
        Injected(fault("nan-pixel"), "non-finite-input", 5),
        Injected(fault("lr-jump"), "lr-too-high", 10),
    ]
    events = [seen(6, "lr-too-high"), seen(11, "divergence"), seen(14, "lr-too-high")]
    first, second = match(two, events)
    assert second is events[2]  # the alarm of update 6 came before the rate jumped
    assert first is events[0]
    assert match([two[1], two[0]], events) == [second, first]
    assert match([Injected(two[0].fault, "x", None), two[1]], events)[0] is None


def test_lost_is_what_was_left_out_and_what_was_undone() -> None:
    assert lost_by((2, 8), (50, 200), (40, 160)) == {"images": 48, "updates": 12}
    assert lost_by((0, 0), (40, 160), (40, 160)) == {"images": 0, "updates": 0}


def test_false_alarms_are_counted_apart() -> None:
    events = [seen(3, "plateau", "warning"), seen(4, "resumed", "info")]
    rows: list[Mapping[str, Any]] = [e.row for e in events]
    for row in rows:
        row["message"] = "m"  # type: ignore[index]
    acted = Seen({**rows[0], "action": "rollback"}, 9)
    run = judged("seed 1", 500, [*events, acted])
    assert (run.warnings, run.actions) == (1, 1)
    assert judged("seed 2", 10, [], "it stopped").actions == 1
    both = total([run, judged("seed 2", 500, [])])
    assert (both["steps"], both["warnings"], both["warnings_per_1000"]) == (1000, 1, 1.0)


# --- what the guard costs


def test_overhead_is_the_median_over_rounds_after_the_warm_up() -> None:
    plain = [9.0, 9.0, *[1.0] * 6]
    guarded = [99.0, 99.0, 1.0, 1.04, 1.0, 1.02, 50.0, 1.0]
    assert share(guarded, plain, 2) == pytest.approx(0.02)
    assert share([1.0], plain, 2) is None
    assert updates_of_overhead(50) % 10 == 0


def test_two_trainings_take_turns_and_failures_come_out() -> None:
    order: list[int] = []

    def work(who: int, count: int) -> Any:
        def train(watch: Any) -> None:
            def records() -> Any:
                for number in range(count):
                    order.append(who)
                    yield number

            list(watch.records(records()))

        return train

    laps = interleave((work(0, 30), work(1, 30)), updates=30)
    assert order == [*[0] * 10, *[1] * 10] * 3
    assert [len(one) for one in laps] == [3, 3]

    def fails(watch: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interleave((work(0, 30), fails), updates=30)


# --- what is trained


@pytest.mark.parametrize("side", [8, 10, 16, 28, 32, 7])
def test_the_small_network_fits_any_side(side: int) -> None:
    facts = DataFacts(side, 3, ("a", "b"), 0.5)
    meta = Runtime(torch.device("meta"), torch.float32)
    denoiser = build_denoiser(resolve(plan.drill_preset(side)), facts, meta)
    assert sum(p.numel() for p in denoiser.parameters()) < 600_000


def test_large_images_are_reduced_unless_somebody_chose_their_size() -> None:
    images = np.full((3, 3, 64, 64), 77, np.uint8)
    nothing: Any = ()
    dataset = Dataset(images, None, *([nothing] * 7), source="s", sizes={}, modes={})
    said: list[str] = []
    small = plan.fit_images(dataset, own=False, overrides={}, say=said.append)
    assert small.images.shape == (3, 3, 16, 16) and (small.images == 77).all()
    assert "64 to 16" in said[0]
    kept = plan.fit_images(dataset, own=False, overrides={"data.resolution": 64}, say=said.append)
    assert kept is dataset is plan.fit_images(dataset, own=True, overrides={}, say=said.append)
    assert len(said) == 1


def test_tables_fit_the_terminal() -> None:
    row = {
        "kind": "log-variance-runaway",
        "detected": True,
        "delay_steps": 12,
        "true_cause": "incomplete-checkpoint",
        "named_cause": "non-finite-activation",
        "action": "halve-micro-batch",
        "gap": 12.5,
        "lost": {"updates": 20000},
        "reason": "",
    }
    missed = row | {"detected": False, "named_cause": None, "action": None, "gap": None}
    found = {
        "faults": [row, missed | {"reason": "it stopped\nfor a reason " * 9}],
        "healthy": total([judged("seed 2", 500, [], "trouble " * 30)]),
        "overhead": 0.021,
        "score": {"faults": 2, "detected": 1, "correct": 0, "delay_median": 1, "delay_p90": 2},
    }
    text = table.report(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "missed" in text and "2.1%" in text
    listed = table.kinds(KINDS, {name: fault(name) for name in KINDS})
    assert max(map(len, listed.splitlines())) <= 100
    for name, kind in KINDS.items():
        assert name in listed and kind.cause in listed
