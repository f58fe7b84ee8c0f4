"""One of the processes of a training in several, which `ranks` starts and disturbs.

`python -m poise.drill.rank_child TASK OUTCOME FAULT`: a file of `child.write_task`, where rank 0
writes what happened, and the fault as JSON, or null.
"""

import json
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from poise.artifacts import write_json
from poise.console import Screen
from poise.drill.child import read_task
from poise.drill.kind import Fault
from poise.drill.place import Place, one_tensor
from poise.drill.witness import Witness
from poise.errors import PoiseError
from poise.journal import Journal, Prepared
from poise.learning.follow import follow
from poise.learning.learn import learn
from poise.runtime import generator_at
from poise.training.loop import TrainState
from poise.training.parallel import World, join


@dataclass
class Damage:
    """What happens to rank 1 before one of its updates."""

    fault: Fault
    _updates: int = 0

    def __call__(self, state: TrainState) -> None:
        """Called before each update, over rollbacks."""
        self._updates += 1
        if self._updates != self.fault.at + 1:
            return
        if self.fault.kind == "rank-killed":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault.kind == "rank-hung":
            while True:
                time.sleep(60)
        self._perturb(state)

    @torch.no_grad()
    def _perturb(self, state: TrainState) -> None:
        nobody = cast(Journal, None)  # which is not asked for tensors
        _, weight = one_tensor(Place(state, nobody), self.fault)
        generator = generator_at(self.fault.seed, 0, "rank")
        noise = torch.randn(weight.shape, generator=generator).to(weight.device)
        weight.add_(noise * (self.fault.magnitude * weight.square().mean().sqrt()))


def lead(job: Prepared, world: World) -> dict[str, Any]:
    """Rank 0: train, and say what happened."""
    witness = Witness(job.run)
    told: dict[str, Any] = {"how": "crashed", "images_seen": 0, "reason": ""}
    try:
        told |= {"images_seen": learn(job, Screen(quiet=True), tamper=witness, world=world)}
        told["how"] = "finished"
    except PoiseError as error:
        told |= {"how": "stopped", "reason": str(error), "cause": getattr(error, "cause", "")}
    except Exception as error:
        told["reason"] = f"{type(error).__name__}: {error}"
    witness.look()
    told |= {
        "updates": witness.updates,
        "images": witness.images,
        "left_out": list(witness.left_out()),
        "events": [[seen.row, seen.update] for seen in witness.events],
    }
    return told


def main(task: str, outcome: str, text: str) -> None:
    """Take part in one training session."""
    given, job, world = json.loads(text), read_task(Path(task)), join()
    assert world is not None
    try:
        if world.rank == 0:
            write_json(Path(outcome), lead(job, world))
        elif given is None:
            follow(job, world)
        else:
            follow(job, world, disturb=Damage(Fault(**{**given, "used": (), "ignored": ()})))
    finally:
        world.leave()


if __name__ == "__main__":
    main(*sys.argv[1:])
