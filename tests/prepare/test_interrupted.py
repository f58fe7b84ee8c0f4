"""Killed, out of space, repeated, changed: what is finished is whole and always the same."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from sets import planted, prepare, tree

from poise.data.store import is_store, load_store, verify_store
from poise.errors import ArtifactError, DataError, UsageError
from poise.prepare.prepare import report_lines
from poise.settings import DataConfig

OPTIONS = {"resolution": 16, "shard_items": 3, "group_by": r"(p\d+)_"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "pets", 16)


@pytest.fixture(scope="module")
def undisturbed(source: Path) -> dict[str, str]:
    prepare(source, source.parent / "set", **OPTIONS)
    return tree(source.parent / "set")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_any_moment_it_ends_the_same(source: Path, undisturbed, tmp_path: Path) -> None:
    out, moments = tmp_path / "set", random.Random(0)
    started = time.monotonic()
    prepare(source, tmp_path / "timed", **OPTIONS)
    length = time.monotonic() - started
    fork = multiprocessing.get_context("fork")  # a fresh start would take longer than the work
    kills = 0
    for _ in range(12):
        process = fork.Process(target=prepare, args=(source, out), kwargs=OPTIONS)
        process.start()
        process.join(length * moments.uniform(0.05, 0.6))
        if process.exitcode is None:
            process.kill()
            kills += 1
        process.join()
        assert not (out / "manifest.json").exists() or is_store(out)
        if kills == 3:
            break
        if (out / "manifest.json").exists():  # too fast to be killed
            shutil.rmtree(out)
    assert kills == 3
    prepare(source, out, **OPTIONS)
    assert tree(out) == undisturbed


def failed(source: Path, out: Path, options: dict[str, Any]) -> str | None:
    """What went wrong, if anything did."""
    try:
        prepare(source, out, **options)
    except ArtifactError as error:
        return str(error)
    return None


def test_a_full_disk_at_every_write(source: Path, tmp_path: Path, monkeypatch) -> None:
    options = OPTIONS | {"shard_items": 10}
    prepare(source, tmp_path / "whole", **options)
    whole = tree(tmp_path / "whole")
    for n in range(100):
        out, call = tmp_path / f"{n}", ("fsync", "replace")[n % 2]
        left, real = [n], getattr(os, call)

        def full(*args: object, left: list[int] = left, real: Any = real) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            error = failed(source, out, options)
        if error is None:
            break
        assert "No space left on device" in error and "Free some space" in error
        assert not (out / "manifest.json").exists()
        if is_store(out):
            with pytest.raises(ArtifactError, match="is not finished"):
                load_store(out, DataConfig())
        prepare(source, out, **options)
        assert tree(out) == whole
        shutil.rmtree(out)
    assert n > 8
    verify_store(out)


def test_a_disk_that_is_full_in_the_middle_of_a_shard(
    source: Path, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poise.prepare import shards

    real, out = shards.writing, tmp_path / "set"

    class Full:
        def __init__(self, file: object) -> None:
            self.file = file

        def write(self, content: bytes) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

    from contextlib import contextmanager

    @contextmanager
    def writing(path: Path):  # type: ignore[no-untyped-def]
        with real(path) as file:
            yield Full(file) if path.name == "00004.u8" else file

    monkeypatch.setattr(shards, "writing", writing)
    with pytest.raises(ArtifactError, match=r"00004.u8: No space left"):
        prepare(source, out, **OPTIONS)
    assert sorted(p.name for p in (out / "shards").iterdir()) == [f"{n:05d}.u8" for n in range(4)]
    monkeypatch.undo()
    prepare(source, out, **OPTIONS)
    assert tree(out) == undisturbed


def test_a_damaged_shard_of_an_interrupted_run_is_written_anew(
    source: Path, undisturbed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from poise.prepare import prepare as module

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(module, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prepare(source, out, **OPTIONS)
    shard = out / "shards" / "00002.u8"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    (out / "shards" / "00003.u8").unlink()
    (out / ".plan.json.77.part").write_bytes(b"half")
    prepare(source, out, **OPTIONS)
    assert tree(out) == undisturbed


def test_workers_change_nothing(source: Path, undisturbed, tmp_path: Path) -> None:
    prepare(source, tmp_path / "set", **OPTIONS | {"workers": 2})
    assert tree(tmp_path / "set") == undisturbed


def test_a_dry_run_writes_nothing(source: Path, tmp_path: Path) -> None:
    planned = prepare(source, tmp_path / "set", dry_run=True, **OPTIONS)
    assert list(tmp_path.iterdir()) == [] and planned["state"] == "planned"
    lines = report_lines(planned)
    assert any(line.startswith("Splits: train") for line in lines)
    made = prepare(source, tmp_path / "set", **OPTIONS)
    assert made["summary"] == planned["summary"]
    assert lines[:-1] == [x for x in report_lines(made)[:-1] if not x.startswith("sigma_data")]


def test_what_is_finished_is_left_alone(source: Path, undisturbed, tmp_path: Path) -> None:
    out = tmp_path / "set"
    prepare(source, out, **OPTIONS)
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = prepare(source, out, **OPTIONS)
    assert again["state"] == "unchanged" and "nothing to do" in report_lines(again)[-1]
    assert times == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(UsageError, match="other options: resolution was 16 and is now 8"):
        prepare(source, out, **OPTIONS | {"resolution": 8})
    assert tree(out) == undisturbed


def test_a_source_that_changed_is_noticed(source: Path, tmp_path: Path) -> None:
    copy, out = tmp_path / "pets", tmp_path / "set"
    shutil.copytree(source, copy)
    prepare(copy, out, **OPTIONS)
    image = copy / "cat" / "p04_b.png"
    before = image.read_bytes()
    image.write_bytes((copy / "cat" / "p04_a.png").read_bytes())
    with pytest.raises(DataError, match=r"p04_b\.png changed while or since"):
        prepare(copy, out, **OPTIONS)
    image.write_bytes(before)
    assert prepare(copy, out, **OPTIONS)["state"] == "unchanged"
    (copy / "cat" / "cut.png").write_bytes(before)  # a dropped one
    with pytest.raises(DataError, match=r"cut\.png changed"):
        prepare(copy, out, **OPTIONS)
    shutil.copy(image, copy / "cat" / "new.png")
    with pytest.raises(UsageError, match="its files have changed since"):
        prepare(copy, out, **OPTIONS)


def test_other_files_are_not_written_over(source: Path, tmp_path: Path) -> None:
    (tmp_path / "diary.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files, such as diary"):
        prepare(source, tmp_path, **OPTIONS)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="is a file"):
        prepare(source, tmp_path / "file", **OPTIONS)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["diary.txt", "file"]


def test_damage_to_a_finished_set_is_told(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    prepare(source, out, **OPTIONS)
    (out / "shards" / "00000.u8").unlink()
    with pytest.raises(ArtifactError, match=r"00000\.u8 cannot be read"):
        prepare(source, out, **OPTIONS)
    assert json.loads((out / "plan.json").read_text("utf-8"))["kind"].startswith("poise data set")
