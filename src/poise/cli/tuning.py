"""The command that searches for better settings."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from poise.cli.shared import Preset, Settings

_Space = Annotated[
    str | None,
    typer.Option(help="default, quick, architecture, sampling, lr-range, or a TOML file."),
]
_Sampler = Annotated[
    str | None, typer.Option(help="gp, tpe, random or grid. [default: the space's, else gp]")
]
_Budget = Annotated[str | None, typer.Option(help="Wall-clock time for everything, such as 2h.")]
_Metrics = Annotated[
    list[str] | None,
    typer.Option(help="What decides; may be repeated. [default: frechet_distance]"),
]
_Storage = Annotated[
    str | None, typer.Option(help="URL of a database. [default: a journal in the folder]")
]
_Resume = Annotated[
    bool, typer.Option("--resume", help="Go on with the study in --run, or help with it.")
]
_Run = Annotated[
    Path | None, typer.Option(help="The folder of the study. [default: a new one in runs/]")
]
_Workers = Annotated[
    int | None, typer.Option(help="Processes that search at once. [default: 1, or as it was begun]")
]
_Seeds = Annotated[
    int | None, typer.Option(help="Seeds on which best and preset are repeated. [default: 3]")
]
_Images = Annotated[
    str | None, typer.Option(help="What a trial sees, such as 200k. [default: by budget]")
]
_Width = Annotated[
    int | None, typer.Option(help="Channels of the trials: search narrow, train wide.")
]


def tune(
    source: Annotated[str, typer.Argument(help="Images, as for `poise train`.")],
    space: _Space = None,
    sampler: _Sampler = None,
    trials: Annotated[int | None, typer.Option(help="At most so many trials.")] = None,
    budget: _Budget = None,
    metric: _Metrics = None,
    workers: _Workers = None,
    storage: _Storage = None,
    resume: _Resume = False,
    run: _Run = None,
    seeds: _Seeds = None,
    images: _Images = None,
    preset: Preset = None,
    width: _Width = None,
    engine: Annotated[str, typer.Option(help="local, or ray for workers on a cluster.")] = "local",
    seed: Annotated[int | None, typer.Option(help="All randomness follows from it.")] = None,
    settings: Settings = None,
) -> None:
    """Search for settings that train a better model on these images, and train them."""
    from poise import api, arguments
    from poise.tuning.begin import Request

    request = Request(
        source=source,
        root=api.folder_of(source, run, resume=resume),
        space=space,
        sampler=sampler,
        trials=trials,
        budget_seconds=None if budget is None else arguments.parse_duration(budget),
        metrics=tuple(metric or ()),
        workers=workers,
        storage=storage,
        resume=resume,
        seeds=seeds,
        images=None if images is None else arguments.parse_count(images),
        preset=preset,
        overrides=arguments.settings_from_pairs(settings or [], seed),
        width=width,
        engine=engine,
        command=("poise", *sys.argv[1:]),
    )
    typer.echo(api.tune_request(request, quiet=False)[1])
