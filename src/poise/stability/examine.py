"""A close look at one suspicious update: where a number went bad, and whether the gradient is one.

Made on demand. It computes the update once more and leaves the state as it is, to the last bit.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import denoising_loss
from poise.diffusion.noise import Noised
from poise.runtime import seed_at
from poise.settings import Config
from poise.stability.probes import difference
from poise.stability.undisturbed import Hook, hooked, undisturbed
from poise.training.inputs import check_inputs, mended_labels
from poise.training.loop import (
    StepRecord,
    TrainState,
    gradients_again,
    noised_batch,
    weighting_of,
    weights_of,
)

_STEP = 1e-3  # first length of the test step, relative to the weights
_SMALL, _CURVED = 1e-5, 0.1  # change of the loss that rounding hides; share that is curvature
_TRIES = 8
_ABSURD = 1e4  # times the root mean square of the other weights of its tensor
_NEAR = 4  # images on each side with a similar noise level, of which one is expected to be like


@dataclass(frozen=True)
class Examination:
    """What was found about one update."""

    images_seen: int  # after the update
    input_finite: bool  # images and noise as the network gets them
    first_bad_layer: str | None  # gives out what is not finite, though what it gets is finite
    overflowed: bool  # and that is infinite, and not NaN
    bad_weights: tuple[str, ...]  # tensors that are not finite
    absurd_weights: tuple[str, ...]  # finite tensors with single weights out of all proportion
    loss_finite: bool
    bad_gradients: tuple[str, ...]  # tensors whose gradient is not finite when computed once more
    was_bad: tuple[str, ...]  # the same at the update itself
    repeats: bool  # computed twice more, loss and gradients agree
    as_recorded: bool | None  # and they agree with the update; None: the weights moved since
    slope: float | None  # +1: the loss rises along its gradient as it must; -1: the gradient points
    # the wrong way; 0: it has nothing to do with the loss; None: not to be told from rounding
    ranked: tuple[tuple[int, float], ...]  # data set index and log excess of error, worst first

    @property
    def place(self) -> str | None:
        """Where numbers stop being finite: "weight", "input", "activation", "loss", "backward"."""
        if self.bad_weights:
            return "weight"
        if not self.input_finite:
            return "input"
        if self.first_bad_layer is not None:
            return "activation"
        if not self.loss_finite:
            return "loss"
        return "backward" if self.bad_gradients else None

    def to_json(self) -> dict[str, Any]:
        """Plain data, for the evidence of a sign."""
        row = {**vars(self), "place": self.place}
        finite = self.slope is None or math.isfinite(self.slope)
        row["slope"] = self.slope if finite else None
        row["ranked"] = [[i, e if math.isfinite(e) else None] for i, e in self.ranked[:8]]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}


def examine(state: TrainState, config: Config, record: StepRecord) -> Examination:
    """Compute the update of `record` again and look at every number on the way.

    Args:
        state: as it is now; best right after the update. It is left as it is.
        config: the resolved settings.
        record: the update that is suspected.
    """
    batch = record.batch
    before = record.images_seen - len(batch.images)
    names = list(weights_of(state.denoiser))
    with undisturbed(state.denoiser, training=True):
        noised, labels = _as_then(state, batch, config, before)
        loss, error, grads = gradients_again(state, batch, config, before)
        loss2, error2, grads2 = gradients_again(state, batch, config, before)
        exact = noised.x.device.type == "cpu"
        pairs = [(loss, loss2), (error, error2), *zip(grads, grads2, strict=True)]
        repeats = all(_agree(one, other, exact=exact) for one, other in pairs)
        as_recorded = None
        if not bool(record.applied) and state.images_seen == record.images_seen:
            as_recorded = _agree(error, record.error, exact=exact)
        bad = tuple(n for n, g in zip(names, grads, strict=True) if not _finite(g))
        layer, overflowed = first_bad_layer(state.denoiser, noised, labels)
        weights = weights_of(state.denoiser)
        bad_weights = tuple(n for n, w in weights.items() if not _finite(w))
        return Examination(
            images_seen=record.images_seen,
            input_finite=_finite(noised.x),
            first_bad_layer=layer,
            overflowed=overflowed,
            bad_weights=bad_weights,
            absurd_weights=tuple(n for n, w in weights.items() if _absurd(w)),
            loss_finite=_finite(loss),
            bad_gradients=bad,
            was_bad=_bad_then(record, names),
            repeats=repeats,
            as_recorded=as_recorded,
            slope=None
            if bad or bad_weights or not _finite(loss)
            else _slope(state, noised, labels, config, grads, before),
            ranked=_ranked(record),
        )


def first_bad_layer(
    denoiser: Denoiser, noised: Noised, labels: Tensor | None
) -> tuple[str | None, bool]:
    """The module that is the first to turn finite numbers into others; None: there is none.

    The flag says that these are infinities and not NaN: numbers that have become too large.

    Args:
        denoiser: its hooks, if it has any, are at work.
        noised: the images that it is given.
        labels: as the denoiser takes them.
    """
    found: list[tuple[str, bool]] = []

    def note(name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        if not found and not _all_finite(output) and _all_finite(given):
            nan = isinstance(output, Tensor) and bool(output.isnan().any())
            found.append((name, not nan))

    hooks: list[tuple[nn.Module, Hook]] = [
        (module, partial(note, name or "network"))
        for name, module in denoiser.network.named_modules()
    ]
    training = denoiser.training
    with undisturbed(denoiser, training=training), torch.no_grad(), hooked(hooks):
        denoiser(noised.x, noised.sigma, labels, noised.augment)
    return found[0] if found else (None, False)


def _as_then(
    state: TrainState, batch: Batch, config: Config, images_seen: int
) -> tuple[Noised, Tensor | None]:
    """The noisy batch of an update; labels that are none were replaced before it as well."""
    classes = state.denoiser.num_classes
    check = check_inputs(batch, num_classes=classes, limit=state.pixel_limit)
    usable = batch
    if batch.labels is not None and check.bad.any():
        usable = replace(batch, labels=mended_labels(batch.labels, check))
    device = next(state.denoiser.parameters()).device
    return noised_batch(replace(state, images_seen=images_seen), usable, config, device)


@torch.no_grad()
def _slope(
    state: TrainState,
    noised: Noised,
    labels: Tensor | None,
    config: Config,
    grads: list[Tensor | None],
    images_seen: int,
) -> float | None:
    """The loss's own slope along the gradient, divided by the gradient's length.

    Central differences of the plain loss in fp32. The step begins as a thousandth of the weights
    and shrinks until the loss is straight along it; it does not depend on the gradient's length, so
    that a gradient that was scaled by s gives 1 / s.
    """
    weights = list(weights_of(state.denoiser).values())
    moved = [(w, g) for w, g in zip(weights, grads, strict=True) if g is not None]
    length = torch.linalg.vector_norm(
        torch.stack([torch.linalg.vector_norm(g.double()) for _, g in moved])
    ).item()
    size = math.sqrt(sum(float(w.double().square().sum()) for w in weights))
    if length == 0:
        return 0.0
    copies = [w.clone() for w, _ in moved]
    kept = state.denoiser.dtype
    state.denoiser.dtype = torch.float32
    loss = partial(_loss, state, noised, labels, config, images_seen)
    try:
        middle = loss()
        h = _STEP * size
        for _ in range(_TRIES):
            ends = []
            for side in (h, -h):
                for (w, g), copy in zip(moved, copies, strict=True):
                    w.copy_(copy + g * (side / length))
                ends.append(loss())
            change, bend = ends[0] - ends[1], ends[0] + ends[1] - 2 * middle
            if abs(change) < _SMALL * _scale(noised, middle):
                return None
            if math.isfinite(bend) and abs(bend) <= _CURVED * abs(change):
                return float(change / (2 * h * length))
            h /= 4
        return None
    finally:
        state.denoiser.dtype = kept
        for (w, _), copy in zip(moved, copies, strict=True):
            w.copy_(copy)


def _scale(noised: Noised, loss: float) -> float:
    """What rounding is relative to: the loss may be near zero while its parts are not."""
    return max(abs(loss), 0.1 * noised.clean[0].numel())


def _loss(
    state: TrainState, noised: Noised, labels: Tensor | None, config: Config, images_seen: int
) -> float:
    """What the gradients are those of: mean over images, sum over pixels; in pieces as they are."""
    if config.model.dropout:
        torch.manual_seed(seed_at(config.seed, images_seen, "dropout"))
    total, pixels = len(noised.clean), noised.clean[0].numel()
    micro = state.micro_batch or config.training.micro_batch or total
    summed = 0.0
    for i in range(0, total, micro):
        part = slice(i, i + micro)
        rows = None if labels is None else labels[part]
        result = denoising_loss(
            state.denoiser, noised.part(part), rows, weighting_of(config.diffusion)
        )
        summed += float(result.weighted.double().sum())
    return summed * pixels / total


def _bad_then(record: StepRecord, names: list[str]) -> tuple[str, ...]:
    if record.vitals is None:
        return ()
    norms = record.vitals.grad_norms.tolist()
    return tuple(n for n, norm in zip(names, norms, strict=True) if not math.isfinite(norm))


def _ranked(record: StepRecord) -> tuple[tuple[int, float], ...]:
    """Images by the log of their error over that of images at similar noise levels."""
    order = record.sigma.argsort().tolist()
    error = record.error.double().nan_to_num(math.inf, math.inf, math.inf).clamp(min=1e-30).log()
    indices = record.indices.tolist()
    found = []
    for place, row in enumerate(order):
        low = max(0, min(place - _NEAR, len(order) - 2 * _NEAR - 1))
        near = [r for r in order[low : low + 2 * _NEAR + 1] if r != row]
        usual = error[near].median().item() if near else 0.0
        own = error[row].item()
        excess = math.inf if own == math.inf else own - usual
        found.append((int(indices[row]), excess))
    return tuple(sorted(found, key=lambda pair: -pair[1]))


def _absurd(weight: Tensor) -> bool:
    """One weight that dwarfs all others of its tensor."""
    w = weight.detach().abs().flatten()
    if w.numel() < 8 or not _finite(w):
        return False
    top = w.max()
    rest = (w.double().square().sum() - top.double().square()).clamp(min=0)
    return bool(top > _ABSURD * (rest / (w.numel() - 1)).sqrt() + 1e-30)


def _agree(one: Tensor | None, other: Tensor | None, *, exact: bool) -> bool:
    if one is None or other is None:
        return one is other
    return difference(one, other) <= (0.0 if exact else 1e-3)


def _finite(x: Tensor | None) -> bool:
    return x is None or bool(x.detach().isfinite().all())


def _all_finite(value: Any) -> bool:
    """Of tensors, alone or in tuples; whatever else there is counts as finite."""
    if isinstance(value, tuple | list):
        return all(_all_finite(part) for part in value)
    return not isinstance(value, Tensor) or not value.is_floating_point() or _finite(value)
