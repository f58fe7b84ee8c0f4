"""The rates of this machine: matrix products, and 3x3 convolutions at a network's widths."""

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from poise.bench.rig import Rig, Work
from poise.models.skeleton import levels_of
from poise.runtime import Runtime

_WORK_SHARE = 1 / 400  # of the time for all rounds, for one measurement at the fp32 matrix rate
_QUICK_SECONDS = 0.3
_SIDE = {"cpu": 1024, "cuda": 8192}  # of the matrices; larger ones are not faster


def quick_rate(runtime: Runtime) -> float:
    """The fp32 matrix rate in FLOP/s as things are, from small products for a third of a second."""
    side = _SIDE[runtime.device.type] // 2
    a = torch.ones(side, side, device=runtime.device)
    done, started = 0, 0.0
    while done < 3 or time.perf_counter() - started < _QUICK_SECONDS:
        if done == 1:  # the first one warms up
            started = time.perf_counter()
        a @ a
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
    return 2.0 * side**3 * (done - 1) / (time.perf_counter() - started)


def rate_works(rig: Rig, seconds: float, rate: float) -> tuple[dict[str, Work], dict[str, float]]:
    """What to time for each rate, and its number of operations.

    Args:
        rig: what is measured.
        seconds: time for all rounds.
        rate: as `quick_rate` gave it.

    Returns:
        "matrix fp32", "matrix bf16" if the run is in bf16, and for U-Nets "convolution forward" and
        "convolution backward" in the run's precision: one 3x3 convolution on each level, width to
        width, channels-last, with the bench's batch.
    """
    fewest = rate * seconds * _WORK_SHARE
    device, dtype = rig.runtime.device, rig.runtime.dtype
    works: dict[str, Work] = {}
    operations: dict[str, float] = {}
    side = _SIDE[device.type]
    for name, kind in {"fp32": torch.float32, rig.precision: dtype}.items():
        a = torch.randn(side, side, device=device).to(kind)
        once = 2.0 * side**3
        repeats = math.ceil(fewest / once)
        works[f"matrix {name}"] = _repeated(lambda a=a: a @ a, repeats)  # type: ignore[misc]
        operations[f"matrix {name}"] = repeats * once
    model = rig.config.model
    if model.architecture not in ("edm2", "adm"):
        return works, operations
    layers = []
    once = 0.0
    levels = levels_of(rig.facts.resolution, model.channels, model.channel_mult, ())
    for i, (_, width, _) in enumerate(levels):
        pixels = rig.facts.resolution >> i
        x = torch.randn(rig.micro, width, pixels, pixels, device=device).to(dtype)
        w = torch.randn(width, width, 3, 3, device=device).to(dtype)
        x, w = (t.contiguous(memory_format=torch.channels_last) for t in (x, w))
        layers.append((x, w))
        once += 2.0 * 9 * width**2 * pixels**2 * rig.micro
    repeats = math.ceil(fewest / once)
    works["convolution forward"] = _repeated(lambda: _forward(layers), repeats)
    works["convolution backward"] = _repeated(lambda: _backward(layers), repeats)
    operations["convolution forward"] = repeats * once
    operations["convolution backward"] = 2 * repeats * once  # of the input and of the weight
    return works, operations


def _repeated(work: Work, times: int) -> Work:
    @torch.no_grad()
    def repeated() -> None:
        for _ in range(times):
            work()

    return repeated


def _forward(layers: list[tuple[Tensor, Tensor]]) -> None:
    for x, w in layers:
        F.conv2d(x, w, padding=1)


def _backward(layers: list[tuple[Tensor, Tensor]]) -> None:
    one, none = [1, 1], [0, 0]
    for x, w in layers:  # x stands in for the gradient of the output, which has its shape
        torch.ops.aten.convolution_backward(
            x, x, w, None, one, one, one, False, none, 1, [True, True, False]
        )
