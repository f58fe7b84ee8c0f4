"""How a source is prepared, checked before anything is read."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.audit.content import target
from poise.audit.quality import ODD
from poise.errors import UsageError, nearest

DROPS = ("broken", "exact", "near", *ODD)
BALANCES = ("none", "sqrt", "equal", "target")
CLEANINGS = ("jpeg", "denoise")
MISSING = ("refuse", "mask")
_SIDES = (4, 1024)  # what data.resolution allows


@dataclass(frozen=True)
class Options:
    """How a source is prepared."""

    drop: frozenset[str] = frozenset({"broken", "exact"})  # of DROPS
    resolution: int | None = None  # side in pixels; None: decided by the images
    balance: str = "none"  # of BALANCES: how often training draws an image
    target: Path | None = None  # TOML with the mix expected in use, for balance "target"
    split: tuple[float, float, float] = (0.8, 0.1, 0.1)  # training, validation, test
    group_by: str | None = None  # a regular expression on paths, or a column of the metadata
    clean: frozenset[str] = frozenset()  # of CLEANINGS
    missing: str = "refuse"  # of MISSING: what is done with NaN in arrays
    clip: int | None = None  # frames per clip; None: single images
    engine: str = "local"
    workers: int | None = None  # None: one per core
    seed: int = 0  # of the split
    dry_run: bool = False  # make the plan and write nothing
    shard_items: int | None = None  # images per shard; None: about 32 MiB


def check(options: Options) -> None:
    """
    Raises:
        UsageError: a word or number that cannot be, or what it needs is not installed.
    """
    for name, words, known in (
        ("drop", options.drop, DROPS),
        ("balance", {options.balance}, BALANCES),
        ("clean", options.clean, CLEANINGS),
        ("missing", {options.missing}, MISSING),
    ):
        for word in sorted(words - set(known)):
            raise UsageError(
                f"--{name} does not know {word!r}. {nearest(word, known)}".rstrip(),
                expected="one of " + ", ".join(known),
            )
    _check_numbers(options)
    if (options.balance == "target") != (options.target is not None):
        raise UsageError(
            f"--balance {options.balance} {'with' if options.target else 'without'} --target.",
            expected="--balance target and --target FILE.toml together",
        )
    if options.target is not None:
        target.read(options.target)
    if options.clean:
        _require_cleaning()
    if options.group_by is not None:
        try:
            re.compile(options.group_by)
        except re.error as error:
            raise UsageError(
                f"--group-by {options.group_by!r} is no regular expression: {error}.",
                expected="a regular expression on paths whose first group names the group, or the "
                "word group for the column of the metadata",
                remedy="Quote it for the shell, for example --group-by '^([^/_]+)_'.",
            ) from None


def _check_numbers(options: Options) -> None:
    side, shares = options.resolution, options.split
    if side is not None and not _SIDES[0] <= side <= _SIDES[1]:
        raise UsageError(f"--resolution {side}", expected=f"{_SIDES[0]} to {_SIDES[1]} pixels")
    if options.clip is not None and options.clip < 2:
        raise UsageError(f"--clip {options.clip}", expected="at least 2 frames, or no --clip")
    if options.shard_items is not None and options.shard_items < 1:
        raise UsageError(f"shard_items = {options.shard_items}", expected="at least 1")
    whole = len(shares) == 3 and math.isclose(sum(shares), 1, abs_tol=1e-6)
    if not whole or shares[0] <= 0 or min(shares) < 0:
        raise UsageError(
            f"--split {shares} are no shares of training, validation and test.",
            expected="three numbers from 0 on that add up to 1, the first above 0",
        )


def _require_cleaning() -> None:
    try:
        import skimage  # noqa: F401
    except ImportError:
        raise UsageError(
            "--clean needs scikit-image, which is not installed.",
            expected="the extra `clean`",
            remedy="pip install 'poise[clean]', or prepare without --clean.",
        ) from None


def request_of(options: Options) -> dict[str, Any]:
    """What decides the bytes of the result, as plain data: not the engine, nor its workers."""
    return {
        "drop": sorted(options.drop),
        "resolution": options.resolution,
        "balance": options.balance,
        "target": None if options.target is None else options.target.read_text("utf-8"),
        "split": list(options.split),
        "group_by": options.group_by,
        "clean": sorted(options.clean),
        "missing": options.missing,
        "clip": options.clip,
        "seed": options.seed,
        "shard_items": options.shard_items,
    }
