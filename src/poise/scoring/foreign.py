"""Anybody's samples and anybody's real images: folders, archives, arrays, prepared sets.

Nothing here needs a model of Poise. Images are brought to the side of the samples; where both have
it already, no pixel is changed.
"""

import csv
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.console import Screen
from poise.data.dataset import Dataset, load_dataset
from poise.data.decode import read_header
from poise.data.imageset import Subset
from poise.data.sources import open_source
from poise.data.store import is_store, read_manifest
from poise.errors import DataError, UsageError
from poise.scoring.real import Images, Real
from poise.settings import DataConfig

_LOOKED_AT = 64  # images whose size decides
_SMALLEST, _LARGEST = 4, 1024  # side in pixels
_LABELS = "labels.csv"  # what `poise sample` writes beside its images


@dataclass(frozen=True)
class Wanted:
    """What is compared with what.

    Attributes:
        samples: folder, archive or array file of generated images.
        reference: source of real images.
        train: source of the images that the model was trained on; None: the training split of the
            reference where it has one, else the reference itself is searched for copies.
        split: which images of the reference: train, val, test or all; None: those that are not for
            training where it has splits, else all.
        resolution: side in pixels; None: that of the samples.
    """

    samples: str
    reference: str
    train: str | None = None
    split: str | None = None
    resolution: int | None = None


def read_samples(wanted: Wanted, screen: Screen) -> Dataset:
    """The samples, all at one side.

    Raises:
        UsageError: a side that no images have.
    """
    side = wanted.resolution
    if side is not None and not _SMALLEST <= side <= _LARGEST:
        raise UsageError(
            f"--resolution {side} is no side of images.",
            expected=f"{_SMALLEST} to {_LARGEST} pixels",
        )
    return _read(wanted.samples, side or native_side(wanted.samples), screen, "samples")


def read_real(wanted: Wanted, side: int, screen: Screen) -> Real:
    """The real images, brought to the side of the samples.

    Raises:
        UsageError: a split that the reference does not have.
    """
    found = _read(wanted.reference, side, screen, "real images")
    members, name = _members(found, wanted)
    train: tuple[Subset, NDArray[np.int64] | None] | None = None
    if wanted.train is not None:
        other = _read(wanted.train, side, screen, "training images")
        rows = _rows_of(other, (None, "train"))
        train = Subset(other.images, rows), _labels_as(other, found.label_names, rows)
    else:
        rows = _rows_of(found, ("train",))
        if len(rows) and not np.isin(rows, members).any():
            labels = None if found.labels is None else found.labels[rows]
            train = Subset(found.images, rows), labels
    return Real(
        reference=Subset(found.images, members),
        labels=None if found.labels is None else found.labels[members],
        train=None if train is None else train[0],
        train_labels=None if train is None else train[1],
        names=found.label_names,
        split=name,
        data=found.fingerprint,
        resized="none" if native_side(wanted.reference) == side else f"Lanczos to {side}",
    )


def same_channels(samples: Images, real: Real) -> tuple[Images, Real]:
    """Both with equal channels: grey images become three equal ones where the others have colour.

    Raises:
        DataError: neither is grey.
    """
    train = real.train
    channels = {
        images.shape[1] for images in (samples, real.reference, train) if images is not None
    }
    if len(channels) == 1:
        return samples, real
    if channels != {1, 3}:
        raise DataError(
            f"Images of {' and '.join(map(str, sorted(channels)))} channels cannot be compared.",
            expected="one number of channels for samples and real images",
        )
    wide = None if train is None else _coloured(train)
    return _coloured(samples), replace(real, reference=_coloured(real.reference), train=wide)


def _coloured(images: Images) -> Images:
    return images if images.shape[1] == 3 else images[:].repeat(3, axis=1)


def sample_labels(samples: Dataset, names: tuple[str, ...], path: Path) -> NDArray[np.int64] | None:
    """The class that was asked of each sample, as an index into `names`; None: not known.

    Classes of the samples are matched by name, or by number where their names are the numbers of
    classes. `labels.csv` beside the images is read where folders name no classes.
    """
    if not names:
        return None
    if samples.labels is not None:
        return _labels_as(samples, names, np.arange(len(samples)))
    asked = _labels_beside(path)
    if asked is None:
        return None
    numbers = [_number(asked.get(Path(name).name, ("", "")), names) for name in samples.names]
    return None if None in numbers else np.array(numbers, np.int64)


def native_side(source: str) -> int:
    """The median of the shorter sides of some images, at most 1024.

    Raises:
        DataError: no image can be read.
    """
    if source != "digits" and is_store(source):
        return int(read_manifest(Path(source))["height"])
    opened = open_source(source)
    step = max(1, len(opened.items) // _LOOKED_AT)
    sides = []
    for index in range(0, len(opened.items), step):
        try:
            content = opened.read(index)
            shape = read_header(content)[:2] if isinstance(content, bytes) else content.shape[:2]
        except Exception:  # the full pass meets the same file again and names it
            continue
        sides.append(min(shape))
    if not sides:
        raise DataError(
            f"No image of {source} can be read.",
            expected="PNG or other image files, or an .npz or .npy of images",
        )
    return min(int(np.median(sides)), _LARGEST)


def _read(source: str, side: int, screen: Screen, what: str) -> Dataset:
    # Decoded images beyond the limit of memory go to a file that ends with the process.
    config = DataConfig(resolution=None if source != "digits" and is_store(source) else side)
    with screen.bar(f"reading {what}", 1) as bar:
        dataset = load_dataset(source, config, store=_scratch(), progress=bar.show)
    if dataset.resolution != side:
        raise DataError(
            f"{source} was prepared at {dataset.resolution} pixels, and the samples have {side}.",
            expected="one side for both",
            remedy=f"Compare at --resolution {dataset.resolution}, or name the original images.",
        )
    screen.say(
        f"{source}: {len(dataset):,} {what} of {side}x{side}, "
        f"{len(dataset.label_names) or 'no'} classes"
    )
    for remark in [*dataset.remarks(), *_cut(dataset)]:
        screen.say(f"  {remark}")
    return dataset


def _cut(dataset: Dataset) -> list[str]:
    """What to say of images that are no squares of this side."""
    side = f"{dataset.resolution}x{dataset.resolution}"
    other = [f"{count} of {size}" for size, count in dataset.sizes.items() if size != side]
    if not other:
        return []
    return [f"note: cut to the centre square and brought to {side}: {', '.join(other[:5])}"]


_folders: list[tempfile.TemporaryDirectory[str]] = []


def _scratch() -> Path:
    _folders.append(tempfile.TemporaryDirectory(prefix="poise-"))
    return Path(_folders[-1].name)


def _members(found: Dataset, wanted: Wanted) -> tuple[NDArray[np.int64], str]:
    """Which images of the reference are compared with, and their name."""
    given = np.array([s or "" for s in found.given_splits])
    held_out = np.flatnonzero((given == "val") | (given == "test"))
    if wanted.split is None:
        if len(held_out) and (given == "train").any():
            return held_out, "held-out images of the reference"
        return np.arange(len(found)), "all of the reference"
    if wanted.split == "all":
        return np.arange(len(found)), "all of the reference"
    rows = np.flatnonzero(given == wanted.split)
    if not len(rows):
        known = sorted(set(given.tolist()) - {""})
        raise UsageError(
            f"{wanted.reference} has no split {wanted.split!r}.",
            expected=f"one of {', '.join([*known, 'all'])}",
        )
    return rows, f"{wanted.split} split of the reference"


def _rows_of(dataset: Dataset, splits: tuple[str | None, ...]) -> NDArray[np.int64]:
    """The images that were given to one of the splits."""
    return np.array([i for i, s in enumerate(dataset.given_splits) if s in splits], np.int64)


def _labels_as(
    dataset: Dataset, names: tuple[str, ...], rows: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """The labels of some images in the numbering of `names`; None where they cannot be matched.

    Names are matched with names if all of them are known, else with numbers.
    """
    if dataset.labels is None or not names:
        return None
    own = dataset.label_names
    if set(own) <= set(names):
        numbers = [names.index(name) for name in own]
    elif all(n.isascii() and n.isdecimal() and int(n) < len(names) for n in own):
        numbers = [int(name) for name in own]
    else:
        return None
    return np.array(numbers, np.int64)[dataset.labels[rows]]


def _number(label: tuple[str, str], names: tuple[str, ...]) -> int | None:
    """The class called `label[1]`, or with the number `label[0]`."""
    number, name = label
    if name in names:
        return names.index(name)
    if number.isascii() and number.isdecimal() and int(number) < len(names):
        return int(number)
    return None


def _labels_beside(path: Path) -> dict[str, tuple[str, str]] | None:
    """File name -> (number, name) of its class, as `poise sample` wrote it."""
    table = path / _LABELS
    if not path.is_dir() or not table.is_file():
        return None
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "label", "name"} <= rows[0].keys():
        return None
    return {r["file"] or "": (r["label"] or "", r["name"] or "") for r in rows}
