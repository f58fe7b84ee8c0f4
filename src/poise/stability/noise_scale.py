"""The gradient noise scale: from which batch size on more images hardly help.

Source: McCandlish et al. 2018, "An Empirical Model of Large-Batch Training", Appendix A.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from poise.data.batches import Batch
from poise.errors import UsageError
from poise.settings import Config
from poise.stability.undisturbed import undisturbed
from poise.training.loop import TrainState, gradients_again


@dataclass(frozen=True)
class NoiseScale:
    """Unbiased estimates; the ratio of them is not unbiased, but its error shrinks with parts."""

    gradient: float  # squared length of the mean gradient; below 0 where it drowns in noise
    noise: float  # trace of the covariance of one image's gradient

    @property
    def batch(self) -> float:
        """The simple noise scale tr(Sigma) / |G|^2 in images; inf where no gradient is left."""
        return self.noise / self.gradient if self.gradient > 0 else math.inf


def noise_scale(
    state: TrainState,
    config: Config,
    batch_of: Callable[[int], Batch],
    *,
    parts: int = 8,
) -> NoiseScale:
    """Measure it at the state as it is, which stays as it is.

    Gradients of small batches and of their union, the large batch, are compared (Eqs. A.1, A.2).

    Args:
        state: its weights decide the scale, which grows while they learn.
        config: the resolved settings.
        batch_of: the k-th small batch, all of one size; no image may come twice.
        parts: small batches, at least 2.

    Raises:
        UsageError: fewer than two parts, or batches of different sizes.
    """
    squares, mean, size = [], None, 0
    with undisturbed(state.denoiser, training=True):
        for k in range(parts):
            batch = batch_of(k)
            if size not in (0, len(batch.images)):
                raise UsageError(
                    f"Batches of {size} and of {len(batch.images)} images.",
                    expected="one size for all parts",
                )
            size = len(batch.images)
            _, _, grads = gradients_again(state, batch, config, state.images_seen + k * size)
            given = [g.double() for g in grads if g is not None]
            squares.append(sum(float(g.square().sum()) for g in given))
            mean = given if mean is None else [a + g for a, g in zip(mean, given, strict=True)]
    assert mean is not None or parts < 1
    large = sum(float((a / parts).square().sum()) for a in mean or [])
    return from_squares(squares, large, size)


def from_squares(small: Sequence[float], large: float, images: int) -> NoiseScale:
    """The estimates from squared lengths of gradients.

    Args:
        small: of each small batch.
        large: of the mean of their gradients.
        images: of one small batch.

    Raises:
        UsageError: fewer than two small batches.
    """
    if len(small) < 2:
        raise UsageError(f"{len(small)} gradients.", expected="at least 2")
    b, B = images, images * len(small)
    usual = math.fsum(small) / len(small)
    gradient = (B * large - b * usual) / (B - b)
    noise = (usual - large) / (1 / b - 1 / B)
    return NoiseScale(gradient, noise)
