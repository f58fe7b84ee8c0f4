"""What a bench measures is what a run does; its figures are positive and its table is readable."""

import copy
import json
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from poise.artifacts import DataFacts
from poise.bench import rates, steps
from poise.bench.bench import bench
from poise.bench.rates import quick_rate, rate_works
from poise.bench.rig import Rig, make_rig, rounds
from poise.bench.sampling import without_network
from poise.bench.steps import STAGES, plain_state, plain_step, ready_state, staged_step
from poise.bench.table import table
from poise.config import resolve
from poise.flops import forward_macs
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import update, weights_of

FACTS = DataFacts(8, 3, ("a", "b"), 0.5)
FP32 = Runtime(torch.device("cpu"), torch.float32)


def configured(**more: Any) -> Config:
    small = {
        "model.channels": 16,
        "model.channels_per_head": 8,
        "model.attn_resolutions": [4],
        "training.batch": 16,
        "training.precision": "fp32",
        "training.threads": 1,
        "training.warmup": 0,
    }
    return resolve(None, small | {key.replace("__", "."): value for key, value in more.items()})


def rig_of(config: Config) -> Rig:
    return make_rig(config, FACTS, FP32, seconds=1e9, rate=1e9)


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "_SIDE", {"cpu": 128})
    monkeypatch.setattr(rates, "_QUICK_SECONDS", 0.01)


def leaves(tree: Any, path: str = "") -> list[tuple[str, Any]]:
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in leaves(value, f"{path}/{key}")]
    return [(path, tree)]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_figure_is_there_and_positive(precision: str) -> None:
    threads, spent = torch.get_num_threads(), []
    config = configured(training__precision=precision)
    found = bench(config, FACTS, seconds=1.0, progress=lambda done, total: spent.append(done))
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(found)) == found
    assert found["rounds"] >= 1
    assert found["network"] == {
        "macs": forward_macs(config, FACTS),
        "parameters": found["network"]["parameters"],
        "resolution": 8,
        "batch": found["network"]["batch"],
        "micro_batch": found["network"]["micro_batch"],
        "batch_of_run": 16,
    }
    assert set(found["step"]) == {"plain fp32", "best stock", "poise"}
    assert set(found["sampling"]) == {"plain fp32", "poise"}
    assert tuple(found["stages"]) == STAGES
    expected = {"matrix fp32", f"matrix {precision}", "convolution forward", "convolution backward"}
    assert set(found["rates"]) == expected
    figures = [
        leaf for part in ("step", "stages", "sampling", "rates") for leaf in leaves(found[part])
    ]
    assert all(value > 0 for _, value in figures)
    assert all(
        value["low"] <= value["median"] <= value["high"] for value in found["rates"].values()
    )
    shares = [value for path, value in figures if "/share_of_" in path]
    assert len(shares) > 20 and all(value < 1.5 for value in shares)
    assert sum(row["share_of_step"]["median"] for row in found["stages"].values()) == pytest.approx(
        1, abs=0.3
    )
    assert spent == sorted(spent) and spent

    text = table(found)
    assert max(map(len, text.splitlines())) <= 100
    assert all(name in text for name in (*STAGES, *expected, *found["step"], "images/s"))


def test_a_transformer_has_no_convolutions_to_compare_with() -> None:
    config = configured(model__architecture="dit", model__depth=1)
    found = bench(config, FACTS, seconds=0.1)
    assert set(found["rates"]) == {"matrix fp32"}
    assert "share_of_convolution" not in found["step"]["poise"]
    assert "poise" in table(found)


def test_a_batch_that_is_too_slow_is_halved() -> None:
    config = configured(training__batch=64, training__micro_batch=32)
    whole = make_rig(config, FACTS, FP32, seconds=1e9, rate=1e9)
    assert (whole.images, whole.micro) == (64, 32)
    assert (len(whole.batch.images), whole.batch.images.dtype) == (64, torch.uint8)
    least = make_rig(config, FACTS, FP32, seconds=1e-9, rate=1.0)
    assert (least.images, least.micro, len(least.batch.images)) == (8, 8, 8)


def test_everything_takes_its_turn_in_every_round_and_the_first_is_not_counted() -> None:
    rig, turns = rig_of(configured()), []
    works = {("step", name): (lambda name=name: turns.append(name)) for name in "abc"}
    for seconds, fewest in ((1e-9, 1), (0.1, 3)):
        turns.clear()
        times = rounds(rig, works, seconds, None)
        counted = {len(values) for values in times.values()}
        assert turns == list("abc") * (counted.pop() + 1) and not counted
        assert len(turns) >= 3 * (fewest + 1)


@pytest.mark.parametrize("micro", [None, 4])
def test_the_stages_together_are_one_update_bit_by_bit(micro: int | None) -> None:
    rig = rig_of(configured(training__micro_batch=micro))
    (one, _), (other, _) = ready_state(rig), ready_state(rig)
    laps: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for _ in range(3):
        staged_step(rig, one, laps)
        update(other, rig.batch, rig.config)
    assert (one.images_seen, one.step) == (other.images_seen, other.step)
    for name, w in weights_of(one.denoiser).items():
        assert torch.equal(w, weights_of(other.denoiser)[name]), name
        assert all(
            torch.equal(one.ema.profiles[s][name], a[name]) for s, a in other.ema.profiles.items()
        )
    assert all(len(values) == 3 for values in laps.values())


@pytest.mark.parametrize("stock", [False, True])
def test_a_plain_step_teaches_the_same_network_the_same(stock: bool) -> None:
    rig = rig_of(configured(training__micro_batch=8))
    plain, (own, _) = plain_state(rig, stock=stock), ready_state(rig)
    before = copy.deepcopy(weights_of(own.denoiser))
    for _ in range(3):
        plain_step(rig, plain, stock=stock)
        update(own, rig.batch, rig.config)
    apart = moved = 0.0
    for name, w in weights_of(own.denoiser).items():
        apart += float((w - weights_of(plain.denoiser)[name]).detach().square().sum())
        moved += float((w - before[name]).detach().square().sum())
    assert apart**0.5 < 0.01 * moved**0.5


def test_operations_are_those_that_torch_counts() -> None:
    rig = rig_of(configured(model__channel_mult=[1, 2, 2], model__channels=8))
    works, operations = rate_works(rig, 1e-3, 1e9)
    assert works.keys() == operations.keys()
    for name, work in works.items():
        with FlopCounterMode(display=False) as counter:
            work()
        assert counter.get_total_flops() == operations[name], name
    assert quick_rate(FP32) > 0


@pytest.mark.parametrize(("solver", "calls"), [("heun", 9), ("euler", 5), ("dpmpp_2m", 5)])
def test_a_solver_is_charged_for_each_call_of_the_network(solver: str, calls: int) -> None:
    config = configured(sampling__solver=solver, sampling__steps=5)
    rig = rig_of(config)
    assert without_network(rig, ready_state(rig)[0].denoiser)[0] == calls


def test_without_a_compiler_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "obstacle", lambda device: "there is no compiler (g++)")
    found = bench(configured(), FACTS, seconds=0.1, compiled=True)
    assert "poise compiled" not in found["step"]
    assert "no compiler" in table(found)


def test_the_compiled_step_stands_beside_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setattr(steps, "obstacle", lambda device: None)
    found = bench(configured(), FACTS, seconds=0.1, compiled=True)
    assert found["step"]["poise compiled"]["images_per_second"]["median"] > 0
    assert found["compile_seconds"] > 0
    assert "poise compiled" in table(found) and "compiling" in table(found)
