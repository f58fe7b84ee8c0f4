"""Fire drills: what the guard makes of faults that are put into a small training on purpose."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from poise.artifacts import write_json
from poise.console import Screen
from poise.drill import table
from poise.drill.faults import KINDS, fault, from_toml, options_from_toml
from poise.drill.runner import Request
from poise.drill.runner import drill as run_drill
from poise.errors import UsageError
from poise.learning.learn import learn
from poise.signals import terminate_as_interrupt

_KEYS = ("faults", "healthy", "overhead")


def drill(
    source: str | Path,
    *,
    faults: str | Path | None = None,
    only: Sequence[str] = (),
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    base: int | None = None,
    steps: int | None = None,
    healthy_steps: int | None = None,
    seeds: Sequence[int] = (),
    keep: str | Path | None = None,
    json_file: str | Path | None = None,
    quiet: bool = True,
) -> tuple[dict[str, Any], str]:
    """Train a small run, inject faults, and score what the guard made of each.

    Args:
        source: any source of `poise train`.
        faults: a TOML file that says which faults to run; None: every kind that fits.
        only: kinds to run, of those.
        preset: the network; None: a small one of the drill's own.
        settings: by dotted name.
        base, steps: updates before the first fault and after it, else what the file says.
        healthy_steps: updates without faults for each seed, likewise.
        seeds: of the healthy runs; the first one is that of the faults, too; likewise.
        keep: a folder in which runs and results stay; the same call goes on where it was.
        json_file, quiet: the result is written there, too; show nothing.

    Returns the result as plain data, and as a table.

    Raises:
        UsageError: a wrong setting, kind or parameter.
        Interrupted: it was stopped; what was done is in `json_file`.
    """
    text = None if faults is None else _read(Path(faults))
    given = {
        "base": base,
        "steps": steps,
        "healthy_steps": healthy_steps,
        "seeds": tuple(seeds) or None,
    }
    overrides, options = _options(text, given, settings or {})
    request = Request(
        source=str(source),
        runs=None if text is None else from_toml(text),
        only=frozenset(only),
        preset=preset,
        overrides=overrides,
        keep=None if keep is None else Path(keep),
        **options,
    )

    def save(found: dict[str, Any]) -> None:
        if json_file is not None:
            write_json(Path(json_file), _told(found))

    with terminate_as_interrupt():
        found = run_drill(request, Screen(quiet=quiet), learn=learn, save=save)
    return _told(found), table.report(found)


def _options(
    text: str | None, given: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, and what else the file and the call say; the call wins."""
    file = {} if text is None else options_from_toml(text)
    options = {**file, **{key: value for key, value in given.items() if value is not None}}
    overrides = dict(settings)
    if "batch" in options:
        overrides.setdefault("training.batch", options.pop("batch"))
    if "seeds" in options:
        options["seeds"] = tuple(options["seeds"])
    elif "seed" in overrides:
        options["seeds"] = (overrides["seed"],)
    return overrides, options


def list_faults() -> str:
    """Every kind of fault, with its parameters, as text."""
    return table.kinds(KINDS, {name: fault(name) for name in KINDS})


def _told(found: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: three keys, and what else must not go unsaid."""
    more = {k: found[k] for k in ("skipped", "unfinished") if found.get(k)}
    return {**{key: found[key] for key in _KEYS}, **more}


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read: {error}.", expected="a TOML file of faults"
        ) from None
