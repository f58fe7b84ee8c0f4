"""What each of several processes does with its share of a batch; no process is started here."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.errors import UsageError
from poise.training.loop import TrainState
from poise.training.parallel import World, alone, bit_sums, join, restarted


@given(st.integers(1, 300), st.integers(1, 9))
def test_every_row_belongs_to_one_process(total: int, size: int) -> None:
    seen: list[int] = []
    for rank in range(size):
        world = World(rank, size)
        rows = list(range(total))[world.rows(total)]
        assert rows  # a batch of nothing cannot be computed
        if rank * -(-total // size) < total:
            seen += rows
        else:
            assert rows == [0]  # computed, and left out
    assert seen == list(range(total))


def test_alone_nothing_is_changed() -> None:
    world, weight = World(0, 1), torch.nn.Parameter(torch.randn(3))
    weight.grad = torch.randn(3)
    before, x = weight.grad.clone(), torch.randn(5)
    assert world.rows(5) == slice(0, 5)
    world.sum_gradients_([weight])
    assert torch.equal(weight.grad, before)
    assert torch.equal(world.gather(x), x)
    assert world.compare(torch.tensor([3, 4])).tolist() == [[3, 4]]


@dataclass
class Told:
    """What `alone` reads of a state; `replace` makes another one."""

    world: World | None
    micro_batch: int | None


def test_work_of_one_process_has_the_pieces_of_all() -> None:
    def pieces(size: int, micro: int | None, images: int) -> Any:
        state: Any = Told(World(0, size), micro)
        found: TrainState = alone(state, images)
        assert found.world is None
        return found.micro_batch

    assert pieces(2, None, 32) == 16
    assert pieces(3, None, 32) == 11
    assert pieces(2, 4, 32) == 4
    unshared: Any = Told(None, None)
    assert alone(unshared, 32) is unshared


@given(st.integers(0, 23), st.integers(0, 31))
def test_one_bit_changes_the_sum_of_its_tensor_alone(place: int, bit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(shape, generator=generator) for shape in ((5,), (4, 3, 2), (2, 2))]
    before = bit_sums(weights)
    flipped = 1 << bit if bit < 31 else -(1 << 31)
    weights[1].view(torch.int32).reshape(-1)[place] ^= flipped
    assert (bit_sums(weights) != before).tolist() == [False, True, False]


def test_sums_do_not_depend_on_the_layout() -> None:
    weight = torch.randn(4, 3, 3, 3)
    other = weight.contiguous(memory_format=torch.channels_last)
    assert torch.equal(bit_sums([weight]), bit_sums([other]))


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    assert join() is None
    assert not restarted()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert restarted()
    for name, value in (("RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() is None


@pytest.mark.parametrize("text", ["soon", "0", "-3", "nan"])
def test_a_timeout_is_a_number_of_seconds(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in (told | {"POISE_RANK_TIMEOUT": text}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="POISE_RANK_TIMEOUT"):
        join()
