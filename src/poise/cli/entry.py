"""argv -> one command -> an exit code."""

import os
import sys

import typer

from poise.cli import data, doctor, drill, runs, scores, tools, tuning
from poise.console import inert
from poise.errors import PoiseError, UsageError

_INTERRUPTED = 130
app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train diffusion models on your own images and keep the run on an even keel.",
)
app.command()(data.audit)
app.command()(data.prepare)
for _command in (runs.train, runs.sample, scores.evaluate, runs.report, runs.ema, runs.guide):
    app.command()(_command)
app.command()(scores.reference)
app.command()(scores.compare)
app.command()(scores.tradeoff)
app.command()(tuning.tune)
app.command()(runs.noise)
app.command()(doctor.doctor)
app.command()(drill.drill)
app.command("import")(tools.import_file)
app.command("bench")(tools.measure_speed)
app.command("presets")(tools.list_presets)
app.command()(tools.config)


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
    typer.echo("\n".join(map(inert, f"Error: {error}".split("\n"))), err=True)
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
