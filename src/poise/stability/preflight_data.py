"""Whether the training images can teach anything: flat, copied, in a wrong range, badly labelled.

A look at some thousand images, evenly spread; nothing is removed or changed.
"""

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.imageset import Dataset
from poise.stability.preflight_check import Check, Verdict

_MOST = 8192  # images looked at
_CHUNK = 512
_SOME_FLAT, _SOME_COPIES = 0.01, 0.10  # shares that are said
_DARK = 64  # of 255: a brightest value below it was hardly meant
_SPREAD = 0.05  # deviation on a scale of -1 to 1; photographs have 0.4 to 0.6
_SINGLE = 1  # a class with so many training images is a single picture


def check_data(
    dataset: Dataset,
    members: NDArray[np.int64],
    *,
    batch: int,
    sigma_data: float,
    seconds: float,
) -> Check:
    """What stands against training on these images.

    Args:
        dataset: the images.
        members: indices of the training images.
        batch: images per update.
        sigma_data: deviation of the training pixels, on a scale of -1 to 1.
        seconds: no further images are looked at after so long.
    """
    numbers = _pixels(dataset, members, seconds)
    numbers |= _copies(dataset, members) | _classes(dataset, members)
    numbers |= {"images": len(members), "batch": batch, "sigma_data": sigma_data}
    refused, warned = _refusals(numbers), _warnings(numbers)
    if refused or warned:
        verdict: Verdict = "refuse" if refused else "warn"
        return Check("data", verdict, " ".join(refused + warned), numbers)
    sentence = f"Nothing stands against the {len(members):,} training images."
    return Check("data", "ok", sentence, numbers)


def _pixels(dataset: Dataset, members: NDArray[np.int64], seconds: float) -> dict[str, Any]:
    """Range of the bytes and images of one colour, among images evenly spread."""
    step = max(1, -(-len(members) // _MOST))
    # chunks in an order that spreads over the whole, so that stopping early is still a sample
    looked = members[::step]
    stride = max(1, -(-len(looked) // _CHUNK))
    until = time.monotonic() + seconds
    low, high, flat, seen = 255, 0, 0, 0
    for offset in range(stride):
        part = np.asarray(dataset.images[looked[offset::stride]])
        rows = part.reshape(*part.shape[:2], -1)
        least, most = rows.min(2), rows.max(2)
        flat += int((least == most).all(1).sum())
        low, high = min(low, int(least.min())), max(high, int(most.max()))
        seen += len(part)
        if time.monotonic() > until:
            break
    return {"looked_at": seen, "lowest": low, "highest": high, "constant_share": flat / seen}


def _copies(dataset: Dataset, members: NDArray[np.int64]) -> dict[str, Any]:
    different = len({dataset.hashes[i] for i in members.tolist()})
    return {"different": different, "copies_share": 1 - different / len(members)}


def _classes(dataset: Dataset, members: NDArray[np.int64]) -> dict[str, Any]:
    if dataset.labels is None:
        return {}
    counts = np.bincount(dataset.labels[members], minlength=dataset.num_classes)
    named = list(zip(dataset.label_names, counts.tolist(), strict=True))
    return {
        "classes": len(named),
        "classes_in_use": sum(count > 0 for _, count in named),
        "single_image_classes": [name for name, count in named if count == _SINGLE],
        "empty_classes": [name for name, count in named if count == 0],
    }


def _refusals(n: dict[str, Any]) -> list[str]:
    found = []
    if n["highest"] <= 1:
        found.append(
            f"No pixel is brighter than {n['highest']} of 255: the images seem to hold values "
            "from 0 to 1 where bytes from 0 to 255 belong. Write them anew, times 255."
        )
    if n["different"] <= 1:
        found.append(f"All {n['images']:,} training images are copies of a single one.")
    return found


def _warnings(n: dict[str, Any]) -> list[str]:
    found = []
    if 1 < n["highest"] < _DARK:
        found.append(
            f"No pixel is brighter than {n['highest']} of 255: perhaps the images were stored in "
            "another range."
        )
    elif n["sigma_data"] < _SPREAD:
        found.append(f"The pixels hardly differ (deviation {n['sigma_data']:.3f} of -1 to 1).")
    if n["constant_share"] >= _SOME_FLAT:
        found.append(f"{n['constant_share']:.0%} of the images are one flat colour.")
    if n["copies_share"] >= _SOME_COPIES and n["different"] > 1:
        found.append(f"{n['copies_share']:.0%} of the images are exact copies of others.")
    if n.get("classes", 0) > 1 and n["classes_in_use"] == 1:
        found.append(f"All images are of one of the {n['classes']} classes.")
    single = n.get("single_image_classes", [])
    if single:
        names = ", ".join(repr(name) for name in single[:5])
        more = f" and {len(single) - 5} more" if len(single) > 5 else ""
        found.append(f"Classes with a single training image: {names}{more}.")
    if n["different"] < n["batch"]:
        found.append(
            f"A batch of {n['batch']} is more than the {n['different']:,} different images: each "
            "update sees some of them twice. Lower training.batch."
        )
    return found
