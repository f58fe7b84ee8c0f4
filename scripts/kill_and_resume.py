"""Kill a training run at random moments, resume it, and compare it with one nobody disturbed.

    .venv/bin/python scripts/kill_and_resume.py --kills 20 --seed 0 --source digits

Prints one line per kill; ends with exit code 1 unless every resumed run is bitwise equal.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import poise  # noqa: F401, I001  (thread settings, before torch loads)
import tiny


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", default="digits")
    parser.add_argument("--images", type=int, default=tiny.IMAGES)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="poise-kill-") as scratch:
        return compare(Path(scratch), options)


def compare(scratch: Path, options: argparse.Namespace) -> int:
    """Undisturbed once, then killed and resumed as often as asked."""
    moments, equal = random.Random(options.seed), 0
    whole = scratch / "undisturbed"
    started = time.monotonic()
    code, output = tiny.finish(begin(whole, options))
    length = time.monotonic() - started
    if code:
        print(output)
        return 1
    print(f"undisturbed: {length:.1f} s\n")
    print(" kill   after s   images logged   went on from            result")
    number = 0
    while number < options.kills:
        root = scratch / "killed"
        shutil.rmtree(root, ignore_errors=True)
        after = length * moments.uniform(0.25, 0.95)  # start-up, training, the scores, the report
        process = begin(root, options)
        time.sleep(after)
        process.kill()
        if tiny.finish(process)[0] == 0:
            continue  # it was faster than the undisturbed run: nothing was killed
        number += 1
        logged = max(tiny.images_logged(root), 0)
        code, output = tiny.finish(
            tiny.start("train", options.source, "--run", str(root), *settings(root, options))
        )
        found = [f"exit code {code}: {output}"] if code else tiny.differences(whole, root)
        equal += not found
        ways = {"resumed at": "a checkpoint", "is finished": "nothing left to train"}
        where = next((way for words, way in ways.items() if words in output), "the start")
        result = "equal" if not found else "DIFFERENT: " + "; ".join(found[:5])
        print(f"{number:5d} {after:9.2f} {logged:15,d}   {where:24}{result}", flush=True)
    print(f"\n{equal} of {options.kills} bitwise equal")
    return 0 if equal == options.kills else 1


def begin(root: Path, options: argparse.Namespace):  # type: ignore[no-untyped-def]
    return tiny.start("train", options.source, "--run", str(root), *fresh(options))


def fresh(options: argparse.Namespace) -> list[str]:
    return ["--images", str(options.images), *tiny.set_options()]


def settings(root: Path, options: argparse.Namespace) -> list[str]:
    """A run killed before it wrote run.json has nothing to resume and starts anew."""
    return ["--resume", *([] if (root / "run.json").exists() else fresh(options))]


if __name__ == "__main__":
    sys.exit(main())
