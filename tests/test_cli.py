"""The command line from outside: what it writes, what it says, and its exit codes."""

import csv
import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from poise import api, arguments
from poise.artifacts import load_tensors, read_json
from poise.config import documented, from_toml, preset_named, presets
from poise.settings import Config
from poise.training.loop import TrainState

Said = Callable[[], tuple[str, str]]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Standard output and standard error since the last call; never a traceback."""

    def read() -> tuple[str, str]:
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return out, err

    return read


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POISE_DEBUG", raising=False)


def pictures(folder: Path, count: int, *, seed: int = 0) -> Path:
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    return folder


def everything_under(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file may grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_leaves_what_its_folder_promises(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names >= {
        "config.toml",
        "run.json",
        "audit.json",
        "splits.json",
        "metrics.jsonl",
        "timing.jsonl",
        "validation.jsonl",
        "scores-val.json",
        "report.html",
        "checkpoints",
        "snapshots",
        "samples",
    }
    info = read_json(undisturbed / "run.json")
    assert (info["status"], info["images_seen"]) == ("finished", tiny.IMAGES)
    assert info["command"][:3] == ["poise", "train", "digits"]
    config = from_toml((undisturbed / "config.toml").read_text())
    found = {key: value for key, value, _ in documented(config)}
    for key, value in tiny.SETTINGS.items():
        assert found[key] == (tuple(value) if isinstance(value, list) else value)
    assert None not in (config.cadence.validations, config.validation.images)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["config", "--set", "training.batsh=3"], 2, ["'training.batsh'", "'training.batch'"]),
        (["config", "--set", "training.batch"], 2, ["'training.batch'", "key=value"]),
        (["config", "--preset", "nanoo"], 2, ["'nanoo'", "'nano'"]),
        (["train", "digits", "--preset", "nanoo"], 2, ["'nanoo'", "'nano'"]),
        (["train", "digits", "--set", "trainig.lr=1"], 2, ["'trainig.lr'", "'training.lr'"]),
        (["train", "digits", "--images", "none"], 2, ["'none'", "2M"]),
        (["train", "digits", "--images", "0"], 2, ["'0'"]),
        (["train", "digits", "--budget", "soon"], 2, ["'soon'", "20m"]),
        (["train", "digits", "--budget", "1m", "--images", "5"], 2, ["budget"]),
        (["train", "digits", "--set", "data.resolution=70"], 2, ["70x70", "nano"]),
        (["train", "digits", "--preset", "micro", "--set", "data.resolution=10"], 2, ["10 pixels"]),
        (["train"], 2, ["source", "poise --help"]),
        (["train", "digits", "--unknown"], 2, ["--unknown", "poise --help"]),
        (["teach"], 2, ["teach"]),
        (["sample", "nowhere", "--out", "x"], 1, ["nowhere does not exist"]),
        (["evaluate", "nowhere"], 1, ["nowhere does not exist"]),
        (["report", "nowhere"], 1, ["nowhere does not exist"]),
    ],
)
def test_wrong_use_is_explained_without_a_traceback(
    said: Said, tmp_path: Path, args: list[str], code: int, words: list[str]
) -> None:
    assert tiny.call(*args) == code
    out, err = said()
    assert out == ""
    assert err.startswith("Error: ") or "digits: 1,797 images" in err
    assert [word for word in words if word not in err] == []
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_an_interruption_before_training_ends_with_130(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(arguments, "parse_count", interrupt)
    assert tiny.call("train", "digits", "--images", "5") == 130
    assert "Interrupted" in said()[1]


def test_an_unexpected_fault_is_one_block_with_a_way_to_the_traceback(
    said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(arguments, "parse_count", fault)
    assert tiny.call("train", "digits", "--images", "5") == 1
    assert "RuntimeError: boom" in (err := said()[1])
    assert "POISE_DEBUG=1" in err
    monkeypatch.setenv("POISE_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        tiny.call("train", "digits", "--images", "5")


def test_a_folder_without_images_or_with_one_is_refused(said: Said, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert tiny.call("train", "empty", "--run", "run") == 1
    assert "empty" in said()[1]
    pictures(tmp_path / "one", 1)
    assert tiny.call("train", "one", "--run", "run") == 1
    assert "1 readable image" in said()[1]
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_used_folder_is_left_alone(undisturbed: Path, said: Said) -> None:
    before = everything_under(undisturbed)
    assert tiny.call("train", "digits", "--run", str(undisturbed), "--images", "64") == 2
    assert "--resume" in (err := said()[1])
    assert "already holds a run" in err
    assert everything_under(undisturbed) == before


def test_resuming_with_other_settings_is_refused(undisturbed: Path, said: Said) -> None:
    before = everything_under(undisturbed)
    again = ["train", "digits", "--run", str(undisturbed), "--resume"]
    lr = preset_named("nano").settings["training.lr"]
    assert tiny.call(*again, "--set", "training.lr=0.5") == 2
    assert f"training.lr = {lr}, not 0.5" in said()[1]
    assert tiny.call(*again, "--images", "64") == 2
    assert f"training.images = {tiny.IMAGES}, not 64" in said()[1]
    assert tiny.call(*again, "--seed", "1") == 2
    assert "seed = 0, not 1" in said()[1]
    assert tiny.call(*again, "--images", str(tiny.IMAGES), "--set", f"training.lr={lr}") == 0
    assert "finished" in said()[1]
    assert everything_under(undisturbed) == before


def test_a_finished_run_without_classes_refuses_other_images(said: Said, tmp_path: Path) -> None:
    """One run of its own: a folder of pictures, no classes."""
    source = pictures(tmp_path / "pictures", 40)
    options = tiny.set_options(training__batch=8, cadence__snapshots=1, evaluation__samples=10)
    assert tiny.call("train", "pictures", "--run", "run", "--images", "16", *options) == 0
    out, _ = said()
    assert out.strip() == "run/report.html"
    assert tiny.call("sample", "run", "--out", "drawn.npz", "-n", "2") == 0
    with np.load("drawn.npz") as drawn:
        assert drawn.files == ["arr_0"]
        assert drawn["arr_0"].shape == (2, 8, 8, 3)
    assert tiny.call("sample", "run", "--out", "x", "--labels", "0") == 2
    assert "no classes" in said()[1]

    (source / "000.png").unlink()
    assert tiny.call("train", "pictures", "--run", "run", "--resume") == 1
    assert "no longer those" in said()[1]
    assert tiny.call("evaluate", "run", "-n", "10") == 1
    assert "no longer those" in said()[1]


def test_samples_in_an_npz_are_nhwc_bytes_with_labels(
    undisturbed: Path, said: Said, tmp_path: Path
) -> None:
    assert tiny.call("sample", str(undisturbed), "--out", "a.npz", "-n", "12") == 0
    assert said()[0].strip() == "a.npz"
    with np.load("a.npz") as found:
        images, labels = found["arr_0"], found["arr_1"]
    assert (images.shape, images.dtype) == ((12, 8, 8, 1), np.uint8)
    assert labels.tolist() == [*range(10), 0, 1]
    assert np.array_equal(api.load(undisturbed).sample(12), images)
    assert tiny.call("sample", str(undisturbed), "--out", "a.gif") == 2
    assert "a.gif" in said()[1]


def test_samples_in_a_folder_come_with_their_labels(undisturbed: Path, tmp_path: Path) -> None:
    args = ["sample", str(undisturbed), "--out", "drawn", "-n", "5", "--labels", "3, 7"]
    assert tiny.call(*args, "--seed", "4") == 0
    with Path("drawn/labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["label"], row["name"]) for row in rows] == [
        (f"{i:06d}.png", label, label) for i, label in enumerate("37373")
    ]
    drawn = np.stack([np.asarray(Image.open(Path("drawn") / row["file"])) for row in rows])
    wanted = api.load(undisturbed).sample(5, labels=[3, 7], seed=4)
    assert np.array_equal(drawn, wanted[..., 0])
    assert not np.array_equal(wanted, api.load(undisturbed).sample(5, labels=[7, 3], seed=4))


def test_an_unknown_class_is_refused_with_those_there_are(undisturbed: Path, said: Said) -> None:
    for label in ("10", "cat", "-1", ""):
        assert tiny.call("sample", str(undisturbed), "--out", "x", f"--labels={label}") == 2
        assert "an index below 10" in said()[1]
    assert not Path("x").exists()
    for n, steps in (("0", "3"), ("2", "1")):
        args = ["sample", str(undisturbed), "--out", "x", "-n", n, "--steps", steps]
        assert tiny.call(*args) == 2


@pytest.mark.parametrize(("label", "index"), [("cat", 1), ("0", 0), (1, 1), ("1", 2), (" dog ", 0)])
def test_a_label_is_a_name_before_it_is_an_index(label: int | str, index: int) -> None:
    assert arguments.label_indices([label], ("dog", "cat", "1"), 2) == [index, index]


def test_a_snapshot_samples_far_from_its_run(undisturbed: Path, said: Said, tmp_path: Path) -> None:
    shutil.copy(sorted((undisturbed / "snapshots").iterdir())[-1], tmp_path / "x.safetensors")
    assert tiny.call("sample", "x.safetensors", "--out", "a.npz", "-n", "3") == 0
    with np.load("a.npz") as found:
        assert np.array_equal(found["arr_0"], api.load(undisturbed).sample(3))
    assert tiny.call("evaluate", "x.safetensors") == 1
    assert "the run folder it came from" in said()[1]
    shutil.copy(sorted((undisturbed / "checkpoints").iterdir())[-1], tmp_path / "y.safetensors")
    assert tiny.call("sample", "y.safetensors", "--out", "b.npz") == 1
    assert "is a checkpoint, not a snapshot" in said()[1]


def test_scores_are_repeated_and_written_where_asked(
    undisturbed: Path, said: Said, tmp_path: Path
) -> None:
    root = shutil.copytree(undisturbed, tmp_path / "run")
    assert tiny.call("evaluate", "run", "--json", "first.json") == 0
    table = said()[0]
    assert tiny.call("evaluate", "run", "--json", "scores.json") == 0
    metrics = read_json(Path("scores.json"))
    assert metrics == read_json(Path("first.json"))
    assert metrics == read_json(root / "scores-val.json")["metrics"]
    for name, metric in metrics.items():
        assert {"value", "real", "low", "high", "n", "protocol"} <= metric.keys()
        shown = "-" if metric["value"] is None else f"{metric['value']:.4g}"
        assert any(
            line.startswith(name) and shown in line and ("*" in line) == bool(metric["mark"])
            for line in table.splitlines()
        ), name
    assert tiny.call("evaluate", "run", "-n", "9") == 2
    assert tiny.call("evaluate", "run", "--split", "train") == 2
    assert "val or test" in said()[1]


def test_config_lists_every_setting_with_its_meaning(said: Said) -> None:
    assert tiny.call("config", "--preset", "nano", "--set", "training.lr=0.125") == 0
    out, _ = said()
    lines = out.splitlines()
    assert "training.lr = 0.125" in lines
    for key, _, sentence in documented(Config()):
        where = next(i for i, line in enumerate(lines) if line.startswith(f"{key} = "))
        assert lines[where + 1] == f"    {sentence}"


def test_presets_are_listed_with_their_sizes(said: Said) -> None:
    assert tiny.call("presets") == 0
    lines = said()[0].splitlines()[1:-1]
    assert [line.split()[0] for line in lines] == [preset.name for preset in presets()]
    for line, preset in zip(lines, presets(), strict=True):
        assert f"{preset.resolutions[0]}-{preset.resolutions[1]}" in line
        assert preset.description in line


def test_a_dry_run_prints_the_settings_and_writes_nothing(
    undisturbed: Path, said: Said, tmp_path: Path
) -> None:
    options = ["--images", str(tiny.IMAGES), *tiny.set_options()]
    assert tiny.call("train", "digits", "--run", "run", "--dry-run", *options) == 0
    out, _ = said()
    assert list(tmp_path.iterdir()) == []
    assert out.splitlines()[0] == "# preset nano"
    assert from_toml(out) == from_toml((undisturbed / "config.toml").read_text())


def test_a_full_disk_is_named_and_what_was_saved_is_whole(
    undisturbed: Path, said: Said, tmp_path: Path
) -> None:
    root = shutil.copytree(undisturbed, tmp_path / "run")
    *older, saved, last = sorted((root / "checkpoints").iterdir())
    size = last.stat().st_size
    last.unlink()
    info = read_json(root / "run.json")
    (root / "run.json").write_text(json.dumps(info | {"status": "running"}))
    before = saved.read_bytes()
    with full_disk(size // 2):
        assert tiny.call("train", "digits", "--run", "run", "--resume") == 1
    err = said()[1]
    assert "Error: Cannot write run/" in err
    assert "saved before is intact" in err
    assert read_json(root / "run.json")["status"] == "failed"
    assert sorted((root / "checkpoints").iterdir()) == [*older, saved]
    assert saved.read_bytes() == before
    load_tensors(saved)
    assert list(root.rglob("*.part")) == []
    assert tiny.call("train", "digits", "--run", "run", "--resume") == 0
    assert tiny.differences(undisturbed, root) == []


def test_a_run_that_only_skips_stops_and_names_what_is_damaged(
    undisturbed: Path, said: Said, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = TrainState.fresh

    def poisoned(*args: object) -> TrainState:
        state = fresh(*args)  # type: ignore[arg-type]
        state.denoiser.network.out_gain.data.fill_(float("nan"))
        return state

    monkeypatch.setattr(TrainState, "fresh", poisoned)
    options = tiny.set_options(training__max_skipped=3, stability__policy="warn")
    assert tiny.call("train", "digits", "--run", "run", "--images", "2000", *options) == 1
    err = said()[1]
    assert "3 or more updates in a row were not finite" in err
    assert "training.lr" in err
    rows = [json.loads(line) for line in Path("run/events.jsonl").read_text().splitlines()]
    (damaged,) = [row for row in rows if row["cause"] == "weights-damaged"]
    assert damaged["culprit"]["tensors"] == ["network.out_gain"]
    assert read_json(Path("run/run.json"))["status"] == "failed"
