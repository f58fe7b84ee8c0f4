"""The size of every tensor around one update, without waiting for the device.

Rows are the trainable weights in the order of `loop.weights_of`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Vitals:
    """What one update did to each of T tensors; fp32, on the device."""

    grad_norms: Tensor  # [T], L2; 0 where there is no gradient
    moments: Tensor  # [T], sum of Adam's second moments before the step; NaN where there are none
    before: Tensor  # [T], fingerprints of the weights before the step
    after: Tensor  # [T], and after it and their normalisation
    ema: Tensor | None  # [P, T], of the averages before they follow; only now and then


@torch.no_grad()
def fingerprint(tensors: Iterable[Tensor]) -> Tensor:
    """One number for each tensor, [T] fp32: the same bits where nothing changed.

    The sum on a CPU, the sum of absolute values on a GPU, where that is one fused call.
    """
    found = list(tensors)
    if found and found[0].is_cuda:
        return torch.stack(torch._foreach_norm(found, 1, torch.float32))
    return torch.stack([t.sum(dtype=torch.float32) for t in found])


@torch.no_grad()
def gradient_norms(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """L2 norm of all gradients together, [], and of each, [T]; 0 where a weight has none."""
    norms = list(torch._foreach_norm([w.grad for w in weights if w.grad is not None]))
    total = torch.linalg.vector_norm(torch.stack(norms))
    if len(norms) < len(weights):
        none, present = total.new_zeros(()), iter(norms)
        norms = [none if w.grad is None else next(present) for w in weights]
    return total, torch.stack(norms)


@torch.no_grad()
def moment_sums(moments: Sequence[Tensor] | None, weights: Sequence[Tensor]) -> Tensor:
    """Sum of each tensor of `optim.second_moments`, [T]; NaN where there is none."""
    if moments is None:
        return torch.full((len(weights),), math.nan, device=weights[0].device)
    return fingerprint(moments)  # none of their numbers is negative
