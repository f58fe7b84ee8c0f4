"""A page about several runs side by side: what is clearly better in which, with the same seeds."""

from pathlib import Path
from typing import Any

from poise.artifacts import write_bytes
from poise.report import metrics, page
from poise.report.finding import GOOD, NOTE, WEAK, WORDS, Finding
from poise.report.folder import Row, items, read_record, section
from poise.report.page import Html, visible
from poise.report.pictures import embed
from poise.report.reading import reading_of
from poise.report.scores import cell
from poise.report.words import is_number, listed, number, plain, plural, sentence

_LARGE = 700_000  # bytes of the sheet
_CHANCE = 20  # of so many scores, one looks clear by chance at 95 %


def write_comparison(folder: Path) -> Path:
    """Read `comparison.json` and `sheet.png`, write `comparison.html`, give its path.

    Raises:
        ArtifactError: there is no readable comparison.json, or the page cannot be written.
    """
    record = read_record(folder / "comparison.json", "a comparison")
    sections = [
        ("verdict", "The verdict", _verdict(record)),
        ("scores", "Scores", _scores(record)),
        ("samples", "The same seeds", _sheet(folder)),
        ("protocol", "How it was measured", [_protocol(record)]),
    ]
    names = _names(record)
    lead = (
        f"{plural(len(names), 'run')}, {plural(record.get('samples'), 'sample')} of each from the "
        f"same seeds: {', '.join(names)}."
    )
    body = page.sectioned([Html("<h1>Comparison</h1>"), page.paragraph(lead, "lead")], sections)
    write_bytes(folder / "comparison.html", page.document("Poise: comparison", body, figures=False))
    return folder / "comparison.html"


def comparison_findings(record: Row) -> list[Finding]:
    """For each run after the first, in what it is clearly better and clearly worse."""
    names, table = _names(record), section(record, "metrics")
    found = []
    for i in range(1, len(names)):
        said: dict[str, list[str]] = {"better": [], "worse": [], "different": []}
        for name in table:
            row = section(table, name)
            told = f"{metrics.title(name)} ({_change(row, i)})"
            said.get(_clear(row, i), []).append(visible(told))
        found.append(_finding(names[0], names[i], said))
    return found


def _finding(first: str, name: str, said: dict[str, list[str]]) -> Finding:
    better, worse, different = (", ".join(said[key]) for key in ("better", "worse", "different"))
    who = f"{name} is clearly"
    if not better and not worse and not different:
        told = f"No score tells {name} from {first}: all differences lie within what these counts "
        return Finding(NOTE, f"{told}can tell.")
    if better and worse:
        told = f"{who} better than {first} in {better}, and clearly worse in {worse}."
        return Finding(NOTE, told)
    if better:
        return Finding(
            GOOD, f"{who} better than {first} in {better}, and clearly worse in nothing."
        )
    if worse:
        return Finding(WEAK, f"{who} worse than {first} in {worse}, and clearly better in nothing.")
    return Finding(NOTE, f"{who} different from {first} in {different}; which is better is open.")


def _names(record: Row) -> list[str]:
    return [visible(name, 80) for name in items(record, "names")]


def _verdict(record: Row) -> list[Html]:
    found = comparison_findings(record)
    if not found:
        return [page.absent("There is nothing to compare.")]
    lines = [(f.severity, WORDS[f.severity], f.sentence) for f in found]
    amount = len(section(record, "metrics"))
    caution = (
        f"Clear means that the 95 % interval of the difference leaves out zero. Of {_CHANCE} "
        f"scores one looks clear by chance; these are {amount}."
    )
    return [page.verdict(lines), page.note(caution)]


def _scores(record: Row) -> list[Html]:
    names, table = _names(record), section(record, "metrics")
    rows = []
    for name in table:
        row = section(table, name)
        values = items(row, "values")
        cells = [_cell(row, values[i] if i < len(values) else None, i) for i in range(len(names))]
        real = number(row["real"]) if row.get("real") is not None else "–"
        told = metrics.meaning(name, row.get("better"))
        rows.append((visible(metrics.title(name)), *cells, real, told))
    if not rows:
        return [page.absent("No score could be computed.")]
    heads = ("Score", *names, "Real images", "What it says")
    warnings = [
        page.paragraph(f"Caution: {sentence(visible(plain(w), 600))}")
        for w in items(record, "warnings")
    ]
    words = (
        "Under each value stands its 95 % interval; from the second run on, below it the "
        f"difference to {names[0] if names else 'the first'} with its own interval, and where that "
        "is clear, whether it is better or worse."
    )
    kinds = "t" + "n" * (len(names) + 1) + "w"
    return [page.paragraph(words, "soft"), page.table(heads, rows, kinds), *warnings]


def _cell(row: Row, value: Any, i: int) -> str:
    """The value, and from the second run on the difference to the first, line by line."""
    lines = [cell(value) if isinstance(value, dict) else "–"]
    given = _given(row, i)
    if _change(row, i):
        said = _clear(row, i)
        lines += [f"difference {_change(row, i)}", *cell(given).split("\n")[1:]]
        lines += [f"clearly {said}"] if said else []
    return "\n".join(lines)


def _change(row: Row, i: int) -> str:
    """`+0.40`; nothing where it is not known."""
    reading = reading_of(_given(row, i))
    return ("+" if reading.value > 0 else "") + number(reading.value) if reading else ""


def _given(row: Row, i: int) -> Row:
    """The difference of run i to the first."""
    found = items(row, "differences")
    return found[i] if i < len(found) and isinstance(found[i], dict) else {}


def _clear(row: Row, i: int) -> str:
    """`better` or `worse` where the difference is clear, `different` where neither is known."""
    values, given = items(row, "values"), _given(row, i)
    change = given.get("value")
    if given.get("clear") is not True or not is_number(change) or change == 0:
        return ""
    if row.get("better") in ("lower", "higher"):
        return "better" if (change < 0) == (row["better"] == "lower") else "worse"
    real, pair = row.get("real"), [values[0], values[i]] if i < len(values) else []
    both = [reading_of(value) for value in pair if isinstance(value, dict)]
    away = [abs(value.value - real) for value in both if value is not None and is_number(real)]
    if len(away) < 2:
        return "different"
    return "better" if away[1] < away[0] else "worse"


def _sheet(folder: Path) -> list[Html]:
    path = folder / "sheet.png"
    if not path.is_file():
        return [page.absent("There is no picture of samples.")]
    image = embed(path, _LARGE)
    if image is None:
        return [page.absent(f"{path.name} cannot be read.")]
    words = "One row for each run, in the order of the table; each column starts from one seed."
    return [page.picture(image, "large", "Samples of the runs from the same seeds", words)]


def _protocol(record: Row) -> Html:
    features = section(record, "features")
    facts = [
        ("runs", listed(_names(record), 12)),
        ("against", record.get("split")),
        ("samples of each", record.get("samples")),
        ("seed", number(record["seed"]) if record.get("seed") is not None else None),
        *[(f"features, {key}", plain(value)) for key, value in features.items()],
    ]
    rows = [(visible(key), visible(value)) for key, value in facts if value not in (None, "")]
    return page.table(("Fact", "Value"), rows, "tw")
