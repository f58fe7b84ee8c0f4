"""Where faults act: a training in progress, with its tensors and layers by name or role."""

import contextlib
import fnmatch
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from poise.data.batches import Batch
from poise.drill.kind import Fault
from poise.errors import UsageError, nearest
from poise.journal import Journal
from poise.runtime import generator_at
from poise.training.loop import TrainState

ROLES = ("first", "middle", "last", "encoder", "decoder")
_SINGLE = ("first", "middle", "last")


@dataclass(frozen=True)
class Place:
    """A session of training."""

    state: TrainState
    journal: Journal


def _same(batch: Batch, number: int) -> Batch:
    return batch


@dataclass(frozen=True)
class Effect:
    """A fault at work in one session; what it does not need does nothing."""

    step: Callable[[int], None] = lambda age: None  # before each update; `age` is 0 at the first
    batch: Callable[[Batch, int], Batch] = _same  # the batch of an update, with its number
    stop: Callable[[], None] = lambda: None  # its time is up, or the session ended


Start = Callable[[Place, Fault], Effect]


def all_of(ends: Iterable[Callable[[], None]]) -> Callable[[], None]:
    """One function that calls them all."""
    kept = list(ends)

    def end() -> None:
        for each in kept:
            each()

    return end


def tensors(place: Place, fault: Fault) -> dict[str, nn.Parameter]:
    """The weights that `fault.tensor` means, by name; all of them for "".

    Raises:
        UsageError: there are none.
    """
    known = dict(place.state.denoiser.named_parameters())
    pattern = fault.tensor
    if not pattern:
        return known
    if pattern in ROLES:
        parts = tuple(f"{name}." for name in _layers(place, pattern))
        chosen = [name for name in known if name.startswith(parts)]
    else:
        chosen = _matching(pattern, known)
    if not chosen:
        raise _unknown(fault, known)
    return {name: known[name] for name in chosen}


def one_tensor(place: Place, fault: Fault) -> tuple[str, nn.Parameter]:
    """One of the weights that `fault.tensor` means; not a bias or a gain where there are others."""
    return _one(fault, tensors(place, fault), fewest_dimensions=2)


def one_kernel(place: Place, fault: Fault) -> tuple[str, nn.Parameter]:
    """The same, a convolution's where there are some: its rows are units that pictures pass."""
    found = tensors(place, fault)
    kernels = {name: w for name, w in found.items() if w.ndim == 4}
    return _one(fault, kernels or found, fewest_dimensions=2)


def one_layer(place: Place, fault: Fault) -> tuple[str, nn.Module]:
    """One of the layers that `fault.tensor` means; any block of the network for "".

    The name of a weight means the layer that it belongs to.

    Raises:
        UsageError: there is none.
    """
    found = layers(place, fault)
    name = sorted(found)[_draw(fault, len(found), "layer")]
    return name, found[name]


def layers(place: Place, fault: Fault) -> dict[str, nn.Module]:
    """The layers that `fault.tensor` means, by name; all blocks of the network for "".

    Raises:
        UsageError: there are none.
    """
    holders = (nn.ModuleDict, nn.ModuleList)
    modules = place.state.denoiser.named_modules()
    known = {name: m for name, m in modules if name and not isinstance(m, holders)}
    pattern = fault.tensor
    if not pattern or pattern in ROLES:
        chosen = _layers(place, pattern)
    else:
        chosen = _matching(pattern, known)
        if not chosen:
            owners = place.state.denoiser.named_parameters()
            chosen = [n.rpartition(".")[0] for n in _matching(pattern, [n for n, _ in owners])]
    if not chosen:
        raise _unknown(fault, known)
    return {name: known[name] for name in chosen if name in known}


def _layers(place: Place, role: str) -> list[str]:
    """The names of the blocks of a network in their order, or of those with a role."""
    network = place.state.denoiser.network
    groups = [(name, getattr(network, name, None)) for name in ("enc", "dec", "blocks")]
    names = [
        (group, f"network.{group}.{child}")
        for group, holder in groups
        if isinstance(holder, nn.Module)
        for child, _ in holder.named_children()
    ]
    blocks = [name for _, name in names]
    if role in _SINGLE:
        index = {"first": 0, "middle": len(blocks) // 2, "last": len(blocks) - 1}[role]
        return blocks[index : index + 1]
    if role in ("encoder", "decoder"):
        half = {"encoder": "enc", "decoder": "dec"}[role]
        named = [name for group, name in names if group == half]
        middle = len(blocks) // 2
        return named or (blocks[:middle] if half == "enc" else blocks[middle:])
    return blocks


def _matching(pattern: str, names: Iterable[str]) -> list[str]:
    """Names equal to the pattern; else by glob, by part of the name, by regular expression."""
    names = list(names)
    tests: list[Callable[[str], object]] = [
        lambda name: name == pattern,
        lambda name: fnmatch.fnmatchcase(name, pattern),
        lambda name: pattern in name,
    ]
    with contextlib.suppress(re.error):
        tests.append(re.compile(pattern).search)
    for test in tests:
        if found := [name for name in names if test(name)]:
            return found
    return []


def _one(
    fault: Fault, found: dict[str, nn.Parameter], *, fewest_dimensions: int
) -> tuple[str, nn.Parameter]:
    large = {name: w for name, w in found.items() if w.ndim >= fewest_dimensions} or found
    name = sorted(large)[_draw(fault, len(large), "tensor")]
    return name, large[name]


def _draw(fault: Fault, count: int, stream: str) -> int:
    generator = generator_at(fault.seed, 0, stream)
    return int(torch.randint(count, (), generator=generator))


def entry(fault: Fault, tensor: Tensor) -> int:
    """The position of one number of a tensor, flat; the same at each call."""
    return _draw(fault, tensor.numel(), "entry")


def _unknown(fault: Fault, known: Iterable[str]) -> UsageError:
    names = list(known)
    return UsageError(
        f"{fault.kind}: tensor = {fault.tensor!r} matches nothing in this network. "
        f"{nearest(fault.tensor, [*names, *ROLES])}".rstrip(),
        expected="a name, a glob, a regular expression, or of " + ", ".join(ROLES),
    )
