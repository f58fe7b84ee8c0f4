"""Carrying out what the guard ordered: the state goes back, the rate falls, images stay out."""

from dataclasses import dataclass
from typing import Any

import torch

from poise.artifacts import load_tensors
from poise.errors import ArtifactError, Stopped, TrainingError
from poise.journal import Journal
from poise.learning.session import Quarantine
from poise.settings import Config
from poise.stability.guard import Guard, Order
from poise.stability.incident import Incident, Sign
from poise.stability.memory import halved
from poise.stability.policy import goes_back
from poise.training.ema import profile_name
from poise.training.loop import TrainState

_REWARM = 50  # updates in which a cut rate rises again


@dataclass
class Rate:
    """The guard's own factor on the planned learning rate."""

    batch: int
    scale: float = 1.0
    plateau: float = 1.0  # of the schedule that waits for held-out images to stop getting better
    warm_from: int | None = None  # images seen when it last began to rise from zero
    held: bool = False  # put back before each update

    def at(self, images_seen: int) -> float:
        """The factor of the update that starts at `images_seen`."""
        scale = self.scale * self.plateau
        if self.warm_from is None:
            return scale
        done = (images_seen - self.warm_from + self.batch) / (_REWARM * self.batch)
        return scale * min(1.0, max(done, 0.0))

    def warming(self, images_seen: int) -> bool:
        """Whether the factor changes with the next update."""
        return self.warm_from is not None and self.at(images_seen) < self.scale * self.plateau

    def state(self) -> dict[str, Any]:
        """As plain data."""
        return vars(self) | {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass
class Repairer:
    """Everything that an order may have to change."""

    state: TrainState
    journal: Journal
    guard: Guard
    quarantine: Quarantine
    rate: Rate
    config: Config

    def carry_out(self, orders: list[Order]) -> bool:
        """Do it and write it down; true if the session has to begin anew from the state's position.

        Raises:
            Stopped: one of the orders was to stop.
        """
        back = [o for o in orders if goes_back(o.sign.cause, o.action)]
        stops = [o for o in orders if o.action == "stop"]
        for order in orders:
            if order not in back and order not in stops:
                self.journal.incident(order.incident(**self._here(order)))
        for order in stops:
            self.journal.incident(order.incident())
        if stops:
            self._stop(stops[0])
        if back:
            self._rewind(back)
        return bool(back)

    def _here(self, order: Order) -> dict[str, Any]:
        """What can be done without going back; returns what it cost."""
        if order.action == "skip":
            if self.guard.policy == "repair":
                self._strike(order)
            return {"updates": 1, "images": self.config.training.batch}
        if order.action == "screen":
            self._screen(order)
            return {"images_left_out": len(self.quarantine.images)}
        if order.action == "hold-rate":
            self.rate.held = True
            self.state.lr_scale = self.rate.at(self.state.images_seen)
        if order.action == "restore-ema":
            return self._restore_averages(order.sign.since)
        return {}

    def make_room(self, error: Exception) -> None:
        """The memory was not enough: half the micro-batch, for the same update.

        Raises:
            Stopped: it is a single image already.
        """
        now, batch = self.state.images_seen, self.config.training.batch
        had = self.state.micro_batch or self.config.training.micro_batch or batch
        text = f"There was no memory for {had} images at once: {str(error)[:200] or 'MemoryError'}."
        sign = Sign("out-of-memory", "warning", now, now, text, {"micro_batch": had})
        try:
            if self.guard.policy != "repair":
                raise TrainingError(text, remedy="Set training.micro_batch, and resume.")
            self.state.micro_batch = halved(had, batch)
        except TrainingError as refused:
            self.journal.incident(Incident(sign, "stop"))
            raise _stopped(refused, sign.cause) from None
        cost = {"micro_batch": self.state.micro_batch}
        self.journal.incident(Incident(sign, "halve-micro-batch", cost))

    def _strike(self, order: Order) -> None:
        """Images that were part of two bad updates are left out from now on."""
        for image in order.sign.culprit.get("indices", []):
            strikes = self.guard.record.strikes
            strikes[int(image)] = strikes.get(int(image), 0) + 1
            if strikes[int(image)] >= 2:
                self.quarantine.images.add(int(image))

    def _screen(self, order: Order) -> None:
        kind = {
            "non-finite-input": "non-finite",
            "out-of-range-data": "range",
            "bad-label": "label",
            "constant-data": "flat",
        }[order.sign.cause]
        self.quarantine.screened.add(kind)
        self.quarantine.images |= {int(i) for i in order.sign.culprit.get("indices", [])}

    def _rewind(self, orders: list[Order]) -> None:
        """Back to the newest checkpoint from before it began; the past is kept in the log."""
        at = self.state.images_seen
        record = self.guard.record_state()
        quarantine, rate = self.quarantine.state(), self.rate.state()
        precise = self.state.denoiser.dtype == torch.float32
        back = self.journal.rewind(min(order.sign.since for order in orders))
        if precise:  # an earlier repair's, which the checkpoint does not know
            self.state.denoiser.dtype = torch.float32
        self.guard.restore_record(record)
        self.quarantine.restore(quarantine)
        self.rate.restore(rate)
        for order in orders:
            if order.action == "cut-rate":
                leap = order.sign.evidence.get("leap")  # known: then it is undone, no more
                self.rate.scale /= leap or (2 if self.rate.warm_from is None else 4)
                self.rate.warm_from = None if leap else back
            elif order.action == "full-precision":
                self.state.denoiser.dtype = torch.float32
            elif order.action == "screen":
                self._screen(order)
        self.state.lr_scale = self.rate.at(back)
        self.guard.expect_scale(self.state.lr_scale)
        cost = {"images": at - back, "back_to": back, "repair": self.guard.record.repairs}
        for order in orders:
            self.journal.incident(order.incident(**cost))
        self.journal.checkpoint()  # so that a kill right now does not forget what was decided

    def _restore_averages(self, since: int) -> dict[str, Any]:
        """Averages from before it began, brought up to now by the weights of now."""
        for path in self.journal.checkpoints_before(since):
            try:
                tensors, meta = load_tensors(path)
            except ArtifactError:
                continue  # the next rollback or resume names it
            for std, averages in self.state.ema.profiles.items():
                for name, average in averages.items():
                    average.copy_(tensors[f"{profile_name(std)}/{name}"])
            now, then = self.state.images_seen, int(meta["images_seen"])
            if now > then:
                self.state.ema.update(now, now - then)
            return {"averages_from": then}
        for averages in self.state.ema.profiles.values():
            for name, weight in self.state.denoiser.named_parameters():
                averages[name].copy_(weight.detach())
        return {"averages_from": None}

    def _stop(self, order: Order) -> None:
        """End on a state that is good.

        Raises:
            Stopped: always.
        """
        sign, root = order.sign, self.journal.job.run.root
        try:
            back = self.journal.rewind(sign.since)
            left = f"the state at {back:,} images is good. Go on with: poise train SOURCE "
            left += f"--run {root} --resume"
        except ArtifactError:
            left = "no checkpoint is whole, so start a new run."
        error = TrainingError(
            f"The guard stopped the run: {sign.sentence}",
            expected="a run that goes on after the remedies that were tried",
            remedy=f"`poise doctor {root}` says what happened and what to change; {left}",
        )
        raise _stopped(error, sign.cause)


def _stopped(why: TrainingError, cause: str) -> Stopped:
    error = Stopped(why.found, expected=why.expected, remedy=why.remedy)
    error.cause = cause
    return error
