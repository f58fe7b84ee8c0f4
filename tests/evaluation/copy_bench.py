"""CopyBench: samples of which it is known whether they are copies, and of what.

Novel images come from a Gaussian mixture rendered to pixels by a fixed linear map, or from any
other stack of images. A share of them is replaced by training images with a small change.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from poise.evaluation.memorisation import copies, surroundings

Images = NDArray[np.uint8]

SIDE, CHANNELS, WAVES, MODES = 12, 3, 8, 10
KINDS = ("exact", "jitter", "flip", "shift", "crop")
_JITTER = 4.0  # standard deviation in levels of 255
_MOVE = 1 / 32  # of the side: one pixel at 32 x 32


def copy_report(train, val, samples, views=1):
    """The copy test of features, in one call."""
    return copies(surroundings(train, val, samples, views))


@dataclass(frozen=True)
class Planted:
    """Samples [M, C, H, W] of a generator that copies, and the truth about each.

    Attributes:
        images: the samples, copies at random places.
        source: the training image that a sample copies, -1 for novel ones, [M].
    """

    images: Images
    source: NDArray[np.int64]


def mixture_images(n: int, seed: int) -> Images:
    """Smooth images [n, 3, 12, 12] of one mixture: seeds draw images, never the mixture."""
    fixed = np.random.default_rng(20_240_801)
    D = CHANNELS * WAVES
    centres = fixed.normal(size=(MODES, D))
    centres -= centres.mean(0)
    mix = np.linalg.qr(fixed.normal(size=(D, D)))[0]
    rng = np.random.default_rng(seed)
    z = (centres[rng.integers(MODES, size=n)] + rng.normal(size=(n, D))) @ mix
    x = 127.5 + 12 * z.reshape(n, CHANNELS, WAVES) @ _waves()
    return _levels(x).reshape(n, CHANNELS, SIDE, SIDE)


def _waves() -> NDArray[np.float64]:
    """The smoothest `WAVES` products of cosines, between -1 and 1, [WAVES, SIDE^2]."""
    at = (np.arange(SIDE) + 0.5) * np.pi / SIDE
    pairs = sorted(((i, j) for i in range(4) for j in range(4)), key=lambda p: (sum(p), p))
    return np.stack([np.outer(np.cos(i * at), np.cos(j * at)).ravel() for i, j in pairs[:WAVES]])


def altered(images: Images, kind: str, rng: np.random.Generator) -> Images:
    """Copies of `images` [N, C, H, W] as a model makes them: one of `KINDS`."""
    x = torch.from_numpy(images.astype(np.float64))
    if kind == "jitter":
        x = x + torch.from_numpy(_JITTER * rng.normal(size=images.shape))
    elif kind == "flip":
        x = x.flip(3)
    elif kind in ("shift", "crop"):
        move, zoom = (2 * _MOVE, 1.0) if kind == "shift" else (0.0, 1 - 2 * _MOVE)
        theta = torch.tensor([[zoom, 0, move], [0, zoom, 0]], dtype=torch.float64)
        grid = functional.affine_grid(
            theta.expand(len(x), 2, 3), list(x.shape), align_corners=False
        )
        x = functional.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return _levels(x.numpy())


def plant(train: Images, novel: Images, share: float, kind: str, seed: int) -> Planted:
    """`novel` [M, C, H, W] with a `share` of it replaced by altered images of `train`."""
    rng = np.random.default_rng([seed, 1])
    count = round(share * len(novel))
    places = rng.choice(len(novel), count, replace=False)
    chosen = rng.choice(len(train), count, replace=False)
    images, source = novel.copy(), np.full(len(novel), -1)
    images[places] = altered(train[chosen], kind, rng)
    source[places] = chosen
    return Planted(images, source)


def with_duplicates(train: Images, share: float) -> Images:
    """`train` with its last `share` replaced by repetitions of its first images, four of each."""
    count = round(share * len(train))
    repeated = np.repeat(train[: -(-count // 4)], 4, axis=0)[:count]
    return np.concatenate([train[: len(train) - count], repeated])


def false_and_found(flagged: list[int], source: NDArray[np.int64]) -> tuple[float, float]:
    """The false share of what was flagged, and the share of the copies that was found."""
    hits = source[np.asarray(flagged, np.int64)] >= 0
    return float(1 - hits.mean()) if len(hits) else 0.0, float(hits.sum() / (source >= 0).sum())


def _levels(x: NDArray[np.float64]) -> Images:
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)
