"""Power-function averages of the weights, whose width is a share of the training so far.

Source: Karras et al. 2024 (EDM2), Section 3. The averages are siblings of the model in the
training state, not a wrapper around it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


def std_to_exp(std: float) -> float:
    """The exponent gamma of the power-function profile of relative width `std` (EDM2, Eq. 126).

    Args:
        std: 0 < std < 12^-0.5 = 0.2887.

    Raises:
        ValueError: no profile has that width.
    """
    if not 0 < std < 12**-0.5:
        raise ValueError(f"A power-function profile has a width between 0 and 0.2887, not {std}.")
    roots = np.roots([1, 7, 16 - std**-2, 12 - std**-2])
    return float(roots.real.max())


def power_beta(std: float, images_seen: int, images: int) -> float:
    """How much of the average is kept by an update of `images` images that ends at `images_seen`.

    EDM2, Eq. 127; the first update keeps nothing.
    """
    return float((1 - images / images_seen) ** (std_to_exp(std) + 1))


class PowerEMA:
    """Averages of named weights along several profiles at once."""

    def __init__(self, weights: Mapping[str, Tensor], stds: Sequence[float]) -> None:
        """
        Args:
            weights: the weights to follow, updated in place by the optimiser.
            stds: relative widths of the profiles.
        """
        self._weights = dict(weights)
        self.profiles: dict[float, dict[str, Tensor]] = {
            std: {name: w.detach().clone() for name, w in weights.items()} for std in stds
        }

    @torch.no_grad()
    def update(self, images_seen: int, images: int, where: Tensor) -> None:
        """Take in the weights after an update, unless the flag `where` [] is false.

        Args:
            images_seen: images seen including this update.
            images: images of this update.
            where: whether the update was applied, on the weights' device.
        """
        weights = [w.detach() for w in self._weights.values()]
        for std, averages in self.profiles.items():
            share = (1 - power_beta(std, images_seen, images)) * where.to(torch.float32)
            delta = torch._foreach_sub(weights, list(averages.values()))
            torch._foreach_mul_(delta, share)
            torch._foreach_add_(list(averages.values()), delta)


def profile_name(std: float) -> str:
    """`ema_0.100`: how the averaged weights are called in files and logs."""
    return f"ema_{std:.3f}"
