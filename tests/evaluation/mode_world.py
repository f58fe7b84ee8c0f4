"""Images of known kinds, and generators whose faults are counted instead of estimated."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import hadamard

K = 64  # kinds
_HALF = 32  # grey levels between the two values of a code's pixels, halved
DISTANCE = 2 * _HALF * math.sqrt(32)  # of any two prototypes: half of 64 pixels differ
RADIUS = 60.0  # of the jitter, below a quarter of it
_ROUNDING = 4.0  # half a level in 64 pixels
_DIRECTIONS = 3  # of the jitter: a ball that nearest neighbours can fill

PROTOTYPES = (128 + _HALF * hadamard(K)).astype(np.float64)  # [64, 64]


@dataclass(frozen=True)
class Truth:
    """What is counted in images by the nearest prototype, which is exact.

    Attributes:
        counts: valid images of each kind [64].
        precision: share of valid images, within RADIUS of a prototype.
        coverage: share of kinds with a valid image.
        total_variation: of the kinds' shares from equal ones.
        divergence: Kullback and Leibler's, of the kinds' shares from equal ones, in nats.
        kinds: exp of the entropy of the kinds' shares; the inception score of the classifier.
    """

    counts: np.ndarray
    precision: float
    coverage: float
    total_variation: float
    divergence: float
    kinds: float


def generate(
    n: int, seed: int, p: np.ndarray | None = None, invalid: float = 0, jitter: float = 1
) -> np.ndarray:
    """Images, uint8 [n, 1, 8, 8].

    Args:
        n: how many.
        seed: decides everything.
        p: shares of the kinds [64]; equal ones by default.
        invalid: share of images half-way between two prototypes.
        jitter: radius of the jitter, in that of the world; below 1 each kind collapses.
    """
    rng = np.random.default_rng(seed)
    kind = rng.choice(K, n, p=p)
    x = PROTOTYPES[kind]
    wrong = rng.permutation(n) < round(invalid * n)
    x[wrong] = (x[wrong] + PROTOTYPES[(kind[wrong] + rng.integers(1, K, wrong.sum())) % K]) / 2
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(64, _DIRECTIONS)))[0]
    u = rng.normal(size=(n, _DIRECTIONS))
    u *= (rng.random(n) ** (1 / _DIRECTIONS) / np.linalg.norm(u, axis=1))[:, None]
    x = x + jitter * (RADIUS - _ROUNDING) * u @ basis.T
    return np.clip(np.round(x), 0, 255).astype(np.uint8).reshape(n, 1, 8, 8)


def without(kinds: int) -> np.ndarray:
    """Equal shares of all kinds but the first ones."""
    return np.where(np.arange(K) < kinds, 0, 1 / (K - kinds))


def skewed(power: float) -> np.ndarray:
    """Shares that fall like (i + 1)^-power."""
    p = np.arange(1.0, K + 1) ** -power
    return p / p.sum()


def features(images: np.ndarray) -> np.ndarray:
    """Pixels as they are, float64 [n, 64]."""
    return images.reshape(len(images), -1).astype(np.float64)


def kinds(images: np.ndarray) -> np.ndarray:
    """The kind of each image [n], -1 if it is none."""
    d2 = np.square(features(images)[:, None] - PROTOTYPES).sum(2)
    return np.where(d2.min(1) <= RADIUS**2, d2.argmin(1), -1)


def truth(images: np.ndarray) -> Truth:
    kind = kinds(images)
    counts = np.bincount(kind[kind >= 0], minlength=K)
    p = counts / counts.sum()
    entropy = -float((p[p > 0] * np.log(p[p > 0])).sum())
    return Truth(
        counts=counts,
        precision=float((kind >= 0).mean()),
        coverage=float((counts > 0).mean()),
        total_variation=float(np.abs(p - 1 / K).sum() / 2),
        divergence=math.log(K) - entropy,
        kinds=math.exp(entropy),
    )
