"""Planted liars: what the verdict says of sample sets that one number would praise.

Command:   python scripts/planted_liars.py cifar10.zip --out /tmp/liars
Time:      10 minutes on 2 cores; a quarter of it trains the probe of the classes, once
Expected:  a row per set: Fréchet distance over its real value, and the verdict's first line

The source needs given splits: samples and reference are disjoint parts of what is not for training.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

import poise
from poise.data.dataset import load_dataset
from poise.report.evaluation import verdict_lines
from poise.settings import DataConfig

Pixels = NDArray[np.uint8]


def liars(
    samples: Pixels, labels: NDArray[np.int64], train: Pixels
) -> Iterator[tuple[str, Pixels]]:
    """Names and sets [N, C, H, W]; the first one is honest."""
    yield "healthy", samples
    for share in (0.02, 0.2, 1.0):
        copied = samples.copy()
        count = min(round(share * len(samples)), len(train))
        copied[:count] = train[:count]
        yield f"copies {share:.0%}", copied
    dropped = np.unique(labels)[[3, 5]]
    yield f"classes {dropped.tolist()} dropped", samples[~np.isin(labels, dropped)]
    for sigma in (0.4, 0.5):
        blurred = gaussian_filter(samples.astype(np.float64), (0, 0, sigma, sigma))
        yield f"blurred {sigma} px", blurred.round().clip(0, 255).astype(np.uint8)


def save(path: Path, images: Pixels, labels: NDArray[np.int64] | None) -> str:
    """Images [N, C, H, W] as an .npz that every command reads."""
    named = {} if labels is None else {"arr_1": labels}
    np.savez(path, arr_0=images.transpose(0, 2, 3, 1), **named)
    return str(path)


def main() -> None:
    """Make the sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, default=Path("liars"))
    parser.add_argument("--train", type=int, default=8000)
    parser.add_argument("--reference", type=int, default=2500)
    parser.add_argument("--samples", type=int, default=2500)
    parser.add_argument("--features", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    data = load_dataset(asked.source, DataConfig(), store=asked.out)
    assert data.labels is not None, "the source needs classes"
    given, rng = np.array(data.given_splits), np.random.default_rng(asked.seed)
    train = rng.permutation(np.flatnonzero(given == "train"))[: asked.train]
    rest = rng.permutation(np.flatnonzero(given != "train"))
    reference = rest[: asked.reference]
    own = rest[asked.reference : asked.reference + asked.samples]
    parts = {"train": train, "reference": reference}
    paths = {
        name: save(asked.out / f"{name}.npz", data.images[rows], data.labels[rows])
        for name, rows in parts.items()
    }
    print("| set | Fréchet distance / real | the verdict's first line |\n|---|---|---|")
    for name, images in liars(data.images[own], data.labels[own], data.images[train]):
        place = asked.out / name.replace(" ", "-").replace("%", "")
        path = save(Path(f"{place}.npz"), images, None)
        record, _ = poise.evaluate_samples(
            path, paths["reference"], train=paths["train"], features=asked.features, out=place
        )
        frechet = record["metrics"]["frechet_distance"]
        ratio = frechet["value"] / frechet["real"]
        print(f"| {name} | {ratio:.2f} | {verdict_lines(record)[0]} |", flush=True)


if __name__ == "__main__":
    main()
