"""The model card: what a run's model is, for sharing, in Markdown with a YAML head.

It is made of the same files as the page. Whatever comes from them is written so that neither
Markdown nor HTML nor YAML reads anything in it.
"""

import json
import re
from collections.abc import Iterable, Sequence

from poise.config import from_toml, values_of
from poise.errors import PoiseError
from poise.report import metrics, steps
from poise.report.finding import GOOD, WORDS, Finding
from poise.report.folder import Row, RunFiles, items, section
from poise.report.page import visible
from poise.report.reading import interval, reading_of
from poise.report.words import cause, count, is_number, number, plain, plural, seconds
from poise.settings import Config

# Signs that mean something anywhere; the last three make links of bare addresses.
_SIGNS = re.compile(r"[\\`*_{}\[\]<>#!|~$&@]|:(?=//)|(?<=www)\.")
_FIRST = re.compile(r"^([-+=]|\d+(?=[.)]))")  # a list or the line under a heading
_CLASSES = 30  # named
_INCIDENTS = 20


def name_of_run(run: Row) -> str:
    """The last part of the source's path."""
    source = str(run.get("source") or "unnamed images").rstrip("/\\")
    return source.replace("\\", "/").rsplit("/", 1)[-1] or source


def model_card(files: RunFiles, found: Sequence[Finding]) -> bytes:
    """The card of a run, UTF-8.

    Args:
        files: the run folder, read.
        found: what `verdict.findings` says of it.
    """
    run = files.run
    parts = [
        *_head(run),
        f"# {_line(name_of_run(run))}",
        _what(run),
        "## Data",
        *_data(files),
        "## Training",
        *_training(files),
        "## Scores",
        *_scores(files),
        "## What is weak, and limits",
        *_limits(found),
        "## How to sample",
        *_use(run),
        "## Provenance",
        *_provenance(files),
    ]
    return ("\n\n".join(part for part in parts if part) + "\n").encode("utf-8", errors="replace")


def _safe(value: object, most: int = 300) -> str:
    """Text that Markdown takes as it is: signs with a meaning are escaped, in one line."""
    return _SIGNS.sub(r"\\\g<0>", " ".join(visible(value, most).split()))


def _line(value: object, most: int = 300) -> str:
    """The same as a line of its own, where a number or a dash could begin a list."""
    escaped = _safe(value, most)
    return _FIRST.sub(lambda m: m[1] + "\\" if m[1].isdigit() else "\\" + m[1], escaped)


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [heads, ["---"] * len(heads), *[[_safe(cell) or " " for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _head(run: Row) -> list[str]:
    facts = section(run, "data")
    tags = ["diffusion", "image-generation", "unconditional-image-generation", "poise"]
    if items(facts, "label_names"):
        tags[2] = "class-conditional"
    lines = ["license: fill in", "library_name: poise", "tags:", *[f"- {tag}" for tag in tags]]
    return ["\n".join(["---", *lines, "---"])]


def _what(run: Row) -> str:
    facts, model = section(run, "data"), section(run, "model")
    words = "A diffusion model"
    if run.get("preset"):
        words += f" (preset {_safe(run['preset'])})"
    if is_number(model.get("parameters")):
        words += f" with {plural(model['parameters'], 'parameter')}"
    side, channels = facts.get("resolution"), facts.get("channels")
    if is_number(side):
        kind = {1: "grey ", 3: "colour "}.get(channels if isinstance(channels, int) else 0, "")
        words += f" that draws {kind}images of {number(side)} × {number(side)} pixels"
    names = items(facts, "label_names")
    words += f" in {plural(len(names), 'class', 'classes')}" if names else " without classes"
    return f"{words}, trained with Poise."


def _data(files: RunFiles) -> list[str]:
    facts, audit = section(files.run, "data"), files.audit
    splits = section(facts, "splits")
    rows = [
        ("source", files.run.get("source") or "not known"),
        ("images", count(facts.get("images"))),
        *[(f"split: {name}", count(splits[name])) for name in splits],
        ("fingerprint", facts.get("fingerprint") or "not known"),
        ("mirrored while training", number(facts.get("flip"))),
    ]
    names = [_safe(name, 80) for name in items(facts, "label_names")]
    more = f" and {len(names) - _CLASSES:,} more" if len(names) > _CLASSES else ""
    classes = f"Classes: {', '.join(names[:_CLASSES])}{more}." if names else "No classes."
    if audit is None:
        told = ["The data has not been audited."]
    else:
        lines = [*items(audit, "verdict"), *items(audit, "warnings")]
        told = [_line(line if isinstance(line, str) else plain(line), 600) for line in lines]
        broken = len(items(audit, "unreadable"))
        told += [f"{plural(broken, 'file')} could not be read."] if broken else []
    return [_table(("Fact", "Value"), rows), classes, "What the audit found:", _listed(told)]


def _training(files: RunFiles) -> list[str]:
    run = files.run
    environment, budget = section(run, "environment"), run.get("budget_seconds")
    rows = [
        ("images seen", f"{count(run.get('images_seen'))} of {count(run.get('planned_images'))}"),
        ("time", seconds(run.get("seconds"))),
        ("time budget", seconds(budget) if budget is not None else "none"),
        ("state", run.get("status") or "not known"),
        ("seed", number(run.get("seed"))),
        ("device", f"{plain(environment.get('device'))}, {plain(environment.get('cores'))} cores"),
    ]
    parts = [_table(("Fact", "Value"), rows)]
    changed = _changed(files.config)
    if changed:
        parts += ["Settings that differ from the defaults:", _table(("Setting", "Value"), changed)]
    return [*parts, *_incidents(files)]


def _changed(text: str | None) -> list[tuple[str, str]]:
    if text is None:
        return []
    try:
        config = from_toml(text)
    except PoiseError:
        return [("config.toml", "written by another version of Poise")]
    usual = values_of(Config())
    return [
        (key, "unset" if value is None else json.dumps(value, ensure_ascii=False))
        for key, value in values_of(config).items()
        if value != usual[key]
    ]


def _incidents(files: RunFiles) -> list[str]:
    if not files.incidents:
        return ["No incident was recorded."]
    rows = [
        (
            count(row["images_seen"]),
            row.get("severity"),
            cause(str(row.get("cause") or row.get("kind", ""))),
            cause(str(row.get("action") or "none")),
        )
        for _, row in files.incidents[:_INCIDENTS]
    ]
    more = len(files.incidents) - _INCIDENTS
    table = _table(("Images seen", "Severity", "Incident", "Action"), rows)
    return ["Incidents:", table, *([f"{more:,} more are in events.jsonl."] if more > 0 else [])]


def _scores(files: RunFiles) -> list[str]:
    if not files.scores:
        return ["The samples have not been scored."]
    record = files.scores[-1]
    split = {"val": "validation", "test": "test"}.get(str(record.get("split")), "held-out")
    features, sampler = section(record, "features"), section(record, "sampler")
    amount = _safe(plural(record.get("samples"), "sample"))
    told = (
        f"{amount} against the {split} images. “Real images” is "
        "what real images score in their place at the same counts: the best that can be expected."
    )
    table = section(record, "metrics")
    rows = [_score(name, section(table, name)) for name in table]
    guidance = record.get("guidance")
    protocol = [
        ("features", f"{plain(features.get('name'))}, digest {plain(features.get('digest'))}"),
        ("weights", record.get("weights")),
        ("sampler", ", ".join(plain(sampler[k]) for k in ("name", "steps") if k in sampler)),
        ("guidance", "none" if guidance is None else plain(guidance)),
        ("seed", record.get("seed")),
    ]
    lines = [(key, value) for key, value in protocol if value not in (None, "")]
    return [
        told,
        _table(("Score", "Samples", "95 % interval", "Real images", "Better"), rows),
        "How it was measured:",
        _table(("Fact", "Value"), lines),
        *[f"Caution: {_safe(plain(warning), 600)}" for warning in items(record, "warnings")],
    ]


def _score(name: str, row: Row) -> tuple[object, ...]:
    reading = reading_of(row)
    within = interval(reading).strip(" ()") if reading is not None else ""
    real = number(row["real"]) if row.get("real") is not None else "–"
    return metrics.title(name), number(row.get("value")), within or "–", real, row.get("better")


def _limits(found: Sequence[Finding]) -> list[str]:
    lines = [f"{WORDS[f.severity]}: {_safe(f.sentence, 1000)}" for f in found if f.severity != GOOD]
    good = [_line(f.sentence, 1000) for f in found if f.severity == GOOD]
    fixed = (
        "The model shows what its training images show, in their proportions: what is missing or "
        "seldom there is missing or seldom here. Single samples may repeat training images, also "
        "where no test for copies found any. Scores hold for these images, features and counts."
    )
    parts = [_listed(lines)] if lines else ["Nothing that the files of the run show is weak."]
    return [*parts, *(["What is good:", _listed(good)] if good else []), fixed]


def _use(run: Row) -> list[str]:
    names = items(section(run, "data"), "label_names")
    labels = ", labels=[0]" if names else ""
    option = " --labels 0" if names else ""
    python = [
        "import poise",
        "",
        f'images = poise.load("{steps.RUN}").sample(16{labels}, seed=1)  # uint8 [16, H, W, C]',
    ]
    return [
        f"{steps.RUN} stands for the run folder, or for a snapshot file out of it.",
        f"```sh\npoise sample {steps.RUN} --out new -n 64{option}\n```",
        "```python\n" + "\n".join(python) + "\n```",
    ]


def _provenance(files: RunFiles) -> list[str]:
    environment = section(files.run, "environment")
    command = " ".join(str(word) for word in items(files.run, "command"))
    rows = [
        ("command", command or "not known"),
        ("created", files.run.get("created") or "not known"),
        ("data fingerprint", section(files.run, "data").get("fingerprint") or "not known"),
        *[(f"SHA-256 of {name}", digest) for name, digest in files.digests.items()],
        *[(key.replace("_", " "), plain(value)) for key, value in environment.items()],
    ]
    return [_table(("Fact", "Value"), rows)]
