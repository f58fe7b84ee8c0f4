"""Whether the processes of one training still have the same weights, bit by bit."""

import numpy as np
from numpy.typing import ArrayLike

from poise.stability.incident import Sign


class RankDivergence:
    """Compares checksums of all processes; what it names is the odd one out."""

    def __init__(self, names: tuple[str, ...]) -> None:
        """
        Args:
            names: of the T weights, in the order of the checksums.
        """
        self._names = names
        self._equal_at = 0  # images seen when all were last equal

    def begin(self, images_seen: int) -> None:
        """All processes got the same weights here."""
        self._equal_at = images_seen

    def look(self, sums: ArrayLike, images_seen: int) -> list[Sign]:
        """A sign if a process differs from the most common weights; in a tie those of rank 0 win.

        Args:
            sums: int64 [R, T], the checksums of each process.
            images_seen: by all of them.
        """
        table = np.asarray(sums, np.int64)
        rows = [row.tobytes() for row in table]
        usual = rows.index(max(rows, key=lambda row: (rows.count(row), row == rows[0])))
        odd = [rank for rank, row in enumerate(rows) if row != rows[usual]]
        if not odd:
            self._equal_at = images_seen
            return []
        unequal = np.flatnonzero((table != table[usual]).any(axis=0))
        first = self._names[int(unequal[0])]
        who = ("Rank " if len(odd) == 1 else "Ranks ") + " and ".join(map(str, odd))
        sentence = (
            f"{who} no longer {'has' if len(odd) == 1 else 'have'} the weights of the other "
            f"processes: {len(unequal)} of {len(self._names)} tensors differ, the first is {first}."
        )
        evidence = {
            "ranks": len(rows),
            "unequal_tensors": len(unequal),
            "tensors": len(self._names),
            "equal_at": self._equal_at,
        }
        culprit = {"ranks": odd, "tensors": [first]}
        since = min(self._equal_at, images_seen)
        return [
            Sign("rank-divergence", "critical", images_seen, since, sentence, evidence, culprit)
        ]
