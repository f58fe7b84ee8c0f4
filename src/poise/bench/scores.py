"""How long scores take beside the arithmetic that they cannot do without, on made-up features.

Two pieces of work that are compared take turns, so that whatever else the machine does hits both
alike; ratios are taken within each turn.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.evaluation.coverage import coverage_estimates
from poise.evaluation.evaluate import Compared, evaluate_all
from poise.evaluation.extractors.fixed import RandomConv
from poise.evaluation.features import extract
from poise.evaluation.fidelity import frechet_between
from poise.evaluation.moments import Moments
from poise.evaluation.panel import Side
from poise.runtime import generator_at

Work = Callable[[], object]
_TURNS = 3
_KINDS = 20  # groups that made-up features form
_SIDE = 32


def bench_scores(
    *,
    images: int = 10_000,
    train: int = 50_000,
    dimensions: int = 488,
    wide: int = 2048,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure the Fréchet distance, neighbours, feature extraction, and all metrics together.

    Args:
        images: samples, and as many reference images.
        train: training images that are searched for copies.
        dimensions: of the features; 488 are those of random_conv.
        wide: dimensions for the Fréchet distance; 2048 are those of Inception.
        progress: called with pieces of work done and their number.

    Returns:
        pairs: name -> {seconds, beside (seconds of the arithmetic), ratio}, medians; everything:
        {seconds, memory_bytes (beyond what was taken before), images, train, dimensions}.
    """
    works = {
        **_frechet_works(images, wide),
        **_neighbour_works(images, dimensions),
        **_extraction_works(min(images, 1024)),
    }
    pairs = {}
    for i, (name, (ours, bare)) in enumerate(works.items()):
        pairs[name] = _in_turns(ours, bare)
        if progress is not None:
            progress(i + 1, len(works) + 1)
    result = {"pairs": pairs, "everything": _everything(images, train, dimensions)}
    if progress is not None:
        progress(len(works) + 1, len(works) + 1)
    return result


def score_table(found: Mapping[str, Any]) -> str:
    """The result as lines for a terminal."""
    lines = [f"{'':52}{'seconds':>9}{'beside':>9}{'ratio':>8}"]
    for name, row in found["pairs"].items():
        lines.append(f"{name:52}{row['seconds']:9.3g}{row['beside']:9.3g}{row['ratio']:8.2f}")
    whole = found["everything"]
    lines.append(
        f"all metrics of {whole['images']:,} samples, {whole['images']:,} reference and "
        f"{whole['train']:,} training images in {whole['dimensions']} dimensions: "
        f"{whole['seconds']:.0f} s, {whole['memory_bytes'] / 2**30:.2f} GiB at the most"
    )
    return "\n".join(lines)


def _frechet_works(n: int, D: int) -> dict[str, tuple[Work, Work]]:
    """Against one pair of eigendecompositions: of a symmetric matrix, and of its values alone."""
    a, b = _features(n, D, 0), _features(n, D, 1)
    m, reference = Moments.of(a), Moments.of(b)
    S = torch.from_numpy(m.covariance)

    def pair() -> None:
        torch.linalg.eigh(S)
        torch.linalg.eigvalsh(S)

    beside = "beside eigh + eigvalsh"
    return {
        f"Fréchet, {D}, moments known, {beside}": (lambda: frechet_between(m, reference), pair),
        f"Fréchet, {D}, reference known, {beside}": (
            lambda: frechet_between(Moments.of(a), reference),
            pair,
        ),
        f"Fréchet, {D}, from features, {beside}": (
            lambda: frechet_between(Moments.of(a), Moments.of(b)),
            pair,
        ),
    }


def _neighbour_works(n: int, D: int) -> dict[str, tuple[Work, Work]]:
    """Against the products of all pairs: one set with the other, each with half of itself."""
    a, b = _features(n, D, 2), _features(n, D, 3)
    x, y = torch.from_numpy(a), torch.from_numpy(b)

    def products() -> None:
        for one, other, half in ((x, y, False), (x, x, True), (y, y, True)):
            for start in range(0, n, 512):
                stop = min(start + 512, n)
                one[start:stop] @ other[: stop if half else n].T

    return {
        f"precision to coverage, {n:,}, beside products": (
            lambda: coverage_estimates(a, b, 5),
            products,
        )
    }


def _extraction_works(n: int) -> dict[str, tuple[Work, Work]]:
    """Against the network on a batch that is there already."""
    generator = generator_at(0, n, "bench images")
    images = torch.randint(0, 256, (n, 3, _SIDE, _SIDE), generator=generator, dtype=torch.uint8)
    network, pixels = RandomConv(), images.numpy()

    def forward() -> None:
        with torch.inference_mode():
            for start in range(0, n, 256):
                network(images[start : start + 256])

    return {
        f"features of {n:,} images, beside the network": (
            lambda: extract(network, pixels),
            forward,
        )
    }


def _everything(n: int, train: int, D: int) -> dict[str, Any]:
    generator = generator_at(0, n, "bench pictures")
    shape = (2 * n + train, 3, _SIDE, _SIDE)
    images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8).numpy()
    compared = Compared(
        Side(_features(n, D, 4), images[:n]),
        Side(_features(n, D, 5), images[n : 2 * n]),
        Side(_features(train, D, 6), images[2 * n :]),
    )
    before, started = _peak(), time.perf_counter()
    evaluate_all(compared, k=5, answers=None, features={}, protocol={})
    return {
        "seconds": time.perf_counter() - started,
        "memory_bytes": max(_peak() - before, 0),
        "images": n,
        "train": train,
        "dimensions": D,
    }


def _features(n: int, D: int, stream: int) -> NDArray[np.float64]:
    """Features in groups, [n, D]: what is made of pictures is no single cloud either."""
    generator = generator_at(0, stream, "bench features")
    centres = torch.randn(_KINDS, D, generator=generator_at(0, D, "bench kinds"))
    kinds = torch.randint(_KINDS, (n,), generator=generator)
    x = 0.3 * centres[kinds] + 0.5 * torch.randn(n, D, generator=generator)
    return x.double().numpy()


def _in_turns(ours: Work, bare: Work) -> dict[str, float]:
    """Seconds of both, medians, and the median of their ratios; the first turn does not count."""
    times = []
    for _ in range(_TURNS + 1):
        row = []
        for work in (ours, bare):
            started = time.perf_counter()
            work()
            row.append(time.perf_counter() - started)
        times.append(row)
    t = np.array(times[1:])
    return {
        "seconds": float(np.median(t[:, 0])),
        "beside": float(np.median(t[:, 1])),
        "ratio": float(np.median(t[:, 0] / t[:, 1])),
    }


def _peak() -> int:
    """The most memory that this process has taken so far, in bytes; 0 where nobody tells."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
