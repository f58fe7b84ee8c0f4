"""One metric of a record of scores, read tolerantly, and what its interval allows to say.

A value is called worse only where its whole 95 % interval is, by a margin, and praised only where
the interval rules out a serious loss. Records without intervals get wide margins and no praise.
"""

from dataclasses import dataclass
from math import hypot
from typing import Any

from poise.report import metrics
from poise.report.folder import Row, items, section
from poise.report.page import visible
from poise.report.words import is_number, number, share

FEW = 100  # images below which every figure is mostly chance, and nothing is called weak
SLIGHT = 0.05  # relative; real images of another draw differ by as much at a few hundred
_CONFIDENCE = 1.96  # standard errors on either side
SERIOUS = 0.2  # relative; a loss that is seen without measuring


@dataclass(frozen=True)
class Reading:
    """A metric beside its real value.

    Attributes:
        low, high: its 95 % interval; both None: none was recorded.
        doubt: half the 95 % interval of the real value, which comes from finitely many images too.
        n: counts of samples and of reference images; empty: not known.
        mark: why it must not be read alone.
    """

    value: float
    real: float | None
    low: float | None
    high: float | None
    n: tuple[float, ...] = ()
    mark: str = ""
    doubt: float = 0.0

    @property
    def least(self) -> float | None:
        """The lower end of an interval that the chance in the real value widens."""
        return None if self.low is None else self.value - hypot(self.value - self.low, self.doubt)

    @property
    def most(self) -> float | None:
        """The upper end of it."""
        return None if self.high is None else self.value + hypot(self.high - self.value, self.doubt)

    @property
    def few(self) -> bool:
        """Whether it comes from too few images to call anything weak."""
        return bool(self.n) and min(self.n) < FEW

    def below(self, margin: float, *, relative: bool = True) -> bool:
        """Whether it lies below its real value by the margin, beyond doubt."""
        if self.real is None:
            return False
        if self.most is None:
            return self.value < _less(self.real, max(margin, SERIOUS), relative)
        return self.most < _less(self.real, margin, relative)

    def above(self, margin: float, *, relative: bool = True) -> bool:
        """Whether it lies above its real value by the margin, beyond doubt."""
        if self.real is None:
            return False
        if self.least is None:
            return self.value > _less(self.real, -max(margin, SERIOUS), relative)
        return self.least > _less(self.real, -margin, relative)

    def as_good(self, margin: float, *, relative: bool = True) -> bool:
        """Whether a loss of the margin is ruled out: the interval is there, and narrow enough."""
        if self.real is None or self.least is None or self.mark or self.few:
            return False
        return self.least > _less(self.real, margin, relative)

    def told(self, percent: bool = False) -> str:
        """`0.410 (0.360 to 0.460)`."""
        if percent:
            return share(self.value) + interval(self, percent)
        return number(self.value) + interval(self)

    def against_real(self, percent: bool = False) -> str:
        """The value with its interval, and what real images reach."""
        real = share(self.real) if percent else number(self.real)
        return f"{self.told(percent)} where real images reach {real}"


def interval(reading: Reading, percent: bool = False) -> str:
    """` (0.360 to 0.460)`; nothing where there is none."""
    if reading.low is None or reading.high is None:
        return ""
    if percent:
        return f" ({100 * reading.low:.3g} to {share(reading.high)})"
    return f" ({number(reading.low)} to {number(reading.high)})"


def read(scores: Row, name: str, part: str = "") -> Reading | None:
    """The metric of that name, else the first that has `part` in its name or meaning."""
    table = section(scores, "metrics")
    if part and name not in table:
        name = metrics.find(list(table), part) or ""
    return reading_of(section(table, name))


def reading_of(row: Row) -> Reading | None:
    """A row with at least `value`; None where that is not a number."""
    value = _number(row.get("value"))
    if value is None:
        return None
    low, high = _number(row.get("low")), _number(row.get("high"))
    if low is None or high is None:
        low = high = None
    mark = row.get("mark")
    error = _number(section(row, "errors").get("real"))
    return Reading(
        value,
        _number(row.get("real")),
        low,
        high,
        tuple(float(n) for n in items(row, "n") if is_number(n)),
        visible(mark) if isinstance(mark, str) else "",
        0.0 if error is None else _CONFIDENCE * max(error, 0.0),
    )


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _less(real: float, margin: float, relative: bool) -> float:
    return real * (1 - margin) if relative else real - margin
