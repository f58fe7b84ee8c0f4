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
    from poise import api, arguments, pipeline

    job = pipeline.Job(
        source=source,
        root=run if run is not None else arguments.free_run_folder(source),
        preset=preset,
        budget_seconds=None if budget is None else arguments.parse_duration(budget),
        images=None if images is None else arguments.parse_count(images),
        resume=resume,
        overrides=arguments.settings_from_pairs(settings or [], seed),
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
    solver: Annotated[
        str | None,
        typer.Option(help="heun, euler, dpmpp_2m, dpmpp_3m or unipc. [default: run's]"),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Strength; 1 is none. [default: what `poise guide` found]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="raw, or a width such as 0.08. [default: the best known]")
    ] = None,
) -> None:
    """Draw images from a trained model."""
    from poise import api

    model = api.load(run_or_snapshot, quiet=False)
    path = model.save_samples(
        out,
        n,
        labels=labels,
        steps=steps,
        seed=seed,
        solver=solver,
        guidance=guidance,
        weights=weights,
    )
    typer.echo(path)


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


_Metric = Annotated[str, typer.Option(help="What decides, on the validation split.")]
_Steps = Annotated[
    int | None,
    typer.Option(help="Noise levels visited; fewer are faster and may mislead. [default: run's]"),
]
_Count = Annotated[int, typer.Option("-n", help="Samples of each candidate.")]


@app.command()
def ema(
    words: Annotated[list[str], typer.Argument(metavar="[sweep] RUN", help="A run folder.")],
    std: Annotated[
        float | None, typer.Option(help="Relative width: 0.08 averages over 8% of the training.")
    ] = None,
    at: Annotated[
        int | None, typer.Option(help="Images seen at its end. [default: the newest snapshot]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the average there as a snapshot.")] = None,
    metric: _Metric = "frechet_distance",
    n: _Count = 500,
    steps: _Steps = None,
) -> None:
    """Make an average of any width after training, or find the best with `poise ema sweep RUN`."""
    from poise import api

    sweeping = words[0] == "sweep" and len(words) > 1
    if (
        len(words) != 1 + sweeping
        or (std is None) != sweeping
        or (sweeping and (at is not None or out is not None))
    ):
        raise UsageError(
            "poise ema needs a run, and a width unless it sweeps; a sweep takes no --at and --out.",
            expected="`poise ema RUN --std 0.08` or `poise ema sweep RUN`",
        )
    run = api.load(Path(words[-1]), quiet=False)
    if std is None:
        typer.echo(_choice_table(run.sweep_ema(metric, n, steps)))
        return
    made = run.average(std, at=at, out=out)
    typer.echo(
        f"{made.name} after {made.images_seen:,} images, from {len(made.snapshots)} snapshots: "
        f"profile error {made.error:.2g}, noise gain {made.noise_gain:.2f}"
    )
    if made.warning:
        typer.echo(f"note: {made.warning}")
    sample_with = f"poise sample {out or words[-1]} --out new" + (
        "" if out else f" --weights {std}"
    )
    typer.echo(f"Sample with it: {sample_with}")


@app.command()
def guide(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    metric: _Metric = "frechet_distance",
    n: _Count = 500,
    steps: _Steps = None,
) -> None:
    """Find the guidance that samples best: by an earlier state of the run, or by no labels."""
    from poise import api

    typer.echo(_choice_table(api.load(run, quiet=False).guide(metric, n, steps)))


@app.command()
def noise(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Propose P_mean and P_std from the error of a run at each noise level."""
    from poise import api

    found = api.load(run, quiet=False).propose_noise()
    typer.echo(found.sentence)
    typer.echo(f"--set diffusion.P_mean={found.P_mean:.2f} --set diffusion.P_std={found.P_std:.2f}")


@app.command("import")
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


@app.command("bench")
def measure_speed(
    preset: Annotated[str, typer.Option(help="A name of `poise presets`.")] = "micro",
    resolution: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 32,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Also the compiled step; prepared for minutes.")
    ] = False,
    settings: _Set = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Also write the figures there.")
    ] = None,
) -> None:
    """Measure training and sampling on this machine, beside plain settings and its own limits."""
    from poise import api, arguments
    from poise.artifacts import write_json

    chosen = arguments.settings_from_pairs(settings or [], None)
    result, table = api.measure_speed(preset, resolution, chosen, compiled=compiled)
    if json_file is not None:
        write_json(json_file, result)
    typer.echo(table)


@app.command("presets")
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


def _choice_table(choice: dict[str, Any]) -> str:
    metric, confirmed = choice["metric"], choice["confirmed"]
    rows = [f"{t[metric]:12.4g}   {t['candidate']}" for t in choice["tried"]]
    verdict = "kept from now on" if confirmed["better"] else "no better: nothing was changed"
    return "\n".join(
        [
            f"{metric:>12}   candidate, {choice['samples']} samples on {choice['features']}",
            *rows,
            f"The best on fresh seeds: {confirmed['after']:.4g}, before {confirmed['before']:.4g}; "
            f"{verdict} ({choice['took']})",
        ]
    )


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
