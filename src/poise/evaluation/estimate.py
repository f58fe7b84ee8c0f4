"""A figure with what chance does to it."""

import math
from dataclasses import dataclass

CONFIDENCE = 1.959964  # standard errors on either side that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Estimate:
    """A metric of finite sets, and its standard errors by the set that causes them.

    Two models that are compared with the same reference share `reference_error`: only
    `samples_error` counts in their difference.

    Attributes:
        value: the metric.
        samples_error: standard error from the finite number of samples; nan where not known.
        reference_error: standard error from the finite number of real images; nan where not known.
    """

    value: float
    samples_error: float = math.nan
    reference_error: float = math.nan

    def interval(self) -> tuple[float, float]:
        """About 95 % confidence, both causes together; (nan, nan) where neither is known."""
        known = [e for e in (self.samples_error, self.reference_error) if not math.isnan(e)]
        reach = CONFIDENCE * math.hypot(*known) if known else math.nan
        return self.value - reach, self.value + reach


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` images, 0 to 1: sqrt(p (1 - p) / n), at least sqrt(2)/n.

    Even none of n says that the true share is below about 3/n, and no more.
    """
    return max(math.sqrt(share * (1 - share) / count), math.sqrt(2) / count)
