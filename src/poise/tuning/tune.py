"""The story of a study: a plan, workers that search, the best settings trained, a page."""

import shlex
import time
from contextlib import suppress
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
from poise.tuning.resume import refuse_other, refuse_used, resume_command, resumed
from poise.tuning.storage import open_storage, open_study, spoken
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
        again = resume_command(request.source, request.root, request.storage, request.engine)
        raise Interrupted(
            f"The study in {request.root} was stopped; all that its trials have done is saved.",
            remedy=f"Go on with: {again}",
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
    refuse_other(request, plan)
    screen.say(f"helping with the study in {request.root}, which another process leads")
    seats = _seats(request, plan, request.workers or 1)
    run_workers(work, seats, engine=request.engine, on_news=lambda: None)
    screen.say("the search is over; whoever leads it trains the best settings")
    return request.root


def _lead(request: Request, screen: Screen) -> Path:
    root = request.root
    if request.resume:
        plan = resumed(request)
    else:
        refuse_used(root, request.source)
        open_storage(root, request.storage)  # refused before anything is read
        plan = settle_plan(request, screen)
        plan.write(root)
    study = open_study(open_storage(root, request.storage), plan.study, directions(plan.better))
    progress = Progress(study, plan, root, screen)
    ended = {"status": "failed", "phase": "search"}
    try:
        seats = _seats(request, plan, request.workers)
        run_workers(work, seats, engine=request.engine, on_news=progress.news)
        record = progress.renew(phase="final" if plan.final else "search")
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


def _seats(request: Request, plan: Plan, workers: int | None) -> list[Seat]:
    workers = plan.workers if workers is None else workers
    threads = max(1, cores() // workers) if workers > plan.workers else None
    return [Seat(str(request.root.resolve()), request.storage, threads)] * workers


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
