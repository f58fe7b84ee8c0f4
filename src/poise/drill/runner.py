"""The story of a drill: train a base, let each fault happen to it, score what the guard made of it.

One run after the other in this process. What is done is written as it is done, so that an
interrupted drill goes on where it was.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from poise.artifacts import DataFacts, RunDir
from poise.console import Bar, Screen
from poise.drill import plan
from poise.drill.disturbed import Disturbed, disturb
from poise.drill.faults import KINDS, TRAPS, Fault, fault
from poise.drill.ground import Ground, Learn, Measure, attempt, train_base
from poise.drill.healthy import Quiet, judged, total
from poise.drill.ledger import Ledger, key_of
from poise.drill.measure import validation_error
from poise.drill.overhead import measure_overhead, updates_of_overhead
from poise.drill.score import Outcome, cause_of, summary
from poise.drill.witness import Untouched, Witness
from poise.errors import Interrupted, TrainingError, UsageError, nearest
from poise.pipeline import facts_of, read_data
from poise.runtime import choose_runtime
from poise.settings import Config, StabilityConfig

Runs = Sequence[Sequence[Fault]]


@dataclass(frozen=True)
class Request:
    """What the user asked for."""

    source: str
    runs: Runs | None = None  # the faults of each run; None: every kind that fits, alone
    only: frozenset[str] = frozenset()  # kinds; empty: all
    preset: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    base: int = 300  # updates before the first fault
    steps: int = 200  # updates after that
    healthy_steps: int = 500  # of each seed, without faults
    seeds: tuple[int, ...] = (0,)  # the first one is that of the faults, too
    checkpoint_every: int = plan.BETWEEN_CHECKPOINTS  # updates
    keep: Path | None = None  # where runs and results stay


def drill(
    request: Request,
    screen: Screen,
    *,
    learn: Learn,
    measure: Measure = validation_error,
    save: Callable[[dict[str, Any]], None] = lambda found: None,
) -> dict[str, Any]:
    """Run the drill; what it found as plain data: faults, healthy, overhead, and more.

    Args:
        request: what to do.
        screen: what the person sees.
        learn: a training session.
        measure: how good the weights of a run are.
        save: called with the result, also with what is done when a person stops the drill.

    Raises:
        UsageError: a setting, kind or number that cannot be.
        DataError: the images cannot be used.
        TrainingError: the undisturbed run does not come to its end.
        Interrupted: a person stopped it, after what is done was saved.
    """
    _check(request)
    with _workshop(request.keep) as root:
        ground = _prepare(request, root, screen, learn, measure)
        work = _Work(request, ground, Ledger.opened(root, _plan(request, ground)), screen)
        with screen.bar("drill", work.total) as bar:
            work.follow(bar)
            try:
                work.everything()
            except (Interrupted, KeyboardInterrupt):
                found = work.found(unfinished=True)
                save(found)
                raise Interrupted(
                    f"The drill was stopped; {len(found['faults'])} faults are scored.",
                    remedy="Go on with the same command."
                    if request.keep
                    else "With --keep DIR the same command goes on where it was.",
                ) from None
    found = work.found()
    save(found)
    return found


def _check(request: Request) -> None:
    for name, value, least in (
        ("--base", request.base, 1),
        ("--steps", request.steps, 1),
        ("--healthy-steps", request.healthy_steps, 0),
    ):
        if value < least:
            raise UsageError(f"{name} {value} is too little.", expected=f"{least} or more")
    for kind in sorted(request.only - KINDS.keys()):
        raise UsageError(
            f"There is no kind of fault {kind!r}. {nearest(kind, KINDS)}".rstrip(),
            remedy="`poise drill --list` tells what each of them does.",
        )


@contextmanager
def _workshop(keep: Path | None) -> Iterator[Path]:
    """The folder of the drill: the one to keep, or one that is thrown away."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="poise-drill-", ignore_cleanup_errors=True) as scratch:
        yield Path(scratch)


def _prepare(
    request: Request, root: Path, screen: Screen, learn: Learn, measure: Measure
) -> Ground:
    """Read the images, settle the settings."""
    own = request.preset is not None
    overrides = {**request.overrides, "seed": request.seeds[0]}
    early = plan.early_config(request.preset, overrides)
    dataset, splits = read_data(request.source, early, RunDir(root), screen)
    dataset = plan.fit_images(dataset, own=own, overrides=overrides, say=screen.say)
    updates = request.base + request.steps
    config = plan.drill_config(
        dataset, splits, request.preset, overrides, updates, request.checkpoint_every
    )
    facts: DataFacts = facts_of(dataset, splits)
    runtime = choose_runtime(config.training.precision, config.training.threads)
    network = f"preset {request.preset}" if own else "a small network of the drill's own"
    screen.say(
        f"{network}: {config.model.channels} channels, batch {config.training.batch}; "
        f"{request.base} updates before the faults, {request.steps} after"
    )
    return Ground(
        root=root,
        source=request.source,
        config=config,
        dataset=dataset,
        splits=splits,
        facts=facts,
        runtime=runtime,
        learn=learn,
        base=request.base,
        steps=request.steps,
        measure=measure,
    )


def _plan(request: Request, ground: Ground) -> dict[str, Any]:
    """What must be the same for a kept drill to go on."""
    return {
        "settings": ground.config.model_dump(mode="json"),
        "images": ground.dataset.fingerprint,
        "base": request.base,
        "steps": request.steps,
    }


@dataclass
class _Work:
    """All runs of a drill: what is to be done, and what came of it."""

    request: Request
    ground: Ground
    ledger: Ledger
    screen: Screen
    runs: list[list[Fault]] = field(init=False)
    traps: list[Fault] = field(init=False)
    skipped: list[dict[str, Any]] = field(init=False, default_factory=list)
    outcomes: list[Outcome] = field(init=False, default_factory=list)
    quiet: list[Quiet] = field(init=False, default_factory=list)
    overhead: float | None = field(init=False, default=None)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        asked = self.request.runs
        chosen = [[fault(kind)] for kind in KINDS] if asked is None else [list(r) for r in asked]
        if self.request.only:
            chosen = [run for run in chosen if any(f.kind in self.request.only for f in run)]
        self.traps = [f for run in chosen for f in run if run == [f] and f.kind in TRAPS]
        self.runs = [run for run in chosen if any(f.kind not in TRAPS for f in run)]
        if asked is not None and not self.request.only and self.request.healthy_steps:
            given = {trap.kind for trap in self.traps}
            self.traps += [fault(kind) for kind in TRAPS if kind not in given]
        self._fit()
        self.total = self._updates()

    def follow(self, bar: Bar) -> None:
        """Show every update from now on."""
        self._done, self._note, self._bar = 0, "", bar

        def tick() -> None:
            self._done += 1
            bar.show(min(self._done, self.total), self.total, note=self._note)

        self.ground.tick = tick

    def everything(self) -> None:
        """The undisturbed run, the faults, the healthy runs and traps, the overhead."""
        self._note = "undisturbed"
        self._undisturbed()
        for number, faults in enumerate(self.runs, start=1):
            self._note = f"{number} of {len(self.runs)}: {' + '.join(f.kind for f in faults)}"
            done = self._done
            self._faults(faults)
            self._done = done + self._length(faults)
        for seed in self._seeds():
            self._note = f"healthy, seed {seed}"
            self.quiet.append(self._healthy(seed))
        for trap in self.traps:
            self._note = f"trap: {trap.kind}"
            self._trap(trap)
        self._note = "overhead"
        self.overhead = self.ledger.once("overhead", self._overhead)["share"]

    def found(self, *, unfinished: bool = False) -> dict[str, Any]:
        """Everything as plain data."""
        found: dict[str, Any] = {
            "faults": [outcome.to_json() for outcome in self.outcomes],
            "healthy": total(self.quiet),
            "overhead": self.overhead,
            "score": summary(self.outcomes),
            "skipped": self.skipped,
        }
        if unfinished:
            done = len({outcome.run for outcome in self.outcomes})
            found["unfinished"] = f"{done} of {len(self.runs)} disturbed runs are done"
        return found

    def _undisturbed(self) -> None:
        if not self.ground.base_folder.exists():
            self.ledger.forget("undisturbed")
        row = self.ledger.once("undisturbed", self._train_base)
        self.ground.reference, self.ground.seconds = row["error"], row["seconds"]
        self.ground.ordinary = {(cause, seen) for cause, seen in row["said"]}
        self.quiet.append(Quiet.from_json(row["quiet"]))

    def _train_base(self) -> dict[str, Any]:
        witness = train_base(self.ground)
        quiet = judged("undisturbed", witness.updates, witness.events)
        return {
            "error": self.ground.reference,
            "seconds": self.ground.seconds,
            "said": [[cause_of(e), e.row["images_seen"]] for e in witness.events],
            "quiet": quiet.to_json(),
        }

    def _faults(self, faults: list[Fault]) -> None:
        key = key_of(faults)
        try:
            row = self.ledger.once(key, lambda: self._disturb(faults, key))
        except UsageError as error:  # it does not fit this network or these images
            self._skip(faults, str(error))
            return
        self.outcomes += [Outcome.from_json(one) for one in row["outcomes"]]
        if self.request.keep is None:
            self.ground.throw_away(key)

    def _disturb(self, faults: list[Fault], key: str) -> dict[str, Any]:
        return {"outcomes": [o.to_json() for o in disturb(self.ground, faults, key).outcomes()]}

    def _trap(self, trap: Fault) -> None:
        key = key_of([trap])

        def act() -> dict[str, Any]:
            run: Disturbed = disturb(self.ground, [trap], key)
            trouble = "" if run.ended.how == "finished" else run.ended.reason
            return judged(trap.kind, run.witness.updates, run.news(), trouble).to_json()

        self.quiet.append(Quiet.from_json(self.ledger.once(key, act)))
        if self.request.keep is None:
            self.ground.throw_away(key)

    def _seeds(self) -> list[int]:
        """Seeds of healthy runs; the undisturbed run is one already, if it is long enough."""
        steps, (first, *more) = self.request.healthy_steps, self.request.seeds
        if not steps:
            return []
        longer = steps > self.request.base + self.request.steps
        return [*([first] if longer else []), *more]

    def _healthy(self, seed: int) -> Quiet:
        return Quiet.from_json(self.ledger.once(f"healthy-{seed}", lambda: self._quiet(seed)))

    def _quiet(self, seed: int) -> dict[str, Any]:
        config = self._settings(self.request.preset, self.request.healthy_steps, seed=seed)
        folder = self.ground.folder(f"healthy-{seed}", whole=True)
        witness = Witness(RunDir(folder), Untouched(), self.ground.tick)
        ended = attempt(self.ground, self.ground.job(folder, config), witness)
        witness.look()
        trouble = "" if ended.how == "finished" else ended.reason
        return judged(f"seed {seed}", witness.updates, witness.events, trouble).to_json()

    def _overhead(self) -> dict[str, Any]:
        preset = self.request.preset or plan.usual_preset(self.ground.dataset.resolution)
        own = {"stability.probe_every", "cadence.logs"} & set(self.request.overrides)
        every = StabilityConfig().probe_every  # as a training has it, not a drill
        config = self._settings(preset, updates_of_overhead(every), seed=self.request.seeds[0])
        if "stability.probe_every" not in own:
            config = plan.changed(config, {"stability.probe_every": every})
        if config.stability.policy == "off":
            return {"share": None}
        try:
            return {"share": measure_overhead(self.ground, config)}
        except TrainingError as error:
            self.screen.say(f"note: the overhead was not measured: {error}")
            return {"share": None}

    def _settings(self, preset: str | None, updates: int, *, seed: int) -> Config:
        ground, overrides = self.ground, {**self.request.overrides, "seed": seed}
        every = self.request.checkpoint_every
        return plan.drill_config(ground.dataset, ground.splits, preset, overrides, updates, every)

    def _fit(self) -> None:
        """Leave out, and name, what these images or this network do not have."""
        fitting = []
        for run in self.runs:
            lacks = [why for f in run if (why := self._lack(f))]
            if lacks:
                self._skip(run, lacks[0])
            else:
                fitting.append(run)
        self.runs = fitting
        self.traps = [trap for trap in self.traps if not self._lack(trap)]

    def _lack(self, one: Fault) -> str:
        needs = KINDS[one.kind].needs
        if needs == "classes" and not self.ground.facts.label_names:
            return "these images have no classes"
        if needs == "uncertainty" and self.ground.config.diffusion.weighting != "uncertainty":
            return "the weighting of errors is not learned here"
        return ""

    def _skip(self, run: list[Fault], why: str) -> None:
        kinds = [f.kind for f in run]
        self.skipped.append({"kinds": kinds, "reason": why})
        self.screen.say(f"note: {' + '.join(kinds)} cannot happen here: {why}")

    def _length(self, faults: Sequence[Fault]) -> int:
        """Updates of a run, about."""
        whole = any(KINDS[f.kind].whole for f in faults)
        return self.ground.steps + (self.ground.base if whole else 0)

    def _updates(self) -> int:
        runs = sum(map(self._length, [*self.runs, *([t] for t in self.traps)]))
        healthy = len(self._seeds()) * self.request.healthy_steps
        overhead = 2 * updates_of_overhead(StabilityConfig().probe_every)
        return self.ground.base + self.ground.steps + runs + healthy + overhead
