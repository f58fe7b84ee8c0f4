"""What a record of scores says about classes: missing ones, wrong ones, weak ones."""

from collections.abc import Sequence
from dataclasses import dataclass

from poise.report.finding import GOOD, NOTE, WEAK, Finding
from poise.report.folder import Row, items, section
from poise.report.page import visible
from poise.report.reading import SERIOUS, Reading, read, reading_of
from poise.report.words import is_number, listed, plural, sentence, share

# Shares of 1, absolute. A probe and a few hundred samples move by a few percent on their own.
AGREEMENT, _AGREEMENT_SERIOUS = 0.05, 0.1
_BALANCE, _BALANCE_SERIOUS = 0.05, 0.15
_LOST = 0.02  # share of real images in missed groups from which they matter
_HARDLY = 0.01  # share of samples below which no figure is worth giving
_EXPECTED = 5  # samples of a class from which none at all is no chance
_CHANCE = 0.01  # p-value of the test that samples have the classes of real images
_NAMED = 5  # classes named in one sentence
_CLASS_METRICS = ("coverage", "recall", "precision")


@dataclass(frozen=True)
class Lost:
    """What samples do not show.

    Attributes:
        share: of real images that are of missing classes or groups.
        found: said in words.
        classes: whether it is classes, and not groups of alike images.
    """

    share: float
    found: list[Finding]
    classes: bool = False

    def explains(self, reading: Reading, margin: float) -> bool:
        """Whether a value is only as low as the missing part makes it."""
        if reading.real is None or not self.share:
            return False
        return reading.value >= reading.real * (1 - self.share) - margin


def name_of(scores: Row, index: int) -> str:
    """The class with that number, made visible."""
    names = items(section(scores, "classes"), "names")
    return visible(names[index], 60) if index < len(names) else f"class {index}"


def lost(scores: Row) -> Lost:
    """Classes that are missing, else groups of similar images that are."""
    classes = section(scores, "classes")
    labelled = _unlabelled(scores)
    if labelled.found:
        return labelled
    usable = classes.get("usable") is not False
    if not (classes and usable):
        note = [_unusable(classes)] if classes else []
        groups = _groups(scores)
        return Lost(groups.share, [*groups.found, *note])
    names = [str(name) for name in items(classes, "names")]
    given = [str(name) for name in items(classes, "missing")]
    missing = [(names.index(name) if name in names else -1, visible(name, 60)) for name in given]
    unasked = [(i, name_of(scores, i)) for i in _unasked(classes) if names[i] not in given]
    part = _part(real_shares(scores), [i for i, _ in [*missing, *unasked]])
    if missing or unasked:
        return Lost(part, [_missing(scores, [*missing, *unasked], asked=not unasked)], True)
    groups = _groups(scores)
    return Lost(groups.share, groups.found)


def _unlabelled(scores: Row) -> Lost:
    """Classes whose label no sample bears, though real images do; needs no probe."""
    labels = section(scores, "labels")
    samples, reference = items(labels, "samples"), items(labels, "reference")
    names, M, N = items(labels, "names"), _part(samples), _part(reference)
    rows = [
        i
        for i in range(min(len(samples), len(reference), len(names)))
        if not _part(samples, [i]) and N and _part(reference, [i]) / N * M >= _EXPECTED
    ]
    if not rows:
        return Lost(0.0, [])
    part = _part(reference, rows) / N
    told = (
        f"No sample bears the label {_either([visible(names[i], 60) for i in rows])}; "
        f"{share(part)} of real images do."
    )
    remedy = (
        "Ask for every class, or compare with real images of those classes only that were asked "
        "for."
    )
    return Lost(part, [Finding(WEAK, told, remedy)], True)


def real_shares(scores: Row) -> list[float]:
    """Share of each class among real images, as the probe sees them."""
    classes = section(scores, "classes")
    given = items(classes, "reference") or items(classes, "expected")
    counts = [float(n) if is_number(n) else 0.0 for n in given]
    total = sum(counts)
    return [n / total for n in counts] if total > 0 else []


def balance(scores: Row, gone: Lost) -> list[Finding]:
    """Classes drawn too seldom or too often, or shares that differ from those of real images."""
    classes = section(scores, "classes")
    if not classes or classes.get("usable") is False:
        return []
    found = []
    for key, words in (("scarce", "too seldom"), ("overfull", "too often")):
        names = [visible(name, 60) for name in items(classes, key)]
        if names:
            found.append(Finding(NOTE, f"Samples show {listed(names, _NAMED)} {words}."))
    reading = read(scores, "class_balance_distance")
    if reading is None or reading.real is None or found or gone.share:
        return found
    row = section(section(scores, "metrics"), "class_balance_distance")
    p = section(row, "protocol").get("p_value")
    told = (
        f"class shares of samples and of real images differ by {reading.told(percent=True)}, and "
        f"by {share(reading.real)} among real images"
    )
    sure = p < _CHANCE if is_number(p) else reading.above(_BALANCE, relative=False)
    if sure and reading.value > reading.real + _BALANCE:
        heavy = reading.value > reading.real + _BALANCE_SERIOUS and not reading.few
        remedy = "Ask for classes in their shares of the data." if heavy else ""
        return [Finding(WEAK if heavy else NOTE, sentence(told), remedy)]
    bound = reading.high if reading.high is not None else reading.value if is_number(p) else None
    near = bound is not None and bound < reading.real + _BALANCE_SERIOUS
    if near and not reading.mark and not reading.few:
        amount = plural(len(items(classes, "names")), "class", "classes")
        return [Finding(GOOD, f"Samples show all {amount} in about the shares of real images.")]
    return [Finding(NOTE, f"These counts cannot tell whether classes are balanced: {told}.")]


def agreement(scores: Row, gone: Lost) -> list[Finding]:
    """Whether samples show the class that was asked for."""
    classes = section(scores, "classes")
    if classes.get("usable") is False:
        return []
    reading = reading_of(section(classes, "agreement")) or read(scores, "class_agreement")
    if reading is None or reading.real is None:
        return []
    told = (
        f"Samples show the class that was asked for in {reading.told(percent=True)} of all cases, "
        f"real images in {share(reading.real)}"
    )
    if reading.below(AGREEMENT, relative=False):
        told += _confused(scores)
        if gone.explains(reading, AGREEMENT):
            return [Finding(NOTE, f"{told}: no less than the missing classes explain.")]
        far = reading.value < reading.real - _AGREEMENT_SERIOUS and not reading.few
        if not far:
            return [Finding(NOTE, f"{told}.")]
        remedy = "Use stronger guidance, train longer, and check the labels of the training images."
        return [Finding(WEAK, f"{told}: many samples are of the wrong class.", remedy)]
    if reading.as_good(_AGREEMENT_SERIOUS, relative=False):
        return [Finding(GOOD, f"{told}.")]
    return [Finding(NOTE, f"{told}; these counts cannot tell whether that is worse.")]


def weakest(scores: Row) -> list[Finding]:
    """Classes in which samples are clearly worse than real images, beyond doubt."""
    found = []
    for row in items(scores, "per_class"):
        if not isinstance(row, dict) or row.get("mark"):
            continue
        for name in _CLASS_METRICS:
            reading = reading_of(section(section(row, "metrics"), name))
            if reading is None or reading.low is None or not reading.below(SERIOUS):
                continue
            told = f"{visible(row.get('name', ''), 60)} ({name} {reading.against_real()})"
            found.append((reading.value / (reading.real or 1.0), told))
            break
    if not found:
        return []
    found.sort()
    return [Finding(NOTE, f"Weakest classes: {listed([told for _, told in found], 3)}.")]


def _unasked(classes: Row) -> list[int]:
    """Classes that no sample was asked to show and none shows, though real images do."""
    names, asked = items(classes, "names"), items(classes, "asked")
    predicted, total = items(classes, "predicted"), _part(items(classes, "predicted"))
    shares = real_shares({"classes": classes})
    return [
        i
        for i in range(min(len(names), len(asked), len(predicted), len(shares)))
        if asked[i] == 0
        and shares[i] >= _LOST / 2
        and shares[i] * total >= _EXPECTED
        and _part(predicted, [i]) < shares[i] * total / 4
    ]


def _missing(scores: Row, missing: list[tuple[int, str]], *, asked: bool) -> Finding:
    """`No sample shows cat or dog; of real images 20 % do.`"""
    indices = [i for i, _ in missing]
    classes = section(scores, "classes")
    predicted, estimated = items(classes, "predicted"), items(classes, "estimated")
    total = _part(predicted)
    who = "Hardly any sample shows"
    if total:
        seen = _part(predicted, indices) / total
        if len(estimated) == len(predicted):  # the probe's own errors are taken off there
            seen = min(seen, _part(estimated, indices))
        if seen >= _HARDLY:
            who = f"Only {share(seen)} of samples show"
        elif not _part(predicted, indices):
            who = "No sample shows"
    part = _part(real_shares(scores), indices)
    rest = f"; of real images {share(part)} do" if part else ""
    told = f"{who} {_either([name for _, name in missing])}{rest}"
    if not asked:
        remedy = (
            "Ask for every class, or compare with real images of those classes only that were "
            "asked for."
        )
        return Finding(WEAK, f"{told}. Not every one of them was asked for.", remedy)
    remedy = (
        "Train longer; look at how many training images these classes have, and add some where "
        "they are few."
    )
    return Finding(WEAK, f"{told}.", remedy)


def _either(names: list[str]) -> str:
    """`cat, dog or ship`."""
    if len(names) > _NAMED:
        return listed(names, _NAMED)
    return " or ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def _groups(scores: Row) -> Lost:
    """Groups of similar real images that samples show too seldom."""
    groups = section(scores, "groups")
    under = [i for i in items(groups, "under") if isinstance(i, int)]
    reference, samples = items(groups, "reference"), items(groups, "samples")
    reading = read(scores, "groups_missed")
    usual = reading.real if reading is not None and reading.real is not None else 0.0
    total, drawn = _part(reference), _part(samples)
    if not under or len(under) <= usual or not total:
        return Lost(0.0, [])
    part = _part(reference, under) / total
    told = (
        f"Samples miss {len(under)} of {plural(len(reference), 'kind')} of real images: "
        f"{share(part)} of real images are of these kinds"
    )
    if drawn:
        shown = _part(samples, under) / drawn
        told += f", and {f'{share(shown)} of samples' if shown else 'no sample'}"
    remedy = (
        "Look at the pictures of what is missing; train longer, or add images of these kinds to "
        "the training set."
    )
    heavy = part >= _LOST and not (reading is not None and reading.few)
    return Lost(part if heavy else 0.0, [Finding(WEAK if heavy else NOTE, f"{told}.", remedy)])


def _confused(scores: Row) -> str:
    """The classes that are missed most, `; worst: cat (5 of 50), dog (7 of 50)`."""
    rows = []
    for i, row in enumerate(items(section(scores, "classes"), "confusion")):
        if isinstance(row, list) and i < len(row) and all(is_number(n) for n in row) and sum(row):
            rows.append((row[i] / sum(row), i, f"{name_of(scores, i)} ({row[i]} of {sum(row)})"))
    return f"; worst: {', '.join(told for *_, told in sorted(rows)[:3])}" if rows else ""


def _unusable(classes: Row) -> Finding:
    note = sentence(visible(classes.get("note", "")))
    return Finding(NOTE, f"Nothing can be said of classes. {note}".strip())


def _part(values: Sequence[object], indices: Sequence[int] | None = None) -> float:
    """The sum of all or some of the values, as far as they are there."""
    if indices is None:
        indices = range(len(values))
    chosen = [values[i] for i in indices if 0 <= i < len(values)]
    return float(sum(value for value in chosen if is_number(value)))
