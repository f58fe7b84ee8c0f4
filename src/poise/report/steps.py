"""What to do next: the remedies of what was found, then what has not been tried; with commands."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from poise.report.finding import WEAK, Finding, worst_first
from poise.report.folder import Row, RunFiles, items
from poise.report.page import visible
from poise.report.studyrecord import pair, tuned
from poise.report.words import is_number

RUN = "RUN"  # where the folder lies, when its own files do not say
_MOST = 8
_LOOK = re.compile("^poise (doctor|audit) | --resume$")  # comes before training anew
_SETTING = re.compile(r"\b([a-z_]+\.\w+)=([\w.+-]+)")
_KEPT, _ONCE = ("--preflight", "--no-preflight"), ("--resume", "--dry-run")  # without a value


@dataclass(frozen=True)
class Step:
    """One thing to do: why, what, and the command for it; the last two may be empty."""

    why: str
    what: str
    command: str = ""


def next_steps(files: RunFiles, found: Sequence[Finding]) -> list[Step]:
    """In order: save the run, see to incidents and images, heal what is weak, try the rest."""
    asked = [finding for finding in worst_first(list(found)) if finding.remedy]
    if any("shorter time" in finding.remedy for finding in asked):  # both cannot be had
        asked = [finding for finding in asked if not finding.remedy.startswith("Train longer: ")]
    remedies = [
        Step(finding.sentence.split(". ")[0], finding.remedy, _command(files, finding.remedy))
        for finding in asked
    ]
    remedies.sort(key=lambda step: not _LOOK.search(step.command))
    steps = [*_saved(files), *remedies, *_scored(files), *_gains(files, found)]
    kept: list[Step] = []
    for step in steps:
        if step.what not in {other.what for other in kept}:
            said = step.command in {other.command for other in kept}
            kept.append(Step(step.why, step.what, "" if said else step.command))
    return kept[:_MOST]


def place(run: Row) -> str:
    """The run folder as its command named it, else `RUN`; quoted for a shell."""
    folder = _folder(run)
    return _quoted(f"{folder}/best" if folder != RUN and _of_study(run) else folder)


def _folder(run: Row) -> str:
    """What the command of a run says after --run: its own folder, or that of its study."""
    words = [str(word) for word in items(run, "command")]
    for i, word in enumerate(words):
        if word == "--run" and i + 1 < len(words):
            return words[i + 1].rstrip("/\\") or "/"
        if word.startswith("--run="):
            return word.removeprefix("--run=").rstrip("/\\") or "/"
    return RUN


def _of_study(run: Row) -> bool:
    """Whether a run is the last training of a study."""
    return items(run, "command")[1:2] == ["tune"]


def source_of(run: Row) -> str:
    """The images as they were named, quoted for a shell."""
    return _quoted(str(run.get("source") or "SOURCE"))


def again(run: Row, *more: str, tuning: Row | None = None) -> str:
    """The command of the run for a folder beside its own, with `more` options after it.

    Where these say how many images to see, they take the place of the old length. Of a study
    (`tuning`: its record) it is the command that trains what was found.
    """
    length = ("--budget", "--images") if "--images" in more else ()
    rest = iter([str(word) for word in items(run, "command")][2:])
    kept = []
    for word in rest:
        name, _, given = word.partition("=")
        if name in _KEPT:
            kept.append(name)
        elif name.startswith("--") and name not in _ONCE:
            value = given or next(rest, "")
            if name != "--run" and name not in length:
                kept += [name, value]
    if items(run, "command")[1:2] != ["train"]:
        kept = ["--preset", str(run["preset"])] if run.get("preset") else []
    kept += [
        word for name, value in tuned(tuning or {}).items() for word in ("--set", pair(name, value))
    ]
    folder = _quoted(_folder(run) + "-next")
    head = ["poise", "train", source_of(run), "--run", folder]
    return " ".join([*head, *[_quoted(word) for word in [*kept, *more]]])


def _command(files: RunFiles, remedy: str) -> str:
    """What carries out a remedy, as far as its words name it."""
    run, where = files.run, place(files.run)
    if remedy.startswith("Resume"):
        if _of_study(run):
            return f"poise tune {source_of(run)} --run {_quoted(_folder(run))} --resume"
        return f"poise train {source_of(run)} --run {where} --resume"
    if "The data" in remedy:
        return f"poise audit {source_of(run)}"
    if remedy.startswith(("Read the last incident", "See the incidents")):
        return f"poise doctor {where}"
    options = []
    seen = run.get("images_seen")
    if re.search(r"\b[Tt]rain longer|twice its value", remedy) and is_number(seen) and seen > 0:
        options += ["--images", str(int(2 * seen))]
    for name, value in _SETTING.findall(remedy):
        options += ["--set", f"{name}={value.rstrip('.')}"]
    return again(run, *options, tuning=files.tuning) if options else ""


def _saved(files: RunFiles) -> list[Step]:
    if files.run.get("status") not in ("failed", "stopped"):
        return []
    command = f"poise doctor {place(files.run)}"
    return [Step("The run did not reach its end.", "Ask what happened, and why.", command)]


def _scored(files: RunFiles) -> list[Step]:
    splits = {score.get("split") for score in files.scores}
    where = place(files.run)
    if not splits and files.run.get("status") == "finished":
        told = "Draw samples and score them."
        return [Step("No score says how good the samples are.", told, f"poise evaluate {where}")]
    return []


def _gains(files: RunFiles, found: Sequence[Finding]) -> list[Step]:
    """What costs no or little training and was not tried; of a run that has finished only."""
    if files.run.get("status") != "finished" or not files.scores:
        return []
    where, source, steps = place(files.run), source_of(files.run), []
    chosen = files.choices or {}
    if "weights" not in chosen:
        why = "The length of the average was chosen by validation error alone."
        steps.append(Step(why, "Choose the average by samples.", f"poise ema sweep {where}"))
    if "guidance" not in chosen and files.tuning is None:
        why = "Samples are drawn without guidance."
        steps.append(Step(why, "See whether guidance helps.", f"poise guide {where}"))
    if files.tuning is None and any(finding.severity <= WEAK for finding in found):
        why = "They were not searched for these images."
        steps.append(Step(why, "Search the settings.", f"poise tune {source} --budget 2h"))
    if not any(score.get("split") == "test" for score in files.scores):
        why = "They have not been looked at, so they can give an honest last word."
        what = "Score against the test images once, when nothing is going to change any more."
        steps.append(Step(why, what, f"poise evaluate {where} --split test"))
    return steps


def _quoted(word: str) -> str:
    return shlex.quote(visible(word, 1000))
