"""Numbers, durations and lists as people write them."""

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
ABSENT = "not known"


def is_number(value: Any) -> TypeGuard[float]:
    """Whether `value` is a finite int or float (a bool is not)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # a whole number may be beyond any float; nan is not


def number(value: Any) -> str:
    """Three significant digits; what is not a finite number is said in words."""
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{float(mantissa):g} × 10" + str(int(exponent)).translate(_SUPERSCRIPT)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:,.{digits}f}"


def count(value: Any) -> str:
    """How many: exact below 10,000, then `12.3 k`, `1.23 M`, `4.5 G`."""
    if not is_number(value):
        return number(value)
    rounded = float(f"{value:.3g}")  # first, so that 999,999 becomes 1 M and not 1000 k
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 1e4 and abs(rounded) >= size:
            return f"{rounded / size:.4g} {unit}"
    return f"{value:,.0f}"


def seconds(value: Any) -> str:
    """A duration in its two largest units: `3 min 20 s`."""
    if not is_number(value):
        return number(value)
    if value < 60:
        return f"{value:.2g} s" if value < 10 else f"{value:.0f} s"
    whole = round(value)
    for size, unit, part, part_unit in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit}" + (f" {rest} {part_unit}" if rest else "")
    return f"{whole} s"


def share(value: Any) -> str:
    """A share of 1 in percent."""
    return f"{100 * value:.3g} %" if is_number(value) else number(value)


def plural(amount: Any, noun: str, nouns: str = "") -> str:
    """`1 image`, `12.3 k images`."""
    return f"{count(amount)} {noun if amount == 1 else nouns or noun + 's'}"


def listed(items: Sequence[Any], most: int) -> str:
    """The first `most` items, and how many more there are."""
    text = ", ".join(str(item) for item in items[:most])
    return text + (f" and {len(items) - most:,} more" if len(items) > most else "")


def plain(value: Any) -> str:
    """Any JSON value as one readable line."""
    if isinstance(value, dict):
        return "; ".join(f"{key} {plain(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return listed([plain(item) for item in value], 12) or "none"
    return number(value)


def cause(name: str) -> str:
    """A name such as `lr-too-high` or `not_scored` in words."""
    whole = {"lr": "learning rate", "ema": "EMA"}
    parts = name.replace("_", "-").split("-")
    return " ".join(whole.get(part, part) for part in parts)


def sentence(text: str) -> str:
    """`text` with a capital first letter and a full stop."""
    text = text.strip()
    if not text:
        return ""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
