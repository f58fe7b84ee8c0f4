"""The training loss as one compiled graph: whether a run gains from it, and the function itself.

What is compiled is `denoising_loss` with its backward pass. The rest of a step is a few fused
calls and gains nothing. Compiled arithmetic rounds differently, so the choice is a setting of the
run and is written down: a resumed run computes what the unbroken one would have computed.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.diffusion.denoiser import Denoiser
from poise.diffusion.loss import Loss, Weighting, denoising_loss
from poise.diffusion.noise import Noised
from poise.flops import TRAINING_PASSES, forward_macs
from poise.runtime import choose_runtime
from poise.settings import Config
from poise.training.loop import LossFunction

_COMPILE_SECONDS = {"cpu": 150.0, "cuda": 60.0}  # without a cache, on two cores
_GAIN = 1.2  # images/s over the eager step: the least that was seen
_CAUTION = 4.0  # a busy machine compiles three times more slowly

# FLOP/s in training that no machine of today exceeds, per CPU thread and per GPU
_FASTEST = {
    ("cpu", torch.bfloat16): 1e12,
    ("cpu", torch.float32): 2e11,
    ("cuda", torch.bfloat16): 1e15,
    ("cuda", torch.float32): 2e14,
}


def worth_compiling(seconds_planned: float, device: torch.device) -> bool:
    """Whether a training of this length surely ends earlier if its step is compiled first.

    Compiling takes T seconds and makes the rest g times faster, so it pays from T / (1 - 1/g) on:
    900 s on a CPU. The answer is yes from _CAUTION times that on, an hour on a CPU and 24 minutes
    on a GPU, since T is several times longer on a busy machine and g is not known beforehand.

    Args:
        seconds_planned: time of the updates alone.
        device: where they run.
    """
    break_even = _COMPILE_SECONDS[device.type] / (1 - 1 / _GAIN)
    return seconds_planned >= _CAUTION * break_even


def fewest_seconds(config: Config, facts: DataFacts) -> float:
    """Less time than any machine of this kind needs for the planned images.

    The operations of the training (three forward passes an image) over a rate that the fastest
    machines do not reach: one TFLOP/s for each thread in bf16, 1000 on a GPU. A real machine is
    several times slower. So a run that may be short is taken for short; that a long one is now and
    then not compiled is the price.
    """
    runtime = choose_runtime(config.training.precision)
    units = 1
    if runtime.device.type == "cpu":
        units = config.training.threads or torch.get_num_threads()
    flops = 2 * TRAINING_PASSES * forward_macs(config, facts) * config.training.images
    return flops / (units * _FASTEST[runtime.device.type, runtime.dtype])


def decide(config: Config, facts: DataFacts, seconds: float | None) -> Literal["on", "off"]:
    """What `training.compile` stands for in this run; "on" and "off" stay as they are.

    Args:
        config: the settings, with `training.images` known.
        facts: the shape of the images.
        seconds: time for the updates; None: not known, and `fewest_seconds` stands for it.
    """
    if config.training.compile != "auto":
        return config.training.compile
    device = choose_runtime(config.training.precision).device
    if obstacle(device) is not None:
        return "off"
    planned = fewest_seconds(config, facts) if seconds is None else seconds
    return "on" if worth_compiling(planned, device) else "off"


def obstacle(device: torch.device) -> str | None:
    """What this machine lacks to compile for a device, as words; None: nothing."""
    if device.type == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "the package triton is not installed"
        names = [os.environ.get("CC", ""), "gcc", "clang", "cc"]
    else:
        usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
        names = [os.environ.get("CXX") or usual]
    if not any(name and shutil.which(name) for name in names):
        return f"there is no compiler ({', '.join(filter(None, names))})"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python's header files are not installed"
    return None


def loss_function(
    config: Config, device: torch.device, note: Callable[[str], None]
) -> LossFunction | None:
    """What `TrainState.loss` should be under these settings; None: the eager function.

    Args:
        config: `training.compile` is "on" or "off".
        device: where the network is.
        note: told what happens, in a sentence.
    """
    if config.training.compile != "on":
        return None
    reason = obstacle(device)
    if reason is not None:
        note(f"The step is not compiled: {reason}. The run goes on without.")
        return None
    note("The first step is compiled, which takes a minute or more.")
    return CompiledLoss(config.training.micro_batch or config.training.batch, note)


class CompiledLoss:
    """`denoising_loss`, compiled at the first call for pieces of one size; others run eagerly.

    Dropout is drawn from the generator that `torch.manual_seed` sets, as in eager code, though not
    the same numbers.
    """

    def __init__(
        self, images: int, note: Callable[[str], None] = print, *, backend: str = "inductor"
    ) -> None:
        """
        Args:
            images: size of the pieces that are compiled for: a batch or a micro-batch.
            note: told if compiling fails; the eager function then takes over.
            backend: of torch.compile.
        """
        self._images, self._note = images, note
        self._worked = False
        # torch keeps what it compiled by code object and compiles one only so many times in a
        # process; a copy starts from none
        own = FunctionType(
            denoising_loss.__code__.replace(), denoising_loss.__globals__, "compiled_loss"
        )
        self._compiled: LossFunction | None = torch.compile(
            own, fullgraph=True, dynamic=False, backend=backend
        )

    def __call__(
        self, denoiser: Denoiser, noised: Noised, labels: Tensor | None, weighting: Weighting
    ) -> Loss:
        """As `denoising_loss`; a failure of the compiler is noted once, and not raised."""
        if self._compiled is None or len(noised.clean) != self._images:
            return denoising_loss(denoiser, noised, labels, weighting)
        if self._worked:
            return self._compiled(denoiser, noised, labels, weighting)
        try:
            with warnings.catch_warnings():  # of the compiler about itself
                warnings.simplefilter("ignore")
                result = self._compiled(denoiser, noised, labels, weighting)
        except RuntimeError as error:
            self._compiled = None
            first = str(error).strip().partition("\n")[0]
            self._note(f"The step could not be compiled, and runs without: {first}")
            return denoising_loss(denoiser, noised, labels, weighting)
        self._worked = True
        return result
