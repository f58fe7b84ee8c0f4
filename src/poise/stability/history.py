"""What the logs of a run show by themselves, whether the guard was on or off."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from poise.errors import DataError
from poise.report.figures import weights_name
from poise.report.verdict import best_weights
from poise.report.words import count, is_number, number, share
from poise.stability.finding import Finding
from poise.stability.foreign import log_of
from poise.stability.logs import judge

Row = dict[str, Any]
_DEAD = 0.9  # EDM-weighted error; 1: the output of the network carries no information
_FEWEST = 20  # log lines
_BAND_IMAGES = 64  # in each stretch of a noise band that is compared


def history(logs: dict[str, list[Row]], planned: int | None) -> list[Finding]:
    """Findings from metrics, validation, magnitudes and timing.

    Args:
        logs: rows by the name of their log, in order of `images_seen`.
        planned: length of the training in images, if known.
    """
    metrics = logs["metrics"]
    curve = _curves(metrics)
    dead = list(_dead(metrics, planned))
    return [
        *dead,
        *[
            finding
            for finding in curve
            if not (dead and finding.cause in ("plateau", "divergence"))
        ],
        *_skipped(metrics),
        *_bands(metrics),
        *_idle(metrics),
        *_validation(logs["validation"]),
        *_averages(logs["validation"]),
        *_growth(logs["magnitudes"]),
        *_waiting(logs["timing"]),
    ]


def _curves(metrics: list[Row]) -> list[Finding]:
    """Error, gradient norm and rate as any log; a plateau at the end of a run is no fault."""
    kept = ("images_seen", "error", "grad_norm", "lr")
    rows = [{key: row.get(key) for key in kept} for row in metrics]
    try:
        found = judge(log_of(rows, "metrics.jsonl"))
    except DataError:
        return []
    return [f for f in found if f.severity != "info"]


def _numbers(rows: list[Row], key: str) -> tuple[list[float], list[float]]:
    """Images seen and a value, where it is a finite number."""
    pairs = [(row["images_seen"], row[key]) for row in rows if is_number(row.get(key))]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def _dead(metrics: list[Row], planned: int | None) -> Iterator[Finding]:
    """An error near 1: the network knows no more than the mean of the data."""
    x, y = _numbers(metrics, "error")
    if len(y) < _FEWEST or x[-1] < 0.1 * (planned or x[-1]):
        return
    last = float(np.median(y[-max(5, len(y) // 20) :]))
    if not _DEAD <= last < 1.3:
        return
    lowest = min(float(np.median(y[i : i + 5])) for i in range(0, len(y) - 4, 5))
    row = len(y)
    while row and y[row - 1] >= _DEAD - 0.1:
        row -= 1
    evidence = {"error": last, "lowest": lowest}
    if lowest < 0.75:
        sentence = (
            f"The error is {number(last)}, where 1 is a network that has learned nothing; it was "
            f"{number(lowest)} before and rose at {count(x[min(row, len(x) - 1)])} images."
        )
        since = x[min(row, len(x) - 1)]
        yield Finding("lr-too-high", "critical", since, sentence, evidence)
        return
    sentence = (
        f"The error is {number(last)} and was never below {number(lowest)}: 1 is a network that "
        "has learned nothing."
    )
    do = "Lower training.lr to a third, and look at a grid of the images with `poise audit`."
    yield Finding("plateau", "critical", x[0], sentence, evidence, do)


def left_out(metrics: list[Row]) -> list[str]:
    """How many updates were left out, in a sentence; nothing where none was."""
    y, steps = _numbers(metrics, "skipped")[1], _numbers(metrics, "step")[1]
    if not y or not steps or y[-1] <= 0 or steps[-1] <= 0:
        return []
    return [f"{y[-1]:,.0f} of {steps[-1]:,.0f} updates were left out ({share(y[-1] / steps[-1])})."]


def _skipped(metrics: list[Row]) -> Iterator[Finding]:
    """So many updates left out that the run is not what it should be."""
    x, y = _numbers(metrics, "skipped")
    steps = _numbers(metrics, "step")[1]
    if not left_out(metrics) or y[-1] <= 0.01 * steps[-1]:
        return
    first = next(a for a, b in zip(x, y, strict=True) if b > 0)
    evidence = {"left_out": y[-1], "updates": steps[-1]}
    do = "Lower training.lr, or set training.precision=fp32."
    (sentence,) = left_out(metrics)
    yield Finding("non-finite-gradient", "warning", first, sentence, evidence, do)


def _bands(metrics: list[Row]) -> Iterator[Finding]:
    """One noise level that got worse while the others did not."""
    if len(metrics) < 2 * _FEWEST:
        return
    cut = np.array_split(np.arange(len(metrics)), 10)
    table: dict[float, list[tuple[float, int]]] = {}
    for part in cut:
        sums: dict[float, tuple[float, int]] = {}
        for i in part:
            for sigma, error, n in _band_rows(metrics[int(i)]):
                total, images = sums.get(sigma, (0.0, 0))
                sums[sigma] = total + error * n, images + n
        for sigma, (total, images) in sums.items():
            table.setdefault(sigma, []).append((total / max(images, 1), images))
    ratios = {}
    for sigma, parts in table.items():
        means = [mean for mean, images in parts if images >= _BAND_IMAGES]
        if len(means) >= 5 and min(means[:-1]) > 0 and parts[-1][1] >= _BAND_IMAGES:
            ratios[sigma] = means[-1] / min(means[:-1]), min(means[:-1]), means[-1]
    if len(ratios) < 3:
        return
    usual = float(np.median([ratio for ratio, _, _ in ratios.values()]))
    worst = max(ratios, key=lambda sigma: ratios[sigma][0])
    ratio, low, now = ratios[worst]
    rest = [r for sigma, (r, _, _) in ratios.items() if sigma != worst]
    if ratio < 1.6 * max(usual, 1.0) or sum(r > 1.3 * max(usual, 1.0) for r in rest) > 1:
        return
    evidence = {"sigma": worst, "lowest": low, "last": now, "others": usual}
    sentence = (
        f"The error at noise level σ {number(worst)} rose from {number(low)} to {number(now)}; "
        f"the other levels stayed (times {number(usual)})."
    )
    yield Finding("broken-band", "warning", None, sentence, evidence)


def _band_rows(row: Row) -> Iterator[tuple[float, float, int]]:
    bands = row.get("bands")
    for band in bands if isinstance(bands, list) else []:
        if isinstance(band, dict):
            sigma, error, n = (band.get(key) for key in ("sigma", "error", "count"))
            if is_number(sigma) and is_number(error) and is_number(n) and n > 0:
                yield float(sigma), float(error), int(n)


def _idle(metrics: list[Row]) -> Iterator[Finding]:
    """Updates so small that nothing can come of them."""
    x, y = _numbers(metrics, "update_ratio")
    errors = _numbers(metrics, "error")[1]
    if len(y) < _FEWEST or len(errors) < _FEWEST:
        return
    middle = float(np.median(y))
    if middle < 1e-6 and np.median(errors[-5:]) > 0.9 * np.median(errors[:5]):
        sentence = f"An update changes the weights by {number(middle)} of their size: too little."
        yield Finding("slow-convergence", "warning", x[0], sentence, {"update_ratio": middle})


def _validation(rows: list[Row]) -> Iterator[Finding]:
    """Held-out error that turned."""
    curves = {name: curve for name, curve in best_weights(rows).items() if len(curve) >= 4}
    if not curves:
        return
    name = min(curves, key=lambda n: min(loss for _, loss in curves[n]))
    curve = curves[name]
    at, best = min(curve, key=lambda pair: pair[1])
    later = [loss for seen, loss in curve if seen > at]
    if best <= 0 or len(later) < 2 or min(later[-2:]) < 1.03 * best:
        return
    sentence = (
        f"The error on held-out images was lowest at {count(at)} images ({number(best)}) and has "
        f"risen to {number(later[-1])} since."
    )
    evidence = {"weights": name, "lowest": best, "last": later[-1], "checks_since": len(later)}
    yield Finding("memorisation", "warning", at, sentence, evidence)


def _averages(rows: list[Row]) -> Iterator[Finding]:
    """Averages that lag behind the raw weights at the end."""
    last = {name: curve[-1] for name, curve in best_weights(rows).items()}
    ends = {str(row.get("weights")): row.get("loss") for row in rows}
    for name in (n for n in ends if n.startswith("ema") and not is_number(ends[n])):
        sentence = f"{weights_name(name)} has no finite error on held-out images."
        yield Finding("ema-damaged", "critical", None, sentence, {"weights": name})
    averaged = {n: p for n, p in last.items() if n.startswith("ema") and is_number(ends[n])}
    if "raw" not in last or not averaged or last["raw"][1] <= 0:
        return
    best = min(averaged, key=lambda name: averaged[name][1])
    gap = averaged[best][1] / last["raw"][1]
    if gap > 3:
        sentence = (
            f"{weights_name(best)} has {number(gap)} times the held-out error of the raw weights."
        )
        evidence = {"weights": best, "average": averaged[best][1], "raw": last["raw"][1]}
        cause = "ema-damaged" if _was_near(rows, best) else "ema-too-long"
        yield Finding(cause, "warning", averaged[best][0], sentence, evidence)
    elif gap > 1.02:
        sentence = (
            f"The raw weights have a lower held-out error ({number(last['raw'][1])}) than the best "
            f"average ({number(averaged[best][1])})."
        )
        yield Finding("ema-too-long", "info", averaged[best][0], sentence, {"times": gap})


def _was_near(rows: list[Row], name: str) -> bool:
    """Whether an average was once as good as the raw weights."""
    curves = best_weights(rows)
    raw = dict(curves.get("raw", []))
    return any(loss < 1.2 * raw[seen] for seen, loss in curves.get(name, []) if seen in raw)


def _growth(rows: list[Row]) -> Iterator[Finding]:
    """Weights and activations that grow without an end."""
    for key, cause, most in (
        ("activation_rms_highest", "activation-growth", 3.0),
        ("weight_rms", "weight-growth", 2.0),
    ):
        x, y = _numbers(rows, key)
        if len(y) < 4 or min(y) <= 0:
            continue
        z = np.log(y)
        low = int(np.argmin(z[: max(2, len(z) // 2)]))
        half = z[len(z) // 2 :]
        if z[-1] - z[low] < math.log(most) or (np.diff(half) < 0).sum() > len(half) // 3:
            continue
        what = "weights" if key == "weight_rms" else "activations of the largest block"
        sentence = (
            f"The {what} grew from {number(y[low])} to {number(y[-1])} (root mean square) and "
            "still grow."
        )
        slope = float((z[-1] - z[len(z) // 2]) / max(x[-1] - x[len(z) // 2], 1.0))
        evidence = {"lowest": y[low], "last": y[-1], "per_million_images": math.expm1(slope * 1e6)}
        yield Finding(cause, "warning", x[low], sentence, evidence)


def _waiting(rows: list[Row]) -> Iterator[Finding]:
    """Time spent waiting for batches; both counters begin anew with each session."""
    spent = waited = 0.0
    known = [
        (float(row["seconds"]), float(row["data_wait_s"]))
        for row in rows
        if is_number(row.get("seconds")) and is_number(row.get("data_wait_s"))
    ]
    for (s0, w0), (s1, w1) in pairwise(known):
        if s1 > s0 and 0 <= w1 - w0 <= s1 - s0:
            spent, waited = spent + s1 - s0, waited + w1 - w0
    if spent > 5 and waited > 0.3 * spent:
        sentence = f"{share(waited / spent)} of the training time passed in waiting for data."
        evidence = {"waited_seconds": waited, "seconds": spent}
        yield Finding("data-starvation", "warning", None, sentence, evidence)
