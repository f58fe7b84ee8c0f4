"""Sums over the updates between two log lines, kept on the device until a line is written."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from poise.settings import DiffusionConfig
from poise.training.bands import BANDS, band_centres, band_grid
from poise.training.loop import StepRecord


@dataclass(frozen=True)
class Skip:
    """An update that was left out and changed nothing."""

    images_seen: int
    indices: list[int]  # data set indices of its images


class IntervalMeter:
    """Averages of loss, error and gradient norm since the last line, and error by noise band."""

    def __init__(self, settings: DiffusionConfig, device: torch.device) -> None:
        """The noise bands follow from the settings, see `bands`."""
        self._low, self._width = band_grid(settings)
        self.centres = band_centres(settings)
        self._sums = torch.zeros(5 + 2 * BANDS, dtype=torch.float64, device=device)
        self._totals = torch.zeros(2, dtype=torch.float64, device=device)  # skipped, in a row
        self._ratio = torch.full((), math.nan, device=device)
        self._pending: list[tuple[int, Tensor, Tensor]] = []

    def add(self, record: StepRecord) -> None:
        """Take in one update, without waiting for the device."""
        finite = record.applied.to(torch.float64)
        # where() and not a product: NaN times zero is NaN
        loss = torch.where(record.applied, record.loss.double().mean(), 0.0)
        norm = torch.where(record.applied, record.grad_norm.double(), 0.0)
        error = torch.where(record.applied, record.error.double(), 0.0)
        band = ((record.sigma.log() - self._low) / self._width).long().clamp(0, BANDS - 1)
        zeros = torch.zeros(BANDS, dtype=torch.float64, device=error.device)
        by_band = zeros.index_add(0, band, error)
        counts = zeros.index_add(0, band, finite.expand_as(error))
        head = torch.stack([finite, loss, error.mean(), norm, torch.ones_like(finite)])
        self._sums += torch.cat([head, by_band, counts])
        self._totals[1] = torch.where(record.applied, 0.0, self._totals[1] + 1)
        self._totals[0] += 1 - finite
        if record.update_ratio is not None:
            self._ratio = record.update_ratio
        self._pending.append((record.images_seen, record.applied, record.indices))

    def skips(self) -> list[Skip]:
        """The updates left out since the last call; reads the device."""
        if not self._pending:
            return []
        flags = torch.stack([applied for _, applied, _ in self._pending]).tolist()
        found = [
            Skip(images_seen, indices.tolist())
            for (images_seen, _, indices), applied in zip(self._pending, flags, strict=True)
            if not applied
        ]
        self._pending.clear()
        return found

    def line(self) -> dict[str, object]:
        """The averages since the last line, and a new interval begins; reads the device."""
        sums = self._sums.tolist()
        applied = sums[0]
        bands = zip(self.centres, sums[5 : 5 + BANDS], sums[5 + BANDS :], strict=True)
        row: dict[str, object] = {
            "loss": sums[1] / applied if applied else None,
            "error": sums[2] / applied if applied else None,
            "grad_norm": sums[3] / applied if applied else None,
            "update_ratio": _finite(self._ratio.item()),
            "skipped": int(self._totals[0].item()),
            "bands": [
                {"sigma": sigma, "error": total / n if n else None, "count": int(n)}
                for sigma, total, n in bands
            ],
        }
        self._sums.zero_()
        return row

    def skipped_in_a_row(self) -> int:
        """Updates left out up to now without a good one between; reads the device."""
        return int(self._totals[1].item())

    def tensors(self) -> dict[str, Tensor]:
        """The unfinished interval, for a checkpoint."""
        return {"sums": self._sums, "totals": self._totals, "ratio": self._ratio}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on with the interval that a checkpoint holds."""
        self._sums.copy_(tensors["sums"])
        self._totals.copy_(tensors["totals"])
        self._ratio = tensors["ratio"].to(self._ratio.device)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
