"""The data set that training reads: images of one size, with all that was learnt on the way."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from poise.data.layout import Unreadable


@dataclass(frozen=True)
class Dataset:
    """Images of one size with all that was learnt while reading them; one entry per image."""

    images: NDArray[np.uint8]  # [N, C, H, W], in memory or memory-mapped
    labels: NDArray[np.int64] | None  # [N]
    label_names: tuple[str, ...]  # empty: no classes
    names: tuple[str, ...]
    hashes: tuple[str, ...]  # sha256 of the decoded pixels and shape, before resizing
    given_splits: tuple[str | None, ...]  # train, val, test, or None where nothing was given
    unreadable: tuple[Unreadable, ...]
    ignored: tuple[str, ...]
    warnings: tuple[str, ...]
    source: str
    sizes: dict[str, int]  # "32x32" -> images; the 20 most common
    modes: dict[str, int]  # "RGB" -> images, as the files have them
    captions: tuple[str | None, ...] = ()  # empty: none were found
    weights: NDArray[np.float64] | None = None  # [N], how often an image is drawn, relative

    def __len__(self) -> int:
        return len(self.images)

    @property
    def resolution(self) -> int:
        """Side in pixels."""
        return int(self.images.shape[2])

    @property
    def channels(self) -> int:
        """1 (all images are gray), 3, or what arrays hold."""
        return int(self.images.shape[1])

    @property
    def num_classes(self) -> int:
        """0 without labels."""
        return len(self.label_names)

    def remarks(self) -> list[str]:
        """What a person should hear of the reading: files left out, warnings."""
        lines = [f"unreadable: {file.name} ({file.reason})" for file in self.unreadable[:5]]
        if len(self.unreadable) > 5:
            lines.append(f"and {len(self.unreadable) - 5} more unreadable files")
        return [*lines, *(f"note: {warning}" for warning in self.warnings)]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names, labels, hashes, weights and resolution: equal for equal data."""
        sha = hashlib.sha256(f"{self.resolution}:{self.label_names!r}".encode())
        labels = [None] * len(self) if self.labels is None else self.labels.tolist()
        for name, label, digest in zip(self.names, labels, self.hashes, strict=True):
            sha.update(f"\n{name!r}:{label}:{digest}".encode("utf-8", "surrogateescape"))
        if self.weights is not None:
            sha.update(self.weights.tobytes())
        return sha.hexdigest()


@final
class Subset:
    """Some images of a set, read when they are asked for; indexed like an array [N, C, H, W].

    What comes back is a copy, so that a mapped set is never in memory as a whole.
    """

    def __init__(self, images: Any, rows: NDArray[np.int64], *, mirrored: bool = False) -> None:
        """
        Args:
            images: uint8 [.., C, H, W], indexed like an array.
            rows: which of them, in this order.
            mirrored: hand them out turned left to right.
        """
        self._images, self._rows, self._mirrored = images, rows, mirrored
        self.shape: tuple[int, ...] = (len(rows), *images.shape[1:])
        self.dtype, self.ndim = images.dtype, images.ndim

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: Any) -> NDArray[np.uint8]:
        """One image for a whole number; several for a slice, index array or mask."""
        found = self._images[self._rows[key]]
        turned: NDArray[np.uint8] = found[..., ::-1] if self._mirrored else found
        return np.ascontiguousarray(turned)

    def mirrored(self) -> "Subset":
        """The same images, turned left to right."""
        return Subset(self._images, self._rows, mirrored=not self._mirrored)
