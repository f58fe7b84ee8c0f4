"""Which metric on which features sees what? Real images, spoilt in known ways, take samples' place.

    .venv/bin/python scripts/degradations.py cifar10.zip > table.md

Held-out images are split into a reference and disjoint sets of samples. Each set is scored as it
is and after every degradation. The table shows the score over its value for undisturbed images and
z: the mean change within a set over the standard deviation of the undisturbed sets. Needs images
with classes, in 1 or 3 channels.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from poise.data.dataset import load_dataset
from poise.evaluation.conditioning import examine_classes
from poise.evaluation.coverage import precision_recall_density_coverage
from poise.evaluation.extractors.domain import Encoder, train_encoder
from poise.evaluation.extractors.fixed import Pixels, RandomConv
from poise.evaluation.features import FeatureExtractor, extract
from poise.evaluation.fidelity import frechet_distance
from poise.evaluation.kernels import kernel_distance
from poise.settings import DataConfig

Images = NDArray[np.uint8]
UNDISTURBED = "none"
METRICS = ("frechet", "kernel", "precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Sets:
    """Images and labels: for training, as reference, the samples of each repeat, and the rest."""

    train: tuple[Images, NDArray[np.int64]]
    reference: tuple[Images, NDArray[np.int64]]
    samples: list[tuple[Images, NDArray[np.int64]]]
    spare: tuple[Images, NDArray[np.int64]]
    names: tuple[str, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("source", help="whatever `poise train` takes, with classes")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--reference", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--images-seen", type=int, help="by the encoder with classes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sets = read(options)
    images, labels = sets.train
    began = time.perf_counter()
    probe = train_encoder(
        images,
        labels,
        len(sets.names),
        flips=True,
        images_seen=options.images_seen,
        seed=options.seed,
    )
    say(f"encoder with classes: {time.perf_counter() - began:.0f} s")
    began = time.perf_counter()
    patches = train_encoder(images, None, 0, seed=options.seed)
    say(f"encoder without: {time.perf_counter() - began:.0f} s")
    spaces: dict[str, FeatureExtractor] = {
        "pixels": Pixels(),
        "random_conv": RandomConv(),
        "domain, no classes": patches,
        "domain, classes": probe,
    }
    print(f"Probe: {probe.accuracy:.1%} of held-back training images named rightly.\n")
    classes(sets, probe)
    print("| features | kNN accuracy | degradation | " + " | ".join(METRICS) + " |")
    print("|---" * 9 + "|")
    for name, space in spaces.items():
        study(name, space, sets, options.seed)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def read(options: argparse.Namespace) -> Sets:
    with tempfile.TemporaryDirectory() as store:
        data = load_dataset(options.source, DataConfig(), store=Path(store))
        if data.labels is None:
            sys.exit("These images have no classes.")
        order = np.random.default_rng(options.seed).permutation(len(data))
        given = np.array([split == "test" for split in data.given_splits])[order]
        if given.any():
            order = np.concatenate([order[~given], order[given]])
            held = order[len(order) - int(given.sum()) :]
        else:
            held = order[options.train :]
        wanted = options.reference + options.repeats * options.samples
        if len(held) <= wanted or len(order) - len(held) < options.train:
            sys.exit(f"{len(held)} held-out images are too few: {wanted} and spare ones.")
        images, labels = data.images, data.labels

        def part(rows: NDArray[np.int64]) -> tuple[Images, NDArray[np.int64]]:
            return np.ascontiguousarray(images[rows]), labels[rows]

        ends = [options.reference + i * options.samples for i in range(options.repeats + 1)]
        return Sets(
            part(order[: options.train]),
            part(held[: options.reference]),
            [part(held[a:b]) for a, b in pairwise(ends)],
            part(held[ends[-1] :]),
            data.label_names,
        )


def degraded(
    sets: Sets, repeat: int, seed: int
) -> dict[str, Callable[[], tuple[Images, NDArray[np.int64]]]]:
    """Name -> the samples of a repeat with that degradation, and their labels."""
    x, y = sets.samples[repeat]

    def pixelwise(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], tuple]:
        def made() -> tuple[Images, NDArray[np.int64]]:
            changed = change(torch.from_numpy(x).float())
            return changed.round().clamp(0, 255).to(torch.uint8).numpy(), y

        return made

    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(1000 * seed + repeat)

    return {
        UNDISTURBED: lambda: (x, y),
        "blur 0.5 px": pixelwise(lambda t: blur(t, 0.5)),
        "blur 1 px": pixelwise(lambda t: blur(t, 1.0)),
        "noise 5/255": pixelwise(lambda t: t + 5 * torch.randn(t.shape, generator=generator())),
        "JPEG 50": lambda: (np.stack([jpeg(image, 50) for image in x]), y),
        "contrast 0.8": pixelwise(lambda t: (t - 127.5) * 0.8 + 127.5),
        "half resolution": pixelwise(halved),
        "two classes dropped": lambda: dropped(x, y, sets.spare),
        "5 % copies": lambda: copied(x, y, sets.train, 0.05, repeat),
        "20 % copies": lambda: copied(x, y, sets.train, 0.2, repeat),
    }


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    i = torch.arange(-4.0, 5.0)
    w = torch.exp(-(i**2) / (2 * sigma**2))
    w = (w / w.sum()).expand(x.shape[1], 1, 1, 9)
    padded = functional.pad(x, (4, 4, 4, 4), mode="replicate")
    across = functional.conv2d(padded, w, groups=x.shape[1])
    return functional.conv2d(across, w.transpose(2, 3), groups=x.shape[1])


def halved(x: torch.Tensor) -> torch.Tensor:
    small = functional.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True)
    return functional.interpolate(small, x.shape[2:], mode="bicubic")


def jpeg(image: Images, quality: int) -> Images:
    file = io.BytesIO()
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.save(file, "JPEG", quality=quality)
    pixels = np.asarray(Image.open(file))
    return pixels[None] if len(image) == 1 else pixels.transpose(2, 0, 1)


def dropped(
    x: Images, y: NDArray[np.int64], spare: tuple[Images, NDArray[np.int64]]
) -> tuple[Images, NDArray[np.int64]]:
    """Images of the first two classes give way to spare ones of the others."""
    gone = np.flatnonzero(y < 2)
    others = np.flatnonzero(spare[1] >= 2)[: len(gone)]
    gone = gone[: len(others)]
    x, y = x.copy(), y.copy()
    x[gone], y[gone] = spare[0][others], spare[1][others]
    kept = y >= 2
    return x[kept], y[kept]


def copied(
    x: Images,
    y: NDArray[np.int64],
    train: tuple[Images, NDArray[np.int64]],
    share: float,
    repeat: int,
) -> tuple[Images, NDArray[np.int64]]:
    count = round(share * len(x))
    rows = (np.arange(count) + repeat * count) % len(train[0])
    copies = train[0][rows], train[1][rows]
    return np.concatenate([copies[0], x[count:]]), np.concatenate([copies[1], y[count:]])


def classes(sets: Sets, probe: Encoder) -> None:
    """What the probe says of balanced samples and of those with two classes dropped."""
    real = probe.classify(sets.reference[0])
    for kind in (UNDISTURBED, "two classes dropped"):
        for repeat in range(len(sets.samples)):
            x, _ = degraded(sets, repeat, 0)[kind]()
            found = examine_classes(probe.classify(x), real, sets.names, labels=sets.reference[1])
            print(
                f"- {kind}, set {repeat + 1}: missing {found.missing}, scarce {found.scarce}, "
                f"overfull {found.overfull}; total variation {found.total_variation:.3f} "
                f"(by chance {found.total_variation_real:.3f}), p = {found.p_value:.2g}"
            )
    print()


def study(name: str, space: FeatureExtractor, sets: Sets, seed: int) -> None:
    """The rows of one feature space."""
    began = time.perf_counter()
    reference = extract(space, sets.reference[0])
    accuracy = neighbours(
        extract(space, sets.train[0]), sets.train[1], reference, sets.reference[1]
    )
    scores: dict[str, list[dict[str, float]]] = {}
    for repeat in range(len(sets.samples)):
        for kind, make in degraded(sets, repeat, seed).items():
            scores.setdefault(kind, []).append(score(extract(space, make()[0]), reference))
    base = scores.pop(UNDISTURBED)
    usual = {m: float(np.mean([s[m] for s in base])) for m in base[0]}
    spread = {m: float(np.std([s[m] for s in base], ddof=1)) for m in base[0]}
    row = [f"{usual[m]:.3g} ± {spread[m]:.1g}" if m in usual else "" for m in METRICS]
    print(f"| {name} | {accuracy:.1%} | none: the values | " + " | ".join(row) + " |")
    for kind, spoilt in scores.items():
        row = []
        for m in METRICS:
            if m not in usual:
                row.append("")
                continue
            change = float(np.mean([s[m] - b[m] for s, b in zip(spoilt, base, strict=True)]))
            over = "" if m == "kernel" else f"{1 + change / usual[m]:.2f}, "  # its value is about 0
            row.append(f"{over}{change / spread[m]:+.0f}")
        print(f"| | | {kind} | " + " | ".join(row) + " |", flush=True)
    say(f"{name}: {time.perf_counter() - began:.0f} s")


def score(samples: NDArray[np.float64], reference: NDArray[np.float64]) -> dict[str, float]:
    scores = {"kernel": kernel_distance(samples, reference)}
    if len(samples) > samples.shape[1]:  # a Fréchet distance of fewer says little
        scores["frechet"] = frechet_distance(samples, reference)
    return scores | precision_recall_density_coverage(reference, samples)


def neighbours(
    f: NDArray[np.float64],
    labels: NDArray[np.int64],
    f_test: NDArray[np.float64],
    labels_test: NDArray[np.int64],
    k: int = 20,
) -> float:
    """Share of test images whose class is the most frequent among the k nearest by cosine."""
    m = f.mean(0)
    x, y = (functional.normalize(torch.from_numpy(g - m), dim=1) for g in (f, f_test))
    near = torch.from_numpy(labels)[(y @ x.T).topk(k, dim=1).indices]
    votes = functional.one_hot(near, int(labels.max()) + 1).sum(1)
    return float((votes.argmax(1).numpy() == labels_test).mean())


if __name__ == "__main__":
    main()
