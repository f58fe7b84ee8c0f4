"""Each check finds what was planted and is quiet beside it; nothing of the run is touched."""

import json
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.data.batches import Batch, measure_sigma_data
from poise.data.imageset import Dataset
from poise.data.splits import Splits
from poise.errors import TrainingError
from poise.runtime import Runtime
from poise.settings import Config
from poise.stability import preflight_machine, preflight_training
from poise.stability.preflight import Preflight, preflight, seconds_for
from poise.stability.preflight_check import Check, Pace
from poise.stability.preflight_data import check_data
from poise.stability.preflight_machine import (
    check_disk,
    check_memory,
    checkpoint_bytes,
    snapshot_bytes,
)
from poise.stability.preflight_training import check_resume
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.loop import TrainState

CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = {
    "model.channels": 8,
    "model.channel_mult": [1],
    "model.attn_resolutions": [],
    "model.channels_per_head": 8,
    "training.batch": 8,
    "training.images": 1600,
}
Usage = namedtuple("Usage", "total used free")


def dataset(count: int = 300, *, classes: int = 2) -> Dataset:
    generator = np.random.default_rng(0)
    base = generator.integers(0, 2, (count, 1, 2, 2)) * 200 + generator.integers(
        0, 56, (count, 1, 1, 1)
    )
    images = base.repeat(4, 2).repeat(4, 3).astype(np.uint8)
    images[:, :, 0, 0] = generator.integers(0, 256, (count, 1))
    return Dataset(
        images=images,
        labels=np.arange(count) % classes,
        label_names=tuple(f"class {i}" for i in range(classes)),
        names=tuple(f"{i}.png" for i in range(count)),
        hashes=tuple(f"{i:064x}" for i in range(count)),
        given_splits=(None,) * count,
        unreadable=(),
        ignored=(),
        warnings=(),
        source="planted",
        sizes={},
        modes={},
    )


def data_check(data: Dataset, batch: int = 16, sigma: float = 0.5) -> Check:
    members = np.arange(len(data))
    return check_data(data, members, batch=batch, sigma_data=sigma, seconds=10)


def everything(config: Config, root: Path, seconds: float = 60.0) -> Preflight:
    data = dataset()
    members = np.arange(len(data))
    splits = Splits(members[:240], members[240:270], members[270:], ())
    facts = DataFacts(8, 1, data.label_names, measure_sigma_data(data.images, splits.train))
    return preflight(config, data, splits, facts, CPU, root, seconds)


FACTS = DataFacts(8, 1, ("class 0", "class 1"), 0.7)


def some(count: int = 16) -> Batch:
    data = dataset(count)
    assert data.labels is not None
    return Batch(torch.from_numpy(data.images), torch.from_numpy(data.labels), torch.arange(count))


def verdicts(found: Preflight) -> dict[str, str]:
    return {check.name: check.verdict for check in found.checks}


def test_a_healthy_run_hears_one_line_and_leaves_no_trace(tmp_path: Path) -> None:
    config = resolve(None, SMALL)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found = everything(config, tmp_path / "run")
    assert set(verdicts(found).values()) == {"ok"}
    assert list(verdicts(found)) == ["disk", "data", "memory", "resume", "rate", "batch"]
    assert found.config == config and not found.refused
    assert len(found.lines()) == 1 and "6 checks" in found.lines()[0]
    assert torch.equal(before, torch.get_rng_state())
    assert list((tmp_path / "run").iterdir()) == []
    found.demand()
    found.write(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "preflight.json").read_text())
    assert [check["name"] for check in written["checks"]] == list(verdicts(found))


def test_a_rate_that_is_too_high_is_said_and_not_changed(tmp_path: Path) -> None:
    config = resolve(None, SMALL | {"training.lr": 30.0, "training.images": 1_000_000})
    found = everything(config, tmp_path)
    assert verdicts(found)["rate"] == "warn"
    assert found.config.training.lr == 30.0
    assert any("training.lr" in line for line in found.lines()[1:])


def test_without_time_checks_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    found = everything(resolve(None, SMALL), tmp_path, seconds=0.0)
    left_out = [check for check in found.checks if check.verdict == "skipped"]
    assert {check.name for check in left_out} == {"resume", "rate", "batch"}
    assert all(check.sentence for check in left_out)
    assert "left out" in found.lines()[0]


def test_the_time_follows_the_budget() -> None:
    assert seconds_for(None) == seconds_for(60.0) == 10.0
    assert seconds_for(36_000.0) == 720.0
    assert Pace(1.0, 0.5).seconds(4, 2) == 6.0
    assert Pace(0.0, 1.0).largest(20.0, 2, (16, 8, 4)) == 8
    assert Pace(0.0, 1.0).largest(1.0, 2, (16, 8, 4)) is None


# memory


def test_a_batch_that_does_not_fit_is_cut_and_the_setting_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = resolve(None, SMALL)
    memory, same, _ = check_memory(config, FACTS, some(), CPU, 60.0)
    assert memory.verdict == "ok" and same == config
    # room for pieces of four and no more
    room = memory.numbers["fixed_bytes"] + 5 * 1.4 * memory.numbers["bytes_per_image"]
    monkeypatch.setattr(preflight_machine, "available_memory", lambda device: int(room / 0.9))
    cut, changed, _ = check_memory(config, FACTS, some(), CPU, 60.0)
    assert cut.verdict == "changed" and "micro_batch is 4" in cut.sentence
    assert changed.training == config.training.model_copy(update={"micro_batch": 4})
    # with the setting that was found nothing is changed any more
    again, as_before, _ = check_memory(changed, FACTS, some(), CPU, 60.0)
    assert again.verdict == "ok" and as_before == changed


def test_an_update_that_fails_is_halved_until_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    real = preflight_machine.update

    def update(state: TrainState, batch: Batch, config: Config) -> object:
        if (config.training.micro_batch or 0) > 2:
            raise torch.OutOfMemoryError("planted")
        return real(state, batch, config)

    monkeypatch.setattr(preflight_machine, "update", update)
    found, config, _ = check_memory(resolve(None, SMALL), FACTS, some(), CPU, 60.0)
    assert found.verdict == "changed" and config.training.micro_batch == 2


def test_a_network_that_never_fits_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight_machine, "available_memory", lambda device: 1000)
    found = everything(resolve(None, SMALL), tmp_path)
    assert verdicts(found)["memory"] == "refuse"
    with pytest.raises(TrainingError, match="memory"):
        found.demand()


# disk


def test_the_sizes_of_files_are_known_before_they_are_written(tmp_path: Path) -> None:
    config, facts = resolve(None, SMALL), DataFacts(8, 1, (), 0.5)
    state = TrainState.fresh(build_denoiser(config, facts, CPU), config.training)
    for weight in state.denoiser.parameters():
        weight.grad = torch.zeros_like(weight)
    state.optimizer.step()
    parameters = sum(p.numel() for p in state.denoiser.parameters())
    save_checkpoint(tmp_path / "c", state, {}, {"seconds": 0.0})
    save_snapshot(tmp_path / "s", state, config, facts)
    for name, want in (("c", checkpoint_bytes), ("s", snapshot_bytes)):
        size = (tmp_path / name).stat().st_size
        assert size == pytest.approx(want(config, parameters), rel=0.2, abs=40_000)


@pytest.mark.parametrize(
    ("checkpoints", "snapshots", "verdict"),
    [(1.0, 0, "refuse"), (3.0, 0, "warn"), (4.1, 16, "ok"), (4.1, 8, "warn")],
)
def test_disk_space_is_weighed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoints: float,
    snapshots: int,
    verdict: str,
) -> None:
    config, parameters = resolve(None, SMALL), 100_000_000
    free = checkpoints * checkpoint_bytes(config, parameters) + 64 * 2**20
    free += snapshots * snapshot_bytes(config, parameters)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, int(free)))
    found = check_disk(config, parameters, tmp_path)
    assert found.verdict == verdict
    assert found.numbers["free_bytes"] == int(free)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    found = check_disk(resolve(None, SMALL), 1000, tmp_path / "file" / "run")
    assert found.verdict == "refuse" and str(tmp_path / "file") in found.sentence
    whole = everything(resolve(None, SMALL), tmp_path / "file" / "run", seconds=0.0)
    assert verdicts(whole)["resume"] == "skipped"
    with pytest.raises(TrainingError, match="file"):
        whole.demand()


# resuming


def test_a_restored_state_goes_on_bit_by_bit(tmp_path: Path) -> None:
    for network in ({}, {"model.architecture": "adm", "model.dropout": 0.2}):
        found = check_resume(resolve(None, SMALL | network), FACTS, some(), CPU, tmp_path)
        assert found.verdict == "ok" and found.numbers["relative_difference"] == 0
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_saved_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(path: Path, state: TrainState) -> object:
        found = load_checkpoint(path, state)
        state.optimizer.state.clear()
        return found

    monkeypatch.setattr(preflight_training, "load_checkpoint", forgetful)
    resume = check_resume(resolve(None, SMALL), FACTS, some(), CPU, tmp_path)
    assert resume.verdict == "warn"

    def damaging(path: Path, state: TrainState) -> object:
        found = load_checkpoint(path, state)
        name, average = next(reversed(state.ema.profiles[0.05].items()))
        average.add_(1e-6)
        damaging.name = name  # type: ignore[attr-defined]
        return found

    monkeypatch.setattr(preflight_training, "load_checkpoint", damaging)
    resume = check_resume(resolve(None, SMALL), FACTS, some(), CPU, tmp_path)
    assert resume.verdict == "warn"
    assert damaging.name in resume.numbers["tensor"]  # type: ignore[attr-defined]


# data


def test_good_images_are_left_alone() -> None:
    found = data_check(dataset())
    assert found.verdict == "ok" and found.numbers["looked_at"] == 300


def test_bytes_that_hold_zero_to_one_are_refused() -> None:
    data = dataset()
    found = data_check(replace(data, images=data.images // 128), sigma=0.004)
    assert found.verdict == "refuse" and "times 255" in found.sentence


def test_copies_of_one_image_are_refused_and_many_copies_said() -> None:
    data = dataset()
    assert data_check(replace(data, hashes=("0",) * 300)).verdict == "refuse"
    half = tuple(f"{i // 2}" for i in range(300))
    found = data_check(replace(data, hashes=half))
    assert found.verdict == "warn" and found.numbers["copies_share"] == pytest.approx(0.5)


def test_flat_images_are_counted() -> None:
    data = dataset()
    images = data.images.copy()
    images[::10] = 0
    found = data_check(replace(data, images=images))
    assert found.verdict == "warn" and found.numbers["constant_share"] == pytest.approx(0.1)


def test_labels_that_teach_nothing() -> None:
    data = dataset()
    assert data.labels is not None
    one = data_check(replace(data, labels=np.zeros(300, np.int64)))
    assert one.verdict == "warn" and "one of the 2 classes" in one.sentence
    labels = np.zeros(300, np.int64)
    labels[7] = 1
    single = data_check(replace(data, labels=labels))
    assert single.numbers["single_image_classes"] == ["class 1"]


def test_a_batch_larger_than_the_data_and_pixels_that_hardly_differ() -> None:
    data = dataset()
    assert "training.batch" in data_check(data, batch=400).sentence
    assert data_check(data, batch=300).verdict == "ok"
    assert data_check(data, sigma=0.01).verdict == "warn"
    assert data_check(replace(data, images=data.images // 8)).verdict == "warn"
