"""The story of a study: a plan, workers that search, the best settings trained, a page."""

import shlex
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from poise.artifacts import RunDir
from poise.console import Screen, duration
from poise.engines import cores
from poise.errors import ArtifactError, Interrupted, PoiseError, TrainingError, UsageError
from poise.report.report import write_report
from poise.report.study import write_study
from poise.tuning import final
from poise.tuning.begin import Request, check, settle_plan
from poise.tuning.fleet import run_workers
from poise.tuning.plan import Plan, read_plan
from poise.tuning.progress import Progress
from poise.tuning.storage import open_storage, open_study, shown, spoken
from poise.tuning.worker import Seat, directions, work

_SETTLING = 600.0  # seconds within which whoever leads has settled the plan


def tune(request: Request, screen: Screen) -> Path:
    """Search, train the best, write `study.json` and `study.html`; gives the folder.

    Where another process leads this study already, help it until the search is over.

    Raises:
        PoiseError: with cause and remedy; what was finished stays.
        Interrupted: a signal came; everything is saved.
    """
    check(request)
    lead = FileLock(request.root / "leader")
    try:
        request.root.mkdir(parents=True, exist_ok=True)
        lead.acquire(timeout=0)
    except Timeout:
        return _help(request, screen)
    except OSError as error:
        raise UsageError(
            f"{request.root} cannot hold a study: {error.strerror or error}.",
            expected="a folder that can be made and written",
        ) from None
    try:
        return _lead(request, screen)
    except (Interrupted, KeyboardInterrupt):
        again = ["poise", "tune", request.source, "--run", str(request.root), "--resume"]
        raise Interrupted(
            f"The study in {request.root} was stopped; all that its trials have done is saved.",
            remedy=f"Go on with: {shlex.join(again)}",
        ) from None
    finally:
        lead.release()


def _help(request: Request, screen: Screen) -> Path:
    """Work for a study that another process leads."""
    if not request.resume:
        raise UsageError(
            f"Another process leads the study in {request.root}.",
            expected="a new folder, or --resume to help with this one",
        )
    until = time.monotonic() + _SETTLING
    while not (request.root / "plan.json").exists() and time.monotonic() < until:
        time.sleep(1.0)
    plan = read_plan(request.root)
    _refuse_other(request, plan)
    screen.say(f"helping with the study in {request.root}, which another process leads")
    run_workers(work, _seats(request, plan), engine=request.engine, on_news=lambda: None)
    screen.say("the search is over; whoever leads it trains the best settings")
    return request.root


def _lead(request: Request, screen: Screen) -> Path:
    root = request.root
    if request.resume:
        plan = _resumed(request)
    else:
        final.refuse_used(root, request.source)
        open_storage(root, request.storage)  # refused before anything is read
        plan = settle_plan(request, screen)
        plan.write(root)
    study = open_study(open_storage(root, request.storage), plan.study, directions(plan.better))
    progress = Progress(study, plan, root, screen)
    ended = {"status": "failed", "phase": "search"}
    try:
        run_workers(work, _seats(request, plan), engine=request.engine, on_news=progress.news)
        record = progress.renew()
        if plan.final and record["best"] is not None:
            ended["phase"] = "final"
            _train(plan, progress, root, record["best"], screen)
        ended = {"status": "finished", "phase": "done"}
    except (Interrupted, KeyboardInterrupt):
        ended["status"] = "interrupted"
        raise
    finally:
        with suppress(PoiseError):  # what went wrong before is what must be heard
            with spoken():
                progress.renew(**ended)
            write_study(root)
    _conclude(root, progress.renew(**ended), screen)
    return root


def _train(
    plan: Plan, progress: Progress, root: Path, best: dict[str, Any], screen: Screen
) -> None:
    """The last training; where the guard stops it, the study is none the less over."""
    left = None if plan.budget_seconds is None else plan.budget_seconds - progress.seconds()
    rest = "" if left is None else " on the rest of the budget"
    screen.say(f"training the best settings{rest}")
    try:
        final.train_best(plan, root, best, left, screen)
    except TrainingError as error:
        screen.say(f"The last training ended early: {error}")


def _seats(request: Request, plan: Plan) -> list[Seat]:
    threads = None
    if request.workers > plan.workers:
        threads = max(1, cores() // request.workers)
    root = str(request.root.resolve())
    return [Seat(root, request.storage, threads)] * request.workers


def _resumed(request: Request) -> Plan:
    """The plan of a study that is gone on with; only its end may be moved.

    A number of trials without a budget goes before the budget that the study had.
    """
    if not (request.root / "plan.json").exists():
        raise UsageError(
            f"{request.root} holds no study to go on with.",
            expected="the folder of a study; one that was ended before its first trial holds none",
            remedy="Give the same command without --resume.",
        )
    plan = read_plan(request.root)
    _refuse_other(request, plan)
    budget = request.budget_seconds
    if budget is None and request.trials is None:
        budget = plan.budget_seconds
    plan = replace(
        plan,
        trials=request.trials or plan.trials,
        budget_seconds=budget,
        seeds=plan.seeds if request.seeds is None else request.seeds,
    )
    plan.write(request.root)
    return plan


def _refuse_other(request: Request, plan: Plan) -> None:
    """
    Raises:
        UsageError: the study was begun with other options than are given now.
    """
    asked = dict(request.overrides)
    known = {**plan.overrides, "seed": plan.seed}
    for option, now, was in (
        ("SOURCE", request.source, plan.source),
        ("--storage", None if request.storage is None else shown(request.storage), plan.storage),
        ("--sampler", request.sampler or plan.sampler, plan.sampler),
        ("--metric", request.metrics or plan.metrics, plan.metrics),
        ("--preset", request.preset or plan.preset, plan.preset),
        ("--width", request.width or plan.width, plan.width),
        ("--space", request.space or plan.space.name, plan.space.name),
        ("--images", request.images or plan.asked, plan.asked),
        *((_option(name), value, known.get(name)) for name, value in asked.items()),
    ):
        if now != was:
            raise UsageError(
                f"The study in {request.root} was begun with {option} {_told(was)}, not "
                f"{_told(now)}.",
                remedy=f"Give {option} as it was, or begin a new study with --run.",
            )


def _option(name: str) -> str:
    return "--seed" if name == "seed" else f"--set {name}"


def _told(value: Any) -> str:
    """The value of an option in a sentence."""
    if isinstance(value, tuple):
        return " and ".join(map(str, value))
    return "left open" if value is None else str(value)


def _conclude(root: Path, record: dict[str, Any], screen: Screen) -> None:
    """The three sentences, and where to look."""
    final.copy_record(root, record)
    if record["best"] is None:
        screen.say("No trial came to its end: study.json and study.html say why.")
    else:
        for sentence in record["best"]["sentences"]:
            screen.say(sentence)
    if (root / "best" / "run.json").exists():
        write_report(RunDir(root / "best"))
        screen.say(f"Sample with it: {shlex.join(['poise', 'sample', str(root), '--out', 'new'])}")
    with suppress(ArtifactError):
        write_study(root)
    final.clear(root)
    screen.say(f"Done in {duration(record['seconds'])}. Page: {root / 'study.html'}")
