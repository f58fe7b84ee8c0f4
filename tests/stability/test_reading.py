"""Records as numbers: the same ones, each once, in order, whenever they arrive."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability.reading import Readout
from poise.training.loop import REASONS, StepRecord, TrainState, update, weights_of

CPU = torch.device("cpu")
SETTINGS = {
    "model.channels": 8,
    "model.channels_per_head": 8,
    "model.attn_resolutions": [4],
    "training.batch": 4,
    "training.images": 200,
}


def records(count: int, policy: str = "warn", bad: int = -1) -> tuple[TrainState, list[StepRecord]]:
    config: Config = resolve(None, SETTINGS | {"stability.policy": policy})
    facts = DataFacts(4, 1, ("a", "b"), 0.5)
    denoiser = build_denoiser(config, facts, Runtime(CPU, torch.float32))
    state, made = TrainState.fresh(denoiser, config.training), []
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        images = torch.randint(0, 256, (4, 1, 4, 4), generator=generator).float()
        if i == bad:
            images[1, 0, 0, 0] = math.nan
        batch = Batch(images, torch.tensor([0, 1, 0, 1]), torch.arange(4 * i, 4 * i + 4))
        made.append(update(state, batch, config, measure=i % 2 == 1))
    return state, made


def test_a_reading_holds_the_numbers_of_its_record() -> None:
    state, made = records(5, bad=2)
    readout = Readout(CPU)
    for i, record in enumerate(made):
        readout.put(record, waited=0.25 * i)
    readings = readout.take()
    assert readout.take() == []
    assert [r.step for r in readings] == [1, 2, 3, 4, 5]
    for i, (reading, record) in enumerate(zip(readings, made, strict=True)):
        vitals = record.vitals
        assert vitals is not None
        for name in ("images_seen", "lr", "schedule_lr", "used_lr", "seconds", "inputs"):
            assert getattr(reading, name) == getattr(record, name)
        for found, tensor in (
            (reading.image_error, record.error),
            (reading.sigma, record.sigma),
            (reading.grad_norms, vitals.grad_norms),
            (reading.moments, vitals.moments),
            (reading.before, vitals.before),
            (reading.after, vitals.after),
            (reading.indices, record.indices),
        ):
            np.testing.assert_array_equal(found, tensor.numpy())
        assert len(reading.before) == len(weights_of(state.denoiser))
        np.testing.assert_equal(reading.grad_norm, record.grad_norm.item())
        np.testing.assert_allclose(reading.loss, record.loss.double().mean().item(), rtol=1e-12)
        np.testing.assert_allclose(reading.error, record.error.double().mean().item(), rtol=1e-12)
        assert (reading.ema is None) == (vitals.ema is None) == (i != 3)
        assert (reading.update_ratio is None) == (i % 2 == 0)
        assert (reading.batch, reading.waited) == (4, 0.25 * i)
        assert reading.applied == bool(record.applied) == (i != 2)
    assert readings[2].reasons == {"input", "loss", "gradient"} <= set(REASONS)
    assert readings[0].reasons == frozenset()
    assert math.isnan(readings[2].error)
    assert made[3].vitals is not None and made[3].vitals.ema is not None
    assert readings[3].ema is not None
    np.testing.assert_array_equal(readings[3].ema, made[3].vitals.ema.numpy())
    assert made[3].update_ratio is not None
    assert readings[3].update_ratio == made[3].update_ratio.item()
    assert np.isnan(readings[0].moments).all()  # Adam has none yet


def test_without_vitals_there_are_no_rows() -> None:
    readout = Readout(CPU)
    readout.put(records(1, policy="off")[1][0])
    reading = readout.take()[0]
    assert [len(rows) for rows in (reading.grad_norms, reading.before, reading.after)] == [0, 0, 0]
    assert reading.ema is None
    assert reading.applied


def test_infinities_of_both_signs_are_read_quietly() -> None:
    _, made = records(1)
    made[0].loss[:2] = torch.tensor([math.inf, -math.inf])
    readout = Readout(CPU)
    readout.put(made[0])
    assert math.isnan(readout.take()[0].loss)


class Slow:
    """What tells that a copy from a GPU has arrived."""

    def __init__(self) -> None:
        self.done, self.waited_for = False, 0

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        self.waited_for += 1
        self.done = True


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[Slow]:
    """The copies that are under way, none of which arrives by itself."""
    events: list[Slow] = []

    def send(numbers: Tensor, device: torch.device) -> tuple[Tensor, Slow]:
        events.append(Slow())
        return numbers.clone(), events[-1]

    monkeypatch.setattr("poise.stability.reading._send", send)
    return events


def test_readings_come_in_order_when_they_have_arrived(slow: list[Slow]) -> None:
    _, made = records(6)
    readout = Readout(CPU)
    for record in made[:4]:
        readout.put(record)
    assert readout.take() == []
    slow[1].done = True
    assert readout.take() == []  # the first has not arrived
    slow[0].done = True
    assert [r.step for r in readout.take()] == [1, 2]
    for record in made[4:]:
        readout.put(record)
    slow[3].done = True
    assert readout.take() == []
    assert [r.step for r in readout.take(wait=True)] == [3, 4, 5, 6]
    assert [event.waited_for for event in slow] == [0, 0, 1, 0, 1, 1]
    assert readout.take(wait=True) == []


def test_no_more_than_sixteen_are_under_way(slow: list[Slow]) -> None:
    _, made = records(1)
    readout, taken = Readout(CPU), 0
    for i in range(40):
        readout.put(made[0])
        taken += len(readout.take())
        assert i + 1 - taken <= 15
    assert taken + len(readout.take(wait=True)) == 40
