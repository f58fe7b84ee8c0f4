"""What a kind of fault is, and one fault with its numbers. Plain data; nothing here acts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Stage = Literal["run", "files", "system"]


@dataclass(frozen=True)
class Fault:
    """One fault: what happens, when, where, and how strongly."""

    kind: str  # a name of `faults.KINDS`
    at: int = 40  # updates made since the drill's base checkpoint when it begins, >= 0
    duration: int | None = None  # updates it lasts, >= 1; None: for good
    magnitude: float = 1.0  # what it measures is told by the sentence of its kind
    tensor: str = ""  # name, glob or regular expression of tensors or layers, or a role
    band: int | None = None  # noise band 0..7, lowest noise first
    share: float = 1.0  # of data, units, ..., in (0, 1]
    seed: int = 0  # all its chance follows from it
    used: tuple[str, ...] = ()  # the parameters that mean something to this kind
    ignored: tuple[str, ...] = ()  # parameters that were given and mean nothing to this kind

    def parameters(self) -> dict[str, Any]:
        """The parameters that mean something to this kind, by name; plain data for JSON."""
        return {name: getattr(self, name) for name in self.used}

    def over(self, updates: int) -> bool:
        """Whether its time is up before an update that `updates` others went before."""
        return self.duration is not None and updates >= self.at + self.duration


@dataclass(frozen=True)
class Kind:
    """A kind of fault, with what it should be called when it is found."""

    name: str
    cause: str  # the true cause, a name of `stability.causes.CAUSES`; "": a trap, nothing is wrong
    stage: Stage  # "run": acts in a running training; "files": on image files before it is read
    sentence: str  # what happens, and what `magnitude`, `share` and `tensor` measure
    row: str  # of the fault matrix in docs, such as A1
    uses: tuple[str, ...] = ("at", "seed")  # the parameters that mean something
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they differ from `Fault`'s
    limits: tuple[float, float] = (0.0, math.inf)  # smallest and largest `magnitude`
    single_step: bool = False  # one update is hit, and leaving it out is the whole repair
    returns: bool = False  # not mended by a rollback or a restart: the run has to stop
    whole: bool = False  # concerns the run from its first update: the base checkpoint is no use
    needs: str = ""  # "classes", "uncertainty" (the learned weighting) or ""
