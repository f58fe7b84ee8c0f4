"""A feature space learnt from the training images, for whatever they show.

With classes a small convolutional network learns to tell them apart: its last activations are the
features, and its head says which class an image shows. Without, a dictionary of patches is learnt
(see `patches`). Both know more of what images show than pixels and fixed filters do.
"""

import contextlib
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poise.artifacts import load_tensors, save_tensors
from poise.errors import ArtifactError, DataError, UsageError
from poise.evaluation.extractors.classifier import (
    classifier_activations,
    fit_classifier,
    held_back,
)
from poise.evaluation.extractors.patches import learn_patches, patch_activations

Progress = Callable[[int, int], None]

_FORMAT = 1  # raised when the same weights would give other features
_SMALLEST, _LARGEST = 8, 64  # sides; larger images are reduced
_CACHE = 2**29  # bytes of reduced images that training keeps in memory
_SPREAD = 0.5  # standard deviation of the features, as in `fixed`
_FLOOR = 0.01  # of the usual standard deviation: quieter features are not amplified beyond it
_LONGEST, _SHORTEST, _EPOCHS = 150_000, 20_000, 30  # images seen, unless told otherwise
_STANDARD = 10_000  # images on which the features are standardised
_LOOKED_AT = 10_000  # images from which features are learnt without classes
_FEWEST = 10  # images
_STILL = 0.5  # share of constant features from which on something must be wrong


class Images(Protocol):
    """uint8 [N, C, H, W], indexed like an array: in memory or mapped."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]: ...


@final
@dataclass(eq=False)
class Encoder:
    """A trained feature space, and with classes the probe that names them.

    Attributes:
        shape: (C, H, W) of the images it takes.
        weights: with classes "convolution0" [O, I, 3, 3] and "bias0" [O] and so on, norms folded
            in, "head" [K, D] and "head_bias" [K]; without, those of `learn_patches`. "mean" and
            "scale" [D] standardise the features.
        confusion: [true][named], counts of held-back training images; empty without classes.
        images_seen: images through the network in training.
        note: a sentence if too little was learnt to rely on, else empty.
        digest: short hash of the weights and of what else decides the features.
        resizer: how images reach the size that the network sees.
    """

    shape: tuple[int, int, int]
    weights: Mapping[str, Tensor]
    confusion: tuple[tuple[int, ...], ...] = ()
    images_seen: int = 0
    note: str = ""
    name: str = field(default="domain", init=False)
    digest: str = field(init=False)
    resizer: str = field(init=False)

    def __post_init__(self) -> None:
        sha = hashlib.sha256(repr((_FORMAT, self.shape, _LARGEST)).encode())
        for name in sorted(self.weights):
            sha.update(name.encode() + self.weights[name].cpu().numpy().tobytes())
        self.digest = sha.hexdigest()[:12]
        large = max(self.shape[1:]) > _LARGEST
        self.resizer = f"bilinear antialias to {_LARGEST}" if large else "none"

    @property
    def num_classes(self) -> int:
        """0 without a head."""
        return len(self.weights["head"]) if "head" in self.weights else 0

    @property
    def recall(self) -> tuple[float, ...]:
        """Share of each class's held-back images that the probe names rightly; nan for none."""
        rows = enumerate(self.confusion)
        return tuple(row[k] / sum(row) if sum(row) else math.nan for k, row in rows)

    @property
    def accuracy(self) -> float:
        """Mean of `recall` over the classes that have any: chance is 1/K. nan without classes."""
        known = [share for share in self.recall if not math.isnan(share)]
        return sum(known) / len(known) if known else math.nan

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W] -> float32 [B, D], on the images' device.

        Raises:
            DataError: images of another shape than those of the training.
        """
        mean, scale = (self.weights[name].to(images.device) for name in ("mean", "scale"))
        return (self.activations(images) - mean) * scale

    def classify(self, images: Images, batch: int = 256) -> NDArray[np.float64]:
        """Log-probabilities [N, K] of the classes, all taken as equally frequent beforehand.

        Args:
            images: uint8 [N, C, H, W].
            batch: images per call; changes speed and memory, and figures by rounding only.

        Raises:
            DataError: images of another shape than those of the training.
            UsageError: it was trained without classes.
        """
        if not self.num_classes:
            raise UsageError(
                "a feature space that was trained without classes names none",
                expected="an encoder trained with labels",
            )
        parts = []
        with torch.inference_mode():
            for start in range(0, len(images), batch):
                x = torch.from_numpy(np.array(images[start : start + batch]))
                logits = self.activations(x).double() @ self.weights["head"].double().T
                parts.append((logits + self.weights["head_bias"].double()).log_softmax(1).numpy())
        return np.concatenate(parts)

    def activations(self, images: Tensor) -> Tensor:
        """The features before they are standardised."""
        if tuple(images.shape[1:]) != self.shape:
            raise DataError(
                f"images of shape {tuple(images.shape[1:])} for features learnt from {self.shape}",
                expected="channels, height and width of the training images",
            )
        x = _scaled(_reduced(images))
        if not self.num_classes:
            return patch_activations(x, self.weights)
        return classifier_activations(x, self.weights)

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and plain data, as `poise.artifacts.save_tensors` takes them."""
        return dict(self.weights), {
            "encoder": _FORMAT,
            "shape": list(self.shape),
            "confusion": [list(row) for row in self.confusion],
            "images_seen": self.images_seen,
            "note": self.note,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> "Encoder":
        """What `to_tensors` gave.

        Raises:
            ArtifactError: they are not an encoder's, or of another version.
        """
        try:
            if meta["encoder"] != _FORMAT:
                raise ValueError(f"version {meta['encoder']}")
            C, H, W = (int(side) for side in meta["shape"])
            rows = tuple(tuple(int(n) for n in row) for row in meta["confusion"])
            seen, note = int(meta["images_seen"]), str(meta["note"])
            encoder = cls((C, H, W), dict(tensors), rows, seen, note)
            encoder(torch.zeros(1, C, H, W, dtype=torch.uint8))
        except (KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
            raise ArtifactError(
                f"What a file holds is no encoder: {error}.", expected=f"format {_FORMAT}"
            ) from None
        return encoder


def cached_encoder(folder: Path, key: str, make: Callable[[], Encoder]) -> Encoder:
    """The encoder kept as `folder`/encoder-`key`.safetensors, or a new one that is kept there.

    A file that is damaged, or of another version, is replaced.

    Args:
        folder: made if there is none.
        key: stands for all that decides the encoder: data, split, settings. Letters, digits, -, _.
        make: trains one.

    Raises:
        UsageError: a key that cannot be part of a name.
    """
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,128}", key):
        raise UsageError(f"the key {key!r} of an encoder", expected="letters, digits, - and _")
    path = folder / f"encoder-{key}.safetensors"
    with contextlib.suppress(ArtifactError):  # absent or damaged: made anew
        return Encoder.from_tensors(*load_tensors(path))
    tensors, meta = make().to_tensors()
    with contextlib.suppress(ArtifactError):  # where nothing can be kept, it is made each time
        save_tensors(path, tensors, meta)
    # As it will be read: another order of the same numbers in memory rounds apart.
    plain = {n: t.clone(memory_format=torch.contiguous_format) for n, t in tensors.items()}
    return Encoder.from_tensors(plain, meta)


def train_encoder(
    images: Images,
    labels: NDArray[np.int64] | None,
    num_classes: int,
    *,
    flips: bool = False,
    images_seen: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Encoder:
    """Learn a feature space from training images, on the CPU.

    With two classes or more: cross-entropy on shifted (and flipped) images, with the logarithms of
    the class frequencies added to the logits (Menon et al. 2021, eq. 10), so that rare classes are
    named as readily as frequent ones. A tenth of each class is held back and judges the probe.
    The same bits for the same images, seed and number of threads; other threads or another
    processor round differently.

    Args:
        images: uint8 [N, C, H, W], sides from 8 on; above 64 they are reduced, and only as many
            as fit into 512 MiB then are used.
        labels: [N], 0 to num_classes - 1, or None.
        num_classes: below 2 the labels are not used.
        flips: whether mirrored images show the same classes; of no use without classes.
        images_seen: length of the training; None: 30 times the images, at least 20,000 and at
            most 150,000. Without classes, how many images at most are looked at (None: 10,000).
        seed: decides weights, order and augmentation.
        progress: called with (images seen, images in all).

    Raises:
        DataError: fewer than 10 images, or sides below 8.
        UsageError: labels that do not fit the images or the classes, or no images to be seen.
    """
    labels = labels if num_classes > 1 else None
    _check(images, labels, num_classes, images_seen)
    shape = _shape(images)
    images, labels = _in_reach(images, labels)
    if labels is None:
        seen = min(images_seen or _LOOKED_AT, len(images))
        encoder = _learn_without(images, seen, seed, progress)
    else:
        seen = images_seen or min(max(_EPOCHS * len(images), _SHORTEST), _LONGEST)
        encoder = _learn_classes(images, labels, num_classes, seen, flips, seed, progress)
    return replace(encoder, shape=shape)


def weak_below(num_classes: int) -> float:
    """Mean recall below which a probe of so many classes says nothing: twice what guesses reach.

    For few classes, where that cannot be asked, half way from guesses to no error.
    """
    return min(2 / num_classes, (1 + 1 / num_classes) / 2)


def _learn_classes(
    images: Images,
    labels: NDArray[np.int64],
    num_classes: int,
    seen: int,
    flips: bool,
    seed: int,
    progress: Progress | None,
) -> Encoder:
    """The encoder of images with classes, with what it makes of those held back."""
    held = held_back(labels, num_classes, seed)
    rest = np.setdiff1d(np.arange(len(images)), held)
    weights = fit_classifier(
        lambda part: _scaled(torch.from_numpy(_rows(images, part))),
        labels,
        rest,
        num_classes,
        seen=seen,
        flips=flips,
        seed=seed,
        progress=progress,
    )
    encoder = _standardised(Encoder(_shape(images), weights, images_seen=seen), images, rest)
    named = [encoder.classify(_rows(images, part)).argmax(1) for part in _chunks(held)]
    confusion = np.zeros((num_classes, num_classes), np.int64)
    for part, found in zip(_chunks(held), named, strict=True):
        np.add.at(confusion, (labels[part], found), 1)
    encoder = replace(encoder, confusion=tuple(tuple(row) for row in confusion.tolist()))
    if encoder.accuracy >= weak_below(num_classes):
        return encoder
    note = "No class has five images: how well the probe names them is not known."
    if len(held):
        note = (
            f"The probe names {encoder.accuracy:.0%} of held-back training images rightly, where "
            f"guesses reach {1 / num_classes:.0%}: it learnt too little to judge samples."
        )
    return replace(encoder, note=note)


def _check(
    images: Images, labels: NDArray[np.int64] | None, num_classes: int, images_seen: int | None
) -> None:
    if len(images.shape) != 4 or len(images) < _FEWEST or min(images.shape[2:]) < _SMALLEST:
        raise DataError(
            f"images of shape {tuple(images.shape)} to learn features from",
            expected=f"[N, C, H, W], at least {_FEWEST} with sides of at least {_SMALLEST}",
            remedy="use the features 'pixels'",
        )
    if images_seen is not None and images_seen < 1:
        raise UsageError(f"a training of {images_seen} images", expected="at least 1")
    if labels is None:
        return
    if len(labels) != len(images) or labels.min() < 0 or labels.max() >= num_classes:
        raise UsageError(
            f"{len(labels)} labels from {labels.min()} to {labels.max()} for {len(images)} images",
            expected=f"one each, from 0 to {num_classes - 1}",
        )


def _learn_without(images: Images, seen: int, seed: int, progress: Progress | None) -> Encoder:
    """The encoder of images without classes."""
    rows = _spread(len(images), seen)
    weights = learn_patches(
        lambda part: _scaled(torch.from_numpy(_rows(images, part))),
        rows,
        seed,
        lambda share: progress(round(share * seen), seen) if progress else None,
    )
    encoder = _standardised(Encoder(_shape(images), weights, images_seen=seen), images, rows)
    still = float((encoder.weights["scale"] == 0).float().mean())
    note = f"{still:.0%} of the features are the same for all training images."
    return replace(encoder, note=note) if still > _STILL else encoder


def _standardised(encoder: Encoder, images: Images, rows: NDArray[np.int64]) -> Encoder:
    """The encoder with mean and scale such that its features of these images have spread 0.5."""
    chosen = rows[_spread(len(rows), _STANDARD)]
    with torch.inference_mode():
        parts = [
            encoder.activations(torch.from_numpy(_rows(images, part))) for part in _chunks(chosen)
        ]
    std, mean = torch.std_mean(torch.cat(parts).double(), 0, correction=0)
    least = _FLOOR * float(std.square().mean().sqrt())
    scale = torch.where(std > 1e-6, _SPREAD / std.clamp(min=max(least, 1e-6)), 0)
    weights = {**encoder.weights, "mean": mean.float(), "scale": scale.float()}
    return replace(encoder, weights=weights)


def _shape(images: Images) -> tuple[int, int, int]:
    C, H, W = (int(side) for side in images.shape[1:])
    return C, H, W


def _in_reach(
    images: Images, labels: NDArray[np.int64] | None
) -> tuple[Images, NDArray[np.int64] | None]:
    """The images as the network sees them: as they are, or reduced copies of as many as fit."""
    if max(images.shape[2:]) <= _LARGEST:
        return images, labels
    rows = _spread(len(images), _CACHE // (int(images.shape[1]) * _LARGEST**2))
    step = max(1, 2**26 // math.prod(images.shape[1:]))
    parts = [
        _reduced(torch.from_numpy(np.array(images[rows[i : i + step]]))).numpy()
        for i in range(0, len(rows), step)
    ]
    return np.concatenate(parts), None if labels is None else labels[rows]


def _reduced(images: Tensor) -> Tensor:
    """uint8 [B, C, H, W] with the longer side at most 64."""
    long = max(images.shape[2:])
    if long <= _LARGEST:
        return images
    size = [max(_SMALLEST, round(side * _LARGEST / long)) for side in images.shape[2:]]
    x = functional.interpolate(images.float(), size, mode="bilinear", antialias=True)
    return x.round_().clamp_(0, 255).to(torch.uint8)


def _scaled(images: Tensor) -> Tensor:
    """uint8 -> float32 in [-1, 1], laid out as convolutions on a CPU are fastest."""
    x = images.to(torch.float32) / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def _rows(images: Images, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(images[rows])


def _chunks(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [rows[start : start + 256] for start in range(0, len(rows), 256)]


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """Up to `most` numbers below n, evenly spaced."""
    count = min(n, max(most, 1))
    return np.arange(count, dtype=np.int64) * n // count
