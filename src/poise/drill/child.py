"""A training session in a process of its own, so that it can be killed.

Started by `system` as `python -m poise.drill.child FILE`; the file holds images and run folder.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from poise.artifacts import DataFacts, RunDir
from poise.budget import Clock
from poise.config import from_toml
from poise.console import Screen
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.journal import Prepared
from poise.learning.learn import learn
from poise.runtime import choose_runtime


def write_task(path: Path, job: Prepared) -> None:
    """Everything that `main` needs, as one npz file."""
    dataset, splits = job.dataset, job.splits
    arrays: dict[str, Any] = {"images": dataset.images, "train": splits.train, "val": splits.val}
    if dataset.labels is not None:
        arrays["labels"] = dataset.labels
    if dataset.weights is not None:
        arrays["weights"] = dataset.weights
    told = {
        "folder": str(job.run.root),
        "facts": job.facts.to_json(),
        "names": list(dataset.names),
        "hashes": list(dataset.hashes),
        "source": dataset.source,
    }
    arrays |= {"told": np.array(json.dumps(told)), "test": splits.test}
    np.savez(path, **arrays)


def read_task(path: Path) -> Prepared:
    """What `write_task` wrote, ready to train."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    told = json.loads(str(arrays["told"]))
    facts, names = DataFacts.from_json(told["facts"]), tuple(told["names"])
    dataset = Dataset(
        images=arrays["images"],
        labels=arrays.get("labels"),
        label_names=facts.label_names,
        names=names,
        hashes=tuple(told["hashes"]),
        given_splits=(None,) * len(names),
        unreadable=(),
        ignored=(),
        warnings=(),
        source=told["source"],
        sizes={},
        modes={},
        weights=arrays.get("weights"),
    )
    splits = Splits(arrays["train"], arrays["val"], arrays["test"], ())
    run = RunDir(Path(told["folder"]))
    config = from_toml(run.config.read_text(encoding="utf-8"))
    runtime = choose_runtime(config.training.precision, config.training.threads)
    return Prepared(run, config, dataset, splits, facts, runtime, Clock(None))


if __name__ == "__main__":
    learn(read_task(Path(sys.argv[1])), Screen(quiet=True))
