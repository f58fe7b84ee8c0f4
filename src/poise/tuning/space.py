"""What a study searches: the dimensions of a space, from a file around the settings of the study.

A space file holds dotted names of settings with what to try:

    training.lr = { times = [0.1, 10], log = true }    # multiples of the value it would have
    training.batch = { low = 16, high = 128, log = true }
    model.channels = { factors = [0.5, 1, 1.5] }       # choices, as multiples of that value
    training.momentum = { low = 0.5, high = 0.99, when = { "training.optimizer" = ["sgd"] } }
    weights = { choices = ["raw", 0.05, 0.1] }         # no settings: averages to sample with,
    guidance = { low = 1.0, high = 3.0, points = 4 }   # and the strength of guidance
    training.warmup = true                             # Poise's own range
    [study]                                            # proposed for options that are left open
    sampler = "grid"

Settings of sampling, `weights` and `guidance` are free: they are tried on a trained model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from poise.config import values_of
from poise.errors import UsageError
from poise.settings import Config
from poise.tuning.dimension import Dimension, Space, own_value
from poise.tuning.space_check import Around, checked_dimension
from poise.tuning.space_file import built_in, read_tables

if TYPE_CHECKING:
    import optuna

__all__ = [
    "Dimension",
    "Space",
    "ask",
    "built_in",
    "decode",
    "default_point",
    "encode",
    "grid",
    "load_space",
]

_LARGEST_GRID = 10_000  # points


def load_space(source: str | Path, base: Config, classes: int = 0) -> Space:
    """A built-in space, or that of a file, around the settings of a study.

    The base's own values are always inside: ranges are widened and choices added to, which
    `remarks` tells. A dimension of a built-in that does not fit is left out with a remark.

    Args:
        source: name of a built-in, or a path that ends in `.toml`.
        base: settings of a trial where nothing is searched.
        classes: of the images; 0: none.

    Raises:
        UsageError: no such space, or something in it that cannot be searched.
    """
    tables = read_tables(source)
    around = Around(base, values_of(base), classes, tables.ours)
    found: dict[str, Dimension] = {}
    remarks: list[str] = []
    for name, table in tables.dimensions.items():
        try:
            dimension, said = checked_dimension(name, table, found, around)
        except UsageError as error:
            if not tables.ours:
                raise
            said, dimension = [f"Left out: {error.found}"], None
        remarks += said
        if dimension is not None:
            found[name] = dimension
    if not found:
        raise UsageError(
            " ".join([f"The space {tables.name} holds nothing to search.", *remarks]),
            expected="at least one setting with what to try",
        )
    study = {key: value for key, value in tables.study.items() if key != "description"}
    return Space(tables.name, tuple(found.values()), study, tuple(remarks))


def ask(space: Space, trial: "optuna.trial.Trial", base: Mapping[str, Any]) -> dict[str, Any]:
    """Values that the study's sampler suggests, for each trained dimension whose conditions hold.

    Args:
        space: what is searched.
        trial: a trial that runs.
        base: every setting (dotted name) as it is where nothing is searched.
    """
    point: dict[str, Any] = {}
    for d in space.trained():
        if not d.holds(point, base):
            continue
        if d.kind == "choice":
            text = trial.suggest_categorical(d.name, [_encoded(c) for c in d.choices])
            point[d.name] = _decoded(d, text)
        elif d.kind == "int":
            low, high = int(cast(int, d.low)), int(cast(int, d.high))
            point[d.name] = trial.suggest_int(d.name, low, high, log=d.log)
        else:
            low_, high_ = float(cast(float, d.low)), float(cast(float, d.high))
            point[d.name] = trial.suggest_float(d.name, low_, high_, log=d.log)
    return point


def grid(space: Space, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All points of the trained dimensions' grids, the last dimension fastest, each point once.

    A dimension is left out of points at which its conditions do not hold.

    Raises:
        UsageError: more points than any study has trials.
    """
    points: list[dict[str, Any]] = [{}]
    for d in space.trained():
        values = d.values()
        points = [
            more
            for point in points
            for more in (
                ({**point, d.name: v} for v in values) if d.holds(point, base) else (point,)
            )
        ]
        if len(points) > _LARGEST_GRID:
            raise UsageError(
                f"The grid of {space.name} has more than {_LARGEST_GRID:,} points.",
                expected="few dimensions with few values each",
                remedy="Take --sampler tpe or random, or fewer points and dimensions.",
            )
    return points


def default_point(space: Space, base: Mapping[str, Any]) -> dict[str, Any]:
    """The base's own value of each trained dimension whose conditions hold there."""
    return {d.name: own_value(base, d.name) for d in space.trained() if d.holds({}, base)}


def encode(space: Space, point: Mapping[str, Any]) -> dict[str, Any]:
    """A point as parameters of Optuna, which knows no lists."""
    return {d.name: _encoded(point[d.name]) for d in space.dimensions if d.name in point}


def decode(space: Space, params: Mapping[str, Any]) -> dict[str, Any]:
    """A point from parameters of Optuna, in the order of the space."""
    return {d.name: _decoded(d, params[d.name]) for d in space.dimensions if d.name in params}


def _encoded(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, tuple | list) else value


def _decoded(dimension: Dimension, value: Any) -> Any:
    """The choice behind a parameter; any other value as it is."""
    texts = {_encoded(c): c for c in dimension.choices if isinstance(c, tuple)}
    return texts.get(value, value)
