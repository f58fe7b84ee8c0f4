"""A copy of the logs reaches the dashboards, and a dashboard can never stop a run."""

import importlib.util
import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from poise.errors import UsageError
from poise.sinks import Failure, Sinks, open_sinks, scalars

METRICS = {
    "images_seen": 64,
    "step": 1,
    "loss": -0.5,
    "error": float("nan"),
    "skipped": None,
    "bands": [{"sigma": 0.02, "error": 0.5, "count": 3}, {"sigma": 5.0, "error": None, "count": 0}],
}
VALIDATION = {
    "images_seen": 64,
    "weights": "ema_0.100",
    "split": "val",
    "loss": 0.3,
    "bands": [{"sigma": 0.5, "loss": 0.25, "psnr": 12.0}],
}
EVENT = {
    "images_seen": 128,
    "severity": "warning",
    "kind": "bad-batch",
    "message": "A batch was left out.",
    "action": "skip",
}


class Recorder:
    """A writer that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, dict[str, Any]]] = []
        self.closed = False

    def write(self, log: str, row: Any) -> None:
        self.rows.append((log, dict(row)))

    def close(self) -> None:
        self.closed = True


class Raising(Recorder):
    """One that fails at its third row, or when it is closed."""

    def __init__(self, at: int = 3, *, on_close: bool = False) -> None:
        super().__init__()
        self.at, self.on_close = at, on_close

    def write(self, log: str, row: Any) -> None:
        super().write(log, row)
        if len(self.rows) == self.at:
            raise OSError(28, "No space left on device")

    def close(self) -> None:
        if self.on_close:
            raise RuntimeError("cannot flush")


def fed(sinks: Sinks, count: int) -> list[Failure]:
    """Send rows slowly enough for the threads to see each; all failures that were told."""
    told = []
    for i in range(count):
        told += sinks.send("metrics", {"images_seen": i})
        time.sleep(0.002)
    return told + sinks.close(5.0)


def test_rows_arrive_in_order_and_the_writer_is_closed() -> None:
    writer = Recorder()
    assert fed(Sinks({"one": lambda: writer}), 50) == []
    assert [row["images_seen"] for _, row in writer.rows] == list(range(50))
    assert writer.closed


def test_a_row_that_changes_later_is_sent_as_it_was() -> None:
    writer = Recorder()
    sinks = Sinks({"one": lambda: writer})
    row = {"images_seen": 1}
    sinks.send("metrics", row)
    row["images_seen"] = 2
    sinks.close(5.0)
    assert writer.rows == [("metrics", {"images_seen": 1})]


def test_a_sink_that_raises_is_switched_off_once_and_the_others_go_on() -> None:
    good, bad = Recorder(), Raising()
    told = fed(Sinks({"bad": lambda: bad, "good": lambda: good}), 20)
    assert len(told) == 1 and told[0].sink == "bad"
    assert "No space left" in told[0].reason and "not affected" in told[0].sentence
    assert len(good.rows) == 20 and len(bad.rows) == 3


def test_a_sink_that_cannot_begin_or_cannot_end_is_told_once() -> None:
    def broken() -> Recorder:
        raise SystemExit("not logged in")

    told = fed(Sinks({"broken": broken, "late": lambda: Raising(99, on_close=True)}), 5)
    assert sorted(f.sink for f in told) == ["broken", "late"]
    assert "not logged in" in {f.sink: f.reason for f in told}["broken"]


def test_a_sink_that_hangs_never_blocks() -> None:
    free = threading.Event()

    class Hanging(Recorder):
        def write(self, log: str, row: Any) -> None:
            free.wait(30)

    told = []
    full = Sinks({"hung": Hanging}, waiting=8)
    for i in range(100):
        told += full.send("metrics", {"images_seen": i})
    told += full.close(0.1)
    assert len(told) == 1 and "wait" in told[0].reason

    silent = Sinks({"hung": Hanging}, silent_seconds=0.05)
    silent.send("metrics", {"images_seen": 0})
    time.sleep(0.2)
    told = silent.send("metrics", {"images_seen": 1})
    assert len(told) == 1 and "did not answer" in told[0].reason
    assert silent.close(0.1) == []

    slow = Sinks({"hung": Hanging})
    slow.send("metrics", {"images_seen": 0})
    assert ["in time" in f.reason for f in slow.close(0.1)] == [True]
    free.set()


def test_numbers_have_names_and_what_is_none_or_not_finite_is_left_out() -> None:
    assert dict(scalars("metrics", METRICS)) == {
        "metrics/step": 1.0,
        "metrics/loss": -0.5,
        "metrics/error/sigma=0.02": 0.5,
    }
    assert dict(scalars("validation", VALIDATION)) == {
        "validation/ema_0.100/loss": 0.3,
        "validation/ema_0.100/loss/sigma=0.5": 0.25,
        "validation/ema_0.100/psnr/sigma=0.5": 12.0,
    }
    train = dict(scalars("validation", {**VALIDATION, "split": "train", "bands": []}))
    assert train == {"validation/ema_0.100/train/loss": 0.3}


class FakeBoard:
    """torch.utils.tensorboard.SummaryWriter, as far as it is used."""

    made: list["FakeBoard"] = []  # noqa: RUF012

    def __init__(self, log_dir: str, purge_step: int | None) -> None:
        self.log_dir, self.purge_step, self.calls = log_dir, purge_step, []  # type: ignore[var-annotated]
        self.closed = False
        FakeBoard.made.append(self)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.calls.append((tag, value, step))

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.calls.append((tag, text, step))

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


def send_all(sinks: Sinks) -> list[Failure]:
    told = [*sinks.send("metrics", METRICS), *sinks.send("validation", VALIDATION)]
    return [*told, *sinks.send("events", EVENT), *sinks.close(5.0)]


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeBoard  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    FakeBoard.made.clear()
    assert send_all(open_sinks(["tensorboard"], tmp_path, {}, images_seen=32)) == []
    (board,) = FakeBoard.made
    assert board.log_dir == str(tmp_path / "tensorboard") and board.purge_step == 33
    assert ("metrics/loss", -0.5, 64) in board.calls
    text = "warning: A batch was left out. Action: skip."
    assert ("events/bad-batch", text, 128) in board.calls
    assert board.closed


@pytest.mark.parametrize(
    ("key", "variable", "mode"),
    [(None, None, "offline"), ("k", None, "online"), ("k", "disabled", "disabled")],
)
def test_wandb(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    variable: str | None,
    mode: str,
) -> None:
    logged: list[dict[str, Any]] = []
    asked: dict[str, Any] = {}
    metrics: list[str] = []
    run = SimpleNamespace(
        log=logged.append,
        define_metric=lambda name, **more: metrics.append(name),
        finish=lambda: logged.append({"end": True}),
    )
    module = ModuleType("wandb")
    module.init = lambda **given: asked.update(given) or run  # type: ignore[attr-defined]
    module.api = SimpleNamespace(api_key=key)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert send_all(open_sinks(["wandb", "wandb"], tmp_path / "run", {"seed": 1})) == []
    assert (asked["mode"], asked["name"], asked["config"]) == (mode, "run", {"seed": 1})
    assert metrics == ["images_seen", "*"]
    assert logged[0]["images_seen"] == 64 and logged[0]["metrics/loss"] == -0.5
    assert logged[2]["events/bad-batch"].startswith("warning: A batch")
    assert logged[-1] == {"end": True}


def test_an_unknown_sink_and_a_missing_package_are_errors_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="tensorboard"):
        open_sinks(["tensorbord"], tmp_path, {})
    for name, module in (("wandb", "wandb"), ("tensorboard", "torch.utils.tensorboard")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UsageError, match=rf"poise\[{name}\]"):
            open_sinks([name], tmp_path, {})


def test_without_names_nothing_is_opened(tmp_path: Path) -> None:
    assert send_all(open_sinks([], tmp_path, {})) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_the_real_tensorboard_takes_the_rows(tmp_path: Path) -> None:
    assert send_all(open_sinks(["tensorboard"], tmp_path, {})) == []
    assert list((tmp_path / "tensorboard").glob("events.out.*"))
