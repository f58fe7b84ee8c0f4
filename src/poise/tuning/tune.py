"""The story of a study: a plan, workers that search, the best settings trained, a page."""

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from poise.artifacts import RunDir, read_json
from poise.config import documented
from poise.console import Screen, duration
from poise.errors import ArtifactError, Interrupted, UsageError
from poise.report.report import write_report
from poise.report.study import write_study
from poise.tuning import final
from poise.tuning.begin import Request, check, settle_plan
from poise.tuning.fleet import run_workers
from poise.tuning.ground import trial_config
from poise.tuning.plan import Plan, read_plan
from poise.tuning.record import study_record, write_record
from poise.tuning.schedule import ENDED
from poise.tuning.storage import open_storage, open_study
from poise.tuning.worker import Seat, directions, work

if TYPE_CHECKING:
    from optuna import Study


def tune(request: Request, screen: Screen) -> Path:
    """Search, train the best, write `study.json` and `study.html`; gives the folder.

    Where another process leads this study already, help it until the search is over.

    Raises:
        PoiseError: with cause and remedy; what was finished stays.
        Interrupted: a signal came; everything is saved.
    """
    check(request)
    request.root.mkdir(parents=True, exist_ok=True)
    lead = FileLock(request.root / "leader")
    try:
        lead.acquire(timeout=0)
    except Timeout:
        return _help(request, screen)
    try:
        return _lead(request, screen)
    finally:
        lead.release()


def _help(request: Request, screen: Screen) -> Path:
    """Work for a study that another process leads."""
    if not request.resume:
        raise UsageError(
            f"Another process leads the study in {request.root}.",
            expected="a new folder, or --resume to help with this one",
        )
    screen.say(f"helping with the study in {request.root}, which another process leads")
    run_workers(work, _seats(request), engine=request.engine, on_news=lambda: None)
    screen.say("the search is over; whoever leads it trains the best settings")
    return request.root


def _lead(request: Request, screen: Screen) -> Path:
    root, started = request.root, time.monotonic()
    if not request.resume or not (root / "plan.json").exists():
        final.refuse_used(root, request.source)
        open_storage(root, request.storage)
        plan = settle_plan(request, screen)
        plan.write(root)
    else:
        plan = _resumed(request)
    study = open_study(open_storage(root, request.storage), plan.study, directions(plan.better))
    progress = _Progress(study, plan, root, screen, _spent(root) - started)
    status = "failed"
    try:
        run_workers(work, _seats(request), engine=request.engine, on_news=progress.news)
        record = progress.renew()
        if plan.final and record["best"] is not None:
            left = float("inf") if plan.budget_seconds is None else plan.budget_seconds
            screen.say("training the best settings on the rest of the budget")
            final.train_best(plan, root, record["best"], left - progress.seconds(), screen)
        status = "finished"
    except (Interrupted, KeyboardInterrupt):
        status = "interrupted"
        raise
    finally:
        record = progress.renew(status)
        write_study(root)
    _conclude(root, record, screen)
    return root


class _Progress:
    """Renews `study.json` and tells of trials that have ended."""

    def __init__(
        self, study: "Study", plan: Plan, root: Path, screen: Screen, offset: float
    ) -> None:
        """
        Args:
            offset: what makes seconds of the study from those of the clock.
        """
        self._study, self._plan, self._root, self._screen = study, plan, root, screen
        self._offset = offset
        self._told: set[int] = set()
        base = trial_config(plan, {}, plan.images, plan.seed)
        self._base = _values(base)

    def seconds(self) -> float:
        """Wall clock spent on the study, over all sessions."""
        return time.monotonic() + self._offset

    def news(self) -> None:
        """`renew`, for whoever wants no answer."""
        self.renew()

    def renew(self, status: str = "running") -> dict[str, Any]:
        """Write `study.json` anew, and say what is new."""
        alive = {path.stem for path in (self._root / "workers").glob("*.json")}
        record = study_record(
            self._study,
            self._plan,
            self._base,
            alive,
            status=status,
            seconds=self.seconds(),
            final=status == "finished" and self._plan.final,
        )
        write_record(self._root, record)
        for row in record["trials"]:
            if row["state"] in ENDED and row["number"] not in self._told:
                self._told.add(row["number"])
                self._screen.say(_line(row))
        return record


def _line(row: dict[str, Any]) -> str:
    """A trial that ended, for the terminal."""
    values = row["values"] or {}
    told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
    if not told and row["proxy"]:
        told = f"ln(error) {row['proxy'][-1][1]}"
    what = ", ".join(f"{k.rpartition('.')[2]} {_short(v)}" for k, v in row["settings"].items())
    why = f" ({row['diagnosis']})" if row["state"] in ("diverged", "failed") else ""
    return f"trial {row['number']} {row['role']} {row['state']}: {told}{why}  [{what}]"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _values(config: Any) -> dict[str, Any]:
    return {key: value for key, value, _ in documented(config)}


def _seats(request: Request) -> list[Seat]:
    return [Seat(str(request.root.resolve()), request.storage, i) for i in range(request.workers)]


def _spent(root: Path) -> float:
    try:
        return float(read_json(root / "study.json")["seconds"])
    except (ArtifactError, KeyError, TypeError, ValueError):
        return 0.0


def _resumed(request: Request) -> Plan:
    """The plan of a study that is gone on with; only its end may be moved.

    Raises:
        UsageError: it was begun with other options.
    """
    plan = read_plan(request.root)
    for option, asked, was in (
        ("SOURCE", request.source, plan.source),
        ("--sampler", request.sampler, plan.sampler),
        ("--metric", request.metrics or None, plan.metrics),
        ("--preset", request.preset, plan.preset),
        ("--width", request.width, plan.width),
    ):
        if asked is not None and asked != was:
            raise UsageError(
                f"The study in {request.root} was begun with {option} {was}, not {asked}.",
                remedy=f"Leave {option} as it was, or begin a new study with --run.",
            )
    plan = replace(
        plan,
        trials=request.trials or plan.trials,
        budget_seconds=request.budget_seconds or plan.budget_seconds,
        seeds=plan.seeds if request.seeds is None else request.seeds,
        workers=request.workers,
    )
    plan.write(request.root)
    return plan


def _conclude(root: Path, record: dict[str, Any], screen: Screen) -> None:
    best = record["best"]
    final.copy_record(root, record)
    if best is not None and record["plan"]:
        for sentence in best["sentences"]:
            screen.say(sentence)
    else:
        screen.say("No trial came to its end: study.json and study.html say why.")
    if (root / "best" / "run.json").exists():
        write_report(RunDir(root / "best"))
        screen.say(f"Sample with it: poise sample {root / 'best'} --out new")
    final.clear(root)
    screen.say(f"Done in {duration(record['seconds'])}. Page: {root / 'study.html'}")
