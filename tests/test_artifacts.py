"""Files of a run: whole or not at all, and damage never passes for content."""

import itertools
import json
import os
from pathlib import Path

import pytest
import torch

from poise.artifacts import (
    DataFacts,
    RunDir,
    append_jsonl,
    load_tensors,
    read_json,
    read_jsonl,
    save_tensors,
    write_bytes,
    write_json,
)
from poise.errors import ArtifactError

TENSORS = {
    "a": torch.linspace(-1, 1, 12).reshape(3, 4),
    "b": torch.tensor(7, dtype=torch.int64),
    "c": torch.tensor([True, False]),
    "d": torch.tensor([[float("nan"), float("inf")]], dtype=torch.bfloat16),
    "empty": torch.zeros(0, 3),
}


def fail(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("broken", ["fsync", "replace", "write"])
def test_a_write_that_fails_leaves_the_old_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    text, tensors = tmp_path / "a.json", tmp_path / "a.safetensors"
    write_json(text, {"old": 1})
    save_tensors(tensors, TENSORS, {"old": 1})
    before = {path: path.read_bytes() for path in (text, tensors)}
    if broken == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif broken == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        monkeypatch.setattr(Path, "write_bytes", fail)
        monkeypatch.setattr("poise.artifacts.save_file", fail)
    for write in (
        lambda: write_json(text, {"new": 2}),
        lambda: save_tensors(tensors, {"a": torch.ones(1)}, {"new": 2}),
    ):
        with pytest.raises(ArtifactError, match="No space left on device") as caught:
            write()
        assert "saved before is intact" in caught.value.remedy
    monkeypatch.undo()
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.safetensors"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("I am no folder")
    target = tmp_path / "file" / "a.json"
    for write in (
        lambda: write_bytes(target, b"x"),
        lambda: append_jsonl(target, {}),
        lambda: save_tensors(target, {"a": torch.ones(1)}, {}),
    ):
        with pytest.raises(ArtifactError, match="Cannot write") as caught:
            write()
        assert str(target) in str(caught.value)


def test_tensors_and_meta_come_back_bit_by_bit(tmp_path: Path) -> None:
    path, meta = tmp_path / "deep" / "a.safetensors", {"images_seen": 3, "x": [1.5, None, "ü"]}
    save_tensors(path, TENSORS, meta)
    found, found_meta = load_tensors(path)
    assert found_meta == meta
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert (
            found[name].numpy(force=True).tobytes() == tensor.numpy().tobytes()
            if (tensor.dtype != torch.bfloat16)
            else torch.equal(found[name].view(torch.int16), tensor.view(torch.int16))
        )


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path: Path) -> None:
    path, other = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_tensors(path, TENSORS, {"images_seen": 3})
    whole, unnamed = path.read_bytes(), 0
    for position, bit in itertools.product(range(len(whole)), range(8)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << bit
        other.write_bytes(bytes(damaged))
        try:
            tensors, meta = load_tensors(other)
        except ArtifactError as error:
            unnamed += str(other) not in str(error)
            continue
        # what is left: blanks that pad the header, and a format that is older by its number
        assert meta == {"images_seen": 3}
        for name, tensor in TENSORS.items():
            assert torch.equal(
                tensors[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)
            )
    assert unnamed == 0


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_a_truncated_file_is_damaged(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "a.safetensors"
    save_tensors(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match=r"a\.safetensors is damaged"):
        load_tensors(path)


def test_files_of_others_and_of_a_newer_poise_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    with pytest.raises(ArtifactError, match="does not exist"):
        load_tensors(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(ArtifactError, match="not written by Poise"):
        load_tensors(path)
    monkeypatch.setattr("poise.artifacts.FORMAT", 2)
    save_tensors(path, TENSORS, {})
    monkeypatch.setattr("poise.artifacts.FORMAT", 1)
    with pytest.raises(ArtifactError, match="newer Poise"):
        load_tensors(path)


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert read_jsonl(path) == []
    append_jsonl(path, {"images_seen": 1})
    append_jsonl(path, {"images_seen": 2})
    with path.open("a") as file:
        file.write('{"images_se')
    assert read_jsonl(path) == [{"images_seen": 1}, {"images_seen": 2}]


def test_what_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(ArtifactError, match=r"a\.json does not exist"):
        read_json(path)
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ArtifactError, match=r"a\.json is not JSON"):
        read_json(path)


def test_logs_pictures_and_snapshots_are_cut_at_the_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lines = {}
    for name in ("metrics", "timing", "validation", "events"):
        for images in (10, 20, 20, 30):
            append_jsonl(run.log(name), {"images_seen": images, "x": 0.1})
        whole = run.log(name).read_bytes().splitlines(keepends=True)
        lines[name] = b"".join(whole[:3])
        with run.log(name).open("a") as file:
            file.write('{"images_seen": 4')  # killed while writing
    for images in (20, 30):
        write_bytes(run.samples / f"{images:012d}.png", b"")
        write_bytes(run.snapshot_at(images), b"")
        write_bytes(run.checkpoint_at(images), b"")
    write_bytes(run.samples / "closest.png", b"")
    run.truncate_logs(20)
    assert {name: run.log(name).read_bytes() for name in lines} == lines
    assert [p.name for p in sorted(run.samples.iterdir())] == ["000000000020.png", "closest.png"]
    assert run.snapshot_files() == [run.snapshot_at(20)]
    assert len(run.checkpoint_files()) == 2
    append_jsonl(run.log("metrics"), {"images_seen": 25})
    assert [row["images_seen"] for row in read_jsonl(run.log("metrics"))] == [10, 20, 20, 25]


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for images in (900, 1000, 20, 10**12 - 1):
        write_bytes(run.checkpoint_at(images), b"")
    run.forget_old_checkpoints()
    assert run.checkpoint_files() == [run.checkpoint_at(1000), run.checkpoint_at(10**12 - 1)]


def test_facts_survive_json() -> None:
    facts = DataFacts(32, 3, ("0", "ü"), 0.1 + 0.2)
    assert DataFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@pytest.mark.parametrize("name", [".000000000064.safetensors.0123abcd.part", ".tmpie0xnE"])
def test_what_a_killed_process_left_half_written_goes_when_the_run_goes_on(
    tmp_path: Path, name: str
) -> None:
    run = RunDir(tmp_path)
    run.snapshots.mkdir()
    left = run.snapshots / name
    left.write_bytes(b"half")
    run.snapshot_at(64).write_bytes(b"whole")
    run.truncate_logs(64)
    assert [path.name for path in run.snapshots.iterdir()] == ["000000000064.safetensors"]
