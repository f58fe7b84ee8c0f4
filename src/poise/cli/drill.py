"""The command of fire drills."""

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.shared import JsonFile, Preset, Settings
from poise.errors import UsageError


def drill(
    source: Annotated[
        str | None, typer.Argument(help="digits, a folder, a zip or an npz file of images.")
    ] = None,
    faults: Annotated[
        Path | None, typer.Option(help="TOML that says which faults to run. [default: each kind]")
    ] = None,
    preset: Preset = None,
    settings: Settings = None,
    json_file: JsonFile = None,
    steps: Annotated[
        int | None, typer.Option(help="Updates of each disturbed run. [default: 200]")
    ] = None,
    base: Annotated[
        int | None, typer.Option(help="Updates before the first fault. [default: 300]")
    ] = None,
    healthy_steps: Annotated[
        int | None,
        typer.Option(help="Updates without faults for each seed; 0: none. [default: 500]"),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help="Of the healthy runs; may be repeated, the first is the faults' too."),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder where runs stay; go on there when interrupted.")
    ] = None,
    list_kinds: Annotated[
        bool, typer.Option("--list", help="Print every kind of fault and stop.")
    ] = False,
    only: Annotated[
        str, typer.Option(metavar="KIND,KIND", help="Run these kinds and no others.")
    ] = "",
) -> None:
    """Inject faults into a small training and score what the guard makes of them."""
    from poise import arguments
    from poise.api import drills

    if list_kinds:
        typer.echo(drills.list_faults())
        return
    if source is None:
        raise UsageError(
            "poise drill needs images.", remedy="poise drill SOURCE, or poise drill --list."
        )
    _, table = drills.drill(
        source,
        faults=faults,
        only=[word.strip() for word in only.split(",") if word.strip()],
        preset=preset,
        settings=arguments.settings_from_pairs(settings or [], None),
        base=base,
        steps=steps,
        healthy_steps=healthy_steps,
        seeds=seed or (),
        keep=keep,
        json_file=json_file,
        quiet=False,
    )
    typer.echo(table)
