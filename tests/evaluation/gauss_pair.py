"""Two Gaussians of which every distance is known, as features and as images.

pair = gauss_pair()                          # or GaussPair(m1, s1, m2, s2)
samples, reference = pair.draw(500, 800, np.random.default_rng(0))
pair.frechet, pair.kernel, pair.rbf(width)   # what endless sets have
pair.images(samples)                         # uint8 [N, 1, side, side]; pair.extractor undoes it
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

GRAY_PER_UNIT = 18.0  # of a rendered feature: rounding adds 1 / (12 * 18^2) to each variance
MIDDLE = 127.5


# Features that no metric takes beside others of [5, 3], and what the error says.
BAD = [
    (np.zeros((5, 4)), "4 dimensions beside others of 3"),
    (np.zeros((1, 3)), "at least two rows"),
    (np.full((5, 3), np.nan), "not finite"),
    (np.zeros(5), "shape"),
]


@dataclass(frozen=True)
class GaussPair:
    """Samples N(m1, diag s1) and a reference N(m2, diag s2), all [D]."""

    m1: np.ndarray
    s1: np.ndarray
    m2: np.ndarray
    s2: np.ndarray

    def draw(self, n1: int, n2: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        D = len(self.m1)
        x, y = rng.normal(size=(n1, D)), rng.normal(size=(n2, D))
        return x * np.sqrt(self.s1) + self.m1, y * np.sqrt(self.s2) + self.m2

    @property
    def frechet(self) -> float:
        roots = np.sqrt(self.s1) - np.sqrt(self.s2)
        return float(np.square(self.m1 - self.m2).sum() + np.square(roots).sum())

    def frechet_errors(self, n1: int, n2: int) -> tuple[float, float]:
        """Standard errors of the Fréchet distance from each set, to first order.

        The variance of a Gaussian's psi: 4 d' S d + 2 tr((I - T) S (I - T) S), T = (S'/S)^.5.
        """
        d2 = np.square(self.m1 - self.m2)
        found = []
        for own, other, n in ((self.s1, self.s2, n1), (self.s2, self.s1, n2)):
            quadratic = np.square((1 - np.sqrt(other / own)) * own)
            found.append(math.sqrt((4 * d2 * own + 2 * quadratic).sum() / n))
        return found[0], found[1]

    def frechet_bias(self, n1: int, n2: int) -> float:
        """Bias of the plug-in distance to first order, from the curvature in S1 and in S2.

        -2 tr(S1^.5 S2 S1^.5)^.5 bends in an entry ij of S1 by r_i r_j / (s_i s_j (r_i + r_j)) with
        r = (s1 s2)^.5; Var S1_ij = s_i s_j (1 + d_ij) / n.
        """
        r = np.sqrt(self.s1 * self.s2)
        bend = np.outer(r, r) * (1 + np.eye(len(r))) / (r[:, None] + r)
        return sum((s.sum() + bend.sum() / 2) / n for s, n in ((self.s1, n1), (self.s2, n2)))

    @property
    def kernel(self) -> float:
        """Squared MMD with (x.y / D + 1)^3."""
        a, b = (self.m1, self.s1), (self.m2, self.s2)
        return _cubic(*a, *a) + _cubic(*b, *b) - 2 * _cubic(*a, *b)

    def rbf(self, width: float) -> float:
        """Squared MMD with exp(-|x - y|^2 / (2 width^2))."""
        a, b = (self.m1, self.s1), (self.m2, self.s2)
        within = _gaussian(*a, *a, width) + _gaussian(*b, *b, width)
        return within - 2 * _gaussian(*a, *b, width)

    @cached_property
    def _turn(self) -> np.ndarray:
        """An orthogonal [D, D], so that every pixel depends on every feature."""
        D = len(self.m1)
        return np.linalg.qr(np.random.default_rng(D).normal(size=(D, D)))[0]

    def images(self, z: np.ndarray) -> np.ndarray:
        """Features [N, D] -> uint8 [N, 1, side, side]: pixel = mean + A z, rounded."""
        side = math.isqrt(z.shape[1])
        pixels = np.rint(MIDDLE + GRAY_PER_UNIT * z @ self._turn.T)
        assert pixels.min() >= 0 and pixels.max() <= 255, "nothing may be clipped"
        return pixels.astype(np.uint8).reshape(len(z), 1, side, side)

    @property
    def extractor(self) -> "Unmixed":
        return Unmixed(torch.from_numpy(self._turn))


@dataclass(frozen=True)
class Unmixed:
    """Images of a pair -> the features that they were rendered from."""

    turn: torch.Tensor
    name: str = "gauss_pair"
    digest: str = "0"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return (images.flatten(1).double() - MIDDLE) / GRAY_PER_UNIT @ self.turn


def gauss_pair(D: int = 32) -> GaussPair:
    """The pair with Fréchet distance 0.28500 and kernel distance 0.012829 at D = 32."""
    s = 1 / np.arange(1, D + 1)
    return GaussPair(np.full(D, 0.3), s, np.full(D, 0.35), 1.5 * s)


def _cubic(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    """E (x.y / D + 1)^3 of independent x ~ N(m1, diag s1) and y ~ N(m2, diag s2)."""
    D, m = len(m1), m1 @ m2
    quadratic = s1 @ s2 + m1**2 @ s2 + m2**2 @ s1
    e1, e2 = m / D, (quadratic + m**2) / D**2
    e3 = (m**3 + 3 * m * quadratic + 6 * (m1 * m2) @ (s1 * s2)) / D**3
    return float(e3 + 3 * e2 + 3 * e1 + 1)


def _gaussian(
    m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray, width: float
) -> float:
    """E exp(-|x - y|^2 / (2 width^2)); x - y is Gaussian too."""
    s, w2 = s1 + s2, width**2
    return float(np.exp(-np.square(m1 - m2) / (2 * (w2 + s))).prod() / np.sqrt(1 + s / w2).prod())
