"""When a run compiles, what happens where it cannot, and that compiled steps are the same steps."""

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch
from poise.diffusion.loss import Loss, denoising_loss
from poise.flops import forward_macs
from poise.runtime import Runtime
from poise.settings import Config
from poise.training import compiling
from poise.training.compiling import (
    CompiledLoss,
    decide,
    fewest_seconds,
    loss_function,
    obstacle,
    worth_compiling,
)
from poise.training.loop import LossFunction, TrainState, steps, update, weights_of

CPU = torch.device("cpu")
FACTS = DataFacts(8, 3, ("a", "b"), 0.5)
SMALL = {
    "model.channels": 16,
    "model.channels_per_head": 8,
    "model.attn_resolutions": [4],
    "training.batch": 8,
    "training.precision": "fp32",
    "training.threads": 1,
}


def configured(**more: Any) -> Config:
    return resolve(None, SMALL | {key.replace("__", "."): value for key, value in more.items()})


def batch(position: int) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (8, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels = torch.randint(2, (8,), generator=generator)
    return Batch(images, labels, torch.arange(8))


def fresh(config: Config, loss: LossFunction | None = None) -> TrainState:
    dtype = torch.bfloat16 if config.training.precision == "bf16" else torch.float32
    state = TrainState.fresh(build_denoiser(config, FACTS, Runtime(CPU, dtype)), config.training)
    with torch.no_grad():  # at the start most gradients are 0, and nothing could be compared
        for name, w in state.denoiser.named_parameters():
            if name.endswith("gain"):
                w.fill_(0.5)
    state.loss = loss
    return state


# measured on machines with 2 cores: alone, with neighbours, with many
@pytest.mark.parametrize("compile_seconds", [87, 150, 500])
@pytest.mark.parametrize("gain", [1.2, 1.7])
def test_a_compiled_run_never_ends_later(compile_seconds: float, gain: float) -> None:
    shortest = next(s for s in range(0, 10_000, 60) if worth_compiling(s, CPU))
    assert compile_seconds + shortest / gain <= shortest
    assert not worth_compiling(2700 - 1, CPU)
    assert all(worth_compiling(s, CPU) for s in (shortest + 1, 2 * shortest, 1e9))
    assert not worth_compiling(600, torch.device("cuda"))


def test_auto_follows_the_time_and_what_the_user_set_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiling, "obstacle", lambda device: None)
    assert decide(configured(), FACTS, 60.0) == "off"
    assert decide(configured(), FACTS, 7 * 3600.0) == "on"
    for kept in ("on", "off"):
        assert decide(configured(training__compile=kept), FACTS, 60.0) == kept
    assert decide(configured(training__images=10_000), FACTS, None) == "off"
    assert decide(configured(training__images=10**12), FACTS, None) == "on"
    monkeypatch.setattr(compiling, "obstacle", lambda device: "there is no compiler (g++)")
    assert decide(configured(), FACTS, 7 * 3600.0) == "off"


def test_an_unknown_time_is_taken_for_short() -> None:
    """The time at a rate that no machine exceeds: 0.2 TFLOP/s for a thread in fp32, 1 in bf16."""
    macs = forward_macs(configured(), FACTS)
    for precision, threads, rate in (("fp32", 1, 2e11), ("fp32", 4, 8e11), ("bf16", 2, 2e12)):
        config = configured(
            training__images=10**6, training__precision=precision, training__threads=threads
        )
        assert fewest_seconds(config, FACTS) == pytest.approx(6 * macs * 1e6 / rate)


def test_what_the_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "my-compiler"
    compiler.write_text("")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    assert "header files" in (obstacle(CPU) or "")
    (tmp_path / "Python.h").touch()
    assert obstacle(CPU) is None
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert obstacle(CPU) == "there is no compiler (no-such-compiler)"


def test_a_run_that_cannot_compile_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    assert loss_function(configured(training__compile="off"), CPU, notes.append) is None
    assert notes == []
    monkeypatch.setattr(compiling, "obstacle", lambda device: "there is no compiler (g++)")
    assert loss_function(configured(training__compile="on"), CPU, notes.append) is None
    assert "no compiler" in notes[0]


class Compiler:
    """In place of torch.compile: counts what it is asked to compute, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.sizes: list[int] = []
        self.error = error

    def __call__(self, function: LossFunction, **options: Any) -> Callable[..., Loss]:
        def run(*args: Any) -> Loss:
            if self.error is not None:
                raise self.error
            self.sizes.append(len(args[1].clean))
            return function(*args)

        return run


@pytest.mark.parametrize("micro", [None, 4])
def test_the_cut_last_batch_runs_eagerly(
    monkeypatch: pytest.MonkeyPatch, micro: int | None
) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    config = configured(training__micro_batch=micro, training__compile="on")
    notes: list[str] = []
    state = fresh(config, loss_function(config, CPU, notes.append))
    records = list(steps(state, (batch(i) for i in range(3)), config, until=18))
    assert compiler.sizes == ([8, 8] if micro is None else [4, 4, 4, 4])
    assert [len(record.loss) for record in records] == [8, 8, 2]
    assert len(notes) == 1 and "compiled" in notes[0]


def test_a_compiler_that_fails_is_noted_once_and_the_steps_are_eager(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiler = Compiler(RuntimeError("a linker is missing\nand much more"))
    monkeypatch.setattr(torch, "compile", compiler)
    notes: list[str] = []
    config = configured()
    state, eager = fresh(config, CompiledLoss(8, notes.append)), fresh(config)
    for i in range(2):
        found, expected = update(state, batch(i), config), update(eager, batch(i), config)
        assert torch.equal(found.loss, expected.loss)
    assert notes == ["The step could not be compiled, and runs without: a linker is missing"]


def test_an_error_after_the_first_step_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = Compiler()
    monkeypatch.setattr(torch, "compile", compiler)
    config = configured()
    state = fresh(config, CompiledLoss(8))
    update(state, batch(0), config)
    compiler.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        update(state, batch(1), config)


def assert_same_training(config: Config, backend: str, tolerance: float) -> None:
    """Three updates with and without the compiler, which must not fail: losses and gradients."""
    notes: list[str] = []
    loss = CompiledLoss(config.training.micro_batch or 8, notes.append, backend=backend)
    one, other = fresh(config, loss), fresh(config)
    for i in range(3):
        found, expected = update(one, batch(i), config), update(other, batch(i), config)
        torch.testing.assert_close(found.loss, expected.loss, rtol=tolerance, atol=tolerance)
        if i == 0:
            pairs = zip(weights_of(one.denoiser).values(), other.denoiser.parameters(), strict=True)
            for w, v in pairs:
                assert w.grad is not None and v.grad is not None
                assert (w.grad - v.grad).norm() <= 10 * tolerance * v.grad.norm()
    for buffer, same in zip(one.denoiser.buffers(), other.denoiser.buffers(), strict=True):
        torch.testing.assert_close(buffer, same, rtol=1e-5, atol=1e-6)
    assert notes == []


# "eager" takes the graph in one piece, which is where networks could fail, and computes it by torch
def test_the_loss_is_one_graph() -> None:
    config = configured(model__architecture="mp_dit", model__depth=1, model__channels=16)
    assert_same_training(config, "eager", 0.0)


def test_one_process_may_compile_for_many_runs() -> None:
    """torch compiles one function so many times, eight unless told otherwise, and then refuses."""
    held: list[TrainState] = []
    notes: list[str] = []
    with torch._dynamo.config.patch(recompile_limit=1):
        for channels in (8, 16):
            config = configured(model__architecture="dit", model__depth=1, model__channels=channels)
            state = fresh(config, CompiledLoss(8, notes.append, backend="eager"))
            update(state, batch(0), config)
            held.append(state)
    assert notes == []


VARIANTS: list[dict[str, Any]] = [
    {},
    {"training__precision": "bf16"},
    {"training__micro_batch": 4},
    {"training__label_dropout": 0.0},
    {"model__resample_filter": [1, 3, 3, 1]},
    {"model__dropout": 0.2},
    {"model__ladder": "C"},
    {"model__ladder": "E"},
    {"model__architecture": "adm", "training__precision": "bf16"},
    {"model__architecture": "adm", "model__normalisation": "batch"},
    {"model__architecture": "dit", "model__depth": 2},
    {"model__architecture": "mp_dit", "model__depth": 2},
    {"diffusion__formulation": "v", "diffusion__weighting": "min_snr"},
    {"diffusion__formulation": "flow", "diffusion__weighting": "p2"},
]


@pytest.mark.slow
@pytest.mark.parametrize("more", VARIANTS, ids=str)
def test_every_network_is_one_graph(more: dict[str, Any]) -> None:
    assert_same_training(configured(**more), "aot_eager", 0.0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler about itself
@pytest.mark.skipif(obstacle(CPU) is not None, reason="there is no C++ compiler")
@pytest.mark.parametrize(
    "more",
    [{}, {"model__architecture": "adm", "model__normalisation": "batch"}],
    ids=["edm2", "adm"],
)
def test_compiled_training_is_the_same_training(more: dict[str, Any]) -> None:
    assert_same_training(configured(**more), "inductor", 3e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(obstacle(CPU) is not None, reason="there is no C++ compiler")
def test_dropout_in_compiled_code_follows_from_the_seed_and_the_position_alone() -> None:
    config = configured(
        model__architecture="dit", model__depth=1, model__channels=16, model__dropout=0.3
    )
    loss = CompiledLoss(8)

    def losses(noise: int, position: int = 0) -> Tensor:
        state = fresh(config, loss)
        state.images_seen = position
        torch.manual_seed(noise)
        return update(state, batch(0), config).loss

    assert torch.equal(losses(1), losses(2))
    assert not torch.equal(losses(1), losses(1, position=8))
    still = fresh(configured(model__architecture="dit", model__depth=1, model__channels=16))
    assert not torch.equal(losses(1), update(still, batch(0), config).loss)


def test_the_eager_loss_is_what_a_state_starts_with() -> None:
    assert fresh(configured()).loss is None
    assert denoising_loss.__defaults__ is not None  # compiled functions get all four arguments
