"""Tables and files beside images: planted labels, captions, splits and groups come back."""

import csv
import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, noise, write_tree

from poise.data.layout import Fact, Item
from poise.data.sources import Source, open_source
from poise.data.tables import as_label, fact_of
from poise.errors import DataError

X = encoded(noise(0))
ROWS = [
    {"file_name": "a/1.png", "label": "cat", "text": "one, with a comma", "split": "train"},
    {"file_name": "a/2.png", "label": "dog", "text": 'a "second"\none', "split": "Validation"},
    {"file_name": "b/3.png", "label": "cat", "text": "", "split": "test"},
]
FILES = dict.fromkeys(("a/1.png", "a/2.png", "b/3.png"), X)


def as_jsonl(rows: list[dict]) -> bytes:
    return b"\xef\xbb\xbf" + "\n".join(map(json.dumps, rows)).encode() + b"\n\n"


def as_csv(rows: list[dict]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8-sig")


def as_parquet(rows: list[dict]) -> bytes:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    sink = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue()


every_form = pytest.mark.parametrize(
    ("suffix", "form"), [("jsonl", as_jsonl), ("csv", as_csv), ("parquet", as_parquet)]
)


def items(source: Source) -> list[tuple]:
    names = source.label_names
    return [
        (i.name, None if i.label is None else names[i.label], i.split, i.caption, i.group)
        for i in source.items
    ]


@every_form
@pytest.mark.parametrize("zipped", [False, True])
def test_a_table_wins_over_folders(suffix, form, zipped: bool, tmp_path: Path) -> None:
    files = FILES | {f"metadata.{suffix}": form(ROWS), "a/9.png": X}
    place = write_tree(tmp_path / "d", files)
    if zipped:
        place = tmp_path / "d.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    source = open_source(place)
    assert items(source) == [
        ("a/1.png", "cat", "train", "one, with a comma", None),
        ("a/2.png", "dog", "val", 'a "second"\none', None),
        ("b/3.png", "cat", "test", "", None),
    ]
    assert source.label_names == ("cat", "dog") and source.ignored == ("a/9.png",)
    assert f"1 image is not listed in metadata.{suffix}" in source.warnings[0]


@every_form
def test_tables_of_split_folders(suffix, form, tmp_path: Path) -> None:
    rows = {s: [{"file_name": "1.png", "category": k}] for k, s in enumerate(("train", "test"))}
    files = {f"w/{s}/metadata.{suffix}": form(row) for s, row in rows.items()}
    source = open_source(write_tree(tmp_path, files | {f"w/{s}/1.png": X for s in rows}))
    assert items(source) == [
        ("w/test/1.png", "1", "test", None, None),
        ("w/train/1.png", "0", "train", None, None),
    ]
    assert source.warnings == () and source.ignored == ()


def test_captions_alone_leave_the_classes_to_the_folders(tmp_path: Path) -> None:
    rows = [{"file_name": name, "prompt": name.upper()} for name in FILES]
    source = open_source(write_tree(tmp_path, FILES | {"metadata.jsonl": as_jsonl(rows)}))
    assert [row[:4:3] for row in items(source)] == [
        ("a/1.png", "A/1.PNG"),
        ("a/2.png", "A/2.PNG"),
        ("b/3.png", "B/3.PNG"),
    ]
    assert [row[1] for row in items(source)] == ["a", "a", "b"]


def test_what_a_table_gets_wrong_is_named(tmp_path: Path) -> None:
    rows = [
        {"file_name": "a/1.png", "label": 10, "split": "eval"},
        {"file_name": "a/1.png", "label": 9},
        {"file_name": "../out.png", "label": 9},
        {"file_name": "gone.png", "label": 9},
        {"file_name": "a/2.png", "label": "9"},
        {"file_name": "b/3.png", "label": None},
    ]
    source = open_source(write_tree(tmp_path, FILES | {"metadata.jsonl": as_jsonl(rows)}))
    assert [row[:3] for row in items(source)] == [("a/1.png", "10", None), ("a/2.png", "9", None)]
    assert source.label_names == ("9", "10") and source.ignored == ("b/3.png",)
    assert [f.name for f in source.refused] == ["../out.png"]
    text = " ".join(source.warnings)
    for part in ("1 splits are not known, such as 'eval'", "without an image file, such as gone"):
        assert part in text
    assert "listed again" in text and "1 image has no label in the table and is left out" in text


def test_groups_by_any_column(tmp_path: Path) -> None:
    rows = [{"file_name": name, "group": "g", "patient": n // 2} for n, name in enumerate(FILES)]
    root = write_tree(tmp_path, FILES | {"metadata.csv": as_csv(rows)})
    assert [i.group for i in open_source(root).items] == ["g"] * 3
    assert [i.group for i in open_source(root, group_by="patient").items] == ["0", "0", "1"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", b'{"file_name": "a/1.png"'),
        ("metadata.jsonl", b"[]"),
        ("metadata.jsonl", b'{"file_name": 3}'),
        ("metadata.jsonl", b'{"file_name": "a/1.png", "label": [1]}'),
        ("metadata.jsonl", b'{"file_name": "a/1.png", "text": 1}'),
        ("metadata.csv", b"file_name,label\na/1.png,1,2"),
        ("metadata.csv", b"file_name\n\xff\xfe"),
        ("metadata.parquet", b"PAR1 no table"),
    ],
)
def test_tables_that_cannot_be_understood(name: str, content: bytes, tmp_path: Path) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=name) as caught:
        open_source(write_tree(tmp_path, FILES | {name: content}))
    assert caught.value.expected and caught.value.remedy


@pytest.mark.parametrize("content", [b"", b"id,kind\n1,2\n", b"file_name,label\n"])
def test_tables_of_something_else_are_left_alone(content: bytes, tmp_path: Path) -> None:
    source = open_source(write_tree(tmp_path, FILES | {"metadata.csv": content}))
    assert len(source.items) == 3 and source.ignored == ("metadata.csv",)
    assert "metadata.csv has no" in source.warnings[0] and "not used" in source.warnings[0]


def test_table_and_manifest_together(tmp_path: Path) -> None:
    rows = [{"file_name": name, "text": name} for name in FILES]
    labels = [[name, n] for n, name in enumerate(FILES)]
    extra = {"metadata.csv": as_csv(rows), "dataset.json": json.dumps({"labels": labels}).encode()}
    source = open_source(write_tree(tmp_path, FILES | extra))
    assert items(source) == [(name, str(n), None, name, None) for n, name in enumerate(FILES)]


def test_files_beside_images(tmp_path: Path) -> None:
    files = {
        "x/1.png": X,
        "x/1.txt": " one \n".encode("utf-8-sig"),
        "x/2.png": X,
        "x/2.txt": b"",
        "x/3.left.jpg": X,
        "x/3.right.jpg": X,
        "x/3.json": json.dumps({"label": 7, "caption": "pair", "group": 5, "url": []}).encode(),
        "x/3.right.txt": b"right",
        "x/4.png": X,
        "x/4.txt": b"\xff\xfe not utf-8",
        "x/5.png": X,
        "x/5.cls": b"7\n",
        "x/notes.txt": b"nobody's",
    }
    source = open_source(write_tree(tmp_path, files))
    assert items(source) == [
        ("x/3.left.jpg", "7", None, "pair", "5"),
        ("x/3.right.jpg", "7", None, "right", "5"),
        ("x/5.png", "7", None, None, None),
    ]
    assert set(source.ignored) == {"x/1.png", "x/2.png", "x/4.png", "x/notes.txt"}
    assert "3 images have no label beside them and are left out" in source.warnings[0]
    assert "1 file beside images cannot be used, such as x/4.txt" in source.warnings[1]
    for name in ("x/3.json", "x/5.cls"):
        del files[name]
        (tmp_path / name).unlink()
    captions = {i.name: i.caption for i in open_source(tmp_path).items}
    assert captions["x/1.png"] == "one" and captions["x/2.png"] == ""
    assert captions["x/3.right.jpg"] == "right" and captions["x/5.png"] is None


@given(st.integers(-(10**17), 10**17) | st.text("01234 ab.-"))
def test_labels_are_numbers_where_they_say_so(value: int | str) -> None:
    label = as_label(value)
    assert as_label(str(value)) == label and (label is None) == (str(value).strip() == "")
    assert label is None or str(label) == str(value).strip()


def test_odd_values() -> None:
    assert as_label(3.0) == 3 and as_label(float("nan")) is None and as_label(True) == "True"
    for value in (3.5, [1], {}, b"x"):
        with pytest.raises(ValueError, match="label"):
            as_label(value)
    assert fact_of({"caption": ["a", "b"], "class": "7"}) == (Fact(7, None, "a", None), "")
    assert fact_of({"split": " TEST "})[0].split == "test" and fact_of({"split": "x"})[1] == "x"


cell = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(cell, cell, cell), min_size=1, max_size=6))
def test_any_text_survives_every_form(tmp_path_factory, texts) -> None:
    rows = [
        {"file_name": f"{n}.png", "text": a, "label": f"l{b}", "group": f"g{c}"}
        for n, (a, b, c) in enumerate(texts)
    ]
    images = {row["file_name"]: X for row in rows}
    for suffix, form in (("jsonl", as_jsonl), ("csv", as_csv)):
        root = tmp_path_factory.mktemp("d")
        source = open_source(write_tree(root, images | {f"metadata.{suffix}": form(rows)}))
        for item, row in zip(source.items, rows, strict=True):
            assert item.caption == row["text"] and item.group == row["group"]
            assert item.label is not None
            assert source.label_names[item.label] == row["label"].strip()


def test_items_stay_as_they_are_without_any_table(tmp_path: Path) -> None:
    source = open_source(write_tree(tmp_path, FILES))
    assert source.items[0] == Item("a/1.png", 0, None, None, None)


def test_the_row_that_is_wrong_is_named_by_its_number(tmp_path: Path) -> None:
    rows = [{"file_name": "a/1.png"}, {"file_name": 3}]
    with pytest.raises(DataError, match="row 2: file_name is 3"):
        open_source(write_tree(tmp_path, FILES | {"metadata.jsonl": as_jsonl(rows)}))
    with pytest.raises(DataError, match="row 2: Expecting"):
        open_source(
            write_tree(tmp_path, FILES | {"metadata.jsonl": as_jsonl(rows[:1]) + b"\n{bad"})
        )
