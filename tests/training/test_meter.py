"""Interval sums against numpy."""

import math

import numpy as np
import pytest
import torch

from poise.data.batches import Batch
from poise.settings import DiffusionConfig
from poise.training.inputs import check_inputs
from poise.training.loop import REASONS, StepRecord
from poise.training.meter import IntervalMeter

SETTINGS = DiffusionConfig(P_mean=-0.8, P_std=1.4)
EDGES = -0.8 - 2.5 * 1.4 + np.arange(9) * 5 * 1.4 / 8  # of ln(sigma)


def records(count: int, *, bad: tuple[int, ...] = ()) -> list[StepRecord]:
    generator, made = np.random.default_rng(5), []
    for i in range(count):
        sigma = np.exp(generator.normal(-0.8, 2.5, 16))  # wide, so that the outer bands fill
        error, loss = generator.exponential(1, 16), generator.normal(0, 1, 16)
        norm = generator.exponential(10)
        if i in bad:
            error[3], loss[3], norm = math.nan, math.inf, math.nan
        indices = torch.arange(16 * i, 16 * i + 16)
        batch = Batch(torch.zeros(16, 1, 4, 4, dtype=torch.uint8), None, indices)
        made.append(
            StepRecord(
                images_seen=16 * (i + 1),
                step=i + 1,
                lr=0.01,
                loss=torch.tensor(loss, dtype=torch.float32),
                error=torch.tensor(error, dtype=torch.float32),
                sigma=torch.tensor(sigma, dtype=torch.float32),
                grad_norm=torch.tensor(norm, dtype=torch.float32),
                applied=torch.tensor(i not in bad),
                indices=indices,
                update_ratio=torch.tensor(0.1 * i) if i % 3 == 2 else None,
                schedule_lr=0.01,
                used_lr=0.01,
                reasons=torch.tensor([i in bad and name == "loss" for name in REASONS]),
                vitals=None,
                inputs=check_inputs(batch, num_classes=0, limit=None),
                batch=batch,
            )
        )
    return made


def filled(rows: list[StepRecord]) -> IntervalMeter:
    meter = IntervalMeter(SETTINGS, torch.device("cpu"))
    for row in rows:
        meter.add(row)
    return meter


def test_averages_equal_numpy_over_the_applied_updates() -> None:
    rows = records(12, bad=(4, 9))
    good = [row for i, row in enumerate(rows) if i not in (4, 9)]
    line = filled(rows).line()
    for key in ("loss", "error", "grad_norm"):
        values = [np.mean(np.asarray(getattr(row, key), np.float64)) for row in good]
        assert line[key] == pytest.approx(np.mean(values), rel=1e-12)
    assert line["skipped"] == 2
    assert line["update_ratio"] == pytest.approx(1.1)  # the last that was measured

    sigma = np.concatenate([np.asarray(row.sigma, np.float64) for row in good])
    error = np.concatenate([np.asarray(row.error, np.float64) for row in good])
    band = np.clip(np.digitize(np.log(sigma), EDGES) - 1, 0, 7)
    bands = line["bands"]
    assert isinstance(bands, list)
    for i, found in enumerate(bands):
        assert found["sigma"] == pytest.approx(math.exp((EDGES[i] + EDGES[i + 1]) / 2))
        assert found["count"] == (band == i).sum() > 0
        assert found["error"] == pytest.approx(error[band == i].mean(), rel=1e-9)


def test_a_line_begins_a_new_interval_and_keeps_the_count_of_skips() -> None:
    rows = records(6, bad=(1,))
    meter = filled(rows[:3])
    meter.line()
    for row in rows[3:]:
        meter.add(row)
    line = meter.line()
    assert line["error"] == filled(rows[3:]).line()["error"]
    assert line["skipped"] == 1
    empty = meter.line()
    assert empty["loss"] is None
    assert empty["error"] is None


def test_an_interval_of_skips_alone_has_no_averages() -> None:
    line = filled(records(2, bad=(0, 1))).line()
    assert [line[key] for key in ("loss", "error", "grad_norm", "skipped")] == [None, None, None, 2]
    bands = line["bands"]
    assert isinstance(bands, list)
    assert all(band["count"] == 0 and band["error"] is None for band in bands)


def test_skips_in_a_row_are_counted_from_the_last_good_update() -> None:
    rows = records(7, bad=(1, 2, 4, 5, 6))
    counts = [filled(rows[: i + 1]).skipped_in_a_row() for i in range(7)]
    assert counts == [0, 1, 2, 0, 1, 2, 3]


def test_skips_name_the_images() -> None:
    skips = filled(records(4, bad=(2,))).skips()
    assert [(s.images_seen, s.indices) for s in skips] == [(48, list(range(32, 48)))]


@pytest.mark.parametrize("cut", [1, 4, 7])
def test_an_unfinished_interval_survives_a_checkpoint(cut: int) -> None:
    rows = records(8, bad=(3, 7))
    whole = filled(rows)
    first = filled(rows[:cut])
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    resumed = IntervalMeter(SETTINGS, torch.device("cpu"))
    resumed.restore(saved)
    for row in rows[cut:]:
        resumed.add(row)
    assert resumed.skipped_in_a_row() == whole.skipped_in_a_row() == 1
    assert resumed.line() == whole.line()
