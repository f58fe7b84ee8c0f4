"""Scores from Python: anybody's samples, references, runs beside each other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poise import pipeline
from poise.artifacts import RunDir, read_json
from poise.console import Screen
from poise.errors import UsageError
from poise.evaluation.features import PRETRAINED, features_named
from poise.evaluation.reference import Reference
from poise.report.comparison import write_comparison
from poise.report.evaluation import verdict_lines, write_evaluation
from poise.scoring.anybody import RECORD, score_pairs, score_samples
from poise.scoring.anybody import make_reference as _make_reference
from poise.scoring.compare import compare_runs
from poise.scoring.foreign import Wanted
from poise.settings import EvaluationConfig

__all__ = ["compare", "evaluate_pairs", "evaluate_samples", "make_reference", "verdict_lines"]


def evaluate_samples(
    samples: str | Path,
    reference: str | Path,
    *,
    train: str | Path | None = None,
    split: str | None = None,
    resolution: int | None = None,
    features: str = "auto",
    feature_weights: str | Path | None = None,
    out: str | Path | None = None,
    quiet: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Score anybody's samples against real images; no model is needed.

    Args:
        samples: a folder, archive, .npz or .npy of generated images.
        reference: real images of any source of `poise train`, or a file of `poise reference`.
        train: the images the model was trained on, which are searched for copies; None: the
            training split of the reference, else the reference itself.
        split: images of the reference: "train", "val", "test" or "all"; None: those that are not
            for training where it has splits, else all.
        resolution: side in pixels at which both are compared; None: that of the samples.
        features: "auto", "pixels", "random_conv", "domain", "inception", "dinov2" or "clip".
        feature_weights: file or folder with the weights of a pretrained network.
        out: folder of the page; None: evaluations/ and the name of the samples.
        quiet: show no progress.

    Returns:
        What evaluation.json holds, and the path of the page.
    """
    folder = Path(out) if out is not None else _free_folder(Path(samples).resolve())
    wanted = Wanted(
        str(samples), str(reference), None if train is None else str(train), split, resolution
    )
    settings = evaluation_settings(features, feature_weights)
    record = score_samples(wanted, settings, folder, Screen(quiet=quiet))
    return record, write_evaluation(folder)


def evaluate_pairs(
    copies: str | Path,
    originals: str | Path,
    *,
    resolution: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """How near copies are to their originals, image by image: PSNR, SSIM and more.

    Args:
        copies: a source of images, such as what an autoencoder gave back.
        originals: as many images, in the same order of names.
        resolution: side in pixels at which both are compared; None: that of the copies.
        quiet: show no progress.
    """
    return score_pairs(str(copies), str(originals), Screen(quiet=quiet), resolution=resolution)


def make_reference(
    source: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    resolution: int | None = None,
    features: str = "auto",
    feature_weights: str | Path | None = None,
    quiet: bool = True,
) -> Reference:
    """Features of real images and their statistics as an .npz, for `evaluate_samples`.

    The arguments are those of `evaluate_samples`.
    """
    settings = evaluation_settings(features, feature_weights)
    return _make_reference(
        str(source), Path(out), settings, Screen(quiet=quiet), split=split, resolution=resolution
    )


def compare(
    runs: Sequence[str | Path],
    *,
    n: int | None = None,
    seed: int = 0,
    split: str = "val",
    out: str | Path | None = None,
    quiet: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Samples of several runs from the same seeds, scored against the same real images.

    Args:
        runs: two run folders or more, trained on the same data.
        n: samples of each; None: as many as there are real images, 100 to 2,000.
        seed: other seeds draw other images.
        split: "val" or "test"; a look at the test split is recorded in each run.
        out: folder of the page; None: comparisons/ and the names of the runs.
        quiet: show no progress.

    Returns:
        What comparison.json holds, and the path of the page.
    """
    roots = [Path(run) for run in runs]
    name = "-".join(root.resolve().name for root in roots)[:100]
    folder = Path(out) if out is not None else Path("comparisons") / name
    screen = Screen(quiet=quiet)
    jobs = [pipeline.reopen(RunDir(root), screen) for root in roots]
    record = compare_runs(jobs, folder, screen, count=n, seed=seed, split_name=split)
    return record, write_comparison(folder)


def _free_folder(samples: Path) -> Path:
    """evaluations/NAME, with a number if it holds an evaluation of other samples."""
    for number in range(1, 1000):
        folder = Path("evaluations") / (samples.stem + (f"-{number:03d}" if number > 1 else ""))
        record = folder / RECORD
        if not record.exists() or Path(read_json(record).get("source", "")).resolve() == samples:
            return folder
    raise UsageError("evaluations/ is full of this name.", remedy="Name a folder with --out.")


def evaluation_settings(features: str, weights: str | Path | None) -> EvaluationConfig:
    """The settings of an evaluation that belongs to no run.

    Raises:
        UsageError: an unknown feature space, or weights for one that has none.
    """
    features_named(features, 32)  # an unknown name is refused with the nearest known one
    if weights is not None and features not in PRETRAINED:
        raise UsageError(
            f"--feature-weights was given, and the features {features!r} have no such file.",
            expected=f"--features {', '.join(PRETRAINED[:-1])} or {PRETRAINED[-1]} with it",
        )
    path = None if weights is None else str(weights)
    return EvaluationConfig.model_validate({"features": features, "feature_weights": path})
