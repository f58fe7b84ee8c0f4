"""The gate before the optimiser step: an update far outside what is usual is not applied.

It works on logarithms, so the sign of the loss does not matter, and on medians, so that a value
which is not finite or absurd cannot move what is taken for usual. All is decided on the device.
"""

import math

import torch
from torch import Tensor

from poise.settings import DiffusionConfig
from poise.training.bands import BANDS, band_edges

SPIKES = ("error-spike", "gradient-spike")  # what the gate judges, in its order
_WINDOW = 256  # values that make up what is usual
_PRIMED = 64  # values after which it judges
_PATIENCE = 16  # outliers in a row after which they are the new level
_DEVIATIONS = 8 * 1.4826  # of the median deviation; 1.4826 makes it one of a normal distribution
_MANY = 32  # images from which on a batch is no longer small
_FLOORS = (math.log(2.5), math.log(20))  # of error and gradient norm, however quiet they were
_RATE = 0.05  # of the running log error of a band, in steady state
_SMALLEST = 1e-30


class Gate:
    """Remembers the usual log error and log gradient norm, and judges the next ones.

    The error of an image is compared with the running error of its noise band before the mean is
    taken, so that the noise drawn for a batch decides nothing, and one bad image in it shows.
    """

    def __init__(self, settings: DiffusionConfig, device: torch.device) -> None:
        """
        Args:
            settings: the noise bands follow from them.
            device: of the training.
        """
        self._edges = torch.tensor(band_edges(settings), device=device)
        self._numbers = torch.arange(BANDS, device=device)
        self._floors = torch.tensor(_FLOORS, device=device)
        self._values = torch.full((2, _WINDOW), math.nan, device=device)  # NaN: not yet taken
        self._taken = torch.zeros(2, dtype=torch.int64, device=device)
        self._outliers = torch.zeros(2, dtype=torch.int64, device=device)  # in a row
        self._bands = torch.zeros(BANDS, device=device)  # running log error
        self._updates = torch.zeros(BANDS, device=device)  # that had images in the band

    @torch.no_grad()
    def judge(self, error: Tensor, sigma: Tensor, grad_norm: Tensor, usable: Tensor) -> Tensor:
        """Whether error and gradient norm are outliers, upward; values that are not are taken in.

        Args:
            error: of each image [B], > 0.
            sigma: its noise level [B].
            grad_norm: [], > 0.
            usable: [] bool; false: the update is left out for another reason, and says nothing.

        Returns:
            [2] bool in the order of SPIKES: do not apply. Always false while fewer than 64 values
            were taken, and after 16 outliers in a row, when what is usual is learned anew.
        """
        logs = error.detach().float().clamp(min=_SMALLEST).log()
        band = torch.bucketize(sigma.detach(), self._edges)
        known = self._updates.index_select(0, band) > 0
        excess = torch.where(known, logs - self._bands.index_select(0, band), 0.0)
        values = torch.stack(
            [
                excess.logsumexp(0) - math.log(len(logs)),
                grad_norm.detach().float().clamp(min=_SMALLEST).log(),
            ]
        )
        counted = usable & values.isfinite()
        # one image in few counts for more: small batches spread wider
        few = max(1.0, math.sqrt(_MANY / len(logs)))
        high, low = self._far(values, self._floors + math.log(few))
        outlier = high & counted
        self._outliers = torch.where(counted, (self._outliers + 1) * outlier, self._outliers)
        anew = self._outliers > _PATIENCE
        spike = outlier & ~anew
        self._forget(anew)
        usual = counted & ~spike & ~low  # black images, say, must not make good ones outliers
        self._take(values, usual)
        self._follow(logs, band, usual[0])
        return spike

    def _far(self, values: Tensor, floors: Tensor) -> tuple[Tensor, Tensor]:
        """[2] bool each: further above, or below, the median than its deviations allow."""
        middle = self._values.nanmedian(dim=1).values
        spread = (self._values - middle[:, None]).abs().nanmedian(dim=1).values
        reach = torch.maximum(_DEVIATIONS * spread, floors)
        primed = self._taken >= _PRIMED
        return (values > middle + reach) & primed, (values < middle - reach) & primed

    def _forget(self, anew: Tensor) -> None:
        """Nothing is usual any more where the flag says so, [2] bool."""
        self._values = self._values.masked_fill(anew[:, None], math.nan)
        self._taken = self._taken.masked_fill(anew, 0)
        self._outliers = self._outliers.masked_fill(anew, 0)
        self._updates = self._updates.masked_fill(anew[0], 0.0)

    def _take(self, values: Tensor, where: Tensor) -> None:
        """Each value replaces the oldest of its kind where the flag says so, [2] bool."""
        slot = (self._taken % _WINDOW)[:, None]
        kept = self._values.gather(1, slot)
        self._values.scatter_(1, slot, torch.where(where[:, None], values[:, None], kept))
        self._taken = self._taken + where

    def _follow(self, logs: Tensor, band: Tensor, where: Tensor) -> None:
        """Move each band's log error towards its images' mean, by e at most; at first a plain mean.

        The sums are a product of matrices, whose order is fixed, unlike that of `index_add`.
        """
        rows = (band[:, None] == self._numbers).to(logs.dtype)  # [B, bands]
        total, count = torch.stack([logs, torch.ones_like(logs)]) @ rows
        hit = (count > 0) & where
        distance = total / count.clamp(min=1) - self._bands
        distance = torch.where(self._updates > 0, distance.clamp(-1, 1), distance)
        rate = (self._updates + 1).reciprocal().clamp(min=_RATE)
        self._bands = torch.where(hit, self._bands + rate * distance, self._bands)
        self._updates = self._updates + hit

    def tensors(self) -> dict[str, Tensor]:
        """All that it remembers, by name, for a checkpoint."""
        return {
            "values": self._values,
            "taken": self._taken,
            "outliers": self._outliers,
            "bands": self._bands,
            "updates": self._updates,
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Go on with what `tensors` gave.

        Raises:
            KeyError: an entry is missing.
        """
        self._values = tensors["values"].to(self._values.device, copy=True)
        self._taken = tensors["taken"].to(self._taken.device, copy=True)
        self._outliers = tensors["outliers"].to(self._outliers.device, copy=True)
        self._bands = tensors["bands"].to(self._bands.device, copy=True)
        self._updates = tensors["updates"].to(self._updates.device, copy=True)
