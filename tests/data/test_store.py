"""The prepared format: what was written is read, damage and newer versions are told."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.data.store import Shards, checksum, is_store, load_store, verify_store
from poise.errors import ArtifactError, UsageError
from poise.settings import DataConfig

SMALL = DataConfig(memory_gib=1e-9)  # everything is mapped
SHAPE = (3, 4, 4)


def write_store(root: Path, sizes: tuple[int, ...] = (5, 5, 3), **changes: Any) -> np.ndarray:
    """A store by hand, from the format's description alone; its pixels."""
    (root / "shards").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (sum(sizes), *SHAPE), np.uint8)
    contents: dict[str, bytes] = {}
    at = 0
    for number, size in enumerate(sizes):
        contents[f"shards/{number:05d}.u8"] = pixels[at : at + size].tobytes()
        at += size
    rows = [
        {
            "path": f"{n}.png",
            "pixels": f"{n:064x}",
            "size": [4, 5],
            "mode": "RGB",
            "label": "cd"[n % 2],
            "split": ("train", "val", "test")[n % 3],
            "weight": 1 + n % 2,
            "caption": "a caption" if n else None,
        }
        for n in range(len(pixels))
    ]
    contents["items.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    files = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in contents.items()
    }
    shards = [
        {"file": name, "items": size, **files[name]}
        for name, size in zip(contents, sizes, strict=False)
    ]
    manifest = {
        "kind": "poise data set",
        "format": 1,
        "source": "planted",
        "items": len(pixels),
        "frames": 1,
        "channels": 3,
        "height": 4,
        "width": 4,
        "label_names": ["c", "d"],
        "warnings": ["one"],
        "shards": shards,
        "files": files,
    } | changes
    manifest["sha256"] = checksum(manifest)
    contents["manifest.json"] = json.dumps(manifest).encode()
    for name, content in contents.items():
        (root / name).write_bytes(content)
    return pixels


@pytest.mark.parametrize("config", [DataConfig(), SMALL])
@pytest.mark.parametrize("sizes", [(5, 5, 3), (13,)])
def test_what_was_written_is_read(tmp_path: Path, config: DataConfig, sizes) -> None:
    pixels = write_store(tmp_path / "set", sizes)
    assert is_store(tmp_path / "set") and not is_store(tmp_path)
    data = load_store(tmp_path / "set", config)
    assert isinstance(data.images, np.memmap | Shards) == (config is SMALL)
    assert data.images.shape == pixels.shape and len(data) == 13 and data.channels == 3
    np.testing.assert_array_equal(data.images[np.arange(13)], pixels)
    assert data.labels is not None and data.labels.tolist() == [n % 2 for n in range(13)]
    assert data.given_splits[:3] == ("train", "val", "test")
    assert data.weights is not None and data.weights.tolist() == [1 + n % 2 for n in range(13)]
    assert data.captions[:2] == (None, "a caption") and data.sizes == {"4x5": 13}
    assert data.warnings == ("one",) and data.fingerprint


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.data())
def test_shards_are_indexed_like_one_array(sizes: list[int], data) -> None:
    whole = np.arange(sum(sizes) * 6, dtype=np.uint8).reshape(-1, 1, 2, 3)
    shards = Shards(np.split(whole, np.cumsum(sizes)[:-1]))
    n = len(whole)
    assert (len(shards), shards.shape, shards.ndim, shards.dtype) == (n, whole.shape, 4, np.uint8)
    place = st.integers(-n, n - 1)
    keys = [
        data.draw(place),
        np.int64(data.draw(place)),
        data.draw(st.slices(n)),
        slice(data.draw(place), data.draw(st.integers(-n - 2, n + 2))),
        np.array(data.draw(st.lists(place, max_size=8)), np.int64),
        np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n))),
    ]
    for key in keys:
        np.testing.assert_array_equal(shards[key], whole[key])
    np.testing.assert_array_equal(np.asarray(shards), whole)
    for wrong in (n, -n - 1, np.array([0, n])):
        with pytest.raises(IndexError):
            shards[wrong]


@pytest.mark.parametrize("config", [DataConfig(), SMALL])
@pytest.mark.parametrize("name", ["manifest.json", "items.jsonl", "shards/00001.u8"])
@pytest.mark.parametrize("harm", ["cut", "gone"])
def test_damage_is_told(tmp_path: Path, config: DataConfig, name: str, harm: str) -> None:
    write_store(tmp_path)
    path = tmp_path / name
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
    with pytest.raises(ArtifactError, match=name if harm == "cut" else "no |cannot be read"):
        load_store(tmp_path, config)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_flipped_bit_of_the_manifest_is_told(tmp_path_factory, data) -> None:
    root = tmp_path_factory.mktemp("set")
    write_store(root)
    content = bytearray((root / "manifest.json").read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    (root / "manifest.json").write_bytes(bytes(content))
    with pytest.raises(ArtifactError):
        load_store(root, DataConfig())


def test_a_flipped_byte_of_pixels(tmp_path: Path) -> None:
    write_store(tmp_path)
    verify_store(tmp_path)
    path = tmp_path / "shards" / "00002.u8"
    content = bytearray(path.read_bytes())
    content[7] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(ArtifactError, match=r"00002\.u8 does not match its hash"):
        load_store(tmp_path, DataConfig())
    with pytest.raises(ArtifactError, match=r"00002\.u8 does not match its hash"):
        verify_store(tmp_path)
    load_store(tmp_path, SMALL)  # mapped: only sizes are compared


def test_what_is_not_for_this_poise(tmp_path: Path) -> None:
    write_store(tmp_path / "newer", format=2)
    with pytest.raises(ArtifactError, match=r"newer Poise \(format 2\)"):
        load_store(tmp_path / "newer", DataConfig())
    write_store(tmp_path / "clips", frames=4)
    with pytest.raises(UsageError, match="clips of 4 frames; no model is trained on clips yet"):
        load_store(tmp_path / "clips", DataConfig())
    write_store(tmp_path / "set")
    with pytest.raises(UsageError, match="poise prepare SOURCE NEW_FOLDER --resolution 8"):
        load_store(tmp_path / "set", DataConfig(resolution=8))
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "plan.json").write_text('{"kind": "poise data set, plan"}')
    assert is_store(tmp_path / "begun") and not is_store(tmp_path / "nothing")
    with pytest.raises(ArtifactError, match="is not finished"):
        load_store(tmp_path / "begun", DataConfig())
