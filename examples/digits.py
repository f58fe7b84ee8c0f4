"""Handwritten digits from start to end, judged by a classifier that never saw a sample.

Command:   python examples/digits.py            (or `make demo`)
Time:      about 5 minutes on 2 CPU cores: 4.5 of training and scores, the rest for the judgement
Expected:  at least 97 % of the samples are recognised as the digit that was asked for

The judge is scikit-learn's SVC, fitted to the training images of the run and tried on its test
images first: samples cannot be recognised better than real digits are.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.svm import SVC

import poise


def main(
    run: str | Path = "runs/demo",
    budget: str | None = "270s",
    *,
    images: str | None = None,
    samples: int = 1000,
) -> float:
    """Train, sample, judge; returns the share of samples recognised as what was asked for.

    Args:
        run: the run folder; an unfinished run in it is resumed, a finished one is left alone and
            a numbered folder beside it is taken.
        budget: wall-clock time of the training, scores and report included.
        images: exact number of images to see instead of a budget.
        samples: how many to judge.
    """
    folder, resume = place(Path(run))
    model = poise.train(
        "digits", run=folder, budget=None if images else budget, images=images, resume=resume
    )
    judge, accuracy = fit_judge(folder)
    drawn = model.sample(samples, seed=1)  # the classes 0 to 9 in turn
    asked = np.arange(samples) % 10
    share = float((judge.predict(flatten(drawn)) == asked).mean())

    metrics = model.scores["metrics"]
    print(f"\nThe judge recognises {accuracy:.1%} of the real test digits,")
    print(f"and {share:.1%} of {samples} samples as the digit that was asked for.")
    for name, words in (
        ("coverage", "Coverage (is the variety there?)"),
        ("nearest_train_distance", "Median distance to the nearest training image"),
    ):
        value, real = metrics[name]["value"], metrics[name]["real"]
        print(f"{words}: {value:.3g}; real images: {real:.3g}; ratio {value / real:.2f}")
    print(f"Report: {folder / 'report.html'}")
    return share


def place(run: Path) -> tuple[Path, bool]:
    """The folder to train in, and whether a run in it goes on."""
    number, folder = 1, run
    while (folder / "run.json").exists():
        if json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] != "finished":
            return folder, True
        number += 1
        folder = run.with_name(f"{run.name}-{number:03d}")
    return folder, False


def fit_judge(run: Path) -> tuple[SVC, float]:
    """An SVC fitted to the real training digits of a run, and its accuracy on the test digits."""
    digits = load_digits()  # pixels from 0 to 16
    splits = json.loads((run / "splits.json").read_text(encoding="utf-8"))
    train, test = ([int(n.removeprefix("digit-")) for n in splits[s]] for s in ("train", "test"))
    judge = SVC(gamma=0.001).fit(digits.data[train], digits.target[train])
    return judge, float(judge.score(digits.data[test], digits.target[test]))


def flatten(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """uint8 [N, 8, 8, 1] as rows of 64 numbers from 0 to 16, the scale of scikit-learn's digits."""
    return images.reshape(len(images), 64) * (16 / 255)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train on digits and judge the samples.")
    parser.add_argument("--run", default="runs/demo", help="the run folder")
    parser.add_argument("--budget", default="270s", help="wall-clock time, such as 4m")
    parser.add_argument("--images", help="exact number of images instead, such as 200k")
    given = parser.parse_args()
    main(given.run, given.budget, images=given.images)
