"""The page about a study: what to set, how sure that is, what did not matter, and how it went.

The page is a function of the study's folder alone and may be written while the study runs.
"""

import shlex
from pathlib import Path
from typing import Any

from poise.artifacts import write_bytes
from poise.report import page, studyfigures, studymaps
from poise.report.folder import Row, items, read_record
from poise.report.page import Html, visible
from poise.report.pictures import embed
from poise.report.studychoice import bars, direction, gain, in_short, table, what_to_set
from poise.report.studyrecord import LOST, Study, Trial, read_study, shown
from poise.report.words import is_number, listed, number, plain, plural, seconds

_SMALL = 120_000  # bytes of one picture
_BEST = 4  # trials whose samples are shown
_FIRST, _MOST = 20, 1_000  # rows of the table that stand open, and rows altogether
_SLICES = 24  # most settings with a figure of their own
_STRONG, _LOOSE = 0.7, 0.4  # rank correlations
_STYLE = """
.slices{display:grid;gap:0 20px;grid-template-columns:repeat(auto-fill,minmax(min(300px,100%),1fr))}
.slices .plot{height:200px}.slices h3{margin:.6rem 0 0}.slices figure{margin:.4rem 0}
td.w{white-space:pre-line}
@media (max-width:560px){td.w{min-width:8rem}
table[class^=ntt],[class^=ntt] thead,[class^=ntt] tbody{display:block}
[class^=ntt] tr{display:flex;flex-wrap:wrap;gap:0 .9rem;border-bottom:1px solid var(--line)}
[class^=ntt] td,[class^=ntt] th{border:0;padding-right:0;min-width:0}
[class^=ntt] td.w{flex-basis:100%;color:var(--soft);padding-top:0}[class^=ntt] th.w{display:none}}
"""
_MARKS = "a grey triangle was stopped, a red cross diverged, an amber square failed."
_STATUS = {
    "finished": "the study finished",
    "running": "the study is still going",
    "interrupted": "the study was interrupted",
    "failed": "the study failed",
}
_ROLES = {"default": "the preset as it is", "search": "search", "repeat": "repeats, other seeds"}


def write_study(folder: Path) -> Path:
    """Read `study.json` and the pictures of the trials, write `study.html`, give its path.

    Raises:
        ArtifactError: there is no readable study.json, or the page cannot be written.
    """
    study = read_study(read_record(folder / "study.json", "a study"))
    sections = [
        ("short", "In short", in_short(study)),
        ("set", "What to set", what_to_set(study)),
        ("gain", "Default against best", gain(study)),
        ("samples", "Samples of the best trials", _samples(study, folder)),
        ("history", "How the search went", _history(study)),
        ("proxy", "Stopping early", _proxy(study)),
        ("importance", "What mattered", _importance(study)),
        ("slices", "Each setting", _slices(study)),
        ("together", "Settings and metrics together", _together(study)),
        ("lost", "What failed and diverged", _lost(study)),
        ("trials", "All trials", _trials(study)),
        ("provenance", "Provenance, and where the time went", _provenance(study)),
    ]
    body = page.sectioned([Html("<h1>Tuning</h1>"), page.paragraph(_lead(study), "lead")], sections)
    write_bytes(folder / "study.html", page.document("Poise: tuning", body, style=_STYLE))
    return folder / "study.html"


def study_section(study: Row) -> list[Html]:
    """What the report of a run says of the study that chose its settings."""
    found = read_study(study)
    return [*in_short(found), *table(found), *bars(found)]


def _lead(study: Study) -> str:
    record, plan = study.record, study.plan
    sampler = f" by {visible(plan['sampler'], 40)}" if plan.get("sampler") else ""
    preset = f"{visible(plan['preset'], 60)} preset" if plan.get("preset") else "preset"
    status = _STATUS.get(str(record.get("status")), "the state of the study is not known")
    return (
        f"Settings searched{sampler} around the {preset} on "
        f"{visible(record.get('source') or 'unnamed images')}: {_amounts(study)} in "
        f"{seconds(record.get('seconds'))}; {status}."
    )


def _amounts(study: Study) -> str:
    """`41 trials (30 complete, 9 stopped, 2 diverged)`."""
    states = [trial.state or "of unknown state" for trial in study.trials]
    counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(states)]
    return plural(len(states), "trial") + (f" ({listed(counts, 8)})" if counts else "")


def _samples(study: Study, folder: Path) -> list[Html]:
    """The newest grids of the final run, of the best trials and of the default."""
    metric = study.metrics[0]
    ranked = study.ranked(metric)
    default = [trial for trial in study.searched if trial.role == "default"][:1]
    chosen = [trial for trial in ranked if trial.role != "default"][:_BEST]
    final = ", ".join(f"{name.rsplit('.', 1)[-1]} {shown(v)}" for name, v in study.chosen.items())
    told = [(folder / "best", "the final run", visible(final))]
    for trial in [*chosen, *default]:
        value = trial.values.get(metric.name)
        reached = "" if value is None else f"{metric.title} {number(value)}; "
        told.append((folder / "trials" / f"{trial.number:04d}", trial.title, reached + _set(trial)))
    shown_parts = []
    for run, name, words in told:
        image = next((i for path in _grids(run) if (i := embed(path, _SMALL)) is not None), None)
        if image:
            caption = f"{name[:1].upper()}{name[1:]}. {words}"
            shown_parts.append(page.picture(image, "large", f"Samples of {name}", caption))
    if not shown_parts:
        return [page.absent("No trial has left samples.")]
    words = "The newest grid of each; the best trial by the first metric comes first."
    return [page.note(words), page.pair(shown_parts)]


def _grids(run: Path) -> list[Path]:
    """Grids of samples of a run, newest first."""
    found = [path for path in (run / "samples").glob("*.png") if path.stem.isdecimal()]
    return sorted(found, key=lambda path: -int(path.stem))


def _set(trial: Trial) -> str:
    """`lr 0.02, batch_size 64`."""
    pairs = [f"{name.rsplit('.', 1)[-1]} {shown(value)}" for name, value in trial.point.items()]
    return visible(", ".join(pairs))


def _history(study: Study) -> list[Html]:
    plots = []
    for metric in study.metrics:
        words = "Each point is a trial, the line the best so far. " + direction(metric)
        by_number = studyfigures.history(study, metric, by_time=False)
        by_time = studyfigures.history(study, metric, by_time=True)
        plots.append(page.plot(metric.title, by_number, words))
        words = "The same over time, in the order in which trials ended."
        plots.append(page.plot(f"{metric.title} over time", by_time, words))
    words = "Trials that ended without a value stand in the strip below the figure."
    lost = any(trial.state in LOST for trial in study.trials)
    return [page.note(words) if lost else Html(""), page.pair(plots)]


def _proxy(study: Study) -> list[Html]:
    words = (
        "The mean over middle noise levels of the logarithm of the validation error, as an error; "
        "lower is better. Trials that look worse are stopped early, and their lines end; an error "
        "far above the others lies outside the figure."
    )
    figure = studyfigures.proxies(study)
    return [
        page.paragraph(_agreement(study.record.get("proxy_agreement"))),
        page.plot("Validation error of each trial", figure, words),
    ]


def _agreement(value: Any) -> str:
    """What the rank correlation of proxy and metric means for trials that were stopped."""
    if not is_number(value):
        return (
            "Whether the validation error orders trials as the metric does is not known: too few "
            "came to their end."
        )
    known = f" (rank correlation {value:.2f})."
    if value >= _STRONG:
        told = "The validation error orders trials much as the metric does" + known
        return f"{told} Little was lost by stopping trials early."
    if value >= _LOOSE:
        told = "The validation error orders trials only roughly as the metric does" + known
        return f"{told} A good trial may have been stopped."
    told = "The validation error says little of the metric here" + known
    return f"{told} Good trials may have been stopped; a longer first stretch would tell more."


def _importance(study: Study) -> list[Html]:
    return bars(study) or [page.absent("Too few trials have ended to say what mattered.")]


def _slices(study: Study) -> list[Html]:
    metric = study.telling
    weight = dict(study.importance)
    order = sorted(study.dimensions, key=lambda dimension: -weight.get(dimension.name, 0.0))
    plots = []
    for dimension in order[:_SLICES]:
        own = study.metrics[0] if dimension.free else metric
        figure = studyfigures.slices(study, dimension, own)
        if figure["data"]:
            words = "All that was tried within the trials." if dimension.free else ""
            plots.append(page.plot(dimension.title, figure, words))
    if not plots:
        return [page.absent("No trial has a value yet.")]
    words = (
        f"{metric.title} of each trial over one setting, the most important setting first. The "
        "star is the default. At the lower edge stand trials without a value, or one far off: "
        f"{_MARKS}"
    )
    return [page.note(words), Html(f'<div class="pair slices">{page.join(plots)}</div>')]


def _together(study: Study) -> list[Html]:
    metric, telling = study.metrics[0], study.telling
    parts = []
    heat = studymaps.cells(study, metric)
    if heat is not None:
        words = f"Blue is best. Without a value: {_MARKS}"
        names = " and ".join(dimension.title for dimension in study.trained[:2])
        parts.append(page.plot(f"{metric.title} over {names}", heat, words))
    for other in study.metrics[1:]:
        words = "On the line, no trial is better in one of the two without being worse in another."
        title = f"{other.title} against {metric.title}"
        parts.append(page.plot(title, studyfigures.front(study, metric, other), words))
    words = (
        "Each line is a trial, from its settings to its value at the right; a line passes over a "
        "setting that its trial did not have. Where the lines of the best fifth gather, the "
        "setting matters."
    )
    figure = studymaps.parallel(study, telling)
    title = telling.title[:1].lower() + telling.title[1:] if telling != metric else telling.title
    return [*parts, page.plot(f"From the settings to {title}", figure, words)]


def _lost(study: Study) -> list[Html]:
    groups: dict[tuple[str, str], list[int]] = {}
    for trial in study.trials:
        if trial.state in ("diverged", "failed"):
            key = trial.state, trial.diagnosis or "no diagnosis"
            groups.setdefault(key, []).append(trial.number)
    if not groups:
        return [page.absent("No trial failed or diverged.")]
    rows = [
        (state, listed(numbers, 8), told)
        for (state, told), numbers in sorted(groups.items(), key=lambda pair: -len(pair[1]))
    ]
    return [page.table(("State", "Trials", "Diagnosis"), rows[:_FIRST], "ttw")]


def _trials(study: Study) -> list[Html]:
    if not study.trials:
        return [page.absent("No trial has begun.")]
    heads = ("Trial", "Role", "State", *[metric.title for metric in study.metrics], "Time")
    kinds = "ntt" + "n" * len(study.metrics) + "nw"
    rows = [_row(study, trial) for trial in study.trials[:_MOST]]
    heads = (*heads, "Settings, diagnosis")
    parts = [page.table(heads, rows[:_FIRST], kinds)]
    if len(rows) > _FIRST:
        words = f"The other {len(rows) - _FIRST:,} trials"
        parts.append(page.details(words, [page.table(heads, rows[_FIRST:], kinds)]))
    if len(study.trials) > _MOST:
        parts.append(page.note(f"The first {_MOST:,} trials; study.json holds all."))
    return parts


def _row(study: Study, trial: Trial) -> tuple[str, ...]:
    values = [
        number(trial.values[metric.name]) if metric.name in trial.values else "–"
        for metric in study.metrics
    ]
    role = trial.role
    if role == "repeat":
        role += f" of {shown(trial.of)}, seed {shown(trial.seed)}"
    time = seconds(trial.cost) if trial.cost else "–"
    told = "\n".join(words for words in (_set(trial), trial.diagnosis) if words)
    return (str(trial.number), role, trial.state, *values, time, told)


def _provenance(study: Study) -> list[Html]:
    record, command = study.record, items(study.record, "command")
    spent: dict[str, float] = {}
    for trial in study.trials:
        spent[trial.role] = spent.get(trial.role, 0.0) + trial.cost
    times = [(_ROLES.get(role, role), seconds(value)) for role, value in spent.items()]
    whole = record.get("seconds")
    rest = whole - sum(spent.values()) if is_number(whole) else 0.0
    if study.plan.get("workers") == 1 and rest > 0:
        times.append(("the final run and all else", seconds(rest)))
    times.append(("from start to end", seconds(whole)))
    plan = [
        (visible(key.removesuffix("_seconds").replace("_", " "), 80), _fact(key, value))
        for key, value in study.plan.items()
        if value is not None
    ]
    facts = [
        ("source", visible(record.get("source") or "not known")),
        ("created", visible(record.get("created") or "not known")),
    ]
    return [
        page.code(visible(shlex.join(str(part) for part in command), 2_000))
        if command
        else Html(""),
        page.table(("Time", "Spent"), times, "tn"),
        page.table(("Fact", "Value"), [*facts, *plan], "tw"),
    ]


def _fact(key: str, value: Any) -> str:
    return (
        seconds(value) if key.endswith("_seconds") and is_number(value) else visible(plain(value))
    )
