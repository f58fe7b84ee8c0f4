"""Data sets written as Hugging Face's `datasets` writes them: streams of record batches."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import encoded, noise

from poise.data.dataset import load_dataset
from poise.data.sources import open_source
from poise.errors import DataError
from poise.settings import DataConfig

pyarrow = pytest.importorskip("pyarrow")

IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
LABEL = {"names": ["cat", "10", "9"], "_type": "ClassLabel"}


def save(
    folder: Path, columns: dict[str, Any], features: dict[str, Any], files: int = 2, rows: int = 3
) -> Path:
    """`columns` (name -> arrow array) in `files` streams, with `rows` rows per record batch."""
    folder.mkdir(parents=True, exist_ok=True)
    info = {"features": features}
    table = pyarrow.table(columns).replace_schema_metadata(
        {"huggingface": json.dumps({"info": info})}
    )
    step = -(-len(table) // files)
    names = []
    for number in range(files):
        names.append(f"data-{number:05d}-of-{files:05d}.arrow")
        part = table.slice(number * step, step)
        with pyarrow.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(part, max_chunksize=rows)
    state = {"_data_files": [{"filename": name} for name in names], "_split": "train"}
    (folder / "state.json").write_text(json.dumps(state | {"_indices_data_files": None}))
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def pictures(first: int, last: int) -> Any:
    rows = [{"bytes": encoded(noise(n)), "path": f"{n}.png"} for n in range(first, last)]
    return pyarrow.array(rows, IMAGE)


FEATURES = {
    "image": {"_type": "Image"},
    "label": LABEL,
    "text": {"dtype": "string", "_type": "Value"},
}


def test_images_classes_captions(tmp_path: Path) -> None:
    columns = {
        "image": pictures(0, 14),
        "label": pyarrow.array([n % 3 for n in range(14)]),
        "text": pyarrow.array([f"picture {n}" for n in range(13)] + [None]),
    }
    source = open_source(save(tmp_path / "d", columns, FEATURES))
    assert [i.name for i in source.items] == [f"image-{n:06d}" for n in range(14)]
    assert source.label_names == ("cat", "10", "9")
    assert [i.label for i in source.items] == [n % 3 for n in range(14)]
    assert [i.caption for i in source.items] == [f"picture {n}" for n in range(13)] + [None]
    assert [source.read(n) for n in range(14)] == [encoded(noise(n)) for n in range(14)]
    assert source.refused == () and source.warnings == () and source.name == "d"
    (tmp_path / "d" / "dataset_info.json").write_text("{}")  # then the files themselves say it
    assert open_source(tmp_path / "d").items == source.items
    data = load_dataset(tmp_path / "d", DataConfig(), store=tmp_path)
    assert data.label_names == ("cat", "10", "9") and data.captions[5] == "picture 5"


def test_splits_of_a_dict(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "validation", "odd"]}')
    for k, name in enumerate(("train", "validation", "odd")):
        columns = {"img": pictures(10 * k, 10 * k + 4), "label": pyarrow.array([0, 1, -1, 2])}
        save(tmp_path / name, columns, {"img": {"_type": "Image"}, "label": LABEL})
    source = open_source(tmp_path)
    assert [(i.name, i.split) for i in source.items[::3]] == [
        ("train/image-000000", "train"),
        ("validation/image-000000", "val"),
        ("odd/image-000000", None),
    ]
    assert [source.label_names[i.label or 0] for i in source.items] == ["cat", "10", "9"] * 3
    assert source.read(4) == encoded(noise(11)) and source.read(5) == encoded(noise(13))
    assert source.ignored == tuple(f"{s}/image-000002" for s in ("train", "validation", "odd"))
    assert "odd" in source.warnings[0] and "3 images have no label" in source.warnings[1]


def test_rows_without_content_are_refused(tmp_path: Path) -> None:
    rows = pictures(0, 5).to_pylist()
    rows[1] = None
    rows[3] = {"bytes": None, "path": "/somewhere/else/3.png"}
    columns = {"image": pyarrow.array(rows, IMAGE)}
    source = open_source(save(tmp_path, columns, {"image": {"_type": "Image"}}))
    assert {f.name: f.reason for f in source.refused} == {
        "image-000001": "it has no content",
        "image-000003": "it has no content, only the path 3.png",
    }
    assert [source.read(n) for n in range(3)] == [encoded(noise(n)) for n in (0, 2, 4)]


@pytest.mark.parametrize(("kind", "channels"), [(np.uint8, 3), (np.float32, 5), (np.uint16, 0)])
def test_columns_of_numbers(kind, channels: int, tmp_path: Path) -> None:
    shape = (12, 8, 8, channels) if channels else (12, 8, 8)
    values = np.random.default_rng(0).integers(0, 256, shape).astype(kind)
    values.flat[:2] = (0, 255)
    features = {"x": {"shape": shape[1:], "_type": "Array3D" if channels else "Array2D"}}
    leaf = pyarrow.from_numpy_dtype(kind)
    nested = pyarrow.list_(pyarrow.list_(leaf))
    column = pyarrow.array(values.tolist(), pyarrow.list_(nested) if channels else nested)
    source = open_source(save(tmp_path, {"x": column}, features))
    assert [np.array_equal(source.read(n), values[n]) for n in range(12)] == [True] * 12
    assert bool(source.warnings) == (kind is not np.uint8)


def test_labels_by_other_names_and_as_text(tmp_path: Path) -> None:
    columns = {"image": pictures(0, 3), "fine_label": pyarrow.array([2, 0, 0])}
    features = {"image": {"_type": "Image"}, "fine_label": LABEL}
    source = open_source(save(tmp_path / "a", columns, features))
    assert [source.label_names[i.label or 0] for i in source.items] == ["9", "cat", "cat"]
    columns = {"image": pictures(0, 3), "category": pyarrow.array(["b", "a", "b"])}
    columns["patient"] = pyarrow.array([1, 1, 2])
    source = open_source(save(tmp_path / "b", columns, {}), group_by="patient")
    assert source.label_names == ("a", "b") and [i.group for i in source.items] == ["1", "1", "2"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", "{"),
        ("state.json", "{}"),
        ("state.json", '{"_data_files": []}'),
        ("state.json", '{"_data_files": [{"filename": "../../data.arrow"}]}'),
        ("state.json", '{"_data_files": [{"filename": "gone.arrow"}]}'),
        ("dataset_info.json", "["),
        ("data-00000-of-00002.arrow", "no stream"),
        ("dataset_dict.json", '{"splits": ["../x"]}'),
        ("dataset_dict.json", '{"splits": []}'),
        ("state.json", '{"_indices_data_files": [{"filename": "i.arrow"}]}'),
    ],
)
def test_what_is_damaged_or_hostile(name: str, content: str, tmp_path: Path) -> None:
    save(tmp_path, {"image": pictures(0, 4)}, {"image": {"_type": "Image"}})
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    assert caught.value.expected and caught.value.remedy


def test_no_column_of_images(tmp_path: Path) -> None:
    save(tmp_path, {"text": pyarrow.array(["a", "b"])}, {})
    with pytest.raises(DataError, match="no column of images, only text"):
        open_source(tmp_path)
