"""Kill `poise prepare` at random moments, start it again, and compare with one nobody disturbed.

    .venv/bin/python scripts/kill_prepare.py --kills 20 --seed 0 --images 400

One folder is killed over and over and gone on with, until it is finished; then a new one is begun.
Prints one line per kill; ends with exit code 1 unless every finished folder is equal, byte by byte.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "prepare"))

import sets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--source", type=Path, help="instead of planted images")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poise-kill-") as scratch:
        return compare(Path(scratch), options)


def compare(scratch: Path, options: argparse.Namespace) -> int:
    """Undisturbed once, then killed as often as asked."""
    source = options.source or sets.planted(scratch / "source", options.images)
    before = {} if options.source else sets.tree(source)
    started = time.monotonic()
    if finish(begin(source, scratch / "whole", options)):
        return 1
    length = time.monotonic() - started
    whole = sets.tree(scratch / "whole")
    print(f"undisturbed: {length:.1f} s, {len(whole)} files\n")
    print(" kill   after s   reached")
    moments, kills, rounds, equal = random.Random(options.seed), 0, 0, 0
    while kills < options.kills:
        out = scratch / "killed"
        shutil.rmtree(out, ignore_errors=True)
        rounds += 1
        for _ in range(moments.randint(1, 5)):
            after = length * moments.uniform(0.1, 0.7)
            process = begin(source, out, options)
            time.sleep(after)
            if process.poll() is None:
                # Half the time its workers too, as a loss of power would.
                (os.killpg if kills % 2 else os.kill)(process.pid, signal.SIGKILL)
                kills += 1
                print(f"{kills:5d} {after:9.2f}   {reached(out)}", flush=True)
            process.wait()
        code = finish(begin(source, out, options))
        found = "equal" if code == 0 and sets.tree(out) == whole else "DIFFERENT"
        equal += found == "equal"
        print(f"      finished: {found}", flush=True)
    untouched = not before or sets.tree(source) == before
    print(
        f"\n{equal} of {rounds} folders equal; the source is {'' if untouched else 'NOT '}as it was"
    )
    return 0 if equal == rounds and untouched else 1


def begin(source: Path, out: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import sets; "
        "sets.prepare(sys.argv[2], __import__('pathlib').Path(sys.argv[3]), "
        "workers=int(sys.argv[4]), shard_items=8)"
    )
    folder = str(Path(sets.__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", code, folder, str(source), str(out), str(options.workers)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> int:
    _, errors = process.communicate(timeout=600)
    if process.returncode:
        print(errors)
    return process.returncode


def reached(out: Path) -> str:
    """How far it came, from the files that are there."""
    if (out / "manifest.json").exists():
        return "the manifest"
    if (out / "plan.json").exists():
        return f"{len(list((out / 'shards').glob('*.u8')))} shards"
    return "the scan" if (out / ".work").exists() else "the start"


if __name__ == "__main__":
    sys.exit(main())
