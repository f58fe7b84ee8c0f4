"""Faults of gradients, steps, activations and the loss: each starts, and can be stopped again."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss, Weighting, denoising_loss
from poise.diffusion.noise import Noised
from poise.drill.kind import Fault
from poise.drill.place import (
    Effect,
    Place,
    Start,
    all_of,
    entry,
    layers,
    one_layer,
    one_tensor,
    tensors,
)
from poise.runtime import generator_at
from poise.training.bands import band_edges

_LARGEST_HALF = 65504.0


def _inf_gradient(place: Place, fault: Fault) -> Effect:
    _, weight = one_tensor(place, fault)
    position = entry(fault, weight)

    def spoil(grad: Tensor) -> Tensor:
        spoilt = grad.contiguous().clone()
        spoilt.view(-1)[position] = torch.inf
        return spoilt

    return Effect(stop=weight.register_hook(spoil).remove)  # type: ignore[no-untyped-call]


def _flipped(place: Place, fault: Fault) -> Effect:
    chosen = tensors(place, fault).values()
    handles = [w.register_hook(torch.neg) for w in chosen]  # type: ignore[no-untyped-call]
    return Effect(stop=all_of(handle.remove for handle in handles))


def _dropped(place: Place, fault: Fault) -> Effect:
    """Out of the parameter groups; they still get gradients."""
    lost = {id(weight) for weight in tensors(place, fault).values()}
    groups = place.state.optimizer.param_groups
    whole = [list(group["params"]) for group in groups]
    for group in groups:
        group["params"] = [w for w in group["params"] if id(w) not in lost]

    def put_back() -> None:
        for group, params in zip(groups, whole, strict=True):
            group["params"] = params

    return Effect(stop=put_back)


def _rate_jump(place: Place, fault: Fault) -> Effect:
    """Through the factor on the schedule, which a rollback sets right."""
    state = place.state
    state.lr_scale *= fault.magnitude
    wrong = state.lr_scale

    def end() -> None:
        if state.lr_scale >= wrong:  # else somebody has set it right
            state.lr_scale /= fault.magnitude

    return Effect(stop=end)


def _rate_drift(place: Place, fault: Fault) -> Effect:
    state = place.state
    start = last = state.lr_scale
    mended = False

    def grow(age: int) -> None:
        nonlocal last, mended
        mended = mended or state.lr_scale < last
        if not mended:
            last = state.lr_scale = state.lr_scale * (1 + fault.magnitude)

    def end() -> None:
        if not mended and state.lr_scale >= last:
            state.lr_scale *= start / last

    return Effect(step=grow, stop=end)


def _hooked(module: nn.Module, change: Callable[[Tensor], Tensor]) -> Callable[[], None]:
    """`change` what a layer gives out, until the returned function is called."""

    def hook(layer: nn.Module, inputs: Any, output: Any) -> Any:
        return change(output) if isinstance(output, Tensor) else output

    return module.register_forward_hook(hook).remove


def _nan_activation(place: Place, fault: Fault) -> Effect:
    _, layer = one_layer(place, fault)

    def spoil(y: Tensor) -> Tensor:
        chosen = torch.zeros(y.numel(), dtype=torch.bool)
        chosen[entry(fault, y)] = True
        return y.masked_fill(chosen.view(y.shape).to(y.device), torch.nan)

    return Effect(stop=_hooked(layer, spoil))


def _overflow(place: Place, fault: Fault) -> Effect:
    _, layer = one_layer(place, fault)

    def in_half(y: Tensor) -> Tensor:
        scale = fault.magnitude / y.detach().float().square().mean().sqrt().clamp(min=1e-20)
        high, low = y * scale > _LARGEST_HALF, y * scale < -_LARGEST_HALF
        return y.masked_fill(high, torch.inf).masked_fill(low, -torch.inf)

    return Effect(stop=_hooked(layer, in_half))


def _vanishing(place: Place, fault: Fault) -> Effect:
    _, layer = one_layer(place, fault)
    return Effect(stop=_hooked(layer, lambda y: y * fault.magnitude))


def _exploding(place: Place, fault: Fault) -> Effect:
    _, layer = one_layer(place, fault)

    def enlarge(y: Tensor) -> Tensor:
        if y.requires_grad:
            y = y.view_as(y)  # a node of its own, so that no other user of `y` is concerned
            y.register_hook(lambda grad: grad * fault.magnitude)  # type: ignore[no-untyped-call]
        return y

    return Effect(stop=_hooked(layer, enlarge))


def _flaky(place: Place, fault: Fault) -> Effect:
    _, layer = one_layer(place, fault)
    calls = 0

    def stir(y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        noise = torch.randn(y.shape, generator=generator_at(fault.seed, calls, "flaky"))
        return y * (1 + fault.magnitude * noise.to(y.device, y.dtype))

    return Effect(stop=_hooked(layer, stir))


def _activation_growth(place: Place, fault: Fault) -> Effect:
    gain = 1.0

    def grow(age: int) -> None:
        nonlocal gain
        gain *= 1 + fault.magnitude

    ends = [_hooked(layer, lambda y: y * gain) for layer in layers(place, fault).values()]
    return Effect(step=grow, stop=all_of(ends))


def _variance_runaway(place: Place, fault: Fault) -> Effect:
    offset = 0.0

    def fall(age: int) -> None:
        nonlocal offset
        offset -= fault.magnitude

    return Effect(step=fall, stop=_hooked(place.state.denoiser.uncertainty, lambda u: u + offset))


def _band_error(place: Place, fault: Fault) -> Effect:
    """The loss of the band as if its error were larger; what is reported is as large."""
    edges = torch.tensor(band_edges(place.journal.job.config.diffusion))
    state, usual = place.state, place.state.loss
    assert fault.band is not None

    def loss(
        denoiser: Denoiser, noised: Noised, labels: Tensor | None, weighting: Weighting
    ) -> Loss:
        result = (usual or denoising_loss)(denoiser, noised, labels, weighting)
        band = torch.bucketize(noised.sigma, edges.to(noised.sigma.device), right=True)
        factor = 1 + (fault.magnitude - 1) * torch.eq(band, fault.band or 0).float()
        u = denoiser.log_variance(noised.sigma) if weighting.kind == "uncertainty" else 0.0
        return Loss((result.weighted - u) * factor + u, result.error * factor)

    state.loss = loss

    def end() -> None:
        if state.loss is loss:
            state.loss = usual

    return Effect(stop=end)


def _no_labels(place: Place, fault: Fault) -> Effect:
    def hide(network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x, c_noise, labels, *more = args
        if labels is None:
            return args
        rows = torch.zeros(len(x), place.state.denoiser.num_classes, device=x.device)
        return (x, c_noise, rows, *more)

    return Effect(stop=place.state.denoiser.network.register_forward_pre_hook(hide).remove)


DYNAMICS: dict[str, Start] = {
    "inf-gradient": _inf_gradient,
    "gradient-flipped": _flipped,
    "layer-dropped": _dropped,
    "lr-jump": _rate_jump,
    "lr-drift": _rate_drift,
    "nan-activation": _nan_activation,
    "overflow": _overflow,
    "vanishing": _vanishing,
    "exploding": _exploding,
    "flaky-layer": _flaky,
    "activation-growth": _activation_growth,
    "log-variance-runaway": _variance_runaway,
    "band-error": _band_error,
    "labels-zeroed": _no_labels,
}
