"""The record of a study, `study.json`, read tolerantly: what is of a wrong type is left out."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from poise.report import metrics
from poise.report.figures import weights_name
from poise.report.folder import Row, items, section
from poise.report.page import visible
from poise.report.words import is_number, plain

LOST = ("stopped", "diverged", "failed")  # states that end without a value
_LARGEST_EXPONENT = 300.0  # of an error that is drawn
_WIDE = 20.0  # largest over smallest from which an axis is logarithmic
_FAR = 3.0  # times the median error from which a trial would leave the others no room
_FIRST = "validation error after the first stretch"


@dataclass(frozen=True)
class Metric:
    """What a study optimises."""

    name: str
    lower: bool  # whether lower is better

    @property
    def title(self) -> str:
        return visible(metrics.title(self.name), 60)

    def order(self, value: float) -> float:
        """A key that sorts the best value to the front."""
        return value if self.lower else -value


@dataclass(frozen=True)
class Dimension:
    """A setting that was searched."""

    name: str
    log: bool
    choices: tuple[Any, ...]  # empty: a range
    free: bool  # needs no training

    @property
    def title(self) -> str:
        return visible(self.name, 60)

    @property
    def leaf(self) -> str:
        """`lr` of `training.lr`."""
        return visible(self.name.rsplit(".", 1)[-1], 24)


@dataclass(frozen=True)
class Trial:
    """One trial; `proxy` holds (images seen, geometric mean of the validation error)."""

    number: int
    role: str
    state: str
    seed: Any
    of: Any  # the trial that a repeat repeats
    settings: Row
    free: Row
    values: dict[str, float]
    proxy: list[tuple[float, float]]
    tried: list[tuple[Row, Row]]  # free settings, and the row that holds what they reached
    cost: float
    ended: str
    diagnosis: str

    @property
    def point(self) -> Row:
        """All that was set."""
        return {**self.settings, **self.free}

    @property
    def title(self) -> str:
        return f"trial {self.number}" + (" (default)" if self.role == "default" else "")


@dataclass(frozen=True)
class Study:
    """Everything the page knows; `metrics` is never empty."""

    record: Row
    plan: Row
    metrics: list[Metric]
    dimensions: list[Dimension]
    trials: list[Trial]
    importance: list[tuple[str, float]]  # largest first

    @property
    def best(self) -> Row:
        return section(self.record, "best")

    @property
    def default(self) -> Row:
        """The preset's own values, free settings too as far as the default trial has them."""
        first = next((trial for trial in self.trials if trial.role == "default"), None)
        return {**(first.free if first else {}), **section(self.record, "default")}

    @property
    def chosen(self) -> Row:
        """The best values."""
        return {**section(self.best, "settings"), **section(self.best, "free")}

    @property
    def searched(self) -> list[Trial]:
        """The trials that compete: all but repeats with other seeds."""
        return [trial for trial in self.trials if trial.role != "repeat"]

    @property
    def trained(self) -> list[Dimension]:
        return [dimension for dimension in self.dimensions if not dimension.free]

    @property
    def telling(self) -> Metric:
        """The first metric, or where most trials were stopped what all of them have."""
        metric = self.metrics[0]
        known, early = ([t for t in self.searched if n in t.values] for n in (metric.name, _FIRST))
        return metric if 2 * len(known) > len(early) else Metric(_FIRST, lower=True)

    def ranked(self, metric: Metric) -> list[Trial]:
        """The trials with a value, best first."""
        valued = [trial for trial in self.searched if metric.name in trial.values]
        return sorted(valued, key=lambda trial: metric.order(trial.values[metric.name]))


def read_study(record: Row) -> Study:
    """The record as far as it can be used."""
    plan = section(record, "plan")
    names = [name for name in items(plan, "metrics") if isinstance(name, str)]
    better = items(plan, "better")
    importance = section(record, "importance")
    shares = [(name, float(value)) for name, value in importance.items() if is_number(value)]
    space = section(record, "space")
    rows = [row for row in items(record, "trials") if isinstance(row, dict)]
    return Study(
        record,
        plan,
        [
            Metric(name, better[i] != "higher" if i < len(better) else True)
            for i, name in enumerate(names or ["validation_error"])
        ],
        [_dimension(name, section(space, name)) for name in space],
        _with_first([_trial(row, i) for i, row in enumerate(rows)]),
        sorted(shares, key=lambda pair: -pair[1]),
    )


def tuned(record: Row) -> Row:
    """The settings that a study trained: the user's own, and what it found."""
    best = section(record, "best")
    free = {k: v for k, v in section(best, "free").items() if k.startswith("sampling.")}
    return {**section(section(record, "plan"), "overrides"), **section(best, "settings"), **free}


def pair(name: str, value: Any) -> str:
    """A setting as `--set` takes it."""
    return f"{name}={value if isinstance(value, str) else json.dumps(value)}"


def shown(value: Any) -> str:
    """A setting's value as people read it."""
    if value is None:
        return "unset"
    if isinstance(value, str):
        return visible(weights_name(value), 40)
    if isinstance(value, int) and not isinstance(value, bool):
        return visible(value, 40)  # without a comma, as it is typed
    if is_number(value) and 1e-4 <= abs(value) < 1e3:
        return f"{value:.3g}"
    return visible(plain(value), 40)


def wide(values: Sequence[float]) -> bool:
    """Whether values spread so far that a logarithmic axis shows them better."""
    return spread(values) > _WIDE


def spread(values: Sequence[float]) -> float:
    """Largest over smallest; 0 where no logarithmic axis can show both."""
    ratio = max(values) / min(values) if values and min(values) > 0 else 0.0
    return ratio if math.isfinite(ratio) else 0.0


def _with_first(trials: list[Trial]) -> list[Trial]:
    """The same with the error after the first stretch as a value, unless it was stopped far off."""
    near = set(within_reach([trial.proxy[0][1] for trial in trials if trial.proxy]))
    return [
        replace(trial, values={**trial.values, _FIRST: trial.proxy[0][1]})
        if trial.proxy and (trial.state not in LOST or trial.proxy[0][1] in near)
        else trial
        for trial in trials
    ]


def within_reach(errors: Sequence[float]) -> list[float]:
    """Those that one figure can show beside each other."""
    return [error for error in errors if error <= _FAR * median(errors)]


def _dimension(name: str, row: Row) -> Dimension:
    log, choices = row.get("log") is True, tuple(items(row, "choices"))
    return Dimension(name, log, choices, row.get("free") is True)


def _trial(row: Row, position: int) -> Trial:
    number, cost = row.get("number"), row.get("cost_s")
    values = section(row, "values").items()
    tried = [one for one in items(row, "tried") if isinstance(one, dict)]
    return Trial(
        number if isinstance(number, int) and number >= 0 else position,
        visible(row.get("role", ""), 40),
        visible(row.get("state", ""), 40),
        row.get("seed"),
        row.get("of"),
        section(row, "settings"),
        section(row, "free"),
        {name: float(value) for name, value in values if is_number(value)},
        [
            (float(pair[0]), math.exp(pair[1]))
            for pair in items(row, "proxy")
            if isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair))
            if pair[0] > 0 and abs(pair[1]) < _LARGEST_EXPONENT
        ],
        [(section(one, "free"), one) for one in tried],
        float(cost) if is_number(cost) and cost > 0 else 0.0,
        str(row.get("ended") or ""),
        visible(row.get("diagnosis") or "", 400),
    )
