"""What the images look like, for people: counts, duplicates, balance, and a plain verdict.

It only reports; nothing here removes or changes an image.
"""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.dataset import Dataset
from poise.data.splits import SPLITS, Splits, duplicate_roots

_GROUPS_LISTED = 200
_EXAMPLES = 10
_FEW = 200  # images
_IMBALANCE = 5  # largest class over smallest
_DOMINANT = 0.9  # share of one class
_TINY = 20  # images of a class
_CHUNK = 1024


def summarize(dataset: Dataset, splits: Splits) -> dict[str, Any]:
    """Everything worth knowing before training, as plain data for JSON.

    Keys: images, unreadable, ignored, duplicates (at most 200 groups) and duplicate_groups (all of
    them), duplicate_images (copies beyond the first), classes, split_classes, split_sizes, dropped,
    sizes, modes, channels, resolution, brightness (on a scale of 0 to 255), warnings and verdict
    (plain sentences, worst first; the verdict has 1 to 5).
    """
    duplicates = _duplicates(dataset)
    every = np.arange(len(dataset))
    facts: dict[str, Any] = {
        "source": dataset.source,
        "fingerprint": dataset.fingerprint,
        "images": len(dataset),
        "unreadable": [{"path": f.name, "reason": f.reason} for f in dataset.unreadable],
        "ignored": {
            "count": len(dataset.ignored),
            "examples": list(dataset.ignored[:_EXAMPLES]),
        },
        "duplicates": duplicates[:_GROUPS_LISTED],
        "duplicate_groups": len(duplicates),
        "duplicate_images": sum(len(group["paths"]) - 1 for group in duplicates),
        "classes": _class_counts(dataset, every),
        "split_classes": {name: _class_counts(dataset, splits.of(name)) for name in SPLITS},
        "split_sizes": {name: len(splits.of(name)) for name in SPLITS},
        "dropped": len(splits.dropped),
        "sizes": dict(dataset.sizes),
        "modes": dict(dataset.modes),
        "channels": dataset.channels,
        "resolution": dataset.resolution,
        "brightness": _brightness(dataset.images),
    }
    conflicts = sum(group["cross_class"] for group in duplicates)
    # Sorted by severity; Python's sort keeps the order of equals.
    found = sorted(_findings(dataset, facts, conflicts), key=lambda pair: -pair[0])
    facts["warnings"] = [text for _, text in found]
    facts["verdict"] = _verdict(facts, [text for severity, text in found if severity >= 3])
    return facts


def _duplicates(dataset: Dataset) -> list[dict[str, Any]]:
    """Groups of images with equal pixels, largest first."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(duplicate_roots(dataset)):
        groups[root].append(index)
    labels = dataset.labels
    rows = [
        {
            "kind": "pixels",
            "paths": [dataset.names[i] for i in members],
            "cross_class": labels is not None and len({int(labels[i]) for i in members}) > 1,
        }
        for members in groups.values()
        if len(members) > 1
    ]
    return sorted(rows, key=lambda row: (not row["cross_class"], -len(row["paths"]), row["paths"]))


def _class_counts(dataset: Dataset, members: NDArray[np.int64]) -> dict[str, int]:
    if dataset.labels is None:
        return {}
    counts = np.bincount(dataset.labels[members], minlength=dataset.num_classes)
    return dict(zip(dataset.label_names, counts.tolist(), strict=True))


def _brightness(images: NDArray[np.uint8]) -> dict[str, Any]:
    """Mean and standard deviation of all bytes, and images of one flat colour."""
    counts = np.zeros(256, np.int64)
    constant = 0
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        counts += np.bincount(part.ravel(), minlength=256)
        flat = part.reshape(*part.shape[:2], -1)
        constant += int((flat.min(2) == flat.max(2)).all(1).sum())
    values = np.arange(256)
    mean = float(counts @ values / counts.sum())
    std = float(np.sqrt(counts @ (values - mean) ** 2 / counts.sum()))
    return {"mean": round(mean, 3), "std": round(std, 3), "constant_images": constant}


def _findings(dataset: Dataset, facts: dict[str, Any], conflicts: int) -> list[tuple[int, str]]:
    """(severity from 1 to 5, sentence)."""
    found = _files_left_out(dataset) + _contents(facts, conflicts) + _balance(facts["classes"])
    # Soft and left-out images matter less than wrong ones, lost classes more.
    return found + [
        (4 if text.startswith("class ") else 2, _sentence(text)) for text in dataset.warnings
    ]


def _files_left_out(dataset: Dataset) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    if dataset.unreadable:
        first = dataset.unreadable[0]
        found.append(
            (
                5,
                f"{_files(len(dataset.unreadable), 'cannot be read')} (left out), "
                f"such as {first.name} ({first.reason}).",
            )
        )
    if dataset.ignored:
        found.append(
            (
                1,
                f"{_files(len(dataset.ignored), 'ignored:')} not images or not placed, such as "
                f"{dataset.ignored[0]}.",
            )
        )
    return found


def _contents(facts: dict[str, Any], conflicts: int) -> list[tuple[int, str]]:
    found: list[tuple[int, str]] = []
    images = facts["images"]
    if conflicts:
        found.append(
            (
                5,
                f"{conflicts} group{'s' if conflicts > 1 else ''} of identical images lie in two "
                "classes: at least one label of each is wrong.",
            )
        )
    if images < _FEW:
        found.append(
            (
                4,
                f"There are only {images} images: a model will copy them rather than learn "
                f"from them; aim for {_FEW} or more.",
            )
        )
    constant = facts["brightness"]["constant_images"]
    if constant:
        found.append((3, f"{constant} of {images} images are one flat colour and teach nothing."))
    copies = facts["duplicate_images"]
    if copies:
        found.append(
            (
                3,
                f"{copies} of {images} images are exact copies of others; copies stay on one "
                "side of the split, but the model sees these images more often.",
            )
        )
    if facts["dropped"]:
        found.append(
            (
                3,
                f"{facts['dropped']} images were given to two splits and dropped from the weaker "
                "one, so that scores stay honest.",
            )
        )
    return found


def _balance(classes: dict[str, int]) -> list[tuple[int, str]]:
    if len(classes) < 2:
        return []
    found: list[tuple[int, str]] = []
    ranked = sorted(classes, key=lambda name: (-classes[name], name))
    largest, smallest = ranked[0], ranked[-1]
    share = classes[largest] / sum(classes.values())
    ratio = classes[largest] / max(classes[smallest], 1)
    if share > _DOMINANT:
        found.append(
            (
                4,
                f"{share:.0%} of the images are of class {largest!r}: "
                "the other classes will hardly be learnt.",
            )
        )
    elif ratio > _IMBALANCE:
        found.append(
            (
                3,
                f"The classes are unequal: {largest!r} has {classes[largest]} images, {smallest!r} "
                f"{classes[smallest]} ({ratio:.0f} times fewer); rare classes come out worse.",
            )
        )
    tiny = [name for name in ranked if 1 < classes[name] < _TINY]  # one: said when it was read
    if tiny:
        names = ", ".join(f"{name!r} ({classes[name]})" for name in tiny[:5])
        more = f" and {len(tiny) - 5} more" if len(tiny) > 5 else ""
        found.append(
            (
                3,
                f"{len(tiny)} class{'es' if len(tiny) > 1 else ''} with fewer than {_TINY} images: "
                f"{names}{more}.",
            )
        )
    return found


def _verdict(facts: dict[str, Any], serious: list[str]) -> list[str]:
    """One to five sentences for somebody who sees such a list for the first time."""
    sizes = facts["split_sizes"]
    kind = "gray" if facts["channels"] == 1 else "colour"
    classes = f" in {len(facts['classes'])} classes" if facts["classes"] else ""
    summary = (
        f"{facts['images']} {kind} images{classes} at {facts['resolution']}x{facts['resolution']} "
        f"pixels: {sizes['train']} to train, {sizes['val']} to validate, {sizes['test']} to test."
    )
    if not serious:
        return ["Nothing stands against training on these images.", summary]
    return [*serious[:4], summary]


def _files(count: int, verb: str) -> str:
    return f"{count} file{'' if count == 1 else 's'} {verb}"


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] if text.startswith("class ") else text
