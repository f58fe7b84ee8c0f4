"""What one record of scores says about samples: findings, worst first, each with what to do.

The record may be that of a run or of anybody's samples. Each rule compares a value's 95 % interval
with what real images reach in the samples' place; what the counts cannot tell is said, not praised.
"""

from dataclasses import replace

from poise.report.conditioning import Lost, agreement, balance, lost, weakest
from poise.report.copying import copies, memorised, repeated
from poise.report.finding import GOOD, NOTE, WEAK, Finding, serious, worst_first
from poise.report.folder import Row, section
from poise.report.reading import FEW, SERIOUS, SLIGHT, Reading, read
from poise.report.words import count, number

# Times the real-against-real value. Wide on purpose: a few hundred samples are noisy.
_FRECHET_NEAR, _FRECHET_FAR = 1.5, 4.0
_FRECHET_FINE = 2.0  # a value that passes for a good one where it is all that is looked at
_DETAIL = 0.1  # relative loss or excess of fine detail that is seen in a picture
_PRAISED = 4  # good findings, and nothing else, from which all is called well


def judge(scores: Row) -> list[Finding]:
    """Everything worth saying about the samples of one record, worst first."""
    gone, detail = lost(scores), _detail(scores)
    if serious(detail) and not gone.classes:  # blur and noise move images between groups
        gone = Lost(0.0, [replace(f, severity=max(f.severity, NOTE)) for f in gone.found])
    copied = copies(scores, blurred=serious(detail) and _blurred(scores))
    fidelity = [*_precision(scores), *_variety(scores, gone)]
    distance = _distance(scores)
    if serious(copied):  # copies score well on these, so their praise means nothing
        fidelity, distance = _without_praise(fidelity), _without_praise(distance)
    shown_elsewhere = [
        *copied,
        *repeated(scores),
        *detail,
        *gone.found,
        *agreement(scores, gone),
        *balance(scores, gone),
        *memorised(scores),
        *fidelity,
        *weakest(scores),
    ]
    found = [*_beyond_frechet(scores, shown_elsewhere), *distance]
    few = _counts(scores)
    if few:
        found = [*few, *_without_praise(found)]
    if found and all(finding.severity == GOOD for finding in found) and len(found) >= _PRAISED:
        told = (
            "Every figure is near that of real images: these counts cannot tell the samples from "
            "real images."
        )
        found.insert(0, Finding(GOOD, told))
    return worst_first(found)


def _counts(scores: Row) -> list[Finding]:
    """Whether there are too few images to say much."""
    reading = read(scores, "frechet_distance", "frechet") or read(scores, "precision", "precision")
    if reading is None or not reading.few:
        return []
    sides = zip(reading.n, ("sample", "reference image"), strict=False)
    told = " and ".join(f"{count(n)} {what}s" for n, what in sides if n < FEW)
    return [
        Finding(
            NOTE,
            f"Only {told} were compared: below {FEW}, every figure is mostly chance.",
            f"Compare at least {FEW} of each, better 500 and more.",
        )
    ]


def _detail(scores: Row) -> list[Finding]:
    """Blurred or noisy samples."""
    reading = _sharpness(scores)
    if reading is None or reading.real is None:
        return []
    told = f"{reading.told(percent=True)} of the fine detail of real images"
    if reading.below(SLIGHT):
        heavy = reading.value < (1 - _DETAIL) * reading.real and not reading.few
        remedy = (
            "Train longer, draw with more steps (sampling.steps), and see that neither the "
            "training images nor the saved samples were scaled or compressed."
        )
        kind = "blurred" if heavy else "slightly blurred"
        told = f"Samples are {kind}: they hold {told}."
        return [Finding(WEAK, told, remedy) if heavy else Finding(NOTE, told)]
    if reading.above(SLIGHT):
        heavy = reading.value > (1 + _DETAIL) * reading.real and not reading.few
        remedy = (
            "Draw with more steps (sampling.steps) and with averaged weights, or train longer: "
            "noise is left in the samples."
        )
        kind = "noisy" if heavy else "slightly noisy"
        told = f"Samples are {kind}: they hold {told}."
        return [Finding(WEAK, told, remedy) if heavy else Finding(NOTE, told)]
    within = reading.high is not None and reading.high < (1 + SERIOUS) * reading.real
    if reading.as_good(SERIOUS) and within:
        return [Finding(GOOD, f"Samples are as sharp as real images: they hold {told}.")]
    return [Finding(NOTE, f"These counts cannot tell whether samples are sharp: they hold {told}.")]


def _sharpness(scores: Row) -> Reading | None:
    """Fine detail against 1, which is what it is relative to; `real` is one draw beside it."""
    reading = read(scores, "fine_detail")
    return None if reading is None or reading.real is None else replace(reading, real=1.0)


def _blurred(scores: Row) -> bool:
    reading = _sharpness(scores)
    return reading is not None and reading.below(SLIGHT)


def _precision(scores: Row) -> list[Finding]:
    """Whether single samples look like real images."""
    reading = read(scores, "precision", "precision")
    if reading is None or reading.real is None:
        return []
    told = f"recision is {reading.against_real()}"
    if reading.below(SLIGHT):
        if reading.value >= (1 - SERIOUS) * reading.real or reading.few:
            return [Finding(NOTE, f"P{told}: some samples do not look like real images.")]
        remedy = (
            "Train longer, try wider averaging (training.ema_stds), or draw with more steps "
            "(sampling.steps)."
        )
        return [Finding(WEAK, f"P{told}: many samples do not look like real images.", remedy)]
    return [_not_worse([reading], f"p{told}", "samples look like real images")]


def _variety(scores: Row, gone: Lost) -> list[Finding]:
    """Whether the variety of the data is there: recall, coverage, effective number of images."""
    shown: list[tuple[Reading, str]] = []
    for name, words in (("recall", "recall"), ("coverage", "coverage"), ("vendi", "variety")):
        reading = read(scores, name, name)
        if reading is not None and reading.real is not None and reading.real > 0:
            effective = "effective variety is" if name == "vendi" else f"{words} is"
            shown.append((reading, f"{effective} {reading.against_real()}"))
    if not shown:
        return []
    low = [(reading, told) for reading, told in shown if reading.below(SLIGHT)]
    if not low:
        told = ", ".join(told for _, told in shown)
        return [_not_worse([r for r, _ in shown], told, "samples show the variety of real images")]
    told = "Samples show less variety than real images: " + ", ".join(told for _, told in low)
    if all(gone.explains(reading, SLIGHT * (reading.real or 0.0)) for reading, _ in low):
        return [Finding(NOTE, f"{told}; no less than what is missing explains.")]
    heavy = [r for r, _ in low if r.value < (1 - SERIOUS) * (r.real or 0.0) and not r.few]
    if not heavy:
        return [Finding(NOTE, f"{told}.")]
    remedy = (
        "Train longer, lower the guidance if there is any; if classes are unequal, add images to "
        "the small ones."
    )
    return [Finding(WEAK, f"{told}.", remedy)]


def _not_worse(readings: list[Reading], told: str, good: str) -> Finding:
    """Praise where every interval rules out a serious loss; else that the counts cannot tell."""
    if all(reading.as_good(SERIOUS) for reading in readings):
        return Finding(GOOD, f"{good[0].upper()}{good[1:]}: {told}.")
    marks = sorted({reading.mark for reading in readings if reading.mark and not reading.few})
    if any(reading.low is None for reading in readings):
        return Finding(NOTE, f"{told[0].upper()}{told[1:]}; how sure that is was not recorded.")
    return Finding(NOTE, " ".join([f"These counts cannot tell whether {good}: {told}.", *marks]))


def _distance(scores: Row) -> list[Finding]:
    """The Fréchet distance in multiples of its real value, else the kernel distance."""
    reading = read(scores, "frechet_distance", "frechet")
    if reading is None:
        return _kernel(scores)
    if reading.real is None or reading.real <= 0:
        told = f"The Fréchet distance is {reading.told()}; its floor is not known."
        return [Finding(NOTE, told)]
    times, least, most = (
        bound / reading.real if bound is not None else reading.value / reading.real
        for bound in (reading.value, reading.least, reading.most)
    )
    told = (
        f"The Fréchet distance of the samples is {reading.told()}, {number(float(times))} times "
        f"the {number(reading.real)} that real images show among themselves"
    )
    if times > _FRECHET_FAR and least > _FRECHET_NEAR and not reading.few:
        remedy = (
            "Train longer, or choose the next larger model; look at the worst noise level first."
        )
        return [Finding(WEAK, f"{told}: clearly different.", remedy)]
    scaled = section(section(section(scores, "metrics"), "frechet_distance"), "protocol")
    if reading.mark and scaled.get("real_scaled"):  # both are bias, brought to each other by a law
        return []
    if least > 1 + SLIGHT:
        how = "close, and" if times <= _FRECHET_NEAR else "different, and"
        return [Finding(NOTE, f"{told}: {how} measurably so.")]
    praised = reading.low is not None and not reading.mark and not reading.few
    if times <= _FRECHET_NEAR and most <= _FRECHET_FINE and praised:
        return [Finding(GOOD, f"{told}: as near as this many images can tell.")]
    if reading.low is None or most <= _FRECHET_FINE:
        return [Finding(NOTE, f"{told}. {reading.mark}".strip())]
    return [Finding(NOTE, f"{told}: these counts cannot tell more.")]


def _kernel(scores: Row) -> list[Finding]:
    """It has no scale of its own, so it says whether there is a difference, not how bad it is."""
    reading = read(scores, "kernel_distance", "kernel")
    if reading is None or reading.real is None or reading.low is None:
        return []
    told = f"the kernel distance is {reading.told()}, and {number(reading.real)} for real images"
    if reading.low > max(reading.real, 0.0):
        return [Finding(NOTE, f"Samples differ measurably from real images: {told}.")]
    if reading.mark or reading.few:
        return []
    return [Finding(GOOD, f"No difference from real images was found: {told}.")]


def _beyond_frechet(scores: Row, found: list[Finding]) -> list[Finding]:
    """Add to what is serious that a Fréchet distance that passes for a good one hides it."""
    reading = read(scores, "frechet_distance", "frechet")
    if reading is None or not reading.real or reading.value > _FRECHET_NEAR * reading.real:
        return found
    hint = "The Fréchet distance alone would not have shown this."
    return [
        replace(finding, sentence=f"{finding.sentence} {hint}")
        if finding.severity <= WEAK
        else finding
        for finding in found
    ]


def _without_praise(found: list[Finding]) -> list[Finding]:
    return [finding for finding in found if finding.severity != GOOD]
