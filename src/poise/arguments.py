"""What users write, `10m`, `2M`, `0,3`, as what Poise works with."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.config import parse_overrides
from poise.errors import UsageError, nearest

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600}


def free_run_folder(source: str) -> Path:
    """`runs/digits-001`: the first number that is not taken."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).stem).strip("-") or "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return folder


def parse_count(value: str | int) -> int:
    """`2M` as 2,000,000; suffixes k, M, G.

    Raises:
        UsageError: not a positive whole number.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgKMG]?)\s*", str(value))
    count = float(match[1]) * _COUNTS[match[2].lower()] if match else 0.0
    if not 1 <= count < 2**53 or count != int(count):  # beyond, floats leave numbers out
        raise UsageError(
            f"{value!r} is no number of images.", expected="such as 500000, 500k or 2M"
        )
    return int(count)


def parse_duration(value: str | float) -> float:
    """`10m` as 600 seconds; suffixes s, m, h; a bare number is seconds.

    Raises:
        UsageError: not a positive length of time.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(value))
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{value!r} is no length of time.", expected="such as 90s, 20m or 1.5h")
    return seconds


def parse_shares(value: str) -> tuple[float, float, float]:
    """`80/10/10` as shares of training, validation and test that add up to 1.

    Raises:
        UsageError: not three numbers from 0 on, or nothing for training.
    """
    parts = re.findall(r"[0-9]*\.?[0-9]+", value)
    numbers = [float(part) for part in parts]
    whole = len(numbers) == 3 and any(abs(sum(numbers) - one) < 1e-6 * one for one in (1, 100))
    if not re.fullmatch(r"[0-9./ ]+", value) or not whole or numbers[0] <= 0:
        raise UsageError(
            f"{value!r} is no split.",
            expected="three shares that add up to 100, such as 80/10/10",
        )
    train, val, test = (number / sum(numbers) for number in numbers)
    return train, val, test


def parse_parts(option: str, value: str, known: Sequence[str]) -> frozenset[str]:
    """`broken,exact` as a set; empty for an empty text or `none`.

    Raises:
        UsageError: a word that is not among `known`.
    """
    words = [word.strip() for word in value.split(",") if word.strip() not in ("", "none")]
    return frozenset(one_of(option, word, known) for word in words)


def one_of(option: str, value: str, known: Sequence[str]) -> Any:
    """`value`, if it is one of the words that an option knows.

    Raises:
        UsageError: it is not.
    """
    if value not in known:
        raise UsageError(
            f"--{option} does not know {value!r}. {nearest(value, known)}".rstrip(),
            expected="one of " + ", ".join(known),
        )
    return value


def label_indices(
    labels: str | Sequence[int | str], names: Sequence[str], count: int
) -> list[int] | None:
    """Class indices of `count` images, the asked labels in turn; None for a model without classes.

    Raises:
        UsageError: a class that the model does not know.
    """
    if labels == "all":
        return [i % len(names) for i in range(count)] if names else None
    if not names:
        raise UsageError("This model has no classes.", remedy="Leave --labels away.")
    parts = labels.split(",") if isinstance(labels, str) else list(labels)
    asked = [_label_index(part, names) for part in parts]
    return [asked[i % len(asked)] for i in range(count)]


def _label_index(label: int | str, names: Sequence[str]) -> int:
    text = str(label).strip()
    if isinstance(label, str) and text in names:
        return list(names).index(text)
    if text.isascii() and text.isdigit() and len(text) < 10 and int(text) < len(names):
        return int(text)
    raise UsageError(
        f"There is no class {text!r}. {nearest(text, names)}".rstrip(),
        expected=f"an index below {len(names)} or one of: " + ", ".join(names[:20]),
    )


def settings_from_pairs(pairs: Sequence[str], seed: int | None) -> dict[str, Any]:
    """`--set` texts and `--seed` as overrides."""
    overrides = parse_overrides(pairs)
    return overrides if seed is None else {**overrides, "seed": seed}
