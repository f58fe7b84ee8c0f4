"""The catalogue of faults, and the file that says which of them to run.

base = 150                 # updates before the first fault
[[fault]]                  # a run of its own
kind = "range-batch"
at = 37
[[fault]]                  # one run with the next, as they share a name
kind = "lr-jump"
magnitude = 12
together = "pair"
[[fault]]
kind = "ema-nan"
together = "pair"
"""

import math
from dataclasses import fields
from typing import Any

from poise.config import parse_toml
from poise.drill.data_kinds import FILE_KINDS, INPUT_KINDS, TRAPS
from poise.drill.kind import Fault, Kind
from poise.drill.model_kinds import MODEL_KINDS
from poise.drill.system_kinds import KINDS as SYSTEM_KINDS
from poise.errors import UsageError, nearest
from poise.settings import Config

__all__ = [
    "FILE_KINDS",
    "KINDS",
    "RUN_KINDS",
    "TRAPS",
    "Fault",
    "Kind",
    "fault",
    "from_toml",
    "options_from_toml",
    "overrides",
]

RUN_KINDS = MODEL_KINDS | INPUT_KINDS
KINDS = RUN_KINDS | TRAPS | FILE_KINDS | SYSTEM_KINDS

_PARAMETERS = {
    f.name: f.default for f in fields(Fault) if f.name not in ("kind", "used", "ignored")
}
_INTEGERS = {"at": (0, 10**9), "seed": (0, 2**31), "band": (0, 7)}  # smallest and largest
_FOREVER = "for good"
_OPTIONS = {
    "base": "updates before the first fault",
    "steps": "updates of each disturbed run",
    "seeds": "seeds of the runs, a list",
    "batch": "images per update",
    "checkpoint_every": "updates between checkpoints",
    "healthy_steps": "undisturbed updates for the count of false alarms",
}


def fault(kind: str, **given: Any) -> Fault:
    """A checked fault; parameters that are not given are those of its kind.

    Args:
        kind: a name of `KINDS`.
        given: parameters of `Fault`. One that means nothing to this kind changes nothing and is
            named in `ignored`.

    Raises:
        UsageError: an unknown kind or parameter, or a value out of range.
    """
    if kind not in KINDS:
        raise UsageError(
            f"There is no kind of fault {kind!r}. {nearest(kind, KINDS)}".rstrip(),
            expected="one of " + ", ".join(KINDS),
            remedy="`poise drill --list` tells what each of them does.",
        )
    known = KINDS[kind]
    for name in given:
        if name not in _PARAMETERS:
            raise UsageError(
                f"{kind}: there is no parameter {name!r}. {nearest(name, _PARAMETERS)}".rstrip(),
                expected="of " + ", ".join(known.uses or ["none"]),
            )
    values = {**_PARAMETERS, **known.defaults}
    checked = {name: _checked(known, name, value) for name, value in given.items()}
    values |= {name: value for name, value in checked.items() if name in known.uses}
    ignored = tuple(name for name in given if name not in known.uses)
    return Fault(kind, **values, used=known.uses, ignored=ignored)


def from_toml(text: str) -> list[list[Fault]]:
    """The runs of a file of faults, each with the faults that happen in it, in the file's order.

    Raises:
        UsageError: no TOML, an unknown kind or parameter with the nearest name, or a wrong value.
    """
    runs: dict[str, list[Fault]] = {}
    for number, row in enumerate(_read(text).get("fault", []), 1):
        given = dict(row)
        kind, together = given.pop("kind", None), given.pop("together", None)
        if not isinstance(kind, str):
            raise UsageError(f"[[fault]] number {number} names no kind.", expected='kind = "..."')
        if together is not None and (not isinstance(together, str) or not together):
            raise UsageError(
                f"[[fault]] number {number}: together = {together!r} is no name.",
                expected="one text for all faults of a run",
            )
        run = f"named {together}" if together else f"number {number}"
        runs.setdefault(run, []).append(fault(kind, **given))
    for faults in runs.values():
        _check_together(faults)
    return list(runs.values())


def options_from_toml(text: str) -> dict[str, Any]:
    """What a file of faults says about the drill itself; a key that it leaves out is left out.

    Returns:
        a list of whole numbers under `seeds`, one under each other key.

    Raises:
        UsageError: no TOML, an unknown key, or a wrong value.
    """
    found: dict[str, Any] = {}
    for key, value in _read(text).items():
        if key == "fault":
            continue
        if key not in _OPTIONS:
            hint = nearest(key, [*_OPTIONS, "fault"])
            raise UsageError(
                f"A file of faults has no key {key!r}. {hint}".rstrip(),
                expected="[[fault]] tables, and of " + ", ".join(_OPTIONS),
            )
        numbers = value if key == "seeds" and isinstance(value, list) and value else [value]
        lowest = 0 if key in ("seeds", "healthy_steps") else 1
        if not all(_is_whole(n) and n >= lowest for n in numbers):
            raise UsageError(
                f"{key} = {value!r} will not do ({_OPTIONS[key]}).",
                expected=f"whole numbers of at least {lowest}",
            )
        found[key] = list(numbers) if key == "seeds" else value
    return found


def overrides(faults: list[Fault], config: Config) -> dict[str, Any]:
    """Settings (dotted keys) of a disturbed run, for faults that lie in its settings.

    Args:
        faults: those of one run.
        config: the settings of the undisturbed run.
    """
    training = config.training
    changed: dict[str, Any] = {}
    for f in faults:
        if f.kind in ("lr-setting", "lr-low", "momentum-high", "planned-rate-drop"):
            changed["training.lr"] = changed.get("training.lr", training.lr) * f.magnitude
        if f.kind == "momentum-high":
            changed["training.betas"] = (f.share, training.betas[1])
        if f.kind == "batch-8":
            changed["training.batch"] = int(f.magnitude)
        if f.kind == "noise-shift":
            changed["diffusion.P_mean"] = config.diffusion.P_mean + f.magnitude
    return changed


def _read(text: str) -> dict[str, Any]:
    try:
        tree = parse_toml(text)
    except ValueError as error:
        raise UsageError(f"The file of faults is no TOML: {error}.") from None
    rows = tree.get("fault", [])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError("`fault` is no list of tables.", expected="[[fault]] in double brackets")
    return tree


def _checked(kind: Kind, name: str, value: Any) -> Any:
    """The value of a parameter, as its field of `Fault` wants it."""
    low, high = kind.limits
    good, expected = False, ""
    if name in _INTEGERS:
        least, most = _INTEGERS[name]
        good, expected = _is_whole(value) and least <= value <= most, f"{least} to {most}"
    elif name == "duration":
        if value in (None, _FOREVER):
            return None
        good, expected = _is_whole(value) and value >= 1, f"updates, 1 or more, or {_FOREVER!r}"
    elif name == "magnitude":
        good, expected = _is_number(value) and low <= value <= high, f"{low:g} to {high:g}"
        value = float(value) if good else value
    elif name == "share":
        good, expected = _is_number(value) and 0 < value <= 1, "more than 0, at most 1"
        value = float(value) if good else value
    elif name == "tensor":
        good, expected = isinstance(value, str), "a text"
    if not good:
        raise UsageError(f"{kind.name}: {name} = {value!r} will not do.", expected=expected)
    return value


def _check_together(faults: list[Fault]) -> None:
    """Faults of one run must be able to happen in one run."""
    stages = sorted({KINDS[f.kind].stage for f in faults})
    if "system" in stages and len(faults) > 1:
        names = ", ".join(f.kind for f in faults)
        raise UsageError(
            f"{names} cannot happen together.",
            expected="faults of the system in runs of their own",
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
