"""Runs beside each other: the same seeds, the same real images, differences with intervals."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from poise.artifacts import write_json
from poise.console import Screen
from poise.errors import UsageError
from poise.evaluation.estimate import CONFIDENCE
from poise.evaluation.evaluate import FEWEST
from poise.journal import Prepared
from poise.pictures import save_grid
from poise.runtime import seed_at
from poise.sampling import chosen_model, draw
from poise.scoring.judge import judge
from poise.scoring.real import Samples
from poise.scoring.run import (
    fitting_count,
    labels_like,
    real_of,
    record_touch,
    settings_afterwards,
)

_SHOWN = 10  # samples of each run on the sheet


def compare_runs(
    jobs: Sequence[Prepared],
    folder: Path,
    screen: Screen,
    *,
    count: int | None,
    seed: int,
    split_name: str,
) -> dict[str, Any]:
    """Draw from each run with the same seeds and labels, score, and write what differs.

    Two runs are compared with the same real images, so these cause no difference: its interval
    comes from the samples of both alone.

    Args:
        jobs: two runs or more of the same data.
        folder: where comparison.json and sheet.png go.
        screen: where progress is shown.
        count: samples of each; None: as many as there are real images, 100 to 2,000.
        seed: other seeds draw other images.
        split_name: "val" or "test".

    Raises:
        UsageError: fewer than two runs, or runs of different data.
    """
    _check(jobs, split_name)
    first = jobs[0]
    members = getattr(first.splits, split_name)
    if len(members) < FEWEST:
        raise UsageError(
            f"The {split_name} split holds {len(members)} images.", expected=f"{FEWEST} or more"
        )
    count, settings = count or fitting_count(len(members)), settings_afterwards(first)
    drawn_from = seed_at(seed, 0, "comparison") % 2**31
    labels = labels_like(first.dataset, members, count, drawn_from)
    asked = None if labels is None else np.array(labels, np.int64)
    records, shown = [], []
    for job in jobs:
        model = chosen_model(job.run)
        if split_name == "test":
            record_touch(job, model, screen)
        with screen.bar(f"sampling {job.run.root}", count) as bar:
            images = draw(model, count, labels, drawn_from, progress=bar.show)
        about = {**model.describe(), "seed": drawn_from}
        # One set of real images for all, as the first run sees them: one network, one search.
        real = real_of(first, split_name)
        judged = judge(Samples(images, asked), real, settings, about, screen)
        records.append({**about, **judged.record})
        shown.append(images[:_SHOWN])
    record = _record(jobs, records, split_name, count, drawn_from)
    write_json(folder / "comparison.json", record)
    if shown[0].shape[1] in (1, 2, 3):
        save_grid(folder / "sheet.png", np.concatenate(shown), columns=len(shown[0]))
    return record


def _record(
    jobs: Sequence[Prepared], records: Sequence[dict[str, Any]], split: str, count: int, seed: int
) -> dict[str, Any]:
    return {
        "names": [str(job.run.root) for job in jobs],
        "split": split,
        "samples": count,
        "seed": seed,
        "data": jobs[0].dataset.fingerprint,
        "features": records[0]["features"],
        "models": [
            {key: r[key] for key in ("weights", "images_seen", "sampler", "guidance")}
            for r in records
        ],
        "metrics": _metrics([r["metrics"] for r in records]),
        "warnings": sorted({w for r in records for w in r["warnings"]}),
    }


def _metrics(tables: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Each metric that all runs have: values, and each run's difference to the first."""
    found: dict[str, Any] = {}
    for name in tables[0]:
        rows = [table[name] for table in tables if name in table]
        if len(rows) < len(tables):
            continue
        first = rows[0]
        found[name] = {
            "better": first["better"],
            "kind": first["kind"],
            "mark": first["mark"],
            "real": first["real"],
            "values": [{key: row[key] for key in ("value", "low", "high")} for row in rows],
            "differences": [None, *(difference(row, first) for row in rows[1:])],
            "protocol": first["protocol"],
        }
    return found


def difference(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any] | None:
    """One metric's value minus that of another run, with its 95 % interval; None: not known."""
    if row["value"] is None or first["value"] is None:
        return None
    value = row["value"] - first["value"]
    errors = [r["errors"]["samples"] for r in (row, first)]
    if None in errors:
        return {"value": value, "low": None, "high": None, "clear": False}
    reach = CONFIDENCE * math.hypot(*errors)
    return {
        "value": value,
        "low": value - reach,
        "high": value + reach,
        "clear": bool(abs(value) > reach),
    }


def _check(jobs: Sequence[Prepared], split_name: str) -> None:
    if len(jobs) < 2:
        raise UsageError(
            "One run cannot be compared.", expected="two run folders or more: poise compare A B"
        )
    if split_name not in ("val", "test"):
        raise UsageError(f"There is no split {split_name!r} to compare on.", expected="val or test")
    for job in jobs[1:]:
        same = job.dataset.fingerprint == jobs[0].dataset.fingerprint
        alike = all(
            np.array_equal(getattr(job.splits, name), getattr(jobs[0].splits, name))
            for name in ("train", split_name)
        )
        if not same or not alike:
            raise UsageError(
                f"{job.run.root} and {jobs[0].run.root} have other data, or split it otherwise.",
                expected="runs on the same images at the same resolution, with the same split",
                remedy="Draw samples of both and score each against the same images: "
                "poise evaluate SAMPLES --reference SOURCE",
            )
