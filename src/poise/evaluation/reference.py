"""Real images as statistics in one file, so that they are looked at once.

An .npz with `mu`, `sigma` and `count`, as FID tools know it; `features` [N, D] float32, which every
metric but those of images can be computed from; and `about`, JSON in bytes: the protocol. A file
of other tools has the first two alone and serves the Fréchet distance.
"""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from poise.artifacts import write_bytes
from poise.errors import ArtifactError
from poise.evaluation.distances import Features
from poise.evaluation.moments import NPZ_ERRORS, Moments, read_npy

_ABOUT_BYTES = 2**20
_MOST_ROWS = 2**24  # images


@dataclass(frozen=True)
class Reference:
    """Statistics of real images.

    Attributes:
        moments: mean and covariance of their features.
        features: [N, D], float64; None: the file came from a tool that keeps moments alone.
        about: features, features_digest, resizer, resolution, images, split, data, source; empty
            where the file does not say.
    """

    moments: Moments
    features: Features | None
    about: Mapping[str, Any]

    @classmethod
    def of(cls, features: Features, about: Mapping[str, Any]) -> "Reference":
        """The reference of features [N, D]."""
        return cls(Moments.of(features), features, about)


def is_reference(path: Path) -> bool:
    """Whether a file is an .npz of moments rather than of images."""
    if path.suffix.lower() != ".npz":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def write_reference(path: Path, reference: Reference) -> None:
    """Write it whole or not at all.

    Raises:
        ArtifactError: the file cannot be written.
    """
    moments = reference.moments
    arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.covariance}
    if moments.count is not None:
        arrays["count"] = np.int64(moments.count)
    if reference.features is not None:
        arrays["features"] = reference.features.astype(np.float32)
    about = json.dumps(dict(reference.about), sort_keys=True).encode()
    arrays["about"] = np.frombuffer(about, np.uint8)
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_bytes(path, content.getvalue())


def read_reference(path: Path) -> Reference:
    """Read a file of `write_reference`, or `mu` and `sigma` of another tool.

    Raises:
        ArtifactError: it holds no moments, or what else it holds is damaged.
    """
    moments = Moments.read(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            features, about = None, {}
            if "features.npy" in names:
                features = read_npy(archive, "features", "f", 2, _MOST_ROWS).astype(np.float64)
            if "about.npy" in names:
                about = json.loads(bytes(read_npy(archive, "about", "u", 1, _ABOUT_BYTES)))
        if not isinstance(about, dict):
            raise ValueError("about is no JSON object")
        if features is not None and (
            features.shape[1] != len(moments.mean) or not np.isfinite(features).all()
        ):
            raise ValueError("features are not finite, or have other dimensions than mu")
    except (*NPZ_ERRORS, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged: {str(error).strip() or type(error).__name__}.",
            expected="a file of `poise reference`",
            remedy="Make it anew from the images.",
        ) from None
    return Reference(moments, features, about)
