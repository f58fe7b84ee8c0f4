"""What a space is made of: dimensions, each with what to try and when."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, cast

from poise.tuning.space_file import SPECIAL

Kind = Literal["float", "int", "choice"]

_FIRST_RUNG = {"edm2": "G", "adm": "A"}  # what an unset model.ladder stands for


@dataclass(frozen=True)
class Dimension:
    """One thing that is searched."""

    name: str  # a dotted setting, or "weights", or "guidance"
    kind: Kind
    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()  # numbers, texts, truths, tuples; None: unset
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)  # one value of each must hold
    points: int = 4  # values of a range in a grid

    @property
    def free(self) -> bool:
        """Whether it is tried on a trained model."""
        return self.name in SPECIAL or self.name.startswith("sampling.")

    def values(self) -> tuple[Any, ...]:
        """The choices, or `points` distinct values spread over the range, both ends included."""
        if self.kind == "choice":
            return self.choices
        low, high = cast(float, self.low), cast(float, self.high)
        inner = []
        for i in range(1, self.points - 1):
            share = i / (self.points - 1)
            if self.log:
                value = math.exp((1 - share) * math.log(low) + share * math.log(high))
            else:
                value = (1 - share) * low + share * high
            value = round(value) if self.kind == "int" else float(f"{value:.6g}")
            inner.append(min(max(value, low), high))
        return tuple(dict.fromkeys((low, *inner, high)))

    def holds(self, point: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
        """Whether its conditions hold: at a point, and where that says nothing in the base."""
        return all(
            (point[name] if name in point else own_value(base, name)) in values
            for name, values in self.when.items()
        )


@dataclass(frozen=True)
class Space:
    """Everything that a study searches."""

    name: str
    dimensions: tuple[Dimension, ...]  # conditions refer to earlier ones
    study: Mapping[str, Any] = field(default_factory=dict)  # what [study] of the file proposes
    remarks: tuple[str, ...] = ()  # sentences on what was widened or left out

    def trained(self) -> tuple[Dimension, ...]:
        """Dimensions that need a training for each value."""
        return tuple(d for d in self.dimensions if not d.free)

    def free(self) -> tuple[Dimension, ...]:
        """Dimensions that are tried on a trained model."""
        return tuple(d for d in self.dimensions if d.free)

    def to_json(self) -> dict[str, Any]:
        """As plain data: `dimensions` maps names to what there is to try."""
        rows = {d.name: {**asdict(d), "free": d.free} for d in self.dimensions}
        for row in rows.values():
            del row["name"]
        plain = {"name": self.name, "study": dict(self.study), "remarks": list(self.remarks)}
        return cast(dict[str, Any], json.loads(json.dumps({**plain, "dimensions": rows})))

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Space":
        """What `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        dimensions = []
        for name, row in raw["dimensions"].items():
            known = {key: value for key, value in row.items() if key != "free"}
            known["choices"] = tuple(frozen(v) for v in row["choices"])
            known["when"] = {key: tuple(map(frozen, v)) for key, v in row["when"].items()}
            dimensions.append(Dimension(name=name, **known))
        return cls(str(raw["name"]), tuple(dimensions), dict(raw["study"]), tuple(raw["remarks"]))


def own_value(base: Mapping[str, Any], name: str) -> Any:
    """The value of a setting where nothing is searched; an unset rung is what it stands for."""
    value = {"guidance": 1.0, **base}.get(name)
    if name == "model.ladder" and value is None:
        return _FIRST_RUNG.get(base["model.architecture"])
    return value


def frozen(value: Any) -> Any:
    """A value of JSON or TOML with tuples for lists."""
    return tuple(map(frozen, value)) if isinstance(value, list) else value
