"""A small convolutional network that tells classes apart, trained in minutes on a CPU."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from poise.data.augment import classifier_augment
from poise.runtime import generator_at

_WIDTHS = (1, 2, 4, 4, 4)  # of the levels, in units of the first
_RESIDUAL, _POOLED = (3,), (0, 1, 3)  # levels that keep their input; that end at half the side
_BATCH = 128
_LR, _DECAY, _WARM = 3e-3, 0.02, 0.1  # of AdamW; share of the training in which the rate rises
_CLIP = 1.0  # largest norm of the gradient
_HELD_BACK = 10  # one of so many images judges what was learnt


def fit_classifier(
    images: Callable[[NDArray[np.int64]], Tensor],
    labels: NDArray[np.int64],
    rows: NDArray[np.int64],
    num_classes: int,
    *,
    seen: int,
    flips: bool,
    seed: int,
    progress: Callable[[int, int], None] | None,
) -> dict[str, Tensor]:
    """Weights of a classifier trained on the images of some rows.

    Args:
        images: float32 [B, C, H, W] in [-1, 1] of given rows; sides from 8 to 64.
        labels: [N], of all rows.
        rows: the images to train on.
        num_classes: K.
        seen: images in the course of the training.
        flips: whether mirrored images show the same classes.
        seed: decides weights, order and augmentation.
        progress: called with (images seen, images in all).

    Returns:
        "convolution0" [O, I, 3, 3] and "bias0" [O] to "bias4", with the norms folded in, "head"
        [K, D] and "head_bias" [K].
    """
    first = images(rows[:1])
    layers, head = _build(first.shape, num_classes, seed)
    parameters = [p for layer in (*layers, head) for p in layer.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=_LR, weight_decay=_DECAY)
    counts = np.bincount(labels[rows], minlength=num_classes)
    prior = torch.from_numpy(np.log(np.maximum(counts, 1) / counts.sum())).float()
    batch = min(_BATCH, len(rows))
    steps = max(1, seen // batch)
    for step in range(steps):
        part = _drawn(rows, step, batch, seed)
        generator = generator_at(seed, step, "encoder augmentation")
        x = images(part)
        x = classifier_augment(x, generator, flip=flips, crop=min(x.shape[2:]) // 8)
        x = x.contiguous(memory_format=torch.channels_last)
        logits = head(_forward(x, layers)) + prior  # the head alone takes classes as equally likely
        loss = functional.cross_entropy(logits, torch.from_numpy(labels[part]))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, _CLIP)
        optimizer.param_groups[0]["lr"] = _LR * _rate(step / steps)
        optimizer.step()
        if progress:
            progress((step + 1) * batch, steps * batch)
    return _folded(layers, head)


def held_back(labels: NDArray[np.int64], num_classes: int, seed: int) -> NDArray[np.int64]:
    """A tenth of each class, at least one of five images, ascending."""
    held = []
    for k in range(num_classes):
        own = np.flatnonzero(labels == k)
        order = torch.randperm(len(own), generator=generator_at(seed, k, "encoder held back"))
        count = max(len(own) // _HELD_BACK, int(len(own) >= 5))
        held.append(own[order[:count].numpy()])
    return np.sort(np.concatenate(held))


def classifier_activations(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """float32 [B, C, H, W] in [-1, 1] -> float32 [B, D], what the head reads."""

    def level(index: int) -> Callable[[Tensor], Tensor]:
        w, b = (weights[f"{kind}{index}"].to(x.device) for kind in ("convolution", "bias"))
        stride = _stride(x.shape) if index == 0 else 1
        return lambda h: functional.conv2d(h, w, b, stride, 1)

    return _forward(x, [level(index) for index in range(len(_WIDTHS))])


def _build(
    shape: Sequence[int], num_classes: int, seed: int
) -> tuple[list[nn.Sequential], nn.Linear]:
    """Levels and head with random weights; narrower for tiny images, which are soon learnt."""
    width = 32 if min(shape[2:]) >= 16 else 16
    layers, inputs = [], shape[1]
    for index, factor in enumerate(_WIDTHS):
        stride = _stride(shape) if index == 0 else 1
        convolution = nn.utils.skip_init(  # type: ignore[no-untyped-call]
            nn.Conv2d, inputs, factor * width, 3, stride=stride, padding=1, bias=False
        )
        generator = generator_at(seed, index, "encoder weights")
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu", generator=generator)
        layers.append(nn.Sequential(convolution, nn.BatchNorm2d(factor * width)))
        layers[-1].to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = factor * width
    head = nn.utils.skip_init(nn.Linear, inputs, num_classes)  # type: ignore[no-untyped-call]
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return layers, head


def _forward(x: Tensor, layers: Sequence[Callable[[Tensor], Tensor]]) -> Tensor:
    for index, layer in enumerate(layers):
        h = functional.relu(layer(x))
        x = x + h if index in _RESIDUAL else h
        if index in _POOLED and min(x.shape[2:]) >= 8:
            x = functional.max_pool2d(x, 2)
    return x.mean((2, 3))


def _stride(shape: Sequence[int]) -> int:
    return 2 if max(shape[2:]) > 32 else 1


def _drawn(rows: NDArray[np.int64], step: int, batch: int, seed: int) -> NDArray[np.int64]:
    """The batch of a step: all rows in random order, then all in another."""
    drawn = []
    position, wanted = step * batch, batch
    while wanted:
        epoch, start = divmod(position, len(rows))
        order = torch.randperm(len(rows), generator=generator_at(seed, epoch, "encoder order"))
        part = order[start : start + wanted].numpy()
        drawn.append(rows[part])
        position, wanted = position + len(part), wanted - len(part)
    return np.concatenate(drawn)


def _rate(done: float) -> float:
    """Share of the highest learning rate: a linear rise, then half a cosine."""
    if done < _WARM:
        return (done + 0.01) / (_WARM + 0.01)
    return 0.5 * (1 + math.cos(math.pi * (done - _WARM) / (1 - _WARM)))


def _folded(layers: list[nn.Sequential], head: nn.Linear) -> dict[str, Tensor]:
    """The weights of inference: what the norms do is part of the convolutions."""
    weights = {"head": head.weight.detach(), "head_bias": head.bias.detach()}
    for index, layer in enumerate(layers):
        convolution, norm = layer
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_var is not None and norm.running_mean is not None
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        w = convolution.weight.detach() * scale[:, None, None, None]
        weights[f"convolution{index}"] = w.contiguous()
        weights[f"bias{index}"] = norm.bias.detach() - norm.running_mean * scale
    return weights
