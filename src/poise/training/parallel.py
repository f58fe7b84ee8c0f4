"""Several processes train one network: each computes the gradients of its share of every batch.

Rank 0 decides everything, by its clock, its signals and its guard, and tells the others through the
store of the group what to do next; they do nothing else. So nobody waits in a collective for a
process that is busy elsewhere, and an update that does not come together means a lost process.
"""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from poise.errors import TrainingError, UsageError
from poise.training.loop import TrainState, weights_of
from poise.training.optim import optimizer_tensors, restore_optimizer

_TOLD_BY = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torchrun sets them
_TIMEOUT = "POISE_RANK_TIMEOUT"
_RESTARTS = "TORCHELASTIC_RESTART_COUNT"
_SECONDS = 600.0  # a first update that is compiled takes minutes
_GRACE = 3.0  # seconds in which the others say that they live, once one is missed
_KEPT = 1024  # orders in the store: on a GPU rank 0 runs ahead of the others by a few updates


class RankLost(TrainingError):
    """A process of the training is gone or hangs; `ranks` says which, as far as it is known."""

    ranks: tuple[int, ...] = ()


@dataclass
class World:
    """The processes of one training, as one of them sees them; alone, it changes nothing."""

    rank: int
    size: int
    store: Any = None  # a `torch.distributed.Store`; None: there is nobody else
    timeout: float = _SECONDS
    lost: bool = False  # another process is gone: there is nobody to talk to
    asked_to_stop: bool = False  # another process got a signal; rank 0 hears of it
    _total: int = 0
    _idle: bool = False
    _orders: int = 0
    _ended: bool = False
    _meeting: bool = False  # in a collective, so that the others have what to do
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: Any = field(default_factory=threading.Lock)  # of the orders

    @property
    def _others(self) -> list[int]:
        return [r for r in range(self.size) if r != self.rank]

    def rows(self, total: int) -> slice:
        """This process's rows of a batch of `total` >= 1; one without any computes the first again.

        What it computes then is left out by `sum_gradients_` and `gather`.
        """
        most = -(-total // self.size)
        start, stop = min(self.rank * most, total), min((self.rank + 1) * most, total)
        self._total, self._idle = total, start == stop
        return slice(0, 1) if self._idle else slice(start, stop)

    @torch.no_grad()
    def sum_gradients_(self, weights: Iterable[Tensor]) -> None:
        """Replace each gradient by its sum over all processes; every process gets the same bits.

        Raises:
            RankLost: it did not come together in time.
        """
        if self.size == 1:
            return
        grads = [w.grad for w in weights if w.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in grads])
        self._sum_(flat.zero_() if self._idle else flat)
        for grad, part in zip(grads, torch.split(flat, [g.numel() for g in grads]), strict=True):
            grad.copy_(part.view(grad.shape))

    def gather(self, x: Tensor) -> Tensor:
        """The rows of all processes [B, ...], from those that `rows` named here [b, ...].

        Raises:
            RankLost: it did not come together in time.
        """
        if self.size == 1:
            return x
        rows = self.rows(self._total)
        whole = x.new_zeros(self._total, *x.shape[1:])
        if not self._idle:
            whole[rows] = x
        return self._sum_(whole)

    def compare(self, numbers: Tensor) -> Tensor:
        """The int64 numbers [T] of every process, [size, T]; all must call it at once.

        Raises:
            RankLost: it did not come together in time.
        """
        table = numbers.new_zeros(self.size, len(numbers))
        table[self.rank] = numbers
        return self._sum_(table) if self.size > 1 else table

    def share_(self, state: TrainState) -> None:
        """Weights, moments and running numbers of rank 0 for all; not the averages, which it saves.

        Raises:
            RankLost: it did not come together in time.
        """
        device = next(state.denoiser.parameters()).device
        if self.rank == 0:
            tensors = _tensors(state)
            shapes = {
                k: [str(t.dtype).removeprefix("torch."), *t.shape] for k, t in tensors.items()
            }
            self.order("tensors", shapes=shapes)
        else:
            shapes = self.next_order()["shapes"]
            tensors = {
                k: torch.empty(shape, dtype=getattr(torch, kind), device=device)
                for k, (kind, *shape) in shapes.items()
            }
        for tensor in tensors.values():
            self._together(dist.broadcast, tensor.detach().to(device).contiguous(), src=0)
        if self.rank:
            _restore(state, tensors)

    def ready(self) -> None:
        """Say that this process is ready to follow."""
        with self._talking():
            self.store.set(f"ready/{self.rank}", "1")

    def wait_for_all(self) -> None:
        """Wait until all others are ready; reading images may take them longer than an update.

        Raises:
            RankLost: one is gone, or not ready after 10 minutes or the timeout.
        """
        with self._talking():
            missing = self._missing("ready", max(self.timeout, _SECONDS))
        if missing:
            self.lost = True
            raise _rank_lost(missing, "it did not get ready to train")

    def order(self, do: str, **more: Any) -> None:
        """Tell all others what to do next; `more` is plain data."""
        with self._talking(), self._lock:
            self.store.set(f"order/{self._orders}", json.dumps({"do": do, **more}))
            if self._orders >= _KEPT:
                self.store.delete_key(f"order/{self._orders - _KEPT}")
            self._orders += 1

    def next_order(self, stop: Callable[[], object] = lambda: False) -> dict[str, Any]:
        """Wait for what rank 0 says next, however long, as long as it says that it lives.

        Args:
            stop: whether this process was asked to stop, which rank 0 is told.

        Raises:
            RankLost: nothing was heard of rank 0 for as long as the timeout.
        """
        while True:
            with self._talking():
                key = f"order/{self._orders}"
                self.store.wait([key], timedelta(seconds=self.timeout))
                order: dict[str, Any] = json.loads(self.store.get(key))
                self._orders += 1
                if stop():
                    self.store.set("stop", "1")
            if order["do"] != "wait":
                return order

    def end(self, how: str) -> tuple[int, ...]:
        """Send all others home; those that do not answer. `how`: finished, interrupted, failed."""
        if self._ended or self.lost:
            return ()
        self._ended = True
        self.order("end", how=how)
        return self._missing("home", min(self.timeout, 2 * _GRACE))

    def go_home(self) -> None:
        """Say that the order to end was heard."""
        self.store.set(f"home/{self.rank}", "1")

    def leave(self) -> None:
        """Leave the group; where rank 0 does so before it ended the training, it failed."""
        with contextlib.suppress(RuntimeError, RankLost):
            if self.rank == 0:
                self.end("failed")
            else:
                self.store.set(f"gone/{self.rank}", "1")
        self._over.set()
        if dist.is_initialized():
            dist.destroy_process_group()

    def start(self) -> None:
        """Rank 0 begins to say that it lives, in a thread, while it has nothing else to say."""
        if self.rank == 0:
            threading.Thread(target=self._beat, name="poise-rank-0", daemon=True).start()

    def _beat(self) -> None:
        said = -1
        while not self._over.wait(min(1.0, self.timeout / 4)):
            with contextlib.suppress(RuntimeError, RankLost):
                if self._orders == said and not self._meeting:
                    self.order("wait")
                said = self._orders
                self.asked_to_stop = self.asked_to_stop or bool(self.store.check(["stop"]))

    def _sum_(self, x: Tensor) -> Tensor:
        self._together(dist.all_reduce, x)
        return x

    def _together(self, collective: Callable[..., Any], x: Tensor, **given: int) -> None:
        """Run a collective that changes `x` in place."""
        self._meeting = True
        try:
            collective(x, **given)
        except RuntimeError as error:
            self.lost = True
            raise _rank_lost(self._silent(), _why(error, self.timeout)) from None
        finally:
            self._meeting = False

    def _silent(self) -> tuple[int, ...]:
        """The ranks that do not say that they live, when all that do live miss somebody."""
        if self.size == 2:
            return (1 - self.rank,)
        try:
            self.store.set(f"alive/{self.rank}", "1")
            return self._missing("alive", _GRACE)
        except RuntimeError:
            return (0,) if self.rank else ()

    def _missing(self, key: str, seconds: float) -> tuple[int, ...]:
        until = time.monotonic() + seconds
        missing = self._others
        while missing and time.monotonic() < until:
            missing = [r for r in missing if not self.store.check([f"{key}/{r}"])]
            if any(self.store.check([f"gone/{r}"]) for r in missing):
                break
            time.sleep(0.02)
        return tuple(missing)

    @contextlib.contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # no word for long, or who keeps the store is gone
            self.lost = True
            raise _rank_lost((0,) if self.rank else (), _why(error, self.timeout)) from None


def join() -> World | None:
    """The processes that this one belongs to, if it was started by torchrun; else None.

    Gradients go by nccl where each process of a machine has a GPU of its own, else by gloo. A
    process counts as lost after POISE_RANK_TIMEOUT seconds (600) without an answer.

    Raises:
        UsageError: the timeout is no number of seconds.
        TrainingError: the others did not come.
    """
    if any(name not in os.environ for name in _TOLD_BY) or int(os.environ["WORLD_SIZE"]) < 2:
        return None
    seconds = _seconds(os.environ.get(_TIMEOUT))
    patience = timedelta(seconds=seconds)
    try:
        store, rank, size = next(rendezvous("env://", timeout=patience))
        # torchrun keeps one store over restarts, and what the lost processes said is still in it
        store = PrefixStore(f"poise/{os.environ.get(_RESTARTS, '0')}", store)
        world = World(rank, size, store, seconds)
        world.start()
        dist.init_process_group(
            _backend(rank, size), store=store, rank=rank, world_size=size, timeout=patience
        )
    except RuntimeError as error:
        raise TrainingError(
            f"The processes did not come together: {str(error).partition('.')[0]}.",
            expected=f"{os.environ['WORLD_SIZE']} processes at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            remedy="Start all of them, such as with torchrun --nproc-per-node 2 -m -- poise train.",
        ) from None
    return world


def restarted() -> bool:
    """Whether torchrun started this training again after it had failed."""
    return int(os.environ.get(_RESTARTS, "0")) > 0


def alone(state: TrainState, images: int) -> TrainState:
    """The state for work on a batch of `images` that this process does by itself.

    It is done in pieces as the processes see them, so that it rounds as they do.
    """
    if state.world is None:
        return state
    share = -(-images // state.world.size)
    return replace(state, world=None, micro_batch=min(state.micro_batch or share, share))


def bit_sums(weights: Iterable[Tensor]) -> Tensor:
    """The bits of each fp32 tensor as whole numbers, summed: [T] int64.

    Exact, so that it depends neither on the order of summing nor on the size of the change.
    """
    return torch.stack([w.detach().view(torch.int32).sum(dtype=torch.int64) for w in weights])


def _seconds(text: str | None) -> float:
    try:
        seconds = _SECONDS if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if not 1 <= seconds < 1e6:
        raise UsageError(f"{_TIMEOUT}={text} will not do.", expected="seconds, 1 or more")
    return seconds


def _backend(rank: int, size: int) -> str:
    if not torch.cuda.is_available():
        return "gloo"
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", size)), torch.cuda.device_count()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % gpus)
    return "nccl" if here <= gpus and dist.is_nccl_available() else "gloo"


def _why(error: RuntimeError, seconds: float) -> str:
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return f"no answer for {seconds:.0f} s"
    return "the connection to it broke"


def _rank_lost(ranks: tuple[int, ...], why: str) -> RankLost:
    named = "A process"
    if ranks:
        named = ("Rank " if len(ranks) == 1 else "Ranks ") + " and ".join(map(str, ranks))
    error = RankLost(
        f"{named} {'were' if len(ranks) > 1 else 'was'} lost: {why}.",
        expected="an answer of every process of the training",
        remedy=f"Look at that process's messages; {_TIMEOUT} is how long it is waited for.",
    )
    error.ranks = ranks
    return error


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """What an update reads, by name."""
    parts: dict[str, Mapping[str, Tensor]] = {
        "denoiser": state.denoiser.state_dict(),
        "optimizer": optimizer_tensors(state.optimizer, weights_of(state.denoiser)),
        "gate": {} if state.gate is None else state.gate.tensors(),
        "clip": state.clip.tensors(),
    }
    return {f"{head}/{k}": v for head, part in parts.items() for k, v in part.items()}


@torch.no_grad()
def _restore(state: TrainState, tensors: Mapping[str, Tensor]) -> None:
    parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "gate": {}}
    for key, tensor in tensors.items():
        head, _, name = key.partition("/")
        parts.setdefault(head, {})[name] = tensor
    state.denoiser.load_state_dict(parts["denoiser"])
    restore_optimizer(state.optimizer, weights_of(state.denoiser), parts["optimizer"])
    if state.gate is not None:
        state.gate.restore(parts["gate"])
    state.clip.restore(parts["clip"])
