"""Faults of system and files, each with a little procedure of its own around training sessions."""

import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from poise.artifacts import RunDir, load_tensors, read_jsonl, save_tensors
from poise.console import Screen
from poise.drill.ground import Ended, Ground, attempt
from poise.drill.kind import Fault
from poise.drill.plan import with_many_looks, with_many_saves, with_parts
from poise.drill.stops import ForAWhile, NoMemory, Stopper
from poise.drill.witness import Seen, Untouched, Witness
from poise.errors import Interrupted, UsageError
from poise.journal import Journal, Prepared

_STATE = ("denoiser/", "optimizer/", "ema_")  # of a checkpoint: must be equal bit by bit
_PHASES = {"sigterm-probe": "probe", "sigterm-sampling": "grid", "sigterm-validation": "validation"}
_CHILD_SECONDS = 600.0  # that a process may take to get where it is to be killed


@dataclass
class Played:
    """What happened in the sessions of one fault."""

    folder: Path
    witness: Witness
    ended: Ended
    events: list[Seen]  # of the time after the fault
    update: int | None  # the first that the fault could touch; None: it never came
    same: bool | None = None  # as the undisturbed run, bit by bit; None: that is not asked


@dataclass
class _Scene:
    """One fault and the run that it happens to."""

    ground: Ground
    fault: Fault
    folder: Path
    job: Prepared
    witness: Witness

    def go_on(self) -> Ended:
        """A further session, with nobody who disturbs it."""
        self.witness.inner = Untouched()
        ended = attempt(self.ground, self.job, self.witness)
        self.witness.look()
        return ended

    def until_stopped(self, stopper: Stopper) -> Ended | None:
        """A session that is stopped by a signal of ours; how it ended instead, or None."""
        self.witness.inner = stopper
        try:
            ended = attempt(self.ground, self.job, self.witness)
        except Interrupted:
            if not stopper.sent:
                raise
            return None
        finally:
            stopper.close()
            self.witness.look()
        return ended


def play(ground: Ground, fault: Fault, name: str, *, whole: bool) -> Played:
    """Let one fault of the system happen to a run of its own.

    Args:
        ground: what runs have in common.
        fault: its kind is one of `system_kinds.KINDS`.
        name: of the run folder.
        whole: it happens to a new run, not to one that goes on from the base.

    Raises:
        Interrupted, KeyboardInterrupt: a person wants to stop the drill.
        UsageError: signals do not reach this thread.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UsageError(
            "Faults of the system need signals, which reach the main thread alone.",
            remedy="Call the drill from the main thread, or leave these kinds out.",
        )
    folder = ground.folder(name, whole=whole)
    job = ground.job(folder, with_many_looks(ground.config))
    scene = _Scene(ground, fault, folder, job, Witness(RunDir(folder), tick=ground.tick))
    with _shielded():
        return _PLAYS[fault.kind](scene)


@contextlib.contextmanager
def _shielded() -> Iterator[None]:
    """A signal of ours that comes late must not end the drill."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _signal(scene: _Scene) -> Played:
    """SIGTERM, then the run is resumed; it must end as if nothing had happened."""
    phase = _PHASES.get(scene.fault.kind, "step")
    return _resumed(scene, Stopper(scene.fault.at, phase), scene.ground.undisturbed)


def _mid_batch(scene: _Scene) -> Played:
    """Likewise between the parts of a batch; compared with a run that has the same parts."""
    config = with_parts(scene.ground.config, int(scene.fault.magnitude))
    twin = scene.ground.folder(f"{scene.folder.name}-twin", whole=False)
    ended = attempt(scene.ground, scene.ground.job(twin, config), Untouched())
    if ended.how != "finished":
        return Played(scene.folder, scene.witness, ended, [], None)
    scene.job = scene.ground.job(scene.folder, config)
    return _resumed(scene, Stopper(scene.fault.at, "step", part=1), twin)


def _resumed(scene: _Scene, stopper: Stopper, twin: Path) -> Played:
    instead = scene.until_stopped(stopper)
    if instead is not None:
        return Played(scene.folder, scene.witness, instead, [], None)
    events = list(scene.witness.events)
    ended = scene.go_on()
    same = ended.how == "finished" and same_state(scene.folder, twin)
    return Played(scene.folder, scene.witness, ended, events, stopper.sent_at, same)


def _damaged(damage: Callable[[_Scene, Path], None]) -> Callable[[_Scene], Played]:
    """The process ends, something is done to its checkpoints, and the run is resumed."""

    def act(scene: _Scene) -> Played:
        instead = scene.until_stopped(Stopper(scene.fault.at))
        if instead is not None:
            return Played(scene.folder, scene.witness, instead, [], None)
        damage(scene, RunDir(scene.folder).checkpoint_files()[-1])
        before = len(scene.witness.events)
        ended = scene.go_on()
        same = ended.how == "finished" and same_state(scene.folder, scene.ground.undisturbed)
        events = [replace(e, update=0) for e in scene.witness.events[before:]]
        return Played(scene.folder, scene.witness, ended, events, 0, same)

    return act


def _truncate(scene: _Scene, newest: Path) -> None:
    content = newest.read_bytes()
    newest.write_bytes(content[: int(len(content) * scene.fault.share)][: len(content) - 1])


def _flip(scene: _Scene, newest: Path) -> None:
    content = bytearray(newest.read_bytes())
    chance = random.Random(scene.fault.seed)
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    newest.write_bytes(bytes(content))


def _leave_out(scene: _Scene, newest: Path) -> None:
    tensors, meta = load_tensors(newest)
    kept = {k: v for k, v in tensors.items() if not k.startswith(scene.fault.tensor or "ema")}
    save_tensors(newest, kept, meta)


def _stale(scene: _Scene, newest: Path) -> None:
    """A checkpoint of a short other run, with the numbers of a later one."""
    ground, batch = scene.ground, scene.job.config.training.batch
    training = ground.config.training.model_copy(update={"images": 2 * batch})
    seed = ground.config.seed + 1 + scene.fault.seed
    other = ground.config.model_copy(update={"seed": seed, "training": training})
    folder = ground.folder(f"{scene.folder.name}-other", whole=True)
    ground.learn(ground.job(folder, other), Screen(quiet=True), tamper=Untouched())
    tensors, meta = load_tensors(RunDir(folder).checkpoint_files()[-1])
    later = scene.job.config.training.images - batch
    target = RunDir(scene.folder).checkpoint_at(later)
    save_tensors(target, tensors, {**meta, "images_seen": later, "step": later // batch})


def _kill(scene: _Scene) -> Played:
    """Processes that are killed, one after the other; the last one is resumed here."""
    chance = random.Random(scene.fault.seed)
    task = scene.folder.with_suffix(".npz")
    from poise.drill.child import write_task  # it needs the real training

    scene.job = scene.ground.job(scene.folder, with_many_saves(scene.ground.config))
    write_task(task, scene.job)
    batch = scene.job.config.training.batch
    for number in range(int(scene.fault.magnitude)):
        after = scene.ground.base_images + batch * (scene.fault.at + 10 * number)
        if not _kill_child(task, scene.folder, after, chance, in_save=number % 2 == 0):
            ended = Ended("failed", 0, "the process ended before it could be killed")
            return Played(scene.folder, scene.witness, ended, [], None)
        scene.witness.look()
    task.unlink()
    ended = scene.go_on()
    same = ended.how == "finished" and same_state(scene.folder, scene.ground.undisturbed)
    events = [replace(e, update=0) for e in scene.witness.events]
    return Played(scene.folder, scene.witness, ended, events, 0, same)


def _kill_child(
    task: Path, folder: Path, after: int, chance: random.Random, *, in_save: bool
) -> bool:
    """Start a process and kill it once it has seen enough images; false if it ended by itself."""
    command = [sys.executable, "-W", "ignore", "-m", "poise.drill.child", str(task)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline, run = time.monotonic() + _CHILD_SECONDS, RunDir(folder)
        while child.poll() is None and time.monotonic() < deadline:
            rows = read_jsonl(run.log("metrics"))
            if rows and rows[-1]["images_seen"] >= after:
                _wait_for_moment(run, child, chance, in_save=in_save)
                break
            time.sleep(0.02)
        killed = child.poll() is None
    finally:
        child.kill()
        child.wait()
    return killed


def _wait_for_moment(
    run: RunDir, child: "subprocess.Popen[bytes]", chance: random.Random, *, in_save: bool
) -> None:
    """Until a checkpoint is half written, or for a random while."""
    until = time.monotonic() + (30.0 if in_save else chance.uniform(0, 0.5))
    while time.monotonic() < until and child.poll() is None:
        if in_save and any(run.checkpoints.glob(".*")):
            time.sleep(chance.uniform(0, 0.003))
            return
        time.sleep(0.0005)


def _for_a_while(
    prepare: Callable[[_Scene], tuple[Callable[[Journal], None], Callable[[], None]]],
) -> Callable[[_Scene], Played]:
    """Something of the machine fails while the run goes on."""

    def act(scene: _Scene) -> Played:
        damage, mend = prepare(scene)
        tamper = ForAWhile(scene.fault.at, scene.fault.duration, damage, mend)
        return _one_session(scene, tamper)

    return act


def _one_session(scene: _Scene, tamper: ForAWhile | NoMemory) -> Played:
    scene.witness.inner = tamper
    try:
        ended = attempt(scene.ground, scene.job, scene.witness)
    finally:
        tamper.close()
    scene.witness.look()
    update = None
    if scene.witness.updates > scene.fault.at:  # without memory, an update has no end to speak of
        update = scene.fault.at + (not isinstance(tamper, NoMemory))
    return Played(scene.folder, scene.witness, ended, list(scene.witness.events), update)


def _small_files(scene: _Scene) -> tuple[Callable[[Journal], None], Callable[[], None]]:
    import resource  # not on every system

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    newest = RunDir(scene.folder).checkpoint_files()[-1].stat().st_size
    limit = min(int(scene.fault.magnitude * 1024), newest // 2)

    def damage(_: Journal) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))

    return damage, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _replaced_by_file(scene: _Scene) -> tuple[Callable[[Journal], None], Callable[[], None]]:
    """The folder of checkpoints is set aside, and a file has its name; so root cannot write too."""
    folder = RunDir(scene.folder).checkpoints
    aside = folder.with_name("checkpoints-aside")

    def damage(_: Journal) -> None:
        folder.rename(aside)
        folder.write_bytes(b"")

    def mend() -> None:
        folder.unlink()
        aside.rename(folder)

    return damage, mend


def _log_is_folder(scene: _Scene) -> tuple[Callable[[Journal], None], Callable[[], None]]:
    log = RunDir(scene.folder).log("metrics")
    aside = log.with_suffix(".aside")

    def damage(_: Journal) -> None:
        log.rename(aside)
        log.mkdir()

    def mend() -> None:
        log.rmdir()
        aside.rename(log)

    return damage, mend


def same_state(one: Path, other: Path) -> bool:
    """Whether the newest checkpoints of two runs hold the same weights, averages and moments."""
    files = [RunDir(folder).checkpoint_files() for folder in (one, other)]
    if not all(files):
        return False
    (ours, meta), (theirs, other_meta) = (load_tensors(paths[-1]) for paths in files)
    names = {n for n in ours if n.startswith(_STATE)}
    if names != {n for n in theirs if n.startswith(_STATE)}:
        return False
    if meta["images_seen"] != other_meta["images_seen"]:
        return False
    return all(torch.equal(ours[name], theirs[name]) for name in names)


_PLAYS: dict[str, Callable[[_Scene], Played]] = {
    "sigterm-step": _signal,
    "sigterm-probe": _signal,
    "sigterm-sampling": _signal,
    "sigterm-validation": _signal,
    "sigterm-warm-up": _signal,
    "sigkill": _kill,
    "resume-exact": _mid_batch,
    "newest-truncated": _damaged(_truncate),
    "newest-bitflip": _damaged(_flip),
    "entries-missing": _damaged(_leave_out),
    "stale-checkpoint": _damaged(_stale),
    "disk-full": _for_a_while(_small_files),
    "folder-unwritable": _for_a_while(_replaced_by_file),
    "log-raises": _for_a_while(_log_is_folder),
    "out-of-memory": lambda scene: _one_session(scene, NoMemory(scene.fault.at)),
}
