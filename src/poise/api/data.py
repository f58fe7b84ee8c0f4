"""Images before a run, from Python: `poise.audit_images` and `poise.prepare_images`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from poise.arguments import one_of, parse_parts, parse_shares
from poise.audit.audit import Options as AuditOptions
from poise.audit.audit import audit_source
from poise.console import Screen
from poise.errors import Interrupted
from poise.prepare.options import BALANCES, CLEANINGS, DROPS, MISSING
from poise.prepare.options import Options as PrepareOptions
from poise.prepare.prepare import prepare_source, report_lines
from poise.signals import terminate_as_interrupt

_ENGINES = ("local", "ray")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block with a sentence; what was done is kept."""
    try:
        with terminate_as_interrupt():
            yield
    except KeyboardInterrupt:
        raise Interrupted(
            "Stopped; what was read and written so far is kept.",
            remedy="Go on with the same command.",
        ) from None


def audit_images(
    source: str | Path,
    *,
    out: str | Path | None = None,
    target: str | Path | None = None,
    features: str = "auto",
    engine: str = "local",
    workers: int | None = None,
    missing: str = "refuse",
    quiet: bool = True,
) -> tuple[dict[str, Any], Path]:
    """Read every image and say what is wrong with the set; nothing is changed.

    Args:
        source: any source of `poise train`.
        out: folder for audit.json and audit.html; None: audits/ and the name of the source.
        target: TOML with the mix expected in use.
        features: what images are compared in: auto, layout, pixels or random_conv.
        engine: "local", or "ray" for a Ray cluster.
        workers: processes that decode; None: one per core.
        missing: what is done with NaN in arrays: "refuse" the image, or "mask" the values.
        quiet: show no progress.

    Returns:
        What audit.json holds, and the path of the page.
    """
    name = Path(source).resolve().name if source != "digits" else "digits"
    folder = Path(out) if out is not None else Path("audits") / name
    options = AuditOptions(
        target=None if target is None else Path(target),
        features=features,
        engine=one_of("engine", engine, _ENGINES),
        workers=workers,
        missing=one_of("missing", missing, MISSING),
    )
    with _stoppable():
        facts = audit_source(str(source), folder, options, Screen(quiet=quiet))
    return facts, folder / "audit.html"


def prepare_images(
    source: str | Path,
    out: str | Path,
    *,
    drop: str = "broken,exact",
    resolution: int | None = None,
    balance: str = "none",
    target: str | Path | None = None,
    split: str = "80/10/10",
    group_by: str | None = None,
    clean: str = "",
    clip: int | None = None,
    missing: str = "refuse",
    seed: int = 0,
    engine: str = "local",
    workers: int | None = None,
    dry_run: bool = False,
    quiet: bool = True,
) -> list[str]:
    """Make a clean, split data set that maps into memory; the original is not touched.

    Args:
        source: any source of `poise train`.
        out: the folder to write; an interrupted one is gone on with.
        drop: what is left out, of "broken", "exact" and "near", joined by commas.
        resolution: side in pixels; None: decided by the images.
        balance: how often training draws an image: "none", "sqrt", "equal" or "target".
        target: TOML with the shares for `balance="target"`.
        split: shares of training, validation and test.
        group_by: a regular expression on paths, or a column of the metadata, that names groups
            which stay on one side.
        clean: of "jpeg" and "denoise", joined by commas.
        clip: frames of a clip; None: single images.
        missing, engine, workers, quiet: as for `audit_images`.
        seed: another seed gives another split.
        dry_run: only make the plan; nothing is written.

    Returns:
        What was done, in lines for people.
    """
    options = PrepareOptions(
        drop=parse_parts("drop", drop, DROPS),
        resolution=resolution,
        balance=one_of("balance", balance, BALANCES),
        target=None if target is None else Path(target),
        split=parse_shares(split),
        group_by=group_by,
        clean=parse_parts("clean", clean, CLEANINGS),
        clip=clip,
        missing=one_of("missing", missing, MISSING),
        seed=seed,
        engine=one_of("engine", engine, _ENGINES),
        workers=workers,
        dry_run=dry_run,
    )
    with _stoppable():
        done = prepare_source(str(source), Path(out), options, Screen(quiet=quiet))
    return report_lines(done)
