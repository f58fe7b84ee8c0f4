"""Fidelity against diversity: how a run's samples change with guidance and with the average."""

from dataclasses import replace
from typing import Any

from poise.artifacts import write_json
from poise.averaging import good_widths
from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.evaluation.evaluate import FEWEST, compare
from poise.evaluation.panel import subset_of
from poise.journal import Prepared
from poise.runtime import seed_at
from poise.sampling import Guidance, Model, Weights, assemble, chosen_model, draw
from poise.scoring.real import features_of, fresh_features, space_of
from poise.scoring.run import labels_like, real_of
from poise.training.ema import profile_name, profile_std

STRENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0)  # of guidance; 1 is none
_GUIDE = 1 / 4  # of the training: the earlier state that guides where no other guide is known


def trade_off(
    job: Prepared, screen: Screen, count: int, steps: int | None = None
) -> dict[str, Any]:
    """Score samples at several strengths and lengths of the average; `tradeoff.json` keeps it.

    All points are drawn from the same seeds: each length at each strength, and the raw weights.

    Args:
        job: the run with its data.
        screen: where progress is shown.
        count: samples of each point, at least 10.
        steps: of the sampler; None: as the run was set.

    Returns:
        {features, samples, rows: [{strength, std, weights, values}], real}.
    """
    if count < FEWEST:
        raise UsageError(f"{count} samples decide nothing.", expected=f"{FEWEST} or more")
    if len(job.splits.val) < FEWEST:
        raise DataError(
            f"The val split holds {len(job.splits.val)} images.", expected=f"{FEWEST} or more"
        )
    real = real_of(job, "val")
    extractor, _ = space_of(real, job.config.evaluation, screen)
    reference = features_of(extractor, real.reference, screen, "val")
    k = job.config.evaluation.neighbours
    seed = seed_at(job.config.seed, 0, "trade-off") % 2**31
    labels = labels_like(job.dataset, job.splits.val, count, seed)
    points = _points(job)
    rows = []
    with screen.bar("trade-off", len(points)) as bar:
        for i, (strength, model) in enumerate(points):
            images = draw(model.with_settings(steps=steps), count, labels, seed)
            values = compare(fresh_features(extractor, images), reference, k)
            name = model.snapshot.weights
            rows.append(
                {"strength": strength, "std": profile_std(name), "weights": name, "values": values}
            )
            bar.show(i + 1, note=f"{name} at strength {strength:g}")
    searched, _ = real.searched()
    train = features_of(extractor, searched, screen, "training images")
    record = {
        "features": extractor.name,
        "features_digest": extractor.digest,
        "samples": count,
        "seed": seed,
        "rows": rows,
        "real": compare(train[subset_of(len(train), count)], reference, k),
    }
    write_json(job.run.tradeoff, record)
    return record


def _points(job: Prepared) -> list[tuple[float, Model]]:
    """(strength, model) of each point, without guidance first."""
    plain = replace(chosen_model(job.run), guidance=None, guide=None)
    guidance = chosen_model(job.run).guidance or _some_guidance(job, plain)
    seen = plain.snapshot.images_seen
    lengths = [Weights(name, seen) for name in _names(job)]
    points = [(1.0, assemble(job.run, weights)) for weights in (Weights("raw", seen), *lengths)]
    if guidance is None:
        return points
    return points + [
        (strength, assemble(job.run, weights, replace(guidance, strength=strength)))
        for weights in lengths
        for strength in STRENGTHS[1:]
    ]


def _some_guidance(job: Prepared, model: Model) -> Guidance | None:
    """By the model without labels where it can, else by an early state of the run."""
    if job.facts.label_names and job.config.training.label_dropout:
        return Guidance(1.0, None)
    newest = model.snapshot.images_seen
    times = [int(path.stem) for path in job.run.snapshot_files() if path.stem.isdigit()]
    earlier = [t for t in times if t < newest]
    if not earlier:
        return None
    stored = [profile_name(std) for std in job.config.training.ema_stds]
    at = min(earlier, key=lambda t: abs(t - _GUIDE * newest))
    return Guidance(1.0, Weights(stored[-1], at))


def _names(job: Prepared) -> list[str]:
    """The lengths that are tracked, and the longest and shortest that the snapshots give well."""
    edges = [edge for pair in good_widths(job.run) for edge in pair]
    stds = sorted({*job.config.training.ema_stds, *([min(edges), max(edges)] if edges else [])})
    return [profile_name(std) for std in stds]
