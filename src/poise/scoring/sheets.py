"""Pictures of an evaluation: what was scored, closest pairs, the worst and best, what is missing.

They lie beside the record: in `samples/` of a run, else in the folder of the evaluation.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.evaluation.evaluate import Judged
from poise.evaluation.panel import subset_of
from poise.pictures import save_grid
from poise.scoring.real import Real, Samples

_SHOWN = 100  # samples on one grid
_PAIRS = 16  # shown beside their nearest training image
_COLUMNS = 8
_RANKED = 32  # on the sheets of the worst and of the best
_MISSING = 16


def save_sheets(folder: Path, samples: Samples, real: Real, judged: Judged) -> None:
    """Write the sheets that these images can be shown on; those of an earlier evaluation go."""
    for name in ("scored", "closest", "neighbours", "worst", "best", "missing"):
        (folder / f"{name}.png").unlink(missing_ok=True)
    if samples.images.shape[1] not in (1, 2, 3):
        return
    images = samples.images
    save_grid(folder / "scored.png", images[_first(samples)], columns=10)
    searched, _ = real.searched()
    closest = [(p["sample"], p["train"]) for p in judged.record["copying"]["closest"]]
    _save_pairs(folder / "closest.png", images, searched, closest)
    rows = subset_of(len(judged.nearest), _PAIRS)
    first = [(int(i), int(judged.nearest[i])) for i in rows]
    _save_pairs(folder / "neighbours.png", images, searched, first)
    order = np.argsort(judged.realism, kind="stable")
    save_grid(folder / "worst.png", images[order[:_RANKED]], columns=_COLUMNS)
    save_grid(folder / "best.png", images[order[::-1][:_RANKED]], columns=_COLUMNS)
    missed = judged.missed[:_MISSING]
    if len(missed):
        save_grid(folder / "missing.png", real.reference[missed], columns=_COLUMNS)


def _first(samples: Samples) -> NDArray[np.int64]:
    """Some samples, none chosen, in the order of their classes: files may lie in that order too."""
    order = subset_of(len(samples.images), _SHOWN)
    if samples.labels is None:
        return order
    return order[np.argsort(samples.labels[order], kind="stable")]


def _save_pairs(path: Path, images: Any, searched: Any, pairs: list[tuple[int, int]]) -> None:
    """Samples, each above the real image that it is paired with."""
    rows: list[Any] = []
    for start in range(0, min(len(pairs), _PAIRS), _COLUMNS):
        some = pairs[start : min(start + _COLUMNS, _PAIRS)]
        blank = [np.full_like(images[0], 255)] * (_COLUMNS - len(some))
        rows += [images[i] for i, _ in some] + blank + [searched[j] for _, j in some] + blank
    if rows:
        save_grid(path, np.stack(rows), columns=_COLUMNS)
