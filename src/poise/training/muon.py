"""Muon: momentum whose matrices are made orthogonal, and Adam for everything else.

Sources: Jordan et al. 2024 ("Muon: an optimizer for hidden layers in neural networks") for the
iteration, its coefficients and Nesterov's momentum; Liu et al. 2025 ("Muon is scalable for LLM
training", Eq. 4) for the factor that gives an update the size of Adam's, so that one learning rate
serves both.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_QUINTIC = (3.4445, -4.7750, 2.0315)  # steepest at zero that keeps singular values near 1
_ITERATIONS = 5
_LIKE_ADAM = 0.2  # root mean square of an update of Adam


class Muon(torch.optim.Optimizer):
    """One optimiser of two kinds of groups: those with `muon` true, and those of Adam."""

    def __init__(self, groups: list[dict[str, Any]], momentum: float, **adam: Any) -> None:
        """
        Args:
            groups: with `params`, and `muon` true or false; weights of muon have 2 dimensions or
                more, of which the first is the output.
            momentum: share of the mean of gradients that stays, 0..1.
            adam: lr, betas, eps.
        """
        like = torch.optim.Adam([torch.zeros(1)], fused=True, **adam)
        super().__init__(groups, {**like.defaults, "fused": None, "momentum": momentum})
        self._adam = like
        like.param_groups = [group for group in self.param_groups if not group["muon"]]
        like.state = self.state  # one state and one set of groups, for whoever looks at them
        for group in like.param_groups:
            group["fused"] = True
        for group in self.param_groups:  # all there before the first step, so it can be undone
            for weight in group["params"]:
                if group["muon"]:
                    self.state[weight] = {"momentum_buffer": torch.zeros_like(weight)}
                else:
                    self.state[weight] = {
                        "exp_avg": torch.zeros_like(weight),
                        "exp_avg_sq": torch.zeros_like(weight),
                        "step": torch.zeros((), device=weight.device),
                    }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of every weight that has a gradient; `closure` is never called."""
        self._adam.step()
        for group in self.param_groups:
            for weight in group["params"] if group["muon"] else ():
                if weight.grad is not None:
                    mean = self.state[weight]["momentum_buffer"]
                    mean.lerp_(weight.grad, 1 - group["momentum"])
                    ahead = weight.grad.lerp(mean, group["momentum"])
                    matrix = orthogonal(ahead.flatten(1))
                    size = _LIKE_ADAM * math.sqrt(max(matrix.shape))
                    weight.add_(matrix.view(weight.shape), alpha=-group["lr"] * size)


def orthogonal(matrix: Tensor) -> Tensor:
    """Nearly the nearest matrix whose singular values are all 1, [m, n]; theirs are 0.6 to 1.2.

    Five quintic Newton-Schulz steps X <- aX + (bA + cA^2)X with A = XX^T (Jordan et al. 2024), in
    float32: 10 to 15 products of matrices. Zero stays zero.
    """
    a, b, c = _QUINTIC
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix.float() if wide else matrix.float().mT
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        square = x @ x.mT
        x = a * x + torch.addmm(square, square, square, beta=b, alpha=c) @ x
    found: Tensor = (x if wide else x.mT).contiguous().to(matrix.dtype)
    return found
