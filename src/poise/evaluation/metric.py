"""A metric with all that it needs to be read: real value, interval, counts, protocol, doubts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from poise.evaluation.estimate import Estimate

Kind = Literal["fidelity", "diversity", "novelty", "denoising", "conditioning"]
Better = Literal["lower", "higher", "match"]

# In the order in which they are shown: name, what it judges, where it is good.
METRICS: dict[str, tuple[Kind, Better]] = {
    "frechet_distance": ("fidelity", "lower"),
    "frechet_distance_infinite": ("fidelity", "lower"),
    "kernel_distance": ("fidelity", "lower"),
    "kernel_distance_subsets": ("fidelity", "lower"),
    "cmmd": ("fidelity", "lower"),
    "inception_score": ("fidelity", "higher"),
    "precision": ("fidelity", "higher"),
    "density": ("fidelity", "higher"),
    "fine_detail": ("fidelity", "match"),
    "recall": ("diversity", "higher"),
    "coverage": ("diversity", "higher"),
    "vendi": ("diversity", "match"),
    "rarity": ("diversity", "match"),
    "groups_missed": ("diversity", "lower"),
    "nearest_train_distance": ("novelty", "match"),
    "copies": ("novelty", "lower"),
    "carlini_copies": ("novelty", "lower"),
    "authentic": ("novelty", "match"),
    "c_t": ("novelty", "match"),
    "fld": ("novelty", "lower"),
    "fld_gap": ("novelty", "match"),
    "class_agreement": ("conditioning", "higher"),
    "class_balance_distance": ("conditioning", "lower"),
}

SHARES = frozenset(  # between 0 and 1, and so are their intervals
    (
        *("precision", "recall", "coverage", "copies", "carlini_copies", "authentic"),
        *("class_agreement", "class_balance_distance"),
    )
)


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation.

    Attributes:
        estimate: the value with its standard errors; nan: it cannot be had, and `mark` says why.
        real: the same figure for real images in the samples' place; None: there is none.
        n: counts of samples and of the real images that it was computed from; None: not known.
        kind: what it judges.
        better: where it is good; match: near `real`.
        mark: why it must not be read alone, as a sentence; empty: nothing speaks against it.
        own: what its protocol has beyond that of the whole evaluation.
        share: whether it lies between 0 and 1.
        exact: its interval where one is known better than by standard errors.
        real_error: standard error of `real` from the real images in the samples' place; nan where
            not known.
    """

    estimate: Estimate
    real: float | None
    n: tuple[int, int | None]
    kind: Kind
    better: Better
    mark: str = ""
    own: Mapping[str, Any] = field(default_factory=dict)
    share: bool = False
    exact: tuple[float, float] | None = None
    real_error: float = math.nan

    def to_json(self, protocol: Mapping[str, Any]) -> dict[str, Any]:
        """As plain data; what is not finite is None.

        Args:
            protocol: what all metrics of the evaluation have in common.
        """
        low, high = self.exact or self.estimate.interval()
        if self.share:
            low, high = max(low, 0.0), min(high, 1.0)
        return {
            "value": finite(self.estimate.value),
            "real": finite(self.real),
            "low": finite(low),
            "high": finite(high),
            "n": list(self.n),
            "kind": self.kind,
            "better": self.better,
            "mark": self.mark,
            "errors": {
                "samples": finite(self.estimate.samples_error),
                "reference": finite(self.estimate.reference_error),
                "real": finite(self.real_error),
            },
            "protocol": {**protocol, **self.own},
        }


def named(
    name: str,
    estimate: Estimate | float,
    real: Estimate | float | None,
    n: tuple[int, int | None],
    mark: str = "",
    **own: Any,
) -> Metric:
    """The metric called `name` of METRICS."""
    kind, better = METRICS[name]
    value = estimate if isinstance(estimate, Estimate) else Estimate(float(estimate))
    beside = real if isinstance(real, Estimate) else Estimate(math.nan if real is None else real)
    return Metric(
        value,
        finite(beside.value),
        n,
        kind,
        better,
        mark,
        own,
        name in SHARES,
        real_error=beside.samples_error,
    )


def finite(value: float | None) -> float | None:
    """`value` as JSON can hold it: None for what is not a finite number."""
    return float(value) if value is not None and math.isfinite(value) else None
