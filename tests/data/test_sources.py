"""Each kind of source with planted classes, splits and faults."""

import contextlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise, write_tree
from PIL import Image

from poise.data.listing import told
from poise.data.sources import Source, open_source
from poise.errors import DataError, UsageError


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def as_tar(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    return write_tree(path.with_suffix(""), files)


def labels(source: Source) -> dict[str, str | None]:
    return {i.name: None if i.label is None else source.label_names[i.label] for i in source.items}


every_kind = pytest.mark.parametrize("make", [as_folder, as_zip, as_tar])
X = encoded(noise(0))


@every_kind
def test_class_folders_in_order_of_names(make, tmp_path: Path) -> None:
    source = open_source(
        make(tmp_path / "s.zip", {"dog/2.png": X, "cat/deep/1.JPG": X, "dog/10.tiff": X})
    )
    assert list(labels(source).items()) == [
        ("cat/deep/1.JPG", "cat"),
        ("dog/10.tiff", "dog"),
        ("dog/2.png", "dog"),
    ]
    assert [source.read(n) for n in range(3)] == [X] * 3


@every_kind
def test_flat_and_wrapped(make, tmp_path: Path) -> None:
    assert labels(open_source(make(tmp_path / "a.zip", {"1.png": X}))) == {"1.png": None}
    wrapped = {"all/my/cat/1.png": X, "all/my/dog/2.png": X}
    assert set(labels(open_source(make(tmp_path / "b.zip", wrapped))).values()) == {"cat", "dog"}


@every_kind
def test_given_splits(make, tmp_path: Path) -> None:
    files = {"w/train/a/1.png": X, "w/Validation/a/2.png": X, "w/test/b/3.png": X}
    source = open_source(make(tmp_path / "s.zip", files))
    assert {i.name: i.split for i in source.items} == {
        "w/train/a/1.png": "train",
        "w/Validation/a/2.png": "val",
        "w/test/b/3.png": "test",
    }
    assert source.label_names == ("a", "b")
    no_train = open_source(make(tmp_path / "n.zip", {"val/1.png": X, "test/2.png": X}))
    assert no_train.label_names == ("test", "val")


@every_kind
def test_other_files_are_counted_hidden_ones_are_not(make, tmp_path: Path) -> None:
    files = {"1.png": X, "readme.txt": b"", ".DS_Store": b"", "__MACOSX/1.png": X, ".h/2.png": X}
    source = open_source(make(tmp_path / "s.zip", files))
    assert [i.name for i in source.items] == ["1.png"] and source.ignored == ("readme.txt",)


@every_kind
def test_images_beside_class_folders_are_left_out_aloud(make, tmp_path: Path) -> None:
    source = open_source(make(tmp_path / "s.zip", {"a/1.png": X, "b/2.png": X, "stray.png": X}))
    assert len(source.items) == 2 and source.ignored == ("stray.png",)
    assert "1 image lies beside" in source.warnings[0] and "stray.png" in source.warnings[0]


@every_kind
def test_manifest(make, tmp_path: Path) -> None:
    entries = [["x/1.png", 7], ["x/2.png", 3], ["x/none.png", 3], ["../out.png", 3]]
    entries.append(["x/1.png", 3])
    files = {f"x/{n}.png": X for n in (1, 2, 3)}
    files["dataset.json"] = json.dumps({"labels": entries}).encode()
    source = open_source(make(tmp_path / "s.zip", files))
    assert labels(source) == {"x/1.png": "7", "x/2.png": "3"}
    assert [f.name for f in source.refused] == ["../out.png"]
    assert source.ignored == ("x/3.png",)
    text = " ".join(source.warnings)
    assert "1 entry without an image file, such as x/none.png" in text
    assert "1 entry listed again" in text and "1 image is not listed" in text


@every_kind
def test_manifest_without_labels(make, tmp_path: Path) -> None:
    files = {"a/1.png": X, "b/2.png": X, "dataset.json": b'{"labels": null}'}
    assert open_source(make(tmp_path / "s.zip", files)).label_names == ()


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"labels": 3}', '{"labels": [["1.png"]]}', '{"labels": [["1.png", 1.5]]}'],
)
def test_manifest_that_cannot_be_understood(text: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.png": X, "dataset.json": text.encode()})
    with pytest.raises(DataError, match=r"dataset\.json") as caught:
        open_source(tmp_path)
    assert caught.value.expected and caught.value.remedy


def test_zip_names_that_lead_out_are_refused_by_name(tmp_path: Path) -> None:
    bad = ["../evil.png", "/abs.png", "C:/drive.png", "a/../../b.png", "..\\win.png"]
    path = as_zip(tmp_path / "s.zip", {"ok/1.png": X, **dict.fromkeys(bad, X)})
    source = open_source(path)
    assert [i.name for i in source.items] == ["ok/1.png"]
    assert sorted(f.name for f in source.refused) == sorted(bad)
    assert not (tmp_path.parent / "evil.png").exists()


def test_links_and_pipes(tmp_path: Path) -> None:
    root = write_tree(tmp_path / "root", {"1.png": X, "sub/2.png": X})
    write_tree(tmp_path / "outside", {"3.png": X})
    (root / "out.png").symlink_to(tmp_path / "outside" / "3.png")
    (root / "outdir").symlink_to(tmp_path / "outside")
    (root / "gone.png").symlink_to(root / "nothing.png")
    (root / "loop").symlink_to(root)
    (root / "in.png").symlink_to(root / "1.png")
    os.mkfifo(root / "pipe.png")
    source = open_source(root)
    reasons = {f.name: f.reason for f in source.refused}
    assert sorted(reasons) == ["gone.png", "loop", "out.png", "outdir", "pipe.png"]
    assert "leads out" in reasons["out.png"] and "leads out" in reasons["outdir"]
    assert [i.name for i in source.items] == ["sub/2.png"]  # the others lie beside a class folder
    assert set(source.ignored) == {"1.png", "in.png"}


def test_npz(tmp_path: Path) -> None:
    colour = np.stack([noise(n) for n in range(4)])
    np.savez(tmp_path / "c.npz", colour, np.array([5, 5, 9, 5]))
    source = open_source(tmp_path / "c.npz")
    assert source.label_names == ("5", "9") and [i.label for i in source.items] == [0, 0, 1, 0]
    assert np.array_equal(source.read(2), colour[2])
    for gray in (colour[..., 0], colour[..., :1]):
        np.savez_compressed(tmp_path / "g.npz", gray)
        source = open_source(tmp_path / "g.npz")
        assert np.array_equal(source.read(1), colour[1, ..., 0]) and source.label_names == ()


def test_an_unknown_way_with_missing_values(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="guess"):
        open_source("digits", missing="guess")


def test_digits_are_the_ones_of_scikit_learn() -> None:
    source = open_source("digits")
    assert len(source.items) == 1797 and source.label_names == tuple("0123456789")
    assert source.items[0].name == "digit-0000" and source.items[1796].name == "digit-1796"
    first = source.read(0)
    assert isinstance(first, np.ndarray) and first.shape == (8, 8)
    assert first[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16


def test_wrong_paths(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for path, text in (("missing", "does not exist"), ("notes.txt", "kind .txt is unknown")):
        with pytest.raises(UsageError, match=text):
            open_source(tmp_path / path)
    with pytest.raises(DataError, match=r"holds no image\. It has 1 other files, such as notes"):
        open_source(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"PK nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "bad.zip")


@every_kind
def test_images_are_known_by_their_first_bytes_where_the_suffix_is_unknown(
    make, tmp_path: Path
) -> None:
    taken = {f"1.{kind.lower()}_": encoded(noise(1), kind) for kind in ("PNG", "JPEG", "BMP")}
    taken |= {"2": encoded(noise(2), "TIFF"), "3.jfif": encoded(noise(3), "WEBP")}
    taken |= {"4.weird": encoded(Image.fromarray(noise(4)), "GIF"), "5.gif": X}
    left = {"a.bin": X, "b.nef": X, "c.txt": X, "d": b"BMW and no bitmap", "e": b"", "f": b"GIF"}
    source = open_source(make(tmp_path / "s.zip", taken | left))
    assert {i.name for i in source.items} == set(taken)
    assert set(source.ignored) == set(left)


def test_files_that_lead_out_are_never_opened(tmp_path: Path) -> None:
    write_tree(tmp_path, {"secret.txt": b"secret", "root/1.png": X, "table.csv": b"file_name\nx"})
    (tmp_path / "root" / "1.txt").symlink_to(tmp_path / "secret.txt")
    (tmp_path / "root" / "metadata.csv").symlink_to(tmp_path / "table.csv")
    (tmp_path / "root" / "dataset.json").symlink_to(tmp_path / "table.csv")
    (tmp_path / "root" / "shard.tar").symlink_to(tmp_path / "table.csv")
    (tmp_path / "root" / "unknown").symlink_to(tmp_path / "secret.txt")
    source = open_source(tmp_path / "root")
    assert source.items[0].caption is None and source.warnings == ()
    assert set(source.ignored) == {"1.txt", "metadata.csv", "dataset.json", "unknown"}
    assert [f.name for f in source.refused] == ["shard.tar"]


def test_zip_links_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        link = zipfile.ZipInfo("link.png")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("1.png", X)
    source = open_source(tmp_path / "s.zip")
    assert [(f.name, f.reason) for f in source.refused] == [("link.png", "it is a symbolic link")]
    assert [i.name for i in source.items] == ["1.png"]


part = st.text(st.sampled_from("aé1 ._-#%'\"&"), min_size=1, max_size=5).filter(
    lambda text: text.strip(" .") and not text.endswith((" ", "."))
)
names = st.lists(st.lists(part, min_size=1, max_size=3), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(names, st.data())
def test_a_folder_its_zip_and_its_tar_are_the_same_source(tree, data) -> None:
    files: dict[str, bytes] = {}
    for number, parts in enumerate(tree):
        suffix = data.draw(st.sampled_from([".png", ".PNG", ".txt", ".cls", ".json", "", ".gif"]))
        name = "/".join([*(f"{p}d" for p in parts[:-1]), parts[-1]]) + suffix
        text = {".txt": b"a caption", ".cls": b"%d" % (number % 3), ".json": b'{"label": 2}'}
        files[name] = text.get(suffix.lower(), X[: number + 1] if suffix == "" else X)
    with tempfile.TemporaryDirectory() as folder:
        places = [make(Path(folder) / "s.zip", files) for make in (as_folder, as_zip, as_tar)]
        seen = []
        for place in places:
            try:
                source = open_source(place)
            except DataError as error:
                seen.append(error.found.partition(" ")[2])
                continue
            contents = [source.read(n) for n in range(len(source.items))]
            rest = (source.label_names, sorted(source.ignored), source.warnings, source.refused)
            seen.append((source.items, contents, rest))
    assert seen[0] == seen[1] == seen[2]


hostile = st.text(st.sampled_from("a/\\.:C"), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=6))
def test_no_name_leads_out_of_an_archive(bad) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for make in (as_zip, as_tar):
            place = make(Path(folder) / "s.zip", {"ok.png": X} | {f"{n}.png": X for n in bad})
            source = open_source(place)
            for item in source.items:
                inside = Path(os.path.normpath(Path(folder) / item.name))
                assert inside.is_relative_to(folder) and not item.name.startswith("/")
                assert ".." not in item.name.split("/") and "\0" not in item.name
            listed = [*(i.name for i in source.items), *source.ignored]
            assert len(listed) == len(set(listed)) and "ok.png" in listed


@pytest.mark.parametrize(
    "text", ['{"labels": [1', "[]", '{"labels": 3}', '{"labels": [["1.png"]]}']
)
def test_a_bad_manifest_is_told_without_names_of_python_s_errors(text: str, tmp_path: Path) -> None:
    write_tree(tmp_path, {"1.png": X, "dataset.json": text.encode()})
    with pytest.raises(DataError, match=r"dataset\.json cannot be understood: ") as caught:
        open_source(tmp_path)
    assert "Error" not in caught.value.found


@pytest.mark.parametrize("source", ["", " ", "a\0b"])
def test_no_path_is_not_the_current_folder(source: str) -> None:
    with pytest.raises(UsageError, match="is no source"):
        open_source(source)


def test_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for _ in range(3):
            with pytest.warns() if archive.namelist() else contextlib.nullcontext():
                archive.writestr("cat/1.png", X)
    source = open_source(tmp_path / "s.zip")
    assert [item.name for item in source.items] == ["cat/1.png"]
    assert [file.name for file in source.refused] == ["cat/1.png (2)", "cat/1.png (3)"]


def test_what_went_wrong_is_told_in_words() -> None:
    assert told(KeyError("columns")) == "'columns' is missing"
    assert told(PermissionError(13, "Permission denied", "/x")) == "Permission denied"
    assert told(zipfile.BadZipFile("Bad CRC-32.")) == "Bad CRC-32"
    assert told(EOFError()) == "EOFError"


def test_empty_folders_are_named(tmp_path: Path) -> None:
    write_tree(tmp_path, {"cat/1.png": X})
    for name in ("dog", "owl/old"):
        (tmp_path / name).mkdir(parents=True)
    assert open_source(tmp_path).warnings == ("2 folders hold nothing, such as dog/.",)


@every_kind
def test_split_folders_beside_others_are_classes_aloud(make, tmp_path: Path) -> None:
    source = open_source(
        make(tmp_path / "s.zip", {f"{n}/1.png": X for n in ("train", "test", "more")})
    )
    assert source.label_names == ("more", "test", "train")
    assert "The folders test, train are taken for classes, not for splits" in source.warnings[0]
    usual = open_source(make(tmp_path / "t.zip", {f"{n}/1.png": X for n in ("test", "more")}))
    assert not usual.warnings  # classes may be called so


def test_a_source_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def locked(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "/x")

    monkeypatch.setattr("poise.data.sources.is_store", locked)
    with pytest.raises(DataError, match="cannot be read: Permission denied") as caught:
        open_source(tmp_path)
    assert caught.value.remedy
