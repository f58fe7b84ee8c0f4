"""The command line: arguments in, one call of `poise.api`, an exit code out."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from poise.config import documented, preset_named, presets, resolve
from poise.errors import PoiseError, UsageError

_INTERRUPTED = 130
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train diffusion models on your own images and keep the run on an even keel.",
)
_Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="One setting; may be repeated. See `poise config`."
    ),
]
_Preset = Annotated[str | None, typer.Option(help="A name of `poise presets`.")]


@app.command()
def train(
    source: Annotated[
        str, typer.Argument(help="digits, a folder, a zip or an npz file of images.")
    ],
    run: Annotated[
        Path | None, typer.Option(help="The run folder. [default: a new one in runs/]")
    ] = None,
    preset: _Preset = None,
    budget: Annotated[
        str | None, typer.Option(help="Wall-clock time for everything, such as 10m.")
    ] = None,
    images: Annotated[
        str | None, typer.Option(help="Exact number of images to see, such as 2M.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run.")] = False,
    seed: Annotated[
        int | None, typer.Option(help="All randomness follows from it. [default: 0]")
    ] = None,
    settings: _Set = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and stop.")
    ] = False,
) -> None:
    """Train on images, evaluate, and write the report."""
    from poise import api, pipeline

    job = pipeline.Job(
        source=source,
        root=run if run is not None else api.free_run_folder(source),
        preset=preset,
        budget_seconds=None if budget is None else api.parse_duration(budget),
        images=None if images is None else api.parse_count(images),
        resume=resume,
        overrides=api.settings_from_pairs(settings or [], seed),
        command=("poise", *sys.argv[1:]),
    )
    if dry_run:
        typer.echo(api.dry_run(job))
        return
    typer.echo(api.train_job(job, quiet=False).path / "report.html")


@app.command()
def sample(
    run_or_snapshot: Annotated[Path, typer.Argument(help="A run folder or a snapshot file.")],
    out: Annotated[Path, typer.Option(help="A folder for PNGs, or a file ending in .npz.")],
    n: Annotated[int, typer.Option("-n", help="How many images.")] = 64,
    labels: Annotated[str, typer.Option(help="all, or classes in turn: 0,3 or names.")] = "all",
    steps: Annotated[
        int | None, typer.Option(help="Noise levels visited. [default: the run's]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Other seeds draw other images.")] = 0,
) -> None:
    """Draw images from a trained model."""
    from poise import api

    model = api.load(run_or_snapshot, quiet=False)
    typer.echo(model.save_samples(out, n, labels=labels, steps=steps, seed=seed))


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    n: Annotated[
        int | None, typer.Option("-n", help="Samples to draw. [default: the run's]")
    ] = None,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the scores there.")
    ] = None,
) -> None:
    """Score fresh samples against held-out images."""
    from poise import api
    from poise.artifacts import write_json

    scores = api.load(run, quiet=False).evaluate(n, split=split)
    if json_file is not None:
        write_json(json_file, scores)
    typer.echo(_score_table(scores))


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write report.html anew from the run folder."""
    from poise import api

    typer.echo(api.load(run).report())


@app.command("presets")
def list_presets() -> None:
    """List the presets, smallest network first."""
    for preset in presets():
        low, high = preset.resolutions
        typer.echo(f"{preset.name:8} {low}-{high} px   {preset.description}")


@app.command()
def config(preset: _Preset = None, settings: _Set = None) -> None:
    """Print the resolved settings, each with its meaning."""
    from poise.config import parse_overrides

    chosen = preset_named(preset) if preset else None
    for key, value, sentence in documented(resolve(chosen, parse_overrides(settings or []))):
        shown = "unset" if value is None else _plain(value)
        typer.echo(f"{key} = {shown}\n    {sentence}")


def main() -> None:
    """Run the command line and exit with 0, 1, 2 or 130."""
    try:
        code = 0
        if app(standalone_mode=False) == _INTERRUPTED:  # typer catches Ctrl-C and returns this
            raise KeyboardInterrupt
    except PoiseError as error:
        code = _show(error)
    except typer.Exit as stop:
        code = stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        typer.echo("Interrupted.", err=True)
        code = _INTERRUPTED
    except Exception as error:
        code = _show_unexpected(error)
    sys.exit(code)


def _show(error: PoiseError) -> int:
    if os.environ.get("POISE_DEBUG") == "1":
        raise error
    typer.echo(f"Error: {error}", err=True)
    return error.exit_code


def _show_unexpected(error: Exception) -> int:
    """Wrong use as click words it, a full disk, or a fault of Poise itself."""
    if os.environ.get("POISE_DEBUG") == "1":
        raise error
    words = getattr(error, "format_message", None)
    if words is not None:
        remedy = "`poise --help` lists commands, `poise COMMAND --help` their options."
        return _show(UsageError(words(), remedy=remedy))
    hint = "Run again with POISE_DEBUG=1 for the traceback, and report it if Poise is at fault."
    return _show(PoiseError(f"{type(error).__name__}: {error}", remedy=hint))


def _plain(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)


def _score_table(scores: dict[str, Any]) -> str:
    head = f"{'metric':24}{'value':>12}{'real':>12}   better"
    rows = [
        f"{name:24}{m['value']:12.4g}{m['real']:12.4g}   {m['better']}"
        for name, m in scores["metrics"].items()
    ]
    notes = [f"note: {warning}" for warning in scores["warnings"]]
    about = (
        f"{scores['samples']} samples of {scores['weights']} "
        f"after {scores['images_seen']:,} images, "
        f"against the {scores['split']} split, on {scores['features']['name']} features; "
        "real: the same figure for real images in the samples' place"
    )
    return "\n".join([head, *rows, *notes, about])
