"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting; may be repeated. See `poise config`."
    ),
]
Preset = Annotated[str | None, typer.Option(help="A name of `poise presets`.")]
JsonFile = Annotated[Path | None, typer.Option("--json", help="Also write the result there.")]
