"""Bayesian against random against grid search, with the same number of trials of the same length.

    python scripts/tuning_samplers.py SOURCE OUT --seeds 1 2 3 [--set data.resolution=8]

Each study ends with the best settings and the preset trained on fresh seeds; their mean is what is
compared, since the value that made a trial the best is partly luck. A study that is finished is not
run again; an interrupted one goes on.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

import poise
from poise.arguments import settings_from_pairs
from poise.artifacts import read_json

SAMPLERS = ("gp", "tpe", "random", "grid")


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    words.add_argument("source")
    words.add_argument("out", type=Path)
    words.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    words.add_argument("--samplers", nargs="+", default=list(SAMPLERS))
    words.add_argument("--space", default=str(Path(__file__).with_suffix(".toml")))
    words.add_argument("--trials", type=int, default=36)
    words.add_argument("--images", default="6k")
    words.add_argument("--set", dest="pairs", action="append", default=[])
    given = words.parse_args()
    settings = settings_from_pairs(given.pairs, None)
    for seed in given.seeds:
        for sampler in given.samplers:
            root = given.out / f"{sampler}-{seed}"
            if not finished(root):
                poise.tune(
                    given.source,
                    run=root,
                    space=given.space,
                    sampler=sampler,
                    trials=given.trials,
                    images=given.images,
                    resume=(root / "plan.json").exists(),
                    **{**settings, "seed": seed},
                )
            print(sampler, seed, told(read_json(root / "study.json")), flush=True)
    table(given.out)


def finished(root: Path) -> bool:
    path = root / "study.json"
    return path.exists() and read_json(path)["status"] == "finished"


def means(record: dict[str, Any]) -> tuple[float, float]:
    """The mean of the repeats: of what the search found best, and of the preset."""
    metric = record["plan"]["metrics"][0]
    found = record["best"]["repeats"]
    best, default = (statistics.mean(found[who][metric]) for who in ("best", "default"))
    return best, default


def told(record: dict[str, Any]) -> str:
    best, default = means(record)
    cost = sum(trial["cost_s"] for trial in record["trials"])
    return f"best {best:.3f} preset {default:.3f} cost {cost:.0f} s: {record['best']['settings']}"


def table(out: Path) -> None:
    """A line for each sampler: mean over the studies, and each of them."""
    for sampler in SAMPLERS:
        records = [read_json(p) for p in sorted(out.glob(f"{sampler}-*/study.json"))]
        rows = [means(record) for record in records if record["status"] == "finished"]
        if rows:
            each = ", ".join(f"{best:.3f}" for best, _ in rows)
            default = statistics.mean(default for _, default in rows)
            mean = statistics.mean(best for best, _ in rows)
            print(f"{sampler:8} {mean:.3f} ({each}); preset {default:.3f}")


if __name__ == "__main__":
    main()
