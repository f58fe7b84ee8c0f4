"""The files of a run, read tolerantly: what is absent is empty, what is damaged is named."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, read_json, read_jsonl
from poise.errors import ArtifactError
from poise.report.words import is_number

Row = dict[str, Any]
SEVERITIES = ("warning", "critical", "error")  # of incidents; older runs wrote error for critical


@dataclass(frozen=True)
class RunFiles:
    """Everything the report knows."""

    run: Row
    config: str | None  # TOML
    audit: Row | None
    metrics: list[Row]
    timing: list[Row]
    validation: list[Row]
    events: list[Row]
    magnitudes: list[Row]
    scores: list[Row]  # validation first
    snapshots: list[Row]  # scores of snapshots while training
    tradeoff: Row | None
    preflight: Row | None  # checks before training
    choices: Row | None  # weights and guidance that were chosen afterwards
    tuning: Row | None  # the study that found the settings
    grids: list[tuple[int, Path]]  # (images seen, file), oldest first
    scored: Path | None  # samples that were scored, in rows by class
    pictures: Path  # folder of the pictures of the scores
    digests: dict[str, str]  # SHA-256 of the newest snapshot and of the settings, by file
    problems: list[str]  # files that are there and cannot be read

    @property
    def incidents(self) -> list[tuple[int, Row]]:
        """Warnings and worse with their number in the list of events, counted from 1."""
        numbered = enumerate(self.events, start=1)
        return [(n, row) for n, row in numbered if row.get("severity") in SEVERITIES]

    def latest(self, rows: list[Row], key: str) -> Any:
        """The last value of `key` that is there, or None."""
        return next((row[key] for row in reversed(rows) if row.get(key) is not None), None)


def read_run(run: RunDir) -> RunFiles:
    """Read the folder.

    Raises:
        ArtifactError: the folder has no readable run.json, so it is not a run.
    """
    about = read_record(run.run, "a run")
    problems: list[str] = []
    scores = [_optional(run.scores(split), problems) for split in ("val", "test")]
    scored = run.samples / "scored.png"
    return RunFiles(
        run=about,
        config=_settings(run.config, problems),
        audit=_optional(run.audit, problems),
        metrics=_rows(run.log("metrics"), problems),
        timing=_rows(run.log("timing"), problems),
        validation=_rows(run.log("validation"), problems),
        events=_rows(run.log("events"), problems),
        magnitudes=_rows(run.log("magnitudes"), problems),
        scores=[found for found in scores if found],
        snapshots=_rows(run.log("scores"), problems),
        tradeoff=_optional(run.tradeoff, problems),
        preflight=_optional(run.root / "preflight.json", problems),
        choices=_optional(run.choices, problems),
        tuning=_optional(run.root / "tuning.json", problems),
        grids=sorted(
            (int(path.stem), path) for path in run.samples.glob("*.png") if path.stem.isdecimal()
        ),
        scored=scored if scored.is_file() else None,
        pictures=run.samples,
        digests=_digests([*run.snapshot_files()[-1:], run.config], run.root, problems),
        problems=problems,
    )


def read_record(path: Path, what: str) -> Row:
    """The JSON object of a file that a page is made of.

    Raises:
        ArtifactError: there is none.
    """
    record = read_json(path)
    if not isinstance(record, dict):
        raise ArtifactError(f"{path} does not describe {what}.", expected="a JSON object")
    return record


def section(row: Row | None, key: str) -> Row:
    """The JSON object under `key`, empty when it is absent or something else."""
    value = (row or {}).get(key)
    return value if isinstance(value, dict) else {}


def items(row: Row | None, key: str) -> list[Any]:
    """The JSON list under `key`, empty when it is absent or something else."""
    value = (row or {}).get(key)
    return value if isinstance(value, list) else []


def _optional(path: Path, problems: list[str]) -> Row | None:
    if not path.exists():
        return None
    try:
        value = read_json(path)
    except (ArtifactError, OSError) as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return None
    if isinstance(value, dict):
        return value
    problems.append(f"{path.name} is not what its name says.")
    return None


def _digests(paths: list[Path], root: Path, problems: list[str]) -> dict[str, str]:
    found = {}
    for path in paths:
        try:
            if path.exists():
                with path.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                found[path.relative_to(root).as_posix()] = digest
        except OSError as error:
            problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
    return found


def _settings(path: Path, problems: list[str]) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return None


def _rows(path: Path, problems: list[str]) -> list[Row]:
    try:
        rows: list[Any] = list(read_jsonl(path))
    except OSError as error:
        problems.append(f"{path.name} cannot be read ({type(error).__name__}).")
        return []
    whole = [row for row in rows if isinstance(row, dict) and is_number(row.get("images_seen"))]
    if len(whole) < len(rows):
        problems.append(f"{path.name} has {len(rows) - len(whole)} lines of an unknown kind.")
    return whole
