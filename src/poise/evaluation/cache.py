"""Features computed once: a file for each set of images and extractor, named by their content.

The cache may be deleted at any time. It lies in the folder of POISE_CACHE, or where the system
keeps such files for this user.
"""

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import replacing
from poise.errors import ArtifactError
from poise.evaluation.features import FeatureExtractor, extract

_ROWS = 4096  # of a piece that is hashed at once
_FEWEST = 256  # images below which a file costs more than it saves
_MOST_BYTES = 8 * 2**30  # of all files; the oldest go first


def cache_folder() -> Path:
    """Where features and trained encoders are kept between commands."""
    given = os.environ.get("POISE_CACHE")
    if given:
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "poise"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home())) / "poise" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "poise"


def content_hash(images: Any) -> str:
    """Of uint8 images [N, C, H, W]: equal for equal shape and pixels. 32 hex digits."""
    sha = hashlib.sha256(repr(tuple(images.shape)).encode())
    for start in range(0, len(images), _ROWS):
        sha.update(np.ascontiguousarray(images[start : start + _ROWS]).data)
    return sha.hexdigest()[:32]


def cached_extract(
    extractor: FeatureExtractor,
    images: Any,
    *,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """`extract`, or what it gave for the same images and extractor before; float64 [N, D].

    A file that cannot be read is made anew; a cache that cannot be written is done without.

    Args:
        extractor: the feature space.
        images: uint8 [N, C, H, W].
        device: where the network works.
        progress: called with images done and their number.
    """
    if len(images) < _FEWEST:
        return extract(extractor, images, device=device, progress=progress)
    name = f"{extractor.name}-{extractor.digest}-{content_hash(images)}.npy"
    path = cache_folder() / "features" / name
    with contextlib.suppress(OSError, ValueError):
        known = np.load(path, allow_pickle=False)
        if known.ndim == 2 and len(known) == len(images) and known.dtype == np.float32:
            with contextlib.suppress(OSError):
                os.utime(path)
            return np.asarray(known, np.float64)
    features = extract(extractor, images, device=device, progress=progress)
    narrow = features.astype(np.float32)
    if np.array_equal(narrow, features):  # a space of float64 features is not kept
        with contextlib.suppress(ArtifactError, OSError):
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, narrow, allow_pickle=False)
            _forget_oldest(path.parent)
    return features


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.npy"), key=lambda p: p.stat().st_mtime)
    total = sum(p.stat().st_size for p in files)
    while len(files) > 1 and total > _MOST_BYTES:
        oldest = files.pop(0)
        total -= oldest.stat().st_size
        oldest.unlink(missing_ok=True)
