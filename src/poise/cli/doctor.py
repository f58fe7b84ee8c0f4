"""The command that reads what a training left: doctor."""

from pathlib import Path
from typing import Annotated

import typer

from poise.cli.shared import JsonFile


def doctor(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_LOG",
            help="A run folder, or a CSV or JSON log with a loss and perhaps a gradient norm.",
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Say what happened in a training, why, and what to change; exit code 0 if it could be read."""
    from poise.api.doctor import doctor as examine
    from poise.artifacts import write_json

    found, lines = examine(path)
    if json_file is not None:
        write_json(json_file, found)
    for line in lines:
        typer.echo(line)
