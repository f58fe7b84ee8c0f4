"""What a study says to set, how sure that is, and what mattered."""

import shlex
from typing import Any

from poise.report import metrics, page, studyfigures
from poise.report.finding import GOOD, NOTE, WEAK, WORDS
from poise.report.folder import Row, items, section
from poise.report.page import Html, visible
from poise.report.studyrecord import Metric, Study, pair, shown, tuned
from poise.report.words import is_number, number, plain, plural, share

_VERDICTS = {"better": GOOD, "worse": WEAK}
_PHASES = {
    "search": "It was searching.",
    "repeats": "It was repeating the finalists with other seeds.",
    "final": "It was training the best settings to the end.",
}


def in_short(study: Study) -> list[Html]:
    """The sentences of the study; of an unfinished one, what there is so far."""
    told = [visible(s, 800) for s in items(study.best, "sentences") if isinstance(s, str)]
    sure = _VERDICTS.get(str(study.best.get("verdict")), NOTE)
    levels = [sure if i == 1 else NOTE for i in range(len(told))]
    lines = [(level, WORDS[level], words) for level, words in zip(levels, told, strict=True)]
    errors = [visible(plain(error), 400) for error in items(study.record, "errors")]
    lines += [(WEAK, WORDS[WEAK], words) for words in errors]
    parts = [page.verdict(lines)] if lines else []
    if study.record.get("status") != "finished" or not told:
        parts.append(page.paragraph(_so_far(study)))
    return parts


def _so_far(study: Study) -> str:
    """What an unfinished study has to say."""
    where = _PHASES.get(str(study.record.get("phase")), "")
    metric = study.metrics[0]
    ranked = study.ranked(metric)
    if not ranked:
        return f"{where} No trial has a value yet.".strip()
    value = ranked[0].values[metric.name]
    best = f"Best so far is {ranked[0].title} with {metric.title} {number(value)}"
    default = next((t.values[metric.name] for t in ranked if t.role == "default"), None)
    beside = "" if default is None else f"; the default has {number(default)}"
    return f"{where} {best}{beside}. One trial each: a part of this may be luck.".strip()


def what_to_set(study: Study) -> list[Html]:
    """What differs from the preset, and the commands to type."""
    if not study.best:
        return [page.absent("The study has not chosen settings yet.")]
    lines = [f"poise train {_word(study.record.get('source') or 'SOURCE')}"]
    if isinstance(study.plan.get("preset"), str):
        lines[0] += f" --preset {_word(study.plan['preset'])}"
    own = section(study.plan, "overrides")
    same = study.default
    for name, value in tuned(study.record).items():
        if name in own or name not in same or same[name] != value:
            lines.append(f"--set {_word(pair(name, value))}")
    if len(lines) == 1:
        words = "No setting has to be changed; to train again:"
    else:
        words = "To train again with what the study chose, with --budget or --images as you like:"
    return [
        *table(study),
        page.paragraph(words),
        page.code(" \\\n  ".join(lines)),
        *_sample_command(study),
    ]


def _word(value: Any) -> str:
    """One word of a command, as a shell reads it."""
    return shlex.quote(visible(value))


def _sample_command(study: Study) -> list[Html]:
    """How to draw samples, from the last training or from the trial itself."""
    folder = study.best.get("folder")
    if not isinstance(folder, str):
        return []
    free = section(study.best, "free")
    options = [
        (option, free[name])
        for option, name in (
            ("--weights", "weights"),
            ("--guidance", "guidance"),
            ("--steps", "sampling.steps"),
            ("--solver", "sampling.solver"),
        )
        if free.get(name) is not None
    ]
    words = [f"{option} {_word(str(value).removeprefix('ema_'))}" for option, value in options]
    first = f"poise sample {_word(f'RUN/{folder}')} --out samples"
    what = "the final run" if folder == "best" else "the trial that was trained so"
    return [
        page.paragraph(f"To draw samples from {what}, in the folder RUN of this study:"),
        page.code(" \\\n  ".join([first, *words])),
    ]


def table(study: Study) -> list[Html]:
    """Setting, the preset's value, the best value; what is to be changed comes first."""
    default, chosen = study.default, study.chosen
    rows = [
        (name, shown(default[name]) if name in default else "–", shown(chosen[name]))
        for name in chosen
    ]
    changed = [row for row in rows if row[1] != row[2]]
    kept = [(name, was, "as it is") for name, was, now in rows if was == now]
    whole = [(visible(name, 80), was, now) for name, was, now in changed + kept]
    return [page.table(("Setting", "Default", "Best"), whole, "ttt")] if whole else []


def bars(study: Study) -> list[Html]:
    """How much each setting explains; nothing while it is not known."""
    words = (
        "How much of the order of the trials after the first stretch of training each setting "
        "explains, of what all of them explain together (fANOVA). It says how much a setting can "
        "change within the range that was searched, not in which direction."
    )
    if not study.importance:
        return []
    return [page.plot("Importance of the settings", studyfigures.importance(study), words)]


def gain(study: Study) -> list[Html]:
    """The default and the best over the same seeds, and their difference."""
    told = section(study.best, "repeats")
    differences = section(study.best, "difference")
    rows, plots = [], []
    for metric in study.metrics:
        both = [
            [float(v) for v in items(section(told, name), metric.name) if is_number(v)]
            for name in ("default", "best")
        ]
        means = [number(sum(own) / len(own)) if own else "–" for own in both]
        if any(both):
            rows.append((metric.title, *means, _difference(section(differences, metric.name))))
            words = "Each line is one seed, used for both; the short bar is the mean. "
            words += direction(metric)
            plots.append(page.plot(metric.title, studyfigures.repeats(study, metric), words))
    if not rows:
        words = "The best settings have not been compared with the default over several seeds."
        return [page.absent(words)]
    heads = ("Metric", "Default", "Best", "Difference")
    caution = (
        "Means over the seeds. The interval of the difference covers 95 %; where it includes zero, "
        "the gain may be luck."
    )
    return [page.table(heads, rows, "tnnn"), page.note(caution), page.pair(plots)]


def _difference(row: Row) -> str:
    """The difference with its interval, as a share, and from how many seeds, line by line."""
    if not is_number(row.get("mean")):
        return "not known"
    lines = [number(row["mean"])]
    if is_number(row.get("low")) and is_number(row.get("high")):
        lines.append(f"{number(row['low'])} to {number(row['high'])}")
    if is_number(row.get("relative")):
        lines.append(share(row["relative"]))
    if is_number(row.get("seeds")):
        lines.append(plural(row["seeds"], "seed"))
    return "\n".join(lines)


def direction(metric: Metric) -> str:
    """What a metric says, and in which direction it improves."""
    return metrics.meaning(metric.name, "lower" if metric.lower else "higher")
