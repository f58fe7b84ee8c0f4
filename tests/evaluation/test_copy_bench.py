"""The copy test on CopyBench: what is flagged is rarely novel, and copies are found."""

import numpy as np
import pytest
from copy_bench import (
    KINDS,
    altered,
    copy_report,
    false_and_found,
    mixture_images,
    plant,
    with_duplicates,
)
from sklearn.datasets import load_digits

from poise.evaluation.extractors.fixed import Pixels
from poise.evaluation.features import extract
from poise.evaluation.memorisation import Q, copies, surroundings

TRAIN, SAMPLES = 2000, 1000
FEW_SEEDS = 0.1  # two standard errors of a mean false discovery share of five sets


def _features(images):
    return extract(Pixels(), images)


def _both_views(train):
    return _features(np.concatenate([train, train[..., ::-1]]))


def _digits(seed):
    """1,797 digits in an order of the seed, uint8 [N, 1, 8, 8]."""
    images = (load_digits().images * 15.9).astype(np.uint8)[:, None]
    return images[np.random.default_rng(seed).permutation(len(images))]


def test_the_bench_itself():
    train, novel = mixture_images(300, 1), mixture_images(200, 2)
    assert train.shape == (300, 3, 12, 12) and not (train[:200] == novel).all((1, 2, 3)).any()
    assert ((train == 0) | (train == 255)).mean() < 0.01
    for kind in KINDS:
        planted = plant(train, novel, 0.1, kind, 3)
        copied = planted.source >= 0
        assert copied.sum() == 20
        np.testing.assert_array_equal(planted.images[~copied], novel[~copied])
        moved = np.abs(planted.images[copied].astype(float) - train[planted.source[copied]])
        assert (moved.max() == 0) == (kind == "exact")
    still = altered(np.full((1, 3, 12, 12), 77, np.uint8), "shift", np.random.default_rng(0))
    assert (still == 77).all()
    assert len(np.unique(with_duplicates(train, 0.2).reshape(300, -1), axis=0)) == 240


@pytest.mark.parametrize("held_out", [0, 250, 2000])
def test_one_per_cent_of_copies_is_found(held_out):
    false, found = [], []
    for seed, kind in enumerate(KINDS):
        images = mixture_images(TRAIN + held_out + SAMPLES, 10 * held_out + seed)
        train, val, novel = np.split(images, [TRAIN, TRAIN + held_out])
        flips = kind == "flip"
        planted = plant(train, novel, 0.01, kind, seed)
        report = copy_report(
            _both_views(train) if flips else _features(train),
            _features(val) if held_out else None,
            _features(planted.images),
            views=2 if flips else 1,
        )
        of_flagged, of_copies = false_and_found(report["flagged_indices"], planted.source)
        false.append(of_flagged)
        found.append(of_copies)
        assert report["detectable_from"] == 1
    assert np.mean(false) <= Q + FEW_SEEDS
    assert min(found) >= 0.9


def test_false_discoveries_and_false_alarms_are_held_over_many_seeds():
    false, alarms = [], []
    for seed in range(20):
        images = mixture_images(1600, 1000 + seed)[:, :1, ::2, ::2]
        train, val, novel = (_features(x) for x in np.split(images, [700, 900]))
        copied = novel.copy()
        copied[:7] = train[:7]
        for held_out in (val, None):
            alarms.append(copy_report(train, held_out, novel)["flagged"] > 0)
            flagged = np.array(copy_report(train, held_out, copied)["flagged_indices"])
            false.append((flagged >= 7).mean() if len(flagged) else 0)
            assert set(range(7)) <= set(flagged)
    assert np.mean(false) <= Q and np.mean(alarms) <= Q


@pytest.mark.parametrize("kind", ["exact", "jitter", "shift"])
def test_repeated_training_images_do_not_hide_copies(kind):
    images = mixture_images(TRAIN + SAMPLES, 5)
    train, novel = with_duplicates(images[:TRAIN], 0.1), images[TRAIN:]
    planted = plant(train, novel, 0.02, kind, 6)
    planted.images[:10] = altered(train[-10:], kind, np.random.default_rng(0))
    source = planted.source.copy()
    source[:10] = 0
    report = copy_report(_features(train), None, _features(planted.images))
    of_flagged, of_copies = false_and_found(report["flagged_indices"], source)
    assert of_flagged <= 0.2 and of_copies == 1
    assert report["calibration"]["left_out"] == TRAIN - 200


def test_symmetric_images_do_not_calibrate_by_their_own_mirror():
    images = mixture_images(1500, 7)[:, :, :, :6]
    images = np.concatenate([images, images[..., ::-1]], 3)
    images[:, :, 0, 0] += 3  # not quite symmetric
    train, novel = images[:1000], images[1000:]
    planted = plant(train, novel, 0.02, "jitter", 8)
    f = _features(planted.images)
    report = copies(surroundings(_both_views(train), None, f, views=2))
    of_flagged, of_copies = false_and_found(report["flagged_indices"], planted.source)
    assert of_flagged <= 0.2 and of_copies == 1


@pytest.mark.parametrize("kind", ["exact", "jitter", "flip"])
def test_copies_of_digits_are_found(kind):
    false, found = [], []
    for seed in range(5):
        train, val, novel = np.split(_digits(seed), [1000, 1250])
        planted = plant(train, novel, 0.02, kind, seed)
        flips = kind == "flip"
        report = copy_report(
            _both_views(train) if flips else _features(train),
            _features(val),
            _features(planted.images),
            views=2 if flips else 1,
        )
        of_flagged, of_copies = false_and_found(report["flagged_indices"], planted.source)
        false.append(of_flagged)
        found.append(of_copies)
    assert np.mean(false) <= Q + FEW_SEEDS and np.mean(found) >= 0.9
