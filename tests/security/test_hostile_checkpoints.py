"""Rows D1, D2 and D8: checkpoints and snapshots that carry programs, lies or bombs.

The reader of foreign pickles has its own tests, instruction by instruction, in
`interop/test_pickles.py`; damage by chance is in `test_artifacts.py`. Here the files lie where a
run keeps its own, or go through the commands, and a canary shows whether anything was run.
"""

import hashlib
import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from attacks import Payload, live, peak, tree

from poise import pipeline
from poise.artifacts import DataFacts, RunDir, append_jsonl, load_tensors, read_json, save_tensors
from poise.budget import Clock
from poise.build import build_denoiser
from poise.config import resolve
from poise.console import Screen
from poise.errors import ArtifactError, PoiseError
from poise.runtime import Runtime
from poise.training.checkpoint import load_checkpoint, save_checkpoint, save_snapshot
from poise.training.loop import TrainState

MOST_MIB = 100
CPU = Runtime(torch.device("cpu"), torch.float32)
SMALL = {"model.channels": 8, "model.channels_per_head": 8, "training.precision": "fp32"}
FACTS = DataFacts(8, 1, (), 0.5)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder before its first update, and its images."""
    root = tmp_path_factory.mktemp("begun")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 1), np.uint8)
    np.savez(root / "images.npz", pixels)
    settings = {**tiny.SETTINGS, **SMALL}
    job = pipeline.Job(str(root / "images.npz"), root / "run", images=64, overrides=settings)
    pipeline.prepare(job, Screen(quiet=True), Clock(None))
    return root


@pytest.fixture
def state() -> TrainState:
    config = resolve(None, SMALL)
    made = TrainState.fresh(build_denoiser(config, FACTS, CPU), config.training)
    for weight in made.denoiser.parameters():
        weight.grad = torch.zeros_like(weight)
    made.optimizer.step()
    return made


def programs(canary: Path) -> dict[str, bytes]:
    """What others load as a checkpoint, and what loading it does."""
    zipped = io.BytesIO()
    torch.save({"rng": Payload(canary)}, zipped)
    old = io.BytesIO()
    torch.save({"optimizer": Payload(canary)}, old, _use_new_zipfile_serialization=False)
    return {"pickle": live(canary), "zip": zipped.getvalue(), "old torch": old.getvalue()}


@pytest.mark.parametrize("kind", ["pickle", "zip", "old torch"])
def test_programs_among_the_checkpoints_are_named_and_not_run(
    begun: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    canary, run = tmp_path / "canary", RunDir(begun / "run")
    content = programs(canary)[kind]
    planted = [run.checkpoint_at(64), run.snapshot_at(64)]
    beside = [run.checkpoints / "rng.pt", run.checkpoints / "optimizer.safetensors"]
    for path in (*planted, *beside):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    source = str(begun / "images.npz")
    assert tiny.call("train", source, "--run", str(run.root), "--resume") == 1
    err = capsys.readouterr().err
    assert "can run code when it is loaded: it was not opened" in err and planted[0].name in err
    assert "Traceback" not in err and "ValueError" not in err
    for model in (run.root, planted[1]):
        assert tiny.call("sample", str(model), "--out", str(tmp_path / "new.npz")) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err and planted[1].name in err
    assert not canary.exists() and tree(tmp_path) == set()
    assert all(path.read_bytes() == content for path in (*planted, *beside))


LIES = ("shape of a moment", "foreign moment", "other weights", "unknown entry", "another kind")


def lying(state: TrainState) -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any]]]:
    """Entries to replace in a checkpoint, whose checksum is right."""
    moment = next(f"exp_avg/{name}" for name, _ in state.denoiser.named_parameters())
    odd = "optimizer/../../../etc/passwd"
    return {
        "shape of a moment": ({f"optimizer/{moment}": torch.ones(3, 3, 3)}, {}),
        "foreign moment": ({odd: torch.ones(1)}, {"further": [odd]}),
        "other weights": ({"denoiser/network.out_gain": torch.ones(7)}, {}),
        "unknown entry": ({"rng/../../x": torch.ones(1)}, {}),
        "another kind": ({}, {"kind": "__reduce__"}),
    }


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_the_state_are_refused_and_change_nothing(
    state: TrainState, tmp_path: Path, lie: str
) -> None:
    path = tmp_path / "a.safetensors"
    save_checkpoint(path, state, {}, {})
    tensors, meta = load_tensors(path)
    lies = lying(state)
    assert tuple(lies) == LIES
    entries, said = lies[lie]
    further = meta["further"] + said.pop("further", [])
    save_tensors(path, tensors | entries, meta | {"further": further} | said)
    before = {name: w.clone() for name, w in state.denoiser.state_dict().items()}
    with pytest.raises(ArtifactError):
        load_checkpoint(path, state)
    after = state.denoiser.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_snapshot_unlike_its_own_settings_does_not_sample(
    state: TrainState, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.safetensors"
    save_snapshot(path, state, resolve(None, SMALL), FACTS)
    tensors, meta = load_tensors(path)
    best = meta["weights"][-1]
    name = next(n for n, t in tensors.items() if n.startswith(f"{best}/") and t.ndim == 4)
    huge = {**meta["facts"], "resolution": 2**40, "channels": 2**20}
    wide = meta["config"].replace("channels = 8", "channels = 1000000000", 1)
    assert wide != meta["config"]
    for entries, said in (
        ({name: torch.ones(2, 2)}, {}),
        ({}, {"facts": huge}),
        ({}, {"config": wide}),
        ({}, {"config": '_target_ = "os.system"'}),
    ):
        save_tensors(path, tensors | entries, meta | said)
        with peak() as taken:
            assert tiny.call("sample", str(path), "--out", str(tmp_path / "new.npz")) in (1, 2)
        assert taken.mib < MOST_MIB and "Traceback" not in capsys.readouterr().err
    assert tree(tmp_path) == {"a.safetensors"}


def plain(header: dict[str, Any] | bytes, body: bytes = b"") -> bytes:
    """A safetensors file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def signed(meta: str, *, version: str = "1", more: str = "") -> bytes:
    """A file of one tensor whose checksum is right, whatever it says."""
    values = torch.ones(2)
    digest = hashlib.sha256(meta.encode() + b"atorch.float32(2,)" + values.numpy().tobytes())
    said = {"poise": meta, "format": version, "sha256": digest.hexdigest()}
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    text = json.dumps({"__metadata__": said, "a": entry})[:-1] + more + "}"
    return plain(text.encode(), values.numpy().tobytes())


A = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
EMPTY = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
FILES: dict[str, tuple[Callable[[], bytes], str]] = {
    "90 MB of header": (
        lambda: plain(b'{"__metadata__":{"a":"' + b"x" * 90_000_000 + b'"}}'),
        "its header claims 90,000,025 bytes",
    ),
    "1e6 tensors": (
        lambda: plain(b"{" + (EMPTY % 7 + b",") * 10**6 + b"}"),
        "its header claims",
    ),
    "50,000 tensors": (
        lambda: plain(b"{" + b",".join(EMPTY % n for n in range(50_000)) + b"}"),
        "lists more than 20,000 tensors",
    ),
    "a header without end": (lambda: b"\xff" * 8 + b"{}", "its header claims"),
    "a nested header": (lambda: plain(b'{"a":' + b"[" * 10**6), "recursion"),
    "overlapping tensors": (lambda: signed("{}", more="," + A.replace('"a"', '"b"')), "offset"),
    "a tensor twice": (lambda: signed("{}", more="," + A), "names 'a' twice"),
    "metadata twice": (lambda: signed("{}", more=',"__metadata__":{}'), "'__metadata__' twice"),
    "a shape without end": (
        lambda: signed(
            "{}",
            more=","
            + A.replace("[2]", "[9223372036854775808, 0]", 1)
            .replace('"a"', '"b"')
            .replace("[0,8]", "[8,8]"),
        ),
        "is damaged",
    ),
    "no text": (lambda: signed("nope"), "is not JSON"),
    "a list": (lambda: signed("[1]"), "is list, no object"),
    "nothing": (lambda: signed("null"), "is NoneType, no object"),
    "nested text": (lambda: signed("[" * 100_000), "is not JSON"),
    "a long number": (lambda: signed('{"a":' + "9" * 5000 + "}"), "is not JSON"),
    "a long version": (lambda: signed("{}", version="9" * 5000), "comes from a newer Poise"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_hostile_header_is_refused_by_name_with_little_memory(tmp_path: Path, kind: str) -> None:
    path, (make, named) = tmp_path / "a.safetensors", FILES[kind]
    path.write_bytes(make())
    with peak() as taken, pytest.raises(ArtifactError) as caught:
        load_tensors(path)
    assert named in str(caught.value) and str(path) in str(caught.value)
    assert taken.mib < MOST_MIB


def test_the_same_files_without_the_lie_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(signed('{"k": 1}'))
    tensors, meta = load_tensors(path)
    assert meta == {"k": 1} and tensors["a"].tolist() == [1, 1]


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000])
def test_hostile_json_of_a_run_is_refused_or_left_out(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_json(path)


def test_a_log_that_links_elsewhere_is_not_written(tmp_path: Path) -> None:
    outside, run = tmp_path / "profile", RunDir(tmp_path / "run")
    outside.write_text("mine\n")
    run.root.mkdir()
    run.log("events").symlink_to(outside)
    with pytest.raises(ArtifactError, match=r"Cannot write .*events\.jsonl"):
        append_jsonl(run.log("events"), {"images_seen": 0})
    assert outside.read_text() == "mine\n"


# --- other people's checkpoints -------------------------------------------------------------------


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The writer of files with the structure of the reference's."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "interop")
    import snapshots
    import test_state_dicts

    weights, full = test_state_dicts.edm2()
    kwargs = {key: full[key] for key in test_state_dicts.TINY}
    return snapshots, weights, kwargs


def test_embedded_source_is_data_and_is_not_kept(
    foreign: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshots, weights, kwargs = foreign
    canary = tmp_path / "canary"
    source = f"import os\nos.system('touch {canary}')\n"
    exec(source)
    assert canary.exists()
    canary.unlink()
    file, out = tmp_path / "network-snapshot-0000100-0.130.pkl", tmp_path / "x.safetensors"
    file.write_bytes(snapshots.pickled(snapshots.snapshot(weights, kwargs, source=source)))
    assert source.encode() in file.read_bytes()
    modules = set(sys.modules)
    assert tiny.call("import", str(file), str(out)) == 0
    assert not canary.exists() and b"os.system" not in out.read_bytes()
    assert not {name for name in set(sys.modules) - modules if name.startswith("torch_utils")}
    assert "Sample from it" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["pkl", "pt"])
@pytest.mark.parametrize("place", ["beside", "encoder", "keyword", "whole"])
def test_a_call_in_a_foreign_checkpoint_is_refused_by_name(
    foreign: Any, tmp_path: Path, place: str, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshots, weights, kwargs = foreign
    canary, file = tmp_path / "canary", tmp_path / f"x.{suffix}"
    evil = Payload(canary)
    live(canary)
    value: Any = snapshots.snapshot(
        weights, {**kwargs, "x": evil} if place == "keyword" else kwargs
    )
    if place == "whole":
        value = evil
    elif place != "keyword":
        value["encoder" if place == "encoder" else "notes"] = evil
    file.write_bytes((snapshots.pickled if suffix == "pkl" else snapshots.saved)(value))
    assert tiny.call("import", str(file), str(tmp_path / "y.safetensors")) == 1
    err = capsys.readouterr().err
    assert "posix.system" in err and str(file) in err and "Traceback" not in err
    assert tree(tmp_path) == {file.name}


def test_poise_never_falls_back_to_an_unsafe_reader(foreign: Any, tmp_path: Path) -> None:
    from poise.interop.checkpoints import import_checkpoint

    snapshots, weights, kwargs = foreign
    file = tmp_path / "x.pkl"
    whole = snapshots.pickled(snapshots.snapshot(weights, kwargs))
    canary = tmp_path / "canary"
    for content in (whole[:-200] + live(canary), live(canary) + whole, whole[:200] + live(canary)):
        file.write_bytes(content)
        with pytest.raises(PoiseError):
            import_checkpoint(file, tmp_path / "y.safetensors")
    assert tree(tmp_path) == {"x.pkl"}
