"""What `poise doctor` says, as plain data and as lines."""

import json
from pathlib import Path
from typing import Any

from poise.report.words import count
from poise.stability.causes import title
from poise.stability.doctor import diagnose


def doctor(path: str | Path) -> tuple[dict[str, Any], list[str]]:
    """Read a run folder, or a CSV or JSON log of any training, and say what happened.

    Args:
        path: a run folder in any state, or a file. Nothing is written.

    Returns:
        (`{"about", "state", "status", "unit", "findings", "notes"}`, lines to print). Findings
        are worst first, each with cause, severity, since, sentence, evidence and do.

    Raises:
        UsageError: there is neither a run nor a log.
        DataError: a log without a column that could be a loss.
    """
    found = diagnose(Path(path)).to_json()
    return found, _lines(found)


def _lines(found: dict[str, Any]) -> list[str]:
    lines = [found["about"], ""]
    if not found["findings"]:
        lines.append("Nothing is wrong that these files would show.")
    for number, finding in enumerate(found["findings"], start=1):
        since = "" if finding["since"] is None else f", since {_moment(found['unit'], finding)}"
        lines += [
            f"{number}. {finding['severity']}: {title(finding['cause'])} "
            f"({finding['cause']}{since})",
            f"   {finding['sentence']}",
        ]
        if finding["evidence"]:
            lines.append(f"   evidence: {_short(finding['evidence'])}")
        if finding["do"]:
            lines.append(f"   do: {finding['do']}")
        lines.append("")
    return [*lines, *[f"note: {note}" for note in found["notes"]]]


def _moment(unit: str, finding: dict[str, Any]) -> str:
    since = finding["since"]
    return f"{count(since)} images" if unit == "images" else f"{unit} {since:g}"


def _short(evidence: dict[str, Any]) -> str:
    parts = [f"{key} {json.dumps(value, ensure_ascii=False)}" for key, value in evidence.items()]
    text = "; ".join(parts).replace('"', "")
    return text if len(text) <= 600 else f"{text[:600]} …"
