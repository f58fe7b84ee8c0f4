"""Rank 0 of a training in several processes: what it tells the others and hears of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from poise.data.batches import Batch
from poise.errors import Interrupted, PoiseError, Stopped, UsageError
from poise.journal import Journal
from poise.learning.session import Quarantine
from poise.signals import Caught
from poise.stability.detectors.ranks import RankDivergence
from poise.stability.guard import Guard, Order
from poise.stability.incident import Incident, Sign
from poise.training.loop import StepRecord, TrainState, weights_of
from poise.training.parallel import RankLost, World, bit_sums

_BETWEEN_CHECKS = 25  # updates between two comparisons of the weights of all processes


class Lead:
    """Says before each update that there is one; after a repair, all get the state of rank 0."""

    def __init__(
        self, world: World, state: TrainState, quarantine: Quarantine, *, until: int
    ) -> None:
        """
        Args:
            world: of which this process is rank 0.
            state: its `world` is set.
            quarantine: images left out; the others must leave out the same.
            until: images seen at the end.

        Raises:
            UsageError: the network cannot be trained in pieces.
            RankLost: one of the others did not get ready.
        """
        self._world, self._state, self._quarantine = world, state, quarantine
        self._ranks = RankDivergence(tuple(weights_of(state.denoiser)))
        self._until = until
        self._told = -1  # how much of the quarantine the others know
        if any(isinstance(m, nn.BatchNorm2d) for m in state.denoiser.modules()):
            raise UsageError(
                "Batch norm needs the whole batch in one process.",
                expected="another model.norm for a training in several processes",
            )
        world.wait_for_all()
        state.world = world

    def begin(self) -> None:
        """A session begins: after a start, a resume or a rollback all have the same state."""
        state = self._state
        self._world.order(
            "state",
            images_seen=state.images_seen,
            step=state.step,
            precision=str(state.denoiser.dtype).removeprefix("torch."),
        )
        self._world.share_(state)
        self._told = -1
        self._ranks.begin(state.images_seen)

    def stream(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The batches; each is announced, since an update follows."""
        for batch in stream:
            self._world.order("step", **self._news())
            yield batch

    def judged(self, record: StepRecord, orders: list[Order], guard: Guard) -> list[Order]:
        """The orders after an update, or those about a process that has gone its own way.

        The weights are compared every 25 updates, at the end, and when the guard is about to act.
        """
        due = record.step % _BETWEEN_CHECKS == 0 or record.images_seen >= self._until
        if guard.policy == "off" or not (orders or due):
            return orders
        self._world.order("check")
        sums = self._world.compare(bit_sums(weights_of(self._state.denoiser).values()))
        signs = self._ranks.look(sums.cpu().numpy(), record.images_seen)
        return [order for sign in signs for order in guard.note_sign(sign)] or orders

    def pass_on_signals(self, caught: Caught) -> None:
        """A signal that came to one of the others counts as one that came here."""
        if self._world.asked_to_stop and not caught.names:
            caught.names.append("SIGTERM")
            caught.during = "step"

    def _news(self) -> dict[str, Any]:
        state, out = self._state, self._quarantine
        news: dict[str, Any] = {
            "images_seen": state.images_seen,
            "lr_scale": state.lr_scale,
            "micro_batch": state.micro_batch,
        }
        known = len(out.images) + len(out.screened)
        if known != self._told:
            self._told, news["quarantine"] = known, out.state()
        return news


@contextmanager
def leading(world: World | None, journal: Journal) -> Iterator[None]:
    """The others are sent home when the block ends; a lost one is written down.

    Raises:
        Stopped: a process was lost; what was saved before is whole.
    """
    how = "failed"
    try:
        yield
        how = "finished"
    except RankLost as lost:
        raise _said(lost, journal, lost.ranks) from None
    except Interrupted as stop:
        missing = () if world is None else world.end("interrupted")
        if missing:  # it was lost, and whoever started the processes stops the rest for it
            _said(stop, journal, missing)
        raise
    finally:
        if world is not None:
            world.end(how)


def _said(error: PoiseError, journal: Journal, ranks: tuple[int, ...]) -> Stopped:
    """Write down that processes are gone; the error that says how to go on."""
    now, run = journal.state.images_seen, journal.job.run
    who = ("Rank " if len(ranks) == 1 else "Ranks ") + " and ".join(map(str, ranks))
    found = error.found
    if not isinstance(error, RankLost):
        found = f"{who} did not answer when the run was stopped."
    saved = [int(path.stem) for path in run.checkpoint_files()]
    evidence = {"processes": 0 if journal.state.world is None else journal.state.world.size}
    lost = max(0, now - max(saved, default=0))
    sign = Sign("rank-lost", "critical", now, now, found, evidence, {"ranks": list(ranks)})
    journal.incident(Incident(sign, "stop", {"images": lost}))
    stopped = Stopped(
        found,
        expected=error.expected,
        remedy=f"Start all processes again with --resume, such as: torchrun --nproc-per-node "
        f"{evidence['processes']} -m -- poise train SOURCE --run {run.root} --resume; the state at "
        f"{max(saved, default=0):,} images is whole.",
    )
    stopped.cause = sign.cause
    return stopped
