"""Commands about images before a run: audit, prepare."""

from pathlib import Path
from typing import Annotated

import typer

_Source = Annotated[
    str,
    typer.Argument(
        help="A folder, zip, tar, npz or npy file, a saved Hugging Face data set, or digits."
    ),
]
_Engine = Annotated[str, typer.Option(help="local, or ray for a Ray cluster.")]
_Workers = Annotated[
    int | None, typer.Option(help="Processes that decode. [default: one per core]")
]
_Missing = Annotated[
    str, typer.Option(help="Arrays with NaN: refuse the image, or mask with the channel's mean.")
]
_Features = Annotated[
    str, typer.Option(help="What images are compared in: auto, layout, pixels or random_conv.")
]


def audit(
    source: _Source,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for audit.json and audit.html. [default: audits/NAME]"),
    ] = None,
    target: Annotated[
        Path | None,
        typer.Option(help="TOML with the mix expected in use: [classes] shares, or examples."),
    ] = None,
    features: _Features = "auto",
    engine: _Engine = "local",
    workers: _Workers = None,
    missing: _Missing = "refuse",
) -> None:
    """Say what is broken, odd, double, missing or over-full among images; change nothing."""
    from poise import api

    facts, page = api.audit_images(
        source,
        out=out,
        target=target,
        features=features,
        engine=engine,
        workers=workers,
        missing=missing,
        quiet=False,
    )
    for line in facts["verdict"]:
        typer.echo(line)
    typer.echo(page)


def prepare(
    source: _Source,
    out: Annotated[Path, typer.Argument(help="The folder of the prepared data set.")],
    drop: Annotated[
        str,
        typer.Option(help="Left out: broken, exact, near, odd kinds such as blurred; or none."),
    ] = "broken,exact",
    resolution: Annotated[
        int | None, typer.Option(help="Side in pixels. [default: by the images]")
    ] = None,
    balance: Annotated[
        str, typer.Option(help="How often images are drawn: none, sqrt, equal or target.")
    ] = "none",
    target: Annotated[
        Path | None, typer.Option(help="TOML with the shares for --balance target.")
    ] = None,
    split: Annotated[str, typer.Option(help="Shares of train/validate/test.")] = "80/10/10",
    group_by: Annotated[
        str | None,
        typer.Option(help="Images of one group stay on one side: a regex on paths, or a column."),
    ] = None,
    clean: Annotated[
        str, typer.Option(help="Of jpeg (blocks) and denoise (light). [default: neither]")
    ] = "",
    clip: Annotated[
        int | None, typer.Option(help="Frames per clip: numbered frames and GIFs become clips.")
    ] = None,
    missing: _Missing = "refuse",
    seed: Annotated[int, typer.Option(help="Another seed gives another split.")] = 0,
    engine: _Engine = "local",
    workers: _Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan and write nothing.")
    ] = False,
) -> None:
    """Make a clean, split data set that `poise train OUT` reads; the original stays."""
    from poise import api

    for line in api.prepare_images(
        source,
        out,
        drop=drop,
        resolution=resolution,
        balance=balance,
        target=target,
        split=split,
        group_by=group_by,
        clean=clean,
        clip=clip,
        missing=missing,
        seed=seed,
        engine=engine,
        workers=workers,
        dry_run=dry_run,
        quiet=False,
    ):
        typer.echo(line)
