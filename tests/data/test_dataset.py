"""Loading: resolution, channels, unreadable files, memory mapping, identity."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
from pictures import encoded, flat_files, noise, png_bomb, write_tree
from PIL import Image

from poise.data.dataset import Dataset, load_dataset
from poise.errors import DataError
from poise.settings import DataConfig


def load(source: Path | str, tmp_path: Path, **settings: object) -> Dataset:
    return load_dataset(source, DataConfig(**settings), store=tmp_path / "store")


def test_digits(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = load_dataset("digits", DataConfig(), store=tmp_path, progress=lambda *n: calls.append(n))
    assert data.images.shape == (1797, 1, 8, 8) and data.resolution == 8 and data.channels == 1
    assert data.num_classes == 10 and len(data) == 1797 and len(set(data.hashes)) == 1797
    assert calls[-1] == (1797, 1797) and calls == sorted(calls)
    assert data.sizes == {"8x8": 1797} and data.modes == {"L": 1797}
    assert list(tmp_path.iterdir()) == []


def test_exact_pixels_of_a_folder_in_order_of_names(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", flat_files(70))
    data = load(root, tmp_path, resolution=12)
    assert data.names == tuple(f"{n:03d}.png" for n in range(70)) and data.labels is None
    for n in range(70):
        assert np.array_equal(data.images[n], noise(n).transpose(2, 0, 1))


@pytest.mark.parametrize(("side", "chosen"), [(5, 8), (12, 8), (16, 16), (63, 32), (200, 64)])
def test_resolution_from_the_data(side: int, chosen: int, tmp_path: Path) -> None:
    image = encoded(Image.fromarray(noise(0, side)).resize((side * 2, side)))
    root = write_tree(tmp_path / "d", {f"{n}.png": image for n in range(10)})
    data = load(root, tmp_path)
    assert data.resolution == chosen and data.sizes == {f"{side * 2}x{side}": 10}
    assert any("smaller than" in text for text in data.warnings) == (side < chosen)


def test_gray_until_one_image_has_colour(tmp_path: Path) -> None:
    files = {f"{n:04d}.png": encoded(noise(n, 8, 1)) for n in range(600)}
    assert load(write_tree(tmp_path / "d", files), tmp_path).channels == 1
    write_tree(tmp_path / "d", {"0599.png": encoded(noise(1, 8))})  # not among sampled headers
    data = load(tmp_path / "d", tmp_path)
    assert data.channels == 3 and data.modes == {"L": 599, "RGB": 1}
    assert np.array_equal(data.images[5], np.repeat(noise(5, 8, 1)[None], 3, 0))


def test_a_folder_and_its_zip_are_the_same_data(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "d", flat_files(9, folder="a/") | flat_files(9, 20, "b/"))
    with zipfile.ZipFile(tmp_path / "d.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*.png"), reverse=True):
            archive.write(path, path.relative_to(root))
    one, two = load(root, tmp_path), load(tmp_path / "d.zip", tmp_path)
    assert one.fingerprint == two.fingerprint and np.array_equal(one.images, two.images)
    assert one.fingerprint != load(root, tmp_path, resolution=16).fingerprint


@pytest.mark.parametrize("gib", [4.0, 1e-9])
def test_unreadable_files_are_named_and_leave_no_gap(gib: float, tmp_path: Path) -> None:
    jpeg = encoded(noise(0, 64), "JPEG")
    bad = {
        "005.png": b"this is text",
        "010x.jpg": jpeg[: len(jpeg) // 2],
        "015x.png": png_bomb(40_000, 40_000),
        "020x.png": b"",
    }
    root = write_tree(tmp_path / "d", flat_files(30) | bad)
    data = load(root, tmp_path, resolution=12, max_unreadable=0.2, memory_gib=gib)
    reasons = {file.name: file.reason for file in data.unreadable}
    assert sorted(reasons) == sorted(bad)
    assert "not a PNG" in reasons["005.png"] and "truncated" in reasons["010x.jpg"]
    assert "bomb" in reasons["015x.png"] and "empty" in reasons["020x.png"]
    assert len(data) == len(data.names) == len(data.hashes) == len(data.images) == 29
    expected = [noise(n).transpose(2, 0, 1) for n in range(30) if n != 5]
    assert np.array_equal(data.images, expected)
    assert isinstance(data.images, np.memmap) == (tmp_path / "store" / "pixels.u8").exists()
    assert isinstance(data.images, np.memmap) == (gib < 1)


def test_too_many_unreadable_files(tmp_path: Path) -> None:
    bad = {f"bad{n}.png": b"text" for n in range(7)}
    root = write_tree(tmp_path / "d", flat_files(20) | bad)
    with pytest.raises(DataError, match=r"7 of 27 image files.*bad0.png .*bad4.png") as caught:
        load(root, tmp_path)
    assert "bad5" not in str(caught.value) and caught.value.remedy


def test_a_zip_of_evil_names_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        archive.writestr("../evil.png", encoded(noise(0)))
    with pytest.raises(DataError, match=r"1 of 1 .*\.\./evil\.png"):
        load(tmp_path / "d.zip", tmp_path)


def test_one_image_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)holds 1 readable image;.*at least 10"):
        load(write_tree(tmp_path / "d", flat_files(1)), tmp_path)


def test_rare_and_lost_classes(tmp_path: Path) -> None:
    files = flat_files(30, folder="many/") | flat_files(1, 50, "one/") | {"gone/x.png": b"text"}
    data = load(write_tree(tmp_path / "d", files), tmp_path)
    assert data.label_names == ("many", "one")
    assert data.labels is not None and np.bincount(data.labels).tolist() == [30, 1]
    assert any(text.startswith("class 'one' has 1 image:") for text in data.warnings)
    assert any(text.startswith("class 'gone' has 0 readable") for text in data.warnings)


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file where a folder should be")
    with pytest.raises(DataError, match=r"Cannot write .*pixels\.u8"):
        load(write_tree(tmp_path / "d", flat_files(10)), tmp_path, memory_gib=1e-9)


def test_the_hash_is_of_the_original_pixels(tmp_path: Path) -> None:
    files = flat_files(10)
    files["copy.bmp"] = encoded(noise(3), "BMP")
    files["near.png"] = encoded(np.minimum(noise(3), 254))
    data = load(write_tree(tmp_path / "d", files), tmp_path, resolution=8)
    index = {name: n for n, name in enumerate(data.names)}
    assert data.hashes[index["copy.bmp"]] == data.hashes[index["003.png"]]
    assert data.hashes[index["near.png"]] != data.hashes[index["003.png"]]


def test_captions_reach_the_data_set(tmp_path: Path) -> None:
    files = flat_files(12) | {f"{n:03d}.txt": f"picture {n}".encode() for n in range(0, 12, 2)}
    files["002.png"] = b"text"
    data = load(write_tree(tmp_path / "d", files), tmp_path, max_unreadable=0.2)
    told = {name: text for name, text in zip(data.names, data.captions, strict=True) if text}
    assert told == {f"{n:03d}.png": f"picture {n}" for n in (0, 4, 6, 8, 10)}
    assert load("digits", tmp_path).captions == ()


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_arrays_of_any_channel_count(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 20, channels), np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    data = load(tmp_path / "a.npy", tmp_path, resolution=16)
    assert data.channels == channels and data.modes == {f"{channels} channels": 12}
    assert np.array_equal(data.images, pixels[:, :, 2:18].transpose(0, 3, 1, 2))
    assert len(set(data.hashes)) == 12
    half = load(tmp_path / "a.npy", tmp_path, resolution=8)
    for c in range(channels):  # each channel as if it were alone
        np.save(tmp_path / "c.npy", pixels[..., c])
        alone = load(tmp_path / "c.npy", tmp_path, resolution=8)
        assert np.array_equal(half.images[:, c], alone.images[:, 0])


def test_missing_values_are_refused_or_masked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((20, 8, 8), np.float32)
    values[3, 0, :2] = np.nan
    values[7, 1, 1] = np.inf
    np.save(tmp_path / "a.npy", values)
    data = load(tmp_path / "a.npy", tmp_path, max_unreadable=0.2)
    assert len(data) == 18
    assert {f.name: f.reason for f in data.unreadable} == {
        "image-000003": "holds 2 missing values (NaN or infinite) of 64",
        "image-000007": "holds 1 missing values (NaN or infinite) of 64",
    }
    masked = load_dataset(tmp_path / "a.npy", DataConfig(), store=tmp_path, missing="mask")
    assert len(masked) == 20 and masked.unreadable == ()
    assert any("2 images have missing values" in text for text in masked.warnings)
    mean = np.nanmean(values[3].astype(np.float64)) * 255
    assert abs(int(masked.images[3, 0, 0, 0]) - mean) <= 0.5
