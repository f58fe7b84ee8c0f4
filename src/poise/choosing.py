"""What to sample with, chosen by a metric on the validation split, and kept with the run.

Candidates are compared on the same seeds and labels. The winner is then confirmed against what it
would replace on fresh ones: the best of many is partly luck.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from poise.artifacts import RunDir
from poise.averaging import as_snapshot, good_widths, reconstruct_many
from poise.console import Screen, duration
from poise.data.batches import to_unit
from poise.diffusion.proposal import Proposal, propose
from poise.errors import DataError, UsageError, nearest
from poise.evaluation.denoising import denoising_error, noise_levels
from poise.evaluation.evaluate import FEWEST, compare
from poise.journal import Prepared
from poise.runtime import seed_at
from poise.sampling import Guidance, Model, Weights, assemble, chosen_model, draw, write_choice
from poise.scoring import labels_like, real_of
from poise.scoring.real import features_of, fresh_features, space_of
from poise.training.ema import profile_name, profile_std

_LOWER = {"frechet_distance", "kernel_distance"}
METRICS = (*sorted(_LOWER), "precision", "recall", "density", "coverage")
_STRENGTHS = (1.05, 1.1, 1.25, 1.5, 2.0, 2.5, 3.0)
_FIRST = 2  # the strength from which a search goes up or down
_INTERVALS = ((0.0, float("inf")), (0.0, 5.0), (0.2, 5.0))  # noise levels, as a share of 0.5
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4)  # of the training, where a guide is looked for
_WIDTHS = 6  # averages tried by a sweep
_PROBE = 512  # images whose error proposes the noise distribution


@dataclass
class Judge:
    """The metrics of a model's samples against the validation split, all on the same questions."""

    job: Prepared
    metric: str
    count: int
    steps: int | None = None  # of the sampler; None: as the run was set
    tried: list[dict[str, Any]] = field(default_factory=list)
    reference: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        if self.metric not in METRICS:
            raise UsageError(
                f"There is no metric {self.metric!r}. {nearest(self.metric, METRICS)}".rstrip(),
                expected="one of " + ", ".join(METRICS),
            )
        if self.count < FEWEST or (self.steps is not None and self.steps < 2):
            raise UsageError(
                f"{self.count} samples in {self.steps or 'all'} steps decide nothing.",
                expected=f"{FEWEST} samples or more, better hundreds, and 2 steps or more",
            )
        members = self.job.splits.val
        if len(members) < FEWEST:
            raise DataError(
                f"{len(members)} validation images are too few to compare samples with.",
                expected=f"{FEWEST} or more",
                remedy="Train with more images, or with a larger share in data.split.",
            )
        settings, real = self.job.config.evaluation, real_of(self.job, "val")
        quiet = Screen(quiet=True)
        self.extractor, _ = space_of(real, settings, quiet)
        self.reference = features_of(self.extractor, real.reference, quiet, "")

    def measure(self, model: Model, stream: str) -> dict[str, float]:
        """All metrics of samples whose noise and labels follow from `stream`."""
        seed = seed_at(self.job.config.seed, 0, stream) % 2**31
        labels = labels_like(self.job.dataset, self.job.splits.val, self.count, seed)
        images = draw(model.with_settings(steps=self.steps), self.count, labels, seed)
        features = fresh_features(self.extractor, images)
        return compare(features, self.reference, self.job.config.evaluation.neighbours)

    def try_out(self, name: str, model: Model) -> float:
        """The metric of a candidate, which is written down; lower is better in what is returned."""
        values = self.measure(model, "choosing")
        self.tried.append({"candidate": name, **values})
        return self.cost(values)

    def cost(self, values: dict[str, float]) -> float:
        """The metric turned so that lower is better."""
        return values[self.metric] if self.metric in _LOWER else -values[self.metric]

    def confirm(self, best: Model, before: Model) -> dict[str, Any]:
        """Both on fresh seeds, and whether the best is still better."""
        new, old = self.measure(best, "confirming"), self.measure(before, "confirming")
        return {
            "before": old[self.metric],
            "after": new[self.metric],
            "better": self.cost(new) < self.cost(old),
        }


def sweep_ema(
    job: Prepared, screen: Screen, metric: str, count: int, steps: int | None = None
) -> dict[str, Any]:
    """Find the length of the average that samples best, and keep it as the run's choice.

    Args:
        job: the run with its data.
        screen: where progress is shown.
        metric: one of METRICS.
        count: samples of each candidate.
        steps: of the sampler, fewer for a quicker search; None: as the run was set.

    Returns:
        What was tried, the best, and the confirmation; `choices.json` holds it too.
    """
    judge, started = Judge(job, metric, count, steps), time.monotonic()
    before = replace(chosen_model(job.run), guidance=None, guide=None)
    stds = _widths(good_widths(job.run), job.config.training.ema_stds)
    best: tuple[float, Model] | None = None
    with screen.bar("averages", len(stds) + 1) as bar:
        for i, model in enumerate(_averages(job.run, stds, before)):
            cost = judge.try_out(model.snapshot.weights, model)
            if best is None or cost < best[0]:
                best = cost, model
            bar.show(i + 1, note=f"{model.snapshot.weights} {metric} {abs(cost):.4g}")
    assert best is not None
    confirmed = judge.confirm(best[1], before)
    chosen = best[1] if confirmed["better"] else before
    newest = before.snapshot.images_seen
    choice = {
        "name": chosen.snapshot.weights,
        "images_seen": newest,
        **_record(judge, confirmed, started),
    }
    changed = chosen.snapshot.weights != before.snapshot.weights
    # guidance that was found for other weights says nothing about these
    dropped = "guidance" if changed else ""
    write_choice(job.run, "weights", choice, newest, instead_of=dropped)
    return choice


def search_guidance(
    job: Prepared, screen: Screen, metric: str, count: int, steps: int | None = None
) -> dict[str, Any]:
    """Find a guide among the run's own earlier states, its strength, averages and interval.

    For each guide the strength is raised while that helps, or lowered: a guide from early on is far
    away, and little of it is enough. Then one thing at a time is varied for the best of them, in
    the order in which they matter (Karras et al. 2024a, Section 5): the guide's average, the
    model's average, the interval.

    Args:
        job: the run with its data.
        screen: where progress is shown.
        metric: one of METRICS.
        count: samples of each candidate.
        steps: of the sampler, fewer for a quicker search; None: as the run was set.

    Returns:
        What was tried, the best, and the confirmation; `choices.json` holds it too.
    """
    judge, started = Judge(job, metric, count, steps), time.monotonic()
    before = replace(chosen_model(job.run), guidance=None, guide=None)
    main = Weights(before.snapshot.weights, before.snapshot.images_seen)
    unguided = judge.try_out("no guidance", before)
    best: _State = (main, None)
    lowest = float("inf")  # of the guided
    with screen.bar("guidance", 18) as bar:  # about so many candidates

        def cost_of(candidate: _State) -> float:
            nonlocal best, lowest
            cost = judge.try_out(_words(*candidate), assemble(job.run, *candidate))
            if cost < lowest:
                lowest, best = cost, candidate
            note = f"{metric} {abs(cost):.4g}, best {abs(min(lowest, unguided)):.4g}"
            bar.show(min(len(judge.tried) - 1, 18), note=note)
            return cost

        for guide in list(_guides(job, main)):
            _climb(cost_of, main, guide)
        for axis in (_guide_averages, _main_averages, _intervals):
            for candidate in list(axis(job, best)):
                cost_of(candidate)
    if lowest >= unguided:
        best = (main, None)
    found = assemble(job.run, *best)
    confirmed = judge.confirm(found, before)
    record = _record(judge, confirmed, started)
    if best[1] is None or not confirmed["better"]:
        return {"strength": 1.0, **record}
    newest = before.snapshot.images_seen
    if best[0] != main:
        weights = {"name": best[0].name, "images_seen": best[0].images_seen}
        write_choice(job.run, "weights", {**weights, "metric": metric, "with": "guidance"}, newest)
    choice = {**best[1].to_json(), **record}
    write_choice(job.run, "guidance", choice, newest)
    return choice


def propose_noise(job: Prepared) -> Proposal:
    """P_mean and P_std for the next training on this data, from this run's error by noise level.

    Raises:
        UsageError: the run has not learned enough for a proposal.
    """
    model = chosen_model(job.run)
    members = job.splits.val[:_PROBE]
    device = job.runtime.device
    labels = job.dataset.labels
    bands = denoising_error(
        _without_gradient(model.snapshot.denoiser),
        to_unit(torch.from_numpy(job.dataset.images[members])).to(device),
        None if labels is None else torch.from_numpy(labels[members]).to(device),
        noise_levels(16, 0.002, 80.0).to(device),
        seed=job.config.seed,
        sigma_data=job.facts.sigma_data,
    )
    return propose([b.sigma for b in bands], [b.loss for b in bands], job.facts.sigma_data)


def _without_gradient(denoise: Callable[..., Any]) -> Callable[..., Any]:
    return torch.no_grad()(denoise)


def _widths(ranges: Sequence[tuple[float, float]], tracked: Sequence[float]) -> list[float]:
    """Widths spread over the ranges that can be made well, and the tracked ones."""
    edges = [edge for pair in ranges for edge in pair]
    inside = [w for w in np.geomspace(0.02, 0.25, 25).round(3) if _within(w, ranges)]
    every = np.unique([*edges, *inside])
    chosen = np.linspace(0, len(every) - 1, min(_WIDTHS, len(every))).round().astype(int)
    kept = [std for std in tracked if _within(std, ranges)]
    return sorted({float(every[i]) for i in chosen} | set(kept))


def _within(std: float, ranges: Sequence[tuple[float, float]]) -> bool:
    return any(low <= std <= high for low, high in ranges)


def _averages(run: RunDir, stds: list[float], before: Model) -> Iterator[Model]:
    """The raw weights, then each average; all of them from one pass over the snapshots."""
    config = before.snapshot.config
    yield assemble(run, Weights("raw", before.snapshot.images_seen))
    for made in reconstruct_many(run, stds, at=before.snapshot.images_seen):
        yield replace(before, snapshot=replace(as_snapshot(made), config=config))


_State = tuple[Weights, Guidance | None]


def _guides(job: Prepared, main: Weights) -> Iterator[Weights | None]:
    """Earlier states, and None for the model itself without labels."""
    times = [int(path.stem) for path in job.run.snapshot_files() if path.stem.isdigit()]
    earlier = [t for t in times if t < main.images_seen]
    wanted = {min(earlier, key=lambda t: abs(t - s * main.images_seen)) for s in _SHARES if earlier}
    name = _stored(job, main.name)
    for time_seen in sorted(wanted):
        yield Weights(name, time_seen)
    if job.facts.label_names and job.config.training.label_dropout:
        yield None


def _climb(cost_of: Callable[[_State], float], main: Weights, guide: Weights | None) -> None:
    """Try strengths upwards while they help, or downwards if the first step up did not."""

    def at(index: int) -> float:
        return cost_of((main, Guidance(_STRENGTHS[index], guide)))

    first = at(_FIRST)
    for rest in (range(_FIRST + 1, len(_STRENGTHS)), range(_FIRST - 1, -1, -1)):
        lowest = first
        for index in rest:
            cost = at(index)
            if cost >= lowest:
                break
            lowest = cost
        if lowest < first:
            return


def _guide_averages(job: Prepared, state: _State) -> Iterator[_State]:
    main, guidance = state
    if guidance is not None and guidance.guide is not None:
        for name in _tracked(job, guidance.guide.name):
            yield main, replace(guidance, guide=replace(guidance.guide, name=name))


def _main_averages(job: Prepared, state: _State) -> Iterator[_State]:
    main, guidance = state
    for name in _tracked(job, main.name) if guidance is not None else ():
        yield replace(main, name=name), guidance


def _intervals(job: Prepared, state: _State) -> Iterator[_State]:
    main, guidance = state
    scale = job.facts.sigma_data / 0.5
    if guidance is not None:
        for low, high in _INTERVALS[1:]:
            yield main, replace(guidance, interval=(low * scale, high * scale))


def _stored(job: Prepared, name: str) -> str:
    """These weights, or the tracked average nearest in width: the only ones early states have."""
    std, tracked = profile_std(name), job.config.training.ema_stds
    if std is None:
        return name
    return profile_name(min(tracked, key=lambda other: abs(other - std)))


def _tracked(job: Prepared, but: str) -> list[str]:
    names = [profile_name(std) for std in job.config.training.ema_stds]
    return [name for name in names if name != but]


def _words(main: Weights, guidance: Guidance | None) -> str:
    if guidance is None:
        return main.name
    guide = guidance.guide
    by = "no labels" if guide is None else f"{guide.name} at {guide.images_seen:,} images"
    low, high = guidance.interval
    where = "" if (low, high) == _INTERVALS[0] else f" in ({low:.2g}, {high:.2g}]"
    return f"{main.name}, strength {guidance.strength:g}, guide {by}{where}"


def _record(judge: Judge, confirmed: dict[str, Any], started: float) -> dict[str, Any]:
    return {
        "metric": judge.metric,
        "samples": judge.count,
        "steps": judge.steps,  # None: as the run was set
        "features": judge.extractor.name,
        "confirmed": confirmed,
        "tried": judge.tried,
        "took": duration(time.monotonic() - started),
    }
