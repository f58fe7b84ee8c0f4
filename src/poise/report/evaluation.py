"""A page about anybody's samples, from the folder of an evaluation: verdict, pictures, tables."""

from pathlib import Path

from poise.artifacts import write_bytes
from poise.report import page, scores
from poise.report.finding import WORDS
from poise.report.folder import Row, read_record
from poise.report.judgement import judge
from poise.report.page import Html, visible
from poise.report.pictures import embed
from poise.report.words import count, plural, sentence

_LARGE = 700_000  # bytes of one picture


def write_evaluation(folder: Path) -> Path:
    """Read `evaluation.json` and the pictures beside it, write `evaluation.html`, give its path.

    Raises:
        ArtifactError: there is no readable evaluation.json, or the page cannot be written.
    """
    record = read_record(folder / "evaluation.json", "an evaluation")
    sections = [
        ("verdict", "The verdict", _verdict(record)),
        ("pictures", "The samples", _pictures(record, folder)),
        ("scores", "Scores", _scores(record)),
    ]
    for anchor, title, parts in (
        ("classes", "Classes", scores.classes(record)),
        ("denoising", "Denoising", scores.denoising(record)),
    ):
        if parts:
            sections.append((anchor, title, parts))
    details = [*scores.copying(record), scores.protocol(record)]
    sections.append(("protocol", "How it was measured", details))
    body = page.sectioned([_title(record)], sections)
    title = f"Poise: {_name(record)}"
    write_bytes(
        folder / "evaluation.html",
        page.document(title, body, figures='<div class="plot' in body),
    )
    return folder / "evaluation.html"


def verdict_lines(record: Row) -> list[str]:
    """The findings for a terminal, worst first: `Weak: Samples are blurred: ...`."""
    return [f"{WORDS[f.severity]}: {visible(f.sentence, 1000)}" for f in judge(record)]


def _verdict(record: Row) -> list[Html]:
    found = judge(record)
    if not found:
        return [page.absent("There are no scores to judge by.")]
    lines = [page.verdict((f.severity, WORDS[f.severity], f.sentence) for f in found)]
    remedies = [(sentence(f.sentence.split(". ")[0]), f.remedy) for f in found if f.remedy]
    return [*lines, page.heading("What to do"), page.advice(remedies)] if remedies else lines


def _title(record: Row) -> Html:
    lead = (
        f"{plural(record.get('samples'), 'sample')}, compared with "
        f"{visible(record.get('reference_source') or 'real images')}"
    )
    split = record.get("split")
    lead += f" ({visible(split)})." if split else "."
    heading = Html(f"<h1>{page.text(visible(_name(record)))}</h1>")
    return page.join([heading, page.paragraph(lead, "lead")])


def _name(record: Row) -> str:
    source = str(record.get("source") or "samples").rstrip("/\\")
    return source.replace("\\", "/").rsplit("/", 1)[-1] or source


def _pictures(record: Row, folder: Path) -> list[Html]:
    parts: list[Html] = []
    path = folder / "scored.png"
    image = embed(path, _LARGE) if path.is_file() else None
    if image:
        words = f"The first of {count(record.get('samples'))} samples, none chosen."
        parts.append(page.picture(image, "large", "Samples that were scored", words))
    parts += scores.pictures(record, folder)
    return parts or [page.absent("There are no pictures beside these scores.")]


def _scores(record: Row) -> list[Html]:
    told = (
        "“Real images” is what real images score in place of the samples, at the same counts: the "
        "best value that can be expected. Under a value stands its 95 % interval."
    )
    return [page.paragraph(told, "soft"), *scores.tables(record), *scores.cautions(record)]
