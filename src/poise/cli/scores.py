"""Commands about scores: evaluate, reference, compare, tradeoff."""

from pathlib import Path
from typing import Annotated, Any

import typer

from poise.cli.shared import JsonFile
from poise.errors import UsageError

_SPACES = "Feature space: auto, pixels, random_conv, domain, inception, dinov2 or clip."
_Features = Annotated[str, typer.Option(help=_SPACES)]
_MaybeFeatures = Annotated[
    str | None, typer.Option("--features", help=f"{_SPACES} [default: the run's, else auto]")
]
_Weights = Annotated[
    Path | None,
    typer.Option(help="Weights of inception, dinov2 or clip. [default: caches, else download]"),
]
_Side = Annotated[
    int | None, typer.Option(help="Side in pixels at which images are compared. [default: theirs]")
]
_Samples = Annotated[
    Path, typer.Argument(help="A run folder, or samples: a folder, archive or .npz of images.")
]
_Reference = Annotated[
    str | None, typer.Option(help="For samples: real images, or a file of `poise reference`.")
]
_Train = Annotated[str | None, typer.Option(help="For samples: what the model was trained on.")]
_Count = Annotated[
    int | None, typer.Option("-n", help="For a run: samples to draw. [default: what fits the data]")
]
_Split = Annotated[
    str | None,
    typer.Option(help="val or test; with --reference train, val, test or all. [default: val]"),
]
_Paired = Annotated[
    bool, typer.Option("--paired", help="Samples are copies of the reference, image by image.")
]
_Out = Annotated[
    Path | None, typer.Option(help="For samples: folder of the page. [default: evaluations/..]")
]


def evaluate(
    run_or_samples: _Samples,
    reference: _Reference = None,
    train: _Train = None,
    n: _Count = None,
    split: _Split = None,
    features: _MaybeFeatures = None,
    feature_weights: _Weights = None,
    resolution: _Side = None,
    paired: _Paired = False,
    out: _Out = None,
    json_file: JsonFile = None,
) -> None:
    """Score a run's samples, or anybody's, against real images."""
    from poise import api
    from poise.artifacts import write_json

    given = {"train": train, "out": out, "split": split, "resolution": resolution}
    spaces = {"features": features, "feature-weights": feature_weights}
    _check_options(run_or_samples, reference, paired, n, **given, **spaces)
    scores: dict[str, Any]
    page: Path | None = None
    if paired:
        metrics = api.evaluate_pairs(run_or_samples, reference or "", resolution=resolution)
        scores = {"metrics": metrics}
    elif reference is None:
        run, page = api.load(run_or_samples, quiet=False), run_or_samples / "report.html"
        scores = run.evaluate(
            n, split=split or "val", features=features, feature_weights=feature_weights
        )
    else:
        scores, page = api.evaluate_samples(
            run_or_samples,
            reference,
            train=train,
            split=split,
            resolution=resolution,
            features=features or "auto",
            feature_weights=feature_weights,
            out=out,
            quiet=False,
        )
    if json_file is not None:
        write_json(json_file, scores["metrics"])
    for line in [] if paired else api.verdict_lines(scores):
        typer.echo(line)
    typer.echo(score_table(scores))
    if page is not None:
        typer.echo(page)


def _check_options(
    path: Path, reference: str | None, paired: bool, n: int | None, **others: Any
) -> None:
    """
    Raises:
        UsageError: an option without meaning here, or one that is missing.
    """
    given = [f"--{name}" for name, value in others.items() if value is not None]
    if reference is None:
        is_run = any((path / name).is_file() for name in ("run.json", "study.json"))
        if paired or (path.exists() and not is_run and path.suffix != ".safetensors"):
            raise UsageError(
                f"{path} is no run folder, and samples need real images beside them.",
                expected="a folder with run.json, or samples with --reference SOURCE",
            )
        unused = [name for name in given if name in ("--train", "--out", "--resolution")]
        why = "A run has its own real images"
        remedy = "Leave it out, or draw samples first: poise sample RUN --out samples.npz"
    elif paired:
        unused = [name for name in given if name != "--resolution"] + ["-n"] * (n is not None)
        why, remedy = "Pairs are compared as they are", "Leave it out."
    else:
        unused = [] if n is None else ["-n"]
        why, remedy = "These samples are there already", "Leave it out."
    if unused:
        raise UsageError(f"{why}: {', '.join(unused)} means nothing here.", remedy=remedy)


def reference(
    source: Annotated[str, typer.Argument(help="Real images: any source of `poise train`.")],
    out: Annotated[Path, typer.Option(help="The file to write, ending in .npz.")],
    split: Annotated[
        str | None,
        typer.Option(help="train, val, test or all. [default: what is not for training, else all]"),
    ] = None,
    features: _Features = "auto",
    feature_weights: _Weights = None,
    resolution: _Side = None,
) -> None:
    """Compute the features of real images once, for many evaluations."""
    from poise import api

    made = api.make_reference(
        source,
        out,
        split=split,
        resolution=resolution,
        features=features,
        feature_weights=feature_weights,
        quiet=False,
    )
    about = made.about
    typer.echo(
        f"{about['images']:,} images ({about['split']}), {about['features']} features of "
        f"{len(made.moments.mean):,} dimensions: {out}"
    )


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, two or more.")],
    n: Annotated[int | None, typer.Option("-n", help="Samples of each run.")] = None,
    seed: Annotated[int, typer.Option(help="Other seeds draw other images.")] = 0,
    split: Annotated[str, typer.Option(help="val or test.")] = "val",
    out: Annotated[
        Path | None, typer.Option(help="Folder of the page. [default: comparisons/..]")
    ] = None,
    json_file: JsonFile = None,
) -> None:
    """Compare runs on the same seeds and real images: one table, differences with intervals."""
    from poise import api
    from poise.artifacts import write_json

    record, page = api.compare(runs, n=n, seed=seed, split=split, out=out, quiet=False)
    if json_file is not None:
        write_json(json_file, record["metrics"])
    typer.echo(_comparison_table(record))
    typer.echo(page)


def tradeoff(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    n: Annotated[int, typer.Option("-n", help="Samples of each point.")] = 300,
    steps: Annotated[
        int | None, typer.Option(help="Noise levels visited. [default: the run's]")
    ] = None,
) -> None:
    """Fidelity against diversity over guidance strength and length of the average."""
    from poise import api

    record = api.load(run, quiet=False).tradeoff(n, steps)
    names = ("frechet_distance", "precision", "recall", "coverage")
    typer.echo(f"{'weights':14}{'strength':>9}" + "".join(f"{name:>18}" for name in names))
    real = "".join(f"{record['real'][name]:18.4g}" for name in names)
    typer.echo(f"{'real images':23}{real}")
    for row in record["rows"]:
        values = "".join(f"{row['values'][name]:18.4g}" for name in names)
        typer.echo(f"{row['weights']:14}{row['strength']:9.3g}{values}")
    typer.echo(
        f"{record['samples']:,} samples of each, from the same seeds, on {record['features']} "
        "features; differences of a few percent are chance"
    )
    typer.echo(run / "report.html")


def score_table(scores: dict[str, Any]) -> str:
    """The metrics as a table for the terminal: value, interval, real value, marks as notes."""
    rows = [f"{'metric':26}{'value':>11}{'95 % interval':>24}{'real':>11}{'n':>15}   better"]
    notes: dict[str, list[str]] = {}
    for name, m in scores["metrics"].items():
        interval = "" if m["low"] is None else f"{m['low']:.4g} to {m['high']:.4g}"
        mark = " *" if m["mark"] else ""
        counts = "/".join("?" if count is None else f"{count}" for count in m["n"])
        rows.append(
            f"{name:26}{_number(m['value']):>11}{interval:>24}{_number(m['real']):>11}"
            f"{counts:>15}   {m['better']}{mark}"
        )
        if m["mark"]:
            notes.setdefault(m["mark"], []).append(name)
    rows += [f"* {', '.join(names)}: {mark}" for mark, names in notes.items()]
    rows += [f"note: {warning}" for warning in scores.get("warnings", [])]
    if "samples" in scores:
        features = scores["features"]
        model = (
            f" of {scores['weights']} after {scores['images_seen']:,} images"
            if ("images_seen" in scores)
            else ""
        )
        rows.append(
            f"{scores['samples']:,} samples{model}, against {scores['split']}, on "
            f"{features['name']} features ({features['digest']}); "
            "real: the same figure for real images in the samples' place"
        )
    return "\n".join(rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _comparison_table(record: dict[str, Any]) -> str:
    names = record["names"]
    rows = [f"{'metric':26}" + "".join(f"{Path(name).name[-16:]:>18}" for name in names)]
    for metric, m in record["metrics"].items():
        cells = ""
        for value, difference in zip(m["values"], m["differences"], strict=True):
            cells += f"{_number(value['value']):>11} {_judged(m, difference):>6}"
        rows.append(f"{metric:26}{cells}")
    rows.append(
        f"{record['samples']:,} samples each from the same seeds, {record['features']['name']} "
        "features; in words: clearly different from the first run. Intervals stand on the page"
    )
    return "\n".join(rows)


def _judged(metric: dict[str, Any], difference: dict[str, Any] | None) -> str:
    """`better`, `worse` or `other` for a clear difference; nothing for one that may be chance."""
    if difference is None or not difference["clear"]:
        return ""
    if metric["better"] == "match" or metric["mark"]:
        return "other"
    return "better" if (difference["value"] < 0) == (metric["better"] == "lower") else "worse"
