"""From file names to labelled images: class folders, given splits, tables, files beside images.

Pure functions of names and of what tables say, so a folder, a zip and a tar of it always give the
same data set.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

Split = Literal["train", "val", "test"]
MANIFEST = "dataset.json"
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
FOREIGN_SUFFIXES = (  # of pictures that are never read
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".tga", ".psd"),
    *(".exr", ".hdr", ".dcm", ".dng", ".nef", ".cr2", ".cr3", ".arw", ".orf", ".rw2", ".raf"),
)
SPLIT_NAMES: dict[str, Split] = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}


@dataclass(frozen=True)
class Item:
    """One image file: its path inside the source, its class, the split it was given."""

    name: str  # with / on every system
    label: int | None
    split: Split | None
    caption: str | None = None
    group: str | None = None  # items of one group never lie on two sides of a split
    unplaced: bool = False  # left out of the data set: nothing says where it belongs


@dataclass(frozen=True)
class Unreadable:
    """A file that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Fact:
    """What a table, or the files beside an image, say about it; None: nothing."""

    label: int | str | None = None
    split: Split | None = None
    caption: str | None = None
    group: str | None = None

    def filled_from(self, other: "Fact") -> "Fact":
        """This fact; where it says nothing, the other one."""
        return Fact(
            other.label if self.label is None else self.label,
            other.split if self.split is None else self.split,
            other.caption if self.caption is None else self.caption,
            other.group if self.group is None else self.group,
        )


@dataclass(frozen=True)
class Table:
    """A file that lists images: `dataset.json` or a `metadata` table."""

    name: str
    folder: str  # the rows' paths are relative to it; empty or ends in /
    rows: tuple[tuple[str, Fact], ...] | None  # None: it says that there are no classes
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """What the names say: images in order of name, their classes, and what was left out."""

    items: tuple[Item, ...]
    label_names: tuple[str, ...]  # empty: no classes
    refused: tuple[Unreadable, ...] = ()
    left_out: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass
class _Listed:
    """What all tables together say."""

    facts: dict[str, Fact] = field(default_factory=dict)
    refused: list[Unreadable] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def is_image(name: str) -> bool:
    """Whether the suffix is one of an image format that is read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_hidden(name: str) -> bool:
    """Whether a file manager would not show the file, or macOS added it to an archive."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def unsafe_reason(name: str) -> str | None:
    """Why a path from an archive or a table leads out of its folder; None if it stays inside."""
    path = name.replace("\\", "/")
    if path.startswith("/"):
        return "its path is absolute"
    if len(path) > 1 and path[1] == ":" and path[0].isalpha():
        return "its path has a drive letter"
    if ".." in path.split("/"):
        return "its path leads out of the folder (..)"
    if "\0" in path:
        return "its path holds a zero byte"
    return None


def again(name: str, seen: Counter[str]) -> Unreadable:
    """A member of an archive whose name an earlier one has; `seen` counts, to tell them apart."""
    seen[name] += 1
    return Unreadable(f"{name} ({seen[name] + 1})", "its name occurs twice; the first one counts")


def wrapper_of(images: Sequence[str], others: Sequence[str] = ()) -> str:
    """The folders that wrap everything: `photos/` for photos/cat/1.png and photos/dog/2.png.

    Empty if there are none; else it ends in /. A folder beside which images, a `dataset.json` or a
    `metadata` table lie is not a wrapper.
    """
    prefix, known = "", set(others)
    while images and not any(prefix + table in known for table in (MANIFEST, *TABLES)):
        heads = {name[len(prefix) :].partition("/")[:2] for name in images}
        if len(heads) != 1:
            break
        head, slash = heads.pop()
        if not slash:
            break
        prefix += head + "/"
    return prefix


def arrange(
    images: Sequence[str],
    others: Sequence[str] = (),
    tables: Sequence[Table] = (),
    beside: Mapping[str, Fact] | None = None,
    given: Mapping[str, Split] | None = None,
    *,
    folders: bool = True,
) -> Layout:
    """Classes, splits, captions and groups of all images.

    Labels come from one place for the whole source: from the tables if one of them has any, else
    from the files beside the images, else from the folders. Images that this place says nothing
    about are left out, with a warning. A split or caption in a table wins over one found beside
    the image, and that over one given by folders.

    Args:
        images: paths of all image files, in any order.
        others: paths of the other files; only used to recognise wrapper folders.
        tables: what lists images; those that are in none of them are left out.
        beside: what the files beside an image say about it.
        given: splits that something else gives, such as the name of a shard.
        folders: whether folders may name classes and splits.
    """
    beside, given = beside or {}, given or {}
    names = sorted(images)
    prefix = wrapper_of(names, others)
    tops = _split_folders(names, prefix) if folders else {}
    listed = _listed(set(names), tables)
    left_out: list[str] = []
    if any(table.rows is not None for table in tables):
        left_out = [name for name in names if name not in listed.facts]
        names = [name for name in names if name in listed.facts]
        if left_out:
            where = ", ".join(table.name for table in tables if table.rows is not None)
            listed.warnings.append(
                f"{_count(len(left_out), 'image is', 'images are')} not listed in {where} "
                f"and left out, such as {left_out[0]}."
            )
    labels, lost, warnings = _labels(names, prefix, tops, listed, beside, tables, folders=folders)
    classes = _sorted_classes(labels.values())
    index = {str(label): position for position, label in enumerate(classes)}
    items = []
    for name in names:
        if name in labels:
            fact = listed.facts.get(name, Fact()).filled_from(beside.get(name, Fact()))
            top = tops.get(name[len(prefix) :].partition("/")[0])
            label = labels[name]
            number = None if label is None else index[str(label)]
            split = fact.split or given.get(name) or top
            items.append(Item(name, number, split, fact.caption, fact.group))
    return Layout(
        tuple(items),
        tuple(map(str, classes)),
        tuple(listed.refused),
        (*left_out, *lost),
        (*listed.warnings, *warnings),
    )


def _split_folders(images: Sequence[str], prefix: str) -> dict[str, Split]:
    """Top folder -> split, when every top folder is named like a split and one is train."""
    inner = [name[len(prefix) :] for name in images]
    tops = {name.partition("/")[0] for name in inner if "/" in name}
    found = {top: SPLIT_NAMES[top.lower()] for top in tops if top.lower() in SPLIT_NAMES}
    return found if len(found) == len(tops) and "train" in found.values() else {}


def _listed(present: set[str], tables: Sequence[Table]) -> _Listed:
    """The rows of all tables that name an image; a path that leads out is refused."""
    listed = _Listed()
    for table in tables:
        own: set[str] = set()
        missing: list[str] = []
        repeated: list[str] = []
        for path, fact in table.rows or ():
            reason = unsafe_reason(path)
            name = table.folder + str(PurePosixPath(path.replace("\\", "/")))
            if reason:
                text = f"listed in {table.name}, but {reason}"
                listed.refused.append(Unreadable(path, text))
            elif name not in present:
                missing.append(path)
            elif name in own:
                repeated.append(path)
            else:
                own.add(name)
                listed.facts[name] = listed.facts.get(name, Fact()).filled_from(fact)
        listed.warnings += table.warnings
        listed.warnings += [
            f"{table.name}: {_count(len(names), 'entry', 'entries')} {text}, such as {names[0]}."
            for names, text in (
                (missing, "without an image file"),
                (repeated, "listed again (the first one counts)"),
            )
            if names
        ]
    return listed


def _labels(
    names: list[str],
    prefix: str,
    tops: Mapping[str, Split],
    listed: _Listed,
    beside: Mapping[str, Fact],
    tables: Sequence[Table],
    *,
    folders: bool,
) -> tuple[dict[str, int | str | None], list[str], list[str]]:
    """Name -> label of the images that are kept; those left out; warnings."""
    for facts, where in ((listed.facts, "in the table"), (beside, "beside them")):
        found = {n: facts[n].label for n in names if n in facts and facts[n].label is not None}
        if found:
            lost = [name for name in names if name not in found]
            have = _count(len(lost), "image has", "images have")
            be = "is" if len(lost) == 1 else "are"
            text = f"{have} no label {where} and {be} left out, such as {{}}."
            return dict(found), lost, [text.format(lost[0])] if lost else []
        if facts is listed.facts and any(table.rows is None for table in tables):
            return dict.fromkeys(names), [], []
    return _folder_labels(names, prefix, tops) if folders else (dict.fromkeys(names), [], [])


def _folder_labels(
    names: list[str], prefix: str, tops: Mapping[str, Split]
) -> tuple[dict[str, int | str | None], list[str], list[str]]:
    labels: dict[str, int | str | None] = {}
    left_out: list[str] = []
    for name in names:
        head, slash, rest = name[len(prefix) :].partition("/")
        if not tops:
            labels[name] = head if slash else None
        elif slash:
            folder = rest.partition("/")
            labels[name] = folder[0] if folder[1] else None
        else:
            left_out.append(name)
    mixed = [] if tops else _mixed(names, prefix)
    if any(label is not None for label in labels.values()):
        left_out += [name for name, label in labels.items() if label is None]
        labels = {name: label for name, label in labels.items() if label is not None}
    if not left_out:
        return labels, [], mixed
    text = (
        f"{_count(len(left_out), 'image lies', 'images lie')} beside the folders and left out, "
        f"such as {left_out[0]}: the folder says neither class nor split."
    )
    return labels, left_out, [text, *mixed]


def _mixed(names: Sequence[str], prefix: str) -> list[str]:
    """A warning where folders named like splits are classes, because others beside them are not."""
    tops = sorted({name[len(prefix) :].partition("/")[0] for name in names if "/" in name})
    tops = [top for top in tops if any(name.startswith(f"{prefix}{top}/") for name in names)]
    splits = [top for top in tops if top.lower() in SPLIT_NAMES]
    others = [top for top in tops if top.lower() not in SPLIT_NAMES]
    if not others or "train" not in {SPLIT_NAMES[top.lower()] for top in splits}:
        return []
    return [
        f"The folders {', '.join(splits)} are taken for classes, not for splits, because "
        f"{others[0]} lies beside them and is no split."
        if len(splits) > 1
        else f"The folder {splits[0]} is taken for a class, not for a split, because "
        f"{others[0]} lies beside it and is no split."
    ]


def _sorted_classes(labels: Iterable[int | str | None]) -> list[int | str]:
    """Numbers first, in their order, then names; 3 and "3" are one class."""
    distinct: dict[str, int | str] = {}
    for label in labels:
        if label is not None:
            distinct.setdefault(str(label), label)
    return sorted(distinct.values(), key=lambda label: (isinstance(label, str), label))


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
