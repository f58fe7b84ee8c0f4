"""Commands of a run: train, sample, evaluate, report, ema, guide, noise."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from poise.cli.shared import Preset, Settings
from poise.errors import UsageError


def train(
    source: Annotated[
        str, typer.Argument(help="digits, a folder, a zip or an npz file of images.")
    ],
    run: Annotated[
        Path | None, typer.Option(help="The run folder. [default: a new one in runs/]")
    ] = None,
    preset: Preset = None,
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
    settings: Settings = None,
    preflight: Annotated[
        bool | None,
        typer.Option("--preflight/--no-preflight", help="Checks before training. [default: on]"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the settings and stop.")
    ] = False,
) -> None:
    """Train on images, evaluate, and write the report."""
    from poise import api, arguments, pipeline

    overrides = arguments.settings_from_pairs(settings or [], seed)
    if preflight is not None:
        overrides["stability.preflight"] = preflight
    job = pipeline.Job(
        source=source,
        root=run if run is not None else arguments.free_run_folder(source),
        preset=preset,
        budget_seconds=None if budget is None else arguments.parse_duration(budget),
        images=None if images is None else arguments.parse_count(images),
        resume=resume,
        overrides=overrides,
        command=("poise", *sys.argv[1:]),
    )
    if dry_run:
        typer.echo(api.dry_run(job))
        return
    typer.echo(api.train_job(job, quiet=False).path / "report.html")


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


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run folder, or several to compare.")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page about several runs. [default: report-comparison.html]"),
    ] = None,
) -> None:
    """Write report.html and model-card.md anew from the run folder; compare several by files."""
    from poise import api

    first, *others = (api.load(run) for run in runs)
    typer.echo(first.report(*others, out=out))


_Metric = Annotated[str, typer.Option(help="What decides, on the validation split.")]
_Steps = Annotated[
    int | None,
    typer.Option(help="Noise levels visited; fewer are faster and may mislead. [default: run's]"),
]
_Count = Annotated[int, typer.Option("-n", help="Samples of each candidate.")]


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


def guide(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    metric: _Metric = "frechet_distance",
    n: _Count = 500,
    steps: _Steps = None,
) -> None:
    """Find the guidance that samples best: by an earlier state of the run, or by no labels."""
    from poise import api

    typer.echo(_choice_table(api.load(run, quiet=False).guide(metric, n, steps)))


def noise(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Propose P_mean and P_std from the error of a run at each noise level."""
    from poise import api

    found = api.load(run, quiet=False).propose_noise()
    typer.echo(found.sentence)
    typer.echo(f"--set diffusion.P_mean={found.P_mean:.2f} --set diffusion.P_std={found.P_std:.2f}")


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
