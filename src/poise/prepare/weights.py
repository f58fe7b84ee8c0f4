"""How often training should draw each image, so that rare kinds are seen more; none is dropped."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from poise.audit.content import target
from poise.audit.content.clusters import cluster_of, find_clusters
from poise.audit.content.features import describe
from poise.audit.scan import Scan, scan
from poise.errors import DataError

_POWER = {"sqrt": -0.5, "equal": -1.0}


@dataclass(frozen=True)
class Weights:
    """Weights of training images by class; by clusters of alike images where there are none."""

    seen: Scan
    balance: str
    target: Path | None

    def __call__(
        self, files: Sequence[int], labels: Sequence[str | None]
    ) -> tuple[list[float], dict[str, float]]:
        """
        Args:
            files: of each training image.
            labels: the name of its class, or None.

        Returns:
            A weight for each, 1 in the mean, and what an image of each part weighs.
        """
        if self.balance == "none":
            return [1.0] * len(files), {}
        if self.balance == "target":
            return self._by_target(files, labels)
        parts = self._parts(files, labels)
        count = {name: parts.count(name) for name in dict.fromkeys(parts)}
        return _scaled(parts, {name: n ** _POWER[self.balance] for name, n in count.items()})

    def _by_target(
        self, files: Sequence[int], labels: Sequence[str | None]
    ) -> tuple[list[float], dict[str, float]]:
        """What a part should have of all draws over what it has of all images."""
        assert self.target is not None
        wanted = target.read(self.target)
        target.check_classes(wanted, self.seen.source.label_names)
        if wanted.examples is None:
            parts = [str(label) for label in labels]
            share = {name: wanted.shares.get(name, 0.0) for name in parts}
        else:
            parts, share = self._like_examples(wanted.examples, files)
        raw = {name: value / parts.count(name) for name, value in share.items()}
        if not any(raw.values()):
            raise DataError(
                f"{self.target} wants nothing that the training images hold.",
                expected="a share above 0 for a class that has training images",
            )
        return _scaled(parts, raw)

    def _like_examples(
        self, source: str, files: Sequence[int]
    ) -> tuple[list[str], dict[str, float]]:
        """The cluster of each training image, and the share of examples in each cluster."""
        seen = scan(source)
        whole = np.array([index for index, look in enumerate(seen.looks) if not look.broken])
        if not len(whole):
            raise DataError(f"{source} holds no example that can be read.")
        both = np.concatenate([self._features(files), describe(seen.thumbs[whole])])
        of = find_clusters(both).of
        parts = [f"cluster {number}" for number in of[: len(files)].tolist()]
        examples = [f"cluster {number}" for number in of[len(files) :].tolist()]
        # Half an example more in each: none of a few examples does not mean that none is wanted.
        return parts, {name: examples.count(name) + 0.5 for name in dict.fromkeys(parts)}

    def _parts(self, files: Sequence[int], labels: Sequence[str | None]) -> list[str]:
        if None not in labels:
            return [str(label) for label in labels]
        return [f"cluster {number}" for number in cluster_of(self._features(files)).tolist()]

    def _features(self, files: Sequence[int]) -> NDArray[np.float32]:
        return describe(self.seen.thumbs[np.array(files, np.int64)])


def _scaled(parts: Sequence[str], raw: dict[str, float]) -> tuple[list[float], dict[str, float]]:
    """Weights that are 1 in the mean."""
    mean = sum(raw[name] for name in parts) / len(parts)
    each = {name: round(value / mean, 9) for name, value in raw.items()}
    return [each[name] for name in parts], each
