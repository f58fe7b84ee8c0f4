"""The doctor: a run folder or a foreign log in, what happened, why and what to change out.

It reads and never writes. Whatever state a folder is in, what can be read of it is judged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json
from poise.config import from_toml
from poise.errors import PoiseError, UsageError
from poise.report.words import count, is_number, listed, plural, sentence
from poise.stability.causes import CAUSES, title
from poise.stability.finding import Diagnosis, Finding, in_order
from poise.stability.foreign import read_log
from poise.stability.history import history, left_out
from poise.stability.incident import Severity
from poise.stability.logs import judge
from poise.stability.remains import damaged_logs, read_rows, remains, state_of

Row = dict[str, Any]
_LOGS = ("metrics", "timing", "validation", "magnitudes", "events")
_SEVERITY = {"error": "critical", "critical": "critical", "warning": "warning"}
_OLD = {"non_finite": "non-finite-gradient", "damaged_checkpoint": "damaged-checkpoint"}
_FILES = 8  # named in one finding


def diagnose(path: Path) -> Diagnosis:
    """Everything that can be said about a run folder, or a CSV or JSON log.

    Raises:
        UsageError: there is nothing at `path`, or it is neither.
        DataError: a log without a loss.
    """
    if path.is_dir():
        return _run(path)
    return _foreign(path)


def _foreign(path: Path) -> Diagnosis:
    log = read_log(path)
    named = {meaning: column.name for meaning, column in log.columns.items()}
    about = f"{path.name}: {plural(len(log.x), 'row')}; read as " + ", ".join(
        f"{meaning.replace('_', ' ')}: {own}" for meaning, own in named.items()
    )
    return Diagnosis(about, "log", log.unit, in_order(judge(log)), log.notes)


def _run(root: Path) -> Diagnosis:
    run = RunDir(root)
    logs = {name: _rows(run, name) for name in _LOGS}
    if not run.run.exists() and not any(logs.values()) and not run.checkpoint_files():
        raise UsageError(
            f"{root} holds no run.",
            expected="a folder that `poise train` wrote, or a CSV or JSON log",
        )
    about, found = _about(run)
    counted = [row["images_seen"] for rows in logs.values() for row in rows[-1:]]
    said = about.get("images_seen")
    seen = int(max([*counted, said if is_number(said) else 0]))
    planned = about.get("planned_images")
    state = state_of(run, about)
    events = list(_events(logs["events"]))
    told = {finding.cause for finding in events}
    found += remains(run, about, state, seen)
    found += events
    found += damaged_logs(run)
    length = int(planned) if is_number(planned) else None
    found += [f for f in history(logs, length) if f.cause not in told]
    found = _without_echo(found)
    words = f"{root}: a run of {count(seen)} images"
    words += f", {count(planned)} planned" if length else ""
    notes = (*left_out(logs["metrics"]), *_notes(run, state))
    return Diagnosis(f"{words}; {state}", state, "images", in_order(found), notes)


def _rows(run: RunDir, name: str) -> list[Row]:
    try:
        rows = read_rows(run.log(name))[0]
    except OSError:
        return []  # `damaged_logs` says so
    return sorted(rows, key=lambda row: float(row["images_seen"]))


def _about(run: RunDir) -> tuple[Row, list[Finding]]:
    """run.json, or what is wrong with it."""
    try:
        about = read_json(run.run)
        if isinstance(about, dict):
            return about, []
        words = "run.json does not describe a run"
    except (PoiseError, OSError, RecursionError) as error:
        words = error.found if isinstance(error, PoiseError) else f"run.json: {error}"
    do = "Sample from the snapshots that are left; such a run cannot be resumed."
    return {}, [Finding("log-failed", "critical", None, f"{words.rstrip('.')}.", {}, do)]


def _events(rows: list[Row]) -> Iterator[Finding]:
    """Incidents, one finding for each cause, with what was done each time."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if str(row.get("severity")) in _SEVERITY:
            kind = str(row.get("cause") or row.get("kind") or "unknown")
            groups.setdefault(_OLD.get(kind, kind), []).append(row)
    for cause, own in groups.items():
        first, last = own[0], own[-1]
        worst = {_SEVERITY[str(row["severity"])] for row in own}
        said = sentence(str(last.get("message", ""))) or f"{title(cause)}."
        if len(own) > 1:
            said = f"{len(own)} times, first at {_images(first)}, last at {_images(last)}: {said}"
        acted = [str(row["action"]) for row in own if row.get("action") not in (None, "none")]
        if acted:
            said += f" Action: {listed(list(dict.fromkeys(acted)), 5)}."
        evidence: dict[str, Any] = {"incidents": len(own)}
        for key in ("evidence", "culprit", "cost"):
            part = last.get(key)
            evidence |= part if isinstance(part, dict) else {}
        files = _files(own)
        if files:
            evidence["files"] = files
        severity: Severity = "critical" if "critical" in worst else "warning"
        do = "" if cause in CAUSES else "See events.jsonl."
        yield Finding(cause, severity, float(first["images_seen"]), said, evidence, do)


def _images(row: Row) -> str:
    return f"{count(row['images_seen'])} images"


def _files(rows: list[Row]) -> list[str]:
    """Images that were named, each once."""
    named: dict[str, None] = {}
    for row in rows:
        culprit = row.get("culprit")
        given = culprit.get("files") if isinstance(culprit, dict) else row.get("files")
        for name in given if isinstance(given, list) else []:
            named[str(name)] = None
            if len(named) >= _FILES:
                return list(named)
    return list(named)


def _without_echo(found: list[Finding]) -> list[Finding]:
    """A cause is said once: the worst account of it."""
    kept: dict[str, Finding] = {}
    rest = []
    for finding in in_order(found):
        if finding.cause in ("log-failed", "damaged-checkpoint", "incomplete-checkpoint"):
            rest.append(finding)
        else:
            kept.setdefault(finding.cause, finding)
    return [*kept.values(), *rest]


def _notes(run: RunDir, state: str) -> tuple[str, ...]:
    notes = []
    if state == "running":
        notes.append("The run is still going; all of this is preliminary.")
    try:
        config = from_toml(run.config.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        notes.append("There is no config.toml.")
    except (PoiseError, OSError) as error:
        notes.append(f"config.toml cannot be read ({type(error).__name__}).")
    else:
        if config.stability.policy != "repair":
            policy = config.stability.policy
            notes.append(f"The guard was set to {policy}: nothing was repaired while training.")
    return tuple(notes)
