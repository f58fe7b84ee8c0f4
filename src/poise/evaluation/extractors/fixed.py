"""Feature spaces that need no weights: the pixels, and a fixed random network.

`Pixels` is exact and fits tiny images, `RandomConv` is a fixed random convolutional network
(Jarrett et al. 2009: random filters with rectification and pooling already make useful features).
"""

import hashlib
import itertools
from typing import final

import torch
from torch.nn import functional

from poise.errors import DataError
from poise.runtime import generator_at

_SEED = 20_240_607  # of RandomConv's filters: part of the definition, never changed
_LEVELS = (12, 20, 24, 32)  # channels of the four levels, each at half the last one's resolution
_GRID = 2  # activations are averaged in 2 x 2 cells, so that the layout counts
_COLOUR_GRID = 4  # and plain colours in 4 x 4 cells
_FLOOR = 0.1  # added before the logarithm
# Standard deviation of the features: x.x / D is about 1/4, so that the kernel distance's third
# power is not ruled by a few outliers, as it is for features of unit spread.
_SPREAD = 0.5
# Mean and standard deviation of the features of each block over CIFAR-10's training photographs:
# the colours, then cell means and spreads of each level. They make every level weigh the same.
_BLOCKS = (
    (-0.054, 0.401),
    *((-0.150, 0.383), (-0.412, 0.238)),
    *((0.019, 0.343), (-0.202, 0.235)),
    *((0.028, 0.366), (-0.200, 0.256)),
    *((-0.028, 0.512), (-0.267, 0.338)),
)


@final
class Pixels:
    """The pixels themselves in [-1, 1], flattened: exact, and good up to about 16 x 16."""

    name = "pixels"
    resizer = "none"
    digest = hashlib.sha256(b"pixels/127.5-1").hexdigest()[:12]

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W] -> float32 [B, C*H*W]."""
        return images.flatten(1).to(torch.float32) / 127.5 - 1


@final
class RandomConv:
    """Four levels of fixed random 3x3 filters, absolute value and average pooling.

    Features are, for every channel of every level, the mean in each of 2 x 2 cells and the spread
    over the image, both as logarithms, and the mean colours in 4 x 4 cells: 488 numbers. The
    logarithm makes them more nearly Gaussian: contrast has a heavy tail, and without it the
    kernel distance of real against real images varied four times as much. The filters come from
    `generator_at` through uniform draws, which have the same bits on every machine. Half of the
    first level's filters sum to zero and see detail only; the others also see colour. Every
    channel is standardised on fixed synthetic images, so faint fine detail counts as much as
    strong coarse contrast.
    """

    name = "random_conv"
    resizer = "none"

    def __init__(self) -> None:
        self._filters = _draw_filters()
        digest = hashlib.sha256(repr((_GRID, _COLOUR_GRID, _FLOOR, _SPREAD, _BLOCKS)).encode())
        for w in self._filters:
            digest.update(w.numpy().tobytes())
        self.digest = digest.hexdigest()[:12]
        self._biases = self._standardise(_synthetic_images(64, 32))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [B, C, H, W], any C (see `as_three`), H and W at least 8 -> float32 [B, 488].

        Raises:
            DataError: images smaller than 8 x 8.
        """
        _, _, H, W = images.shape
        if min(H, W) < 8:
            raise DataError(
                f"images of {H}x{W} pixels",
                expected="at least 8x8 pixels for random_conv features",
                remedy="use the features 'pixels'",
            )
        x = as_three(images.to(torch.float32) / 127.5 - 1)
        blocks = [functional.adaptive_avg_pool2d(x, _COLOUR_GRID).flatten(1)]
        for w, b in zip(self._filters, self._biases, strict=True):
            x = _level(x, w, b)
            cells = functional.adaptive_avg_pool2d(x, _GRID).flatten(1)
            # Three times as fast as Tensor.std.
            spread = (x - x.mean((2, 3), keepdim=True)).square_().mean((2, 3)).sqrt()
            blocks += [torch.log(cells + _FLOOR), torch.log(spread + _FLOOR)]
            x = _halve(x)
        scaled = [
            (f - mean) * (_SPREAD / std) for f, (mean, std) in zip(blocks, _BLOCKS, strict=True)
        ]
        return torch.cat(scaled, 1)

    def _standardise(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Scale filters so each channel has mean 0, spread 1 on `x` [B, 3, H, W]; the biases."""
        biases = []
        for level, w in enumerate(self._filters):
            y = _convolve(x, w, torch.zeros(len(w)))
            std, mean = torch.std_mean(y, (0, 2, 3), correction=0)
            self._filters[level] = w / std[:, None, None, None]
            biases.append(-mean / std)
            x = _halve(_level(x, self._filters[level], biases[-1]))
        return biases


def as_three(x: torch.Tensor) -> torch.Tensor:
    """[B, C, H, W] -> [B, 3, H, W]: one channel is repeated, two become first, second, first.

    More than three become the means of three runs of neighbouring channels, as nearly of one
    length as can be, the longer ones first: 4 gives (0, 1), (2), (3).
    """
    C = x.shape[1]
    if C == 3:
        return x
    if C == 1:
        return x.expand(-1, 3, -1, -1)
    if C == 2:
        return x[:, [0, 1, 0]]
    return torch.stack([run.mean(1) for run in x.tensor_split(3, dim=1)], 1)


def _convolve(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    # Edges are repeated: zeros would put a contour around every image.
    x = functional.pad(x, (1, 1, 1, 1), mode="replicate")
    return functional.conv2d(x, w.to(x.device), b.to(x.device))


def _level(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return _convolve(x, w, b).abs_()


def _halve(x: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(x, 2, ceil_mode=True)


def _draw_filters() -> list[torch.Tensor]:
    """Random filters [O, I, 3, 3] of each level, float32, before standardisation."""
    filters = []
    for level, (inputs, outputs) in enumerate(itertools.pairwise((3, *_LEVELS))):
        # Uniform, not normal: no transcendental function, hence the same bits everywhere.
        generator = generator_at(_SEED, level, "random_conv")
        w = 2 * torch.rand(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64) - 1
        # Later levels read absolute values, whose mean says little: all their filters are balanced.
        blind = outputs // 2 if level == 0 else outputs
        w[:blind] -= w[:blind].mean((1, 2, 3), keepdim=True)
        filters.append(w.to(torch.float32))
    return filters


def _synthetic_images(count: int, side: int) -> torch.Tensor:
    """Random clouds [count, 3, side, side] in [-1, 1] with equal power in every octave."""
    generator = generator_at(_SEED, 0, "random_conv clouds")
    x = torch.zeros(count, 3, side, side)
    size = 2
    while size <= side:
        grey = torch.rand(count, 1, size, size, generator=generator)
        colour = torch.rand(count, 3, size, size, generator=generator)
        octave = 2 * (0.7 * grey + 0.3 * colour) - 1
        x += functional.interpolate(octave, (side, side), mode="bilinear") / size**0.5
        size *= 2
    return (x / x.std()).mul(0.5).clamp(-1, 1)
