"""Searches find the best that was planted, keep it only if fresh samples agree, and are used."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

from poise import api, choosing, pipeline
from poise.artifacts import RunDir, read_json
from poise.averaging import good_widths
from poise.choosing import METRICS, Judge, search_guidance, sweep_ema
from poise.console import Screen
from poise.errors import DataError, UsageError
from poise.journal import Prepared
from poise.sampling import (
    Guidance,
    Model,
    Weights,
    assemble,
    chosen_model,
    read_choices,
    write_choice,
)
from poise.training.ema import profile_std

END = tiny.IMAGES
SCREEN = Screen(quiet=True)
COST = "frechet_distance"


@pytest.fixture(scope="module")
def prepared(undisturbed: Path) -> Prepared:
    return pipeline.reopen(RunDir(undisturbed), SCREEN)


@pytest.fixture
def job(prepared: Prepared, tmp_path: Path) -> Prepared:
    """The run in a folder that may be written to."""
    root = Path(shutil.copytree(prepared.run.root, tmp_path / "run"))
    return replace(prepared, run=RunDir(root))


def plant(
    monkeypatch: pytest.MonkeyPatch,
    cost: Callable[[Model], float],
    confirming: Callable[[Model], float] | None = None,
    metric: str = COST,
) -> None:
    """Candidates cost what `cost` says, on fresh seeds what `confirming` says."""

    def measure(self: Judge, model: Model, stream: str) -> dict[str, float]:
        of = confirming if stream == "confirming" and confirming else cost
        return {**dict.fromkeys(METRICS, 0.5), metric: of(model)}

    monkeypatch.setattr(Judge, "measure", measure)


def changed(run: RunDir) -> set[str]:
    return set(read_choices(run))


# the real thing, small


@pytest.mark.parametrize(("metric", "best_of"), [(COST, min), ("density", max)])
def test_a_sweep_keeps_the_best_of_what_it_tried(
    job: Prepared, metric: str, best_of: Callable[..., Any]
) -> None:
    before = chosen_model(job.run).snapshot.weights
    found = sweep_ema(job, SCREEN, metric, 20)
    assert read_choices(job.run)["weights"] == {**found, "until": END}
    names = [row["candidate"] for row in found["tried"]]
    assert names[0] == "raw" and len(names) == len(set(names)) >= 5
    assert {"ema_0.050", "ema_0.100"} <= set(names)
    assert all(set(row) == {"candidate", *METRICS} for row in found["tried"])
    best = best_of(found["tried"], key=lambda row: row[metric])["candidate"]
    verdict = found["confirmed"]
    better = (
        verdict["after"] < verdict["before"]
        if metric == COST
        else (verdict["after"] > verdict["before"])
    )
    assert verdict["better"] == better
    assert found["name"] == (best if better else before)
    assert (found["metric"], found["samples"], found["images_seen"]) == (metric, 20, END)
    assert chosen_model(job.run).snapshot.weights == found["name"]


def test_a_search_for_guidance_writes_what_it_returns_and_scores_use_it(job: Prepared) -> None:
    model = api.load(job.run.root)
    found = model.guide(n=20)
    rows = {row["candidate"]: row[COST] for row in found["tried"]}
    assert next(iter(rows)) == "no guidance"
    guided = {name: cost for name, cost in rows.items() if name != "no guidance"}
    assert any("no labels" in name for name in guided)
    assert sum(name.endswith("images") and "strength 1.25," in name for name in guided) >= 3
    if found["strength"] == 1:
        assert not found["confirmed"]["better"]
        assert "guidance" not in read_choices(job.run)
        write_choice(job.run, "guidance", Guidance(2.0, None).to_json(), END)
    else:
        assert min(guided.values()) < rows["no guidance"] and found["confirmed"]["better"]
        assert read_choices(job.run)["guidance"] == {**found, "until": END}
    kept = Guidance.from_json(read_choices(job.run)["guidance"])
    assert np.array_equal(model.sample(4, guidance=kept.strength), model.sample(4))
    model.evaluate(20)
    scores = read_json(job.run.scores("val"))
    assert Guidance.from_json(scores["guidance"]) == kept
    assert scores["weights"] == chosen_model(job.run).snapshot.weights


def test_all_candidates_are_asked_the_same_and_the_last_two_something_else(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, tuple[int, ...], int]] = []
    images = job.dataset.images

    def draw(model: Model, count: int, labels: list[int], seed: int) -> Any:
        asked.append((seed, tuple(labels), count))
        return np.roll(images, len(asked), axis=0)[:count]

    monkeypatch.setattr(choosing, "draw", draw)
    found = sweep_ema(job, SCREEN, COST, 30)
    assert len(asked) == len(found["tried"]) + 2
    assert len(set(asked[:-2])) == 1 and len(set(asked[-2:])) == 1
    assert not {asked[0][:2]} & {asked[-1][:2]}
    counts = np.bincount(asked[0][1], minlength=10)
    assert counts.sum() == asked[0][2] == 30
    assert found["tried"][0][COST] != found["tried"][1][COST]  # other images, other scores


# planted answers


def width(model: Model) -> float:
    return profile_std(model.snapshot.weights) or 9.0


def test_the_planted_width_is_found(job: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch, lambda model: abs(width(model) - 0.075))
    found = sweep_ema(job, SCREEN, COST, 20)
    stds = [profile_std(row["candidate"]) for row in found["tried"][1:]]
    nearest = min((std for std in stds if std), key=lambda std: abs(std - 0.075))
    assert profile_std(found["name"]) == nearest and abs(nearest - 0.075) < 0.013
    assert found["confirmed"]["better"]
    (low, high), *_ = good_widths(job.run)
    assert min(std for std in stds if std) == low and max(std for std in stds if std) == high
    chosen = chosen_model(job.run).snapshot
    assert chosen.weights == found["name"]


def test_raw_weights_can_win_and_larger_can_be_better(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model: 0.1 + (model.snapshot.weights == "raw"), metric="recall")
    assert sweep_ema(job, SCREEN, "recall", 20)["name"] == "raw"
    assert chosen_model(job.run).snapshot.weights == "raw"


def test_luck_of_the_first_seeds_changes_no_weights(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = chosen_model(job.run).snapshot.weights
    plant(monkeypatch, lambda m: -width(m), lambda m: float(m.snapshot.weights != before))
    found = sweep_ema(job, SCREEN, COST, 20)
    assert not found["confirmed"]["better"]
    assert found["confirmed"]["after"] > found["confirmed"]["before"]
    assert found["name"] == before == chosen_model(job.run).snapshot.weights


def test_tracked_widths_of_many_digits_are_tried_as_they_are(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From few snapshots a neighbour of a tracked width cannot be made."""
    tracked = (0.0123, 0.0987)
    monkeypatch.setattr(choosing, "good_widths", lambda run: [(std, std) for std in tracked])
    settings = job.config.training.model_copy(update={"ema_stds": tracked})
    job = replace(job, config=job.config.model_copy(update={"training": settings}))
    assert choosing._widths(choosing.good_widths(job.run), tracked) == list(tracked)


def planted_guidance(times: list[int], scale: float) -> Callable[[Model], float]:
    """Best: strength 2.5, the guide at times[1] with ema_0.050, raw weights, up to 5 scale."""

    def cost(model: Model) -> float:
        guidance = model.guidance
        if guidance is None:
            return 10.0
        if guidance.guide is None:
            return 9.0
        total = 1 + abs(guidance.strength - 2.5) + 2 * (guidance.guide.images_seen != times[1])
        total += 0.3 * (guidance.guide.name != "ema_0.050")
        total += 0.2 * (model.snapshot.weights != "ema_0.100")
        return total + 0.1 * (guidance.interval != (0.0, 5.0 * scale))

    return cost


def test_the_planted_guidance_is_found(job: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [int(path.stem) for path in job.run.snapshot_files()]
    times = [min(files, key=lambda t: abs(t - share * END)) for share in (1 / 8, 1 / 4, 1 / 2)]
    scale = job.facts.sigma_data / 0.5
    write_choice(job.run, "weights", {"name": "ema_0.050", "images_seen": END}, END)
    plant(monkeypatch, planted_guidance(times, scale))
    found = search_guidance(job, SCREEN, COST, 20)
    wanted = Guidance(2.5, Weights("ema_0.050", times[1]), (0.0, 5.0 * scale))
    assert Guidance.from_json(found) == wanted
    assert found["confirmed"] == {"before": 10.0, "after": 1.0, "better": True}
    choices = read_choices(job.run)
    assert Guidance.from_json(choices["guidance"]) == wanted
    assert choices["guidance"]["until"] == choices["weights"]["until"] == END
    assert (choices["weights"]["name"], choices["weights"]["images_seen"]) == ("ema_0.100", END)
    model = chosen_model(job.run)
    assert (model.snapshot.weights, model.guidance) == ("ema_0.100", wanted)
    tried = [row["candidate"] for row in found["tried"]]
    assert len(tried) == len(set(tried))
    assert all(any(f"at {t:,} images" in name for name in tried) for t in times)


def test_guidance_by_no_labels_can_win(job: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(model: Model) -> float:
        guidance = model.guidance
        if guidance is None:
            return 3.0
        return 2.0 + (guidance.guide is not None) + abs(guidance.strength - 1.5)

    plant(monkeypatch, cost)
    before = chosen_model(job.run).snapshot.weights
    found = search_guidance(job, SCREEN, COST, 20)
    assert Guidance.from_json(found) == Guidance(1.5, None)
    assert changed(job.run) == {"guidance"}  # the weights were best as they were
    assert chosen_model(job.run).snapshot.weights == before


def test_a_strength_may_help_where_the_first_one_did_not(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cost(model: Model) -> float:
        return 1.0 if model.guidance is None else 0.5 + 4 * abs(model.guidance.strength - 1.5)

    plant(monkeypatch, cost)
    assert search_guidance(job, SCREEN, COST, 20)["strength"] == 1.5
    assert read_choices(job.run)["guidance"]["strength"] == 1.5


def test_guidance_that_does_not_help_changes_nothing(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch, lambda model: 1.0 + (model.guidance is not None))
    found = search_guidance(job, SCREEN, COST, 20)
    assert found["strength"] == 1.0 and not found["confirmed"]["better"]
    assert changed(job.run) == set() and not job.run.choices.exists()


def test_luck_of_the_first_seeds_changes_no_guidance(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = int(job.run.snapshot_files()[0].stem)
    kept = Guidance(1.25, Weights("raw", early))
    write_choice(job.run, "guidance", kept.to_json(), END)
    before = job.run.choices.read_bytes()
    plant(
        monkeypatch,
        lambda model: 1.0 - (model.guidance is not None),
        lambda model: 1.0 + (model.guidance is not None),
    )
    found = search_guidance(job, SCREEN, COST, 20)
    assert found["strength"] == 1.0
    assert (found["confirmed"]["before"], found["confirmed"]["after"]) == (1.0, 2.0)
    assert job.run.choices.read_bytes() == before
    assert chosen_model(job.run).guidance == kept


def test_a_width_that_early_states_cannot_give_is_guided_by_one_they_have(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep chose a width that was not tracked; two snapshots hold the tracked ones alone."""
    widest = f"ema_{good_widths(job.run)[-1][1]:.3f}"
    write_choice(job.run, "weights", {"name": widest, "images_seen": END}, END)
    early = job.run.snapshot_files()[1]
    with pytest.raises(UsageError, match="cannot give an average"):
        assemble(job.run, Weights(widest, int(early.stem)))
    plant(
        monkeypatch, lambda m: 9.0 if m.guidance is None else 1.0 + (m.snapshot.weights != widest)
    )
    found = Guidance.from_json(search_guidance(job, SCREEN, COST, 20))
    assert found.guide is not None and found.guide.name == "ema_0.100"
    model = chosen_model(job.run)
    assert model.snapshot.weights == widest and model.guidance == found


def test_a_run_without_earlier_states_or_hidden_labels_has_nothing_to_guide_it(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in job.run.snapshot_files()[:-1]:
        path.unlink()
    settings = job.config.training.model_copy(update={"label_dropout": 0.0})
    job = replace(job, config=job.config.model_copy(update={"training": settings}))
    plant(monkeypatch, lambda model: 1.0)
    found = search_guidance(job, SCREEN, COST, 20)
    assert found["strength"] == 1.0
    assert [row["candidate"] for row in found["tried"]] == ["no guidance"]
    assert not job.run.choices.exists()


def test_a_sweep_looks_without_the_guide_and_drops_it_for_other_weights(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = list[bool]()

    def cost(model: Model) -> float:
        guided.append(model.guidance is not None)
        return width(model)

    write_choice(job.run, "guidance", Guidance(2.0, None).to_json(), END)
    plant(monkeypatch, cost)
    sweep_ema(job, SCREEN, COST, 20)
    assert guided and not any(guided)
    assert chosen_model(job.run).guidance is None  # it was found for the weights before


# wrong use


def test_an_unknown_metric_names_the_nearest(job: Prepared) -> None:
    with pytest.raises(UsageError, match=r"no metric 'frechet'\. Did you mean 'fre"):
        Judge(job, "frechet", 20)


@pytest.mark.parametrize(("count", "steps"), [(9, None), (0, None), (20, 1)])
def test_too_few_samples_or_steps_are_refused(job: Prepared, count: int, steps: int | None) -> None:
    with pytest.raises(UsageError, match="decide nothing") as caught:
        sweep_ema(job, SCREEN, COST, count, steps)
    assert "10 samples or more" in str(caught.value)


def test_too_few_validation_images_are_refused(job: Prepared) -> None:
    few = replace(job, splits=replace(job.splits, val=job.splits.val[:9]))
    with pytest.raises(DataError, match="9 validation images"):
        search_guidance(few, SCREEN, COST, 20)


def test_fewer_steps_are_used_while_searching_alone(
    job: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = list[int]()

    def draw(model: Model, count: int, labels: list[int], seed: int) -> Any:
        steps.append(model.snapshot.config.sampling.steps)
        return job.dataset.images[:count]

    monkeypatch.setattr(choosing, "draw", draw)
    sweep_ema(job, SCREEN, COST, 20, 2)
    assert set(steps) == {2}
    assert chosen_model(job.run).snapshot.config.sampling.steps == job.config.sampling.steps
