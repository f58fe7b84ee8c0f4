"""How the best learning rate moves with a network's width, and what the rule for it is worth.

Command:   python scripts/transfer.py digits --log edm2.jsonl
           python scripts/transfer.py digits --log adm.jsonl --set model.architecture=adm
Time:      up to 20 minutes on one core; what the log holds is not trained again
Expected:  the errors of each width and rate, by seed (means over noise levels of ln(error) on
           held-out images, lowest over raw and averaged weights); the best rate of each width, the
           power of the width that fits them; what carried rates lose, and rates as they were
"""

import argparse
import dataclasses
import itertools
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from poise.artifacts import RunDir, read_jsonl
from poise.budget import Clock, settle
from poise.config import parse_overrides, preset_named, resolve
from poise.console import Screen
from poise.data.settling import settle_data
from poise.journal import Prepared
from poise.journal.looks import validate
from poise.learning.fresh import feed_from, fresh_state
from poise.pipeline import facts_of, read_data
from poise.runtime import choose_runtime
from poise.settings import Config
from poise.training.loop import steps
from poise.tuning.transfer import carried_rate, narrowed

Curve = dict[float, float]  # rate -> error
SETTINGS = {
    "training.batch": 16,  # more updates for the same time
    "training.compile": "off",
    "training.threads": 1,
    "stability.policy": "off",  # nothing repairs a rate that is too high
    "validation.images": 90,
}


def error_after(job: Prepared) -> float:
    """Train; the mean over noise levels of ln(error), lowest over the weights; inf: not finite."""
    state = fresh_state(job, print)
    feed = feed_from(job, 0)
    try:
        for _ in steps(state, feed, job.config, until=job.config.training.images):
            pass
    finally:
        feed.close()
    asked = dataclasses.replace(job, config=job.config.model_copy(update={"seed": 0}))
    found = [
        float(np.mean([math.log(band["loss"]) for band in row["bands"]]))
        for row in validate(asked, state)  # the same noise for every seed
    ]
    return min((error for error in found if math.isfinite(error)), default=math.inf)


def error_at(rate: float, curve: Curve) -> float:
    """The error of any rate, on the cubic spline in ln(rate) through the curve."""
    rates = sorted(curve)
    return float(CubicSpline(np.log(rates), [curve[r] for r in rates])(math.log(rate)))


def best_rate(curve: Curve) -> float:
    """The rate where that spline is lowest, to 1 %."""
    between = np.arange(math.log(min(curve)), math.log(max(curve)), 0.01)
    return float(min(np.exp(between), key=lambda rate: error_at(rate, curve)))


def exponent(rates: dict[int, float]) -> float:
    """The power of the width that fits the rates best."""
    return float(np.polyfit(np.log(list(rates)), np.log(list(rates.values())), 1)[0])


def wanted(own: Curve, narrower: list[Curve], rates: list[float], start: float) -> list[float]:
    """Rates that are still to be tried: the best so far and its neighbours, and what was best in
    the narrower networks. The search begins at the best of the last of these, or at `start`."""
    best = [min(curve, key=curve.__getitem__) for curve in (*narrower, own) if curve]
    at = rates.index(best[-1] if best else start)
    return [r for r in dict.fromkeys((*rates[at - 1 : at + 2], *best)) if r not in own]


def report(curves: dict[int, list[Curve]], configs: dict[int, Config]) -> Iterator[str]:
    """The figures as lines of Markdown."""
    rates = sorted({rate for seeds in curves.values() for curve in seeds for rate in curve})
    best = {w: [best_rate(curve) for curve in seeds] for w, seeds in curves.items()}
    yield "| width | " + " | ".join(f"{r:.3g}" for r in rates) + " | best rate |"
    yield "|---" * (len(rates) + 2) + "|"
    for w, seeds in curves.items():
        cells = [", ".join(f"{c[r]:.3f}" for c in seeds if r in c) for r in rates]
        yield f"| {w} | " + " | ".join(cells) + f" | {listed(best[w], '.3g')} |"
    centre = {w: math.exp(np.mean(np.log(own))) for w, own in best.items()}
    each = [exponent({w: own[s] for w, own in best.items()}) for s in range(len(best[min(best)]))]
    yield f"\nThe best rate goes as width^{exponent(centre):.2f}; by seed {listed(each, '.2f')}.\n"
    yield "| from | to | carried rate | lost by it | rate as it was | lost by it |"
    yield "|---|---|---|---|---|---|"
    for small, large in itertools.combinations(curves, 2):
        tried = [carried_rate(centre[small], configs[small], configs[large]), centre[small]]
        cells = [f"{r:.3g} | {listed(lost(r, curves[large], best[large]), '+.3f')}" for r in tried]
        yield f"| {small} | {large} | " + " | ".join(cells) + " |"


def lost(rate: float, seeds: list[Curve], best: list[float]) -> list[float]:
    """By seed, how much more the error of `rate` is than that of the best rate."""
    return [error_at(rate, c) - error_at(b, c) for c, b in zip(seeds, best, strict=True)]


def listed(values: list[float], form: str) -> str:
    """The numbers in a row."""
    return ", ".join(format(value, form) for value in values)


def main() -> None:
    """Train what the log does not hold yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--preset", default="nano")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--images", type=int, default=6_400)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    overrides = {**SETTINGS, **parse_overrides(asked.set), "training.images": asked.images}
    preset = preset_named(asked.preset)
    base = resolve(preset, overrides)
    rates = [base.training.lr * 2.0**k for k in range(-10, 11)]
    configs = {w: resolve(preset, {**overrides, **narrowed(base, w)}) for w in asked.widths}
    curves: dict[int, list[Curve]] = {w: [{} for _ in range(asked.seeds)] for w in configs}
    for row in read_jsonl(asked.log):
        curves[row["width"]][row["seed"]][row["rate"]] = row["error"]
    with tempfile.TemporaryDirectory() as scratch:
        run = RunDir(Path(scratch))
        dataset, splits = read_data(asked.source, base, run, Screen(quiet=True))
        rest = dataset, splits, facts_of(dataset, splits), choose_runtime("fp32"), Clock(None)
        for seed, (i, w) in itertools.product(range(asked.seeds), enumerate(configs)):
            own = curves[w][seed]
            narrower = [curves[v][seed] for v in asked.widths[:i]]
            while missing := wanted(own, narrower, rates, base.training.lr):
                config = settle(configs[w], len(splits.val))
                config = settle_data(config, dataset, splits.train, print)
                training = config.training.model_copy(update={"lr": missing[0]})
                config = config.model_copy(update={"training": training, "seed": seed})
                error = error_after(Prepared(run, config, *rest))
                row = {"width": w, "rate": missing[0], "seed": seed, "error": error}
                own[missing[0]] = error
                with asked.log.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    print("\n".join(report(curves, configs)))


if __name__ == "__main__":
    main()
