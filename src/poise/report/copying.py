"""What a record of scores says about copies and about learning by heart."""

from dataclasses import dataclass, replace

from poise.report.finding import GOOD, NOTE, WEAK, Finding
from poise.report.folder import Row, items, section
from poise.report.reading import SLIGHT, Reading, read, reading_of
from poise.report.words import count, is_number, number, plural, share

# Where a value stops being unremarkable.
_NEARER, _SLIGHTLY = 0.8, 0.95  # distance to training images, samples over held-out images
_C_T = -3.0  # standard errors: one novel model in 700 falls below by chance
_AUTHENTIC = 0.05  # share below that of held-out images
_DETECTABLE = 0.1  # share of copies among samples below which a copy test is too weak to praise
_REPEATED = 0.01  # share of samples that are repeats from which it is said
_GAP = 0.02  # excess of the held-out error that is no longer rounding
_GAP_SERIOUS = 0.2  # a fifth more error: the training images are known by heart
_LEVELS = 3  # noise levels named one by one

_REMEDY = (
    "Look at the closest pairs; train on more images, for a shorter time, or with dropout "
    "(model.dropout=0.1)."
)


def copies(scores: Row, blurred: bool) -> list[Finding]:
    """Whether samples are copies of training images, or of the reference if nothing else is known.

    Args:
        scores: one record.
        blurred: samples lack fine detail; they then lie nearer to every image, copied or not.
    """
    found = _copies(scores, blurred)
    if section(scores, "copying").get("searched") != "reference":
        return found
    said = (f.sentence.replace("training image", "reference image") for f in found)
    return [replace(f, sentence=words) for f, words in zip(found, said, strict=True)]


def _copies(scores: Row, blurred: bool) -> list[Finding]:
    flags = _Flags.of(scores)
    nearer, evidence = _nearer(scores)
    if flags.proved:
        told = " ".join([flags.sentence(), *evidence])
        return [Finding(WEAK, told, _REMEDY)]
    found = []
    if flags.flagged:
        told = f"{flags.sentence()} So few can be chance."
        found.append(Finding(NOTE, told, "Look at the closest pairs."))
    if evidence and blurred:
        told = f"{' '.join(evidence)} Blurred samples lie nearer to every image, so this alone"
        return [*found, Finding(NOTE, f"{told} is no proof of copying.")]
    if evidence and (nearer is None or not nearer.much):
        told = f"{' '.join(evidence)} No single sample is a copy; poor samples do this, too."
        return [*found, Finding(NOTE, told, "Look at the closest pairs.")]
    if evidence:
        return [*found, Finding(WEAK, " ".join(evidence), _REMEDY)]
    if found or nearer is None:
        return found
    if nearer.slightly:
        return [Finding(NOTE, f"Samples lie slightly nearer to training images, {nearer.told}.")]
    return [_none_found(scores, nearer)]


def repeated(scores: Row) -> list[Finding]:
    """Whether samples repeat each other, pixel by pixel."""
    again, total = section(scores, "copying").get("repeated"), scores.get("samples")
    if not is_number(again) or not is_number(total) or again < max(_REPEATED * total, 2):
        return []
    told = (
        f"{count(again)} of {count(total)} samples are pixel by pixel the same as an earlier one: "
        f"{plural(total - again, 'different image')} in all."
    )
    remedy = "Draw with other seeds; see that every sample has noise of its own."
    return [Finding(WEAK, told, remedy)]


def memorised(scores: Row) -> list[Finding]:
    """Whether held-out images are denoised worse than training images, and at which noise."""
    rows = [row for row in items(section(scores, "denoising"), "gap") if isinstance(row, dict)]
    gaps = [(row, gap) for row in rows if (gap := _gap(row)) is not None]
    if not gaps:
        gap = read(scores, "generalisation_gap")
        gaps = [] if gap is None else [({"significant": True}, gap)]
    if not gaps:
        return []
    shown = [(row, g) for row, g in gaps if row.get("significant") and (g.low or 0) > _GAP]
    if not shown:
        if all(g.high is not None and g.high < _GAP_SERIOUS for _, g in gaps):
            told = "Held-out images are denoised as well as training images, at every noise level."
            return [Finding(GOOD, told)]
        told = "These counts cannot tell whether held-out images are denoised worse."
        return [Finding(NOTE, told)]
    row, worst = max(shown, key=lambda pair: pair[1].value)
    sigmas = sorted(float(r["sigma"]) for r, _ in shown if is_number(r.get("sigma")))
    at = f" at noise level {row['sigma']:.3g}" if sigmas else ""
    told = (
        f"Held-out images are denoised worse than training images, by {worst.told(percent=True)}"
        f"{at}{_levels(sigmas)}"
    )
    if max(g.low or 0 for _, g in shown) < _GAP_SERIOUS or worst.few:
        return [Finding(NOTE, f"{told}.")]
    remedy = (
        "Train on more images or for a shorter time, with flips or dropout (model.dropout=0.1); an "
        "earlier snapshot may be better."
    )
    return [Finding(WEAK, f"{told}: the model knows its training images by heart.", remedy)]


@dataclass(frozen=True)
class _Flags:
    """What the calibrated test found."""

    flagged: int
    duplicates: int
    share: Reading | None  # of samples that are copies, with its exact interval where it is known
    metric: Reading | None  # the same with an interval that reaches zero for a few

    @classmethod
    def of(cls, scores: Row) -> "_Flags":
        copying = section(scores, "copying")
        given = {"value": "share", "low": "share_low", "high": "share_high"}
        row = {key: copying.get(name) for key, name in given.items()}
        metric = read(scores, "copies")
        exact = reading_of(row) or metric
        flagged, same = _whole(copying.get("flagged")), _whole(copying.get("exact_duplicates"))
        return cls(flagged, same, exact, metric)

    @property
    def proved(self) -> bool:
        """Not chance: identical images, or a share that is surely above that of real images."""
        if self.duplicates:
            return True
        if self.metric is None or self.metric.low is None:
            return self.flagged > 0
        return self.flagged > 0 and self.metric.low > (self.metric.real or 0.0)

    def sentence(self) -> str:
        flagged = max(self.flagged, self.duplicates)
        told = "1 sample is" if flagged == 1 else f"{count(flagged)} samples are"
        told += " nearer to a training image than chance allows: likely copies"
        if self.share is not None and self.share.low is not None:
            told += f", {self.share.told(percent=True)} of all"
        if self.duplicates:
            same = (
                "1 of them is" if self.duplicates == 1 else f"{count(self.duplicates)} of them are"
            )
            told += f"; {same} identical to one"
        return f"{told}."


@dataclass(frozen=True)
class _Nearer:
    """How near samples lie to training images."""

    told: str
    slightly: bool
    much: bool


def _nearer(scores: Row) -> tuple[_Nearer | None, list[str]]:
    """The distance to training images in words, and each measure by which it is too small."""
    copying, evidence = section(scores, "copying"), []
    distance = read(scores, "nearest_train_distance", "nearest_train")
    ratio = copying.get("median_ratio", copying.get("ratio"))
    if not is_number(ratio) and distance is not None and distance.real:
        ratio = distance.value / distance.real
    nearer = None
    if is_number(ratio):
        split = {"val": "validation", "test": "test"}.get(str(scores.get("split")), "held-out")
        told = f"at {number(float(ratio))} times the distance of real {split} images"
        sure = distance is None or distance.low is None or distance.below(SLIGHT)
        much = ratio < _NEARER and sure
        nearer = _Nearer(told, ratio < _SLIGHTLY and (sure or ratio < _NEARER), much)
        if much:
            evidence.append(
                f"Samples lie much nearer to training images, {told}: the model copies."
            )
    c_t = read(scores, "c_t")
    if c_t is not None and c_t.value < _C_T and c_t.value - (c_t.real or 0.0) < _C_T:
        evidence.append(f"The copying score C_T is {number(c_t.value)}, and 0 without copies.")
    authentic = read(scores, "authentic")
    if authentic is not None and authentic.below(_AUTHENTIC, relative=False):
        told = f"{authentic.told(percent=True)} of samples are authentic"
        evidence.append(f"{told}, and {share(authentic.real)} of held-out images.")
    return nearer, evidence


def _none_found(scores: Row, nearer: _Nearer) -> Finding:
    """No sign of copies, as far as the counts reach."""
    fewest = section(scores, "copying").get("detectable_from")
    samples = scores.get("samples")
    if is_number(fewest) and is_number(samples) and fewest > max(1, _DETECTABLE * samples):
        told = f"No copy was found, but the test needs {count(fewest)} copies among "
        told += f"{count(samples)} samples to flag any; samples lie {nearer.told}."
        return Finding(NOTE, told, "Compare with more held-out images.")
    told = f"No sign of copying: samples lie {nearer.told} from the training images."
    return Finding(GOOD, told)


def _gap(row: Row) -> Reading | None:
    return reading_of({**row, "value": row.get("ratio"), "real": 0.0})


def _levels(sigmas: list[float]) -> str:
    if len(sigmas) < 2:
        return ""
    if len(sigmas) <= _LEVELS:
        return f", and measurably at {', '.join(f'{s:.3g}' for s in sigmas)}"
    ends = f"{sigmas[0]:.3g} to {sigmas[-1]:.3g}"
    return f", and measurably at {len(sigmas)} levels from {ends}"


def _whole(value: object) -> int:
    return int(value) if is_number(value) else 0
