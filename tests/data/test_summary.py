"""The audit finds what was planted and says nothing where nothing was."""

import json
from dataclasses import replace

import numpy as np
from pictures import dataset_of, distinct

from poise.data.layout import Unreadable
from poise.data.splits import split
from poise.data.summary import summarize

SHARES = (0.8, 0.1, 0.1)


def test_clean_data_has_a_clean_verdict() -> None:
    data = dataset_of(distinct(list(range(1, 401))), [n % 2 for n in range(400)])
    found = summarize(data, split(data, SHARES, 0))
    assert found["warnings"] == [] and found["images"] == 400
    assert found["verdict"][0].startswith("Nothing stands against") and len(found["verdict"]) == 2
    assert found["classes"] == {"c0": 200, "c1": 200}
    assert sum(sum(part.values()) for part in found["split_classes"].values()) == 400
    assert json.loads(json.dumps(found)) == found


def test_planted_faults_are_all_found() -> None:
    keys = [*range(1, 141), 7, 7, 8, 0, 0]
    labels = [*([0] * 130), *([1] * 10), 0, 0, 1, 0, 0]  # key 8 lies in two classes
    data = replace(
        dataset_of(distinct(keys), labels),
        unreadable=(Unreadable("bad.png", "the file is empty"),),
        ignored=("a.txt", "b.txt"),
        warnings=("class 'rare' has 1 image: it trains.", "3 images are smaller than 4x4."),
    )
    found = summarize(data, split(data, SHARES, 0))
    assert [set(g["paths"]) for g in found["duplicates"]] == [
        {"00007.png", "00142.png"},
        {"00006.png", "00140.png", "00141.png"},
        {"00143.png", "00144.png"},
    ]
    assert [g["cross_class"] for g in found["duplicates"]] == [True, False, False]
    assert found["duplicate_groups"] == 3 and found["duplicate_images"] == 4
    assert found["brightness"]["constant_images"] == 2
    text = "\n".join(found["warnings"])
    expected = (
        "bad.png",
        "two classes",
        "only 145 images",
        "2 of 145 images are one flat",
        "4 of 145 images are exact copies",
        "92% of the images are of class 'c0'",
        "'c1' (11)",
        "Class 'rare' has 1 image",
        "smaller than",
        "2 files ignored",
    )
    for part in expected:
        assert part in text, part
    assert "bad.png" in found["warnings"][0] and "ignored" in found["warnings"][-1]
    assert 1 <= len(found["verdict"]) <= 5 and "bad.png" in found["verdict"][0]
    assert found["unreadable"] == [{"path": "bad.png", "reason": "the file is empty"}]


def test_imbalance_without_dominance() -> None:
    labels = [0] * 300 + [1] * 50
    data = dataset_of(distinct(list(range(1, 351))), labels)
    text = "\n".join(summarize(data, split(data, SHARES, 0))["warnings"])
    assert "unequal: 'c0' has 300 images, 'c1' 50 (6 times fewer)" in text


def test_long_lists_are_cut_and_counted() -> None:
    keys = [*range(1, 251), *range(1, 251)]
    data = dataset_of(distinct(keys))
    found = summarize(data, split(data, SHARES, 0))
    assert len(found["duplicates"]) == 200 and found["duplicate_groups"] == 250


def test_brightness_is_the_mean_of_the_bytes() -> None:
    images = np.random.default_rng(0).integers(0, 256, (300, 3, 8, 8), np.uint8)
    data = dataset_of(images)
    found = summarize(data, split(data, SHARES, 0))["brightness"]
    assert abs(found["mean"] - images.mean()) < 1e-3 and abs(found["std"] - images.std()) < 1e-3
