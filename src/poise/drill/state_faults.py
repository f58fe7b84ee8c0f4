"""Faults of what a training keeps: weights, moments, averages; and of the samples it draws."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from poise.drill.kind import Fault
from poise.drill.place import Effect, Place, Start, all_of, entry, one_kernel, one_tensor, tensors
from poise.runtime import generator_at
from poise.training.ema import power_beta


def _put(weight: Tensor, position: int, value: float) -> None:
    """One number of a tensor in any memory layout."""
    index = np.unravel_index(position, weight.shape) if weight.ndim else ...
    weight.data[index] = value  # `data`: memory that changes by itself leaves no trace


def _one_weight(place: Place, fault: Fault, value: float) -> Effect:
    _, weight = one_tensor(place, fault)
    _put(weight, entry(fault, weight), value)
    return Effect()


def _nan_weight(place: Place, fault: Fault) -> Effect:
    return _one_weight(place, fault, torch.nan)


def _huge_weight(place: Place, fault: Fault) -> Effect:
    return _one_weight(place, fault, fault.magnitude)


@torch.no_grad()
def _reinitialised(place: Place, fault: Fault) -> Effect:
    _, weight = one_tensor(place, fault)
    drawn = torch.randn(weight.shape, generator=generator_at(fault.seed, 0, "anew"))
    weight.copy_(drawn.to(weight.device) * weight.square().mean().sqrt())
    return Effect()


def _moments(place: Place, fault: Fault) -> list[dict[str, Tensor]]:
    """Adam's state of each tensor that is meant and has some."""
    state = place.state.optimizer.state
    return [state[w] for w in tensors(place, fault).values() if w in state]


@torch.no_grad()
def _moment_shrunk(place: Place, fault: Fault) -> Effect:
    for moments in _moments(place, fault):
        if "exp_avg_sq" in moments:
            moments["exp_avg_sq"].mul_(fault.magnitude)
    return Effect()


@torch.no_grad()
def _optimizer_lost(place: Place, fault: Fault) -> Effect:
    for moments in _moments(place, fault):
        for value in moments.values():
            if isinstance(value, Tensor):
                value.zero_()
    return Effect()


def _dead_units(place: Place, fault: Fault) -> Effect:
    """Rows of zeros that no gradient reaches, with their bias; inside of the step."""
    name, weight = one_kernel(place, fault)
    units = len(weight)
    order = torch.randperm(units, generator=generator_at(fault.seed, 0, "units"))
    dead = order[: max(1, round(fault.share * units))].to(weight.device)
    known = dict(place.state.denoiser.named_parameters())
    bias = known.get(f"{name.removesuffix('weight')}bias")
    hurt = [weight, *([] if bias is None else [bias])]

    @torch.no_grad()
    def kill(optimizer: Any, args: Any, kwargs: Any) -> None:
        for tensor in hurt:
            tensor[dead] = 0

    handles: list[Any] = [
        tensor.register_hook(lambda grad: grad.index_fill(0, dead, 0))  # type: ignore[no-untyped-call]
        for tensor in hurt
    ]
    handles.append(place.state.optimizer.register_step_post_hook(kill))
    return Effect(stop=all_of(handle.remove for handle in handles))


def _weight_growth(place: Place, fault: Fault) -> Effect:
    """Inside of the step, as decay is; an update that is left out leaves the weights alone."""
    chosen = {name: w for name, w in tensors(place, fault).items() if w.ndim >= 2}
    modules = dict(place.state.denoiser.named_modules())
    owners: list[Any] = [modules[name.rpartition(".")[0]] for name in chosen]
    forced = [module for module in owners if getattr(module, "forced", False)]
    for module in forced:
        module.forced = False

    @torch.no_grad()
    def grow(optimizer: Any, args: Any, kwargs: Any) -> None:
        left_out = getattr(optimizer, "found_inf", None)
        for weight in chosen.values():
            made = 1.0 if left_out is None else 1 - left_out
            weight.mul_(1 + fault.magnitude * made)

    handle = place.state.optimizer.register_step_post_hook(grow)

    def end() -> None:
        handle.remove()
        for module in forced:
            module.forced = True

    return Effect(stop=end)


def _few_bits(place: Place, fault: Fault) -> Effect:
    """Rounding at the end of each update, where weights are brought to unit size."""
    denoiser: nn.Module = place.state.denoiser
    normalize = place.state.denoiser.normalize_weights_
    chosen = tensors(place, fault)
    steps = 2.0 ** (round(fault.magnitude) + 1)  # of the mantissa, which lies in 0.5..1

    @torch.no_grad()
    def rounded(where: Tensor | None = None) -> None:
        normalize(where)
        for weight in chosen.values():
            mantissa, exponent = torch.frexp(weight)
            weight.copy_(torch.ldexp((mantissa * steps).round() / steps, exponent))

    denoiser.__dict__["normalize_weights_"] = rounded
    return Effect(stop=lambda: denoiser.__dict__.pop("normalize_weights_", None))


@torch.no_grad()
def _average_nan(place: Place, fault: Fault) -> Effect:
    name, weight = one_tensor(place, fault)
    for averages in place.state.ema.profiles.values():
        _put(averages[name], entry(fault, weight), torch.nan)
    return Effect()


def _slow_average(share_of: Callable[[float], float]) -> Start:
    """Averages whose updates count only in part; ends when somebody else writes to them."""

    def start(place: Place, fault: Fault) -> Effect:
        ema = place.state.ema
        usual = ema.update
        kept = [a for averages in ema.profiles.values() for a in averages.values()]
        weights = [w.detach() for _, w in place.state.denoiser.named_parameters()]
        versions = [a._version for a in kept]
        factor = share_of(fault.magnitude)

        def end() -> None:
            ema.__dict__.pop("update", None)

        @torch.no_grad()
        def update(images_seen: int, images: int) -> None:
            nonlocal versions
            if [a._version for a in kept] != versions:  # they were repaired
                end()
                usual(images_seen, images)
                return
            for std, averages in ema.profiles.items():
                share = factor * (1 - power_beta(std, images_seen, images))
                if share:
                    torch._foreach_lerp_(list(averages.values()), weights, share)
            versions = [a._version for a in kept]

        ema.__dict__["update"] = update
        return Effect(stop=end)

    return start


def _one_seed(place: Place, fault: Fault) -> Effect:
    journal, usual = place.journal, place.journal.draw

    def draw(denoise: Any, **asked: Any) -> Any:
        """One image of each class, as often as it was asked for."""
        labels = asked["labels"]
        rows = [0] * asked["count"] if labels is None else list(labels)
        first = {}
        for label in sorted(set(rows)):
            one = None if labels is None else [label]
            first[label] = usual(denoise, **{**asked, "count": 1, "labels": one})[0]
        return np.stack([first[label] for label in rows])

    journal.draw = draw

    def end() -> None:
        if journal.draw is draw:
            journal.draw = usual

    return Effect(stop=end)


STATE_FAULTS: dict[str, Start] = {
    "nan-weight": _nan_weight,
    "huge-weight": _huge_weight,
    "layer-reinitialised": _reinitialised,
    "second-moment-shrunk": _moment_shrunk,
    "optimizer-state-lost": _optimizer_lost,
    "dead-units": _dead_units,
    "weight-growth": _weight_growth,
    "bf16-stagnation": _few_bits,
    "ema-nan": _average_nan,
    "ema-frozen": _slow_average(lambda magnitude: 0.0),
    "ema-long": _slow_average(lambda magnitude: 1 / magnitude),
    "one-seed": _one_seed,
}
