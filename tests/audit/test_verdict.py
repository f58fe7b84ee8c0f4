"""Verdicts of planted facts: what is said, in which order, with which command."""

from typing import Any

import pytest

from poise.audit.finding import NOTE, SERIOUS
from poise.audit.verdict import findings, verdict


def facts(**changes: Any) -> dict[str, Any]:
    """A good set of 1,000 images, changed."""
    good = {
        "source": "cats",
        "images": 1000,
        "readable": 1000,
        "resolution": 64,
        "files": [],
        "problem_counts": {},
        "duplicates": [],
        "classes": {"cat": 500, "dog": 500},
        "labels": {"tiny": [], "suspects": [], "suspect_count": 0},
        "captions": None,
        "diversity": {"images_used": 1000, "vendi": 40.0, "classes": {}},
        "target": None,
        "warnings": [],
        "ignored": [],
    }
    return good | changes


def group(kind: str, *paths: str, cross_class: bool = False, cross_split: bool = False) -> Any:
    return {"kind": kind, "paths": paths, "cross_class": cross_class, "cross_split": cross_split}


LEAK = group("bytes", "train/1.png", "test/2.png", cross_split=True)
CONFLICT = group("pixels", "cat/1.png", "dog/2.png", cross_class=True)


def test_a_good_set_is_called_good_with_the_command_to_train() -> None:
    lines = verdict(facts())
    assert lines[0] == (
        "Nothing stands against training on these images. Train: `poise train cats`"
    )
    assert "1,000 images in 2 classes" in lines[1]
    assert len(lines) == 2
    assert max(f["severity"] for f in findings(facts())) == 0


def test_a_set_that_is_95_percent_cats_is_called_so_first() -> None:
    everything = facts(
        classes={"cat": 950, "dog": 35, "owl": 15},
        duplicates=[LEAK, CONFLICT, group("near", "a", "b")],
        labels={"tiny": ["owl"], "suspects": []},
        images=1400,  # 400 are broken: many, and not most
        problem_counts={"truncated": 400, "blurred": 700},
    )
    lines = verdict(everything)
    assert lines[0] == (
        "95% of the images are 'cat' (950 of 1,000): the model will draw little else, and the "
        "other classes come out badly. Mend it: `poise prepare cats OUT --balance sqrt`"
    )
    assert len(lines) == 5
    assert findings(everything)[0]["severity"] == 3


def test_only_a_set_that_is_mostly_unreadable_is_worse() -> None:
    lines = verdict(
        facts(images=3000, classes={"cat": 950, "dog": 50}, problem_counts={"truncated": 2000})
    )
    assert lines[0].startswith("2,000 of 3,000 files cannot be trained on (2,000 truncated)")
    assert lines[0].endswith("Mend it: `poise prepare cats OUT --drop broken`")
    assert lines[1].startswith("95% of the images are 'cat'")


def test_the_share_is_never_rounded_to_all() -> None:
    line = verdict(facts(classes={"cat": 999, "dog": 1}))[0]
    assert line.startswith("More than 99% of the images are 'cat' (999 of 1,000)")


@pytest.mark.parametrize(
    ("classes", "severity"),
    [
        ({"a": 90, "b": 10}, 3),
        ({"a": 80, "b": 20}, 2),
        ({"a": 60, "b": 30, "c": 10}, 2),
        ({"a": 50, "b": 30, "c": 20}, 0),
        ({"a": 1000}, 0),
    ],
)
def test_how_grave_imbalance_is(classes: dict[str, int], severity: int) -> None:
    found = findings(facts(classes=classes))
    assert found[0]["severity"] == severity
    if severity:
        assert found[0]["command"] == "poise prepare cats OUT --balance sqrt"


def test_broken_files_are_counted_by_kind_with_an_example() -> None:
    files = [
        {"path": "fine.png", "problems": [{"kind": "alpha", "detail": ""}]},
        {"path": "half.jpg", "problems": [{"kind": "truncated", "detail": ""}]},
    ]
    counts = {"alpha": 1, "truncated": 7, "zero-byte": 5}
    line = verdict(facts(images=1012, files=files, problem_counts=counts))[0]
    assert line == (
        "12 of 1,012 files cannot be trained on (7 truncated, 5 zero-byte), such as half.jpg. "
        "Mend it: `poise prepare cats OUT --drop broken`"
    )


def test_every_line_has_a_command_and_odd_images_can_be_dropped_by_kind() -> None:
    lines = verdict(facts(problem_counts={"blurred": 3}, duplicates=[CONFLICT], soft=0.9))
    assert len(lines) == 5  # the last one sums up
    assert all("`poise " in line for line in lines[:4])
    assert any(line.endswith("--drop broken,exact,blurred`") for line in lines)
    assert any("softer" in line and "--resolution" in line for line in lines)


def test_nothing_readable_and_nothing_at_all() -> None:
    empty = facts(images=4, readable=0, classes={}, problem_counts={"truncated": 4}, diversity={})
    assert verdict(empty)[0].startswith("Not one file can be read: 4 of 4 files")
    assert verdict(facts(images=0, readable=0, classes={}, diversity={})) == [
        "There is no image here. Look again afterwards: `poise audit cats`"
    ]


def test_leaks_and_conflicts_are_grave_and_counted_once_though_groups_are_nested() -> None:
    wider = group("near", "train/1.png", "test/2.png", "test/3.png", cross_split=True)
    lines = verdict(facts(duplicates=[LEAK, wider, CONFLICT]))
    assert lines[0].startswith("1 image lies in two or more classes, such as cat/1.png and dog/2")
    assert "Mend it" not in lines[0]  # which label is right, only a person can say
    assert lines[1].startswith("1 picture is in more than one split")
    assert lines[1].endswith("Mend it: `poise prepare cats OUT`")


def test_near_copies_in_two_classes_are_weaker_than_equal_ones() -> None:
    near = group("near", "a.png", "b.png", cross_class=True)
    found = findings(facts(duplicates=[near]))
    assert found[0]["severity"] == 2 and "near copy in another class" in found[0]["sentence"]
    likely = findings(facts(duplicates=[group("feature", "a", "b", cross_split=True)]))
    assert likely[0]["severity"] == 1


def test_copies_beyond_the_first_are_counted() -> None:
    rows = [
        group("bytes", "a", "b"),
        group("pixels", "a", "b", "c"),
        group("near", "a", "b", "c", "d"),
    ]
    found = findings(facts(duplicates=rows))
    exact = next(f for f in found if f["command"].endswith("--drop exact"))
    near = next(f for f in found if f["command"].endswith("--drop exact,near"))
    assert exact["sentence"].startswith("2 of 1,000 images are exact copies of others")
    assert near["sentence"].startswith("1 of 1,000 images is nearly a copy of another")
    many = findings(facts(duplicates=[group("bytes", *map(str, range(30)))]))
    assert many[0]["severity"] == 2


def test_few_images_tiny_classes_and_suspects() -> None:
    assert findings(facts(readable=50, images=50))[0]["severity"] == 3
    tiny = findings(facts(labels={"tiny": ["owl"], "suspects": []}))[0]
    assert tiny["sentence"].startswith("1 class has fewer than 20 images: 'owl'")
    row = {"path": "x.png", "label": "cat", "neighbours": "dog", "share": 1.0}
    suspect = findings(facts(labels={"tiny": [], "suspects": [row], "suspect_count": 40}))[0]
    assert suspect["sentence"].startswith("40 images look like another class")
    assert "x.png (labelled 'cat', looks like 'dog')" in suspect["sentence"]


def test_odd_images_are_serious_only_when_many() -> None:
    assert findings(facts(problem_counts={"blurred": 200}))[0]["severity"] == 2
    few = findings(facts(problem_counts={"blurred": 1, "alpha": 3}))
    assert few[0]["sentence"].startswith("1 of 1,000 images is blurred")
    assert "3 alpha" in few[1]["sentence"]
    assert [f["severity"] for f in few] == [1, 1, 0]
    assert verdict(facts(problem_counts={"blurred": 1}))[0].startswith("Nothing stands against")


def test_sameness_of_all_and_of_one_class() -> None:
    alike = {"images_used": 1000, "vendi": 1.3, "classes": {}}
    assert "nearly all alike" in findings(facts(diversity=alike))[0]["sentence"]
    scores = {name: {"vendi": v, "n": 50} for name, v in {"a": 20.0, "b": 21.0, "c": 3.0}.items()}
    dull = findings(facts(diversity={"images_used": 1000, "vendi": 30.0, "classes": scores}))[0]
    assert "much alike" in dull["sentence"] and "'c'" in dull["sentence"]


def test_captions() -> None:
    captions = {
        "captioned": 990,
        "empty": ["a.png"],
        "empty_count": 10,
        "repeated": [{"caption": "a cat", "count": 800}],
        "distinct": 40,
    }
    found = findings(facts(captions=captions))
    assert found[0]["sentence"] == ("990 captions say 40 things: 'a cat' stands beside 800 images.")
    assert found[1]["sentence"].startswith("10 of 1,000 images have no caption")


def test_the_target_is_named_with_its_command() -> None:
    part = {"name": "dog", "have": 0.1, "want": 0.5, "missing": 8, "mend": "Collect 8 images."}
    target = {"kind": "shares", "path": "my mix.toml", "sentence": "Dogs lack.", "parts": [part]}
    found = findings(facts(target=target))[0]
    assert found["severity"] == 2
    assert found["command"] == ("poise prepare cats OUT --balance target --target 'my mix.toml'")
    part["mend"] = "As wanted."
    assert findings(facts(target=target))[0]["severity"] == 0


def test_sources_with_spaces_are_quoted_and_the_lines_are_one_to_five() -> None:
    bad = facts(source="my cats", classes={"cat": 950, "dog": 50})
    assert "`poise prepare 'my cats' OUT --balance sqrt`" in verdict(bad)[0]
    for duplicates in ([], [LEAK], [LEAK, CONFLICT, group("near", "p", "q")]):
        for counts in ({}, {"blurred": 400, "flat": 200, "too-dark": 300, "animated": 1}):
            lines = verdict(facts(duplicates=duplicates, problem_counts=counts))
            assert 1 <= len(lines) <= 5
            assert all(line.rstrip("`")[-1] not in " ," for line in lines)


def test_findings_come_worst_first() -> None:
    mixed = facts(
        classes={"cat": 950, "dog": 50},
        duplicates=[LEAK],
        problem_counts={"blurred": 1, "too-dark": 500},
    )
    severities = [f["severity"] for f in findings(mixed)]
    assert severities == sorted(severities, reverse=True)
    assert set(severities) == {0, 1, 2, 3}


def test_images_that_are_left_out_are_serious_when_many() -> None:
    text = "400 images are not listed in metadata.jsonl and left out, such as 7.png."
    lost = facts(warnings=[text], ignored=[f"{n}.png" for n in range(400)])
    assert findings(lost)[0] == {"severity": SERIOUS, "sentence": text, "command": ""}
    few = facts(warnings=[text], ignored=["7.png"])
    assert findings(few)[0]["severity"] == NOTE


def test_pictures_of_a_kind_that_is_not_read_are_named() -> None:
    found = findings(facts(ignored=[*(f"{n}.HEIC" for n in range(300)), "a.avif", "notes.txt"]))
    assert found[0]["severity"] == SERIOUS
    assert found[0]["sentence"].startswith(
        "301 pictures are of a kind that is not read (avif, heic), such as 0.HEIC:"
    )
    assert any(f["sentence"].startswith("1 other file was ignored") for f in found)


def test_a_class_without_an_image_is_no_imbalance() -> None:
    found = findings(facts(classes={"cat": 1000, "dog": 0}))
    assert found[0]["sentence"] == "1 class has no image that can be read: 'dog'."
    assert not any("will draw little else" in f["sentence"] for f in found)


def test_missing_values_can_be_masked() -> None:
    counts = {"missing-values": 3}
    assert findings(facts(readable=997, problem_counts=counts))[0]["command"] == (
        "poise prepare cats OUT --missing mask"
    )


def test_names_cannot_steer_the_terminal() -> None:
    files = [{"path": "a\x1b[31m\n\udcff.png", "problems": [{"kind": "truncated", "detail": ""}]}]
    told = verdict(facts(readable=999, files=files, problem_counts={"truncated": 1}))[0]
    assert "a\\u001b[31m\\u000a\\udcff.png" in told and told.isprintable()
