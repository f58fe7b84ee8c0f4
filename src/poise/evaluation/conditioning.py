"""Which classes do samples show? Judged by a probe that was trained on real images.

The probe errs. So nothing is read from its answers on samples alone: they are compared with its
answers on real images, whose classes are known. Where it names real images hardly better than
guesses do, nothing is said.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import chdtrc

from poise.errors import DataError, UsageError
from poise.evaluation.estimate import Estimate, share_error
from poise.evaluation.extractors.domain import weak_below

Labels = NDArray[np.int64]
Shares = NDArray[np.float64]

_ALARM = 0.01  # chance that any class of a balanced set is named
_MISSING, _SCARCE, _OVERFULL = 0.25, 0.67, 1.5  # shares of the expected share
_SINGULAR = 0.05  # smallest singular value of the confusion from which on it can be undone


@dataclass(frozen=True)
class Conditioning:
    """What a probe says of the classes of samples. nan: it was not asked, or cannot say.

    Attributes:
        names: of the K classes.
        note: why nothing is said, else empty; then all lists of names are empty too.
        real_accuracy: mean over classes of the share of real images that the probe names rightly.
        agreement: share of samples whose named class is the asked one.
        agreement_real: the same for real images of the asked classes: what a perfect model gets.
        class_agreement, class_agreement_real: both per class [K].
        asked: samples per asked class [K]; empty if none was asked for.
        predicted, reference: samples and real images per named class [K].
        confusion: [asked][named], counts of samples; empty if no class was asked for.
        expected: share of each class that samples should have [K]: as asked, or as in the
            reference.
        estimated: share of each class that they have, the probe's errors undone where the classes
            of the reference are known [K].
        estimated_error: standard errors of estimated - expected [K].
        missing, scarce, overfull: classes with a share significantly different from the expected
            one and below a quarter, below two thirds, above one and a half times it (less what
            missing classes leave to the others).
        p_value: of the chi-square test that samples and reference have the same named classes.
        total_variation, total_variation_real: half the sum of absolute differences between the
            shares of named classes of samples and reference, and its expectation if both come
            from one distribution.
        divergence, divergence_real: Kullback-Leibler divergence of the same shares in nats, counts
            raised by 1/2, and its expectation (K - 1)/2 (1/M + 1/N).
    """

    names: tuple[str, ...]
    note: str
    real_accuracy: float
    agreement: Estimate
    agreement_real: Estimate
    class_agreement: tuple[float, ...]
    class_agreement_real: tuple[float, ...]
    asked: tuple[int, ...]
    predicted: tuple[int, ...]
    reference: tuple[int, ...]
    confusion: tuple[tuple[int, ...], ...]
    expected: tuple[float, ...]
    estimated: tuple[float, ...]
    estimated_error: tuple[float, ...]
    missing: tuple[str, ...]
    scarce: tuple[str, ...]
    overfull: tuple[str, ...]
    p_value: float
    total_variation: float
    total_variation_real: float
    divergence: float
    divergence_real: float

    def to_json(self) -> dict[str, Any]:
        """Plain data; what is not finite becomes None."""
        return {name: _plain(value) for name, value in asdict(self).items()}


def examine_classes(
    samples: Shares,
    reference: Shares,
    names: Sequence[str],
    *,
    asked: Labels | None = None,
    labels: Labels | None = None,
) -> Conditioning:
    """Agreement with the asked classes, and balance of the classes.

    With `labels`, the confusion C of the probe is known: shares p of true classes become shares
    s = C'p of named ones, and p = C'^-1 s has a covariance from the finite samples (of s) and the
    finite reference (of C and of the expected shares); a class is named if its z is beyond the
    normal quantile for a 1 % chance of any false alarm (Bonferroni, two sides). Without `labels`,
    the named classes of both sets are compared as they are: a weak probe then hides what differs.

    Args:
        samples: log-probabilities of the classes [M, K].
        reference: the same for real images that the probe was not trained on [N, K].
        names: of the K classes.
        asked: the class that each sample was to show [M], or None.
        labels: the class of each real image [N], or None: then the probe is taken at its word.

    Raises:
        UsageError: fewer than two classes, no images, or labels that do not fit.
        DataError: log-probabilities of another number of classes, or not numbers.
    """
    K = len(names)
    _check(K, samples, reference, asked, labels)
    named, named_real = samples.argmax(1), reference.argmax(1)
    counts, counts_real = np.bincount(named, minlength=K), np.bincount(named_real, minlength=K)
    confusion = None if asked is None else _table(asked, named, K)
    real = None if labels is None else _table(labels, named_real, K)
    mix = None if asked is None else np.bincount(asked, minlength=K) / len(asked)
    recall = np.full(K, np.nan) if real is None else _recall(real)
    accuracy = float(np.nanmean(recall)) if real is not None else math.nan
    note = _doubt(accuracy, real, K)
    expected, estimated, errors = _balance(counts, counts_real, real if not note else None, mix)
    verdicts = _verdicts(names, expected, estimated, errors) if not note else ((), (), ())
    return Conditioning(
        names=tuple(names),
        note=note,
        real_accuracy=accuracy,
        agreement=_agreement(confusion),
        agreement_real=_agreement_real(recall, mix, real),
        class_agreement=_floats(np.full(K, np.nan) if confusion is None else _recall(confusion)),
        class_agreement_real=_floats(recall),
        asked=() if confusion is None else _ints(confusion.sum(1)),
        predicted=_ints(counts),
        reference=_ints(counts_real),
        confusion=() if confusion is None else tuple(_ints(row) for row in confusion),
        expected=_floats(expected),
        estimated=_floats(estimated),
        estimated_error=_floats(errors),
        missing=verdicts[0],
        scarce=verdicts[1],
        overfull=verdicts[2],
        p_value=_chi_square(counts, counts_real),
        **_distances(counts, counts_real),
    )


def _doubt(accuracy: float, real: NDArray[np.int64] | None, K: int) -> str:
    """Why the probe's answers say nothing, or nothing."""
    if real is None:
        return ""
    if accuracy < weak_below(K):
        return (
            f"The probe names {accuracy:.0%} of real images rightly, where guesses reach "
            f"{1 / K:.0%}: below {weak_below(K):.0%} it says nothing about samples."
        )
    return ""


def _balance(
    counts: Labels, counts_real: Labels, real: Labels | None, mix: Shares | None
) -> tuple[Shares, Shares, Shares]:
    """Expected and estimated shares [K] of the classes, standard errors of their difference."""
    M, N = int(counts.sum()), int(counts_real.sum())
    s, q = counts / M, counts_real / N
    sampling = _multinomial(_raised(counts)) / M
    if real is None or (real.sum(1) == 0).any():
        return q, s, np.sqrt(np.diag(sampling + _multinomial(_raised(counts_real)) / N))
    C = real / real.sum(1, keepdims=True)
    if np.linalg.svd(C, compute_uv=False)[-1] < _SINGULAR:
        return q, s, np.sqrt(np.diag(sampling + _multinomial(_raised(counts_real)) / N))
    undo = np.linalg.inv(C.T)
    p = undo @ s
    kept = p.clip(0)
    smooth = np.stack([_raised(row) for row in real])
    # What the finite reference leaves open in C'p.
    confusing = sum(kept[k] ** 2 * _multinomial(smooth[k]) / real[k].sum() for k in range(len(C)))
    covariance = undo @ (sampling + confusing) @ undo.T
    truth = real.sum(1) / N
    if mix is None:
        covariance = covariance + _multinomial(truth) / N
    estimated = kept / kept.sum()
    return (truth if mix is None else mix), estimated, np.sqrt(np.diag(covariance))


def _verdicts(
    names: Sequence[str], expected: Shares, estimated: Shares, errors: Shares
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Names of missing, scarce and overfull classes."""
    beyond = NormalDist().inv_cdf(1 - _ALARM / (2 * len(names)))
    ratio = estimated / np.maximum(expected, 1e-12)
    fewer = (estimated - expected) / errors < -beyond
    absent = fewer & (ratio < _MISSING)
    scarce = fewer & ~absent & (ratio < _SCARCE)
    # The others share what a missing class leaves: that alone makes none of them overfull.
    fair = expected / max(1 - float(expected[absent].sum()), 1e-12)
    more = ((estimated - fair) / errors > beyond) & (estimated > _OVERFULL * fair)

    def chosen(mask: NDArray[np.bool_]) -> tuple[str, ...]:
        return tuple(name for name, yes in zip(names, mask, strict=True) if yes)

    return chosen(absent), chosen(scarce), chosen(more)


def _agreement(confusion: Labels | None) -> Estimate:
    if confusion is None:
        return Estimate(math.nan)
    M = int(confusion.sum())
    a = float(np.trace(confusion)) / M
    return Estimate(a, samples_error=share_error(a, M))


def _agreement_real(recall: Shares, mix: Shares | None, real: Labels | None) -> Estimate:
    """Agreement of real images of the asked classes: recalls weighed by what was asked for."""
    if mix is None or real is None or np.isnan(recall[mix > 0]).any():
        return Estimate(math.nan)
    r, n = np.nan_to_num(recall), np.maximum(real.sum(1), 1)
    error = math.sqrt(float((mix**2 * r * (1 - r) / n).sum()))
    return Estimate(float(mix @ r), reference_error=error)


def _chi_square(counts: Labels, counts_real: Labels) -> float:
    """p-value of Pearson's test that two rows of counts come from one distribution."""
    table = np.stack([counts, counts_real]).astype(np.float64)
    table = table[:, table.sum(0) > 0]
    if table.shape[1] < 2:
        return 1.0
    fit = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
    return float(chdtrc(table.shape[1] - 1, ((table - fit) ** 2 / fit).sum()))


def _distances(counts: Labels, counts_real: Labels) -> dict[str, float]:
    """Total variation and divergence of two rows of counts, and their expectations by chance."""
    M, N, K = int(counts.sum()), int(counts_real.sum()), len(counts)
    s, q = counts / M, counts_real / N
    p, p_real = _raised(counts), _raised(counts_real)
    noise = 1 / M + 1 / N
    return {
        "total_variation": float(np.abs(s - q).sum()) / 2,
        # Half the sum of E|x| = sqrt(2 v / pi), x normal with variance v = q (1 - q) noise.
        "total_variation_real": float(np.sqrt(q * (1 - q) * noise / (2 * math.pi)).sum()),
        "divergence": float((p * np.log(p / p_real)).sum()),
        "divergence_real": (K - 1) / 2 * noise,
    }


def _table(true: Labels, named: Labels, K: int) -> Labels:
    """Counts [true, named]."""
    table = np.zeros((K, K), np.int64)
    np.add.at(table, (true, named), 1)
    return table


def _recall(table: Labels) -> Shares:
    """Diagonal shares of the rows [K]; nan for empty ones."""
    n = table.sum(1)
    return np.where(n > 0, np.diag(table) / np.maximum(n, 1), np.nan)


def _raised(counts: Labels) -> Shares:
    """Shares with every count raised by 1/2: no class of none is certain."""
    return np.asarray((counts + 0.5) / (counts.sum() + 0.5 * len(counts)), np.float64)


def _multinomial(p: Shares) -> Shares:
    """Covariance [K, K] of one draw with these probabilities."""
    return np.diag(p) - np.outer(p, p)


def _ints(values: Labels) -> tuple[int, ...]:
    return tuple(int(v) for v in values)


def _floats(values: Shares) -> tuple[float, ...]:
    return tuple(float(v) for v in values)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _plain(v) for name, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _check(
    K: int, samples: Shares, reference: Shares, asked: Labels | None, labels: Labels | None
) -> None:
    if K < 2:
        raise UsageError(f"{K} classes to tell apart", expected="at least two")
    for name, rows, given in (("sample", samples, asked), ("reference", reference, labels)):
        if rows.ndim != 2 or not len(rows) or rows.shape[1] != K or np.isnan(rows).any():
            raise DataError(
                f"{name} log-probabilities of shape {rows.shape} for {K} classes",
                expected="numbers [N, K] of at least one image",
            )
        if given is None:
            continue
        if len(given) != len(rows) or given.min() < 0 or given.max() >= K:
            raise UsageError(
                f"{len(given)} {name} labels for {len(rows)} images and {K} classes",
                expected=f"one each, from 0 to {K - 1}",
            )
