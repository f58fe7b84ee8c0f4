"""A study as plain data, `study.json`: everything that machines, the page and people read."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from poise.errors import PoiseError
from poise.tuning import verdict
from poise.tuning.desk import progress_of, trial_of
from poise.tuning.ground import trained_settings
from poise.tuning.plan import Plan, described, trial_folder
from poise.tuning.schedule import REPEAT, SEARCH, Trial, best_of, pareto
from poise.tuning.space import default_point

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial


def study_record(
    study: "Study",
    plan: Plan,
    base: Mapping[str, Any],
    *,
    status: str,
    phase: str,
    seconds: float,
) -> dict[str, Any]:
    """All of a study.

    Args:
        study: Optuna's.
        plan: what it was to do.
        base: the preset's own value of each setting.
        status: "running", "finished", "interrupted" or "failed".
        phase: "search", "final" or "done".
        seconds: of wall clock spent so far.
    """
    frozen = sorted(study.get_trials(deepcopy=False), key=lambda trial: trial.number)
    trials = [trial_of(each, plan, set()) for each in frozen]
    rows = [_row(each, trial, plan) for each, trial in zip(frozen, trials, strict=True)]
    defaults = json.loads(json.dumps(default_point(plan.space, base)))
    weight = verdict.importance(trials, plan.space)
    valued = [t for t in trials if t.costs and t.role != REPEAT]
    front = [valued[i].number for i in pareto([t.costs for t in valued])] if valued else []
    repeating = any(trial.role == REPEAT for trial in trials)
    trained = plan.final and phase == "done"
    return {
        "source": plan.source,
        "command": list(plan.command) or None,
        "created": plan.created,
        "seconds": round(seconds, 1),
        "status": status,
        "phase": "repeats" if phase == "search" and repeating else phase,
        "plan": described(plan),
        "space": plan.space.to_json()["dimensions"],
        "default": defaults,
        "trials": rows,
        "best": _best(trials, rows, plan, weight, defaults, trained=trained),
        "importance": weight,
        "proxy_agreement": verdict.agreement(trials, plan),
        "pareto": front if len(plan.metrics) > 1 else [],
    }


def _row(frozen: "FrozenTrial", trial: Trial, plan: Plan) -> dict[str, Any]:
    at = progress_of(frozen)
    images = int(at["images"])
    shares = zip(plan.rungs, trial.proxy, strict=False)
    values = None if at["values"] is None else dict(zip(plan.metrics, at["values"], strict=True))
    return {
        "number": trial.number,
        "role": trial.role,
        "of": trial.of,
        "seed": trial.seed,
        "state": trial.state,
        "settings": _typed(plan, trial),
        "free": at["free"],
        "values": values,
        "proxy": [[round(s * images), p if math.isfinite(p) else None] for s, p in shares],
        "images_seen": at["images_seen"],
        "images": images,
        "cost_s": round(trial.cost, 2),
        "diagnosis": at["diagnosis"],
        "folder": trial_folder(Path(), trial.number).as_posix(),
        "started": frozen.user_attrs.get("started"),
        "ended": at["ended"],
        "tried": at["tried"],
    }


def _typed(plan: Plan, trial: Trial) -> dict[str, Any]:
    try:
        return trained_settings(plan, trial.settings)
    except PoiseError:  # they contradict each other, for which the trial failed
        return dict(trial.settings)


def _best(
    trials: list[Trial],
    rows: list[dict[str, Any]],
    plan: Plan,
    weight: Mapping[str, float],
    defaults: Mapping[str, Any],
    *,
    trained: bool,
) -> dict[str, Any] | None:
    number = verdict.chosen(trials, plan)
    if number is None:
        return None
    row = next(row for row in rows if row["number"] == number)
    found = verdict.repeats(trials, plan)
    differences = {
        name: verdict.difference(*(_own(found[who], i, plan) for who in ("best", "default")))
        for i, name in enumerate(plan.metrics)
    }
    first = differences[plan.metrics[0]]
    pair = _found(trials)
    how = verdict.judged(first, plan.better[0])
    unstable = 0 if pair is None else verdict.lost(trials, pair)
    return {
        "number": number,
        "found": pair,
        "settings": row["settings"],
        "free": row["free"],
        "values": row["values"],
        "folder": "best" if trained else row["folder"],
        "repeats": {
            who: {name: _own(found[who], i, plan) for i, name in enumerate(plan.metrics)}
            for who in ("default", "best")
        },
        "difference": {n: None if d is None else d.to_json() for n, d in differences.items()},
        "verdict": "no-better" if how == "better" and number != pair else how,  # lost on some seeds
        "sentences": verdict.sentences(
            plan, row["settings"], row["free"], first, weight, defaults, unstable
        ),
    }


def _own(costs: list[tuple[float, ...]], index: int, plan: Plan) -> list[float]:
    """One metric of repeats, in its own direction."""
    sign = 1.0 if plan.better[index] == "lower" else -1.0
    return [sign * row[index] for row in costs]


def _found(trials: list[Trial]) -> int | None:
    """The best trial of the search, whatever its repeats say."""
    valued = [t for t in trials if t.role == SEARCH and t.costs]
    return best_of(valued).number if valued else None
