"""Several processes train one network: equal to one process, and what happens when one fails."""

import json
import multiprocessing
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import call, set_options

from poise import cli, pipeline
from poise.artifacts import load_tensors
from poise.stability.detectors.ranks import RankDivergence
from poise.training.loop import TrainState

IMAGES = 32 * 45 + 1  # the last batch has one image, and rank 1 none of it
OPTIONS = [
    *("--images", str(IMAGES)),
    *set_options(
        cadence__checkpoints=3,  # every 15 updates
        cadence__validations=1,
        cadence__grids=1,
        training__precision="fp32",
        training__threads=1,
        stability__preflight="false",
    ),
]
PROCESSES = multiprocessing.get_context("forkserver")  # torch is loaded once for all of them
PROCESSES.set_forkserver_preload(["poise.cli", "poise.api", "sklearn.datasets", "torch._dynamo"])


def process(rank: int, port: int, folder: Path, words: list[str], *, disturbed: bool) -> None:
    """The command line as one of two ranks; what it says goes to files."""
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(folder / f"{name}{rank}", os.O_CREAT | os.O_TRUNC | os.O_WRONLY), stream)
    told = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in told.items()})
    os.environ["POISE_RANK_TIMEOUT"] = "60"
    if rank == 1 and disturbed:
        pipeline.follow = partial(pipeline.follow, disturb=Disturbance())  # type: ignore[attr-defined]
    sys.argv = ["poise", *words]
    cli.main()


class Disturbance:
    """One weight of rank 1 changes before its 18th update; before its 45th it is killed."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, state: TrainState) -> None:
        self.count += 1
        if self.count == 18:
            with torch.no_grad():
                next(state.denoiser.parameters()).view(-1)[0] += 1e-3
        if self.count == 25 + 20:
            os.kill(os.getpid(), signal.SIGKILL)


def two_ranks(folder: Path, words: list[str], *, disturbed: bool) -> list[tuple[int, str, str]]:
    """Exit code, output and messages of each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = {"disturbed": disturbed}
    ranks = [
        PROCESSES.Process(target=process, args=(r, port, folder, words), kwargs=given)
        for r in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
        rank.kill()
        rank.join()
    said = [[(folder / f"{name}{r}").read_text() for name in ("out", "err")] for r in (0, 1)]
    return [(p.exitcode or 0, out, err) for p, (out, err) in zip(ranks, said, strict=True)]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of two processes: rank 1 is damaged, later killed; then both are started again."""
    folder = tmp_path_factory.mktemp("ranks")
    root = folder / "two"
    words = ["train", "digits", "--run", str(root), *OPTIONS]
    found: dict[str, Any] = {"root": root, "disturbed": two_ranks(folder, words, disturbed=True)}
    events = (root / "events.jsonl").read_text("utf-8").splitlines()
    found["events"] = [json.loads(line) for line in events]
    found["saved"] = sorted(p.name for p in (root / "checkpoints").iterdir())
    found["again"] = two_ranks(folder, [*words, "--resume"], disturbed=False)
    return found


def test_a_damaged_process_is_named_and_the_run_goes_back(story: dict[str, Any]) -> None:
    first = story["events"][0]
    assert (first["cause"], first["action"]) == ("rank-divergence", "rollback")
    assert first["culprit"]["ranks"] == [1]
    assert len(first["culprit"]["tensors"]) == 1
    assert first["evidence"]["unequal_tensors"] == 1
    assert first["images_seen"] == 25 * 32  # damaged before the 18th update, compared at the 25th
    assert first["cost"]["back_to"] < 18 * 32


def test_a_killed_process_is_named_and_nothing_is_torn(story: dict[str, Any]) -> None:
    (code, _, said), (killed, _, _) = story["disturbed"]
    assert (code, killed) == (1, -signal.SIGKILL)
    assert "Rank 1 was lost" in said
    assert "Traceback" not in said
    assert "--resume" in said
    last = story["events"][-1]
    assert (last["cause"], last["culprit"]) == ("rank-lost", {"ranks": [1]})
    assert all(name.endswith(".safetensors") for name in story["saved"])


def test_two_processes_end_where_one_does(story: dict[str, Any], tmp_path: Path) -> None:
    (code, path, _), (other, _, complaints) = story["again"]
    assert (code, other, complaints) == (0, 0, "")
    assert path.strip() == str(story["root"] / "report.html")
    assert call("train", "digits", "--run", str(tmp_path / "one"), *OPTIONS) == 0
    name = f"checkpoints/{IMAGES:012d}.safetensors"
    two, one = (load_tensors(root / name)[0] for root in (story["root"], tmp_path / "one"))
    assert two.keys() == one.keys()
    for key, tensor in one.items():
        if key.startswith(("denoiser/", "ema_", "optimizer/")) and tensor.is_floating_point():
            gap = (two[key] - tensor).norm() / tensor.norm().clamp(min=1e-6)
            assert gap < 1e-4, key


NAMES = ("first", "second", "third")


@pytest.mark.parametrize(
    ("table", "odd", "tensor"),
    [
        ([[1, 2, 3], [1, 2, 4]], [1], "third"),
        ([[1, 2, 3], [9, 2, 4]], [1], "first"),
        ([[1, 5, 3], [1, 2, 3], [1, 2, 3]], [0], "second"),  # the others outvote rank 0
        ([[1, 2, 3], [0, 2, 3], [1, 2, 3], [1, 0, 3]], [1, 3], "first"),
    ],
)
def test_the_odd_one_out_is_named(table: list[list[int]], odd: list[int], tensor: str) -> None:
    watch = RankDivergence(NAMES)
    watch.begin(100)
    assert watch.look(torch.tensor([table[0]] * len(table)), 200) == []
    (sign,) = watch.look(torch.tensor(table), 300)
    assert (sign.cause, sign.severity, sign.since) == ("rank-divergence", "critical", 200)
    assert sign.culprit == {"ranks": odd, "tensors": [tensor]}
    assert tensor in sign.sentence
    watch.begin(150)  # after the rollback all have the same
    assert watch.look(torch.tensor(table), 320)[0].since == 150
