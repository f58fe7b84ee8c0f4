"""Whether held-out images have got worse for good, so that a run may end and keep its best.

Validations share their images and their noise, so the errors of one noise level are paired over
time: what moves is the network. The judgement needs all of: a smoothed minimum that is old, a rise
since then well beyond the wobble of the curve, in the mean and at several levels, that lasts to the
end; and, where they are known, a training error that does not rise with it (that is another
illness) and samples that do not get better all the same.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FEWEST = 4  # validations since the minimum
_OLD = 1 / 3  # of the run so far, in images, since the minimum
_SIGMAS = 3.0  # standard errors of a single noise level's rise, and of the trend
_SURE, _UNSURE = 4.0, 2.0  # the wobble is told by the validations since: 4 (1 + 2 / since)
_LEAST = 0.03  # in ln(error): the best is kept anyway, so a smaller rise costs nothing
_BANDS = 2  # noise levels at least that rise by themselves
_CURVE = 1.5  # variance of x_t - (x_(t-1) + x_(t+1)) / 2 over that of x, for independent noise


@dataclass(frozen=True)
class Turned:
    """Held-out error that has been rising since its minimum."""

    images_seen: int  # at the minimum
    now: int  # images seen
    weights: str  # whose error was judged
    rise: float  # relative, of the mean over noise levels
    standard_errors: float  # the rise in those of the curve's wobble
    sigmas: tuple[float, ...]  # noise levels that rose
    sentence: str


def has_turned(rows: Sequence[Mapping[str, Any]]) -> Turned | None:
    """Whether the held-out error of the best weights has turned.

    Args:
        rows: of validation.jsonl, oldest first. Of split "val" those count that are finite; rows of
            split "train" are the training probe; a row with `rank` brings the rank of the samples
            of that time among all (1: best).

    Returns:
        What was found; None while the error falls, wobbles, or there are too few validations.
    """
    curve = _curve(rows, "val")
    if curve is None:
        return None
    images, logs, sigmas, weights = curve
    mean = logs.mean(1)
    low = int(np.argmin(_smooth(mean)))
    since = len(mean) - 1 - low
    if since < _FEWEST or images[-1] - images[low] < _OLD * images[-1]:
        return None
    late = slice(len(mean) - -(-since // 2), len(mean))  # the later half of what came since
    early = slice(max(low - 1, 0), low + 2)
    rises = logs[late].mean(0) - np.median(logs[early], axis=0)
    counts = len(mean[late]), len(mean[early])
    errors = _standard_errors(logs, low, *counts)
    rise = float(rises.mean())
    error = max(float(_standard_errors(mean[:, None], low, *counts)[0]), 1e-12)
    sure = _SURE * (1 + _UNSURE / since)
    up = (rises > _SIGMAS * errors) & (rises > _LEAST)
    lasting = bool((mean[late] > np.median(mean[early]) + rise / 3).all())
    if rise <= max(sure * error, _LEAST) or up.sum() < min(_BANDS, len(up)) or not lasting:
        return None
    if _trend(mean[low:]) < _SIGMAS or _train_rises(rows, images[low]) or _samples_improve(rows):
        return None
    rose = tuple(s for s, is_up in zip(sigmas, up.tolist(), strict=True) if is_up)
    relative = math.expm1(rise)
    sentence = (
        f"The held-out error of {weights} was lowest at {images[low]:,} images and is "
        f"{relative:.1%} above that now ({rise / error:.1f} standard errors), at noise levels "
        f"{', '.join(f'{s:.2g}' for s in rose)}: the network learns its training images by heart."
    )
    return Turned(images[low], images[-1], weights, relative, rise / error, rose, sentence)


def _curve(
    rows: Sequence[Mapping[str, Any]], split: str
) -> tuple[list[int], NDArray[np.float64], list[float], str] | None:
    """Times [T], ln(error) [T, J], noise levels [J] and the weights: the average that is best."""
    named: dict[str, dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        if row.get("split", "val") == split and "bands" in row and _finite(row):
            named.setdefault(str(row["weights"]), {})[int(row["images_seen"])] = row
    if not named:
        return None
    averages = [name for name in named if name != "raw"] or list(named)
    best = min(averages, key=lambda name: min(row["loss"] for row in named[name].values()))
    chosen = [row for _, row in sorted(named[best].items())]
    sigmas = [float(band["sigma"]) for band in chosen[-1]["bands"]]
    alike = [row for row in chosen if [float(b["sigma"]) for b in row["bands"]] == sigmas]
    if len(alike) < _FEWEST + 1:
        return None
    logs = np.log([[band["loss"] for band in row["bands"]] for row in alike])
    return [int(row["images_seen"]) for row in alike], logs, sigmas, best


def _finite(row: Mapping[str, Any]) -> bool:
    values = [row["loss"], *(band["loss"] for band in row["bands"])]
    return all(isinstance(v, int | float) and math.isfinite(v) and v > 0 for v in values)


def _smooth(curve: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median with both neighbours; at the ends the mean with the one there is."""
    padded = np.concatenate([curve[:1], curve, curve[-1:]])
    middle = np.median(np.stack([padded[:-2], curve, padded[2:]]), axis=0)
    middle[0], middle[-1] = curve[:2].mean(), curve[-2:].mean()
    smooth: NDArray[np.float64] = middle
    return smooth


def _standard_errors(
    logs: NDArray[np.float64], low: int, late: int, early: int
) -> NDArray[np.float64]:
    """Of the difference between means of `late` and of `early` values [J], from the wobble [T, J].

    The largest of three estimates: the wobble about a smooth curve since the minimum at `low`, that
    of the steps since then about their mean, and the median wobble of the whole curve.
    """
    bend = logs[1:-1] - (logs[:-2] + logs[2:]) / 2
    since = np.sqrt((bend[low:] ** 2).mean(0) / _CURVE)
    steps = np.sqrt(np.diff(logs[low:], axis=0).var(0, ddof=1) / 2)
    whole = 1.4826 * np.median(abs(bend), axis=0) / math.sqrt(_CURVE)
    wobble = np.maximum(np.maximum(since, steps), whole)
    errors: NDArray[np.float64] = wobble * math.sqrt(1 / late + 1 / early)
    return errors


def _trend(curve: NDArray[np.float64]) -> float:
    """Mann and Kendall's statistic: how much more often a later value is the higher, in sigmas.

    At least five values; the most that n values can give is reached by a curve that never falls,
    and counts as _SIGMAS where n is too small for more.
    """
    n = len(curve)
    later = np.sign(curve[None, :] - curve[:, None])[np.triu_indices(n, 1)].sum()
    if later >= n * (n - 1) / 2 - 2:  # one pair out of order at most
        return _SIGMAS
    return float(later / math.sqrt(n * (n - 1) * (2 * n + 5) / 18))


def _train_rises(rows: Sequence[Mapping[str, Any]], since: int) -> bool:
    """Whether the training probe got worse since then as well."""
    curve = _curve(rows, "train")
    if curve is None:
        return False
    images, logs, _, _ = curve
    before = [m for at, m in zip(images, logs.mean(1), strict=True) if at <= since]
    after = logs.mean(1)[-max(2, (len(images) - len(before)) // 2) :]
    return bool(before) and float(after.mean()) > min(before) + _LEAST


def _samples_improve(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the newest samples are the best so far."""
    by_time = {int(row["images_seen"]): row["rank"] for row in rows if "rank" in row}
    found = [by_time[at] for at in sorted(by_time) if by_time[at] is not None]
    return len(found) >= 2 and found[-1] <= min(found[:-1])
