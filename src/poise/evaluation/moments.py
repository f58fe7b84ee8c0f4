"""Mean and covariance of features: summed over batches, merged, kept in the field's .npz files."""

import math
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.data.zips import bomb_reason
from poise.errors import ArtifactError, DataError
from poise.evaluation.distances import Features, blocks, check_features

_ROWS = 4096  # of a batch: each adds a matrix [D, D]
_WIDEST = 2**13  # dimensions: a covariance of 512 MiB; the widest network in use has 2,048
_ASYMMETRY = 1e-5  # of the largest entry; float32 sums are that asymmetric
NPZ_ERRORS = (
    *(OSError, ValueError, EOFError, RuntimeError, KeyError, NotImplementedError),
    *(zipfile.BadZipFile, zlib.error, SyntaxError, TypeError, MemoryError, struct.error),
)
_HEADERS: dict[tuple[int, int], Any] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


@dataclass(frozen=True)
class Moments:
    """The first two moments of a set of features, which is all that a Fréchet distance asks for.

    Attributes:
        count: rows they were taken from; None where a file does not say.
        mean: [D], float64.
        covariance: [D, D], float64, symmetric, unbiased (divided by count - 1); 0 for one row.
    """

    count: int | None
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]

    @classmethod
    def of(cls, features: Features) -> "Moments":
        """The moments of features [N, D].

        Raises:
            DataError: fewer than two rows, or values that are not finite.
        """
        check_features(given=features)
        starts = range(0, len(features), _ROWS)
        return cls.streamed(features[start : start + _ROWS] for start in starts)

    @classmethod
    def streamed(cls, batches: Iterable[NDArray[np.floating[Any]]]) -> "Moments":
        """The moments of all rows of batches [B, D], any B; memory does not grow with their number.

        Each batch is centred on its own mean and merged as in Chan et al. 1979, so that neither a
        large common offset nor the order of the batches costs digits.

        Raises:
            DataError: no row at all, batches of different D, or values that are not finite.
        """
        count, mean, scatter = 0, np.zeros(0), np.zeros((0, 0))
        for batch in batches:
            if batch.ndim != 2 or batch.shape[1] == 0 or (count and batch.shape[1] != len(mean)):
                raise DataError(
                    f"a batch of features of shape {batch.shape}",
                    expected=f"[B, {len(mean) if count else 'D'}]",
                )
            x = batch.astype(np.float64)
            if not np.isfinite(x).all():
                raise DataError(
                    "a batch of features that are not finite", expected="finite numbers"
                )
            if len(x) == 0:
                continue
            m = x.mean(0)
            x -= m
            products = x.T @ x  # numpy computes one triangle: exactly symmetric
            if count == 0:
                count, mean, scatter = len(x), m, products
                continue
            scatter += products
            count, mean = _join(count, mean, scatter, len(x), m)
        if count == 0:
            raise DataError("no features", expected="at least one row")
        return cls(count, mean, scatter / max(count - 1, 1))

    def merged(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan et al. 1979, eq. 2.1).

        Raises:
            DataError: another D, or a set whose count is not known.
        """
        if self.count is None or other.count is None:
            raise DataError(
                "moments of an unknown number of images cannot be merged",
                remedy="compute them from the images, or add `count` to the file",
            )
        if self.mean.shape != other.mean.shape:
            raise DataError(
                f"moments in {len(other.mean)} dimensions beside others in {len(self.mean)}",
                expected="one feature space for both sets",
            )
        scatter = self.covariance * (self.count - 1) + other.covariance * (other.count - 1)
        count, mean = _join(self.count, self.mean, scatter, other.count, other.mean)
        return Moments(count, mean, scatter / (count - 1))

    @classmethod
    def read(cls, path: Path) -> "Moments":
        """Read an .npz with `mu` [D] and `sigma` [D, D], as FID tools keep them, and maybe `count`.

        Sizes are checked before anything is unpacked, and Python objects are never loaded.

        Raises:
            ArtifactError: it cannot be read, or holds no moments.
        """
        try:
            with zipfile.ZipFile(path) as archive:
                mean = _member(archive, "mu", 1)
                covariance = _member(archive, "sigma", 2)
                known = "count.npy" in archive.namelist()
                count = int(_member(archive, "count", 0)) if known else None
            covariance = _checked(count, mean, covariance)
        except NPZ_ERRORS as error:
            raise ArtifactError(
                f"{path} holds no moments: {str(error).strip() or type(error).__name__}.",
                expected="an .npz with mu [D] and the covariance sigma [D, D], finite numbers",
                remedy="Write it anew with numpy.savez(path, mu=mean, sigma=covariance).",
            ) from None
        return cls(count, mean, covariance)


def _join(
    n: int, mean: NDArray[np.float64], scatter: NDArray[np.float64], m: int, other: Features
) -> tuple[int, NDArray[np.float64]]:
    """Count and mean of n and m rows; the scatter [D, D], a sum of both, gets what lies between."""
    shift = other - mean
    step = shift * np.sqrt(n * m / (n + m))
    for rows in blocks(len(step)):
        scatter[rows] += np.outer(step[rows], step)
    return n + m, mean + shift * (m / (n + m))


def read_npy(
    archive: zipfile.ZipFile, name: str, kinds: str, dimensions: int, widest: int
) -> NDArray[Any]:
    """One array of an .npz after a look at what its header asks for; Python objects never.

    Args:
        archive: the open .npz.
        name: of the array.
        kinds: of numbers, as numpy's `dtype.kind` names them.
        dimensions: how many it must have.
        widest: its largest side.

    Raises:
        ValueError: it is another kind of array, or claims more than it holds.
    """
    info = archive.getinfo(f"{name}.npy")
    if reason := bomb_reason(info):
        raise ValueError(f"{name}: {reason}")
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"{name} has version {version} of the .npy format")
        shape, _, dtype = _HEADERS[version](file)
        there = info.file_size - file.tell()
    if dtype.kind not in kinds or len(shape) != dimensions:
        raise ValueError(f"{name} is {dtype} {list(shape)}")
    if any(not 1 <= side <= widest for side in shape):
        raise ValueError(f"{name} has shape {list(shape)}, more than {widest:,} or nothing")
    if there != (wanted := math.prod(shape) * dtype.itemsize):
        raise ValueError(f"{name} has {there:,} bytes of {wanted:,}")
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _member(archive: zipfile.ZipFile, name: str, dimensions: int) -> NDArray[np.float64]:
    return read_npy(archive, name, "fiu", dimensions, _WIDEST).astype(np.float64)


def _checked(
    count: int | None, mean: NDArray[np.float64], covariance: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The covariance made exactly symmetric.

    Raises:
        ValueError: what was read are no moments.
    """
    if covariance.shape != (len(mean), len(mean)):
        raise ValueError(f"mu has shape {list(mean.shape)}, sigma {list(covariance.shape)}")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise ValueError("there are numbers that are not finite")
    if count is not None and count < 2:
        raise ValueError(f"count is {count}")
    largest = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * largest:
        raise ValueError("sigma is not symmetric")
    if covariance.diagonal().min() < 0 or largest > covariance.diagonal().max() * (1 + _ASYMMETRY):
        raise ValueError("sigma is no covariance: an entry is larger than the variances allow")
    return (covariance + covariance.T) / 2
