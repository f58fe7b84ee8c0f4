"""A session of training with the guard: what is planted is named, and the state comes out right."""

import math
from pathlib import Path
from typing import Any

import pytest
import small_run as small
import torch

from poise.artifacts import read_json, read_jsonl
from poise.console import Screen
from poise.errors import Stopped, TrainingError
from poise.journal import journal as journals
from poise.learning.fresh import feed_from, fresh_state
from poise.learning.learn import learn
from poise.training.loop import steps, weights_of

LOGS = ("metrics.jsonl", "validation.jsonl")


def finite(root: Path) -> bool:
    tensors, _ = small.newest(root)
    return all(bool(t.isfinite().all()) for k, t in tensors.items() if k.startswith("denoiser/"))


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    root = tmp_path_factory.mktemp("quiet")
    assert small.train(root) == small.IMAGES
    return root


def test_an_undisturbed_run_has_no_events(quiet: Path) -> None:
    assert small.events(quiet) == []
    assert not (quiet / "alive.json").exists()
    rows = read_jsonl(quiet / "metrics.jsonl")
    assert len(rows) == small.UPDATES // 2
    assert [row["images_seen"] for row in rows if "probe" in row] == [48, 96]


def test_watching_changes_nothing(quiet: Path, tmp_path: Path) -> None:
    """Off: no gate and no events; every bit that both have is the same."""
    assert small.train(tmp_path, small.configured(stability__policy="off")) == small.IMAGES
    assert all(name.startswith("gate/") for name in small.differences(quiet, tmp_path))
    assert (tmp_path / LOGS[1]).read_bytes() == (quiet / LOGS[1]).read_bytes()
    ours, theirs = read_jsonl(tmp_path / LOGS[0]), read_jsonl(quiet / LOGS[0])
    assert all(row.items() <= other.items() for row, other in zip(ours, theirs, strict=True))


def test_a_pixel_that_is_no_number_costs_its_update(tmp_path: Path) -> None:
    disturb = small.nan_pixel(5)
    assert small.train(tmp_path, tamper=disturb) == small.IMAGES
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"]) == ("non-finite-input", "skip")
    assert event["images_seen"] == 6 * small.BATCH
    assert event["cost"] == {"updates": 1, "images": small.BATCH}
    (bad,) = event["culprit"]["indices"]
    assert event["culprit"]["files"] == [f"{bad}.png"]
    assert disturb.sessions == 1

    job = small.job(tmp_path / "plain")  # the loop alone, which leaves that update out
    state, spoil = fresh_state(job, print), small.nan_pixel(5)
    spoiled = (spoil.batch(i, batch) for i, batch in enumerate(feed_from(job, 0)))
    applied = [bool(r.applied) for r in steps(state, spoiled, job.config, until=small.IMAGES)]
    assert applied == [i != 5 for i in range(small.UPDATES)]
    tensors, meta = small.newest(tmp_path)
    assert all(
        torch.equal(w, tensors[f"denoiser/{k}"]) for k, w in weights_of(state.denoiser).items()
    )
    assert meta["memory"]["guard"]["guard"]["record"]["strikes"] == [[bad, 1]]


def test_the_second_strike_leaves_an_image_out(tmp_path: Path) -> None:
    """Two epochs are needed: the same image comes again."""
    shown: list[list[int]] = []

    def spoil(at: int, batch: Any) -> Any:
        shown.append(batch.indices.tolist())
        images = batch.images.float()
        images[batch.indices == 7] = torch.inf
        return type(batch)(images, batch.labels, batch.indices)

    config = small.configured(training__images=3 * small.TRAIN)
    small.train(tmp_path, config, small.Disturb(batch=spoil))
    assert sum(row.count(7) for row in shown) == 3
    assert [e["action"] for e in small.events(tmp_path)] == ["skip", "skip"]
    assert {e["culprit"]["files"][0] for e in small.events(tmp_path)} == {"7.png"}
    _, meta = small.newest(tmp_path)
    assert meta["memory"]["quarantine"]["images"] == [7]


def test_a_weight_that_is_no_number_is_as_if_it_had_never_been(quiet: Path, tmp_path: Path) -> None:
    disturb = small.nan_weight(6)
    assert small.train(tmp_path, tamper=disturb) == small.IMAGES
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"]) == ("weights-damaged", "rollback")
    assert event["cost"]["back_to"] == 32 and event["cost"]["images"] == 24
    assert (disturb.sessions, disturb.made) == (2, small.UPDATES + 3)
    assert small.differences(quiet, tmp_path, *LOGS) == []


def test_what_comes_back_for_ever_ends_the_run_on_a_good_state(quiet: Path, tmp_path: Path) -> None:
    config = small.configured(stability__max_repairs=2)
    with pytest.raises(Stopped, match="not finite") as stopped:
        small.train(tmp_path, config, small.nan_weight(6, 9, 12))
    assert stopped.value.cause == "weights-damaged"
    assert f"--run {tmp_path} --resume" in stopped.value.remedy
    assert "32 images is good" in stopped.value.remedy
    rows = small.events(tmp_path, "weights-damaged")
    assert [row["action"] for row in rows] == ["rollback", "rollback", "stop"]
    assert small.newest(tmp_path)[1]["images_seen"] == 32 and finite(tmp_path)
    assert not (tmp_path / "alive.json").exists()
    small.train(tmp_path, config)  # as the message says
    assert small.differences(quiet, tmp_path, *LOGS) == []


def test_too_little_memory_once_gives_the_same_weights(quiet: Path, tmp_path: Path) -> None:
    full = [True]

    def spoil(at: int, batch: Any) -> Any:
        if at == 6 and full.pop():
            raise MemoryError
        return batch

    full.insert(0, False)
    assert small.train(tmp_path, tamper=small.Disturb(batch=spoil)) == small.IMAGES
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"]) == ("out-of-memory", "halve-micro-batch")
    assert event["images_seen"] == 48 and event["cost"] == {"micro_batch": 4}
    (ours, meta), (theirs, _) = small.newest(tmp_path), small.newest(quiet)
    assert meta["micro_batch"] == 4
    for name in (k for k in theirs if k.startswith(("denoiser/", "ema_"))):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-6)


def test_memory_for_not_even_one_image_ends_the_run(tmp_path: Path) -> None:
    def spoil(at: int, batch: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")

    with pytest.raises(Stopped, match="single image") as stopped:
        small.train(tmp_path, tamper=small.Disturb(batch=spoil))
    assert stopped.value.cause == "out-of-memory"
    actions = [row["action"] for row in small.events(tmp_path, "out-of-memory")]
    assert actions == ["halve-micro-batch"] * 3 + ["stop"]


def test_another_error_is_not_taken_for_one_of_memory(tmp_path: Path) -> None:
    def spoil(at: int, batch: Any) -> Any:
        raise RuntimeError("shape mismatch")

    with pytest.raises(RuntimeError, match="shape mismatch"):
        small.train(tmp_path, tamper=small.Disturb(batch=spoil))
    assert small.events(tmp_path) == []
    assert not (tmp_path / "alive.json").exists()


def faster(at: int, state: Any) -> None:
    if at >= 6:
        state.lr_scale = 8.0


def test_warn_says_it_and_does_nothing(tmp_path: Path) -> None:
    disturb = small.Disturb(before=faster)
    small.train(tmp_path, small.configured(stability__policy="warn"), disturb)
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"], event["cost"]) == ("lr-too-high", "none", {})
    assert disturb.sessions == 1
    assert small.newest(tmp_path)[1]["lr_scale"] == 8.0


def test_a_rate_that_is_far_off_is_put_back(quiet: Path, tmp_path: Path) -> None:
    """Once, that is: the fault is over when the run has gone back."""

    def once(at: int, state: Any) -> None:
        if at == 6:
            state.lr_scale = 8.0

    small.train(tmp_path, tamper=small.Disturb(before=once))
    assert [e["action"] for e in small.events(tmp_path, "lr-too-high")] == ["rollback"]
    assert small.differences(quiet, tmp_path, *LOGS) == []


def test_off_is_what_a_plain_training_does(tmp_path: Path) -> None:
    config = small.configured(stability__policy="off")
    small.train(tmp_path / "pixel", config, small.nan_pixel(5))
    (event,) = small.events(tmp_path / "pixel")
    assert event["kind"] == "non_finite" and "cause" not in event
    assert event["files"] and event["images_seen"] == 6 * small.BATCH

    config = small.configured(stability__policy="off", training__max_skipped=5)
    disturb = small.nan_weight(6)
    with pytest.raises(TrainingError, match="5 or more updates in a row were not finite"):
        small.train(tmp_path / "weight", config, disturb)
    assert disturb.sessions == 1
    assert {e["kind"] for e in small.events(tmp_path / "weight")} == {"non_finite"}


def planted_rows(monkeypatch: pytest.MonkeyPatch, lowest: int) -> None:
    """Validation sees errors that fall to `lowest` images, and rise by 5 % each time after it."""

    def rows(job: Any, state: Any) -> list[dict[str, Any]]:
        seen, found = state.images_seen, []
        for name, worse in (("raw", 0.1), ("ema_0.100", 0.0)):
            level = max(0.2 * (lowest - seen), 0.05 * (seen - lowest)) / small.BATCH + worse
            levels = [math.exp(level - 1 + 0.1 * j) for j in range(8)]
            bands = [{"sigma": 0.1 * 2**j, "loss": e, "psnr": 1.0} for j, e in enumerate(levels)]
            row = {"images_seen": seen, "weights": name, "split": "val", "images": 8}
            found.append({**row, "loss": sum(levels) / 8, "bands": bands})
        return found

    monkeypatch.setattr(journals, "validate", rows)


TURNING = {
    "cadence__validations": small.UPDATES,
    "cadence__snapshots": small.UPDATES // 2,
    "cadence__logs": 2,
}


def test_a_held_out_error_that_has_turned_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_rows(monkeypatch, lowest=48)
    seen = small.train(tmp_path, small.configured(**TURNING))
    assert 48 < seen < small.IMAGES
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"]) == ("memorisation", "keep-best")
    assert event["evidence"]["best_at"] == 48 and event["images_seen"] == seen
    choice = read_json(tmp_path / "choices.json")["weights"]
    assert choice == {"name": "ema_0.100", "images_seen": 48, "until": seen}
    # a finished run that is asked to go on is finished
    assert small.train(tmp_path, small.configured(**TURNING)) == seen
    assert len(small.events(tmp_path, "memorisation")) == 1


def test_without_early_stop_it_is_said_once_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_rows(monkeypatch, lowest=48)
    config = small.configured(**TURNING, stability__early_stop=False)
    assert small.train(tmp_path, config) == small.IMAGES
    (event,) = small.events(tmp_path)
    assert (event["cause"], event["action"]) == ("memorisation", "none")
    assert not (tmp_path / "choices.json").exists()


def test_a_falling_error_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted_rows(monkeypatch, lowest=small.IMAGES)
    assert small.train(tmp_path, small.configured(**TURNING)) == small.IMAGES
    assert small.events(tmp_path) == []


def test_a_killed_session_is_named_by_the_next(quiet: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(at: int, state: Any) -> None:
        if at == 10:
            raise Killed

    with pytest.raises(Killed):
        small.train(tmp_path, tamper=small.Disturb(before=die))
    (tmp_path / "alive.json").write_text("{}")  # none unlinks it
    small.train(tmp_path)
    kinds = [event["kind"] for event in small.events(tmp_path)]
    assert kinds == ["resumed", "killed"]
    (event,) = small.events(tmp_path, "killed")
    assert event["action"] == "resume" and event["images_seen"] == 64
    assert not (tmp_path / "alive.json").exists()
    assert small.differences(quiet, tmp_path, *LOGS) == []
    small.train(tmp_path)
    assert len(small.events(tmp_path, "killed")) == 1


def test_a_run_that_cannot_begin_does_not_look_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise TrainingError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(journals, "save_checkpoint", refuse)
        with pytest.raises(TrainingError, match="disk is full"):
            small.train(tmp_path)
    assert not (tmp_path / "alive.json").exists()


def test_the_screen_hears_what_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = small.job(tmp_path, small.configured(training__images=8 * small.BATCH))
    learn(job, Screen(), tamper=small.nan_weight(5))
    (event,) = small.events(tmp_path)
    assert event["message"] in capsys.readouterr().err
