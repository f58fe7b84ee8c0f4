"""The hash of a turned picture is known without turning it; the net of candidates has no holes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from poise.audit.copies import candidates
from poise.audit.copies.candidates import Pairs, close_pairs, resemblance
from poise.audit.copies.hashing import ORIENTATIONS, hash_thumbs, turned

Pixels = NDArray[np.uint8]


def soft_noise(seed: int, count: int) -> Pixels:
    """Thumbnails [N, 32, 32, 3] of random blobs."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3))
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_codes_of_all_orientations_come_from_one_transform(seed: int) -> None:
    fine = np.random.default_rng(seed).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    thumbs = np.concatenate([fine, soft_noise(seed, 3)])
    codes = hash_thumbs(thumbs).codes
    for k in range(ORIENTATIONS):
        assert np.array_equal(codes[:, k], hash_thumbs(turned(thumbs, k)).codes[:, 0])


def test_symmetric_pictures_hash_alike_in_the_orientations_that_do_not_change_them() -> None:
    half = soft_noise(1, 4)
    half[:, :, 16:] = half[:, :, 15::-1]
    codes = hash_thumbs(half).codes
    assert np.array_equal(codes[:, 0], codes[:, 1]) and not np.array_equal(codes[:, 0], codes[:, 2])


def test_brightness_and_contrast_hardly_touch_the_hash() -> None:
    thumbs = soft_noise(2, 50)
    dimmed = (thumbs * 0.6 + 20).astype(np.uint8)
    apart = np.bitwise_count(hash_thumbs(thumbs).codes[:, 0] ^ hash_thumbs(dimmed).codes[:, 0])
    assert apart.max() <= 4


def test_flat_pictures_and_gradients_are_not_hashable() -> None:
    x = np.arange(32)
    flat = np.full((32, 32), 90)
    ramp = np.broadcast_to(20 + 6 * x, (32, 32))
    bowl = 30 + ((x[:, None] - 16) ** 2 + (x - 16) ** 2) // 4
    noisy = flat + np.random.default_rng(0).integers(-1, 2, (32, 32))
    poor = np.stack([flat, ramp, bowl, noisy])[..., None].repeat(3, axis=3).astype(np.uint8)
    assert not hash_thumbs(poor).hashable.any()
    assert hash_thumbs(soft_noise(3, 5)).hashable.all()


def test_rows_are_hashed_as_if_alone() -> None:
    thumbs = soft_noise(4, 20)
    some = hash_thumbs(thumbs, np.array([3, 17, 5]))
    assert np.array_equal(some.codes, hash_thumbs(thumbs).codes[[3, 17, 5]])


def as_set(pairs: list[Pairs]) -> set[tuple[int, int, int]]:
    joined = Pairs.joined(pairs)
    rows = (joined.first.tolist(), joined.second.tolist(), joined.orientation.tolist())
    return set(zip(*rows, strict=True))


@pytest.mark.parametrize("reach", [0, 7, 11])
def test_bands_and_blocks_find_what_a_plain_search_finds(
    reach: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = np.random.default_rng(reach)
    base = random.integers(0, 2**63, (40, 8)).astype(np.uint64)
    flips = [np.uint64(sum(1 << int(b) for b in random.choice(64, n % 15))) for n in range(40)]
    codes = np.concatenate([base, base[random.permutation(40)] ^ np.array(flips)[:, None]])
    wanted = {
        (i, j, k)
        for i in range(80)
        for j in range(i + 1, 80)
        for k in range(8)
        if (int(codes[i, k]) ^ int(codes[j, 0])).bit_count() <= reach
    }
    assert as_set(list(close_pairs(codes, reach))) == wanted
    monkeypatch.setattr(candidates, "_BRUTE", 10)
    monkeypatch.setattr(candidates, "_EXPAND", 3)
    told: list[tuple[int, int]] = []
    found = as_set(list(close_pairs(codes, reach, lambda *at: told.append(at))))
    assert found == wanted and told[-1][0] == told[-1][1]


def test_resemblance_is_one_for_the_same_picture_turned() -> None:
    thumbs = soft_noise(5, 8)
    both = hash_thumbs(np.concatenate([thumbs, turned(thumbs, 6)]))
    rows = np.arange(8)
    right = resemblance(both, Pairs(rows, rows + 8, np.full(8, 6)))
    wrong = resemblance(both, Pairs(rows, rows + 8, np.full(8, 0)))
    assert right.min() > 0.9999 and wrong.max() < 0.7
