"""Data whose ideal denoiser is known: Gaussian mixtures on images of a few pixels.

    noised x = y + sigma n, y ~ sum_k w_k N(mean_k, std_k^2 I), n ~ N(0, I)

    mixture = two_scales()                     # or Mixture(weights, positions, stds)
    y = mixture.sample(1000, generator)        # [1000, 1, 2, 2], fp64
    D = mixture.denoise(y + s * n, s)          # E[y | x], the best there is
    floor = mixture.floor(0.5)                 # E (D - y)^2, mean over pixels, by quadrature

    gaussian = Gaussian(mean=0.3, std=0.5)     # the same, and its flow is known too
    x0 = gaussian.flow(x, 80.0, 0.0)           # the probability-flow equation, solved

All means lie on one line (`DIRECTION`), so that whatever happens in 4 dimensions depends on two
numbers: the place along the line and the distance from it.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHAPE = (1, 2, 2)
SIZE = math.prod(SHAPE)
DIRECTION = torch.tensor([1.0, -2.0, 2.0, 4.0], dtype=torch.float64).reshape(SHAPE) / 5

Sigma = Tensor | float


def column(sigma: Sigma, x: Tensor) -> Tensor:
    """A noise level [], [B] or a number as [1, 1, 1, 1] or [B, 1, 1, 1], fp64, beside x."""
    return torch.as_tensor(sigma, dtype=torch.float64, device=x.device).reshape(-1, 1, 1, 1)


@dataclass(frozen=True)
class Mixture:
    """Round Gaussians along a line.

    Attributes:
        weights: shares of the components, positive, sum 1.
        positions: places of the means along `DIRECTION`.
        stds: standard deviation of each component, per pixel.
    """

    weights: tuple[float, ...]
    positions: tuple[float, ...]
    stds: tuple[float, ...]

    def __post_init__(self) -> None:
        assert len(self.weights) == len(self.positions) == len(self.stds)
        assert min(self.weights) > 0 and abs(sum(self.weights) - 1) < 1e-12
        assert min(self.stds) > 0

    def scaled(self, factor: float) -> "Mixture":
        """The mixture of `factor` times the data."""
        return Mixture(
            self.weights,
            tuple(factor * p for p in self.positions),
            tuple(factor * s for s in self.stds),
        )

    @property
    def rms(self) -> float:
        """sqrt(E y^2) per pixel: what sigma_data should be."""
        parts = zip(self.weights, self.positions, self.stds, strict=True)
        return math.sqrt(sum(w * (p**2 / SIZE + s**2) for w, p, s in parts))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` clean images [n, 1, 2, 2], fp64."""
        weights, positions, stds = (
            torch.tensor(v, dtype=torch.float64) for v in (self.weights, self.positions, self.stds)
        )
        k = torch.multinomial(weights, n, replacement=True, generator=generator)
        z = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
        return positions[k].reshape(-1, 1, 1, 1) * DIRECTION + stds[k].reshape(-1, 1, 1, 1) * z

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        """E[y | x] for x [B, 1, 2, 2] at noise level [], [B] or a number; in the type of x."""
        X, s = x.double(), column(sigma, x)
        logs, means = [], []
        for w, position, std in zip(self.weights, self.positions, self.stds, strict=True):
            total = std**2 + s**2
            offset = X - position * DIRECTION.to(x.device)
            distance = offset.square().sum((1, 2, 3), keepdim=True)
            logs.append(math.log(w) - SIZE / 2 * total.log() - distance / (2 * total))
            means.append(X - s**2 / total * offset)
        share = torch.stack(torch.broadcast_tensors(*logs)).softmax(0)
        return (share * torch.stack(means)).sum(0).to(x.dtype)

    def floor(self, sigma: float, nodes: int = 60) -> float:
        """E (E[y | x] - y)^2, mean over pixels: no denoiser has a lower error at this level.

        It is E tr Cov(y | x) / 4, integrated by trapezoids over the place along the line and the
        distance from it, component by component; the integrand is smooth and vanishes at the
        ends. Relative error under 1e-7 for the mixtures below (see `test_formulations.py`).
        """
        ends = 9.0
        along = np.linspace(-ends, ends, 2 * nodes)[:, None]
        off = np.linspace(0, ends + 2, nodes)[None, :]
        density = off ** (SIZE - 2) * np.exp(-(along**2 + off**2) / 2)
        density /= density.sum()
        total = 0.0
        for w, position, std in zip(self.weights, self.positions, self.stds, strict=True):
            spread = math.hypot(std, sigma)
            total += w * float(
                (density * self._variance(position + spread * along, spread * off, sigma)).sum()
            )
        return total / SIZE

    def _variance(
        self, along: NDArray[np.float64], off: NDArray[np.float64], sigma: float
    ) -> NDArray[Any]:
        """tr Cov(y | x) for x at a place along the line and a distance from it."""
        logs, variances, a_means, o_means = [], [], [], []
        for w, position, std in zip(self.weights, self.positions, self.stds, strict=True):
            total = std**2 + sigma**2
            distance = (along - position) ** 2 + off**2
            logs.append(math.log(w) - SIZE / 2 * math.log(total) - distance / (2 * total))
            variances.append(SIZE * std**2 * sigma**2 / total)
            a_means.append(position + std**2 / total * (along - position))
            o_means.append(std**2 / total * off)
        odds = np.exp(np.stack(logs) - np.max(np.stack(logs), axis=0))
        share = odds / odds.sum(0)
        a = sum(share[k] * a_means[k] for k in range(len(logs)))
        o = sum(share[k] * o_means[k] for k in range(len(logs)))
        within = sum(share[k] * variances[k] for k in range(len(logs)))
        between = sum(
            share[k] * ((a_means[k] - a) ** 2 + (o_means[k] - o) ** 2) for k in range(len(logs))
        )
        return np.asarray(within + between)


def three_groups() -> Mixture:
    """Three unequal groups of one kind, two of them close."""
    return Mixture((0.5, 0.3, 0.2), (-1.6, 0.8, 1.6), (0.2, 0.3, 0.1))


def two_scales() -> Mixture:
    """Coarse places and fine detail: structure at standard deviations 1 and 0.02."""
    return Mixture((0.5, 0.5), (-2.0, 2.0), (0.02, 0.02))


@dataclass(frozen=True)
class Gaussian:
    """Data N(mean, std^2) in every pixel, of any shape; every question has a closed form."""

    mean: float
    std: float

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """`n` clean images [n, 1, 2, 2], fp64."""
        z = torch.randn(n, *SHAPE, generator=generator, dtype=torch.float64)
        return self.mean + self.std * z

    def denoise(self, x: Tensor, sigma: Sigma) -> Tensor:
        """E[y | x] for x [B, ...] at noise level [], [B] or a number; in the type of x."""
        s = column(sigma, x)
        D = self.mean + (x.double() - self.mean) * self.std**2 / (self.std**2 + s**2)
        return D.to(x.dtype)

    def floor(self, sigma: float) -> float:
        """E (E[y | x] - y)^2, mean over pixels."""
        return sigma**2 * self.std**2 / (sigma**2 + self.std**2)

    def flow(self, x: Tensor, sigma: float, to: float = 0.0) -> Tensor:
        """The probability-flow equation solved from level `sigma` to level `to`."""
        return self.mean + (x - self.mean) * math.hypot(self.std, to) / math.hypot(self.std, sigma)
