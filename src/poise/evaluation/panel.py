"""Every metric of a set of samples, each beside real images in the samples' place.

Each function takes `Sides` and gives some of `metric.METRICS`. Figures of few images are marked
with the reason, never left bare.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from poise.data.imageset import Subset
from poise.evaluation.coverage import (
    coverage_estimates,
    coverage_null,
    rarity,
    rarity_summary,
)
from poise.evaluation.detail import detail_estimate
from poise.evaluation.distances import Features
from poise.evaluation.diversity import Groups, groups, vendi
from poise.evaluation.estimate import Estimate
from poise.evaluation.fidelity import frechet_bias, frechet_estimate, frechet_infinite
from poise.evaluation.kernels import cmmd, kernel_estimate, kernel_subsets
from poise.evaluation.metric import Metric, finite, named
from poise.evaluation.moments import Moments
from poise.runtime import generator_at

Images = NDArray[np.uint8] | Subset
Counts = tuple[int, int | None]  # of samples, and of reference images where that is known

FEW = 100  # images of a set below which every figure is mostly chance
_SUBSETS, _SUBSET = 100, 1000  # of the kernel distance as it was published
_INFINITE = 500  # samples from which the extrapolation of the Fréchet distance is tried


@dataclass(frozen=True)
class Side:
    """One set of images as it is compared.

    Attributes:
        features: [N, D], float64.
        images: uint8 [N, C, H, W]; None: only features are known.
    """

    features: Features
    images: Images | None = None

    def __len__(self) -> int:
        return len(self.features)

    def take(self, rows: NDArray[np.int64]) -> "Side":
        """Some of its rows."""
        return Side(self.features[rows], None if self.images is None else self.images[rows])


@dataclass(frozen=True)
class Sides:
    """What is compared, and the real images that show what could be reached.

    Attributes:
        samples: what a model made.
        reference: real images.
        stand_in: other real images, in the samples' place.
        stand_in_reference: what those are compared with; the reference, or the rest of it where
            the stand-ins had to be taken out of it.
    """

    samples: Side
    reference: Side
    stand_in: Side
    stand_in_reference: Side

    @property
    def n(self) -> tuple[int, int]:
        return len(self.samples), len(self.reference)

    @property
    def real_n(self) -> tuple[int, int]:
        return len(self.stand_in), len(self.stand_in_reference)

    def swapped(self) -> "Sides":
        """Real images as samples: what each real value is computed from."""
        return replace(self, samples=self.stand_in, reference=self.stand_in_reference)


def fidelity(sides: Sides, k: int) -> dict[str, Metric]:
    """Fréchet and kernel distances, precision, density, recall, coverage, fine detail."""
    found = {**_frechet(sides), **_kernels(sides), **_balls(sides, k)}
    compared = (sides.samples, sides.reference, sides.stand_in, sides.stand_in_reference)
    if all(side.images is not None for side in compared):
        found["fine_detail"] = _with_real(
            "fine_detail",
            sides,
            lambda s: detail_estimate(_pictures(s.samples), _pictures(s.reference)),
            about="geometric mean of the energy of fine detail, in that of the reference",
        )
    return found


def diversity(sides: Sides, kinds: Groups) -> dict[str, Metric]:
    """Vendi score, rarity, and kinds of real images that the samples miss.

    Args:
        sides: what is compared.
        kinds: the groups of the reference and what falls into them.
    """
    size = min(sides.n)  # the Vendi score grows with the number of images: equal numbers only
    samples, reference = sides.samples.features, sides.reference.features
    found = rarity(reference, samples)
    real = rarity(sides.stand_in_reference.features, sides.stand_in.features)
    rare = rarity_summary(found)
    real_kinds = groups(sides.stand_in_reference.features, sides.stand_in.features)
    return {
        "vendi": named(
            "vendi",
            vendi(samples[subset_of(len(samples), size)]),
            vendi(reference[subset_of(len(reference), size)]),
            (size, size),
            few(sides.n),
            order=1,
        ),
        "rarity": named(
            "rarity",
            Estimate(rare["median"], median_error(found[~np.isnan(found)])),
            finite(rarity_summary(real)["median"]),
            sides.n,
            few(sides.n) if rare["outside"] < 1 else "No sample lies among the real images.",
            neighbours=3,
            outside=rare["outside"],
            real_n=list(sides.real_n),
        ),
        "groups_missed": named(
            "groups_missed",
            float(kinds.under.sum()),
            float(real_kinds.under.sum()),
            sides.n,
            few(sides.n),
            groups=len(kinds.reference),
            real_n=list(sides.real_n),
        ),
    }


def median_error(values: NDArray[np.float64]) -> float:
    """Standard error of the median of values [N], from the order statistics around it.

    Those at N/2 -+ sqrt(N)/2 are one standard error away on either side, for any distribution.
    """
    N = len(values)
    if N < 4:
        return math.nan
    reach = math.sqrt(N) / 2
    low, high = np.quantile(values, [max(0.5 - reach / N, 0), min(0.5 + reach / N, 1)])
    return float(high - low) / 2


def subset_of(n: int, size: int) -> NDArray[np.int64]:
    """`size` different indices below n (all n if fewer), ascending, always the same ones."""
    order = torch.randperm(n, generator=generator_at(0, size, "evaluation"))
    return order[:size].sort().values.numpy()


def few(n: Counts) -> str:
    """The mark of a figure from fewer images than mean anything; empty for enough."""
    for count, what in zip(n, ("samples", "reference images"), strict=True):
        if count is not None and count < FEW:
            return f"Only {count} {what}: below {FEW} the figure is mostly chance."
    return ""


def _with_real(
    name: str, sides: Sides, measure: Callable[[Sides], Estimate | float], **own: object
) -> Metric:
    """A metric and the same of real images."""
    real = measure(sides.swapped())
    return named(
        name, measure(sides), real, sides.n, few(sides.n), real_n=list(sides.real_n), **own
    )


def _frechet(sides: Sides) -> dict[str, Metric]:
    reference = Moments.of(sides.reference.features)
    D = len(reference.mean)
    found = frechet_estimate(sides.stand_in.features, sides.stand_in_reference.features)
    scale = 1.0  # the distance of equal distributions falls like 1/n
    if sides.real_n != sides.n:
        scale = _per_image(sides.n) / _per_image(sides.real_n)
    real = Estimate(scale * found.value, scale * found.samples_error)
    mark = few(sides.n) or rank_mark(sides.n, D)
    floor = frechet_bias(reference.covariance, *sides.n)
    metrics = {
        "frechet_distance": named(
            "frechet_distance",
            frechet_estimate(sides.samples.features, sides.reference.features),
            real,
            sides.n,
            mark,
            real_n=list(sides.real_n),
            real_scaled=sides.real_n != sides.n,
            floor=floor,
        )
    }
    if len(sides.samples) >= _INFINITE and not mark:
        metrics["frechet_distance_infinite"] = named(
            "frechet_distance_infinite",
            frechet_infinite(sides.samples.features, reference, seed=0),
            frechet_infinite(
                sides.stand_in.features, Moments.of(sides.stand_in_reference.features), seed=0
            ).value
            if len(sides.stand_in) >= _INFINITE
            else None,
            sides.n,
            about="without the bias of few samples; that of the reference stays",
            real_n=list(sides.real_n),
        )
    return metrics


def _kernels(sides: Sides) -> dict[str, Metric]:
    size = min(_SUBSET, *sides.n)
    value, std = kernel_subsets(
        sides.samples.features, sides.reference.features, _SUBSETS, size, seed=0
    )
    real_size = min(_SUBSET, *sides.real_n)
    real_mean, _ = kernel_subsets(
        sides.stand_in.features, sides.stand_in_reference.features, _SUBSETS, real_size, seed=0
    )
    kernel = "polynomial, (x.y/D + 1)^3"
    full = _with_real(
        "kernel_distance",
        sides,
        lambda s: kernel_estimate(s.samples.features, s.reference.features),
        kernel=kernel,
        estimator="unbiased, all pairs",
    )
    # The subsets are drawn from the same images, whose finite number is what causes the error.
    mean = Estimate(value, full.estimate.samples_error, full.estimate.reference_error)
    return {
        "kernel_distance": full,
        "kernel_distance_subsets": named(
            "kernel_distance_subsets",
            mean,
            real_mean,
            sides.n,
            few(sides.n),
            kernel=kernel,
            estimator=f"mean of {_SUBSETS} subsets of {size}",
            deviation_of_subsets=std,
            real_n=list(sides.real_n),
        ),
        "cmmd": named(
            "cmmd",
            cmmd(sides.samples.features, sides.reference.features),
            _real_cmmd(sides),
            sides.n,
            few(sides.n),
            kernel="Gaussian, sigma 10 on unit vectors, times 1000",
            estimator="biased, as published",
            real_n=list(sides.real_n),
            real_scaled=sides.real_n != sides.n,
        ),
    }


def _real_cmmd(sides: Sides) -> float:
    """CMMD of real images, its bias brought to the counts of the samples."""
    f, f_ref = sides.stand_in.features, sides.stand_in_reference.features
    biased = cmmd(f, f_ref).value
    if sides.real_n == sides.n:
        return biased
    unbiased = cmmd(f, f_ref, biased=False).value
    bias = biased - unbiased
    return unbiased + bias * _per_image(sides.n) / _per_image(sides.real_n)


def _balls(sides: Sides, k: int) -> dict[str, Metric]:
    values = coverage_estimates(sides.reference.features, sides.samples.features, k)
    expected = coverage_null(sides.n[1], sides.n[0], k)  # of equal distributions, in any dimension
    real: dict[str, Estimate] = {}
    if k < min(sides.real_n):
        real = coverage_estimates(sides.stand_in_reference.features, sides.stand_in.features, k)
    return {
        name: named(
            name,
            values[name],
            real.get(name),
            sides.n,
            few(sides.n),
            neighbours=k,
            real_n=list(sides.real_n),
            **({"expected": expected} if name == "coverage" else {}),
        )
        for name in ("precision", "density", "recall", "coverage")
    }


def _per_image(n: tuple[int, int]) -> float:
    return 1 / n[0] + 1 / n[1]


def rank_mark(n: Counts, D: int) -> str:
    """The mark of a Fréchet distance of fewer images than dimensions; empty for enough."""
    for count, what in zip(n, ("samples", "reference images"), strict=True):
        if count is not None and count <= D:
            return (
                f"{count} {what} for {D} feature dimensions: the distance is far too high; compare "
                "it with its real value only, or rely on the kernel distance."
            )
    return ""


def _pictures(side: Side) -> Images:
    assert side.images is not None
    return side.images
