"""Where workers get their trials: the schedule over the storage, under one lock.

Every trial is one of Optuna's. What Optuna has no place for lies in its attributes: `role`,
`settings`, and `at`, which says in one write how far it is and who is at it.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.artifacts import RunDir
from poise.errors import ArtifactError
from poise.runtime import seed_at
from poise.tuning import schedule
from poise.tuning.plan import Plan, trial_folder
from poise.tuning.presence import living
from poise.tuning.samplers import draw
from poise.tuning.schedule import (
    COMPLETE,
    DEFAULT,
    DIVERGED,
    ENDED,
    FAILED,
    PAUSED,
    REPEAT,
    RUNNING,
    SEARCH,
    STOPPED,
    Draw,
    GiveUp,
    Over,
    Take,
    Trial,
    Wait,
)
from poise.tuning.space import ask, decode, default_point, encode, grid
from poise.tuning.storage import lock

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_POLL = 1.0  # seconds between two looks for work
_DEADLY = (
    "Its process was ended without a word again and again before it came further, as happens where "
    "memory runs out."
)
_BEGUN: Mapping[str, Any] = {  # what is known of a trial before its first rung
    "state": RUNNING,
    "worker": None,
    "rung": -1,
    "cost": 0.0,
    "proxy": [],
    "images_seen": 0,
    "images": 0,
    "values": None,
    "free": {},
    "tried": [],
    "diagnosis": "",
    "ended": None,
    "claims": 0,  # since it was last seen to have come further
    "saved": "",  # its newest checkpoint at the last of them
}
_CLAIMS = 8  # that a trial may have without coming further: its process was killed each time


@dataclass(frozen=True)
class Errand:
    """What a worker is to do: bring one trial to a rung.

    Attributes:
        number: of the trial.
        role: "default", "search" or "repeat".
        settings: dotted names and values that differ from the base.
        free: for a repeat: what it samples with, as the trial it repeats.
        rung: the rung to reach.
        reached: the rung it is at; -1: it has not begun.
        seed: 0; of a repeat, from 1.
    """

    number: int
    role: str
    settings: Mapping[str, Any]
    free: Mapping[str, Any]
    rung: int
    reached: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What became of an errand.

    Attributes:
        proxy: of each rung reached on this errand, in order.
        images_seen: by the trial in all.
        images: that it would see at its end.
        values: of the metrics; None: not at its end, or nothing came of it.
        free: what its samples were drawn with.
        tried: the free settings that were tried, with their metrics.
        ended: "" while it may go on, else "diverged" or "failed".
        diagnosis: in words, why it ended or what was noticed.
    """

    proxy: tuple[float, ...]
    images_seen: int
    images: int
    values: tuple[float, ...] | None = None
    free: Mapping[str, Any] | None = None
    tried: tuple[Mapping[str, Any], ...] = ()
    ended: str = ""
    diagnosis: str = ""


class Desk:
    """The trials of one study, for one worker."""

    def __init__(
        self, study: "Study", plan: Plan, base: Mapping[str, Any], root: Path, me: str
    ) -> None:
        """
        Args:
            study: Optuna's, with its storage.
            plan: what the study is to do.
            base: the preset's own value of each setting.
            root: the folder of the study.
            me: the name of this worker in `root/workers`.
        """
        self._study, self._plan, self._base = study, plan, base
        self._root, self._me = root, me
        self._grid: list[dict[str, Any]] | None = None
        if plan.sampler == "grid":
            self._grid = _grid_points(plan, base)

    def next(self, on_end: Callable[[int], None] = lambda number: None) -> Errand | None:
        """The next errand, now or when others have made one possible; None: the study is over.

        Args:
            on_end: told the number of each trial that is given up on the way.
        """
        while True:
            with lock(self._root):
                step = self._step(on_end)
                if isinstance(step, Take):
                    return self._claim(step)
                if isinstance(step, Draw):
                    return self._draw(step)
            if isinstance(step, Over):
                return None
            time.sleep(_POLL)

    def bring_back(self, errand: Errand, outcome: Outcome, seconds: float) -> bool:
        """Write down what became of an errand; False: another worker has taken the trial over.

        All of it goes in one write, so that whoever kills this process leaves all or nothing.
        """
        with lock(self._root):
            frozen = self._frozen(errand.number)
            at = progress_of(frozen)
            if frozen.state.is_finished() or at.get("worker") != self._me:
                return False
            proxy = [*at["proxy"], *(p if math.isfinite(p) else None for p in outcome.proxy)]
            ended = outcome.ended or (COMPLETE if outcome.values is not None else "")
            self._set(
                frozen,
                "at",
                {
                    "state": ended or PAUSED,
                    "worker": None,
                    "rung": at["rung"] if outcome.ended else errand.rung,
                    "cost": at["cost"] + seconds,
                    "proxy": proxy,
                    "images_seen": outcome.images_seen,
                    "images": outcome.images,
                    "values": None if outcome.values is None else list(outcome.values),
                    "free": dict(outcome.free or {}),
                    "tried": [_finite(row) for row in outcome.tried],
                    "diagnosis": outcome.diagnosis,
                    "ended": _now() if ended else None,
                },
            )
            self._pass_on(self._frozen(errand.number))
            return True

    def put_back(self, errand: Errand, seconds: float) -> None:
        """Leave an errand for whoever comes next: its checkpoint is saved."""
        with lock(self._root):
            frozen = self._frozen(errand.number)
            at = progress_of(frozen)
            if not frozen.state.is_finished() and at.get("worker") == self._me:
                back = {"worker": None, "cost": at["cost"] + seconds, "claims": 0}
                self._set(frozen, "at", {**at, **back})

    def trials(self) -> list[Trial]:
        """All trials as the schedule sees them, for a worker that is at none."""
        others = living(self._root / "workers", self._me) - {self._me}
        return [trial_of(frozen, self._plan, others) for frozen in self._all()]

    def _step(self, on_end: Callable[[int], None]) -> Take | Draw | Wait | Over:
        for frozen in self._all():
            if not frozen.state.is_finished() and progress_of(frozen)["state"] in ENDED:
                self._pass_on(frozen)  # its worker was killed between two writes
        points = None if self._grid is None else len(self._grid)
        while True:
            step = schedule.next_step(self.trials(), self._plan, points)
            if isinstance(step, Take) and self._is_deadly(step.number):
                end = {"state": FAILED, "worker": None, "diagnosis": _DEADLY}
            elif isinstance(step, GiveUp):
                end = {"state": STOPPED}
            else:
                return step
            frozen = self._frozen(step.number)
            self._set(frozen, "at", {**progress_of(frozen), **end, "ended": _now()})
            self._pass_on(self._frozen(step.number))
            on_end(step.number)

    def _is_deadly(self, number: int) -> bool:
        """Whether each process that was at a trial was killed before the trial came further."""
        at = progress_of(self._frozen(number))
        return int(at["claims"]) >= _CLAIMS and self._saved(number) == at["saved"]

    def _saved(self, number: int) -> str:
        """The name of a trial's newest checkpoint; empty: there is none."""
        files = RunDir(trial_folder(self._root, number)).checkpoint_files()
        return files[-1].name if files else ""

    def _claim(self, step: Take) -> Errand:
        from optuna.trial import TrialState

        frozen = self._frozen(step.number)
        if frozen.state == TrialState.WAITING:  # its worker was killed before it took it
            self._study._storage.set_trial_state_values(frozen._trial_id, TrialState.RUNNING)
        if "settings" not in frozen.user_attrs:  # or before it had written down what it is
            self._settle(frozen)
            frozen = self._frozen(step.number)
        attrs, at = frozen.user_attrs, progress_of(frozen)
        saved = self._saved(step.number)
        claims = 1 + (at["claims"] if saved == at["saved"] else 0)
        mine = {"state": RUNNING, "worker": self._me, "claims": claims, "saved": saved}
        self._set(frozen, "at", {**at, **mine})
        return Errand(
            step.number,
            attrs["role"],
            attrs["settings"],
            attrs.get("free", {}),
            step.rung,
            int(at["rung"]),
            int(attrs.get("seed", 0)),
        )

    def _draw(self, step: Draw) -> Errand:
        """A new trial, already claimed."""
        trials = self._all()
        attrs: dict[str, Any] = {"role": step.role, "bracket": step.bracket, "started": _now()}
        if step.of is not None:
            model = next(t for t in trials if t.number == step.of)
            attrs |= {"of": step.of, "seed": step.seed, "free": progress_of(model)["free"]}
        params = encode(self._plan.space, self._point(step, trials))
        self._study.enqueue_trial(params, user_attrs=attrs)  # one write, with all that it is
        trial = self._study.ask()
        self._settle(self._frozen(trial.number))
        role = self._frozen(trial.number).user_attrs["role"]
        last = len(self._plan.rungs) - 1
        return self._claim(Take(trial.number, 0 if role == SEARCH else last))

    def _settle(self, frozen: "FrozenTrial") -> None:
        """Write down the settings of a trial that was made."""
        import optuna

        trial = optuna.trial.Trial(self._study, frozen._trial_id)
        settings = ask(self._plan.space, trial, self._base)
        self._set(frozen, "settings", settings)

    def _point(self, step: Draw, trials: list["FrozenTrial"]) -> dict[str, Any]:
        """The settings of a new trial."""
        space = self._plan.space
        if step.role == DEFAULT:
            return default_point(space, self._base)
        if step.role == REPEAT:
            return decode(space, next(t for t in trials if t.number == step.of).params)
        if self._grid is not None:
            drawn: int = sum(t.user_attrs.get("role") == SEARCH for t in trials)
            return self._grid[drawn]
        seed = seed_at(self._plan.seed, len(trials), "sampler") % 2**31
        known = [trial_of(frozen, self._plan, set()) for frozen in trials]
        return draw(self._plan, known, self._base, seed)

    def _pass_on(self, frozen: "FrozenTrial") -> None:
        """Tell Optuna what `at` says: the proxy at each rung, and how the trial ended."""
        from optuna.trial import TrialState

        at = progress_of(frozen)
        if len(self._plan.metrics) == 1 and frozen.user_attrs.get("role") != REPEAT:
            sign = 1.0 if self._plan.better[0] == "lower" else -1.0  # the proxy is an error
            values = {i: sign * p for i, p in enumerate(at["proxy"]) if p is not None}
            if at["state"] == DIVERGED and not values:
                values[0] = sign * self._worst()
            for rung in values.keys() - frozen.intermediate_values.keys():
                # as Trial.report does, for a trial that may be somebody else's
                self._study._storage.set_trial_intermediate_value(
                    frozen._trial_id, rung, values[rung]
                )
        if at["state"] == COMPLETE:
            self._study.tell(frozen.number, at["values"])
        elif at["state"] in (STOPPED, DIVERGED):
            self._study.tell(frozen.number, state=TrialState.PRUNED)
        elif at["state"] == FAILED:
            self._study.tell(frozen.number, state=TrialState.FAIL)

    def _worst(self) -> float:
        """A proxy beyond all that is known, in the same units."""
        seen = [p for t in self._all() for p in progress_of(t)["proxy"] if p is not None]
        return float(max(seen, default=0.0)) + 1.0

    def _all(self) -> list["FrozenTrial"]:
        return self._study.get_trials(deepcopy=False)

    def _frozen(self, number: int) -> "FrozenTrial":
        for frozen in self._study.get_trials(deepcopy=False):
            if frozen.number == number:
                return frozen
        raise ArtifactError(f"Trial {number} is no longer in the storage of the study.")

    def _set(self, frozen: "FrozenTrial", name: str, value: Any) -> None:
        self._study._storage.set_trial_user_attr(frozen._trial_id, name, value)


def trial_of(frozen: "FrozenTrial", plan: Plan, alive: set[str]) -> Trial:
    """A stored trial as the schedule sees it.

    Args:
        frozen: Optuna's.
        plan: what the study is to do.
        alive: names of living workers.
    """
    attrs, at = frozen.user_attrs, progress_of(frozen)
    return Trial(
        number=frozen.number,
        role=attrs.get("role", SEARCH),
        state=at["state"],
        rung=int(at["rung"]),
        proxy=tuple(math.nan if p is None else float(p) for p in at["proxy"]),
        bracket=int(attrs.get("bracket", 0)),
        claimed=at["worker"] in alive,
        cost=float(at["cost"]),
        costs=_costs(at, plan.better),
        of=attrs.get("of"),
        seed=int(attrs.get("seed", 0)),
        settings=dict(attrs.get("settings", {})),
    )


def progress_of(frozen: "FrozenTrial") -> dict[str, Any]:
    """How far a trial is, who is at it, and what it has shown."""
    return {**_BEGUN, **frozen.user_attrs.get("at", {})}


def _costs(at: Mapping[str, Any], better: Sequence[str]) -> tuple[float, ...]:
    """Values turned so that lower is better; empty unless complete."""
    pairs = zip(at["values"] or (), better, strict=False)
    return tuple(value if way == "lower" else -value for value, way in pairs)


def _grid_points(plan: Plan, base: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The grid without the preset's own point, in an order that follows from the seed."""
    import random

    known = default_point(plan.space, base)
    points = [point for point in grid(plan.space, base) if point != known]
    random.Random(seed_at(plan.seed, 0, "grid")).shuffle(points)
    return points


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """A candidate with its metrics; JSON holds no nan."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
