"""The story of a run on one page: each section is one function over the files of the run folder.

The page is a function of the folder alone: deleting it and writing it again gives the same bytes.
"""

import json
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, write_bytes
from poise.config import documented, from_toml, values_of
from poise.errors import PoiseError
from poise.report import curves, page, progress, scores, verdict
from poise.report.card import model_card, name_of_run
from poise.report.data import data
from poise.report.fidelity import chosen, fidelity
from poise.report.finding import GOOD, WORDS, Finding
from poise.report.folder import Row, RunFiles, items, read_run, section
from poise.report.incidents import incidents
from poise.report.page import Html
from poise.report.samples import samples
from poise.report.steps import RUN, next_steps
from poise.report.study import study_section
from poise.report.words import count, is_number, number, plain, plural, seconds
from poise.settings import Config

_MOST = 6  # findings of one group in sight


def write_report(run: RunDir) -> Path:
    """Read the run folder, write `report.html` and `model-card.md` into it, give the page's path.

    Works at any moment of a run: what is not there yet is said in words.

    Raises:
        ArtifactError: the folder has no readable run.json, or the page cannot be written.
    """
    files = read_run(run)
    found = verdict.findings(files)
    sections = [
        ("verdict", "The verdict", _verdict(files, found)),
        ("samples", "Samples", samples(files)),
        ("scores", "Scores", _scores(files)),
        ("closest", "Worst, best, missing, closest", _closest(files)),
        *([("tuning", "Tuning", study_section(files.tuning))] if files.tuning else []),
        ("data", "The data", data(files.audit, section(files.run, "data"))),
        ("training", "Training", curves.training(files)),
        ("validation", "Validation error by noise level", curves.validation(files)),
        ("speed", "Speed", curves.speed(files)),
        ("incidents", "Incidents and decisions", incidents(files)),
        ("settings", "Settings", _settings(files)),
        ("provenance", "Environment and provenance", _provenance(files)),
    ]
    body = page.sectioned([_title(files.run)], sections)
    write_bytes(run.report, page.document(f"Poise: {name_of_run(files.run)}", body))
    write_bytes(run.root / "model-card.md", model_card(files, found))
    return run.report


def _title(run: Row) -> Html:
    facts, model = section(run, "data"), section(run, "model")
    preset = f"{run['preset']} model" if run.get("preset") else "model"
    if is_number(model.get("parameters")):
        preset += f" of {plural(model['parameters'], 'parameter')}"
    side, channels = facts.get("resolution"), facts.get("channels")
    kind = (
        f"{number(side)}\u00a0×\u00a0{number(side)} pixels" if is_number(side) else "size not known"
    )
    kind += {1: ", grey", 3: ", colour"}.get(channels if isinstance(channels, int) else 0, "")
    names = items(facts, "label_names")
    kind += f", {plural(len(names), 'class', 'classes')}" if names else ", no classes"
    images = plural(facts["images"], "image") if is_number(facts.get("images")) else "images"
    status = {
        "finished": "the run finished",
        "running": "the run is still going",
        "interrupted": "the run was interrupted",
        "failed": "the run failed",
        "stopped": "the guard stopped the run",
    }.get(str(run.get("status")), "the state of the run is not known")
    lead = (
        f"A {preset}, trained on {images} of {run.get('source') or 'unnamed images'} ({kind}) for "
        f"{seconds(run.get('seconds'))}, with {plural(run.get('images_seen'), 'image')} seen; "
        f"{status}."
    )
    title = Html(f"<h1>{page.text(name_of_run(run))}</h1>")
    return page.join([title, page.paragraph(lead, "lead")])


def _verdict(files: RunFiles, found: list[Finding]) -> list[Html]:
    """What is good, what is weak, what to do next."""
    good = [finding for finding in found if finding.severity == GOOD]
    other = [finding for finding in found if finding.severity != GOOD]
    steps = next_steps(files, found)
    told = [(step.why, step.what, step.command) for step in steps]
    parts = [
        page.heading("What is good"),
        *_group(good, "Nothing that these files show can be praised yet."),
        page.heading("What is weak or open"),
        *_group(other, "Nothing that these files show is weak."),
        page.heading("What to do next"),
        page.steps(told) if told else page.absent("Nothing calls for a change."),
    ]
    if any(RUN in step.command.split() for step in steps):
        parts.append(page.note(f"{RUN} stands for the folder of this run."))
    return parts


def _group(found: list[Finding], nothing: str) -> list[Html]:
    """The first few in sight, the others to fold open."""
    if not found:
        return [page.absent(nothing)]
    lines = [(f.severity, WORDS[f.severity], f.sentence) for f in found]
    more = [page.details(f"{len(lines) - _MOST} more", [page.verdict(lines[_MOST:])])]
    return [page.verdict(lines[:_MOST]), *(more if len(lines) > _MOST else [])]


def _scores(files: RunFiles) -> list[Html]:
    if not files.scores:
        return [page.absent("The samples have not been scored yet.")]
    parts = [
        page.paragraph(
            "“Real images” is what real images score in place of the samples, at the same counts: "
            "the best value that can be expected. Under a value stands its 95 % interval.",
            "soft",
        )
    ]
    *earlier, judged = files.scores
    parts += _record(judged)
    parts += [*progress.snapshots(files.snapshots), *progress.tradeoff(files.tradeoff)]
    parts += [] if files.tradeoff else fidelity(files.snapshots)
    parts += chosen(files.choices)
    for record in reversed(earlier):  # without figures, which cannot be drawn while folded
        folded = [*scores.tables(record), *scores.cautions(record), *scores.copying(record)]
        parts.append(page.details(_against(record), [*folded, scores.protocol(record)]))
    return parts


def _record(record: Row) -> list[Html]:
    """Everything that one file of scores holds; what it means is said in the verdict."""
    return [
        page.heading(_against(record)),
        *scores.tables(record),
        *scores.cautions(record),
        *scores.classes(record),
        *scores.denoising(record),
        *scores.copying(record),
        scores.protocol(record),
    ]


def _against(record: Row) -> str:
    split = {"val": "validation images", "test": "test images"}.get(
        str(record.get("split")), "held-out images"
    )
    return f"Against {split}"


def _settings(files: RunFiles) -> list[Html]:
    if files.config is None:
        return [page.absent("The settings have not been written yet.")]
    try:
        config = from_toml(files.config)
    except PoiseError:
        words = (
            "This version of Poise does not know all of these settings; here they are as they are."
        )
        return [page.paragraph(words), page.details("config.toml", [page.code(files.config)])]
    usual, values = values_of(Config()), values_of(config)
    rows = [(key, _exact(value), told) for key, value, told in documented(config)]
    changed = [row for row in rows if values[row[0]] != usual[row[0]]]
    same = [row for row in rows if values[row[0]] == usual[row[0]]]
    heads = ("Setting", "Value", "Meaning")
    first = (
        page.table(heads, changed, "tww")
        if changed
        else page.absent("Every setting has its default value.")
    )
    words = f"{len(changed)} of {len(rows)} settings differ from the defaults"
    return [
        page.details(
            words, [first, page.heading("At their defaults"), page.table(heads, same, "tww")]
        )
    ]


def _exact(value: Any) -> str:
    """A setting as it could be typed again, not rounded."""
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)


def _provenance(files: RunFiles) -> list[Html]:
    run = files.run
    facts, model = section(run, "data"), section(run, "model")
    command = items(run, "command")
    budget = run.get("budget_seconds")
    rows = [
        ("source", str(run.get("source") or "not known")),
        ("created", str(run.get("created") or "not known")),
        ("seed", number(run.get("seed"))),
        ("time budget", seconds(budget) if budget is not None else "none"),
        ("images seen", f"{count(run.get('images_seen'))} of {count(run.get('planned_images'))}"),
        ("parameters", count(model.get("parameters"))),
        ("operations per image", count(model.get("flops_per_image"))),
        ("data fingerprint", str(facts.get("fingerprint") or "not known")),
        ("spread of the pixels (σ data)", number(facts.get("sigma_data"))),
        ("mirrored while training", number(facts.get("flip"))),
        *[(key.replace("_", " "), plain(v)) for key, v in section(run, "environment").items()],
        *[(f"SHA-256 of {name}", digest) for name, digest in files.digests.items()],
    ]
    shown = page.code(" ".join(str(part) for part in command)) if command else Html("")
    return [shown, page.table(("Fact", "Value"), rows, "tw"), *_checks(files)]


def _checks(files: RunFiles) -> list[Html]:
    """What was looked at before training."""
    rows = [row for row in items(files.preflight, "checks") if isinstance(row, dict)]
    if not rows:
        return []
    body = [
        (str(row.get("name", "")), str(row.get("verdict", "")), str(row.get("sentence", "")))
        for row in rows
    ]
    return [
        page.heading("Checks before training"),
        page.table(("Check", "Verdict", "What was found"), body, "ttw"),
    ]


def _closest(files: RunFiles) -> list[Html]:
    judged = verdict.judged_scores(files) or {}
    parts = scores.pictures(judged, files.pictures)
    if not (files.pictures / "closest.png").is_file():
        words = "No samples have been compared with their nearest training images yet."
        parts.append(page.absent(words))
    return parts
