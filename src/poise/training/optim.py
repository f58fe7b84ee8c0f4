"""From gradients to updates: the optimisers, what bounds gradients and updates, what is saved.

Everything is decided on the device; no function waits for it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from poise.errors import ArtifactError
from poise.settings import TrainingConfig
from poise.training.muon import Muon

_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_RECENT = 256  # norms whose quantile bounds the next
_ENOUGH = 32  # norms before which nothing is bounded
_BOUNDS = {"value": 1.0, "norm": 1.0, "adaptive": 0.01, "quantile": 0.9}
_SMALLEST = 1e-3  # norm of a tensor's weights below which adaptive clipping takes this (NFNets)


def build_optimizer(denoiser: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    """The optimiser of all weights, as the settings say.

    Penalties (`l1`, `l2`, `weight_decay`) are for matrices and kernels whose stored size is free:
    gains, biases and weights that are brought back to unit size stay out. Muon takes the matrices
    and kernels inside blocks, kernels as [out, rest]; what leads into the network, out of it, or
    knows labels and noise is Adam's.
    """
    weights = dict(denoiser.named_parameters())
    if settings.optimizer == "sgd":
        momentum = 0.9 if settings.momentum is None else settings.momentum
        groups = _groups(denoiser, settings)
        sgd = torch.optim.SGD(groups, lr=settings.lr, momentum=momentum, fused=True)
        if momentum:  # torch takes memory as it is for momentum if the first step is left out
            for weight in weights.values():
                sgd.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        return sgd
    if settings.optimizer == "rmsprop":
        return _rmsprop(denoiser, settings)
    adam: dict[str, Any] = {"lr": settings.lr, "betas": settings.betas, "eps": settings.eps}
    if settings.optimizer == "muon":
        momentum = 0.95 if settings.momentum is None else settings.momentum
        return Muon(_groups(denoiser, settings, muon=True), momentum, **adam)
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(_groups(denoiser, settings), **adam, fused=True)
    return torch.optim.Adam(_groups(denoiser, settings), **adam, fused=True)


def apply_gradients(optimizer: torch.optim.Optimizer, lr: float, applied: Tensor) -> None:
    """Step, or leave weights and optimiser as they are where `applied` is false.

    The fused kernels of Adam, AdamW and SGD take the flag as a gradient scaler passes it,
    `found_inf`. RMSprop and Muon have no such kernel: weights and moments are copied before the
    step and put back, which costs that memory and two passes over it. Update clipping keeps a copy
    of the weights.

    Args:
        optimizer: of `build_optimizer`; its weights hold gradients, which penalties are added to.
        lr: the rate, >= 0.
        applied: [] bool, on the weights' device.
    """
    clipped: list[tuple[Tensor, Tensor, dict[str, Any]]] = []
    for group in optimizer.param_groups:
        group["lr"] = lr
        weights = [w for w in group["params"] if w.grad is not None]
        if group.get("update_clip"):
            clipped += [(w, w.detach().clone(), group) for w in weights]
        if weights:
            _penalise_(weights, group)
    kept: list[tuple[Tensor, Tensor]] = []
    if optimizer.defaults.get("fused"):
        optimizer.found_inf = (~applied).to(torch.float32)  # type: ignore[attr-defined]
        optimizer.grad_scale = None  # type: ignore[attr-defined]
        _decay_(optimizer, lr, applied)
    else:
        kept = [(t, t.clone()) for t in _tensors(optimizer)]
        _decay_(optimizer, lr, torch.ones_like(applied))
    optimizer.step()
    with torch.no_grad():
        for tensor, old in kept:
            tensor.copy_(torch.where(applied, tensor, old))
        for weight, old, group in clipped:
            factor = _update_factor(weight, optimizer.state[weight], group)
            shorter = applied & (factor < 1)  # elsewhere every bit stays, down to the sign of zero
            weight.copy_(torch.where(shorter, torch.lerp(old, weight, factor), weight))


@dataclass(frozen=True)
class ClipState:
    """The recent norms of gradients, for `grad_clip = "quantile"`; part of a checkpoint."""

    norms: Tensor  # [256], infinite where there is none yet
    count: Tensor  # [] int64, norms taken in since the start

    @classmethod
    def fresh(cls, device: torch.device) -> "ClipState":
        """Before the first update."""
        return cls(
            torch.full((_RECENT,), torch.inf, device=device),
            torch.zeros((), dtype=torch.int64, device=device),
        )

    def limit(self, quantile: float) -> Tensor:
        """The quantile of the recent norms, []; infinite while there are fewer than 32."""
        known = self.count.clamp(max=_RECENT)
        place = quantile * (known - 1).clamp(min=0)
        low = place.long()
        ranked = self.norms.sort().values
        pair = ranked.index_select(0, torch.stack([low, (low + 1).clamp(max=_RECENT - 1)]))
        above = torch.where(low + 1 < known, pair[1], pair[0])
        return torch.where(known < _ENOUGH, torch.inf, pair[0].lerp(above, place - low))

    def take_(self, norm: Tensor, applied: Tensor | None = None) -> None:
        """Take in a norm [], unless it is not finite or its update is not `applied`."""
        good = norm.isfinite() if applied is None else norm.isfinite() & applied
        here = torch.arange(_RECENT, device=norm.device) == self.count % _RECENT
        self.norms.copy_(torch.where(good & here, norm, self.norms))
        self.count.add_(good)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name."""
        return {"norms": self.norms, "count": self.count}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with what `tensors` gave; KeyError where a name is missing."""
        self.norms.copy_(tensors["norms"])
        self.count.copy_(tensors["count"])


@torch.no_grad()
def clip_gradients_(
    weights: Iterable[Tensor],
    settings: TrainingConfig,
    state: ClipState,
    norms: Tensor,
    applied: Tensor | None = None,
) -> None:
    """Normalise and bound the gradients in place, as the settings say; by default nothing is done.

    `value` and `norm` are torch's; `adaptive` bounds |G| by a share of max(|W|, 1e-3), tensor by
    tensor (Brock et al. 2021, Eq. 3, there unit by unit); `quantile` bounds the norm by a quantile
    of the last 256 before it (Seetharaman et al. 2020, AutoClip). Normalising comes first.

    Args:
        weights: T of them, with gradients or without.
        settings: `grad_clip`, `grad_clip_at`, `grad_normalise`.
        state: changed by `quantile` alone.
        norms: [T] norms of the gradients as they came; 0 where there is none.
        applied: [] bool; false: the norm is not remembered. None: it is, if finite.
    """
    kind, total = settings.grad_clip, norms.norm()
    if kind == "none" and not settings.grad_normalise:
        return
    rows = [(i, w) for i, w in enumerate(weights) if w.grad is not None]
    grads = [w.grad for _, w in rows if w.grad is not None]
    if not grads:
        return
    bound = _BOUNDS.get(kind, 1.0) if settings.grad_clip_at is None else settings.grad_clip_at
    if settings.grad_normalise:
        scale = 1 / total.clamp(min=torch.finfo(total.dtype).tiny)
        torch._foreach_mul_(grads, scale)
        norms = norms * scale
    if kind == "value":
        torch._foreach_clamp_min_(grads, -bound)
        torch._foreach_clamp_max_(grads, bound)
    elif kind == "norm":
        torch._foreach_mul_(grads, (bound / (total + 1e-6)).clamp(max=1))
    elif kind == "quantile":
        limit = state.limit(bound)
        torch._foreach_mul_(grads, (limit / total).nan_to_num(nan=1.0).clamp(max=1))
        state.take_(total, applied)
    elif kind == "adaptive":
        sizes = torch.stack(torch._foreach_norm([w.detach() for _, w in rows]))
        limits = bound * sizes.clamp(min=_SMALLEST)
        own = torch.stack([norms[i] for i, _ in rows])
        scales = (limits / own.clamp(min=1e-6)).clamp(max=1)
        torch._foreach_mul_(grads, list(scales.unbind()))


def second_moments(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]
) -> list[Tensor] | None:
    """Running means of squared gradients in the order of `weights`, as the optimiser holds them.

    They are not corrected for their start from zero. A weight without one (a matrix of Muon, a
    weight that never had a gradient) has a NaN []. None: no weight has one (SGD, or Adam before
    its first update).
    """
    found = [_second_moment(optimizer.state.get(w, {})) for w in weights.values()]
    if all(moment is None for moment in found):
        return None
    return [
        torch.full((), torch.nan, device=weight.device) if moment is None else moment
        for moment, weight in zip(found, weights.values(), strict=True)
    ]


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The optimiser's state as `kind/weight` -> tensor; none before the first update of Adam.

    After it, a weight that never had a gradient is written as zeros, which is what it starts from:
    a file is complete or it is not.
    """
    if not any(optimizer.state.get(weight) for weight in weights.values()):
        return {}
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        held = optimizer.state.get(weight) or {}
        for key in _keys(optimizer, weight):
            found[f"{key}/{name}"] = held[key] if key in held else _zeros(key, weight)
    return found


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Take over what `optimizer_tensors` gave, on the weights' device and in their memory layout.

    Args:
        optimizer: built with the same settings.
        weights: its weights by name.
        tensors: `kind/weight` -> tensor; none: the state before the first update.

    Raises:
        ArtifactError: tensors are missing, too many or of another shape; nothing was changed.
    """
    lazy = isinstance(optimizer, torch.optim.Adam)  # also AdamW: no state before the first step
    expected = {
        f"{key}/{name}": (weight, key)
        for name, weight in weights.items()
        for key in _keys(optimizer, weight)
    }
    if lazy and not tensors:
        optimizer.state.clear()
        return
    missing, unknown = sorted(expected.keys() - tensors), sorted(tensors.keys() - expected)
    if missing or unknown:
        raise ArtifactError(
            f"The optimiser's state lacks {len(missing)} tensors ({', '.join(missing[:3])}) and "
            f"holds {len(unknown)} of another optimiser ({', '.join(unknown[:3])}).",
            expected=f"{len(expected)} tensors, as training.optimizer has them",
            remedy="Resume with the settings of the run's config.toml, or from another checkpoint.",
        )
    for name, (weight, key) in expected.items():
        shape = [] if key == "step" else list(weight.shape)
        if list(tensors[name].shape) != shape:
            raise ArtifactError(
                f"The optimiser's {name} has the shape {list(tensors[name].shape)}.",
                expected=f"{shape}",
                remedy="Resume with the settings of the run's config.toml.",
            )
    for name, (weight, key) in expected.items():
        optimizer.state[weight][key] = _zeros(key, weight).copy_(tensors[name])


def _groups(
    denoiser: nn.Module, settings: TrainingConfig, *, muon: bool = False
) -> list[dict[str, Any]]:
    """Groups of weights with what is done to each; one of all unless something parts them."""
    penalties = settings.l1 or settings.l2 or settings.weight_decay
    forced = {
        f"{name}.weight"
        for name, module in denoiser.named_modules()
        if getattr(module, "forced", 0)
    }
    groups: dict[tuple[bool, bool], dict[str, Any]] = {}
    for name, weight in denoiser.named_parameters():
        free = bool(penalties) and weight.ndim >= 2 and name not in forced
        inner = muon and weight.ndim >= 2 and name.count(".") >= 4  # network.dec.4x4_in0.qkv.weight
        group = groups.setdefault((free, inner), {"params": []})
        group["params"].append(weight)
        fused_decay = settings.optimizer == "adamw"
        group |= {
            "muon": inner,
            "update_clip": settings.update_clip and not inner,
            "l1": settings.l1 * free,
            "l2": settings.l2 * free,
            "decay": 0.0 if fused_decay else settings.weight_decay * free,
            "weight_decay": settings.weight_decay * free if fused_decay else 0.0,
        }
    return list(groups.values())


def _rmsprop(denoiser: nn.Module, settings: TrainingConfig) -> torch.optim.Optimizer:
    weights = list(denoiser.parameters())
    optimizer = torch.optim.RMSprop(
        _groups(denoiser, settings),
        lr=settings.lr,
        alpha=settings.betas[1],
        eps=settings.eps,
        momentum=settings.momentum or 0.0,
        foreach=True,
        capturable=weights[0].device.type == "cuda",  # its count of steps stays on the device
    )
    for weight in weights:  # there before the first step, so that it can be put back
        optimizer.state[weight] |= {key: _zeros(key, weight) for key in _keys(optimizer, weight)}
    return optimizer


@torch.no_grad()
def _penalise_(weights: list[Tensor], group: Mapping[str, Any]) -> None:
    grads = [w.grad for w in weights if w.grad is not None]
    values = [w.detach() for w in weights]
    if group.get("l2"):
        torch._foreach_add_(grads, values, alpha=group["l2"])
    if group.get("l1"):
        torch._foreach_add_(grads, torch._foreach_sign(values), alpha=group["l1"])


@torch.no_grad()
def _decay_(optimizer: torch.optim.Optimizer, lr: float, applied: Tensor) -> None:
    """Decoupled decay, w <- w - lr decay w (Loshchilov and Hutter 2019), where it is applied."""
    for group in optimizer.param_groups:
        weights = [w.detach() for w in group["params"] if w.grad is not None]
        if weights and group.get("decay"):
            factor = torch.where(applied, 1 - lr * group["decay"], 1.0)
            torch._foreach_mul_(weights, factor)


def _update_factor(weight: Tensor, held: Mapping[str, Any], group: Mapping[str, Any]) -> Tensor:
    """1 / max(1, RMS_t) of a tensor, []; RMS_t as in Wortsman et al. 2023, Algorithm 2."""
    moment, grad = _second_moment(held), weight.grad
    assert moment is not None and grad is not None
    if "exp_avg_sq" in held:
        moment = moment / (1 - group["betas"][1] ** held["step"])
    ratio = grad.square() / moment.clamp(min=group["eps"] ** 2)
    return 1 / ratio.mean().sqrt().clamp(min=1)


def _second_moment(held: Mapping[str, Any]) -> Tensor | None:
    found: Tensor | None = held.get("exp_avg_sq", held.get("square_avg"))
    return found


def _tensors(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every weight and all of its state."""
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    held = [t for w in weights for t in optimizer.state.get(w, {}).values()]
    return [w.detach() for w in weights] + [t for t in held if isinstance(t, Tensor)]


def _keys(optimizer: torch.optim.Optimizer, weight: Tensor) -> tuple[str, ...]:
    """What the optimiser holds of a weight once it has been updated."""
    momentum = optimizer.param_groups[0].get("momentum")
    if isinstance(optimizer, torch.optim.SGD):
        return ("momentum_buffer",) if momentum else ()
    if isinstance(optimizer, torch.optim.RMSprop):
        return ("square_avg", "step", *(("momentum_buffer",) if momentum else ()))
    if isinstance(optimizer, Muon) and "momentum_buffer" in optimizer.state.get(weight, {}):
        return ("momentum_buffer",)
    return _MOMENTS


def _zeros(key: str, weight: Tensor) -> Tensor:
    """What a state starts from."""
    if key == "step":
        return torch.zeros((), dtype=torch.float32, device=weight.device)
    return torch.zeros_like(weight, memory_format=torch.preserve_format).detach()
