"""The training of a run: sessions of the loop, watched by the guard, written down by the journal.

A session ends when the run is over, or when a repair needs the stream of batches to begin anew.
"""

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from poise.artifacts import read_jsonl, write_json
from poise.budget import GRID_IMAGES
from poise.console import Bar, Screen
from poise.data.batches import Batch
from poise.data.prefetch import Feed
from poise.errors import ArtifactError, DataError, Interrupted, UsageError
from poise.evaluation.standing import ranked, standing
from poise.journal import Journal, Prepared, log_event
from poise.learning.fresh import feed_from, fresh_state
from poise.learning.lead import Lead, leading
from poise.learning.repair import Rate, Repairer
from poise.learning.session import Quarantine, Tamper
from poise.learning.watch import Watch
from poise.processes import this_process
from poise.sampling import write_choice
from poise.scoring import scoring_seconds
from poise.scoring.snapshots import Watcher
from poise.signals import Caught, StopNow, catch_signals
from poise.sinks import Failure, open_sinks
from poise.stability.incident import Incident, Sign
from poise.stability.memory import is_out_of_memory
from poise.stability.turning import has_turned
from poise.training.loop import StepRecord, TrainState, steps
from poise.training.parallel import World
from poise.training.schedules import plateau_factor

_MEASURE_EVERY = 10  # updates between two measurements of the update's size
_REPORT_SECONDS = 5.0
_SCORE_SHARE = 0.1  # of a budget, until the first grid shows how long a sample takes


@dataclass
class Training:
    """All that takes part in the training of one run."""

    job: Prepared
    screen: Screen
    state: TrainState
    journal: Journal
    watch: Watch
    quarantine: Quarantine
    rate: Rate
    repairer: Repairer
    tamper: Tamper | None
    features: float  # seconds kept for the features of the scores
    scores: Watcher  # of snapshots
    goal: int  # images seen at which this call ends
    over: bool = False  # by the budget, or because more would do harm
    lead: Lead | None = None  # of the other processes of this training
    best: tuple[str, int] | None = None  # weights and images seen, once held-out images get worse


def learn(
    job: Prepared,
    screen: Screen,
    *,
    tamper: Tamper | None = None,
    world: World | None = None,
    until: int | None = None,
) -> int:
    """Train until the images or the time are used up; returns the images seen.

    Args:
        job: the run; it goes on from the newest whole checkpoint in its folder.
        screen: what the person sees.
        tamper: somebody who disturbs it on purpose, in a fire drill.
        world: the processes that take part, of which this is rank 0; None: this one alone.
        until: pause after so many images, with everything saved; None: all of the settings'.

    Raises:
        Interrupted: a signal came; the state is saved.
        Stopped: the guard ended it, with the reason; or another process was lost.
    """
    goal = job.config.training.images if until is None else until
    training = _assemble(job, screen, tamper, goal)
    with leading(world, training.journal):
        if world is not None:
            training.lead = Lead(world, training.state, training.quarantine, until=goal)
        try:
            return _learn(training)
        finally:
            job.run.alive.unlink(missing_ok=True)


def _learn(training: Training) -> int:
    job, screen = training.job, training.screen
    state, journal, total = training.state, training.journal, training.goal
    killed = job.run.alive.exists()
    write_json(job.run.alive, this_process())
    if journal.restore():
        log_event(job.run, state.images_seen, "info", "resumed", "The run was resumed here.")
        screen.say(f"resumed at {state.images_seen:,} images")
        if killed:
            _say_killed(journal)
    elif training.watch.guard.policy == "repair":
        journal.checkpoint()  # something to go back to from the first update on
    copying = _copying(journal)
    with copying, catch_signals() as caught, screen.bar("training", total) as bar:
        journal.breaking, caught.phase = caught.breaking, lambda: journal.phase
        try:
            journal.catch_up()
            _looked(training)
            while state.images_seen < total and not training.over:
                _session(training, caught, bar)
            journal.finish()
            _scored(training)
            _settle_best(training)
            if training.best is not None and training.watch.stops:
                _keep_best(job, *training.best)
            if caught.names:  # while the last files were written
                raise StopNow
        except StopNow:
            _interrupt(training, caught)
    return state.images_seen


def _say_killed(journal: Journal) -> None:
    seen = journal.state.images_seen
    text = "The last session ended without a word: it was killed, or the machine went down."
    sign = Sign("killed", "warning", seen, seen, text)
    journal.incident(Incident(sign, "resume", {"from": seen}))


@contextmanager
def _copying(journal: Journal) -> Iterator[None]:
    """Rows go to the dashboards of the settings as well; what goes wrong there is said once."""
    job = journal.job
    names, seen = job.config.sinks, journal.state.images_seen
    sinks = open_sinks(names, job.run.root, job.config.model_dump(), images_seen=seen)

    def told(failures: list[Failure]) -> None:
        for failure in failures:
            now = journal.state.images_seen
            culprit = {"sink": failure.sink}
            sign = Sign("log-failed", "warning", now, now, failure.sentence, culprit=culprit)
            journal.incident(Incident(sign, "none", {"rows": failure.lost}))

    journal.copy = lambda log, row: told(sinks.send(log, row))
    try:
        yield
    finally:
        journal.copy = lambda log, row: None
        told(sinks.close())


def _assemble(job: Prepared, screen: Screen, tamper: Tamper | None, goal: int) -> Training:
    config = job.config
    features = 0.0 if job.clock.budget is None else scoring_seconds(job)
    state = fresh_state(job, screen.say)
    journal = Journal(job, state)
    journal.watched = config.stability.policy != "off"
    journal.said = screen.say
    quarantine = Quarantine(len(job.facts.label_names), state.pixel_limit)
    rate = Rate(config.training.batch)
    watch = Watch(job, state)
    repairer = Repairer(state, journal, watch.guard, quarantine, rate, config)
    training = Training(
        job,
        screen,
        state,
        journal,
        watch,
        quarantine,
        rate,
        repairer,
        tamper,
        features,
        Watcher(job),
        goal,
    )
    journal.memory = lambda: _memory(training)
    journal.recall = lambda memory: _recall(training, memory)
    journal.quiet = watch.guard.quiet_for
    if watch.on:
        journal.summary, journal.pace = watch.summary.take, watch.summary.timing
    return training


def _memory(training: Training) -> dict[str, Any]:
    return {
        "guard": training.watch.state(),
        "quarantine": training.quarantine.state(),
        "rate": training.rate.state(),
        "probe": training.journal.probe,
        "precision": str(training.state.denoiser.dtype).removeprefix("torch."),
        "best": training.best,
    }


def _recall(training: Training, memory: dict[str, Any]) -> None:
    training.watch.restore(memory["guard"])
    training.quarantine.restore(memory["quarantine"])
    training.rate.restore(memory["rate"])
    training.journal.probe = memory["probe"]
    training.state.denoiser.dtype = getattr(torch, memory["precision"])
    training.best = None if memory["best"] is None else tuple(memory["best"])
    training.over = training.best is not None and training.watch.stops


def _session(training: Training, caught: Caught, bar: Bar) -> None:
    """Updates from the state's position on, until the end or a repair that needs a new stream."""
    fed = feed_from(training.job, training.state.images_seen)
    training.journal.waited = lambda: fed.waited_s
    training.watch.begin()
    stream = training.quarantine.pass_on(_tampered(training, fed))
    if training.lead is not None:
        training.lead.begin()
        stream = training.lead.stream(stream)
    with closing(fed):
        records = steps(
            training.state,
            stream,
            training.job.config,
            until=training.goal,
            measure_every=_MEASURE_EVERY,
        )
        if training.tamper is not None:
            records = training.tamper.records(records)
        try:
            for record in records:
                if _after(training, record, fed, caught, bar):
                    return
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or training.lead is not None:  # others wait for this one
                raise
            training.repairer.make_room(error)


def _tampered(training: Training, stream: Iterator[Batch]) -> Iterator[Batch]:
    if training.tamper is None:
        return stream
    training.tamper.begin(training.state, training.journal)
    return training.tamper.stream(stream)


def _after(training: Training, record: StepRecord, fed: Feed, caught: Caught, bar: Bar) -> bool:
    """What follows an update: judge, repair, write down; true if the session is over."""
    journal, watch = training.journal, training.watch
    orders = watch.judge(record, fed.waited_s) + watch.look(record, journal)
    if training.lead is not None:
        orders = training.lead.judged(record, orders, watch.guard)
        training.lead.pass_on_signals(caught)
    if orders and training.repairer.carry_out(orders):
        return True
    journal.note(record)
    if _looked(training):
        return True
    bar.show(record.images_seen, note=_note(journal))
    if caught.names:
        raise StopNow
    training.over |= training.job.clock.left() < _reserved_seconds(training)
    return training.over


def _looked(training: Training) -> bool:
    """What follows from the looks after an update, also from one made up for on resuming.

    Sets the rate of the next update. True if the session is over.
    """
    journal, rate, seen = training.journal, training.rate, training.state.images_seen
    orders = training.watch.look_at_grid(journal)
    if orders and training.repairer.carry_out(orders):
        return True
    if seen and journal.validated_at == seen:
        _validated(training)
    _scored(training)
    if rate.held or rate.warming(seen):
        training.state.lr_scale = rate.at(seen)
    training.watch.guard.expect_scale(rate.at(seen))
    return False


def _validated(training: Training) -> None:
    """What a new validation decides: the rate of the plateau schedule, and whether to go on."""
    job, rate, seen = training.job, training.rate, training.state.images_seen
    rows = read_jsonl(job.run.log("validation"))
    if job.config.training.decay == "plateau":
        errors: dict[int, float] = {}
        for row in rows:
            at = row["images_seen"]
            errors[at] = min(errors.get(at, math.inf), row["loss"])
        rate.plateau = plateau_factor(list(errors.values()), job.config.training)
        training.state.lr_scale = rate.at(seen)
    if job.config.stability.policy == "off" or training.best:
        return
    # A line of this very moment is there only if the run was stopped after it was written.
    scores = [row for row in read_jsonl(job.run.log("scores")) if row["images_seen"] < seen]
    found = has_turned(rows + ranked(scores))
    if found is None:
        return
    training.best = found.weights, found.images_seen
    training.over = training.watch.stops
    evidence = {"best_at": found.images_seen, "rise": found.rise}
    sign = Sign("memorisation", "warning", seen, found.images_seen, found.sentence, evidence)
    training.journal.incident(Incident(sign, "keep-best" if training.over else "none"))


def _scored(training: Training) -> None:
    """Score the snapshot that was just written, where that is due; past the best the run ends."""
    journal, seen = training.journal, training.state.images_seen
    if not training.job.run.snapshot_at(seen).exists():  # after most updates
        return
    if training.scores.due(seen):
        journal.phase = "score"
        try:
            with journal.breaking():
                training.scores.score(seen)
        except (ArtifactError, DataError, UsageError, MemoryError) as error:
            _not_scored(training, error)
        journal.phase = "step"
    found = training.scores.standing(seen)
    off = training.job.config.stability.policy == "off"
    if found is None or not found.turned or training.best or off:
        return
    training.best = found.weights, found.images_seen
    training.over |= training.watch.stops
    evidence = {"best_at": found.images_seen, "worse": list(found.worse)}
    sign = Sign("samples-worse", "warning", seen, found.images_seen, found.sentence(), evidence)
    journal.incident(Incident(sign, "keep-best" if training.watch.stops else "none"))


def _settle_best(training: Training) -> None:
    """At the end: name the best snapshot, and keep it if the newest is clearly worse."""
    job, seen = training.job, training.state.images_seen
    found = standing(read_jsonl(job.run.log("scores")))
    if found is None:
        return
    log_event(job.run, seen, "info", "best_snapshot", found.sentence())
    if found.passed and training.best is None:
        training.best = found.weights, found.images_seen


def _not_scored(training: Training, error: Exception) -> None:
    """A snapshot that cannot be scored does not end the training: it is said, and it goes on."""
    seen, text = training.state.images_seen, getattr(error, "found", str(error))
    found = f"The snapshot at {seen:,} images was not scored: {text}"
    evidence = {"error": type(error).__name__}
    sign = Sign("log-failed", "warning", seen, seen, found, evidence)
    training.journal.incident(Incident(sign, "none"))


def _keep_best(job: Prepared, weights: str, images_seen: int) -> None:
    """Sample from the snapshot next to the best validation from now on."""
    seen = [int(path.stem) for path in job.run.snapshot_files()]
    nearest = min(seen, key=lambda images: abs(images - images_seen))
    write_choice(job.run, "weights", {"name": weights, "images_seen": nearest}, until=max(seen))


def _interrupt(training: Training, caught: Caught) -> None:
    """Save, say where, and end.

    Raises:
        Interrupted: always.
    """
    journal, seen = training.journal, training.state.images_seen
    phase, name = caught.during, caught.names[0]
    journal.phase = "step"
    journal.checkpoint()
    message = f"{name} came during a {phase}; the state at {seen:,} images is saved."
    log_event(journal.job.run, seen, "info", "interrupted", message, cause="interrupted")
    raise Interrupted(
        f"Stopped by {name} at {seen:,} images; the state is saved.",
        remedy=f"Go on with: poise train SOURCE --run {journal.job.run.root} --resume",
    )


def _reserved_seconds(training: Training) -> float:
    """Time to keep for the last checks, the scores and the report; none without a budget."""
    job, journal = training.job, training.journal
    budget, grid = job.clock.budget, journal.took.get("grid")
    if budget is None:
        return 0.0
    samples = job.config.evaluation.samples or 0
    drawing = _SCORE_SHARE * budget if grid is None else samples / GRID_IMAGES * grid
    checks = (grid or 0.0) + journal.took.get("validation", 0.0)
    return _REPORT_SECONDS + training.features + checks + drawing


def _note(journal: Journal) -> str:
    error = "" if journal.last_error is None else f", error {journal.last_error:.3f}"
    return f"{journal.images_per_second:,.0f} images/s{error}"
