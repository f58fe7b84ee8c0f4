"""Smaller pieces make the same update, the footprint is linear, and limits are found."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch
from poise.errors import TrainingError
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.memory import (
    Footprint,
    available_memory,
    footprint,
    halved,
    is_out_of_memory,
    peak_memory,
)
from poise.training.loop import TrainState, update, weights_of

CPU = torch.device("cpu")
SMALL = {
    "model.channels": 8,
    "model.channel_mult": [1],
    "model.attn_resolutions": [],
    "model.channels_per_head": 8,
    "training.batch": 8,
    "training.images": 800,
}
FACTS = DataFacts(8, 1, ("a", "b"), 0.5)


def batch(count: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 2, torch.arange(count))


def fresh(config: Config) -> TrainState:
    return TrainState.fresh(
        build_denoiser(config, FACTS, Runtime(CPU, torch.float32)), config.training
    )


def gradient(config: Config, micro: int | None) -> torch.Tensor:
    training = config.training.model_copy(update={"micro_batch": micro})
    config = config.model_copy(update={"training": training})
    state = fresh(config)
    update(state, batch(8), config)
    found = [w.grad for w in weights_of(state.denoiser).values()]
    return torch.cat([g.reshape(-1).double() for g in found if g is not None])


@pytest.mark.parametrize("network", [{}, {"model.architecture": "adm"}])
def test_halved_pieces_have_the_gradient_of_the_whole_batch(network: dict[str, object]) -> None:
    config = resolve(None, SMALL | network)
    whole, micro = gradient(config, None), None
    assert whole.norm() > 0
    for _ in range(3):
        micro = halved(micro, 8)
        assert (gradient(config, micro) - whole).norm() <= 1e-6 * whole.norm()
    assert micro == 1


@given(st.integers(1, 4096), st.none() | st.integers(1, 8192))
def test_halving_ends_at_one_image_and_covers_the_batch(size: int, micro: int | None) -> None:
    steps = 0
    while (micro is None and size > 1) or (micro is not None and min(micro, size) > 1):
        before = min(micro or size, size)
        micro = halved(micro, size)
        steps += 1
        assert micro < before <= 2 * micro
    assert steps <= 13
    with pytest.raises(TrainingError, match="single image"):
        halved(1, size)


@given(st.integers(0, 10**9), st.integers(1, 10**7), st.integers(1, 512), st.integers(0, 10**11))
def test_the_largest_piece_fits_and_one_more_does_not(
    fixed: int, kept: int, size: int, room: int
) -> None:
    needs = Footprint(fixed, kept, 768)
    most = needs.largest(room, size)
    assert 0 <= most <= size
    if most > 0:
        assert needs.peak(most, size) <= room
    if most < size:
        assert needs.peak(most + 1, size) >= room


def test_the_footprint_counts_what_autograd_keeps() -> None:
    config = resolve(None, SMALL)
    state = fresh(config)
    found = footprint(state, batch(8), config)
    assert found == footprint(state, batch(1), config)  # of the network, not of the batch
    weights = 4 * sum(p.numel() for p in state.denoiser.parameters())
    # weights, gradients, a copy, two moments, two averages; and little that depends on nothing
    assert 7 * weights <= found.fixed <= 7 * weights + 2 * weights
    wider = resolve(None, SMALL | {"model.num_blocks": 4})
    assert footprint(fresh(wider), batch(8), wider).kept > 1.5 * found.kept


def test_a_closed_form_of_the_footprint() -> None:
    """A stack of tanh keeps one activation each: its output."""
    config = resolve(None, SMALL)
    state = fresh(config)

    class Stack(torch.nn.Module):
        num_classes = 2

        def __init__(self, depth: int) -> None:
            super().__init__()
            self.depth, self.scale = depth, torch.nn.Parameter(torch.ones([]))

        def forward(
            self, x: torch.Tensor, noise: torch.Tensor, labels: torch.Tensor
        ) -> torch.Tensor:
            x = x * self.scale
            for _ in range(self.depth):
                x = x.tanh()
            return x

    kept = []
    for depth in (1, 11):
        state.denoiser.network = Stack(depth)
        kept.append(footprint(state, batch(4), config).kept)
    assert kept[1] - kept[0] == 10 * 64 * 4  # floats of an 8x8 image


def test_what_is_out_of_memory() -> None:
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    assert available_memory(CPU, tmp_path) is None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(CPU, tmp_path) == 8000 * 1024

    (tmp_path / "proc/self/cgroup").write_text("4:memory:/job\n0::/outer/inner\n")
    old = tmp_path / "sys/fs/cgroup/memory/job"
    old.mkdir(parents=True)
    (old / "memory.limit_in_bytes").write_text("9223372036854771712")  # no limit
    (old / "memory.usage_in_bytes").write_text("1")
    inner = tmp_path / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    (inner / "memory.current").write_text("5\n")
    assert available_memory(CPU, tmp_path) == 8000 * 1024
    (inner.parent / "memory.max").write_text("1000000\n")
    (inner.parent / "memory.current").write_text("400000\n")
    assert available_memory(CPU, tmp_path) == 600_000
    (inner.parent / "memory.stat").write_text("anon 1\ninactive_file 100000\n")
    assert available_memory(CPU, tmp_path) == 700_000
    (old / "memory.limit_in_bytes").write_text("50000")
    assert available_memory(CPU, tmp_path) == 49_999


def test_this_machine_says_what_it_has() -> None:
    room, peak = available_memory(CPU), peak_memory(CPU)
    assert room is None or room > 0
    assert peak is None or peak > 2**20
