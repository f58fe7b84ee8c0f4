"""Where the arithmetic happens: device, precision, threads, and randomness as a function.

No generator state is ever saved: every draw comes from `generator_at(seed, position, stream)`, so
a resumed run draws what the unbroken run would have drawn.
"""

import hashlib
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Runtime:
    """The device of a run and the arithmetic of its network."""

    device: torch.device
    dtype: torch.dtype  # of activations and of weights during a forward pass; masters stay fp32


def choose_runtime(
    precision: Literal["auto", "fp32", "bf16"] = "auto", threads: int | None = None
) -> Runtime:
    """CUDA if there is a device, else the CPU; bf16 where the hardware multiplies it fast.

    Args:
        precision: arithmetic of the network.
        threads: CPU threads from now on in this process; None: as they are.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if precision == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else _cpu_multiplies_bf16()
        precision = "bf16" if fast else "fp32"
    return Runtime(device, torch.bfloat16 if precision == "bf16" else torch.float32)


def _cpu_multiplies_bf16() -> bool:
    """Whether the CPU has instructions for bf16 products; others emulate them at a loss."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def seed_at(seed: int, position: int, stream: str) -> int:
    """A 63-bit seed that depends on all three arguments and on nothing else."""
    text = f"{seed}:{position}:{stream}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


def generator_at(
    seed: int, position: int, stream: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A fresh generator for one purpose at one point of the run.

    Args:
        seed: the run's seed.
        position: images seen, an epoch, or an image's index.
        stream: what the numbers are for; two streams are independent.
        device: where the numbers are drawn; CPU and CUDA draw different ones.
    """
    return torch.Generator(device).manual_seed(seed_at(seed, position, stream))


def describe_environment(runtime: Runtime) -> dict[str, Any]:
    """Versions and hardware, for the record of a run."""
    device = runtime.device.type
    if device == "cuda":
        device = f"cuda ({torch.cuda.get_device_name()})"
    return {
        "poise": version("poise"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": str(runtime.dtype).removeprefix("torch."),
    }
