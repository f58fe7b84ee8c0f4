"""The driver of a study against known optima, and against Optuna's own loop."""

import math
import statistics
from itertools import combinations
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import BASE, OPTIMUM, PLAN, SPACE, Formula, bowl, run, variant

from poise.artifacts import RunDir
from poise.runtime import seed_at
from poise.tuning import verdict
from poise.tuning.desk import Desk, Errand, Outcome, progress_of, trial_of
from poise.tuning.dimension import Dimension
from poise.tuning.plan import trial_folder
from poise.tuning.presence import present
from poise.tuning.samplers import draw
from poise.tuning.schedule import Draw, Over, Trial, best_of, next_step, pareto
from poise.tuning.space import Space, ask, grid
from poise.tuning.storage import open_storage

RUNGS = (1 / 9, 1 / 3, 1.0)
THEIRS = {
    "gp": optuna.samplers.GPSampler,
    "tpe": optuna.samplers.TPESampler,
    "random": optuna.samplers.RandomSampler,
}
optuna.logging.set_verbosity(optuna.logging.WARNING)


def lowest(study: optuna.Study) -> float:
    return min(t.value for t in study.get_trials() if t.value is not None)


def trials(study: optuna.Study, plan: Any = PLAN) -> list[Any]:
    return [trial_of(frozen, plan, set()) for frozen in study.get_trials()]


def test_the_default_comes_first_and_the_number_of_trials_is_kept(tmp_path: Path) -> None:
    study, objective = run(tmp_path, variant(trials=7))
    assert len(study.trials) == 7
    assert dict(objective.errands[0].settings) == BASE
    assert [t.role for t in trials(study)] == ["default", *["search"] * 6]
    assert sorted(objective.ended) == list(range(7))


def test_a_bowl_is_found(tmp_path: Path) -> None:
    study, _ = run(tmp_path, variant(trials=60))
    best = best_of([t for t in trials(study) if t.costs])
    assert bowl(best.settings) < 0.25 < bowl(BASE)
    assert best.settings["training.decay"] == OPTIMUM["training.decay"]


def test_a_gaussian_process_finds_the_bowl_too(tmp_path: Path) -> None:
    study, _ = run(tmp_path, variant(sampler="gp", trials=20))
    assert lowest(study) < 0.3 < bowl(BASE)


@pytest.mark.parametrize("sampler", ["tpe", "random", pytest.param("gp", marks=pytest.mark.slow)])
def test_regret_is_that_of_optuna_alone(tmp_path: Path, sampler: str) -> None:
    """Twelve seeds, 30 trials: the mean regrets differ by less than three standard errors."""
    ours, theirs = [], []
    for seed in range(12):
        plan = variant(sampler=sampler, seed=seed, study=f"s{seed}")
        ours.append(lowest(run(tmp_path / f"{seed}", plan)[0]))
        study = optuna.create_study(sampler=THEIRS[sampler](seed=seed))
        study.enqueue_trial(BASE)
        study.optimize(lambda trial: bowl(ask(SPACE, trial, BASE)), n_trials=30)
        theirs.append(study.best_value)
    pairs = [a - b for a, b in zip(ours, theirs, strict=True)]
    error = statistics.stdev(pairs) / len(pairs) ** 0.5
    assert abs(statistics.mean(pairs)) < 3 * error


def test_a_trial_is_the_same_whoever_draws_it(tmp_path: Path) -> None:
    one, other = (run(tmp_path / name, variant(trials=20))[0] for name in "ab")
    assert [t.params for t in one.trials] == [t.params for t in other.trials]


def test_the_best_third_goes_on_from_where_it_was(tmp_path: Path) -> None:
    plan = variant(trials=18, rungs=RUNGS)
    study, objective = run(tmp_path, plan)
    found = trials(study, plan)
    for bracket in (0, 1):
        members = [t for t in found if t.bracket == bracket]
        assert len(members) == 9
        reached = sorted((t for t in members if t.role == "search"), key=lambda t: -t.rung)
        assert [t.rung for t in reached][:4] == ([2, 1, 0, 0] if bracket == 0 else [2, 1, 1, 0])
        searched = [t for t in members if t.role == "search"]
        first = sorted(searched, key=lambda t: t.proxy[0])[: len(searched) // 3]
        assert {t.number for t in searched if t.rung >= 1} == {t.number for t in first}
    resumed = [e for e in objective.errands if e.role == "search" and e.rung > 0]
    assert all(errand.reached == errand.rung - 1 for errand in resumed)
    assert {t.state for t in found} == {"complete", "stopped"}


def test_halving_finds_more_for_the_same_updates(tmp_path: Path) -> None:
    """27 trials that are halved cost less than 12 whole ones, and come nearer to the optimum."""

    def spent(done: list[Errand], rungs: tuple[float, ...]) -> float:
        begun = [(rungs[e.reached] if e.reached >= 0 else 0.0, rungs[e.rung]) for e in done]
        return sum(to - since for since, to in begun)

    found: dict[str, list[float]] = {"halved": [], "whole": []}
    cost = {"halved": 0.0, "whole": 0.0}
    for seed in range(6):
        for name, rungs, count in (("halved", RUNGS, 27), ("whole", (1.0,), 12)):
            plan = variant(trials=count, rungs=rungs, seed=seed)
            study, objective = run(tmp_path / f"{name}{seed}", plan)
            found[name].append(lowest(study))
            cost[name] += spent(objective.errands, rungs)
    assert cost["halved"] < cost["whole"]
    assert statistics.mean(found["halved"]) < statistics.mean(found["whole"])


def test_a_grid_takes_each_point_once(tmp_path: Path) -> None:
    plan = variant(sampler="grid", trials=None)
    _, objective = run(tmp_path, plan)
    seen = [dict(errand.settings) for errand in objective.errands]
    points = grid(SPACE, BASE)
    assert len(seen) == len(points) + (BASE not in points)
    assert all(seen.count(point) == 1 for point in points)


def test_what_diverged_teaches_and_what_failed_does_not_end_the_study(tmp_path: Path) -> None:
    def ends(errand: Errand) -> str:
        if errand.role == "default":
            return ""
        if errand.settings["training.lr"] > 0.1:
            return "diverged"
        return "failed" if errand.number % 5 == 0 else ""

    high = []
    for seed in range(6):
        plan = variant(trials=40, seed=seed, sampler="tpe")
        study, _ = run(tmp_path / f"{seed}", plan, Formula(ends=ends))
        found = trials(study)
        assert {t.state for t in found} == {"complete", "diverged", "failed"}
        later = [t for t in found if t.role == "search"][20:]
        high += [t.settings["training.lr"] > 0.1 for t in later]
        told = [progress_of(t)["diagnosis"] for t in study.trials]
        assert all(t.state != "diverged" or told[t.number] == "planted" for t in found)
    assert sum(high) / len(high) < 0.12  # drawn at random, a quarter of them would lie there


def test_settings_that_fail_are_not_drawn_again_and_again(tmp_path: Path) -> None:
    """What is best by a model of the others fails at once, and leaves no error behind."""

    def ends(errand: Errand) -> str:
        bad = errand.settings["training.decay"] == "cosine" and errand.settings["training.lr"] < 0.1
        return "failed" if bad and errand.role != "default" else ""

    study, _ = run(tmp_path, variant(sampler="gp", trials=24), Formula(ends=ends))
    later = [t for t in trials(study) if t.number >= 12]
    assert sum(t.state == "failed" for t in later) < 6
    assert len({str(t.settings) for t in later}) == len(later)


@pytest.mark.parametrize("sampler", ["gp", "tpe"])
def test_workers_that_draw_at_once_draw_apart(sampler: str) -> None:
    plan = variant(sampler=sampler)
    known = [
        Trial(i, "search", "stopped", 0, (bowl(point),), settings=point)
        for i, point in enumerate(grid(SPACE, BASE)[::5])
    ]
    drawn: list[dict[str, Any]] = []
    for seed in (11, 12, 13, 14):
        begun = [
            Trial(len(known) + i, "search", "running", claimed=True, settings=point)
            for i, point in enumerate(drawn)
        ]
        drawn.append(draw(plan, [*known, *begun], BASE, seed))
    places = [(math.log10(point["training.lr"]), point["diffusion.P_mean"]) for point in drawn]
    assert min(math.dist(a, b) for a, b in combinations(places, 2)) > 0.01


def test_lists_are_choices_like_any_other(tmp_path: Path) -> None:
    """What comes back from the journal is a list where a tuple went in."""
    betas = Dimension("training.betas", "choice", choices=((0.9, 0.99), (0.9, 0.999)))
    plan = variant(space=Space("lists", (*SPACE.dimensions, betas)), trials=14)
    base = {**BASE, "training.betas": (0.9, 0.99)}
    study, _ = run(tmp_path, plan, storage=open_storage(tmp_path, None), base=base)
    assert {tuple(t.settings["training.betas"]) for t in trials(study)} == {*betas.choices}


def test_repeats_pair_the_best_with_the_default(tmp_path: Path) -> None:
    plan = variant(trials=12, seeds=3)
    study, objective = run(tmp_path, plan)
    repeats = [t for t in trials(study) if t.role == "repeat"]
    best = best_of([t for t in trials(study) if t.role == "search" and t.costs])
    assert sorted((t.of, t.seed) for t in repeats) == sorted(
        (number, seed) for number in (0, best.number) for seed in (1, 2, 3)
    )
    again = [e for e in objective.errands if e.role == "repeat"]
    assert {e.seed for e in again} == {1, 2, 3}
    assert all(dict(e.settings) in (BASE, best.settings) for e in again)


def test_a_budget_ends_the_search(tmp_path: Path) -> None:
    plan = variant(trials=None, budget_seconds=2.0, trial_seconds=0.2)

    def cost(study: optuna.Study) -> float:
        return sum(progress_of(t)["cost"] for t in study.trials)

    study, _ = run(tmp_path, plan, Formula(plan, seconds=0.1))
    assert plan.search_seconds <= cost(study) < plan.search_seconds + 0.5


def test_several_metrics_make_a_front(tmp_path: Path) -> None:
    """Two bowls with different middles: no trial is best in both."""

    class Two(Formula):
        def __call__(self, errand: Errand) -> Outcome:
            x = errand.settings["diffusion.P_mean"]
            values = (-((x - 1) ** 2), -((x + 1) ** 2))
            return Outcome((0.0,) * (errand.rung - errand.reached), 1, 1, values, {})

    plan = variant(trials=30, metrics=("precision", "recall"), better=("higher", "higher"))
    study, _ = run(tmp_path, plan, Two(plan))
    found = [t for t in trials(study, plan) if t.costs]
    front = {found[i].number for i in pareto([t.costs for t in found])}
    inside = {t.number for t in found if -1 <= t.settings["diffusion.P_mean"] <= 1}
    assert len(inside) > 5 and inside <= front
    assert all(abs(t.settings["diffusion.P_mean"]) < 1.5 for t in found if t.number in front)
    assert abs(best_of(found).settings["diffusion.P_mean"]) < 0.9


def test_a_default_that_diverges_does_not_hide_the_best(tmp_path: Path) -> None:
    plan = variant(trials=20, seeds=2)
    objective = Formula(plan, ends=lambda e: "diverged" if e.role == "default" else "")
    study, _ = run(tmp_path, plan, objective)
    found = trials(study, plan)
    best = verdict.chosen(found, plan)
    assert best == min((t for t in found if t.costs), key=lambda t: t.costs).number
    assert not [t for t in found if t.role == "repeat"]  # nothing to compare with


def test_what_diverges_on_fresh_seeds_is_not_trained(tmp_path: Path) -> None:
    plan = variant(trials=20, seeds=3)
    lucky = Formula(plan, ends=lambda e: "diverged" if e.seed > 1 and e.settings != BASE else "")
    study, _ = run(tmp_path, plan, lucky)
    found = trials(study, plan)
    assert verdict.chosen(found, plan) == 0
    best = best_of([t for t in found if t.role == "search" and t.costs]).number
    assert verdict.lost(found, best) == 2


def test_images_for_trials_do_not_take_the_end_from_a_budget(tmp_path: Path) -> None:
    plan = variant(trials=None, budget_seconds=1.0, trial_seconds=None)
    study, _ = run(tmp_path, plan, Formula(plan, seconds=0.1))
    assert 8 <= len(study.trials) <= 11


def test_what_was_put_down_halfway_is_taken_up(tmp_path: Path) -> None:
    """A worker can be killed after it made a trial, before or after it took it."""
    storage = optuna.storages.InMemoryStorage()
    study = optuna.create_study(storage=storage, study_name="formula")
    study.enqueue_trial(BASE, user_attrs={"role": "default", "bracket": 0})
    study.ask()
    study.enqueue_trial(OPTIMUM, user_attrs={"role": "search", "bracket": 0})
    study, objective = run(tmp_path, variant(trials=4), storage=storage)
    assert [dict(e.settings) for e in objective.errands[:2]] == [BASE, OPTIMUM]
    assert [t.state for t in trials(study)] == ["complete"] * 4
    assert lowest(study) == 0.0


@pytest.mark.parametrize("saves", [False, True])
def test_a_trial_that_kills_its_process_is_given_up(tmp_path: Path, saves: bool) -> None:
    """Unless it comes further each time, as one does that is killed from outside."""
    study = optuna.create_study(study_name="formula")
    plan = variant(trials=4)
    folder = RunDir(trial_folder(tmp_path, 1)).checkpoints
    folder.mkdir(parents=True)
    met, ended = [], list[int]()
    for death in range(12):
        with present(tmp_path / "workers") as me:  # and gone without a word
            desk = Desk(study, plan, BASE, tmp_path, me)
            errand = desk.next(ended.append)
            if errand is not None and errand.role == "default":
                desk.bring_back(errand, Formula(plan)(errand), 1.0)
                errand = desk.next(ended.append)
            assert errand is not None
            met.append(errand.number)
            if saves:
                (folder / f"{death:09d}.safetensors").touch()
    assert met == ([1] * 12 if saves else [1] * 8 + [2] * 4)
    assert ended == ([] if saves else [1])
    state = trials(study, plan)[1].state
    assert state == ("running" if saves else "failed")
    assert saves or "memory" in progress_of(study.trials[1])["diagnosis"]


def test_a_claim_whose_answer_was_lost_is_taken_again(tmp_path: Path) -> None:
    study = optuna.create_study(study_name="formula")
    with present(tmp_path / "workers") as me:
        desk = Desk(study, variant(trials=4), BASE, tmp_path, me)
        lost, again = desk.next(), desk.next()
    assert lost is not None and lost == again


def test_repeats_end_with_the_budget() -> None:
    """Trials of a length that the user asked for may be longer than the budget bears."""

    def state(cost: float, repeats: int, workers: int = 1) -> Any:
        plan = variant(trials=2, seeds=3, budget_seconds=100.0, final=True, workers=workers)
        known = [
            Trial(0, "default", "complete", 0, (1.0,), cost=cost, costs=(1.0,)),
            Trial(1, "search", "complete", 0, (0.5,), cost=cost, costs=(0.5,)),
        ]
        more = [
            Trial(2 + i, "repeat", "complete", 0, (1.0,), 0, False, cost, (1.0,), i % 2, 1 + i // 2)
            for i in range(repeats)
        ]
        return next_step([*known, *more], plan)

    assert state(20, 0) == Draw("repeat", of=0, seed=1)
    assert state(20, 2) == Draw("repeat", of=0, seed=2)
    assert state(20, 3) == Over()
    assert state(20, 3, workers=2) == Draw("repeat", of=1, seed=2)


def test_samplers_differ_between_trials() -> None:
    seeds = {seed_at(0, number, "sampler") for number in range(100)}
    assert len(seeds) == 100
