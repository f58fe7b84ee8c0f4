"""Arrays of any numbers and channels against the mapping written out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pictures import noise

from poise.data import arrays
from poise.data.arrays import Mapping, fit_array, mapping_of
from poise.data.decode import fit
from poise.data.sources import open_source
from poise.errors import DataError


def test_npz(tmp_path: Path) -> None:
    colour = np.stack([noise(n) for n in range(4)])
    for images, labels in (("arr_0", "arr_1"), ("images", "labels"), ("X", "y")):
        pairs = {images: colour, labels: np.array([[5], [5], [10], [5]])}
        np.savez(tmp_path / "c.npz", **pairs)
        source = open_source(tmp_path / "c.npz")
        assert source.label_names == ("5", "10") and source.warnings == ()
        assert [i.label for i in source.items] == [0, 0, 1, 0]
        assert np.array_equal(source.read(2), colour[2])
    for gray in (colour[..., 0], colour[..., :1]):
        np.savez_compressed(tmp_path / "g.npz", gray)
        source = open_source(tmp_path / "g.npz")
        assert np.array_equal(source.read(1), colour[1, ..., 0]) and source.label_names == ()


def test_names_as_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "c.npz", x=np.zeros((3, 8, 8), np.uint8), y=np.array(["b", "a", "b"]))
    source = open_source(tmp_path / "c.npz")
    assert source.label_names == ("a", "b") and [i.label for i in source.items] == [1, 0, 1]


@pytest.mark.parametrize("order", ["C", "F"])
def test_large_arrays_are_mapped_and_hold_the_same(
    order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.asarray(np.stack([noise(n) for n in range(9)]), order=order)
    np.savez(tmp_path / "a.npz", np.arange(3), pixels)
    np.savez(tmp_path / "b.npz", images=pixels, labels=np.arange(9))
    assert not isinstance(arrays._load_npz(tmp_path / "b.npz")[0], np.memmap)
    monkeypatch.setattr(arrays, "_MAPPED_FROM", 1)
    raw, labels = arrays._load_npz(tmp_path / "b.npz")
    assert isinstance(raw, np.memmap) and labels is not None
    assert np.array_equal(raw, pixels) and labels.tolist() == list(range(9))
    assert np.array_equal(arrays._mapped(tmp_path / "a.npz", "arr_1.npy"), pixels)
    np.save(tmp_path / "c.npy", pixels)
    source = open_source(tmp_path / "c.npy")
    assert len(source.items) == 9 and np.array_equal(source.read(8), pixels[8])


@pytest.mark.parametrize(
    "given_arrays",
    [
        (np.zeros((4, 8, 8, 3), np.complex64),),
        (np.zeros((4, 8, 8, 3), "U3"),),
        (np.zeros((0, 8, 8, 3), np.uint8),),
        (np.zeros((8, 8), np.uint8),),
        (np.zeros((2, 3, 8, 8, 1), np.uint8),),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(3, int)),
        (np.zeros((4, 8, 8), np.uint8), np.zeros(4)),
        (np.array([object()]),),
    ],
)
def test_arrays_that_are_no_images(given_arrays, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", *given_arrays)
    with pytest.raises(DataError, match=r"x\.npz") as caught:
        open_source(tmp_path / "x.npz")
    assert caught.value.expected and caught.value.remedy


def test_npz_without_images_or_no_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", pictures=np.zeros(3))
    with pytest.raises(DataError, match="pictures, but no arr_0, images, x"):
        open_source(tmp_path / "x.npz")
    np.save(tmp_path / "z.npy", np.zeros(3))
    (tmp_path / "z.npy").rename(tmp_path / "z.npz")
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    (tmp_path / "y.npz").write_bytes(b"not an archive")
    (tmp_path / "w.npy").write_bytes(b"")
    np.save(tmp_path / "o.npy", np.array([object()]), allow_pickle=True)
    for name in ("x.npy", "y.npz", "z.npz", "w.npy", "o.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("values", "ends", "text"),
    [
        (np.array([0, 1, 4095], np.uint16), (0, 4095), "0 to 4095 of uint16 became 0 to 255"),
        (np.array([-5, 5, 0], np.int64), (-5, 5), "-5 to 5 of int64 became"),
        (np.array([0.02, 0.5, 1.31], np.float32), (0.02, 1.31), "0.02 to 1.31 of float32 became"),
        (np.array([0.02, 0.5], np.float32), (0, 1), "(taken as 0 to 1) became"),
        (np.array([-0.5, 0.75], np.float16), (-1, 1), "-0.5 to 0.75 of float16 (taken as -1 to 1)"),
        (np.array([-0.5, 1.5]), (-0.5, 1.5), "-0.5 to 1.5 of float64 became"),
        (np.array([True, False]), (0, 1), ""),
        (np.array([3, 200], np.uint8), (0, 255), ""),
    ],
)
def test_which_values_become_0_and_255(values, ends, text: str, tmp_path: Path) -> None:
    images = np.resize(values, (6, 4, 4))
    np.save(tmp_path / "a.npy", images)
    source = open_source(tmp_path / "a.npy")
    assert (text in source.warnings[0]) if text else source.warnings == ()
    low, high = (float(np.asarray(end, images.dtype)) for end in ends)
    if images.dtype not in (np.uint8, np.bool_) and low == int(low) and abs(low) > 1:
        low, high = ends
    expected = np.rint((images.astype(np.float64) - low) / (high - low) * 255)
    for n in range(6):
        assert np.array_equal(source.read(n), expected[n])


numbers = hnp.arrays(
    st.sampled_from([np.float16, np.float32, np.float64, np.int8, np.int64, np.uint16, np.uint64]),
    st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4)),
)


@settings(max_examples=150, deadline=None)
@given(numbers)
def test_any_numbers_become_bytes_in_their_order(values) -> None:
    mapping, _ = mapping_of([values], "mask")
    out = np.stack([mapping(image) for image in values])
    assert out.shape == values.shape and out.dtype == np.uint8
    known = np.isfinite(values.astype(np.float64))
    order = np.argsort(values[known], kind="stable")
    assert (np.diff(out[known][order].astype(int)) >= 0).all()
    if known.any() and values.dtype.kind in "iu" and values.min() < values.max():
        assert out.min() == 0 and out.max() == 255


def test_missing_values(tmp_path: Path) -> None:
    values = np.array([0, 100, 0, 200], np.float32).reshape(1, 2, 2, 1).repeat(3, 0).repeat(3, 3)
    values[1, 0, 0] = (np.nan, np.inf, -np.inf)
    values[2, :, :, 1] = np.nan
    np.save(tmp_path / "a.npy", values)
    source = open_source(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"holds 3 missing values \(NaN or infinite\) of 12"):
        source.read(1)
    assert source.read(0).max() == 255 and len(source.warnings) == 1
    masked = open_source(tmp_path / "a.npy", missing="mask")
    assert "2 images have missing values" in masked.warnings[1]
    assert masked.read(1)[0, 0].tolist() == [128] * 3  # the mean of 0, 100 and 200
    assert (masked.read(2)[..., 1] == 128).all()
    assert np.array_equal(masked.read(2)[..., 0], source.read(0)[..., 0])


def test_all_missing_and_all_equal() -> None:
    for value in (np.nan, 7.0):
        mapping, text = mapping_of([np.full((2, 3, 3), value)], "mask")
        assert len(set(mapping(np.full((3, 3), value)).ravel().tolist())) == 1 and text
    assert Mapping(0, 0)(np.zeros((2, 2))).tolist() == [[0, 0], [0, 0]]


def test_channels_first_is_recognised_aloud(tmp_path: Path) -> None:
    pixels = np.stack([noise(n) for n in range(4)])
    np.save(tmp_path / "a.npy", pixels.transpose(0, 3, 1, 2))
    source = open_source(tmp_path / "a.npy")
    assert np.array_equal(source.read(3), pixels[3]) and "[N, C, H, W]" in source.warnings[0]
    many = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 20), np.uint8)
    np.save(tmp_path / "b.npy", many)
    source = open_source(tmp_path / "b.npy")
    assert np.array_equal(source.read(1), many[1]) and source.warnings == ()


@given(st.integers(1, 6), st.integers(1, 20), st.integers(1, 20), st.integers(1, 12))
def test_each_channel_is_fitted_alone(channels: int, height: int, width: int, side: int) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    out = fit_array(pixels, side)
    assert out.shape == (channels, side, side) and out.dtype == np.uint8
    for c in range(channels):
        plane = Image.fromarray(np.ascontiguousarray(pixels[..., c]))
        assert np.array_equal(out[c : c + 1], fit(plane, side, 1))


def test_what_is_wrong_with_an_npy_is_told_plainly(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((9, 8, 8), np.uint8))
    content = path.read_bytes()
    np.save(tmp_path / "objects.npy", np.array([1, "a"], object), allow_pickle=True)
    for bad, text in (
        (b"words", "it is no .npy file"),
        (content[:-100], "it ends early: 476 of 576 bytes"),
        ((tmp_path / "objects.npy").read_bytes(), "it holds Python objects"),
    ):
        path.write_bytes(bad)
        with pytest.raises(DataError, match=text) as caught:
            open_source(path)
        assert "pickle" not in str(caught.value) and ".." not in caught.value.found


def test_too_few_labels_are_counted(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", np.zeros((4, 8, 8), np.uint8), np.zeros(3, int))
    with pytest.raises(DataError, match="there are 4 images and 3 labels"):
        open_source(tmp_path / "x.npz")
