"""What stands beside the images: `metadata` tables, `dataset.json`, and files such as `name.txt`.

A table has a column `file_name` (paths relative to the table, as in Hugging Face's imagefolder),
and may have a label (`label`, `class` or `category`), a caption (`text`, `caption` or `prompt`), a
`split` and a `group`. Beside `name.png`, `name.txt` holds its caption, `name.cls` its label, and
`name.json` any of the fields of a table.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from poise.data.layout import MANIFEST, SPLIT_NAMES, TABLES, Fact, Table, wrapper_of
from poise.data.listing import Listing, told
from poise.errors import DataError, PoiseError, UsageError

LABELS = ("label", "class", "category")
CAPTIONS = ("text", "caption", "prompt")
_FILE = "file_name"
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,17}")
_BESIDE = (".txt", ".caption", ".cls", ".json")  # in this order: the first that says something
_LARGEST_BESIDE = 2**20  # bytes

Row = Mapping[str, Any]


def find_tables(
    listing: Listing, group_by: str = "group"
) -> tuple[list[Table], set[str], list[str]]:
    """All tables of a place, `dataset.json` last; the names of their files; warnings.

    Args:
        listing: the files.
        group_by: the column that says which images belong together.

    Raises:
        DataError: a table cannot be read or understood.
    """
    tables: list[Table] = []
    used: set[str] = set()
    warnings: list[str] = []
    for name in sorted(listing.others):
        folder, slash, base = name.rpartition("/")
        if base in TABLES:
            table = _table(name, folder + slash, _content(listing, name), group_by)
            if isinstance(table, Table):
                used.add(name)
                tables.append(table)
            else:
                warnings.append(table)
    prefix = wrapper_of(listing.images, listing.others)
    if prefix + MANIFEST in listing.others:
        name = prefix + MANIFEST
        used.add(name)
        tables.append(Table(name, prefix, _manifest(_content(listing, name))))
    return tables, used, warnings


def find_beside(
    listing: Listing, group_by: str = "group"
) -> tuple[dict[str, Fact], set[str], list[str]]:
    """What files beside images say; the names of these files; warnings.

    A file belongs to the images whose name is its own but for what follows the last point, or the
    first one of the file name (webdataset's key).
    """
    exact: dict[str, list[str]] = {}
    keys: dict[str, list[str]] = {}
    for name in listing.images:
        folder, slash, base = name.rpartition("/")
        stem = base.rpartition(".")[0] or base
        exact.setdefault(folder + slash + stem, []).append(name)
        if (key := base.partition(".")[0]) != stem and key:
            keys.setdefault(folder + slash + key, []).append(name)
    facts: dict[str, Fact] = {}
    used: set[str] = set()
    troubles: list[str] = []
    by_suffix: dict[str, list[str]] = {suffix: [] for suffix in _BESIDE}
    for name in listing.others:
        if (suffix := PurePosixPath(name).suffix.lower()) in by_suffix:
            by_suffix[suffix].append(name)
    for owners in (exact, keys):
        for suffix, names in by_suffix.items():
            for name in names:
                if images := owners.get(name[: -len(suffix)]):
                    used.add(name)
                    fact = _beside(listing, name, suffix, group_by, troubles)
                    for image in images:
                        facts[image] = facts.get(image, Fact()).filled_from(fact)
    warnings = []
    if troubles:
        count = "1 file" if len(troubles) == 1 else f"{len(troubles)} files"
        warnings = [f"{count} beside images cannot be used, such as {troubles[0]}."]
    return facts, used, warnings


def fact_of(row: Row, group_by: str = "group") -> tuple[Fact, str]:
    """What one row says; and its split, if that is no known name.

    Raises:
        ValueError: a value cannot be a label, a caption or a group.
    """
    split = _text(row.get("split"))
    known = SPLIT_NAMES.get(split.lower()) if split else None
    label = as_label(_first(row, LABELS))
    group = _first(row, (group_by,))
    if isinstance(group, (dict, list)):
        raise ValueError(f"{group_by} holds {type(group).__name__}")
    caption = _first(row, CAPTIONS)
    if isinstance(caption, list) and caption:  # several captions of one image
        caption = caption[0]
    if caption is not None and not isinstance(caption, str):
        raise ValueError(f"its caption is {type(caption).__name__}")
    fact = Fact(label, known, caption, None if group in (None, "") else str(group))
    return fact, split if split and known is None else ""


def as_label(value: Any) -> int | str | None:
    """A class as a number or a name; None for nothing. Texts such as "12" are numbers.

    Raises:
        ValueError: it is neither.
    """
    if value is None or isinstance(value, int):
        return value if value is None or not isinstance(value, bool) else str(value)
    if isinstance(value, float):
        if value != value:  # how tables write nothing into a column of numbers
            return None
        if value.is_integer():
            return int(value)
    if not isinstance(value, str):
        raise ValueError(f"the label {value!r:.40} is neither a number nor a name")
    text = value.strip()
    return int(text) if _INTEGER.fullmatch(text) else text or None


def _first(row: Row, names: tuple[str, ...]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _text(value: Any) -> str:
    return value.strip() if isinstance(value, str) else ""


def _content(listing: Listing, name: str) -> bytes:
    try:
        return listing.read(name)
    except Exception as error:  # a damaged archive fails in many ways; all stop here
        found = error.found if isinstance(error, PoiseError) else str(error)
        raise DataError(
            f"{name} cannot be read: {found}.",
            expected="a readable file with the labels of the images",
            remedy="Repair it, or remove it to take the classes from the folders.",
        ) from None


def _table(name: str, folder: str, content: bytes, group_by: str) -> Table | str:
    """The table; or why it is none of images."""
    rows: list[tuple[str, Fact]] = []
    splits: list[str] = []
    number = 1
    try:
        for row in _rows(name, content):
            if number == 1 and _FILE not in row:
                columns = ", ".join(str(column) for column in list(row)[:10])
                return f"{name} has no column {_FILE}, only {columns}; it is not used."
            path = row.get(_FILE)
            if not isinstance(path, str) or not path:
                raise ValueError(f"{_FILE} is {path!r:.40}")
            fact, unknown = fact_of(row, group_by)
            rows.append((path, fact))
            splits += [unknown] if unknown else []
            number += 1
    except UsageError:
        raise
    except Exception as error:  # bytes that are no table fail in many ways; all are reported
        raise DataError(
            f"{name} cannot be understood: row {number}: {told(error)}.",
            expected=f"one row per image with {_FILE} and, if known, {', '.join(LABELS)}, "
            f"{', '.join(CAPTIONS)}, split or {group_by}",
            remedy="Correct it, or remove it to take the classes from the folders.",
        ) from None
    if not rows:
        return f"{name} has no rows; it is not used."
    text = f"{name}: {len(splits)} splits are not known, such as {splits[0]!r}." if splits else ""
    return Table(name, folder, tuple(rows), (text,) if text else ())


def _rows(name: str, content: bytes) -> Iterator[Row]:
    if name.endswith(".parquet"):
        yield from _parquet_rows(name, content)
        return
    text = content.decode("utf-8-sig")
    if name.endswith(".csv"):
        head = text.partition("\n")[0]
        mark = ";" if _FILE in head and ";" in head and "," not in head else ","
        for row in csv.DictReader(io.StringIO(text, newline=""), delimiter=mark, strict=True):
            if None in row:
                raise ValueError("it has more cells than there are columns")
            yield {(key or "").strip(): value for key, value in row.items()}
        return
    for line in text.split("\n"):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"it is {type(row).__name__}, not an object in braces")
            yield row


def _parquet_rows(name: str, content: bytes) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UsageError(
            f"{name} needs pyarrow, which is not installed.",
            expected="the extra 'tables'",
            remedy="Run: pip install 'poise[tables]'",
        ) from None
    table = parquet.ParquetFile(pyarrow.BufferReader(content))
    for batch in table.iter_batches():
        yield from batch.to_pylist()


def _beside(listing: Listing, name: str, suffix: str, group_by: str, troubles: list[str]) -> Fact:
    """What one file beside an image says."""
    try:
        content = listing.read(name)
        if len(content) > _LARGEST_BESIDE:
            raise ValueError("it has more than 1 MiB")
        text = content.decode("utf-8-sig").strip()
        if suffix == ".cls":
            return Fact(label=as_label(text))
        if suffix != ".json":
            return Fact(caption=text)
        row = json.loads(text)
        return fact_of(row, group_by)[0] if isinstance(row, dict) else Fact()
    except Exception as error:  # one bad file never stops the others; all are counted
        troubles.append(f"{name} ({error})")
        return Fact()


def _manifest(content: bytes) -> tuple[tuple[str, Fact], ...] | None:
    """The rows of `dataset.json`; None when `labels` is null."""
    form = '{"labels": [["folder/image.png", 3], ...]} or {"labels": null}'
    remedy = f"Correct {MANIFEST}, or remove it to take the classes from the folders."
    try:
        raw: Any = json.loads(content)
        if not isinstance(raw, dict) or "labels" not in raw:
            raise ValueError('it has no "labels"')
        entries = raw["labels"]
        if entries is None:
            return None
        if not isinstance(entries, list):
            raise ValueError(f'its "labels" are {type(entries).__name__}, not a list')
        if wrong := [pair for pair in entries if not isinstance(pair, list) or len(pair) != 2]:
            raise ValueError(f"{wrong[0]!r:.40} is not a path and one class")
        pairs = [(path, label) for path, label in entries]
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{MANIFEST} cannot be understood: {told(error)}.",
            expected=form,
            remedy=remedy,
        ) from None
    kinds = {type(label) for _, label in pairs}
    if any(not isinstance(path, str) for path, _ in pairs) or (kinds not in ({int}, {str}, set())):
        raise DataError(
            f"{MANIFEST} holds entries that are not a path and one class.",
            expected=form,
            remedy=remedy,
        )
    return tuple((path, Fact(label=label)) for path, label in pairs)
