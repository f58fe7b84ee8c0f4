"""What a run samples with: levels, solvers, weights, guides, and choices that were made before."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from poise import api
from poise.artifacts import DataFacts, RunDir, load_tensors, read_json, read_jsonl, save_tensors
from poise.averaging import averaged
from poise.build import build_denoiser, load_snapshot
from poise.config import resolve
from poise.diffusion.formulations import DDPM, EDM, Flow, Formulation
from poise.diffusion.multistep import SOLVERS
from poise.diffusion.sampler import noise_schedule
from poise.errors import ArtifactError, UsageError
from poise.generate import generate, sampling_levels
from poise.runtime import Runtime
from poise.sampling import (
    Guidance,
    Weights,
    assemble,
    chosen_model,
    named_weights,
    read_choices,
    snapshot_model,
    write_choice,
)
from poise.settings import SamplingConfig
from poise.training.checkpoint import save_snapshot
from poise.training.loop import TrainState

END = tiny.IMAGES


@pytest.fixture(scope="module")
def run(undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run of 16 snapshots, to read."""
    root = tmp_path_factory.mktemp("sampling") / "run"
    return RunDir(Path(shutil.copytree(undisturbed, root)))


@pytest.fixture
def copied(undisturbed: Path, tmp_path: Path) -> RunDir:
    """The same to write to."""
    return RunDir(Path(shutil.copytree(undisturbed, tmp_path / "run")))


def questions() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor(1.5), torch.tensor([0, 3, 7, 9])


# levels

FORMULATIONS: list[Formulation] = [EDM(0.5), EDM(0.3), Flow()]
FORMULATIONS += [
    DDPM(target, schedule, steps)
    for target, schedule, steps in (
        ("eps", "linear", 1000),
        ("v", "cosine", 1000),
        ("x0", "cosine", 10),
        ("eps", "linear", 10),
        ("v", "cosine", 2),
    )
]


@pytest.mark.parametrize("formulation", FORMULATIONS, ids=str)
@pytest.mark.parametrize("solver", SOLVERS)
def test_levels_fall_to_zero_and_are_those_that_were_learned(
    formulation: Formulation, solver: Any
) -> None:
    levels = sampling_levels(SamplingConfig(solver=solver), formulation)
    assert bool((levels.diff() < 0).all()) and levels[-1] == 0
    assert 2 <= len(levels) <= 19
    if isinstance(formulation, DDPM):
        assert set(levels[:-1].tolist()) <= set(formulation.levels.tolist())
        highest = torch.tensor(min(80, formulation.sigma_max), dtype=torch.float64)
        assert levels[0] == formulation.nearest(highest)
        assert levels[-2] == formulation.sigma_min  # above 0.002 in all of these
    else:
        rho, low = SOLVERS[solver].default_rho, max(0.002, formulation.sigma_min)
        wanted = noise_schedule(18, low, min(80.0, formulation.sigma_max), rho)
        torch.testing.assert_close(levels, wanted, rtol=1e-12, atol=0)


def test_ten_diffusion_steps_give_at_most_ten_levels() -> None:
    """18 are asked for, and levels that nobody learned are no better."""
    formulation = DDPM("eps", "cosine", 10)
    assert len(sampling_levels(SamplingConfig(steps=18), formulation)) <= 11
    every = sampling_levels(SamplingConfig(steps=500), formulation)
    assert torch.equal(every[:-1].flip(0), formulation.levels)
    settings = SamplingConfig(steps=18)
    images = generate(
        ideal,
        count=2,
        shape=(1, 4, 4),
        labels=None,
        settings=settings,
        levels=sampling_levels(settings, formulation),
        seed=0,
    )
    assert images.std() > 0


def test_settings_narrow_the_range_and_a_spacing_is_obeyed() -> None:
    settings = SamplingConfig(steps=6, sigma_min=0.1, sigma_max=10, rho=3)
    torch.testing.assert_close(sampling_levels(settings, EDM(0.5)), noise_schedule(6, 0.1, 10, 3))


# drawing


def ideal(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """The denoiser of images that are noise of deviation 0.5."""
    return x * 0.25 / (0.25 + sigma**2)


def drawn(count: int, seed: int = 0, **settings: Any) -> np.ndarray:
    given = SamplingConfig(**{"steps": 6, **settings})
    return generate(ideal, count=count, shape=(1, 4, 4), labels=None, settings=given, seed=seed)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_churn_follows_from_seed_and_index_alone(solver: str) -> None:
    whole = drawn(20, solver=solver, churn=4.0, batch=20)
    for batch in (1, 3, 8):
        assert np.array_equal(drawn(20, solver=solver, churn=4.0, batch=batch), whole)
    assert np.array_equal(drawn(5, solver=solver, churn=4.0, batch=2), whole[:5])
    assert not np.array_equal(drawn(20, solver=solver), whole)
    assert not np.array_equal(drawn(20, solver=solver, churn=4.0, seed=1), whole)
    outside = drawn(20, solver=solver, churn=4.0, churn_min=100.0)
    assert np.array_equal(outside, drawn(20, solver=solver))


def test_churn_leaves_the_spread_of_images_as_it_is() -> None:
    plain, churned = (drawn(400, steps=40, churn=c).astype(float) for c in (0.0, 8.0))
    for images in (plain, churned):  # 6400 pixels, a standard normal cut at two deviations
        assert images.std() == pytest.approx(0.5 * 127.5 * 0.959, rel=0.04)


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_solver_is_the_one_that_was_set(solver: str) -> None:
    calls = []

    def counting(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        calls.append(sigma.item())
        return ideal(x, sigma, labels)

    settings = SamplingConfig(steps=7, solver=solver)
    generate(counting, count=1, shape=(1, 4, 4), labels=None, settings=settings, seed=0)
    assert len(calls) == SOLVERS[solver].calls(7)
    first = noise_schedule(7, 0.002, 80.0, SOLVERS[solver].default_rho)
    assert set(calls) == {float(level) for level in first[:-1].float()}


def test_churn_without_a_solver_for_it_is_refused_before_training() -> None:
    with pytest.raises(UsageError, match="takes no fresh noise"):
        resolve(None, {"sampling.churn": 4.0, "sampling.solver": "unipc"})
    for solver in ("heun", "euler"):
        resolve(None, {"sampling.churn": 4.0, "sampling.solver": solver})


@pytest.mark.parametrize(("channels", "kind"), [(1, np.uint8), (5, np.uint8), (4, np.float32)])
def test_latents_come_as_they_are(channels: int, kind: type) -> None:
    def constant(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        return torch.full_like(x, 1.75)

    images = generate(
        constant,
        count=3,
        shape=(channels, 4, 4),
        labels=None,
        settings=SamplingConfig(steps=2),
        seed=0,
        latents=kind is np.float32,
    )
    assert images.dtype == kind
    assert images == pytest.approx(255 if kind is np.uint8 else 1.75)


def test_a_model_of_latents_samples_into_npz_and_into_no_picture(tmp_path: Path) -> None:
    config = resolve(
        None,
        {
            "model.channels": 8,
            "model.channels_per_head": 8,
            "model.attn_resolutions": [],
            "sampling.steps": 2,
        },
    )
    facts = DataFacts(8, 4, ("a", "b"), 0.5, latents=True)
    denoiser = build_denoiser(config, facts, Runtime(torch.device("cpu"), torch.float32))
    path = tmp_path / "1.safetensors"
    save_snapshot(path, TrainState.fresh(denoiser, config.training), config, facts)
    model = api.load(path)
    images = model.sample(3)
    assert (images.shape, images.dtype) == ((3, 8, 8, 4), np.float32)
    model.save_samples(tmp_path / "a.npz", 3)
    with np.load(tmp_path / "a.npz") as found:
        assert np.array_equal(found["arr_0"], images)
    with pytest.raises(UsageError, match="latents of 4 channels") as caught:
        model.save_samples(tmp_path / "pictures", 3)
    assert ".npz" in str(caught.value)
    assert not (tmp_path / "pictures").exists()


# choices


@hypothesis_settings(max_examples=60, deadline=None)
@given(
    st.floats(-3, 9),
    st.none() | st.builds(Weights, st.sampled_from(["raw", "ema_0.080"]), st.integers(0, 10**9)),
    st.tuples(st.floats(0, 1), st.floats(1.5, 99) | st.just(math.inf)),
)
def test_guidance_survives_being_written(
    strength: float, guide: Weights | None, interval: tuple[float, float]
) -> None:
    guidance = Guidance(strength, guide, interval)
    text = json.dumps(guidance.to_json(), allow_nan=False)
    assert Guidance.from_json(json.loads(text)) == guidance
    assert ("null]" in text) == math.isinf(interval[1])


def test_choices_stand_beside_each_other(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert read_choices(run) == {}
    write_choice(run, "weights", {"name": "raw", "images_seen": 8}, 8)
    guidance = Guidance(2.0, Weights("ema_0.100", 4))
    write_choice(run, "guidance", {**guidance.to_json(), "metric": "recall"}, 8)
    write_choice(run, "weights", {"name": "ema_0.050", "images_seen": 8}, 8)
    found = read_choices(run)
    assert found["weights"] == {"name": "ema_0.050", "images_seen": 8, "until": 8}
    assert Guidance.from_json(found["guidance"]) == guidance
    assert json.loads(run.choices.read_text())["guidance"]["interval"] == [0.0, None]


def test_without_choices_it_is_the_newest_and_best_by_validation(run: RunDir) -> None:
    model = chosen_model(run)
    best = load_tensors(run.snapshot_at(END))[1]["weights"][-1]
    assert (model.snapshot.weights, model.snapshot.images_seen) == (best, END)
    assert model.guidance is None and model.guide is None
    described = model.describe()
    assert described["guidance"] is None and described["sampler"]["name"] == "heun"


def test_choices_are_used(copied: RunDir) -> None:
    early = int(copied.snapshot_files()[3].stem)
    guidance = Guidance(2.5, Weights("ema_0.050", early), (0.1, 7.0))
    write_choice(copied, "weights", {"name": "raw", "images_seen": END}, END)
    write_choice(copied, "guidance", guidance.to_json(), END)
    model = chosen_model(copied)
    assert (model.snapshot.weights, model.guidance) == ("raw", guidance)
    assert model.guide is not None
    assert (model.guide.weights, model.guide.images_seen) == ("ema_0.050", early)
    before = read_jsonl(copied.log("events"))
    assert not [row for row in before if row["kind"] == "stale_choice"]


def test_a_choice_from_before_further_training_is_passed_over_with_an_event(
    copied: RunDir,
) -> None:
    write_choice(copied, "weights", {"name": "raw", "images_seen": END}, END)
    write_choice(copied, "guidance", Guidance(2.0, None).to_json(), END)
    tensors, meta = load_tensors(copied.snapshot_at(END))
    save_tensors(copied.snapshot_at(END + 32), tensors, {**meta, "images_seen": END + 32})
    model = chosen_model(copied)
    assert (model.snapshot.weights, model.snapshot.images_seen) == (meta["weights"][-1], END + 32)
    assert model.snapshot.weights != "raw" and model.guidance is None
    said = [row for row in read_jsonl(copied.log("events")) if row["kind"] == "stale_choice"]
    assert [row["images_seen"] for row in said] == [END + 32] * 2
    assert all(row["severity"] == "warning" for row in said)
    assert "weights" in said[0]["message"] and "guidance" in said[1]["message"]

    copied.snapshot_at(END + 32).unlink()
    assert chosen_model(copied).guidance == Guidance(2.0, None)


def test_a_damaged_newest_snapshot_makes_choices_stale(copied: RunDir) -> None:
    write_choice(copied, "weights", {"name": "raw", "images_seen": END}, END)
    copied.snapshot_at(END).write_bytes(b"cut")
    model = chosen_model(copied)
    assert model.snapshot.images_seen == int(copied.snapshot_files()[-2].stem)
    assert model.snapshot.weights != "raw"
    kinds = [row["kind"] for row in read_jsonl(copied.log("events"))]
    assert {"damaged_snapshot", "stale_choice"} <= set(kinds)


# weights and guides


@pytest.mark.parametrize(
    ("text", "name"),
    [("raw", "raw"), ("ema_0.100", "ema_0.100"), ("0.1", "ema_0.100"), ("0.0801", "ema_0.0801")],
)
def test_a_width_is_a_name(text: str, name: str) -> None:
    assert named_weights(text) == name


@torch.no_grad()
def test_weights_are_chosen_by_name_by_width_and_raw(run: RunDir) -> None:
    x, sigma, labels = questions()
    stored = load_snapshot(run.snapshot_at(END), "ema_0.100").denoiser(x, sigma, labels)
    for name in ("ema_0.100", named_weights("0.1")):
        found = assemble(run, Weights(name, END))
        assert torch.equal(found.denoise()(x, sigma, labels), stored)
    made = assemble(run, Weights("ema_0.080", END))
    wanted = averaged(run, 0.08).denoiser(x, sigma, labels)
    assert torch.equal(made.denoise()(x, sigma, labels), wanted)
    assert not torch.equal(wanted, stored)
    with pytest.raises(UsageError, match=r"average of width 0\.28"):
        assemble(run, Weights("ema_0.280", END))
    with pytest.raises(UsageError, match=r"holds no weights 'rew'\. Did you mean 'raw'"):
        assemble(run, Weights("rew", END))
    with pytest.raises(ArtifactError, match="does not exist"):
        assemble(run, Weights("raw", END + 1))


def test_sampling_takes_weights_by_name_by_width_and_raw(run: RunDir) -> None:
    model = api.load(run.root)
    images = {w: model.sample(4, weights=w).tobytes() for w in ("raw", "ema_0.100", 0.1, 0.08)}
    assert images["ema_0.100"] == images[0.1]
    assert len(set(images.values())) == 3
    alone = api.load(run.snapshot_at(END))
    assert alone.sample(4, weights="raw").tobytes() == images["raw"]
    with pytest.raises(UsageError, match="holds no weights"):
        alone.sample(4, weights=0.08)
    # and what was loaded stays as it was
    assert model.sample(4).tobytes() == api.load(run.root).sample(4).tobytes()


@torch.no_grad()
def test_the_guide_is_the_earlier_state(run: RunDir) -> None:
    x, sigma, labels = questions()
    early = int(run.snapshot_files()[2].stem)
    model = assemble(run, Weights("raw", END), Guidance(2.5, Weights("ema_0.050", early)))
    main = load_snapshot(run.snapshot_at(END), "raw").denoiser(x, sigma, labels)
    guide = load_snapshot(run.snapshot_at(early), "ema_0.050").denoiser(x, sigma, labels)
    assert (main - guide).abs().max() > 1e-3
    wanted = guide + 2.5 * (main - guide)
    assert torch.equal(model.denoise()(x, sigma, labels), wanted)


@torch.no_grad()
def test_without_a_guide_it_is_the_model_without_labels(run: RunDir) -> None:
    x, sigma, labels = questions()
    model = assemble(run, Weights("raw", END), Guidance(3.0, None, (0.0, 1.0)))
    main = load_snapshot(run.snapshot_at(END), "raw").denoiser
    low, high = torch.tensor(0.5), sigma
    labelled, unlabelled = main(x, low, labels), main(x, low, None)
    wanted = unlabelled + 3.0 * (labelled - unlabelled)
    assert torch.equal(model.denoise()(x, low, labels), wanted)
    assert torch.equal(model.denoise()(x, high, labels), main(x, high, labels))


def test_strength_one_is_the_unguided_model_bit_by_bit(copied: RunDir) -> None:
    plain = api.load(copied.root).sample(6)
    early = int(copied.snapshot_files()[0].stem)
    write_choice(copied, "guidance", Guidance(3.0, Weights("raw", early)).to_json(), END)
    model = api.load(copied.root)
    guided = model.sample(6)
    assert not np.array_equal(guided, plain)
    assert np.array_equal(model.sample(6, guidance=1), plain)
    assert np.array_equal(model.sample(6, guidance=3), guided)
    assert not np.array_equal(model.sample(6, guidance=2), guided)

    write_choice(copied, "guidance", Guidance(1.0, Weights("raw", early)).to_json(), END)
    assert np.array_equal(api.load(copied.root).sample(6), plain)


def test_strength_without_a_choice_goes_away_from_no_labels(run: RunDir) -> None:
    model = api.load(run.root)
    assert not np.array_equal(model.sample(6, guidance=4), model.sample(6))


def test_a_model_that_never_did_without_labels_cannot_guide_itself(
    copied: RunDir, tmp_path: Path
) -> None:
    tensors, meta = load_tensors(copied.snapshot_at(END))
    text = meta["config"].replace("label_dropout = 0.1", "label_dropout = 0.0")
    assert text != meta["config"]
    save_tensors(tmp_path / "x.safetensors", tensors, {**meta, "config": text})
    with pytest.raises(UsageError, match="cannot guide itself") as caught:
        api.load(tmp_path / "x.safetensors").sample(2, guidance=2)
    assert "poise guide" in caught.value.remedy
    assert len(api.load(tmp_path / "x.safetensors").sample(2, guidance=1)) == 2


def test_solver_and_steps_can_be_asked_for(run: RunDir) -> None:
    model = api.load(run.root)
    images = {s: model.sample(4, solver=s, steps=6).tobytes() for s in SOLVERS}
    assert len(set(images.values())) == len(SOLVERS)
    assert model.sample(4, solver="heun", steps=3).tobytes() == model.sample(4).tobytes()
    with pytest.raises(UsageError, match=r"no solver 'hein'\. Did you mean 'heun'"):
        model.sample(4, solver="hein")


def test_another_solver_brings_its_own_spacing_and_no_churn(run: RunDir) -> None:
    before = snapshot_model(run.snapshot_at(END)).with_settings(churn=3.0, rho=5.0)
    model = before.with_settings(solver="dpmpp_2m", steps=5)
    found = model.snapshot.config.sampling
    assert (found.solver, found.steps, found.rho, found.churn) == ("dpmpp_2m", 5, None, 0.0)
    found = before.with_settings(solver="euler").snapshot.config.sampling
    assert (found.rho, found.churn) == (None, 3.0)
    same = before.with_settings(solver="heun", steps=None).snapshot.config.sampling
    assert (same.rho, same.churn, same.steps) == (5.0, 3.0, before.snapshot.config.sampling.steps)


def test_scores_say_what_was_sampled_with(copied: RunDir) -> None:
    early = int(copied.snapshot_files()[3].stem)
    guidance = Guidance(1.5, Weights("ema_0.050", early), (0.0, 9.0))
    write_choice(copied, "weights", {"name": "raw", "images_seen": END}, END)
    write_choice(copied, "guidance", guidance.to_json(), END)
    before = read_json(copied.scores("val"))
    scores = api.load(copied.root).evaluate(20)
    assert read_json(copied.scores("val")) == scores
    assert (scores["weights"], scores["images_seen"]) == ("raw", END)
    assert Guidance.from_json(scores["guidance"]) == guidance
    assert scores["sampler"]["name"] == "heun"
    assert before["guidance"] is None
    assert scores["metrics"]["frechet_distance"] != before["metrics"]["frechet_distance"]
    assert copied.report.exists()
