"""The story of a run on one page: each section is one function over the files of the run folder.

The page is a function of the folder alone: deleting it and writing it again gives the same bytes.
"""

import json
from pathlib import Path
from typing import Any

from poise.artifacts import RunDir, write_bytes
from poise.config import documented, from_toml
from poise.errors import PoiseError
from poise.report import curves, metrics, page, verdict
from poise.report.data import data
from poise.report.folder import Row, RunFiles, items, read_run, section
from poise.report.incidents import incidents
from poise.report.page import Html
from poise.report.pictures import embed
from poise.report.words import count, is_number, number, plain, plural, seconds, sentence
from poise.settings import Config

_LARGE, _SMALL = 700_000, 150_000  # bytes of one picture: the page must stay easy to send
_GRIDS = 6


def write_report(run: RunDir) -> Path:
    """Read the run folder, write `report.html` into it, and return its path.

    Works at any moment of a run: what is not there yet is said in words.

    Raises:
        ArtifactError: the folder has no readable run.json, or the page cannot be written.
    """
    files = read_run(run)
    found = verdict.findings(files)
    sections = [
        ("short", "In short", _in_short(found)),
        ("samples", "Samples", _samples(files)),
        ("scores", "Scores", _scores(files)),
        ("weak", "What is weak, and what to do", _remedies(found)),
        ("data", "The data", data(files.audit, section(files.run, "data"))),
        ("training", "Training", curves.training(files)),
        ("validation", "Validation error by noise level", curves.validation(files)),
        ("speed", "Speed", curves.speed(files)),
        ("incidents", "Incidents and decisions", incidents(files)),
        ("settings", "Settings", _settings(files)),
        ("provenance", "Environment and provenance", _provenance(files)),
        ("closest", "Closest pairs", _closest(files)),
    ]
    body = page.join(
        [
            _title(files.run),
            page.contents((anchor, title) for anchor, title, _ in sections),
            *[page.section(anchor, title, parts) for anchor, title, parts in sections],
        ]
    )
    write_bytes(run.report, page.document(f"Poise: {_name(files.run)}", body))
    return run.report


def _name(run: Row) -> str:
    source = str(run.get("source") or "unnamed images").rstrip("/\\")
    return source.replace("\\", "/").rsplit("/", 1)[-1] or source


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
    title = Html(f"<h1>{page.text(_name(run))}</h1>")
    return page.join([title, page.paragraph(lead, "lead")])


def _in_short(found: list[verdict.Finding]) -> list[Html]:
    shown = verdict.in_short(found)
    return [page.verdict((f.severity, verdict.WORDS[f.severity], f.sentence) for f in shown)]


def _samples(files: RunFiles) -> list[Html]:
    if not files.grids:
        return [page.absent("No samples have been drawn yet.")]
    if files.scored is not None:
        return [*_scored(files.scored), *_over_training(files.grids)]
    seen, path = files.grids[-1]
    last = embed(path, _LARGE)
    when = f"after {plural(seen, 'image')} seen"
    parts = [
        page.picture(
            last,
            "large",
            f"Grid of samples {when}",
            f"Samples {when}, none chosen: look for variety, and for shapes that do not belong.",
        )
        if last
        else page.absent(f"{path.name} cannot be read.")
    ]
    return [*parts, *_over_training(files.grids[:-1])]


def _scored(path: Path) -> list[Html]:
    image = embed(path, _LARGE)
    if image is None:
        return [page.absent(f"{path.name} cannot be read.")]
    words = (
        "The first of the samples that were scored, none chosen, in the order of their classes: "
        "look for variety, and for shapes that do not belong."
    )
    return [page.picture(image, "large", "Samples that were scored", words)]


def _over_training(earlier: list[tuple[int, Path]]) -> list[Html]:
    parts: list[Html] = []
    most = _GRIDS - 1
    if len(earlier) > most:
        earlier = [earlier[i * (len(earlier) - 1) // (most - 1)] for i in range(most)]
    small = []
    for seen, path in earlier:
        image = embed(path, _SMALL)
        words = f"{plural(seen, 'image')} seen"
        small.append(
            page.picture(image, "small", f"Samples at {words}", f"{words}.")
            if image
            else page.absent(f"{path.name} cannot be read.")
        )
    if small:
        parts += [
            page.heading("Over training"),
            page.grids(small),
            page.paragraph(
                "Every grid starts from the same noise, so one place in the grid is one image "
                "taking shape.",
                "soft",
            ),
        ]
    return parts


def _scores(files: RunFiles) -> list[Html]:
    if not files.scores:
        return [page.absent("The samples have not been scored yet.")]
    parts = [
        page.paragraph(
            "“Real images” is what real images score in place of the samples, at the same counts: "
            "the best value that can be expected.",
            "soft",
        )
    ]
    for scores in reversed(files.scores):
        parts += _score_table(scores)
    return parts


def _score_table(scores: Row) -> list[Html]:
    split = {"val": "validation images", "test": "test images"}.get(
        str(scores.get("split")), "held-out images"
    )
    table = section(scores, "metrics")
    rows, sizes = [], ""
    for name in table:
        row = section(table, name)
        sizes = sizes or " against ".join(count(n) for n in items(row, "n"))
        told = metrics.meaning(name, row.get("better"))
        rows.append((metrics.title(name), number(row.get("value")), number(row.get("real")), told))
    sampler, features = section(scores, "sampler"), section(scores, "features")
    how = (
        f"{plural(scores.get('samples'), 'sample')} after "
        f"{plural(scores.get('images_seen'), 'image')} seen, "
        f"weights {scores.get('weights', 'not known')}; "
        f"sampler {sampler.get('name', 'not known')}, {number(sampler.get('steps'))} steps; "
        f"seed {number(scores.get('seed'))}; "
        f"features {features.get('name', 'not known')} "
        f"({plural(features.get('dimensions'), 'dimension')}, "
        f"digest {str(features.get('digest', 'not known'))[:12]}); "
        f"counts {sizes or 'not known'}; took {seconds(scores.get('seconds'))}."
    )
    copying = section(scores, "copying")
    parts = [
        page.heading(f"Against {split}"),
        page.table(("Score", "Samples", "Real images", "What it says"), rows, "tnnw")
        if rows
        else page.absent("No score could be computed."),
        page.paragraph(how, "soft"),
        *[page.paragraph(f"Caution: {sentence(plain(w))}") for w in items(scores, "warnings")],
    ]
    if copying:
        facts = [(key.replace("_", " "), plain(value)) for key, value in copying.items()]
        parts.append(
            page.details(
                "Test for copies, in full", [page.table(("Copying", "Value"), facts, "tw")]
            )
        )
    return parts


def _remedies(found: list[verdict.Finding]) -> list[Html]:
    rows = [(f.sentence, f.remedy) for f in found if f.remedy]
    if not rows:
        return [page.absent("Nothing that these files show calls for a change.")]
    return [page.advice(rows)]


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
    usual = {key: value for key, value, _ in documented(Config())}
    rows = [(key, _exact(value), told) for key, value, told in documented(config)]
    values = {key: value for key, value, _ in documented(config)}
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
    ]
    shown = page.code(" ".join(str(part) for part in command)) if command else Html("")
    return [shown, page.table(("Fact", "Value"), rows, "tw")]


def _closest(files: RunFiles) -> list[Html]:
    if files.closest is None:
        return [
            page.absent("No samples have been compared with their nearest training images yet.")
        ]
    image = embed(files.closest, _LARGE)
    if image is None:
        return [page.absent(f"{files.closest.name} cannot be read.")]
    return [
        page.picture(
            image,
            "large",
            "Pairs of a sample and its nearest training image",
            "Above, samples; below each of them the training image nearest to it, closest pairs "
            "first. Pairs that look the same are copies.",
        )
    ]
