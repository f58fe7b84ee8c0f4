"""Averages made after a real, tiny training equal those that were tracked and held out of it."""

import dataclasses
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from poise.artifacts import DataFacts, RunDir, load_tensors, save_tensors
from poise.averaging import (
    as_snapshot,
    averaged,
    good_widths,
    keep,
    reconstruct,
    reconstruct_many,
    write,
)
from poise.build import build_denoiser, load_snapshot
from poise.config import resolve
from poise.data.batches import Batch
from poise.errors import ArtifactError, UsageError
from poise.runtime import Runtime
from poise.training.checkpoint import save_checkpoint, save_snapshot
from poise.training.ema import PowerEMA, profile_name
from poise.training.loop import TrainState, steps, weights_of

STORED = (0.05, 0.1)
HELD_OUT = (0.06, 0.08, 0.12)
FACTS = DataFacts(8, 1, ("a", "b"), 0.5)
CONFIG = resolve(
    None,
    {
        "model.channels": 8,
        "model.channels_per_head": 8,
        "model.channel_mult": [1],
        "model.attn_resolutions": [],
        "training.batch": 8,
        "training.images": 1597,  # the last batch holds 5
        "training.ema_stds": list(STORED),
        "training.precision": "fp32",
    },
)
END = CONFIG.training.images
EVERY = 100


@dataclass(frozen=True)
class Trained:
    """A finished run, and what a run that also tracked HELD_OUT held at each snapshot."""

    run: RunDir
    tracked: dict[int, dict[float, dict[str, Tensor]]]  # images seen -> width -> weights


def batches_of_two_classes() -> Iterator[Batch]:
    generator = torch.Generator().manual_seed(1)
    size = CONFIG.training.batch
    shades = torch.linspace(40, 200, 8).expand(8, 8)
    while True:
        labels = torch.randint(2, (size,), generator=generator)
        noise = 30 * torch.randn(size, 1, 8, 8, generator=generator)
        plain = torch.where(labels[:, None, None, None] == 0, shades, shades.T)
        images = (plain + noise).clamp(0, 255).to(torch.uint8)
        yield Batch(images, labels, torch.zeros(size, dtype=torch.int64))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    run = RunDir(tmp_path_factory.mktemp("averaging"))
    denoiser = build_denoiser(CONFIG, FACTS, Runtime(torch.device("cpu"), torch.float32))
    state = TrainState.fresh(denoiser, CONFIG.training)
    state.ema = PowerEMA(weights_of(denoiser), (*STORED, *HELD_OUT))
    stored = PowerEMA({}, ())
    stored.profiles = {std: state.ema.profiles[std] for std in STORED}
    tracked = {}
    for record in steps(state, batches_of_two_classes(), CONFIG, until=END):
        seen = record.images_seen
        if seen // EVERY > (seen - len(record.indices)) // EVERY or seen == END:
            shown = dataclasses.replace(state, ema=stored)
            save_snapshot(run.snapshot_at(seen), shown, CONFIG, FACTS)
            tracked[seen] = {
                std: {name: w.clone() for name, w in weights.items()}
                for std, weights in state.ema.profiles.items()
            }
    return Trained(run, tracked)


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Trained:
    """The same run in a folder that may be changed."""
    shutil.copytree(trained.run.snapshots, tmp_path / "snapshots")
    return Trained(RunDir(tmp_path), trained.tracked)


def distance(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """Relative to `theirs`, over all weights."""
    assert ours.keys() == theirs.keys()
    square = sum((ours[k].double() - theirs[k].double()).square().sum() for k in theirs)
    norm = sum(theirs[k].double().square().sum() for k in theirs)
    return float((square / norm) ** 0.5)


def test_the_averages_are_those_that_were_tracked(trained: Trained) -> None:
    made = reconstruct_many(trained.run, HELD_OUT)
    for std, found in zip(HELD_OUT, made, strict=True):
        tracked = trained.tracked[END]
        assert distance(found.tensors, tracked[std]) < 1e-4
        assert distance(found.tensors, tracked[0.05 if std > 0.08 else 0.1]) > 1e-3
        assert all(w.dtype == torch.float32 for w in found.tensors.values())
        assert (found.std, found.images_seen, found.warning) == (std, END, "")
        assert 0 < found.error < 0.01 and 1 < found.noise_gain < 2
        assert found.snapshots[-1] == END and set(found.snapshots) <= set(trained.tracked)


def test_every_file_is_read_at_most_once(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []

    def load(path: Path) -> Any:
        read.append(path)
        return load_tensors(path)

    monkeypatch.setattr("poise.averaging.load_tensors", load)
    found = reconstruct_many(trained.run, HELD_OUT)
    assert [int(path.stem) for path in read] == list(found[0].snapshots)
    assert good_widths(trained.run) and len(read) == len(found[0].snapshots)


def test_one_at_a_time_gives_the_same(trained: Trained) -> None:
    for found in reconstruct_many(trained.run, HELD_OUT):
        alone = reconstruct(trained.run, found.std)
        assert (alone.error, alone.noise_gain) == pytest.approx((found.error, found.noise_gain))
        assert distance(alone.tensors, found.tensors) < 1e-7


def test_a_stored_average_is_read_from_the_newest_snapshot_alone(trained: Trained) -> None:
    for std in STORED:
        found = reconstruct(trained.run, std)
        assert found.snapshots == (END,)
        assert distance(found.tensors, trained.tracked[END][std]) < 1e-7


def test_an_average_that_is_kept_outlives_the_other_snapshots(
    trained: Trained, tmp_path: Path
) -> None:
    run = RunDir(tmp_path / "run")
    shutil.copytree(trained.run.root, run.root)
    found = reconstruct(run, 0.08)
    keep(run, 0.08)
    keep(run, 0.08)  # which changes nothing any more
    for path in run.snapshot_files()[:-1]:
        path.unlink()
    state = load_snapshot(run.snapshot_at(END), "ema_0.080").denoiser.state_dict()
    assert all(torch.equal(state[name], w) for name, w in found.tensors.items())
    for std in STORED:
        load_snapshot(run.snapshot_at(END), profile_name(std))


def test_an_average_may_end_at_an_earlier_snapshot(trained: Trained) -> None:
    at = sorted(trained.tracked)[-4]
    found = reconstruct(trained.run, 0.08, at=at)
    assert found.images_seen == at == found.snapshots[-1]
    assert distance(found.tensors, trained.tracked[at][0.08]) < 1e-4
    raw = load_snapshot(trained.run.snapshot_at(at), "raw").denoiser.state_dict()
    assert all(torch.equal(raw[k], w) for k, w in found.newest.raw.items())


def test_a_time_without_a_snapshot_is_refused_with_the_nearest(trained: Trained) -> None:
    with pytest.raises(UsageError, match=r"no snapshot after 390 images") as caught:
        reconstruct(trained.run, 0.08, at=390)
    assert "304 or 400, the nearest" in str(caught.value)
    with pytest.raises(UsageError, match="a run with snapshots"):
        reconstruct(RunDir(trained.run.root / "elsewhere"), 0.08, at=390)
    with pytest.raises(ArtifactError, match="holds no whole snapshot"):
        reconstruct(RunDir(trained.run.root / "elsewhere"), 0.08)


def test_widths_out_of_reach_are_refused_with_those_within(trained: Trained) -> None:
    low, high = good_widths(trained.run)[-1]
    assert low < 0.05 and 0.12 < high < 0.2
    for std in (0.005, 0.28):
        with pytest.raises(UsageError, match=f"average of width {std}: its profile") as caught:
            reconstruct_many(trained.run, [0.08, std])
        assert f"a width of {low:g} to {high:g}" in str(caught.value)
    for std in (0.0, 0.29, -1.0):
        with pytest.raises(UsageError, match="between 0 and 0\\.2887"):
            reconstruct(trained.run, std)


def test_a_doubtful_width_comes_with_a_warning(trained: Trained) -> None:
    found = reconstruct(trained.run, 0.03)
    assert 0.01 < found.error < 0.1
    assert f"width 0.03 is off by {found.error:.1%}" in found.warning
    assert "snapshots up to 1,597 images give widths of 0.0" in found.warning
    assert distance(found.tensors, trained.tracked[END][0.05]) < 0.1


def test_few_snapshots_give_little_between_the_tracked_widths(copied: Trained) -> None:
    times = sorted(copied.tracked)
    for seen in times[:-1]:
        if seen not in times[3::4]:
            copied.run.snapshot_at(seen).unlink()
    ranges = good_widths(copied.run)
    assert [low < std < high for (low, high), std in zip(ranges, STORED, strict=True)] == [True] * 2
    assert " or " in reconstruct(copied.run, 0.07).warning


def test_a_damaged_snapshot_is_passed_over_and_named(copied: Trained) -> None:
    times = sorted(copied.tracked)
    flipped, cut = copied.run.snapshot_at(times[-2]), copied.run.snapshot_at(times[-5])
    content = bytearray(flipped.read_bytes())
    content[-1000] ^= 1
    flipped.write_bytes(bytes(content))
    cut.write_bytes(cut.read_bytes()[:500])
    found = reconstruct(copied.run, 0.08)
    assert not {times[-2], times[-5]} & set(found.snapshots)
    assert all(f"{path} is damaged" in found.warning for path in (flipped, cut))
    assert found.error > reconstruct(copied.run, 0.08, at=times[-6]).error
    assert distance(found.tensors, copied.tracked[END][0.08]) < 1e-3


def test_a_damaged_end_is_left_for_the_one_before_unless_it_was_asked_for(copied: Trained) -> None:
    before = sorted(copied.tracked)[-2]
    path = copied.run.snapshot_at(END)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    for damage in (bytes(content), b""):
        path.write_bytes(damage)
        found = reconstruct(copied.run, 0.08)
        assert found.images_seen == before and f"{path} is damaged" in found.warning
        with pytest.raises(ArtifactError, match="is damaged"):
            reconstruct(copied.run, 0.08, at=END)


def test_a_written_average_is_an_ordinary_snapshot(trained: Trained, tmp_path: Path) -> None:
    made, out = reconstruct(trained.run, 0.0801), tmp_path / "a.safetensors"
    write(made, out)
    meta = load_tensors(out)[1]
    assert meta["weights"] == ["raw", "ema_0.0801"]
    assert meta["reconstruction"]["std"] == 0.0801
    assert meta["reconstruction"]["error"] == made.error
    loaded = load_snapshot(out)
    assert (loaded.weights, loaded.images_seen) == ("ema_0.0801", END)
    assert (loaded.config, loaded.facts) == (CONFIG, FACTS)
    state = loaded.denoiser.state_dict()
    assert all(torch.equal(state[k], w) for k, w in made.tensors.items())
    newest = load_snapshot(trained.run.snapshot_at(END), "raw").denoiser
    assert all(torch.equal(state[k], v) for k, v in newest.named_buffers())
    raw = load_snapshot(out, "raw").denoiser.state_dict()
    assert all(torch.equal(raw[k], v) for k, v in newest.state_dict().items())

    ready = averaged(trained.run, 0.0801)
    assert (ready.weights, ready.images_seen) == ("ema_0.0801", END)
    assert not ready.denoiser.training
    assert not any(p.requires_grad for p in ready.denoiser.parameters())
    x, sigma, labels = torch.randn(2, 1, 8, 8), torch.tensor([0.1, 5.0]), torch.tensor([0, 1])
    assert torch.equal(
        ready.denoiser(x, sigma, labels), as_snapshot(made).denoiser(x, sigma, labels)
    )
    assert torch.equal(ready.denoiser(x, sigma, labels), loaded.denoiser(x, sigma, labels))


def test_snapshots_may_hold_different_averages(trained: Trained, copied: Trained) -> None:
    """One width a file, as in imported ones; other files in the folder do not disturb."""
    for i, path in enumerate(copied.run.snapshot_files()[:-1]):
        tensors, meta = load_tensors(path)
        dropped = f"ema_{STORED[i % 2]:.3f}"
        kept = {k: v for k, v in tensors.items() if not k.startswith(dropped)}
        weights = [name for name in meta["weights"] if name != dropped]
        save_tensors(path, kept, {**meta, "weights": weights})
    shutil.copy(copied.run.snapshot_at(END), copied.run.snapshots / "mine.safetensors")
    found = reconstruct(copied.run, 0.08)
    assert found.error > reconstruct(trained.run, 0.08).error
    assert distance(found.tensors, copied.tracked[END][0.08]) < 2e-3


def test_snapshots_of_another_network_or_kind_do_not_mix(copied: Trained) -> None:
    path = copied.run.snapshot_at(sorted(copied.tracked)[-3])
    wider = resolve(None, {"model.channels": 16, "model.channels_per_head": 8})
    cpu = Runtime(torch.device("cpu"), torch.float32)
    other = TrainState.fresh(build_denoiser(wider, FACTS, cpu), wider.training)
    save_snapshot(path, other, wider, FACTS)
    with pytest.raises(ArtifactError, match="another network"):
        reconstruct(copied.run, 0.08)
    save_checkpoint(path, other, {}, {})
    assert f"{path} is not a snapshot" in reconstruct(copied.run, 0.08).warning
