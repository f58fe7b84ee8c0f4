"""Faults of a training in two processes: one of them is damaged, killed, or hangs."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json
from poise.drill.child import write_task
from poise.drill.ground import Ended, Ground
from poise.drill.kind import Fault
from poise.drill.system import Played
from poise.drill.witness import Seen, Witness
from poise.journal import Prepared

KINDS = ("rank-perturbed", "rank-killed", "rank-hung")
_SIZE = 2
_TIMEOUT = 60.0  # seconds that ranks wait for each other; a busy machine is slow
_SECONDS = 1800.0  # that a session may take


def play_ranks(ground: Ground, fault: Fault, name: str) -> Played:
    """Let one fault happen to rank 1 of a run of its own, which goes on from the base.

    After a lost rank both processes are started again, as torchrun or a person would.

    Args:
        ground: what runs have in common.
        fault: its kind is one of `KINDS`.
        name: of the run folder.
    """
    folder = ground.folder(name, whole=False)
    job = ground.job(folder)
    witness = Witness(RunDir(folder), tick=ground.tick)
    timeout = fault.magnitude if fault.kind == "rank-hung" else _TIMEOUT
    told = _session(job, fault, timeout)
    _take_in(witness, told)
    events = [replace(e, update=max(e.update, fault.at + 1)) for e in witness.events]
    came = fault.at + 1 if told["updates"] >= fault.at else None
    if fault.kind != "rank-perturbed" and told.get("cause") == "rank-lost":
        told = _session(job, None, _TIMEOUT)
        _take_in(witness, told)
    ended = Ended(told["how"], told["images_seen"], told["reason"])
    return Played(folder, witness, ended, events, came)


def _session(job: Prepared, fault: Fault | None, timeout: float) -> dict[str, Any]:
    """Two processes train together; what rank 0 told at the end."""
    folder = job.run.root
    task, outcome = folder.with_suffix(".npz"), folder.with_suffix(".json")
    write_task(task, job)
    outcome.unlink(missing_ok=True)
    words = [str(task), str(outcome), json.dumps(None if fault is None else asdict(fault))]
    command = [sys.executable, "-W", "ignore", "-m", "poise.drill.rank_child", *words]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(_SIZE),
        "POISE_RANK_TIMEOUT": str(timeout),
    }
    log = folder.with_suffix(".log")
    with log.open("wb") as errors:
        ranks = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
            for rank in range(_SIZE)
        ]
        try:
            _wait(ranks)
        finally:
            for process in ranks:
                process.kill()
                process.wait()
    if outcome.exists():
        told: dict[str, Any] = read_json(outcome)
        return told
    return _nothing(log)


def _wait(ranks: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Until rank 0 has ended; a hung rank 1 is not waited for."""
    until = time.monotonic() + _SECONDS
    while ranks[0].poll() is None and time.monotonic() < until:
        time.sleep(0.05)


def _nothing(log: Path) -> dict[str, Any]:
    """What is told where rank 0 told nothing."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = lines[-1] if lines else "rank 0 ended without a word"
    blank = {"updates": 0, "images": 0, "left_out": [0, 0], "events": []}
    return {"how": "crashed", "images_seen": 0, "reason": reason, **blank}


def _take_in(witness: Witness, told: dict[str, Any]) -> None:
    """The witness of the drill knows what the one in rank 0 saw."""
    witness.events += [Seen(row, update + witness.updates) for row, update in told["events"]]
    witness.updates += told["updates"]
    witness.images += told["images"]
    witness.miss(*told["left_out"])
