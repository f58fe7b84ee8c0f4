"""Which noise levels of the validation error order trials as the metric does at the end.

    python scripts/tuning_proxy.py OUT [OUT ...]

Reads the studies under each OUT, as `tuning_samplers.py` leaves them. For each rung a rank
correlation: of the mean ln(error) over levels, lowest over the sets of weights, with the first
metric, one point for each settings that came to their end (the mean over their seeds).
"""

import argparse
import json
import math
import statistics
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from poise.artifacts import read_json, read_jsonl

Row = dict[str, Any]


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("outs", type=Path, nargs="+")
    for out in words.parse_args().outs:
        groups = trained(out)
        first = next(iter(groups.values()))[0]
        sigmas = [band["sigma"] for band in first["rungs"][0][0]["bands"]]
        count = len(sigmas)
        spans = [(i, i + 1) for i in range(count)]
        spans += [(i, j) for i in range(count // 2) for j in range(count // 2 + 1, count + 1)]
        print(f"{out}: {len(groups)} settings, {sum(map(len, groups.values()))} trainings")
        for low, high in spans:
            name = f"sigma {sigmas[low]:.2g} to {sigmas[high - 1]:.2g}"
            found = [agreement(groups, rung, low, high) for rung in range(len(first["rungs"]))]
            print(f"  {name:24}", *(f"{value:6.2f}" for value in found))


def trained(out: Path) -> dict[str, list[Row]]:
    """By their settings, all trainings that came to their end: value, and validations at rungs."""
    groups: dict[str, list[Row]] = {}
    for path in sorted(out.glob("*/study.json")):
        record = read_json(path)
        metric = record["plan"]["metrics"][0]
        for trial in record["trials"]:
            if trial["values"] is not None:
                rows = read_jsonl(path.parent / trial["folder"] / "validation.jsonl")
                rungs = [[r for r in rows if r["images_seen"] == at] for at, _ in trial["proxy"]]
                own = {"value": trial["values"][metric], "rungs": rungs}
                groups.setdefault(json.dumps(trial["settings"], sort_keys=True), []).append(own)
    return groups


def agreement(groups: dict[str, list[Row]], rung: int, low: int, high: int) -> float:
    def error(own: Row) -> float:
        means = [
            statistics.mean(math.log(band["loss"]) for band in row["bands"][low:high])
            for row in own["rungs"][rung]
        ]
        return min(means)

    pairs = [
        (statistics.mean(map(error, group)), statistics.mean(own["value"] for own in group))
        for group in groups.values()
    ]
    return float(spearmanr([a for a, _ in pairs], [b for _, b in pairs]).statistic)


if __name__ == "__main__":
    main()
