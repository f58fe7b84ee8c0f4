"""One trial: train to a rung, and at the last one draw samples and measure them."""

import gc
import math
from collections.abc import Mapping, Sequence
from typing import Any

from poise.artifacts import RunDir, read_jsonl, write_json
from poise.averaging import keep
from poise.choosing import METRICS, Judge
from poise.console import Screen
from poise.errors import Interrupted, TrainingError
from poise.evaluation.evaluate import FEWEST
from poise.journal import Prepared
from poise.learning.learn import learn
from poise.pipeline import set_status
from poise.sampling import chosen_model, named_weights
from poise.training.ema import profile_std
from poise.tuning.desk import Errand, Outcome
from poise.tuning.free import search_free, with_free
from poise.tuning.ground import Ground, failure
from poise.tuning.plan import VALIDATION, images_at
from poise.tuning.schedule import DEFAULT, DIVERGED, FAILED, REPEAT

CHOICES = (*METRICS, VALIDATION)
_MIDDLE = (0.2, 20.0)  # noise levels that the proxy hears, over sigma_data
_QUIET = Screen(quiet=True)
_SEVERITY = {"info": 0, "note": 0, "warning": 1, "error": 2, "critical": 3}


class Trials:
    """Does errands: the objective of a study on real images."""

    def __init__(self, ground: Ground) -> None:
        self._ground = ground
        self._judges: dict[int, Judge] = {}

    def __call__(self, errand: Errand) -> Outcome:
        """Bring a trial to its rung.

        Raises:
            Interrupted: a signal came; the state is saved.
            ArtifactError: the disk refuses to be written to.
        """
        gc.collect()  # the network of the trial before and those who watched it hold each other
        plan, proxies = self._ground.plan, list[float]()
        job, seen = None, 0
        try:
            job = self._ground.prepared(errand.number, errand.settings, errand.seed)
            images = job.config.training.images
            for rung in range(errand.reached + 1, errand.rung + 1):
                until = images_at(plan, images, rung)
                seen = learn(job, _QUIET, until=until)
                proxies.append(proxy_of(job.run, until, job.facts.sigma_data))
                if not math.isfinite(proxies[-1]):
                    raise TrainingError("The error on held-out images is no longer finite.")
            if errand.rung == len(plan.rungs) - 1:
                return self._measured(errand, job, proxies, seen)
        except Interrupted:
            raise
        except TrainingError as error:
            return self._ended(job, proxies, seen, DIVERGED, error)
        except Exception as error:  # a study goes on whatever one trial does
            self._demand_disk()
            return self._ended(job, proxies, seen, FAILED, error)
        return Outcome(tuple(proxies), seen, images, diagnosis=diagnosis(job.run))

    def over(self, number: int) -> None:
        """Of a trial that has ended, keep the newest snapshot alone: its samples can be drawn."""
        run = RunDir(self._ground.folder(number))
        for path in [*run.checkpoint_files(), *run.snapshot_files()[:-1]]:
            path.unlink(missing_ok=True)

    def _demand_disk(self) -> None:
        """
        Raises:
            ArtifactError: the folder of the study cannot be written: no trial is at fault.
        """
        write_json(self._ground.root / "disk.json", {})
        (self._ground.root / "disk.json").unlink(missing_ok=True)  # as another worker may have

    def _ended(
        self, job: Prepared | None, proxies: list[float], seen: int, how: str, error: Exception
    ) -> Outcome:
        if job is None:
            return Outcome((), 0, 0, ended=how, diagnosis=failure(error))
        set_status(job, "failed" if how == FAILED else "stopped", reason=failure(error))
        known, told = diagnosis(job.run), failure(error)
        words = told if not known or known in told else f"{told} {known}"
        finite = tuple(p for p in proxies if math.isfinite(p))
        return Outcome(finite, seen, job.config.training.images, ended=how, diagnosis=words)

    def _measured(self, errand: Errand, job: Prepared, proxies: list[float], seen: int) -> Outcome:
        """The values of the metrics at the end of a trial."""
        plan = self._ground.plan
        free: dict[str, Any] = dict(errand.free)
        tried: list[dict[str, Any]] = []
        images = job.config.training.images
        found = {VALIDATION: math.exp(proxy_of(job.run, images, job.facts.sigma_data))}
        if set(plan.metrics) - {VALIDATION}:
            base = chosen_model(job.run)
            if errand.role not in (DEFAULT, REPEAT):
                inner = self._judge(max(FEWEST, plan.samples // 2))
                free, tried = search_free(job.run, base, plan.space.free(), inner)
                std = profile_std(named_weights(str(free.get("weights"))))
                if std is not None:
                    keep(job.run, std)
            stream = "confirming" if errand.role != REPEAT else f"repeat {errand.seed}"
            found |= self._judge(plan.samples).measure(with_free(job.run, base, free), stream)
        set_status(job, "finished", images_seen=seen)
        values = tuple(float(found[name]) for name in plan.metrics)
        if not all(math.isfinite(value) for value in values):
            told = "Its samples have no finite score."
            return Outcome(tuple(proxies), seen, images, ended=DIVERGED, diagnosis=told)
        return Outcome(
            tuple(proxies), seen, images, values, free, tuple(tried), "", diagnosis(job.run)
        )

    def _judge(self, count: int) -> Judge:
        """Who measures `count` samples; the features of real images are computed once."""
        if count not in self._judges:
            named = [name for name in self._ground.plan.metrics if name != VALIDATION]
            self._judges[count] = Judge(self._ground.judging(), named[0], count)
        return self._judges[count]


def proxy_of(run: RunDir, images: int, sigma_data: float) -> float:
    """Mean over middle noise levels of ln(error on held-out images), lowest over sets of weights.

    The logarithm gives each level the same voice: a tenth less error counts the same everywhere.
    Errors at other levels, where next to nothing is hidden or next to all, told little of what
    samples are worth, see docs/experiments.md. Without a middle level all count.

    Args:
        run: the run of a trial.
        images: images seen, up to which the last validation counts.
        sigma_data: standard deviation of the images, the unit of `_MIDDLE`.
    """
    rows = [row for row in read_jsonl(run.log("validation")) if row["images_seen"] <= images]
    last = [row for row in rows if row["images_seen"] == rows[-1]["images_seen"]]
    return min((_mean_log(row["bands"], sigma_data) for row in last), default=math.nan)


def _mean_log(bands: Sequence[Mapping[str, float]], sigma_data: float) -> float:
    if not all(math.isfinite(band["loss"]) and band["loss"] > 0 for band in bands):
        return math.nan
    low, high = (share * sigma_data for share in _MIDDLE)
    middle = [band for band in bands if low <= band["sigma"] <= high] or bands
    return sum(math.log(band["loss"]) for band in middle) / len(middle)


def diagnosis(run: RunDir) -> str:
    """The worst of what the guard has named in a run, in its words; empty: nothing."""
    rows = [row for row in read_jsonl(run.log("events")) if row.get("cause")]
    worst = max(rows, key=lambda row: _SEVERITY.get(str(row.get("severity")), 0), default=None)
    return "" if worst is None else f"{worst['cause']}: {worst['message']}"
