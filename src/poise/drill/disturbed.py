"""One disturbed run: how it is made for each stage of faults, and what its outcomes are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from poise.artifacts import RunDir
from poise.drill import plan, ranks, system
from poise.drill.damaged import train_on_damaged
from poise.drill.disturbance import Disturbance
from poise.drill.faults import KINDS, TRAPS, Fault, overrides
from poise.drill.ground import Ended, Ground, attempt
from poise.drill.score import Injected, Outcome, cause_of, delay, first_of, lost_by, match
from poise.drill.witness import Seen, Witness

_IN_SAMPLES = {"diversity-collapse", "condition-ignored"}  # causes that show in grids


@dataclass
class Disturbed:
    """A run with faults that is over."""

    ground: Ground
    name: str
    folder: Path
    injected: list[Injected]
    events: list[Seen]
    witness: Witness
    ended: Ended
    began: int  # images seen when it began
    same: bool | None = None  # as the undisturbed run, bit by bit; None: that is not asked
    compared: bool = True  # the run is one that a gap to the undisturbed one makes sense for

    def news(self) -> list[Seen]:
        """What the undisturbed run did not say at the same place."""
        known = self.ground.ordinary
        return [e for e in self.events if (cause_of(e), e.row["images_seen"]) not in known]

    def outcomes(self) -> list[Outcome]:
        """A row for each fault; traps among them have none."""
        injected = [i for i in self.injected if i.fault.kind not in TRAPS]
        news = self.news()
        gap, reason = self._gap()
        lost = self._lost()
        return [
            self._outcome(one, event, news, gap, reason, lost)
            for one, event in zip(injected, match(injected, news), strict=True)
        ]

    def _outcome(
        self,
        one: Injected,
        event: Seen | None,
        news: Sequence[Seen],
        gap: float | None,
        reason: str,
        lost: dict[str, int],
    ) -> Outcome:
        blank = Outcome(
            kind=one.fault.kind,
            parameters=one.fault.parameters(),
            detected=False,
            delay_steps=None,
            true_cause=one.cause,
            named_cause=None,
            action=None,
            gap=gap,
            lost=lost,
            run=self.name,
            reason=reason,
            row=KINDS[one.fault.kind].row,
        )
        if self.ended.how in ("crashed", "hung"):
            return replace(blank, named_cause="crash")
        if one.update is None:
            return replace(blank, reason=reason or "it did not come to that")
        if event is None:
            return blank
        return replace(
            blank,
            detected=True,
            delay_steps=delay(first_of(event, one, news), one),
            named_cause=cause_of(event),
            action=str(event.row.get("action", "none")),
            also=tuple(event.row.get("also", ())),
            message=str(event.row["message"]),
        )

    def _gap(self) -> tuple[float | None, str]:
        """The gap, or None and why there is none."""
        if self.ended.how != "finished":
            return None, self.ended.reason
        if not self.compared:
            return None, "its images are not those of the undisturbed run"
        if self.same:
            return 0.0, ""
        gap = self.ground.gap(self.folder)
        if not math.isfinite(gap):
            return None, "its weights at the end are not finite"
        return gap, "" if self.same is None else "it is not bitwise as the undisturbed run"

    def _lost(self) -> dict[str, int]:
        batch = self.ground.config.training.batch
        files = RunDir(self.folder).checkpoint_files()
        images = max(0, int(files[-1].stem) - self.began) if files else 0
        made = self.witness.updates, self.witness.images
        kept = (images + batch - 1) // batch, images
        if self.ended.how in ("crashed", "hung"):
            kept = made
        return lost_by(self.witness.left_out(), made, kept)


def disturb(ground: Ground, faults: Sequence[Fault], name: str) -> Disturbed:
    """Make one run in which all of these faults happen.

    Args:
        ground: what runs have in common; its base is trained.
        faults: of one stage; a fault of the system is alone.
        name: of the run folder.

    Raises:
        Interrupted, KeyboardInterrupt: a person wants to stop the drill.
        UsageError: a fault does not fit this network or these images.
    """
    kinds = [KINDS[f.kind] for f in faults]
    whole = any(kind.whole for kind in kinds)
    if any(kind.stage == "system" for kind in kinds):
        return _of_system(ground, faults[0], name, whole=whole)
    if any(kind.stage == "files" for kind in kinds):
        return _of_files(ground, faults, name)
    config = ground.config
    if changes := overrides(list(faults), config):
        batch = changes.get("training.batch", config.training.batch)
        changes["training.images"] = (ground.base + ground.steps) * batch
        config = plan.changed(config, changes)
    if any(kind.cause in _IN_SAMPLES for kind in kinds):
        config = plan.with_many_looks(config)
    folder = ground.folder(name, whole=whole)
    witness = Witness(RunDir(folder), Disturbance(list(faults)), ground.tick)
    ended = attempt(ground, ground.job(folder, config), witness)
    witness.look()
    began = 0 if whole else ground.base_images
    injected = [_injected(f, witness) for f in faults]
    return Disturbed(ground, name, folder, injected, witness.events, witness, ended, began)


def _injected(fault: Fault, witness: Witness) -> Injected:
    came = witness.updates > fault.at
    return Injected(fault, KINDS[fault.kind].cause, fault.at + 1 if came else None)


def _of_system(ground: Ground, fault: Fault, name: str, *, whole: bool) -> Disturbed:
    if fault.kind in ranks.KINDS:
        p = ranks.play_ranks(ground, fault, name)
    else:
        p = system.play(ground, fault, name, whole=whole)
    injected = [Injected(fault, KINDS[fault.kind].cause, p.update)]
    began = 0 if whole else ground.base_images
    return Disturbed(
        ground, name, p.folder, injected, p.events, p.witness, p.ended, began, same=p.same
    )


def _of_files(ground: Ground, faults: Sequence[Fault], name: str) -> Disturbed:
    folder, witness, ended = train_on_damaged(ground, faults, name)
    events = [replace(event, update=0) for event in witness.events]
    injected = [Injected(f, KINDS[f.kind].cause, 0) for f in faults]
    return Disturbed(ground, name, folder, injected, events, witness, ended, 0, compared=False)
