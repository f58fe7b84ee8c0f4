"""Moments against numpy, in any order and in any parts; files of moments, also hostile ones."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.errors import ArtifactError, DataError
from poise.evaluation.moments import Moments
from poise.evaluation.reference import Reference, write_reference


def _features(n: int = 300, D: int = 6, offset: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, D)) @ rng.normal(size=(D, D)) + offset


def _assert_close(a: Moments, b: Moments, tolerance: float = 1e-12) -> None:
    assert a.count == b.count
    np.testing.assert_allclose(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    scale = np.abs(b.covariance).max()
    np.testing.assert_allclose(a.covariance, b.covariance, atol=tolerance * scale)


def test_they_equal_numpy_despite_a_large_offset():
    x = _features()
    found = Moments.of(x + 1e6)
    np.testing.assert_allclose(found.mean, (x + 1e6).mean(0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), atol=1e-8)
    assert (found.covariance == found.covariance.T).all()


@settings(max_examples=60, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 300), max_size=12),
    order=st.randoms(use_true_random=False),
    offset=st.sampled_from([0.0, 300.0, -1e4]),
)
def test_no_batch_size_and_no_order_matters(cuts, order, offset):
    x = _features(offset=offset)
    whole = Moments.of(x)
    parts = np.split(x, sorted(cuts))  # some of them empty
    order.shuffle(parts)
    tolerance = 1e-12 * (1 + abs(offset))  # the rounding of the features themselves
    _assert_close(Moments.streamed(iter(parts)), whole, tolerance)
    merged = None
    for part in (p for p in parts if len(p)):
        one = Moments.streamed([part])
        merged = one if merged is None else one.merged(merged)
    _assert_close(merged, whole, tolerance)


def test_sorted_batches_far_from_each_other_cost_no_digits():
    x = np.sort(_features(400, 1) * 1e3, axis=0)
    _assert_close(Moments.streamed(np.array_split(x, 9)), Moments.of(x[::-1]))


def test_float32_batches_are_summed_in_float64():
    x = (_features(500) + 300).astype(np.float32)
    _assert_close(Moments.streamed(np.array_split(x, 7)), Moments.of(x.astype(np.float64)), 1e-11)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "no features"),
        ([np.zeros((0, 3))], "no features"),
        ([np.zeros((2, 3)), np.zeros((2, 4))], r"shape \(2, 4\)"),
        ([np.zeros(3)], "shape"),
        ([np.full((2, 3), np.inf)], "not finite"),
    ],
)
def test_bad_batches_are_named(batches, message):
    with pytest.raises(DataError, match=message):
        Moments.streamed(batches)


def test_what_cannot_be_merged_is_refused():
    a = Moments.of(_features())
    with pytest.raises(DataError, match="unknown number"):
        a.merged(Moments(None, a.mean, a.covariance))
    with pytest.raises(DataError, match="4 dimensions"):
        a.merged(Moments.of(_features(D=4)))


@pytest.mark.parametrize("known", [True, False])
def test_a_file_gives_back_what_was_written(tmp_path, known):
    a = Moments.of(_features())
    a = a if known else Moments(None, a.mean, a.covariance)
    write_reference(tmp_path / "m.npz", Reference(a, None, {}))
    b = Moments.read(tmp_path / "m.npz")
    assert b.count == a.count
    assert (b.mean == a.mean).all() and (b.covariance == a.covariance).all()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, ">f8"])
def test_files_of_other_tools_are_read(tmp_path, save, dtype):
    x = _features()
    sigma = np.asfortranarray(np.cov(x, rowvar=False).astype(dtype))
    save(tmp_path / "other.npz", mu=x.mean(0).astype(dtype), sigma=sigma, extra=np.zeros(3))
    found = Moments.read(tmp_path / "other.npz")
    assert found.count is None
    assert found.mean.dtype == found.covariance.dtype == np.float64
    np.testing.assert_allclose(found.covariance, np.cov(x, rowvar=False), rtol=1e-5, atol=1e-5)


def _npz(path, **arrays):
    np.savez(path, **arrays)


def _promising(path, shape: str, version: bytes = b"\x01\x00", dtype: str = "<f8"):
    """An archive whose sigma promises more than there is."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    mu = io.BytesIO()
    np.save(mu, np.zeros(3))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("mu.npy", mu.getvalue())
        sigma = b"\x93NUMPY" + version + len(header).to_bytes(2, "little") + header
        archive.writestr("sigma.npy", sigma)


_I, _Z = np.eye(3), np.zeros(3)


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (lambda p: _npz(p, mu=_Z), "sigma"),
        (lambda p: _npz(p, sigma=_I), "mu"),
        (lambda p: _npz(p, mu=_Z, sigma=np.eye(4)), "shape"),
        (lambda p: _npz(p, mu=_I, sigma=_I), "mu is"),
        (lambda p: _npz(p, mu=_Z, sigma=_Z), "sigma is"),
        (lambda p: _npz(p, mu=_Z, sigma=np.full((3, 3), np.nan)), "not finite"),
        (lambda p: _npz(p, mu=_Z + np.inf, sigma=_I), "not finite"),
        (lambda p: _npz(p, mu=_Z, sigma=np.triu(np.ones((3, 3)))), "not symmetric"),
        (lambda p: _npz(p, mu=_Z, sigma=-_I), "no covariance"),
        (lambda p: _npz(p, mu=_Z, sigma=2 - _I), "no covariance"),
        (lambda p: _npz(p, mu=_Z, sigma=_I, count=1), "count is 1"),
        (lambda p: _npz(p, mu=_Z, sigma=_I, count=np.arange(3)), "count is"),
        (lambda p: _npz(p, mu=_Z.astype(complex), sigma=_I), "complex"),
        (lambda p: _npz(p, mu=np.array([{}] * 3, object), sigma=_I), "object"),
        (lambda p: _promising(p, "(1000000, 1000000)"), "more than"),
        (lambda p: _promising(p, "(8000, 8000)"), "0 bytes of 512,000,000"),
        (lambda p: _promising(p, "(-1, 3)"), "more than"),
        (lambda p: _promising(p, "(3, 3)", version=b"\x03\x00"), "version"),
        (lambda p: _promising(p, "(3, 3)", dtype="|O"), "object"),
        (lambda p: _promising(p, "__import__('os').abort()"), "malformed"),
        (lambda p: p.write_bytes(b"no archive"), "zip"),
        (lambda p: None, "No such file"),
        (
            lambda p: np.savez_compressed(p, mu=np.zeros(1500), sigma=np.zeros((1500, 1500))),
            "bomb",
        ),
    ],
)
def test_what_holds_no_moments_is_refused(tmp_path, write, why):
    path = tmp_path / "m.npz"
    write(path)
    with pytest.raises(ArtifactError, match=why):
        Moments.read(path)
