"""Tars and webdataset shards: planted samples come back, hostile members are refused by name."""

import gzip
import io
import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, flat_files, noise, write_tree

from poise.data.sources import open_source
from poise.errors import DataError, PoiseError

X = encoded(noise(0))


def tar_of(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(first: int, last: int) -> dict[str, bytes]:
    """Samples as webdataset writes them: image, class, caption, and more as JSON."""
    files: dict[str, bytes] = {}
    for n in range(first, last):
        files[f"{n:06d}.png"] = encoded(noise(n))
        files[f"{n:06d}.cls"] = str(n % 3).encode()
        files[f"{n:06d}.txt"] = f"picture {n}".encode()
        files[f"{n:06d}.json"] = json.dumps({"group": n // 2, "caption": "other"}).encode()
    return files


def test_a_shard_and_its_unpacked_folder_and_many_shards_are_the_same(tmp_path: Path) -> None:
    one = open_source(tar_of(tmp_path / "one.tar", samples(0, 12)))
    tar_of(tmp_path / "many" / "00.tar", samples(0, 5))
    tar_of(tmp_path / "many" / "01.tar", samples(5, 12))
    many = open_source(tmp_path / "many")
    unpacked = open_source(write_tree(tmp_path / "unpacked", samples(0, 12)))
    assert one.items == many.items == unpacked.items
    for source in (one, many, unpacked):
        assert source.label_names == ("0", "1", "2") and source.warnings == ()
        assert [source.read(n) for n in range(12)] == [encoded(noise(n)) for n in range(12)]
    item = one.items[7]
    assert (item.label, item.caption, item.group) == (1, "picture 7", "3")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_class_folders_and_long_names(form: int, tmp_path: Path) -> None:
    deep = "./" + "/".join(["é" * 40] * 5)
    files = {f"{deep}/cat/1.png": X, f"{deep}/dog/2.png": encoded(noise(2)), f"{deep}/a.md": b"x"}
    source = open_source(tar_of(tmp_path / "s.tar", files, form))
    assert [i.name for i in source.items] == [f"{deep[2:]}/cat/1.png", f"{deep[2:]}/dog/2.png"]
    assert source.label_names == ("cat", "dog") and source.read(1) == encoded(noise(2))
    assert source.ignored == (f"{deep[2:]}/a.md",)


def test_splits_from_the_names_of_shards(tmp_path: Path) -> None:
    for n, name in enumerate(("set-train-000.tar", "train/000.tar", "val/000.tar", "test_1.tar")):
        tar_of(tmp_path / name, flat_files(1, n))
    splits = {i.name: i.split for i in open_source(tmp_path).items}
    assert splits == {"000.png": "train", "001.png": "train", "002.png": "val", "003.png": "test"}
    tar_of(tmp_path / "more.tar", flat_files(1, 9))
    assert {i.split for i in open_source(tmp_path).items} == {None}


def test_equal_names_in_two_shards_keep_both(tmp_path: Path) -> None:
    for n in range(2):
        tar_of(tmp_path / f"s{n}.tar", {"1.png": encoded(noise(n)), "1.cls": b"a"})
    source = open_source(tmp_path)
    assert [i.name for i in source.items] == ["s0/1.png", "s1/1.png"]
    assert source.read(1) == encoded(noise(1)) and source.label_names == ("a",)


def test_hostile_members_are_refused_by_name(tmp_path: Path) -> None:
    kinds = {
        "link.png": tarfile.SYMTYPE,
        "hard.png": tarfile.LNKTYPE,
        "device.png": tarfile.CHRTYPE,
        "disk.png": tarfile.BLKTYPE,
        "pipe.png": tarfile.FIFOTYPE,
    }
    bad = ["/abs.png", "../up.png", "a/../../up2.png", "C:/drive.png"]
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
        for name in [*bad, "ok.png", "twice.png", "twice.png", ".hidden.png", "__MACOSX/x.png"]:
            info = tarfile.TarInfo(name)
            info.size = len(X)
            archive.addfile(info, io.BytesIO(X))
        sparse = tarfile.TarInfo("sparse.png")
        sparse.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "9999999"}
        archive.addfile(sparse)
    source = open_source(tmp_path / "s.tar")
    assert [i.name for i in source.items] == ["ok.png", "twice.png"]
    reasons = {f.name: f.reason for f in source.refused}
    assert sorted(reasons) == sorted([*kinds, *bad, "twice.png (2)", "sparse.png"])
    assert reasons["link.png"] == reasons["hard.png"] == "it is a link"
    assert "regular" in reasons["device.png"] and "sparse" in reasons["sparse.png"]
    assert "twice" in reasons["twice.png (2)"] and "drive" in reasons["C:/drive.png"]


def test_a_huge_member_is_refused_though_the_tar_is_sparse_on_disk(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", {"1.png": X})
    whole = path.read_bytes()[:-10240] or path.read_bytes()
    info = tarfile.TarInfo("huge.png")
    info.size = 600 * 2**20
    with path.open("wb") as file:
        file.write(whole[: 512 + -(-len(X) // 512) * 512] + info.tobuf())
        file.truncate(file.tell() + info.size + 1024)
    source = open_source(path)
    assert [i.name for i in source.items] == ["1.png"]
    assert source.refused[0].name == "huge.png" and "600 MiB" in source.refused[0].reason


def test_cut_and_damaged_tars_keep_what_is_whole(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "w.tar", flat_files(4)).read_bytes()
    size = 512 + -(-len(X) // 512) * 512
    for cut in (size * 2, size * 2 + 100, size * 2 + 700):
        (tmp_path / "c.tar").write_bytes(whole[:cut])
        source = open_source(tmp_path / "c.tar")
        assert [i.name for i in source.items] == ["000.png", "001.png"]
        assert [f.name for f in source.refused] == ["c.tar"]
    flipped = bytearray(whole)
    flipped[size * 2 + 5] ^= 1  # the name of the third member: its checksum fails
    (tmp_path / "f.tar").write_bytes(flipped)
    source = open_source(tmp_path / "f.tar")
    assert len(source.items) == 2 and "damaged header" in source.refused[0].reason
    assert source.read(1) == encoded(noise(1))


def test_compressed_tars_say_what_to_do(tmp_path: Path) -> None:
    plain = tar_of(tmp_path / "s.tar", flat_files(2)).read_bytes()
    (tmp_path / "a").mkdir()
    for name in ("s.tar.gz", "s.tgz", "a/disguised.tar"):
        (tmp_path / name).write_bytes(gzip.compress(plain))
        with pytest.raises(DataError, match=r"(?s)compressed.*Run `gunzip "):
            open_source(tmp_path / name)
    source = open_source(tmp_path)  # beside a plain one they are refused by name
    assert len(source.items) == 2
    names = [f.name for f in source.refused]
    assert names == ["a/disguised.tar", "s.tar.gz", "s.tgz"]
    (tmp_path / "no.tar").write_bytes(b"text")
    with pytest.raises(DataError, match="damaged or ends early"):
        open_source(tmp_path / "no.tar")


def test_many_threads_read_one_tar(tmp_path: Path) -> None:
    source = open_source(tar_of(tmp_path / "s.tar", flat_files(40)))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(source.read, [*range(40)] * 5)) == [*flat_files(40).values()] * 5


def test_a_tar_that_shrinks_is_an_error_of_the_image(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "s.tar", flat_files(3))
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(ValueError, match="ends early"):
        source.read(2)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_damage_to_a_tar_is_a_crash(tmp_path_factory, data) -> None:
    path = tmp_path_factory.mktemp("d") / "s.tar"
    content = bytearray(tar_of(path, samples(0, 2), tarfile.GNU_FORMAT).read_bytes())
    headers = st.integers(0, 7).map(lambda n: n * 1024)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(headers) + data.draw(st.integers(0, 511))
        content[place % len(content)] = data.draw(st.integers(0, 255))
    block = data.draw(st.integers(0, 7)) * 1024
    if data.draw(st.booleans()):  # damage with a valid checksum
        header = content[block : block + 512]
        header[148:156] = b" " * 8
        content[block + 148 : block + 156] = b"%06o\0 " % sum(header)
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        source = open_source(path)
        for n in range(len(source.items)):
            source.read(n)
    except (PoiseError, ValueError):
        pass
