"""A scan is the same however it is done, goes on where it stopped, and survives every file."""

import os
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from odd_files import bomb, encoded, picture, write_all

from poise.audit import scan as scan_module
from poise.audit.audit import Options, audit_source
from poise.audit.scan import Scan, scan
from poise.console import Screen
from poise.errors import DataError, UsageError

BAD = 70  # the file at which a decoder dies


def folder_of(root: Path, count: int = 140) -> Path:
    """`count` small pictures and some files that are no pictures."""
    files = {f"{n:03d}.png": encoded(picture(n, 12, 9)) for n in range(count)}
    files["003.png"] = b""
    if count > 100:
        files["100.png"] = files["101.png"][:-30]
        files["139.png"] = bomb(40_000, 40_000)
    return write_all(root, files)


def same(one: Scan, other: Scan) -> bool:
    return one.looks == other.looks and np.array_equal(one.thumbs, other.thumbs)


def dying(job: Any) -> Any:
    """A stand-in for the work of a process, with a decoder that dies on one file."""
    if job.first <= BAD < job.last:
        os._exit(1)
    from poise.audit.scan import _look_at_all as work

    return work(job)


def test_every_file_is_looked_at_in_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images")
    os.symlink("/etc/passwd", folder / "out.png")
    done: list[tuple[int, int]] = []
    found = scan(folder, workers=1, progress=lambda *at: done.append(at))
    assert [look.name for look in found.looks] == [item.name for item in found.source.items]
    broken = {look.name: look.problems[0].kind for look in found.looks if look.broken}
    assert broken == {
        "003.png": "zero-byte",
        "100.png": "truncated",
        "139.png": "decompression-bomb",
    }
    assert [file.name for file in found.source.refused] == ["out.png"]
    assert not found.thumbs[3].any() and found.thumbs[4].any()
    assert done == [(64, 140), (128, 140), (140, 140)]


def test_one_or_two_processes_or_an_archive_find_the_same(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    alone = scan(folder, workers=1)
    assert same(alone, scan(folder, workers=2))
    assert same(alone, scan(tmp_path / "images.zip", workers=1))


def test_a_file_that_kills_the_decoder_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "images")
    whole = scan(folder, workers=1)
    monkeypatch.setattr(scan_module, "_look_at_all", dying)
    monkeypatch.setattr(scan_module, "_CHUNK", 70)
    found = scan(folder, workers=2)
    assert found.looks[BAD].name == f"{BAD:03d}.png"
    assert found.looks[BAD].problems[0].detail == "the decoder crashed on it"
    assert not found.thumbs[BAD].any()
    rest = [n for n in range(140) if n != BAD]
    assert [found.looks[n] for n in rest] == [whole.looks[n] for n in rest]


def test_an_interrupted_scan_goes_on(tmp_path: Path) -> None:
    folder, cache = folder_of(tmp_path / "images"), tmp_path / "cache"
    whole = scan(folder, workers=1)

    def stop(done: int, total: int) -> None:
        if done > 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(folder, workers=1, cache=cache, progress=stop)
    parts = {path: path.stat().st_mtime_ns for path in cache.rglob("*.json")}
    assert len(parts) == 2
    assert same(whole, scan(folder, workers=1, cache=cache))
    assert all(path.stat().st_mtime_ns == time for path, time in parts.items())
    damaged = min(parts)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert same(whole, scan(folder, workers=1, cache=cache))
    assert same(whole, scan(folder, workers=1, cache=cache))


def test_a_changed_source_is_scanned_anew(tmp_path: Path) -> None:
    folder, cache = folder_of(tmp_path / "images", 20), tmp_path / "images" / "cache"
    scan(folder, workers=1, cache=cache)
    assert same(scan(folder, workers=1, cache=cache), scan(folder, workers=1))
    assert len(list(cache.iterdir())) == 1
    (folder / "005.png").write_bytes(encoded(picture(99, 13, 9)))
    assert scan(folder, workers=1, cache=cache).looks[5].width == 13
    (folder / "004.png").unlink()
    assert scan(folder, workers=1, cache=cache).looks[4].width == 13
    assert len(list(cache.iterdir())) == 1


def test_a_source_that_grows_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "images", 20)
    work = scan_module._look_at_all
    monkeypatch.setattr(
        scan_module, "_look_at_all", lambda job: work(replace(job, total=job.total + 1))
    )
    with pytest.raises(DataError, match="changed while it was read"):
        scan(folder, workers=1)


def test_many_thumbnails_lie_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "images", 20)
    in_memory = scan(folder, workers=1)
    monkeypatch.setattr(scan_module, "_IN_MEMORY", 100)
    mapped = scan(folder, workers=1, cache=tmp_path / "cache")
    assert isinstance(mapped.thumbs, np.memmap) and same(in_memory, mapped)


def test_missing_values_are_masked_if_asked_for(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((12, 8, 8, 3)).astype(np.float32)
    values[3, 2, 2, 1] = np.nan
    np.save(tmp_path / "x.npy", values)
    refused = scan(tmp_path / "x.npy", workers=1)
    assert [p.kind for p in refused.looks[3].problems] == ["missing-values"]
    assert not any(
        look.broken for look in scan(tmp_path / "x.npy", workers=1, missing="mask").looks
    )


def test_no_such_source(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        scan(tmp_path / "nowhere")


def test_a_file_in_the_place_of_the_audit_is_told_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="out is a file"):
        audit_source(str(tmp_path / "nowhere"), tmp_path / "out", Options(), Screen(quiet=True))
    assert (tmp_path / "out").read_text() == "mine"


def test_what_no_folder_places_is_looked_at_and_named_as_left_out(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "images")
    content = next(path for path in sorted(folder.rglob("*.png"))).read_bytes()
    for kind in ("a", "b"):
        (folder / kind).mkdir()
        (folder / kind / f"{kind}.png").write_bytes(content)
    (folder / "a" / "photo.dat").write_bytes(content)
    (folder / "a" / "photo").write_bytes(content)
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    found = {look.name: {p.kind for p in look.problems} for look in scan(folder, workers=1).looks}
    assert "left-out" in found["cut.png"] and "truncated" in found["cut.png"]
    assert found["a/photo.dat"] == found["a/photo"] == {"wrong-extension"}
    assert "left-out" not in found["a/a.png"]
