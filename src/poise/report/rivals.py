"""Several runs judged beside each other from their files: what can be compared, who is better."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any

from poise.config import documented, from_toml
from poise.errors import PoiseError
from poise.report import metrics
from poise.report.finding import BROKEN, GOOD, NOTE, WEAK, Finding, worst_first
from poise.report.folder import Row, RunFiles, items, section
from poise.report.page import visible
from poise.report.reading import reading_of
from poise.report.verdict import best_weights
from poise.report.words import number, plain, plural

_ANY_COUNT = (  # scores that mean the same at every number of samples; others lean with it
    "frechet_distance_infinite",
    "kernel_distance",
    "fine_detail",
    "nearest_train_distance",
    "copies",
    "authentic",
    "class_agreement",
)
_COUNTS = "the counts"


@dataclass(frozen=True)
class Rival:
    """One of the runs."""

    name: str
    files: RunFiles
    color: str

    @property
    def record(self) -> Row:
        """The scores to compare by; those against validation images, which every run has."""
        kept = [s for s in self.files.scores if s.get("split") == "val"] or self.files.scores
        return kept[0] if kept else {}


def judged(runs: list[Rival]) -> list[Finding]:
    """What the files say of the runs beside each other, worst first."""
    return worst_first([*_comparable(runs), *_better(runs), *_validation(runs), *_troubled(runs)])


def differing(runs: Sequence[Row]) -> list[str]:
    """Why scores of these records cannot be compared: what differs in how they were measured."""
    asked: dict[str, Callable[[Row], object]] = {
        "the split": lambda r: r.get("split"),
        "the real images": lambda r: r.get("data"),
        "the features": lambda r: [section(r, "features").get(k) for k in ("name", "digest")],
        "the resizer": lambda r: section(r, "features").get("resizer"),
        _COUNTS: lambda r: [r.get("samples"), counts(r)],
    }
    return [what for what, of in asked.items() if len({plain(of(record)) for record in runs}) > 1]


def counts(record: Row) -> list[Any]:
    """How many samples and real images the first score that says so comes from."""
    table = section(record, "metrics")
    return next((n for name in table if (n := items(section(table, name), "n"))), [])


def settings_of(files: RunFiles) -> dict[str, Any]:
    """Settings by name; empty where they cannot be read."""
    try:
        rows = documented(from_toml(files.config)) if files.config else []
    except PoiseError:
        return {}
    return {key: value for key, value, _ in rows}


def _comparable(runs: list[Rival]) -> list[Finding]:
    found = []
    without = [run.name for run in runs if not run.record]
    if without:
        found.append(Finding(NOTE, f"Not scored yet: {', '.join(without)}."))
    apart = differing([run.record for run in runs if run.record])
    if apart == [_COUNTS]:
        named = ", ".join(metrics.title(name) for name in _ANY_COUNT)
        told = "Scores come from different numbers of images, and most lean with the number: only "
        found.append(Finding(NOTE, f"{told}these are compared: {named}."))
    elif apart:
        told = f"Scores cannot be compared: {', '.join(apart)} differ"
        found.append(Finding(NOTE, f"{told}. They are shown, and no run is called better."))
    if len({plain(_validated(run)) for run in runs}) > 1:
        told = "Validation errors were measured on different images: their curves differ by that, "
        found.append(Finding(NOTE, f"{told}too."))
    return found


def _better(runs: list[Rival]) -> list[Finding]:
    """For each run after the first, in what it is beyond chance better and worse."""
    first, found = runs[0], []
    apart = differing([run.record for run in runs if run.record])
    if not first.record or apart not in ([], [_COUNTS]):
        return []
    names = [n for n in section(first.record, "metrics") if not apart or n in _ANY_COUNT]
    for run in runs[1:]:
        if not run.record:
            continue
        said: dict[str, list[str]] = {"better": [], "worse": []}
        for name in names:
            told = _clear(first, run, name)
            if told:
                said[told].append(metrics.title(name))
        better, worse = (", ".join(said[key]) for key in ("better", "worse"))
        who = f"{run.name} is beyond chance"
        if not better and not worse:
            told = f"No score tells {run.name} from {first.name} beyond chance."
            found.append(Finding(NOTE, told))
        elif not better:
            told = f"{who} worse than {first.name} in {worse}, and better in nothing."
            found.append(Finding(WEAK, told))
        else:
            end = f"worse in {worse}" if worse else "worse in nothing"
            told = f"{who} better than {first.name} in {better}, and {end}."
            found.append(Finding(NOTE if worse else GOOD, told))
    return found


def _clear(first: Rival, other: Rival, name: str) -> str:
    """`better` or `worse` where the interval of the difference leaves out zero; else nothing.

    The two share their real images, so taking the intervals as independent errs on the safe side.
    """
    rows = [section(section(run.record, "metrics"), name) for run in (first, other)]
    a, b = (reading_of(row) for row in rows)
    if a is None or b is None or None in (a.low, a.high, b.low, b.high) or a.mark or b.mark:
        return ""
    assert a.low is not None and a.high is not None and b.low is not None and b.high is not None
    change = b.value - a.value
    if change > 0:
        clear = change > hypot(b.value - b.low, a.high - a.value)
    else:
        clear = -change > hypot(b.high - b.value, a.value - a.low)
    better = rows[0].get("better")
    if not clear:
        return ""
    if better in ("lower", "higher"):
        return "better" if (change < 0) == (better == "lower") else "worse"
    if a.real is None or b.real is None:
        return ""
    return "better" if abs(b.value - b.real) < abs(a.value - a.real) else "worse"


def _validation(runs: list[Rival]) -> list[Finding]:
    """The lowest validation error at the end, where all were measured on the same images."""
    if len({plain(_validated(run)) for run in runs}) > 1:
        return []
    ends = [
        (min(curve[-1][1] for curve in curves.values()), run.name)
        for run in runs
        if (curves := best_weights(run.files.validation))
    ]
    if len(ends) < 2:
        return []
    told = ", ".join(f"{name} {number(error)}" for error, name in sorted(ends))
    return [Finding(NOTE, f"Validation error at the end, lowest first: {told}.")]


def _troubled(runs: list[Rival]) -> list[Finding]:
    found = []
    for run in runs:
        status = run.files.run.get("status")
        serious = [r for _, r in run.files.incidents if r.get("severity") != "warning"]
        if status in ("failed", "stopped", "interrupted"):
            found.append(Finding(BROKEN, f"{run.name} was {visible(status)} before its end."))
        if serious:
            met = plural(len(serious), "critical incident")
            found.append(Finding(WEAK, f"{run.name} met {met}."))
    return found


def _validated(run: Rival) -> list[Any]:
    """What tells on which images the validation error was measured: two runs alike, same images."""
    settings = settings_of(run.files)
    names = [name for name in settings if name.startswith(("validation.", "data.split"))]
    known = [settings[name] for name in names]
    return [section(run.files.run, "data").get("fingerprint"), *known]
