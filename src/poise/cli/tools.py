"""Commands beside a run: import, bench, presets, config."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from poise.cli.shared import Preset, Settings
from poise.config import documented, preset_named, presets, resolve
from poise.errors import UsageError


def import_file(
    file: Annotated[Path, typer.Argument(help="network-snapshot-*.pkl or training-state-*.pt.")],
    out: Annotated[Path, typer.Argument(help="The snapshot to write, ending in .safetensors.")],
    std: Annotated[
        float | None, typer.Option(help="Width of the average, where the file does not say.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Terms of weights that you trained. [default: NVIDIA's]")
    ] = None,
) -> None:
    """Convert an official EDM2 or EDM checkpoint; no code in the file is run."""
    from poise.interop.checkpoints import import_checkpoint

    typer.echo(import_checkpoint(file, out, std=std, licence=licence).summary)
    typer.echo(f"Sample from it: poise sample {out} --out new.npz")


def measure_speed(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[data SOURCE | scores]",
            help="How fast a source can be read and fed, or how fast samples are scored.",
        ),
    ] = None,
    preset: Annotated[str, typer.Option(help="A name of `poise presets`.")] = "micro",
    resolution: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 32,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also the compiled step; prepared for minutes.")
    ] = False,
    settings: Settings = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures there.")
    ] = None,
) -> None:
    """Measure training and sampling on this machine, beside plain settings and its own limits."""
    from poise import api, arguments
    from poise.artifacts import write_json

    if words == ["scores"]:
        result, table = api.measure_score_speed()
    elif words:
        if len(words) != 2 or words[0] != "data":
            raise UsageError(
                f"poise bench does not know {' '.join(words)}.",
                expected="`poise bench`, `poise bench data SOURCE` or `poise bench scores`",
            )
        result, table = api.measure_data_speed(words[1])
    else:
        chosen = arguments.settings_from_pairs(settings or [], None)
        result, table = api.measure_speed(preset, resolution, chosen, compiled=compiled)
    if json_file is not None:
        write_json(json_file, result)
    typer.echo(table)


def list_presets() -> None:
    """List the presets, smallest network first, with parameters and operations per image."""
    from poise.flops import network_size

    typer.echo(f"{'preset':16}{'pixels':>8}{'counted at':>13}{'Mparam':>10}{'GMAC':>10}   for")
    for preset in presets():
        (low, high), (side, channels, classes) = preset.resolutions, preset.counted_at
        parameters, macs = network_size(resolve(preset), side, channels, classes)
        shape = f"{side}x{side}x{channels}"
        size = f"{parameters / 1e6:10.2f}{macs / 1e9:10.3f}"
        typer.echo(f"{preset.name:16}{f'{low}-{high}':>8}{shape:>13}{size}   {preset.description}")
    typer.echo(
        "GMAC: 1e9 multiply-adds of one network call for one image; a training step costs three."
    )


def config(preset: Preset = None, settings: Settings = None) -> None:
    """Print the resolved settings, each with its meaning."""
    from poise.config import parse_overrides

    chosen = preset_named(preset) if preset else None
    for key, value, sentence in documented(resolve(chosen, parse_overrides(settings or []))):
        shown = "unset" if value is None else _plain(value)
        typer.echo(f"{key} = {shown}\n    {sentence}")


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
