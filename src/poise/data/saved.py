"""Data sets that Hugging Face's `datasets` saved to disk, read with pyarrow alone.

A folder with dataset_info.json, state.json and data-*.arrow (streams of record batches), or a
dataset_dict.json beside one such folder per split. The files are mapped, not read.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.arrays import ArrayReader, Mapping, Missing, mapping_of
from poise.data.layout import SPLIT_NAMES, Fact, Item, Split, Unreadable, unsafe_reason
from poise.data.listing import Content, Source, refuse_huge, told
from poise.data.tables import CAPTIONS, LABELS, fact_of
from poise.errors import DataError, UsageError

_INFO, _STATE, _DICT = "dataset_info.json", "state.json", "dataset_dict.json"
_IMAGES = ("image", "img", "pixels", "picture")  # columns of arrays that are taken for images


@dataclass(frozen=True)
class _Part:
    """One split: a table, and what its columns are."""

    name: str  # empty, or ends in /
    split: Split | None
    table: Any  # pyarrow.Table, mapped
    image: str  # the column
    encoded: bool  # a file's content, not numbers
    classes: dict[str, tuple[str, ...]]  # column -> the names of its numbers


def is_saved(folder: Path) -> bool:
    """Whether `datasets` has written this folder."""
    return (folder / _DICT).is_file() or all((folder / n).is_file() for n in (_INFO, _STATE))


def open_saved(folder: Path, missing: Missing = "refuse", group_by: str = "group") -> Source:
    """The images, classes, captions and splits of a saved data set.

    The images are the first column of type Image, else the first of numbers [H, W] or [H, W, C];
    labels, captions, `split` and groups come from columns named as in a table beside images.

    Raises:
        UsageError: pyarrow is not installed.
        DataError: it cannot be read, or has no images.
    """
    inner: list[tuple[str, Split | None]] = [("", None)]
    warnings: list[str] = []
    if (folder / _DICT).is_file():
        names = _json(folder / _DICT).get("splits")
        if not isinstance(names, list) or not names or any(map(_bad_name, names)):
            raise _damaged(folder, f"{_DICT} names no folders of splits")
        inner = [(name + "/", SPLIT_NAMES.get(name.lower())) for name in names]
        if unknown := [name for name in names if name.lower() not in SPLIT_NAMES]:
            warnings.append(f"{', '.join(unknown)}: no known split; divided like all images.")
    parts = [_part(folder / name, name, split) for name, split in inner]
    facts: list[tuple[str, Fact]] = []
    refused: dict[str, Unreadable] = {}
    for part in parts:
        said, unread, text = _facts(part, group_by)
        facts += said
        refused.update({file.name: file for file in unread})
        warnings += text
    labels, items, left_out = _items(facts, parts)
    if left_out:
        warnings.append(
            f"{len(left_out)} images have no label and are left out, such as {left_out[0]}."
        )
    gone = {*refused, *left_out}
    rows = [row for row, (name, _) in enumerate(facts) if name not in gone]
    kept = tuple(item for item in items if item.name not in gone)
    read, text = _reader(parts, missing)
    if not kept and not refused:
        raise _damaged(folder, "it has no rows with an image")
    return Source(
        folder.name or str(folder),
        kept,
        labels,
        lambda index: read(rows[index]),
        tuple(refused.values()),
        tuple(left_out),
        (*warnings, *text),
    )


def _items(
    facts: list[tuple[str, Fact]], parts: Sequence[_Part]
) -> tuple[tuple[str, ...], list[Item], list[str]]:
    """Class names, all items, and the names of those that lack a label that others have."""
    declared = list(
        dict.fromkeys(name for part in parts for names in part.classes.values() for name in names)
    )
    labels = {fact.label for _, fact in facts if fact.label is not None}
    extra = sorted(labels - set(declared), key=lambda label: (isinstance(label, str), label))
    names = tuple(dict.fromkeys(map(str, (*declared, *extra)))) if labels else ()
    index = {name: position for position, name in enumerate(names)}
    items = [
        Item(
            name,
            None if fact.label is None else index[str(fact.label)],
            fact.split,
            fact.caption,
            fact.group,
        )
        for name, fact in facts
    ]
    left_out = [item.name for item in items if names and item.label is None]
    return names, items, left_out


def _part(folder: Path, name: str, split: Split | None) -> _Part:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            f"{folder} is a saved data set; reading it needs pyarrow, which is not installed.",
            expected="the extra 'tables'",
            remedy="Run: pip install 'poise[tables]'",
        ) from None
    state = _json(folder / _STATE)
    if state.get("_indices_data_files"):
        raise DataError(
            f"{folder} was saved with an index over its rows.",
            expected="rows in the order of the files",
            remedy="Save it anew: dataset.flatten_indices().save_to_disk(folder)",
        )
    try:
        files = [row["filename"] for row in state["_data_files"]]
        if not files or any(map(_bad_name, files)):
            raise ValueError(f"{_STATE} names no files of rows in this folder")
        tables = [
            pyarrow.ipc.open_stream(pyarrow.memory_map(str(folder / file))).read_all()
            for file in files
        ]
        table = pyarrow.concat_tables(tables)
        features = _features(folder, table)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise _damaged(folder, told(error)) from None
    image, encoded = _image_column(folder, table, features)
    classes = {
        column: tuple(map(str, spec["names"]))
        for column, spec in features.items()
        if isinstance(spec, dict) and spec.get("_type") == "ClassLabel" and spec.get("names")
    }
    label = next((c for c in (*LABELS, *classes) if c in table.column_names), None)
    if (
        label is not None and label in classes and label not in LABELS
    ):  # such as fine_label: the first one counts
        table = table.append_column(LABELS[0], table.column(label))
        classes = {LABELS[0]: classes[label]}
    else:
        classes = {column: names for column, names in classes.items() if column == label}
    return _Part(name, split, table, image, encoded, classes)


def _features(folder: Path, table: Any) -> dict[str, Any]:
    """What the columns mean, from dataset_info.json or from the files themselves."""
    features = _json(folder / _INFO).get("features")
    if not features:
        inside = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
        features = inside.get("info", {}).get("features")
    return features if isinstance(features, dict) else {}


def _image_column(folder: Path, table: Any, features: dict[str, Any]) -> tuple[str, bool]:
    """The column of images, and whether it holds the content of files."""
    import pyarrow

    columns = table.column_names
    types = {name: table.schema.field(name).type for name in columns}

    def declared(name: str) -> str:
        spec = features.get(name)
        return str(spec.get("_type")) if isinstance(spec, dict) else ""

    for name in columns:
        struct = pyarrow.types.is_struct(types[name])
        if struct and types[name].get_field_index("bytes") >= 0:
            return name, True
    for name in columns:
        if declared(name) == "Image" and types[name] in (pyarrow.binary(), pyarrow.large_binary()):
            return name, True
    for name in columns:
        if declared(name) in ("Array2D", "Array3D") or name.lower() in _IMAGES:
            return name, False
    raise _damaged(folder, f"it has no column of images, only {', '.join(columns)}")


def _facts(
    part: _Part, group_by: str
) -> tuple[list[tuple[str, Fact]], list[Unreadable], list[str]]:
    """Name and fact of every row, the rows without content, and warnings."""
    wanted = (*LABELS, *CAPTIONS, "split", group_by)
    columns = [c for c in wanted if c in part.table.column_names and c != part.image]
    rows: list[dict[str, Any]] = [{}] * len(part.table)
    if columns:
        rows = part.table.select(list(dict.fromkeys(columns))).to_pylist()
    facts: list[tuple[str, Fact]] = []
    unknown: list[str] = []
    for number, row in enumerate(rows):
        for column, names in part.classes.items():
            value = row.get(column)
            if isinstance(value, int) and 0 <= value < len(names):
                row[column] = names[value]
            else:  # -1: a hidden label
                row[column] = None
        try:
            fact, strange = fact_of(row, group_by)
        except ValueError as error:
            raise _damaged(Path(part.name or "."), f"row {number}: {error}") from None
        if part.classes and (label := next(iter(row[c] for c in part.classes))) is not None:
            fact = replace(fact, label=label)  # a class called "7" stays a name
        unknown += [strange] if strange else []
        split = fact.split or part.split
        facts.append((f"{part.name}image-{number:06d}", replace(fact, split=split)))
    refused = _without_content(part, [name for name, _ in facts])
    text = f"{len(unknown)} splits are not known, such as {unknown[0]!r}." if unknown else ""
    return facts, refused, [text] if text else []


def _without_content(part: _Part, names: list[str]) -> list[Unreadable]:
    column = part.table.column(part.image)
    refused: list[Unreadable] = []
    first = 0
    for chunk in column.chunks:
        content = chunk.field("bytes") if part.encoded and chunk.type.num_fields else chunk
        lost = np.asarray(content.is_null()) | np.asarray(chunk.is_null())
        for row in np.flatnonzero(lost).tolist():
            text = "it has no content"
            if part.encoded and chunk.type.num_fields and chunk[row].is_valid:
                path = chunk[row].as_py().get("path")
                text += f", only the path {PurePosixPath(str(path)).name}" if path else ""
            refused.append(Unreadable(names[first + row], text))
        first += len(chunk)
    return refused


def _reader(parts: Sequence[_Part], missing: Missing) -> tuple[Callable[[int], Content], list[str]]:
    """Reads a row of all parts in a row; what was done to numbers."""
    chunks = [(part, chunk) for part in parts for chunk in part.table.column(part.image).chunks]
    starts = np.cumsum([0, *(len(chunk) for _, chunk in chunks)])
    numbers = [_leaves(chunk) for part, chunk in chunks if not part.encoded and len(chunk)]
    mapping, text = mapping_of(numbers, missing) if numbers else (Mapping(0, 255, missing), [])
    kind = numbers[0].dtype if numbers else np.dtype(np.uint8)

    def read(row: int) -> Content:
        which = int(np.searchsorted(starts, row, "right")) - 1
        part, chunk = chunks[which]
        value = chunk[row - int(starts[which])]
        if not part.encoded:
            pixels = np.array(value.as_py(), kind)
            if pixels.ndim not in (2, 3) or not pixels.size:
                raise ValueError(f"an array of shape {pixels.shape} is no image")
            return ArrayReader(pixels[None], mapping)(0)
        content = (value["bytes"] if chunk.type.num_fields else value).as_buffer()
        refuse_huge(len(content))
        return bytes(content)

    return read, text


def _leaves(chunk: Any) -> NDArray[Any]:
    """All numbers of a column of nested lists, [1, n]."""
    import pyarrow

    values = chunk.storage if isinstance(chunk, pyarrow.ExtensionArray) else chunk
    while pyarrow.types.is_nested(values.type):
        values = values.flatten()
    return np.asarray(values)[:, None]


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path.parent, f"{path.name}: {error}") from None
    return value if isinstance(value, dict) else {}


def _bad_name(name: object) -> bool:
    return not isinstance(name, str) or not name or bool(unsafe_reason(name)) or "/" in name


def _damaged(folder: Path, why: str) -> DataError:
    return DataError(
        f"{folder} cannot be read as a saved data set: {why}.",
        expected="a folder that dataset.save_to_disk of Hugging Face wrote, with images in it",
        remedy="Save it anew.",
    )
