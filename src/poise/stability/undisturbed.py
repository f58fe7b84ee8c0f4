"""Looking into a network without leaving a trace."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]


@contextmanager
def undisturbed(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Within, the network may be called and differentiated; afterwards nothing of it has changed.

    Restored, whatever happens within: the mode of each module, buffers such as batch norm's
    statistics, gradients, and the random state of the CPU and of the network's device. Weights are
    not copied: who changes them puts them back.

    Args:
        module: the network.
        training: the mode that it is in meanwhile.
    """
    modes = [(m, m.training) for m in module.modules()]
    buffers = [(b, b.clone()) for b in module.buffers()]
    grads = [(p, p.grad) for p in module.parameters()]
    devices = {p.device for p in module.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(devices)):
            module.train(training)
            yield
    finally:
        for part, mode in modes:
            part.training = mode
        with torch.no_grad():
            for buffer, old in buffers:
                buffer.copy_(old)
        for parameter, grad in grads:
            parameter.grad = grad


@contextmanager
def hooked(pairs: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Within, each hook is called after the forward pass of its module."""
    handles = []
    try:
        for module, hook in pairs:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def learned_layers(network: nn.Module) -> dict[str, nn.Module]:
    """The layers with a matrix or a kernel of weights of their own, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if isinstance(weight, Tensor) and weight.ndim >= 2:
            found[name] = module
    return found
