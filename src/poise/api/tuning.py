"""The search for better settings, from Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise.arguments import free_run_folder, parse_count, parse_duration
from poise.artifacts import read_json
from poise.console import Screen
from poise.errors import UsageError
from poise.tuning.begin import Request
from poise.tuning.tune import tune as _tune


def tune(
    source: str | Path,
    *,
    run: str | Path | None = None,
    space: str | Path | None = None,
    sampler: str | None = None,
    trials: int | None = None,
    budget: str | float | None = None,
    metrics: Sequence[str] = (),
    workers: int | None = None,
    storage: str | None = None,
    resume: bool = False,
    seeds: int | None = None,
    images: str | int | None = None,
    preset: str | None = None,
    width: int | None = None,
    engine: str = "local",
    quiet: bool = False,
    **settings: Any,
) -> tuple[dict[str, Any], Path]:
    """Search for settings that train a better model on these images, and train them.

    Args:
        source: images, as for `train`; `preset` and `settings` are those of `train` too.
        run: the folder of the study; None: a new one under runs/.
        space: "default" (None), "quick", "architecture", "sampling", "lr-range", or a TOML file.
        sampler: "gp", "tpe", "random" or "grid"; None: as the space proposes, else gp.
        trials, budget: when the search ends: a number, and wall clock of everything, such as "2h".
        metrics: what decides, on the validation split; several make a Pareto front.
        workers: processes that search at once; None: one, or as many as a resumed study has.
        engine: where they run: "local", or "ray" for a cluster.
        storage: URL of a database that several machines share; None: a journal in the folder.
        resume: go on with the study in `run`, or help another process with it.
        seeds: fresh ones, on which the best and the preset are trained again; None: 3.
        images: what each trial sees at its end, such as "200k"; None: as the budget has it.
        width: channels of the trials, to search on a narrow network and train a wide one.
        quiet: show no progress.

    Returns:
        What study.json holds, and the path of the page.
    """
    request = Request(
        source=str(source),
        root=folder_of(str(source), run, resume=resume),
        space=None if space is None else str(space),
        sampler=sampler,
        trials=trials,
        budget_seconds=None if budget is None else parse_duration(budget),
        metrics=tuple(metrics),
        workers=workers,
        storage=storage,
        resume=resume,
        seeds=seeds,
        images=None if images is None else parse_count(images),
        preset=preset,
        overrides={key.replace("__", "."): value for key, value in settings.items()},
        width=width,
        engine=engine,
    )
    return tune_request(request, quiet=quiet)


def tune_request(request: Request, *, quiet: bool) -> tuple[dict[str, Any], Path]:
    """`tune` for a request that is already put together."""
    root = _tune(request, Screen(quiet=quiet))
    return read_json(root / "study.json"), root / "study.html"


def folder_of(source: str, run: str | Path | None, *, resume: bool) -> Path:
    """The folder of a study: the one that is named, or a new one.

    Raises:
        UsageError: a study is to be gone on with, and nobody says which.
    """
    if run is not None:
        return Path(run)
    if resume:
        raise UsageError(
            "--resume does not say which study.",
            expected="the folder of the study",
            remedy="Name it with --run, such as --run runs/digits-001.",
        )
    return free_run_folder(source)
