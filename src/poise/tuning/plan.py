"""What a study is to do: settled once, written to `plan.json`, and the same for all its workers."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from poise.artifacts import read_json, write_json
from poise.errors import ArtifactError
from poise.tuning.space import Space

VALIDATION = "validation_error"  # the metric that draws no samples: the proxy itself
THIRD = 3  # one of so many trials goes on at each rung
RUNGS = (1 / 9, 1 / 3, 1.0)  # shares of a trial's length at which it is compared
_SEARCH, _REPEATS = 0.45, 0.25  # shares of the budget; the rest trains the best settings
LEAST_FINAL = 0.1  # of the budget, which the last training gets whatever was spent before
_USUAL_TRIALS = 20  # whole ones that a search has time for where nothing else decides
_FINALISTS = 2  # the preset as it is, and the best that was found


@dataclass(frozen=True)
class Plan:
    """A study as it was settled.

    Attributes:
        study: its name in the storage.
        source: where the images come from.
        fingerprint: of the images.
        preset: name of the preset that is tuned.
        overrides: settings of the user that hold for every trial.
        measure: settings that make trials comparable, such as the images of the validation probe.
        space: what is searched.
        sampler: "tpe", "gp", "random" or "grid".
        metrics: what decides, the first one also inside trials.
        better: "lower" or "higher" for each metric.
        rungs: shares of a trial's length at which it is compared, ascending, the last 1.
        images: what a trial with the preset's own network and batch sees.
        trial_seconds: training time of a trial; None: every trial sees `images`.
        speed: images per second of the preset's own network; None without a budget.
        samples: drawn to measure a metric.
        budget_seconds: wall clock of everything; None: none.
        trials: at most so many, the preset's own among them; None: as the budget has it.
        seeds: repeats of each finalist.
        final: whether the best settings are trained at the end.
        final_images: how long, where no budget says so.
        workers: processes.
        asked: images of a trial that the user asked for; None: the budget decides.
        storage: URL of the storage without its password; None: the journal of the folder.
        width: channels of the network of the trials, where it is narrower than the preset's.
        seed: all randomness of the study follows from it.
    """

    study: str
    source: str
    fingerprint: str
    preset: str
    overrides: Mapping[str, Any]
    measure: Mapping[str, Any]
    space: Space
    sampler: str
    metrics: tuple[str, ...]
    better: tuple[str, ...]
    rungs: tuple[float, ...]
    images: int
    trial_seconds: float | None
    speed: float | None
    samples: int
    budget_seconds: float | None
    trials: int | None
    seeds: int
    final: bool
    final_images: int
    workers: int
    width: int | None
    seed: int
    asked: int | None = None
    storage: str | None = None
    command: tuple[str, ...] = ()
    created: str = ""

    @property
    def bracket(self) -> int:
        """Trials that are compared with each other at the first rung."""
        return int(THIRD ** (len(self.rungs) - 1))

    @property
    def search_seconds(self) -> float:
        """Time of all workers together for the search; infinite without a budget.

        What an open bracket still costs when the search ends is kept back.
        """
        if self.budget_seconds is None:
            return math.inf
        share = search_share(self.seeds, self.final)
        return share * self.budget_seconds * self.workers - (self.trial_seconds or 0.0)

    @property
    def repeat_seconds(self) -> float:
        """Time of all workers together after which no repeat is begun."""
        if self.budget_seconds is None:
            return math.inf
        return (1 - (LEAST_FINAL if self.final else 0)) * self.budget_seconds * self.workers

    def write(self, root: Path) -> None:
        """Keep it in the folder of the study."""
        raw = {f.name: getattr(self, f.name) for f in fields(self)}
        write_json(root / "plan.json", {**raw, "space": self.space.to_json()})


def read_plan(root: Path) -> Plan:
    """The plan of the study in a folder.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    raw = read_json(root / "plan.json")
    try:
        lists = ("metrics", "better", "rungs", "command")
        known = {**raw, **{name: tuple(raw[name]) for name in lists}}
        known["space"] = Space.from_json(raw["space"])
        return Plan(**known)
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{root / 'plan.json'} is no plan of a study: {error}.",
            remedy="Start a new study in another folder.",
        ) from None


def search_share(seeds: int, final: bool) -> float:
    """The share of a budget that the search gets, with what nobody else needs."""
    return _SEARCH + (0 if seeds else _REPEATS) + (0 if final else 1 - _SEARCH - _REPEATS)


def shares(
    budget: float, workers: int, seeds: int, final: bool, points: int | None
) -> tuple[float, float]:
    """Seconds of one trial, training and scoring together, and of the last training.

    The repeats of the finalists decide it: a trial is as long as their share of the budget allows.
    Where there are none it is the search divided by the points of a grid, or by twenty.

    Args:
        budget: wall clock of the study in seconds.
        workers: processes that share the work.
        seeds: repeats of each finalist.
        final: whether there is a last training.
        points: of a grid that is to be tried whole; None: there is none.
    """
    search = search_share(seeds, final) * budget
    if seeds:
        trial = _REPEATS * budget / math.ceil(_FINALISTS * seeds / workers)
    else:
        trial = search * workers / (points + 1 if points is not None else _USUAL_TRIALS)
    return min(trial, search / THIRD), (1 - _SEARCH - _REPEATS) * budget if final else 0.0


def trial_folder(root: Path, number: int) -> Path:
    """Where the run of a trial lies."""
    return root / "trials" / f"{number:04d}"


def images_at(plan: Plan, images: int, rung: int) -> int:
    """Images seen at a rung by a trial that sees `images`: whole intervals between validations."""
    last = len(plan.rungs) - 1
    return images if rung == last else THIRD**rung * (images // THIRD**last)


def described(plan: Plan) -> dict[str, Any]:
    """The plan for `study.json`: what a reader asks about."""
    names = ("sampler", "metrics", "better", "budget_seconds", "trials", "seeds", "rungs")
    more = ("samples", "preset", "images", "seed", "workers", "width")
    raw = asdict(plan)
    return {
        **{name: raw[name] for name in (*names, *more)},
        "space": plan.space.name,
        "overrides": dict(plan.overrides),
        "features": plan.measure.get("evaluation.features"),
    }
