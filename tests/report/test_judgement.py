"""Planted liars are named, each alone; what is healthy is not; what counts cannot tell is said."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import synthetic_scores as planted
from hypothesis import given
from hypothesis import strategies as st

from poise.report.evaluation import verdict_lines
from poise.report.finding import GOOD, NOTE, WEAK
from poise.report.judgement import judge

HINT = "The Fréchet distance alone would not have shown this."
LIARS: dict[str, tuple[Callable[[], dict[str, Any]], list[str]]] = {
    "copies": (
        planted.copier,
        ["41 samples are nearer", "8.2 % (6 to 11 %)", "12 of them are identical", "-7.70"],
    ),
    "classes": (planted.dropper, ["No sample shows cat or dog; of real images 20 % do."]),
    "groups": (
        planted.dropper_without_labels,
        ["4 of 20 kinds of real images", "20 % of real images are of these kinds, and no sample"],
    ),
    "blur": (
        planted.blurred,
        ["Samples are blurred: they hold 71 % (66 to 76 %) of the fine detail of real images"],
    ),
    "noise": (planted.noisy, ["Samples are noisy: they hold 140 %"]),
    "confusion": (planted.confused, ["61 % (56 to 66 %)", "93 %", "cat (5 of 50)", "wrong class"]),
    "memory": (planted.memoriser, ["by 48 %", "at noise level 0.2", "0.08, 0.2, 0.55", "by heart"]),
    "variety": (planted.monotonous, ["less variety", "recall is 0.410", "variety is 19.0"]),
}


@pytest.mark.parametrize("liar", LIARS)
def test_a_planted_liar_is_named_and_no_other(liar: str) -> None:
    record, said = LIARS[liar]
    found = judge(record())
    weak = [finding for finding in found if finding.severity <= WEAK]
    assert len(weak) == 1, [f.sentence for f in weak]
    assert found[0] == weak[0] and weak[0].remedy
    for words in said:
        assert words in weak[0].sentence, words
    assert weak[0].sentence.endswith(HINT)
    assert not any("Every figure" in finding.sentence for finding in found)


def test_a_healthy_record_gives_only_good() -> None:
    found = judge(planted.scores())
    assert {finding.severity for finding in found} == {GOOD}
    assert found[0].sentence.startswith("Every figure is near that of real images")


def test_copies_take_the_praise_from_what_they_flatter() -> None:
    praised = " ".join(f.sentence for f in judge(planted.copier()) if f.severity == GOOD)
    assert "recision" not in praised and "Fréchet" not in praised and "coverage" not in praised


def test_blurred_samples_that_lie_nearer_are_not_called_copies() -> None:
    notes = [f.sentence for f in judge(planted.blurred()) if f.severity == NOTE]
    assert len(notes) == 1 and "no proof of copying" in notes[0]
    sharp = planted.blurred()
    planted.put(sharp, "fine_detail", 0.98, 0.95, 1.01)
    told = next(f for f in judge(sharp) if "The copying score C_T is -4.10" in f.sentence)
    assert told.severity == NOTE and "No single sample is a copy" in told.sentence
    sharp["copying"] |= {"median_ratio": 0.55}
    planted.put(sharp, "nearest_train_distance", 1.2, 1.1, 1.3)
    assert "the model copies" in judge(sharp)[0].sentence and judge(sharp)[0].severity == WEAK


def test_few_flags_can_be_chance() -> None:
    record = planted.scores()
    record["copying"] |= {"flagged": 2}
    planted.put(record, "copies", 0.004, 0.0, 0.014)
    found = [f for f in judge(record) if "nearer" in f.sentence]
    assert [f.severity for f in found] == [NOTE] and "can be chance" in found[0].sentence


def test_the_hint_is_kept_where_the_distance_did_show_it() -> None:
    found = judge(planted.ugly())
    assert [f.severity for f in found[:2]] == [WEAK, WEAK]
    assert not any(HINT in f.sentence for f in found)


def test_too_few_images_are_neither_praised_nor_blamed() -> None:
    found = judge(planted.uncertain())
    assert {f.severity for f in found} == {NOTE}
    assert "Only 60 samples and 60 reference images" in found[0].sentence
    assert any("cannot tell whether samples look like real images" in f.sentence for f in found)


def test_a_wide_interval_is_no_praise() -> None:
    record = planted.scores()
    planted.put(record, "precision", 0.81, 0.55, 1.0)
    found = {f.severity: f.sentence for f in judge(record) if "recision" in f.sentence}
    assert list(found) == [NOTE] and "cannot tell" in found[NOTE]
    assert not any("Every figure" in f.sentence for f in judge(record))


def test_a_marked_metric_is_no_praise() -> None:
    record = planted.scores()
    for name in ("precision", "frechet_distance", "coverage"):
        record["metrics"][name]["mark"] = "The features do not fit these images."
    praised = " ".join(f.sentence for f in judge(record) if f.severity == GOOD)
    for word in ("recision", "Fréchet", "overage", "Every figure"):
        assert word not in praised


def test_lower_variety_beyond_the_missing_classes_is_its_own_weakness() -> None:
    record = planted.dropper()
    planted.put(record, "coverage", 0.4, 0.36, 0.44)
    assert [f.severity for f in judge(record)[:3]][:2] == [WEAK, WEAK]


def test_a_class_that_nobody_asked_for_is_missed_all_the_same() -> None:
    record = planted.dropper()
    record["classes"] |= {
        "missing": [],
        "asked": [0 if name in ("cat", "dog") else 62 for name in planted.CLASSES],
        "expected": [0 if name in ("cat", "dog") else 0.125 for name in planted.CLASSES],
        "reference": [50] * 10,
    }
    found = judge(record)
    assert [f.severity for f in found[:2]] == [WEAK, NOTE]
    said = "No sample shows cat or dog; of real images 20 % do. Not every one of them was asked for"
    assert found[0].sentence.startswith(said) and "Ask for every class" in found[0].remedy


def test_balance_is_judged_by_its_test_where_there_is_no_interval() -> None:
    record = planted.scores()
    row = record["metrics"]["class_balance_distance"]
    row |= {"value": 0.25, "low": None, "high": None, "protocol": {"p_value": 1e-9}}
    found = [f for f in judge(record) if "lass shares" in f.sentence]
    assert [f.severity for f in found] == [WEAK] and "25 %" in found[0].sentence
    row |= {"value": 0.08, "protocol": {"p_value": 0.3}}
    assert judge(record)[0].sentence.startswith("Every figure")
    record["classes"]["scarce"] = ["frog"]
    assert "Samples show frog too seldom." in [f.sentence for f in judge(record)]


def test_a_probe_that_is_too_weak_says_nothing() -> None:
    record = planted.confused()
    record["classes"] |= {"usable": False, "note": "It is right for 40 % of real images."}
    record["classes"]["missing"] = ["cat"]
    said = [f for f in judge(record) if f.severity < GOOD]
    assert [f.severity for f in said] == [NOTE]
    assert said[0].sentence == (
        "Nothing can be said of classes. It is right for 40 % of real images."
    )


def test_the_weakest_classes_are_named() -> None:
    record = planted.scores()
    record["per_class"][3]["metrics"]["recall"] |= {"value": 0.2, "low": 0.1, "high": 0.3}
    record["per_class"][4]["metrics"]["recall"] |= {"value": 0.2, "low": 0.0, "high": 0.75}
    record["per_class"][5]["metrics"]["recall"] |= {"value": 0.1, "low": 0.0, "high": 0.2}
    record["per_class"][5]["mark"] = "Only 9 images."
    found = [f for f in judge(record) if "Weakest" in f.sentence]
    assert len(found) == 1 and found[0].sentence.startswith("Weakest classes: cat (recall 0.200")
    assert "deer" not in found[0].sentence and "dog" not in found[0].sentence


def test_old_records_are_judged_by_wide_margins_and_not_praised() -> None:
    lines = verdict_lines(planted.old_scores("val"))
    assert lines[0] == (
        "Weak: Samples show less variety than real images: coverage is 0.610 where real images "
        "reach 0.955."
    )
    assert any(line.startswith("Note: Precision is 0.710 where") for line in lines)
    assert not any(line.startswith("Good: Samples look") for line in lines)


@pytest.mark.parametrize(
    "record", [{}, {"metrics": None}, {"metrics": {"recall": {}}, "copying": 3}]
)
def test_a_record_of_nothing_has_no_verdict(record: dict[str, Any]) -> None:
    assert judge(record) == []


@given(
    value=st.floats(0.01, 1.5), real=st.floats(0.05, 1.0), error=st.floats(0.0, 0.5),
    name=st.sampled_from(["precision", "recall", "coverage", "fine_detail", "frechet_distance"]),
)  # fmt: skip
def test_what_the_interval_allows_is_never_called_weak_or_praised_beyond(
    value: float, real: float, error: float, name: str
) -> None:
    row = {"value": value, "real": real, "low": value - error, "high": value + error}
    found = judge({"metrics": {name: {**row, "n": [500, 500], "better": "higher"}}})
    assert found
    severity = found[0].severity
    if name == "fine_detail":
        real = 1.0  # it is relative to real images; what one draw of them has is no yardstick
    if value - error <= real <= value + error:
        assert severity != WEAK
    if value + error < 0.5 * real and name != "frechet_distance":
        assert severity == WEAK
    loss = value + error > 2.5 * real if name == "frechet_distance" else value - error < real / 2
    if loss:
        assert severity != GOOD


@given(error=st.floats(0.0, 0.5), doubt=st.floats(0.0, 0.5), value=st.floats(0.01, 1.0))
def test_chance_in_the_real_value_counts_too(error: float, doubt: float, value: float) -> None:
    row = {"value": value, "real": 0.9, "low": value - 1.96 * error, "high": value + 1.96 * error}
    both = math.hypot(error, doubt)
    found = judge({"metrics": {"precision": {**row, "n": [500, 500], "errors": {"real": doubt}}}})
    if value + 1.96 * both >= 0.9:
        assert all(finding.severity != WEAK for finding in found)
    elif value + 1.96 * both < 0.7:
        assert found[0].severity == WEAK


def test_labels_alone_tell_what_was_never_asked_for() -> None:
    labels = {"names": ["cat", "dog", "ox"], "samples": [60, 0, 40], "reference": [50, 40, 10]}
    (finding,) = [f for f in judge({"labels": labels}) if f.severity == WEAK]
    assert finding.sentence.startswith("No sample bears the label dog; 40 % of real images do.")
    few = {**labels, "samples": [5, 0, 4]}  # fewer than five dogs were to be expected
    assert not [f for f in judge({"labels": few}) if f.severity == WEAK]


def test_repeats_among_samples_are_counted() -> None:
    record = {"samples": 600, "copying": {"repeated": 580}}
    assert "20 different images in all" in judge(record)[0].sentence
    assert judge({"samples": 600, "copying": {"repeated": 1}}) == []


def test_copies_of_a_reference_are_not_called_copies_of_training_images() -> None:
    record = planted.scores()
    record["copying"] = {**record["copying"], "exact_duplicates": 4, "flagged": 4}
    told = judge({**record, "copying": {**record["copying"], "searched": "reference"}})[0].sentence
    assert "reference image" in told and "training image" not in told
    assert "training image" in judge(record)[0].sentence


@given(st.recursive(st.none() | st.floats() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "gap", "under", "reference", "names", "confusion", "missing"]), inner, max_size=3), max_leaves=8), st.sampled_from(["classes", "groups", "denoising", "copying", "per_class", "metrics"]))  # fmt: skip  # noqa: E501
def test_nothing_that_json_can_hold_stops_the_judgement(content: Any, key: str) -> None:
    judge({**planted.scores(), key: content})
