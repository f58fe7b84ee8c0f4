"""What a log of loss, gradient norm and learning rate says about a training."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from poise.report.words import listed, number
from poise.stability.finding import Finding
from poise.stability.foreign import Log
from poise.stability.incident import Severity
from poise.stability.series import (
    Curve,
    Shift,
    Spike,
    bump,
    constant_since,
    rise,
    spikes,
    standstill,
    swings,
)

_FEWEST = 20  # rows without which a curve has no shape
_LEAD = 20  # rows before a jump of the loss in which the gradient norm may have led


def judge(log: Log) -> list[Finding]:
    """Everything the columns show."""
    found = [*_not_finite(log)]
    for name in ("loss", "grad_norm"):
        found += _frozen(log, name)
    still = any(finding.cause == "stale-layer" for finding in found)
    loss = _curve(log, "loss")
    if loss is not None and not still:
        found += _loss(log, *loss)
    gradient = _curve(log, "grad_norm")
    if gradient is not None:
        found += _gradient(log, *gradient, loss)
    found += _held_out(log)
    return found


Rows = npt.NDArray[np.int64]


def _curve(log: Log, name: str) -> tuple[Curve, Rows] | None:
    """The finite values of a column and their rows, if there are enough."""
    column = log.columns.get(name)
    if column is None or len(column.rows()) < _FEWEST:
        return None
    rows = column.rows()
    return Curve(column.values[rows]), rows


def _at(log: Log, row: int) -> float:
    return float(log.x[row])


def _where(log: Log, row: int) -> str:
    """A moment as people say it."""
    value = number(int(log.x[row]) if float(log.x[row]).is_integer() else float(log.x[row]))
    return f"{value} images" if log.unit == "images" else f"{log.unit} {value}"


def _not_finite(log: Log) -> Iterator[Finding]:
    """NaN and infinity: now and then, or for good."""
    broken = {n: c for n, c in log.columns.items() if n in ("loss", "grad_norm") and c.broken.any()}
    if not broken:
        return
    firsts = {name: int(np.flatnonzero(c.broken)[0]) for name, c in broken.items()}
    first = min(firsts.values())
    name = min(firsts, key=lambda n: (firsts[n], n != "loss"))
    column = broken[name]
    bad = np.flatnonzero(column.broken)
    title = _title(name)
    good_after = np.flatnonzero(np.isfinite(column.values))
    last_good = int(good_after[-1]) if len(good_after) else -1
    tail = int((bad > last_good).sum())
    place = "non-finite-gradient" if name == "grad_norm" else "non-finite-activation"
    evidence = {"rows": len(bad), "first": _at(log, first), "columns": sorted(broken)}
    if tail >= 3 or (tail and len(bad) == tail):
        start = int(bad[bad > last_good][0])
        sentence = f"The {title} is not finite from {_where(log, start)} to the end ({tail} rows)."
        evidence["before"] = _lead_up(log, start)
        cause = "weights-damaged" if tail >= 3 else place
        yield Finding(cause, "critical", _at(log, start), sentence, evidence, _DEAD)
        bad = bad[bad < start]
    if len(bad):
        steps = listed([_where(log, int(row)) for row in bad], 5)
        sentence = f"The {title} was not finite in {len(bad)} rows and came back: {steps}."
        yield Finding(place, "warning", _at(log, int(bad[0])), sentence, evidence)


_DEAD = (
    "Nothing after this moment is of use: go back to a checkpoint from before it. Leave out "
    "updates whose loss or gradient is not finite, and lower the learning rate if it came after "
    "a rise."
)


def _lead_up(log: Log, row: int) -> dict[str, float]:
    """How far the columns had moved just before."""
    moved = {}
    for name, column in log.columns.items():
        rows = column.rows()[column.rows() < row]
        if len(rows) >= _FEWEST and name in ("loss", "grad_norm"):
            usual = float(np.median(column.values[rows[-200:]]))
            moved[f"{name} usual"] = usual
            moved[f"{name} last"] = float(column.values[rows[-1]])
    return moved


def _frozen(log: Log, name: str) -> Iterator[Finding]:
    """A column that is exactly the same from some row on."""
    column = log.columns.get(name)
    if column is None or len(column.rows()) < _FEWEST:
        return
    values = column.values[column.rows()]
    since = constant_since(values)
    if len(values) - since < _FEWEST or len(values) - since < 0.1 * len(values):
        return
    row = int(column.rows()[since])
    value = float(values[-1])
    evidence = {"value": value, "rows": len(values) - since}
    said = f"The {_title(name)} is exactly {number(value)} from {_where(log, row)} to the end"
    if name == "loss":
        why = "no batch is like another, so nothing is computed anew, or the column is another one"
        do = "Check what is logged; check that the loss is computed from the batch, and stepped on."
        yield Finding("stale-layer", "critical", _at(log, row), f"{said}: {why}.", evidence, do)
    elif value == 0:
        said += ": no gradient reaches the weights."
        yield Finding("vanishing-gradients", "critical", _at(log, row), said, evidence)


def _loss(log: Log, curve: Curve, rows: Rows) -> Iterator[Finding]:
    up = rise(curve)
    jumps = [s for s in spikes(curve) if up is None or s.first < up.row - _LEAD]
    if jumps:
        yield _spikes(log, curve, rows, jumps)
    if up is not None:
        yield _rose(log, rows, up, "critical")
        return
    swing = swings(curve)
    if swing is not None and not _planned(log, swing.period):
        row = int(rows[swing.row])
        size = f"by a factor of {np.exp(2 * swing.size):.2g}" if curve.positive else ""
        size = size or f"by {number(2 * swing.size)}"
        beat = f" with a period of {swing.period:.0f} rows" if swing.period else ""
        grew = "" if swing.period else f", much more than before {_where(log, row)}"
        evidence = {"half_height": swing.size, "noise": curve.sigma, "period_rows": swing.period}
        sentence = f"The loss swings up and down {size}{beat}{grew}."
        yield Finding("oscillation", "warning", _at(log, row), sentence, evidence)
        return
    over = bump(curve)
    if over is not None and not any(abs(s.top - over.row) < 2 * _LEAD for s in jumps):
        yield _rose(log, rows, over, "info")
    yield from _stood(log, curve, rows)


def _spikes(log: Log, curve: Curve, rows: Rows, jumps: list[Spike]) -> Finding:
    worst = max(jumps, key=lambda s: s.sigmas)
    places = listed([_where(log, int(rows[s.top])) for s in jumps], 6)
    evidence = {
        "spikes": len(jumps),
        "at": [_at(log, int(rows[s.top])) for s in jumps],
        "worst": worst.value,
        "usual": worst.usual,
        "deviations": worst.sigmas,
        **_gradient_before(log, int(rows[worst.first])),
        **_rate_around(log, int(rows[worst.first])),
    }
    many = f"{len(jumps)} times" if len(jumps) > 1 else "once"
    sentence = (
        f"The loss jumped {many} and came back, at {places}; the worst was {number(worst.value)} "
        f"where {number(worst.usual)} was usual{_led(evidence)}."
    )
    return Finding("bad-batch", "warning", _at(log, int(rows[jumps[0].top])), sentence, evidence)


def _rose(log: Log, rows: Rows, up: Shift, severity: Severity) -> Finding:
    row = int(rows[up.row])
    evidence = {
        "lowest": up.before,
        "level": up.after,
        "deviations": up.sigmas,
        **_gradient_before(log, row),
        **_rate_around(log, row),
    }
    rate = evidence.get("rate_after", 0.0) / max(evidence.get("rate_before", 0.0), 1e-300)
    steep = "rate_after" in evidence and rate >= 2
    cause = "lr-too-high" if steep else "divergence"
    healed = "and has not come back" if severity == "critical" else "and came back"
    sentence = (
        f"The loss rose from {number(up.before)} to {number(up.after)}, beginning at "
        f"{_where(log, row)}, {healed}{_led(evidence)}"
        + (f"; the learning rate had just become {rate:.3g} times larger." if steep else ".")
    )
    if any(abs(x - _at(log, row)) <= _near(log) for x in log.resumed):
        sentence += " The log went back in time there: check that a resume restores everything."
    return Finding(cause, severity, _at(log, row), sentence, evidence)


def _near(log: Log) -> float:
    """A few rows, in the unit of x."""
    return 5 * float(np.median(np.diff(log.x))) if len(log.x) > 1 else 0.0


def _led(evidence: dict[str, Any]) -> str:
    rows = evidence.get("gradient_led_rows", 0)
    if not rows:
        return ""
    times = number(evidence["gradient_times"])
    return f"; the gradient norm was {times} times its usual value {rows} rows earlier"


def _gradient_before(log: Log, row: int) -> dict[str, float]:
    """How many rows before `row` the gradient norm had left its usual range."""
    column = log.columns.get("grad_norm")
    if column is None or (column.values[column.rows()] <= 0).any():
        return {}
    rows = column.rows()
    usual = rows[rows < row - _LEAD][-200:]
    near = rows[(rows >= row - _LEAD) & (rows < row)]
    if len(usual) < _FEWEST or not len(near):
        return {}
    z = np.log(column.values)
    middle = float(np.median(z[usual]))
    sigma = 1.4826 * float(np.median(np.abs(z[usual] - middle)))
    high = near[z[near] > middle + max(4 * sigma, np.log(2))]
    if not len(high):
        return {}
    first = int(high[0])
    return {
        "gradient_led_rows": row - first,
        "gradient_times": float(np.exp(z[high].max() - middle)),
    }


def _rate_around(log: Log, row: int) -> dict[str, float]:
    """The learning rate a little before and at `row`, if it changed there."""
    column = log.columns.get("lr")
    if column is None:
        return {}
    rows = column.rows()
    span = max(_LEAD, len(log.x) // 40)
    before, near = rows[rows < row - span], rows[(rows >= row - span) & (rows <= row)]
    if not len(before) or not len(near):
        return {}
    was, now = float(column.values[before[-1]]), float(column.values[near].max())
    if was <= 0 or not (now > 1.5 * was or now < was / 1.5):
        return {}
    return {"rate_before": was, "rate_after": now}


def _planned(log: Log, period: float | None) -> bool:
    """Whether the learning rate itself swings: a cyclical schedule is no fault."""
    rate = _curve(log, "lr")
    if rate is None or period is None:
        return False
    ups = np.diff(rate[0].y) > 1e-12
    return bool((np.diff(ups.astype(int)) != 0).sum() >= 6)


def _stood(log: Log, curve: Curve, rows: Rows) -> Iterator[Finding]:
    found = standstill(curve)
    if found is None:
        return
    since, sharp = found
    row = int(rows[since])
    level = number(float(np.median(curve.y[since:])))
    evidence = {"level": float(np.median(curve.y[since:])), "rows": len(curve.y) - since}
    rate = log.columns.get("lr")
    late = rate.values[row:][np.isfinite(rate.values[row:])] if rate is not None else np.zeros(0)
    if len(late) and np.median(late) <= 0:
        sentence = f"The loss stands at {level}, and the learning rate is 0."
        do = "Check the schedule: with a rate of 0 nothing is learned."
        yield Finding("slow-convergence", "warning", _at(log, row), sentence, evidence, do)
    elif since == 0:
        sentence = f"The loss has stood at {level} for the whole log: nothing more is learned."
        yield Finding("plateau", "warning", _at(log, row), sentence, evidence, _FLAT)
    elif sharp:
        sentence = f"The loss stopped falling at {_where(log, row)} and stands at {level} since."
        yield Finding("plateau", "warning", _at(log, row), sentence, evidence, _FLAT)


_FLAT = (
    "If this is the end of a long training, it is done. If not, the rate is far too low or far "
    "too high: try a third and three times of it on a short run, and check that all weights are "
    "handed to the optimiser."
)


def _gradient(
    log: Log, curve: Curve, rows: Rows, loss: tuple[Curve, Rows] | None
) -> Iterator[Finding]:
    if not curve.positive:
        return
    n = len(curve.y)
    usual = float(np.median(curve.z[n // 20 : max(n // 2, _FEWEST)]))
    end = float(np.median(curve.z[-max(5, n // 20) :]))
    up = rise(curve, factor=10.0, sigmas=3.0)
    if up is not None and end - usual > np.log(10):
        row = int(rows[up.row])
        evidence = {"before": up.before, "after": up.after, "deviations": up.sigmas}
        sentence = (
            f"The gradient norm grew from {number(up.before)} to {number(up.after)}, beginning at "
            f"{_where(log, row)}, and stays there."
        )
        yield Finding("exploding-gradients", "warning", _at(log, row), sentence, evidence)
    elif end - usual < np.log(1e-3) and not _learned_everything(loss):
        low = np.flatnonzero(curve.z > usual + np.log(1e-2))
        row = int(rows[min(int(low[-1]) + 1, n - 1)])
        evidence = {"before": float(np.exp(usual)), "after": float(np.exp(end))}
        sentence = (
            f"The gradient norm fell from {number(evidence['before'])} to "
            f"{number(evidence['after'])} at {_where(log, row)}: hardly anything reaches the "
            "weights."
        )
        yield Finding("vanishing-gradients", "warning", _at(log, row), sentence, evidence)
    jumps = [s for s in spikes(curve, factor=4.0) if up is None or s.first < up.row]
    jumps = [s for s in jumps if not _loss_jumped(loss, int(rows[s.first]))]
    if jumps:
        worst = max(jumps, key=lambda s: s.sigmas)
        places = listed([_where(log, int(rows[s.top])) for s in jumps], 6)
        told: dict[str, Any] = {
            "spikes": len(jumps),
            "at": [_at(log, int(rows[s.top])) for s in jumps],
            "worst": worst.value,
            "usual": worst.usual,
        }
        sentence = (
            f"The gradient norm jumped at {places}, to {number(worst.value)} where "
            f"{number(worst.usual)} is usual; the loss shows nothing there."
        )
        since = _at(log, int(rows[jumps[0].top]))
        yield Finding("bad-batch", "warning", since, sentence, told)


def _loss_jumped(loss: tuple[Curve, Rows] | None, row: int) -> bool:
    """Whether the loss told the same already."""
    if loss is None:
        return False
    curve, rows = loss
    tops = [int(rows[s.top]) for s in spikes(curve)]
    tops += [int(rows[up.row]) for up in (rise(curve), bump(curve)) if up is not None]
    return any(row - 2 <= top <= row + _LEAD for top in tops)


def _learned_everything(loss: tuple[Curve, Rows] | None) -> bool:
    """A loss that fell to almost nothing takes its gradient with it."""
    if loss is None or not loss[0].positive:
        return False
    z = loss[0].z
    return bool(np.median(z[-5:]) - np.median(z[:5]) < np.log(0.05))


def _held_out(log: Log) -> Iterator[Finding]:
    """Validation that turned upwards for good."""
    column = log.columns.get("val_loss")
    if column is None or len(column.rows()) < 5:
        return
    rows = column.rows()
    curve = Curve(column.values[rows])
    best = int(np.argmin(curve.z))
    later = curve.z[best + 1 :]
    steps = np.abs(np.diff(curve.z, n=2)) if len(curve.z) > 6 else np.zeros(1)
    noise = 1.4826 * float(np.median(steps)) / np.sqrt(6)
    least = max(curve.material(1.05, 0.1), 5 * noise)
    if len(later) < 3 or float(np.min(later[-3:]) - curve.z[best]) < least:
        return
    row = int(rows[best])
    low, now = float(curve.y[best]), float(curve.y[-1])
    sentence = (
        f"The loss on held-out data was lowest at {_where(log, row)} ({number(low)}) and has "
        f"risen to {number(now)} since."
    )
    evidence = {"lowest": low, "last": now, "checks_since": len(later)}
    yield Finding("memorisation", "warning", _at(log, row), sentence, evidence)


def _title(name: str) -> str:
    return {"loss": "loss", "grad_norm": "gradient norm"}[name]
