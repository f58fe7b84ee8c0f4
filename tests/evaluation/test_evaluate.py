"""The whole way from images to scores, on the digits that scikit-learn carries."""

import json
from pathlib import Path

import numpy as np
import pytest

from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.evaluation.metric import METRICS
from poise.scoring.judge import Real, Samples, judge
from poise.settings import EvaluationConfig

PROTOCOL = {"sampler": None, "seed": 0}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POISE_CACHE", str(tmp_path_factory.getbasetemp() / "features"))


@pytest.fixture(scope="module")
def digits():
    """Train, reference and novel digits, uint8 [N, 1, 8, 8], with their classes."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = (raw.images * 15.9).round().astype(np.uint8)[:, None], raw.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return [(x[part], y[part]) for part in (slice(0, 900), slice(900, 1400), slice(1400, None))]


def real_of(train, reference, **more) -> Real:
    facts = {"names": tuple("0123456789"), "split": "val", "data": "d0", "mirrored": False}
    return Real(reference[0], reference[1], *(train or (None, None)), **(facts | more))


def scored(samples, real: Real, labels=None, **settings):
    settings = {"features": "pixels", "encoder_images": 0} | settings
    config = EvaluationConfig.model_validate(settings)
    return judge(Samples(samples, labels), real, config, PROTOCOL, Screen(quiet=True))


def test_novel_real_images_score_like_real_ones(digits):
    train, reference, novel = digits
    result = scored(novel[0], real_of(train, reference)).record
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["features"]["name"] == "pixels" and result["features"]["dimensions"] == 64
    metrics = result["metrics"]
    assert list(metrics) == [name for name in METRICS if name in metrics]
    for name, metric in metrics.items():
        assert metric["n"][0] == len(novel[0]), name
        assert metric["n"][1] in (397, 500, 900), name  # vendi; reference; training images
        assert metric["protocol"]["features_digest"] == result["features"]["digest"]
        if metric["low"] is not None and not metric["mark"]:
            assert metric["low"] <= metric["value"] <= metric["high"], name
        wide = {"c_t": 3.5, "fld": 100, "fld_gap": 100, "groups_missed": 1}
        if metric["real"] is not None:
            tolerance = wide.get(name, max(0.3 * abs(metric["real"]), 0.06))
            assert metric["value"] == pytest.approx(metric["real"], abs=tolerance), name
    assert result["copying"]["flagged"] == 0
    assert result == scored(novel[0], real_of(train, reference)).record


def test_every_figure_says_where_it_comes_from(digits):
    train, reference, novel = digits
    for name, metric in scored(novel[0], real_of(train, reference)).record["metrics"].items():
        for key in ("features", "features_digest", "resizer", "resolution", "reference", "data"):
            assert metric["protocol"][key] is not None, (name, key)
        assert {"sampler", "seed"} <= metric["protocol"].keys()
        assert metric["value"] is not None or metric["mark"], name
        known = metric["low"] is not None or metric["real"] is not None
        assert known, f"{name} has neither an interval nor a real value"


def test_spoilt_samples_score_worse_in_the_stated_direction(digits):
    train, reference, novel = digits
    noise = np.random.default_rng(1).integers(0, 120, novel[0].shape)
    spoilt = np.clip(novel[0] + noise, 0, 255).astype(np.uint8)
    metrics = scored(spoilt, real_of(train, reference), features="random_conv").record["metrics"]
    for name in ("frechet_distance", "kernel_distance", "cmmd", "precision", "coverage"):
        sign = {"lower": 1, "higher": -1}[metrics[name]["better"]]
        assert sign * metrics[name]["value"] > sign * metrics[name]["real"], name
    assert metrics["nearest_train_distance"]["value"] > metrics["nearest_train_distance"]["real"]


def test_copies_are_named_and_mirrored_ones_on_request(digits):
    train, reference, novel = digits
    samples = novel[0].copy()
    samples[:40] = train[0][100:140]
    samples[40:80] = train[0][200:240, ..., ::-1]
    plain = scored(samples, real_of(train, reference)).record["copying"]
    both = scored(samples, real_of(train, reference, mirrored=True)).record["copying"]
    assert plain["exact_duplicates"] == 40 and both["exact_duplicates"] == 80
    found = dict(zip(both["flagged_indices"], both["flagged_train_indices"], strict=True))
    assert all(found[i] == 100 + i for i in range(40))
    assert all(found[i] == 160 + i for i in range(40, 80))


def test_without_training_images_the_reference_is_searched(digits):
    _, reference, novel = digits
    samples = novel[0].copy()
    samples[:30] = reference[0][50:80]
    record = scored(samples, real_of(None, reference)).record
    assert record["copying"]["exact_duplicates"] == 30
    assert set(range(30)) <= set(record["copying"]["flagged_indices"])
    assert any("No training images are known" in w for w in record["warnings"])
    real = record["metrics"]["frechet_distance"]
    assert real["protocol"]["real_n"] == [221, 279] and real["real"] > 0
    assert real["protocol"]["real_scaled"]  # to the 397 and 500 of the samples


def test_a_probe_names_what_is_missing(digits):
    train, reference, novel = digits
    kept = ~np.isin(novel[1], (3, 7))
    real = real_of(train, reference)
    record = scored(novel[0][kept], real, encoder_images=12_000).record
    assert set(record["classes"]["missing"]) == {"3", "7"}
    assert "class_agreement" not in record["metrics"] and record["per_class"] is None
    balance = record["metrics"]["class_balance_distance"]
    assert balance["value"] > 2 * balance["real"] and balance["protocol"]["p_value"] < 1e-3
    assert record["metrics"]["inception_score"]["value"] > 2


def test_a_probe_names_what_is_not_shown(digits):
    train, reference, novel = digits
    asked = np.where(novel[1] == 4, 9, novel[1])  # a model that shows 4 where 9 was asked for
    record = scored(novel[0], real_of(train, reference), asked, encoder_images=12_000).record
    agreement = record["metrics"]["class_agreement"]
    assert agreement["high"] < agreement["real"]
    share = float((novel[1] != 4).mean())
    assert agreement["value"] == pytest.approx(share * agreement["real"], abs=0.04)
    assert [row["name"] for row in record["per_class"]] == list("0123456789")
    assert all(row["mark"] for row in record["per_class"])  # some 40 of each: too few


def test_weak_figures_come_with_a_warning(digits):
    train, reference, novel = digits
    few = (reference[0][:60], reference[1][:60])
    record = scored(novel[0][:30], real_of(train, few)).record
    said = " ".join(record["warnings"])
    for sentence in ("Only 30 samples", "Only 60 reference images"):
        assert sentence in said
    assert all(record["metrics"][name]["mark"] for name in ("frechet_distance", "precision"))
    small = (train[0][:150], train[1][:150])
    said = scored(novel[0][:200], real_of(small, reference)).record["warnings"]
    assert any("Only 150 training images for 200 samples" in s for s in said)
    leak = scored(novel[0], real_of((train[0][:500], train[1][:500]), train)).record
    assert any("training images too" in s for s in leak["warnings"])
    assert scored(novel[0], real_of(train, reference)).record["warnings"] == []


def test_bad_input_is_refused(digits):
    train, reference, novel = digits
    with pytest.raises(DataError, match="9 samples images"):
        scored(novel[0][:9], real_of(train, reference))
    with pytest.raises(DataError, match="reference images of shape"):
        scored(novel[0], real_of(train, (reference[0][..., :7], reference[1])))
    with pytest.raises(DataError, match="training images of shape"):
        scored(novel[0], real_of((np.repeat(train[0], 3, axis=1), train[1]), reference))
    with pytest.raises(DataError, match="float64"):
        scored(novel[0] / 2, real_of(train, reference))
    with pytest.raises(UsageError, match="k = 10"):
        scored(novel[0][:10], real_of(train, reference), neighbours=10)


def test_features_are_computed_once(digits, monkeypatch, tmp_path: Path):
    monkeypatch.setenv("POISE_CACHE", str(tmp_path))
    train, reference, novel = digits
    first = scored(novel[0], real_of(train, reference), features="random_conv").record
    files = sorted((tmp_path / "features").iterdir())
    assert len(files) == 3
    from poise.evaluation.extractors.fixed import RandomConv

    monkeypatch.setattr(RandomConv, "__call__", None)  # nothing is left to compute
    again = scored(novel[0], real_of(train, reference), features="random_conv").record
    assert again == first
    files[0].write_bytes(b"damaged")
    monkeypatch.undo()
    monkeypatch.setenv("POISE_CACHE", str(tmp_path))
    assert scored(novel[0], real_of(train, reference), features="random_conv").record == first
