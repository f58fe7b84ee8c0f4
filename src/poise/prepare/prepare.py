"""`poise prepare`: from a source to a clean, split data set that maps into memory.

The steps, each with its file, so that an interruption goes on from there: the scan (.work/scan),
the plan (plan.json), the shards (shards/, with notes in .work/shards), and at the very end the
manifest. The source is only read.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from poise.audit.copies.duplicates import find_duplicates
from poise.audit.quality import flagged
from poise.audit.scan import scan
from poise.console import Screen
from poise.data.listing import told
from poise.data.sources import Source, open_source
from poise.data.store import ITEMS, MANIFEST, PLAN, SHARDS, SPLITS, damaged, read_manifest
from poise.errors import UsageError
from poise.prepare.decide import settle
from poise.prepare.files import WORK, is_part, read_note, remove_parts, remove_work
from poise.prepare.finish import finish, write_plan
from poise.prepare.lines import report_lines
from poise.prepare.options import Options, check, request_of
from poise.prepare.page import PAGE, write_page
from poise.prepare.plan import plan_of
from poise.prepare.shards import check_unchanged, write_shards
from poise.prepare.units import shape_of, units_of
from poise.prepare.weights import Weights

__all__ = [
    "Options",
    "prepare_source",
    "report_lines",
]

_OURS = {MANIFEST, PLAN, ITEMS, SPLITS, SHARDS, PAGE, WORK}


@dataclass(frozen=True)
class _Task:
    """What is prepared, and how."""

    source: str
    opened: Source
    options: Options
    pattern: str | None  # the regular expression of --group-by, if it is not a column
    request: Mapping[str, Any]  # what decides the bytes of the result
    screen: Screen


def prepare_source(source: str, out: Path, options: Options, screen: Screen) -> dict[str, Any]:
    """Prepare `source` into the folder `out`, or go on where an earlier call stopped.

    Returns:
        What plan.json (of a dry run) or manifest.json holds, with `out`, and `state`: "planned",
        "finished", or "unchanged" if there was nothing to do.

    Raises:
        UsageError: no such source, options that cannot be, or `out` holds something else: another
            source, other options, other files.
        DataError: nothing is left to keep, or a file changed while it was prepared.
        ArtifactError: the disk is full (what is there stays, and the next call goes on), or `out`
            is damaged.
    """
    check(options)
    _check_apart(source, out)
    task = _task(source, options, screen)
    if options.dry_run:
        return _plan(task, None) | {"out": str(out), "state": "planned"}
    plan = _existing(out, task.request)
    if (out / MANIFEST).is_file():
        manifest = read_manifest(out)
        if plan is None:
            raise damaged(out, f"{PLAN} cannot be read")
        _check_source(task, plan)
        remove_work(out)
        return manifest | {"out": str(out), "state": "unchanged"}
    remove_parts(out)
    if plan is None:
        plan = _plan(task, out / WORK / "scan")
        write_plan(out, plan)
    else:
        screen.say(f"going on with {out / PLAN}")
        _check_source(task, plan)
    with screen.bar("writing images", len(plan["items"])) as bar:
        shards = write_shards(
            out,
            source,
            plan,
            engine=options.engine,
            workers=options.workers,
            progress=bar.show,
        )
    write_page(out, plan, shards, task.opened)
    manifest = finish(out, plan, shards)
    remove_work(out)
    return manifest | {"out": str(out), "state": "finished"}


def _task(source: str, options: Options, screen: Screen) -> _Task:
    column = options.group_by or "group"
    opened = open_source(source, missing=options.missing, group_by=column).whole()
    pattern = None
    if options.group_by and not any(item.group for item in opened.items):
        pattern = options.group_by
        opened = open_source(source, missing=options.missing).whole()
    request = request_of(options) | {"listing": _listing(opened)}
    return _Task(source, opened, options, pattern, request, screen)


def _plan(task: _Task, cache: Path | None) -> dict[str, Any]:
    """Scan, find duplicates, decide; nothing is written but the scan's own cache."""
    options, screen = task.options, task.screen
    with screen.bar("reading images", 1) as bar:
        seen = scan(
            task.source,
            engine=options.engine,
            workers=options.workers,
            cache=cache,
            missing=options.missing,
            progress=bar.show,
        )
    seen = flagged(replace(seen, source=task.opened))  # with the groups that were asked for
    with screen.bar("looking for duplicates", 1) as bar:
        found = find_duplicates(seen, None, bar.show)
    with screen.bar("dividing", 1):
        units = units_of(seen, options.clip)
        decision, closest = settle(seen, found, units, options, task.pattern)
        kept = [decision.units[index] for index in decision.kept()]
        shape = shape_of(seen, kept, options.resolution, options.clip)
        weigh = Weights(seen, options.balance, options.target)
        return plan_of(seen, decision, closest, task.request, weigh, shape)


def _existing(out: Path, request: Mapping[str, Any]) -> dict[str, Any] | None:
    """The plan that `out` holds already, if it is the same one."""
    if os.path.exists(out) and not out.is_dir():  # no error where it may not be looked at
        raise UsageError(f"{out} is a file.", expected="a new folder")
    try:
        names = sorted(path.name for path in out.iterdir()) if out.exists() else []
    except OSError as error:
        raise UsageError(f"{out} cannot be used: {told(error)}.", expected="a new folder") from None
    others = [name for name in names if name not in _OURS and not is_part(name)]
    if others:
        raise UsageError(
            f"{out} holds other files, such as {others[0]}.",
            expected="a new folder, or one that poise prepare began",
            remedy="Choose another folder.",
        )
    plan = read_note(out / PLAN)
    if plan is None:
        return None
    was = plan.get("request", {})
    different = sorted(key for key in request if request[key] != was.get(key))
    if not different:
        return plan
    what = "from another source, or its files have changed since"
    if different != ["listing"]:
        what = "with other options: " + ", ".join(
            f"{key} was {was.get(key)!r} and is now {request[key]!r}"
            for key in different
            if key != "listing"
        )
    raise UsageError(
        f"{out} was prepared {what}.",
        expected="the same source and the same options, to go on with it",
        remedy="Choose another folder, or delete this one first.",
    )


def _check_source(task: _Task, plan: Mapping[str, Any]) -> None:
    rows = [*plan["items"], *plan["dropped"]]
    with task.screen.bar("comparing the source with the plan", len(rows)) as bar:
        check_unchanged(task.opened, rows, bar.show)


def _check_apart(source: str, out: Path) -> None:
    """The original is never written to, not even beside its files."""
    if source == "digits":
        return
    origin, target = Path(source).expanduser().resolve(), out.expanduser().resolve()
    if target == origin or (origin.is_dir() and target.is_relative_to(origin)):
        raise UsageError(
            f"{out} lies in the source {source}, which is never changed.",
            expected="a folder outside of the source",
        )


def _listing(opened: Source) -> str:
    """sha256 over everything about a source but the content of its files."""
    rows = [[item.name, item.label, item.split, item.caption, item.group] for item in opened.items]
    refused = [[file.name, file.reason] for file in opened.refused]
    content = json.dumps([opened.name, list(opened.label_names), rows, refused])
    return hashlib.sha256(content.encode()).hexdigest()
