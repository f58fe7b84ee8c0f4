"""The whole way from images to scores, on the digits that scikit-learn carries."""

import json

import numpy as np
import pytest

from poise.errors import DataError, UsageError
from poise.evaluation.evaluate import score
from poise.evaluation.extractors.fixed import Pixels, RandomConv


@pytest.fixture(scope="module")
def digits():
    """Train, reference and novel digits, uint8 [N, 1, 8, 8]."""
    from sklearn.datasets import load_digits

    x = (load_digits().images * 15.9).round().astype(np.uint8)[:, None]
    x = x[np.random.default_rng(0).permutation(len(x))]
    return x[:1000], x[1000:1500], x[1500:]


def test_novel_real_images_score_like_real_ones(digits):
    train, reference, novel = digits
    result = score(novel, reference, train, extractor=Pixels())
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["features"] == {"name": "pixels", "digest": Pixels.digest, "dimensions": 64}
    assert list(result["metrics"]) == [
        *("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"),
        "nearest_train_distance",
    ]
    for name, metric in result["metrics"].items():
        assert metric["n"] == [len(novel), 500]
        tolerance = 0.01 if name == "kernel_distance" else 0.3 * metric["real"]
        assert metric["value"] == pytest.approx(metric["real"], abs=tolerance), name
    assert result["copying"]["flagged"] == 0
    assert result == score(novel, reference, train, extractor=Pixels())


def test_spoilt_samples_score_worse_in_the_stated_direction(digits):
    train, reference, novel = digits
    noise = np.random.default_rng(1).integers(0, 120, novel.shape)
    spoilt = np.clip(novel + noise, 0, 255).astype(np.uint8)
    metrics = score(spoilt, reference, train, extractor=RandomConv())["metrics"]
    for name in ("frechet_distance", "kernel_distance", "precision", "coverage"):
        sign = {"lower": 1, "higher": -1}[metrics[name]["better"]]
        assert sign * metrics[name]["value"] > sign * metrics[name]["real"], name
    assert metrics["nearest_train_distance"]["value"] > metrics["nearest_train_distance"]["real"]


def test_copies_are_named_and_mirrored_ones_on_request(digits):
    train, reference, novel = digits
    samples = novel.copy()
    samples[:40] = train[100:140]
    samples[40:80] = train[200:240, ..., ::-1]
    plain = score(samples, reference, train, extractor=Pixels())["copying"]
    mirrored = score(samples, reference, train, extractor=Pixels(), flips=True)["copying"]
    assert plain["exact_duplicates"] == 40 and mirrored["exact_duplicates"] == 80
    found = dict(zip(mirrored["flagged_indices"], mirrored["flagged_train_indices"], strict=True))
    assert all(found[i] == 100 + i for i in range(40))
    assert all(found[i] == 160 + i for i in range(40, 80))


def test_weak_figures_come_with_a_warning(digits):
    train, reference, novel = digits
    said = " ".join(score(novel[:30], reference[:60], train, extractor=Pixels())["warnings"])
    for sentence in (
        *("Only 30 samples", "Only 60 reference images", "30 samples for 64 feature dimensions"),
        "copy test needs",
    ):
        assert sentence in said
    said = score(novel[:200], reference, train[:150], extractor=Pixels())["warnings"]
    assert any("Only 150 training images for 200 samples" in s for s in said)
    leak = score(novel, train[:500], train, extractor=Pixels())
    assert any("training images too" in s for s in leak["warnings"])
    assert score(novel, reference, train, extractor=Pixels())["warnings"] == []


def test_bad_input_is_refused(digits):
    train, reference, novel = digits
    with pytest.raises(DataError, match="9 sample images"):
        score(novel[:9], reference, train, extractor=Pixels())
    with pytest.raises(DataError, match="reference images of shape"):
        score(novel, reference[..., :7], train, extractor=Pixels())
    with pytest.raises(DataError, match="training images of shape"):
        score(novel, reference, np.repeat(train, 3, axis=1), extractor=Pixels())
    with pytest.raises(DataError, match="float64"):
        score(novel / 2, reference, train, extractor=Pixels())
    with pytest.raises(UsageError, match="k = 10"):
        score(novel[:10], reference, train, extractor=Pixels(), k=10)
