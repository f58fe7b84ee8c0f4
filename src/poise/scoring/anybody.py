"""Anybody's samples against anybody's real images; files in a folder of the evaluation."""

import time
from pathlib import Path
from typing import Any

from poise.artifacts import write_json
from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.evaluation.cache import content_hash
from poise.evaluation.metric import Metric
from poise.evaluation.panel import few
from poise.evaluation.reconstruction import reconstruction, reconstruction_floor
from poise.evaluation.reference import (
    Reference,
    is_reference,
    read_reference,
    write_reference,
)
from poise.scoring.foreign import (
    Wanted,
    native_side,
    read_real,
    read_samples,
    same_channels,
    sample_labels,
)
from poise.scoring.judge import judge, judge_features, protocol_of
from poise.scoring.real import Samples, features_of, space_of
from poise.scoring.sheets import save_sheets
from poise.settings import EvaluationConfig

RECORD = "evaluation.json"


def score_samples(
    wanted: Wanted, settings: EvaluationConfig, out: Path, screen: Screen
) -> dict[str, Any]:
    """Every metric of somebody's samples; writes evaluation.json and sheets into `out`.

    Args:
        wanted: what is compared with what.
        settings: feature space, neighbours, how long an encoder may learn.
        out: a folder; what an earlier evaluation left in it is replaced.
        screen: where progress is shown.

    Raises:
        UsageError, DataError: a source that cannot be read, or that does not fit the other.
    """
    started = time.monotonic()
    found = read_samples(wanted, screen)
    about = {
        "source": wanted.samples,
        "reference_source": wanted.reference,
        "samples_hash": content_hash(found.images),
        "sampler": None,
        "guidance": None,
        "weights": None,
        "seed": None,
    }
    if is_reference(Path(wanted.reference)):
        reference = read_reference(Path(wanted.reference))
        _refuse_more(wanted)
        samples = Samples(found.images)
        record = judge_features(samples, reference, settings, about, screen).record
        split = "a saved reference"
    else:
        real = read_real(wanted, found.resolution, screen)
        images, real = same_channels(found.images, real)
        labels = sample_labels(found, real.names, Path(wanted.samples))
        samples = Samples(images, labels)
        judged = judge(samples, real, settings, about, screen)
        save_sheets(out, samples, real, judged)
        record, split = judged.record, real.split
    record = {
        "split": split,
        "samples": len(found.images),
        "source": wanted.samples,
        "reference_source": wanted.reference,
        **record,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(out / RECORD, record)
    return record


def _refuse_more(wanted: Wanted) -> None:
    if wanted.train is not None or wanted.split is not None:
        raise UsageError(
            f"{wanted.reference} holds statistics of images, not the images.",
            expected="no --train and no --split with it",
            remedy="Name the images themselves as --reference.",
        )


def make_reference(
    source: str,
    out: Path,
    settings: EvaluationConfig,
    screen: Screen,
    *,
    split: str | None = None,
    resolution: int | None = None,
) -> Reference:
    """Features of real images and their statistics, in one .npz that `--reference` takes.

    Args:
        source: real images.
        out: a file ending in .npz.
        settings: feature space.
        screen: where progress is shown.
        split: as for `Wanted`.
        resolution: side in pixels; None: that of the images.
    """
    if out.suffix != ".npz":
        raise UsageError(f"--out {out} is no file for a reference.", expected="a name with .npz")
    wanted = Wanted(source, source, split=split, resolution=resolution)
    real = read_real(wanted, resolution or native_side(source), screen)
    if settings.features == "domain":
        raise UsageError(
            "Domain features are learnt from images, which a file of statistics does not hold.",
            expected="another feature space",
            remedy="Name the images themselves as --reference, with --features domain.",
        )
    extractor, _ = space_of(real, settings, screen)
    features = features_of(extractor, real.reference, screen, "real images")
    reference = Reference.of(
        features,
        {
            **protocol_of(extractor),
            "resolution": int(real.reference.shape[2]),
            "images": len(features),
            "split": real.split,
            "data": real.data,
            "source": source,
        },
    )
    write_reference(out, reference)
    return reference


def score_pairs(
    copies: str, originals: str, screen: Screen, *, resolution: int | None = None
) -> dict[str, Any]:
    """How near copies are to their originals: what an autoencoder gives back, or a codec.

    They are paired in the order of their names.

    Args:
        copies, originals: sources of as many images.
        screen: where progress is shown.
        resolution: side in pixels; None: that of the copies.

    Returns:
        Metrics as of an evaluation; "real" is what saving the originals as JPEG at quality 95
        costs.

    Raises:
        DataError: different numbers of images.
    """
    wanted = Wanted(copies, originals, resolution=resolution)
    ours = read_samples(wanted, screen)
    theirs = read_samples(Wanted(originals, originals, resolution=ours.resolution), screen)
    if len(ours) != len(theirs) or ours.channels != theirs.channels:
        raise DataError(
            f"{len(ours)} copies of {ours.channels} channels and {len(theirs)} originals of "
            f"{theirs.channels}",
            expected="one copy of each original, of the same kind, in the order of their names",
        )
    with screen.bar("comparing pairs", 1):
        found = reconstruction(theirs.images, ours.images)
        floor = reconstruction_floor(theirs.images) if theirs.channels in (1, 3) else None
    for name, reason in found.left_out.items():
        screen.say(f"  without {name}: {reason}")
    protocol = {
        "source": copies,
        "reference_source": originals,
        "resolution": ours.resolution,
        "data_range": "0 to 255",
        "real": "the originals after JPEG at quality 95",
    }
    n = (len(ours), len(theirs))
    return {
        name: Metric(
            estimate,
            None if floor is None else floor.figures[name].value,
            n,
            "fidelity",
            "lower" if name in ("mse", "lpips") else "higher",
            few(n),
        ).to_json(protocol)
        for name, estimate in found.figures.items()
    }
