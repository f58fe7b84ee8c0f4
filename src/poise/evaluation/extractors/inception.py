"""The Inception-v3 of the Fréchet Inception distance and of the Inception score.

It is the network of TensorFlow's file inception-2015-12-05 (Szegedy et al. 2015, arXiv
1512.00567, with 1008 classes), which differs from torchvision's: other weights, average pooling
that leaves the padding out, and maximum pooling in the last block. Parameters are named as in the
files of torch-fidelity and pytorch-fid.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from poise.artifacts import digest_of
from poise.errors import ArtifactError
from poise.evaluation.extractors.fixed import as_three
from poise.evaluation.extractors.resizing import bilinear_tf1
from poise.evaluation.extractors.weights import Published, find_weights, read_weights

_SIDE, _WIDTH, _CLASSES = 299, 2048, 1008
_EPSILON = 1e-3  # of the batch normalisation
_CHUNK = 32  # images at a time: some 200 MB of activations
_PUBLISHED = Published(
    "Inception-v3 (TensorFlow, 2015-12-05)",
    files=(
        "weights-inception-2015-12-05-6726825d.pth",  # of torch-fidelity
        "pt_inception-2015-12-05-6726825d.pth",  # of pytorch-fid
    ),
    url="https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth",
)


@dataclass(frozen=True)
class _Conv:
    """A convolution without bias, batch normalisation, and the positive part."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True  # so that stride 1 keeps the size


@dataclass(frozen=True)
class _Fork:
    """Several ways from one input, side by side in the channels of the output."""

    ways: tuple[tuple["_Step", ...], ...]


_Step = _Conv | _Fork | str  # text: a pooling

_3, _1X7, _7X1, _1X3, _3X1 = (3, 3), (1, 7), (7, 1), (1, 3), (3, 1)


def _a(block: str, pooled: int) -> _Fork:
    """35 x 35 positions."""
    return _Fork(
        (
            (_Conv(f"{block}.branch1x1", 64),),
            (_Conv(f"{block}.branch5x5_1", 48), _Conv(f"{block}.branch5x5_2", 64, (5, 5))),
            (
                _Conv(f"{block}.branch3x3dbl_1", 64),
                _Conv(f"{block}.branch3x3dbl_2", 96, _3),
                _Conv(f"{block}.branch3x3dbl_3", 96, _3),
            ),
            ("mean", _Conv(f"{block}.branch_pool", pooled)),
        )
    )


def _b(block: str) -> _Fork:
    """From 35 x 35 to 17 x 17."""
    return _Fork(
        (
            (_Conv(f"{block}.branch3x3", 384, _3, 2, False),),
            (
                _Conv(f"{block}.branch3x3dbl_1", 64),
                _Conv(f"{block}.branch3x3dbl_2", 96, _3),
                _Conv(f"{block}.branch3x3dbl_3", 96, _3, 2, False),
            ),
            ("halve",),
        )
    )


def _c(block: str, width: int) -> _Fork:
    """17 x 17."""
    there_and_back = ((width, _7X1), (width, _1X7), (width, _7X1), (192, _1X7))
    return _Fork(
        (
            (_Conv(f"{block}.branch1x1", 192),),
            (
                _Conv(f"{block}.branch7x7_1", width),
                _Conv(f"{block}.branch7x7_2", width, _1X7),
                _Conv(f"{block}.branch7x7_3", 192, _7X1),
            ),
            (
                _Conv(f"{block}.branch7x7dbl_1", width),
                *(_Conv(f"{block}.branch7x7dbl_{i}", *c) for i, c in enumerate(there_and_back, 2)),
            ),
            ("mean", _Conv(f"{block}.branch_pool", 192)),
        )
    )


def _d(block: str) -> _Fork:
    """From 17 x 17 to 8 x 8."""
    return _Fork(
        (
            (
                _Conv(f"{block}.branch3x3_1", 192),
                _Conv(f"{block}.branch3x3_2", 320, _3, 2, False),
            ),
            (
                _Conv(f"{block}.branch7x7x3_1", 192),
                _Conv(f"{block}.branch7x7x3_2", 192, _1X7),
                _Conv(f"{block}.branch7x7x3_3", 192, _7X1),
                _Conv(f"{block}.branch7x7x3_4", 192, _3, 2, False),
            ),
            ("halve",),
        )
    )


def _e(block: str, pooling: str) -> _Fork:
    """8 x 8."""

    def both(name: str) -> _Fork:
        return _Fork(((_Conv(f"{name}a", 384, _1X3),), (_Conv(f"{name}b", 384, _3X1),)))

    return _Fork(
        (
            (_Conv(f"{block}.branch1x1", 320),),
            (_Conv(f"{block}.branch3x3_1", 384), both(f"{block}.branch3x3_2")),
            (
                _Conv(f"{block}.branch3x3dbl_1", 448),
                _Conv(f"{block}.branch3x3dbl_2", 384, _3),
                both(f"{block}.branch3x3dbl_3"),
            ),
            (pooling, _Conv(f"{block}.branch_pool", 192)),
        )
    )


_NETWORK: tuple[_Step, ...] = (
    _Conv("Conv2d_1a_3x3", 32, _3, 2, False),
    _Conv("Conv2d_2a_3x3", 32, _3, 1, False),
    _Conv("Conv2d_2b_3x3", 64, _3),
    "halve",
    _Conv("Conv2d_3b_1x1", 80),
    _Conv("Conv2d_4a_3x3", 192, _3, 1, False),
    "halve",
    *(_a("Mixed_5b", 32), _a("Mixed_5c", 64), _a("Mixed_5d", 64)),
    _b("Mixed_6a"),
    *(_c("Mixed_6b", 128), _c("Mixed_6c", 160), _c("Mixed_6d", 160), _c("Mixed_6e", 192)),
    _d("Mixed_7a"),
    *(_e("Mixed_7b", "mean"), _e("Mixed_7c", "largest")),
)


def _pool(x: Tensor, how: str) -> Tensor:
    if how == "mean":
        return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    if how == "largest":
        return functional.max_pool2d(x, 3, 1, 1)
    return functional.max_pool2d(x, 3, 2)


def _convolutions(steps: tuple[_Step, ...], channels: int) -> Iterator[tuple[_Conv, int]]:
    """Every convolution with the channels it sees."""
    for step in steps:
        if isinstance(step, _Conv):
            yield step, channels
            channels = step.width
        elif isinstance(step, _Fork):
            for way in step.ways:
                yield from _convolutions(way, channels)
            channels = sum(_width(way, channels) for way in step.ways)


def _width(steps: tuple[_Step, ...], channels: int) -> int:
    """Channels that come out."""
    for step in steps:
        if isinstance(step, _Conv):
            channels = step.width
        elif isinstance(step, _Fork):
            channels = sum(_width(way, channels) for way in step.ways)
    return channels


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Name and shape of all that a file of weights has to hold."""
    shapes: dict[str, tuple[int, ...]] = {}
    for conv, channels in _convolutions(_NETWORK, 3):
        shapes[f"{conv.name}.conv.weight"] = (conv.width, channels, *conv.kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{conv.name}.bn.{part}"] = (conv.width,)
    return shapes | {"fc.weight": (_CLASSES, _WIDTH), "fc.bias": (_CLASSES,)}


@final
class Inception:
    """Means of the last 2048 maps, and the logits of 1008 classes."""

    name = "inception"
    resizer = f"bilinear-tf1 {_SIDE}"

    def __init__(self, given: Path | None = None) -> None:
        """
        Args:
            given: a file with the weights, or a folder with one; None: see `find_weights`.

        Raises:
            ArtifactError: there are none, or they are another network's.
        """
        path = find_weights(_PUBLISHED, given)
        tensors = _checked(read_weights(path), path)
        self.digest = digest_of(tensors, f"{self.name} {self.resizer} x/128-1")[:12]
        self._head = tensors["fc.weight"].double().numpy()
        self._filters = {
            conv.name: _folded(tensors, conv.name) for conv, _ in _convolutions(_NETWORK, 3)
        }

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W], any C (grey is repeated) -> float32 [B, 2048]."""
        if next(iter(self._filters.values()))[0].device != images.device:
            self._filters = {
                name: (w.to(images.device), b.to(images.device))
                for name, (w, b) in self._filters.items()
            }
        parts = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self._forward(part) for part in parts])

    def logits(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the classes get from features [N, 2048], without their bias: [N, 1008], float64.

        The Inception score was defined without the bias.
        """
        return np.asarray(features @ self._head.T, np.float64)

    def _forward(self, images: Tensor) -> Tensor:
        x = bilinear_tf1(as_three(images.to(torch.float32)), _SIDE)
        return self._run(_NETWORK, (x - 128) / 128).mean((2, 3))

    def _run(self, steps: tuple[_Step, ...], x: Tensor) -> Tensor:
        for step in steps:
            if isinstance(step, _Conv):
                w, b = self._filters[step.name]
                padding = tuple(k // 2 if step.padded else 0 for k in step.kernel)
                x = functional.conv2d(x, w, b, step.stride, padding).relu_()
            elif isinstance(step, _Fork):
                x = torch.cat([self._run(way, x) for way in step.ways], 1)
            else:
                x = _pool(x, step)
        return x


def _checked(found: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The network's tensors as float32; the counters of batch normalisation are left out.

    Raises:
        ArtifactError: one is missing or of another shape.
    """
    shapes = parameter_shapes()
    for name, shape in shapes.items():
        if name not in found or tuple(found[name].shape) != shape:
            has = tuple(found[name].shape) if name in found else "missing"
            raise ArtifactError(
                f"{path} has weights of another network: {name} is {has} instead of {shape}.",
                expected=f"{_PUBLISHED.what} with {_CLASSES} classes; torchvision's is another one",
                remedy=f"Take {_PUBLISHED.url}",
            )
    return {name: found[name].to(torch.float32) for name in shapes}


def _folded(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Filters and biases of a convolution with its batch normalisation taken in."""
    w, gamma, beta, mean, var = (
        tensors[f"{name}.{part}"].double()
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    scale = gamma / (var + _EPSILON).sqrt()
    return (w * scale.view(-1, 1, 1, 1)).float(), (beta - mean * scale).float()
