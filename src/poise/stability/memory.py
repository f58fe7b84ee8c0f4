"""Memory: what an update needs, what the machine has left, and smaller pieces when it runs out.

What autograd keeps for the backward pass grows with the images of a piece and is counted exactly,
by storage, on a few images; the rest does not depend on the batch. Halving the pieces halves the
first part and changes nothing else: the gradient is a sum over images.
"""

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from poise.data.batches import Batch
from poise.diffusion.loss import denoising_loss
from poise.errors import TrainingError
from poise.settings import Config
from poise.training.loop import TrainState, noised_batch, weighting_of

_BACKWARD = 1.35  # peak over what is kept between the passes: gradients on their way, work space
_SIZES = (2, 4)  # images on which the footprint is measured; batch norm wants two at least
_UNLIMITED = 2**60  # bytes; cgroups write a number of this kind for "no limit"
_FULL = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


@dataclass(frozen=True)
class Footprint:
    """What an update needs, in bytes."""

    fixed: int  # weights, gradients, moments, averages
    kept: int  # per image, between the forward and the backward pass
    images: int  # of a batch: pixels and noise, which lie there whole whatever the pieces

    def peak(self, micro: int, batch: int) -> int:
        """The most an update of `batch` images in pieces of `micro` holds at once."""
        return int(self.fixed + self.images * batch + _BACKWARD * self.kept * min(micro, batch))

    def largest(self, available: int, batch: int) -> int:
        """The largest piece of a batch whose peak is within `available` bytes; 0: not even one."""
        left = available - self.fixed - self.images * batch
        return max(0, min(batch, int(left / (_BACKWARD * max(self.kept, 1)))))


def halved(micro: int | None, batch: int) -> int:
    """The next smaller piece after one of `micro` images did not fit; the update stays the same.

    Args:
        micro: images per forward pass so far; None: the whole batch.
        batch: images per update.

    Returns:
        Half of it, rounded up.

    Raises:
        TrainingError: it was a single image already.
    """
    now = min(micro or batch, batch)
    if now <= 1:
        raise TrainingError(
            "The memory does not hold an update of a single image.",
            expected="a network and images that fit the memory",
            remedy="Take a smaller preset or a lower data.resolution, or end other programs.",
        )
    return -(-now // 2)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory, of the machine or of the device, was not to be had.

    PyTorch says so on a CPU by a RuntimeError of a certain wording.
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(_FULL.search(str(error)))


def footprint(state: TrainState, batch: Batch, config: Config) -> Footprint:
    """What an update of this state needs, from forward passes of two and of four images.

    Args:
        state: not changed, but for batch norm's running statistics.
        batch: at least one image; repeated where there are too few.
        config: the settings; what they say of the batch is left aside.
    """
    small, large = (_saved_bytes(state, _of_size(batch, n), config) for n in _SIZES)
    kept = max((large - small) // (_SIZES[1] - _SIZES[0]), 1)
    weights = sum(_bytes(p) for p in state.denoiser.parameters())
    averages = sum(_bytes(w) for named in state.ema.profiles.values() for w in named.values())
    moments = sum(
        _bytes(value)
        for entry in state.optimizer.state.values()
        for value in entry.values()
        if isinstance(value, Tensor)
    )
    # weights, gradients and a copy while the update is measured; moments once there are any
    fixed = 3 * weights + (moments or 2 * weights) + averages
    fixed += max(small - _SIZES[0] * kept, 0)  # weights in the network's arithmetic, tables
    pixels = 4 * batch.images[0].numel()
    return Footprint(fixed, kept, 3 * pixels)  # clean, noise, noisy


def available_memory(device: torch.device, root: Path = Path("/")) -> int | None:
    """Bytes that may still be taken; None where nothing says so.

    On a CPU the kernel's own estimate, or what the control groups of this process leave if that is
    less; on CUDA what is free and what torch holds in reserve.

    Args:
        device: where the network is.
        root: where /proc and /sys are found.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    found = [*_kernel_estimate(root), *_group_limits(root)]
    return max(min(found), 0) if found else None


def reset_peak(device: torch.device) -> bool:
    """Begin to measure the peak anew; false where that cannot be done."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def peak_memory(device: torch.device) -> int | None:
    """The most bytes held at once since `reset_peak`, or since the start of the process.

    On a CPU all of the process (resident), on CUDA the tensors; None where nothing says so.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found[1]) * 1024 if found else None
    return None


def _saved_bytes(state: TrainState, batch: Batch, config: Config) -> int:
    """Bytes that autograd keeps for the backward pass, each storage once, weights left out."""
    device = next(state.denoiser.parameters()).device
    own = {p.untyped_storage().data_ptr() for p in state.denoiser.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:  # it stays alive, so that no address comes twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    noised, labels = noised_batch(state, batch, config, device)
    state.denoiser.train()
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = denoising_loss(state.denoiser, noised, labels, weighting_of(config.diffusion))
        total = loss.weighted.sum()
    del total, loss
    return sum(kept.values())


def _of_size(batch: Batch, count: int) -> Batch:
    rows = torch.arange(count) % len(batch.images)
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(batch.images[rows], labels, batch.indices[rows])


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _kernel_estimate(root: Path) -> Iterator[int]:
    with contextlib.suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", (root / "proc/meminfo").read_text())
        if found:
            yield int(found[1]) * 1024


def _group_limits(root: Path) -> Iterator[int]:
    """What is left of each limit on this process, in both versions of control groups."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" and not kinds:
                base, names = root / "sys/fs/cgroup", ("memory.max", "memory.current")
            elif "memory" in kinds.split(","):
                base = root / "sys/fs/cgroup/memory"
                names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            else:
                continue
            folder = base / path.strip("/")
            for place in (folder, *folder.parents):
                yield from _left_in(place, *names)
                if place == base:
                    break


def _left_in(folder: Path, limit_file: str, used_file: str) -> Iterator[int]:
    """Limit less use; pages of files that can be dropped at any time do not count as use."""
    with contextlib.suppress(OSError, ValueError):
        limit = int((folder / limit_file).read_text())  # "max" is no number
        used = int((folder / used_file).read_text())
        dropped = 0
        with contextlib.suppress(OSError):
            stat = (folder / "memory.stat").read_text()
            found = re.search(r"^(?:total_)?inactive_file (\d+)", stat, re.MULTILINE)
            dropped = int(found[1]) if found else 0
        if limit < _UNLIMITED:
            yield limit - used + dropped
