"""Several runs on one page, from their files alone: nothing is drawn and nothing is scored anew.

What was measured in different ways is shown, and said not to be comparable.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

from poise.artifacts import RunDir, write_bytes
from poise.report import figures, metrics, page, verdict
from poise.report.figures import IMAGES, Axis, Curve
from poise.report.finding import WORDS
from poise.report.folder import Row, RunFiles, read_run, section
from poise.report.page import Html, visible
from poise.report.pictures import embed
from poise.report.rivals import Rival, counts, judged, settings_of
from poise.report.scores import cell
from poise.report.steps import RUN, place
from poise.report.words import count, is_number, number, plain, plural, seconds

_PICTURE, _PICTURES = 250_000, 3_000_000  # bytes of one picture, and of all
_CHANCE = 20  # of so many scores, one looks clear by chance at 95 %


def write_side_by_side(runs: Sequence[RunDir], out: Path) -> Path:
    """Read the folders of two runs or more, write the page `out`, give its path.

    Raises:
        ArtifactError: a folder has no readable run.json, or the page cannot be written.
    """
    read = [read_run(run) for run in runs]
    names = _names([run.root for run in runs])
    all_of = [
        Rival(name, files, figures.shade(i, len(read)))
        for i, (name, files) in enumerate(zip(names, read, strict=True))
    ]
    sections = [
        ("verdict", "The verdict", _verdict(all_of)),
        ("samples", "Samples", _samples(all_of)),
        ("scores", "Scores", _scores(all_of)),
        ("curves", "Curves", _curves(all_of)),
        ("settings", "Settings that differ", _settings(all_of)),
        ("runs", "The runs", _facts(all_of)),
    ]
    lead = f"{plural(len(names), 'run')} side by side, from their files: {', '.join(names)}."
    head = [Html("<h1>Runs side by side</h1>"), page.paragraph(lead, "lead")]
    body = page.sectioned(head, sections)
    write_bytes(out, page.document("Poise: runs side by side", body))
    return out


def _names(roots: Sequence[Path]) -> list[str]:
    """The folders' names, or their paths where names are the same."""
    short = [visible(root.name or root, 60) for root in roots]
    return short if len(set(short)) == len(short) else [visible(root, 200) for root in roots]


def _verdict(runs: list[Rival]) -> list[Html]:
    found = judged(runs)
    command = " ".join(["poise compare", *[place(run.files.run) for run in runs]])
    told = (
        "Scores here come from each run's own samples. For the same seeds and labels, on the same "
        "real images, with an interval for each difference, draw anew:"
    )
    steps = [("", told, command)]
    return [
        page.verdict((f.severity, WORDS[f.severity], f.sentence) for f in found),
        page.heading("What to do next"),
        page.steps(steps),
        page.note(f"{RUN} stands for the folder of a run." if RUN in command.split() else ""),
    ]


def _samples(runs: list[Rival]) -> list[Html]:
    parts, allowance = [], min(_PICTURE, _PICTURES // len(runs))
    for run in runs:
        path = run.files.scored or (run.files.grids[-1][1] if run.files.grids else None)
        image = embed(path, allowance) if path else None
        words = f"{run.name}, after {plural(run.files.run.get('images_seen'), 'image')} seen"
        parts.append(
            page.picture(image, "small", f"Samples of {words}", f"{words}.")
            if image
            else page.absent(f"{run.name}: there is no picture of samples.")
        )
    note = page.note("None chosen; the seeds of one run are not those of another.")
    return [page.pair(parts), note]


def _scores(runs: list[Rival]) -> list[Html]:
    scored = [run for run in runs if run.record]
    if not scored:
        return [page.absent("No run has been scored yet.")]
    names = list(dict.fromkeys(n for run in scored for n in section(run.record, "metrics")))
    rows = []
    for name in names:
        own = [section(section(run.record, "metrics"), name) for run in scored]
        cells = [_beside(row) for row in own]
        better = next((row.get("better") for row in own if row), "")
        rows.append((visible(metrics.title(name)), *cells, visible(better or "")))
    heads = ("Score", *[run.name for run in scored], "Better")
    words = (
        "Under each value stands its 95 % interval, and what real images score in the samples' "
        f"place. Beyond chance means that a difference is larger than both intervals allow; of "
        f"{_CHANCE} scores one looks so by chance."
    )
    table = page.table(heads, rows, "t" + "n" * len(scored) + "t")
    return [page.paragraph(words, "soft"), table, *_protocols(scored)]


def _beside(row: Row) -> str:
    if not row:
        return "–"
    real = f"\nreal {number(row['real'])}" if is_number(row.get("real")) else ""
    return cell(row) + real


def _protocols(runs: list[Rival]) -> list[Html]:
    facts: dict[str, Callable[[Row], object]] = {
        "against": lambda r: r.get("split"),
        "samples against real images": lambda r: " against ".join(count(n) for n in counts(r)),
        "features": lambda r: section(r, "features").get("name"),
        "digest of the features": lambda r: section(r, "features").get("digest"),
        "data": lambda r: r.get("data"),
        "images seen": lambda r: count(r.get("images_seen")),
        "weights": lambda r: r.get("weights"),
        "sampler": lambda r: plain(section(r, "sampler")),
        "guidance": lambda r: plain(r["guidance"]) if r.get("guidance") else "none",
        "seed": lambda r: number(r.get("seed")),
    }
    rows = [(key, *[_told(of(run.record)) for run in runs]) for key, of in facts.items()]
    heads = ("Fact", *[run.name for run in runs])
    table = page.table(heads, rows, "t" + "w" * len(runs))
    return [page.details("How each was measured", [table])]


def _curves(runs: list[Rival]) -> list[Html]:
    averaged = [(run, _validation(run)) for run in runs]
    error = Axis("mean error", log=True)
    by_images = [
        Curve(visible(run.name), [x for x, _ in curve], [y for _, y in curve], run.color)
        for run, curve in averaged
    ]
    by_time = [
        Curve(c.name, _clock(run, c.x), c.y, c.color)
        for (run, _), c in zip(averaged, by_images, strict=True)
    ]
    told = "Mean error on held-out images, of the average with the widest window: lower is better."
    clock = Axis("seconds of training")
    plots = [
        page.plot("Validation error", figures.lines(by_images, IMAGES, error, markers=True), told),
        page.plot(
            "Validation error over time",
            figures.lines(by_time, clock, error, markers=True),
            "The same over wall clock: which run is ahead at an equal cost.",
        ),
    ]
    for key, title, axis in (
        ("error", "Training error", Axis("error", log=True)),
        ("grad_norm", "Gradient norm", Axis("norm", log=True)),
        ("lr", "Learning rate", Axis("learning rate")),
    ):
        drawn = [_column(run, run.files.metrics, key) for run in runs]
        plots.append(page.plot(title, figures.lines(drawn, IMAGES, axis), "Logged while training."))
    sizes = [_column(run, run.files.magnitudes, "activation_rms_highest") for run in runs]
    figure = figures.lines(sizes, IMAGES, Axis("root mean square"), markers=True)
    plots.append(page.plot("Largest activations", figure, "Of the block that has the largest."))
    return [page.pair(plots)]


def _column(run: Rival, rows: list[Row], key: str) -> Curve:
    curve = figures.column(rows, key, run.name)
    return Curve(curve.name, curve.x, curve.y, run.color)


def _validation(run: Rival) -> list[tuple[float, float]]:
    curves = verdict.best_weights(run.files.validation)
    names = sorted(set(curves) - {"raw"}) or sorted(curves)
    return curves[names[-1]] if names else []


def _clock(run: Rival, seen: Sequence[float]) -> list[float]:
    """Wall clock in seconds at which so many images had been seen."""
    known = [
        (float(row["images_seen"]), float(row["seconds"]))
        for row in run.files.timing
        if is_number(row.get("seconds"))
    ]
    if not known:
        return [float("nan")] * len(seen)
    places = [at for at, _ in known]
    return [known[min(bisect_left(places, x), len(known) - 1)][1] for x in seen]


def _settings(runs: list[Rival]) -> list[Html]:
    values = [settings_of(run.files) for run in runs]
    if not all(values):
        return [page.absent("The settings of a run are missing or of another version of Poise.")]
    changed = [
        (key, *[plain(own.get(key)) if own.get(key) is not None else "unset" for own in values])
        for key in values[0]
        if len({repr(own.get(key)) for own in values}) > 1
    ]
    if not changed:
        return [page.absent("All settings are the same.")]
    kinds = "t" * (len(runs) + 1)
    return [page.table(("Setting", *[run.name for run in runs]), changed, kinds)]


def _facts(runs: list[Rival]) -> list[Html]:
    facts: dict[str, Callable[[RunFiles], object]] = {
        "source": lambda f: f.run.get("source"),
        "data fingerprint": lambda f: str(section(f.run, "data").get("fingerprint"))[:16],
        "preset": lambda f: f.run.get("preset"),
        "parameters": lambda f: count(section(f.run, "model").get("parameters")),
        "state": lambda f: f.run.get("status"),
        "images seen": lambda f: count(f.run.get("images_seen")),
        "took": lambda f: seconds(f.run.get("seconds")),
        "images per second, middle": lambda f: count(_speed(f)),
        "device": lambda f: section(f.run, "environment").get("device"),
        "threads": lambda f: section(f.run, "environment").get("threads"),
        "poise": lambda f: section(f.run, "environment").get("poise"),
        "torch": lambda f: section(f.run, "environment").get("torch"),
        "weights, size at the end": lambda f: number(f.latest(f.metrics, "weight_rms")),
        "activations, mean size": lambda f: number(f.latest(f.magnitudes, "activation_rms")),
        "incidents": lambda f: plain(_severities(f)),
        "updates skipped": lambda f: number(f.latest(f.metrics, "skipped")),
    }
    rows = [(key, *[_told(of(run.files)) for run in runs]) for key, of in facts.items()]
    problems = [f"{run.name}: {problem}" for run in runs for problem in run.files.problems]
    table = page.table(("Fact", *[run.name for run in runs]), rows, "t" + "t" * len(runs))
    return [table, *[page.paragraph(visible(line)) for line in problems]]


def _told(value: object) -> str:
    return visible(number(value))


def _speed(files: RunFiles) -> float | None:
    rates = sorted(
        row["images_per_second"] for row in files.timing if is_number(row.get("images_per_second"))
    )
    return rates[len(rates) // 2] if rates else None


def _severities(files: RunFiles) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, row in files.incidents:
        name = str(row["severity"])
        found[name] = found.get(name, 0) + 1
    return found
