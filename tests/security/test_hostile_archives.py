"""Row D4: archives, tables, arrays and prepared sets that lead out of their place or swell.

Names in zips and tars, links and devices are in `data/test_sources.py` and `data/test_tars.py`,
member by member. Here whole archives go through `poise prepare`, everything around it is watched,
and what swells is measured.
"""

import io
import json
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from attacks import contents, peak, photos, tree

from poise.data.arrays import open_arrays
from poise.data.dataset import load_dataset
from poise.data.sources import open_source
from poise.data.store import checksum, load_store
from poise.errors import ArtifactError, DataError
from poise.settings import DataConfig

MOST_MIB = 100
OUTSIDE = ("../../evil.png", "/tmp/poise-evil.png", "C:\\evil.png", "a/../../../evil.png")
SECRET = b"a line that is nobody's business"


def pictures(tmp_path: Path) -> dict[str, bytes]:
    return {
        f"cat/{p.name}": p.read_bytes() for p in sorted(photos(tmp_path / "made", 16).iterdir())
    }


def zipped(path: Path, images: dict[str, bytes], target: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("way")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, str(target))
        for name, content in images.items():
            archive.writestr(name, content)
        for name in (*OUTSIDE, "way/written.png"):
            archive.writestr(name, next(iter(images.values())))
    return path


def tarred(path: Path, images: dict[str, bytes], target: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        link = tarfile.TarInfo("way")
        link.type, link.linkname = tarfile.SYMTYPE, str(target)
        archive.addfile(link)
        first = next(iter(images.values()))
        for name in (*images, *OUTSIDE, "way/written.png"):
            info = tarfile.TarInfo(name)
            info.size = len(images.get(name, first))
            archive.addfile(info, io.BytesIO(images.get(name, first)))
    return path


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_no_byte_is_written_outside_of_the_place_that_was_named(pack: Any, tmp_path: Path) -> None:
    images, target = pictures(tmp_path), tmp_path / "target"
    target.mkdir()
    suffix = ".zip" if pack is zipped else ".tar"
    archive = pack(tmp_path / f"set{suffix}", images, target)
    before = tree(tmp_path)
    out = tmp_path / "deep" / "out"
    assert tiny.call("prepare", str(archive), str(out), "--workers", "1") == 0
    assert {path for path in tree(tmp_path) - before if not path.startswith("deep")} == set()
    assert not Path("/tmp/poise-evil.png").exists()
    dropped = {r["path"] for r in json.loads((out / "splits.json").read_text())["dropped"]}
    assert {*OUTSIDE, "way"} <= dropped
    assert not any(path.is_symlink() for path in out.rglob("*"))


def test_what_a_link_leads_to_reaches_no_file_of_ours(tmp_path: Path) -> None:
    root = photos(tmp_path / "set", 16)
    (tmp_path / "secret.txt").write_bytes(SECRET)
    elsewhere = photos(tmp_path / "elsewhere", 1) / "00.png"
    (root / "00.txt").symlink_to(tmp_path / "secret.txt")
    (root / "linked.png").symlink_to(elsewhere)
    (root / "folder").symlink_to(elsewhere.parent)
    out = tmp_path / "out"
    assert tiny.call("prepare", str(root), str(out), "--workers", "1") == 0
    assert SECRET not in contents(out)
    rows = [json.loads(line) for line in (out / "items.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and not any("linked" in row["path"] for row in rows)
    dropped = json.loads((out / "splits.json").read_text())["dropped"]
    assert {"linked.png", "folder"} <= {row["path"] for row in dropped}


def swelling(path: Path, name: str, method: int, mib: int, claimed: int | None = None) -> Path:
    """A zip of a few kilobytes whose first member is `mib` of zeros, or claims to be less."""
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        with archive.open(name, "w") as member:
            for _ in range(mib):
                member.write(bytes(2**20))
        archive.writestr("whole.png", b"\x89PNG\r\n\x1a\n")
    if claimed is not None:
        content = bytearray(path.read_bytes())
        entry = content.find(b"PK\x01\x02")
        content[entry + 24 : entry + 28] = struct.pack("<I", claimed)
        path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["bomb.png", "bomb", "metadata.csv", "whole.txt", "dataset.json"])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_a_member_that_swells_is_refused_by_name_unread(
    name: str, method: int, tmp_path: Path
) -> None:
    path = swelling(tmp_path / "s.zip", name, method, 40 if method == zipfile.ZIP_DEFLATED else 8)
    with peak() as taken:
        source = open_source(path)
    reasons = {file.name: file.reason for file in source.refused}
    assert reasons.keys() >= {name} and taken.mib < 10
    assert ("bomb" if method == zipfile.ZIP_DEFLATED else "without bound") in reasons[name]


def test_a_member_that_claims_to_be_small_is_not_unpacked_further(tmp_path: Path) -> None:
    path = swelling(tmp_path / "s.zip", "bomb.png", zipfile.ZIP_DEFLATED, 64, claimed=1000)
    source = open_source(path)
    index = [item.name for item in source.items].index("bomb.png")
    with peak() as taken, pytest.raises(zipfile.BadZipFile, match=r"bomb\.png"):
        source.read(index)
    assert taken.mib < 10


def test_what_merely_compresses_well_is_read(tmp_path: Path) -> None:
    flat = b"BM" + bytes(2**20)
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("flat.bmp", flat)  # 1000 : 1, and small
        archive.writestr("noise.png", np.random.default_rng(0).bytes(2**20))
    source = open_source(tmp_path / "s.zip")
    assert not source.refused and source.read(0) == flat


@pytest.mark.parametrize("key", ["arr_0", "images"])
def test_an_array_that_swells_is_refused_unread(key: str, tmp_path: Path) -> None:
    path = tmp_path / "s.npz"
    np.savez_compressed(path, **{key: np.zeros((40, 1024, 1024), np.uint8)})
    with peak() as taken, pytest.raises(DataError, match=f"{key}.*bomb") as caught:
        open_arrays(path)
    assert str(path) in caught.value.found and taken.mib < 10


def test_labels_that_shrink_a_thousandfold_are_read(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (300_000, 2, 2), np.uint8)
    np.savez_compressed(tmp_path / "s.npz", images, np.arange(300_000) // 100_000)
    assert open_arrays(tmp_path / "s.npz").count == 300_000


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_of_python_objects_is_refused(suffix: str, tmp_path: Path) -> None:
    from attacks import Payload

    path, canary = tmp_path / f"s{suffix}", tmp_path / "canary"
    value = np.array([Payload(canary)], object)
    (np.save if suffix == ".npy" else np.savez)(path, value, allow_pickle=True)
    with pytest.raises(DataError):
        load_dataset(path, DataConfig(), store=tmp_path)
    assert not canary.exists()


def prepared(root: Path, **changes: Any) -> Path:
    """A prepared set whose manifest says otherwise, with the right checksum."""
    tiny.call("prepare", str(photos(root / "made", 16)), str(root / "set"), "--workers", "1")
    path = root / "set" / "manifest.json"
    manifest = json.loads(path.read_text())
    for key, value in changes.items():
        manifest[key] = value(manifest[key]) if callable(value) else value
    manifest["sha256"] = checksum(manifest)
    path.write_text(json.dumps(manifest))
    return root / "set"


def elsewhere(name: str, length: int) -> Any:
    def change(found: Any) -> Any:
        if isinstance(found, dict):
            return found | {name: {"bytes": length, "sha256": "0" * 64}}
        return [{**found[0], "file": name}, *found[1:]]

    return change


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"files": elsewhere("../secret", 40)}, r"'\.\./secret': .*leads out"),
        ({"files": elsewhere("/etc/passwd", 40)}, "is absolute"),
        ({"shards": elsewhere("../secret", 40)}, "contradicts itself about ../secret"),
        ({"files": elsewhere("way", 40)}, "'way': it is a symbolic link that leads out"),
        ({"items": 10**12}, "number of images"),
        ({"height": 2**40}, "claims entries of the shape"),
        ({"height": -8}, "claims entries of the shape"),
        ({"channels": "x"}, "claims entries of the shape"),
        ({"files": []}, "does not say what it should|contradicts"),
        ({"shards": 7}, "does not say what it should"),
    ],
)
def test_a_prepared_set_of_others_is_read_from_its_own_folder_alone(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(SECRET.ljust(40))
    root = prepared(tmp_path, **changes)
    (root / "way").symlink_to(tmp_path / "secret")
    for config in (DataConfig(), DataConfig(memory_gib=1e-9)):
        with peak() as taken, pytest.raises(ArtifactError, match=named):
            load_store(root, config)
        assert taken.mib < 10
