"""When faults end, what is left behind, and how they act together."""

from typing import Any, cast

import numpy as np
import pytest
import torch
from fault_bench import BATCH, TRAIN, Bench, healthy, left_out, nan_entries, rates, tell

from poise.data.batches import batches
from poise.data.dataset import Dataset
from poise.drill.data_faults import shard
from poise.drill.disturbance import STARTS
from poise.drill.faults import (
    KINDS,
    fault,
)
from poise.training.loop import weights_of


@pytest.mark.parametrize(
    "kind",
    [k for k in STARTS if "duration" in KINDS[k].uses and k not in ("slow-data", "hung-loader")],
)
def test_it_ends_after_its_duration(kind: str) -> None:
    """Nothing is left behind: batches, hooks, factors and functions are those of before."""
    bench = Bench(fault(kind, at=0, duration=1))
    clean = _fittings(bench)
    for i, _ in enumerate(bench.session()):
        if i == 1:
            break
    assert _fittings(bench) == clean
    assert [t.over for t in bench.tamper._timed] == [True]
    assert torch.equal(bench.batches[1].images, healthy().batches[1].images)


def _fittings(bench: Bench) -> Any:
    """What faults may change besides numbers."""
    state, modules = bench.state, list(bench.state.denoiser.modules())
    return (
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules],
        [len(w._backward_hooks or {}) for w in weights_of(state.denoiser).values()],
        [getattr(m, "forced", None) for m in modules],
        [len(group["params"]) for group in state.optimizer.param_groups],
        len(state.optimizer._optimizer_step_post_hooks),
        round(state.lr_scale, 9),
        state.loss is None,
        "update" in vars(state.ema),
        "normalize_weights_" in vars(state.denoiser),
        bench.journal.draw == bench._draw,
    )


@pytest.mark.parametrize("kind", list(STARTS))
def test_a_new_session_ends_what_a_restart_ends(kind: str) -> None:
    """What is configured or lies in the data comes back; all else does not."""
    given = {"magnitude": 0.0} if kind in ("slow-data", "hung-loader") else {}
    bench = Bench(fault(kind, at=0, **given))
    clean = _fittings(bench)
    records = bench.session()
    next(records)
    bench.state.lr_scale = 1.0  # as a rollback sets it
    bench.tamper.begin(bench.state, bench.journal)
    assert _fittings(bench) == clean
    next(bench.session())
    lasting = {"flaky-layer", "gradient-flipped", "layer-dropped", "small-data"}
    lasting |= {"range-shard", "black-shard", "nan-latents", "wide-latents", "grayscale"}
    assert (bench.tamper._timed[0].effect is not None) == (kind in lasting)
    assert bench.tamper.updates == 2


def test_quarantine_of_its_images_ends_a_shard() -> None:
    broken = fault("range-shard", share=0.5)
    bench = Bench(broken)
    bench.tamper.begin(bench.state, bench.journal)
    good = np.setdiff1d(np.arange(TRAIN), shard(np.arange(TRAIN), broken))
    stream = bench.tamper.stream(batches(cast(Dataset, bench.dataset), good, batch=BATCH, seed=0))
    assert all(next(stream).images.dtype == torch.uint8 for _ in range(6))


def test_a_rate_that_was_set_right_is_left_alone() -> None:
    bench = Bench(fault("lr-drift", at=0, magnitude=0.5))
    used = []
    for i, record in enumerate(bench.session()):
        used.append(record.used_lr / record.schedule_lr)
        if i == 1:
            bench.state.lr_scale = 0.5  # the guard
        if i == 3:
            break
    assert np.allclose(used, [1.5, 2.25, 0.5, 0.5])


def test_averages_that_were_mended_move_again() -> None:
    bench = Bench(fault("ema-frozen", at=0))
    for i, _ in enumerate(bench.session()):
        if i == 1:
            profile = next(iter(bench.state.ema.profiles.values()))
            for average in profile.values():
                average.copy_(average.clone())
            still = {k: a.clone() for k, a in profile.items()}
        if i == 2:
            break
    assert any(not torch.equal(a, profile[k]) for k, a in still.items())


def test_frozen_averages_with_nan_stay_frozen() -> None:
    story = tell(fault("ema-frozen", at=1), fault("ema-nan", at=2))
    assert min(nan_entries(story.averages[-1])) == 1
    assert "update" in vars(story.bench.state.ema)


def test_faults_of_one_run_act_together() -> None:
    story = tell(fault("lr-jump", at=1, magnitude=3), fault("nan-pixel", at=2, duration=2))
    assert np.allclose(rates(story), [1, 3, 3, 3, 3])
    assert left_out(story) == [2, 3]
