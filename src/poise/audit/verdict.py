"""What stands against training on these images, in plain sentences, worst first.

A sentence says what was found, in numbers, and why it matters; beside it stands the command that
mends it, or nothing where only a person can.
"""

import shlex
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from poise.audit.finding import (
    FINE,
    GRAVE,
    NOTE,
    SERIOUS,
    Finding,
    counted,
    joined_groups,
    listed,
    pair_of,
    percent,
    prepare_with,
    source_of,
)
from poise.audit.look import BROKEN, LEFT_OUT
from poise.data.layout import FOREIGN_SUFFIXES, is_image
from poise.report.page import visible

_LOST = (BROKEN | {"refused"}) - {LEFT_OUT}
_LINES = 5
_FEW = 200  # images
_DOMINANT, _PREVAILING = 0.9, 0.75  # share of one class
_IMBALANCE = 5  # largest class over smallest
_MANY = 0.1  # share of the images from which an oddity is serious
_MANY_COPIES = 0.01
_ALIKE = 2.0  # Vendi score of nearly equal images
_LESS_VARIED = 0.5  # of the median class

_ODD = {  # kind -> after "12 of 1,000 images"
    "flat": "are of one flat colour, from which nothing is learned",
    "near-empty": "are nearly empty",
    "blurred": "are blurred: the model learns the blur with the rest",
    "too-dark": "are very dark",
    "too-light": "are very light",
    "too-small": "are smaller than the proposed resolution and would be enlarged, which is soft",
    "aspect-outlier": "are far wider or taller than the others: a square crop loses most of them",
    "size-outlier": "are far larger or smaller than the others",
    "animated": "hold several pictures",
    "wrong-extension": "have a name that says another format than they have",
}
_FORMS = ("alpha", "palette", "cmyk", "16-bit", "exif-rotated", "icc")


def findings(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All that is to say about `facts` (see audit.json), worst first.

    Returns:
        [{"severity", "sentence", "command"}]. Among equals: what cannot be read, one class that
        rules, wrong labels, leaks, too few, what is left out, then the rest.
    """
    parts: tuple[Callable[[Mapping[str, Any]], Iterable[Finding]], ...] = (
        _broken,
        _balance,
        _conflicts,
        _leaks,
        _amount,
        _target,
        _tiny,
        _left_out,
        _copies,
        _suspects,
        _variety,
        _odd,
        _forms,
        _captions,
        _summary,
    )
    found = [finding for part in parts for finding in part(facts)]
    found.sort(key=lambda finding: -finding.severity)  # stable: equals stay as above
    return [
        {"severity": f.severity, "sentence": visible(f.sentence, 1000), "command": f.command}
        for f in found
    ]


def verdict(facts: Mapping[str, Any]) -> list[str]:
    """One to five lines for somebody who sees such a list for the first time, worst first.

    Uses facts["findings"] where they are there. A line is a sentence and the command that mends
    what it says, or that shows whether it was mended.
    """
    found = facts.get("findings") or findings(facts)
    serious = [f for f in found if f["severity"] >= SERIOUS]
    others = [f for f in found if f["severity"] < SERIOUS]
    again = f"poise audit {source_of(facts)}"
    lines = [_line(f, again) for f in serious]
    if not serious:
        train = f"poise train {source_of(facts)}"
        lines = [f"Nothing stands against training on these images. Train: `{train}`"]
    return (lines + [_line(f, again) for f in others])[:_LINES]


def _line(finding: Mapping[str, Any], again: str) -> str:
    """Where only a person can mend something, the command shows whether it was mended."""
    if not finding["severity"]:
        return str(finding["sentence"])
    if not finding["command"]:
        return f"{finding['sentence']} Look again afterwards: `{again}`"
    return f"{finding['sentence']} Mend it: `{finding['command']}`"


def _broken(facts: Mapping[str, Any]) -> Iterable[Finding]:
    images, readable = facts.get("images", 0), facts.get("readable", 0)
    if not images:
        yield Finding(GRAVE, "There is no image here.")
        return
    lost = images - readable - facts.get("problem_counts", {}).get(LEFT_OUT, 0)
    if lost <= 0:
        return
    kinds = {k: n for k, n in facts.get("problem_counts", {}).items() if k in _LOST and n}
    why = ", ".join(f"{n:,} {kind}" for kind, n in sorted(kinds.items(), key=lambda kn: -kn[1]))
    example = _first_broken(facts.get("files", ()))
    text = f"{lost:,} of {counted(images, 'file')} cannot be trained on"
    text += (f" ({why})" if why else "") + (f", such as {example}" if example else "") + "."
    if not readable:
        yield Finding(GRAVE, f"Not one file can be read: {text}")
    else:
        severity = GRAVE if lost > images / 2 else SERIOUS
        way = "--missing mask" if set(kinds) == {"missing-values"} else "--drop broken"
        yield Finding(severity, text, prepare_with(facts, way))


def _first_broken(files: Iterable[Mapping[str, Any]]) -> str:
    for file in files:
        for problem in file["problems"]:
            if problem["kind"] in _LOST:
                return str(file["path"])
    return ""


def _balance(facts: Mapping[str, Any]) -> Iterable[Finding]:
    named: Mapping[str, int] = facts.get("classes") or {}
    classes = {name: number for name, number in named.items() if number}
    empty = [name for name in named if not named[name]]
    total = sum(classes.values())
    if empty and total:
        text = f"{counted(len(empty), 'class has', 'classes have')} no image that can be read"
        yield Finding(SERIOUS, f"{text}: {listed(empty)}.")
    if len(classes) < 2:
        return
    largest = max(classes, key=lambda name: classes[name])
    smallest = min(classes, key=lambda name: classes[name])
    share = classes[largest] / total
    command = prepare_with(facts, "--balance sqrt")
    if share >= _PREVAILING:
        text = (
            f"{percent(share).capitalize()} of the images are {largest!r} "
            f"({classes[largest]:,} of {total:,}): the model will draw little else, and the "
            "other classes come out badly."
        )
        yield Finding(GRAVE if share >= _DOMINANT else SERIOUS, text, command)
    elif classes[largest] > _IMBALANCE * classes[smallest]:
        text = (
            f"The classes are unequal: {largest!r} has {counted(classes[largest], 'image')}, "
            f"{smallest!r} only {classes[smallest]:,}; rare classes come out worse."
        )
        yield Finding(SERIOUS, text, command)


def _conflicts(facts: Mapping[str, Any]) -> Iterable[Finding]:
    """Copies in two classes. Near ones are told apart: two classes can be truly alike."""
    exact = joined_groups(facts, ("bytes", "pixels"), "cross_class")
    near = joined_groups(facts, ("near",), "cross_class", without=exact)
    if exact:
        text = (
            f"{counted(len(exact), 'image lies', 'images lie')} in two or more classes, such as "
            f"{pair_of(exact)}: at least one label of each is wrong; keep the right copy."
        )
        yield Finding(GRAVE, text)
    if near:
        text = (
            f"{counted(len(near), 'picture has a near copy', 'pictures have near copies')} in "
            f"another class, such as {pair_of(near)}: look which label is right."
        )
        yield Finding(SERIOUS, text)


def _leaks(facts: Mapping[str, Any]) -> Iterable[Finding]:
    sure = joined_groups(facts, ("bytes", "pixels", "near"), "cross_split")
    likely = joined_groups(facts, ("feature",), "cross_split", without=sure)
    command = prepare_with(facts, "")
    if sure:
        text = (
            f"{counted(len(sure), 'picture is', 'pictures are')} in more than one split, such as "
            f"{pair_of(sure)}: scores on such a split are better than the model is."
        )
        yield Finding(GRAVE, text, command)
    if likely:
        text = (
            f"{counted(len(likely), 'group', 'groups')} of very similar images cross the splits, "
            f"such as {pair_of(likely)}: look whether they show the same thing."
        )
        yield Finding(NOTE, text, command)


def _amount(facts: Mapping[str, Any]) -> Iterable[Finding]:
    readable = facts.get("readable", 0)
    if 0 < readable < _FEW:
        text = (
            f"There {'is' if readable == 1 else 'are'} only {counted(readable, 'image')}: a model "
            f"will copy rather than learn; collect {_FEW} or more."
        )
        yield Finding(GRAVE, text)


def _target(facts: Mapping[str, Any]) -> Iterable[Finding]:
    target = facts.get("target")
    if not target or all(part["mend"] == "As wanted." for part in target["parts"]):
        return
    command = ""
    if target["kind"] == "shares":
        path = shlex.quote(str(target.get("path", "TARGET.toml")))
        command = prepare_with(facts, f"--balance target --target {path}")
    yield Finding(SERIOUS, target["sentence"], command)


def _tiny(facts: Mapping[str, Any]) -> Iterable[Finding]:
    tiny = (facts.get("labels") or {}).get("tiny") or ()
    if tiny:
        text = (
            f"{counted(len(tiny), 'class has', 'classes have')} fewer than 20 images: "
            f"{listed(tiny)}; that is too few to learn, so collect more or leave them out."
        )
        yield Finding(SERIOUS, text)


def _copies(facts: Mapping[str, Any]) -> Iterable[Finding]:
    readable = max(facts.get("readable", 0), 1)
    exact = joined_groups(facts, ("bytes", "pixels"))
    near = joined_groups(facts, ("near",))
    extra = sum(len(group) - 1 for group in exact)
    if extra:
        text = (
            f"{extra:,} of {counted(readable, 'image')} "
            f"{'is an exact copy of another' if extra == 1 else 'are exact copies of others'}, "
            f"such as {pair_of(exact)}: the model sees these too often."
        )
        severity = SERIOUS if extra > _MANY_COPIES * readable else NOTE
        yield Finding(severity, text, prepare_with(facts, "--drop exact"))
    # Near groups hold the exact copies too.
    exact_paths = {path: i for i, group in enumerate(exact) for path in group}
    pictures = [len({exact_paths.get(path, path) for path in group}) for group in near]
    alike = sum(n - 1 for n in pictures if n > 1)
    if alike:
        text = (
            f"{alike:,} of {counted(readable, 'image')} "
            f"{'is nearly a copy of another' if alike == 1 else 'are nearly copies of others'} "
            f"(resized, cropped, turned or saved again), such as {pair_of(near)}."
        )
        severity = SERIOUS if alike > _MANY_COPIES * readable else NOTE
        yield Finding(severity, text, prepare_with(facts, "--drop exact,near"))


def _suspects(facts: Mapping[str, Any]) -> Iterable[Finding]:
    labels = facts.get("labels") or {}
    suspects = labels.get("suspects") or ()
    if not suspects:
        return
    number, first = labels.get("suspect_count", len(suspects)), suspects[0]
    text = (
        f"{counted(number, 'image looks', 'images look')} like another class than the label says, "
        f"such as {first['path']} (labelled {first['label']!r}, looks like "
        f"{first['neighbours']!r}): look at them."
    )
    many = number > _MANY_COPIES * max(facts.get("readable", 0), 1)
    yield Finding(SERIOUS if many else NOTE, text)


def _variety(facts: Mapping[str, Any]) -> Iterable[Finding]:
    diversity = facts.get("diversity") or {}
    used, vendi = diversity.get("images_used", 0), diversity.get("vendi", 0.0)
    if used >= 20 and vendi < _ALIKE:
        text = (
            f"The images are nearly all alike: {counted(used, 'image')} are as varied as "
            f"{vendi:.1f} entirely different ones; a model will draw that one picture."
        )
        yield Finding(SERIOUS, text)
    scores = {name: row["vendi"] for name, row in (diversity.get("classes") or {}).items()}
    if len(scores) < 3:
        return
    middle = sorted(scores.values())[len(scores) // 2]
    low = sorted((n for n in scores if scores[n] < _LESS_VARIED * middle), key=lambda n: scores[n])
    if low:
        text = (
            f"The images of {counted(len(low), 'class', 'classes')} are much alike beside those of "
            f"the others: {listed(low)} ({low[0]!r} as varied as {scores[low[0]]:.1f} entirely "
            f"different pictures, the usual class as {middle:.1f}); collect different ones."
        )
        yield Finding(NOTE, text)


def _odd(facts: Mapping[str, Any]) -> Iterable[Finding]:
    readable = max(facts.get("readable", 0), 1)
    counts = facts.get("problem_counts") or {}
    if facts.get("soft", 0.0) > 0.5:
        text = (
            f"{percent(facts['soft']).capitalize()} of the images are softer than photographs are: "
            "the model learns that, too; a lower resolution loses nothing."
        )
        side = max(int(facts.get("resolution", 16)) // 2, 8)
        yield Finding(NOTE, text, prepare_with(facts, f"--resolution {side}"))
    for kind, says in _ODD.items():
        number = counts.get(kind, 0)
        if number:
            verb = says if number > 1 else _singular(says)
            text = f"{number:,} of {counted(readable, 'image')} {verb}."
            severity = SERIOUS if number > _MANY * readable else NOTE
            yield Finding(severity, text, prepare_with(facts, f"--drop broken,exact,{kind}"))


def _singular(says: str) -> str:
    """The words after one image: the verb comes first."""
    verb, rest = says.split(" ", 1)
    return f"{ {'are': 'is', 'have': 'has', 'hold': 'holds'}[verb] } {rest}"


def _forms(facts: Mapping[str, Any]) -> Iterable[Finding]:
    counts = facts.get("problem_counts") or {}
    found = [f"{counts[kind]:,} {kind}" for kind in _FORMS if counts.get(kind)]
    if found:
        text = f"Some images are stored unusually ({', '.join(found)}); see how they are read."
        yield Finding(NOTE, text)


def _captions(facts: Mapping[str, Any]) -> Iterable[Finding]:
    captions = facts.get("captions")
    if not captions:
        return
    empty = captions.get("empty_count", len(captions["empty"]))
    total = max(captions["captioned"] + empty, 1)
    if empty:
        text = (
            f"{empty:,} of {counted(total, 'image')} {'has' if empty == 1 else 'have'} no caption, "
            f"such as {captions['empty'][0]}."
        )
        yield Finding(SERIOUS if empty > _MANY * total else NOTE, text)
    if captions["repeated"]:
        first = captions["repeated"][0]
        text = (
            f"{captions['captioned']:,} captions say {counted(captions['distinct'], 'thing')}: "
            f"{first['caption'][:60]!r} stands beside {counted(first['count'], 'image')}."
        )
        many = first["count"] > captions["captioned"] / 2 and captions["captioned"] > 2
        yield Finding(SERIOUS if many else NOTE, text)


def _left_out(facts: Mapping[str, Any]) -> Iterable[Finding]:
    """What no table or folder places, pictures of other kinds, and files of other uses."""
    ignored = list(facts.get("ignored") or ())
    enough = _MANY_COPIES * max(facts.get("images", 0), 1)
    unplaced = facts.get("problem_counts", {}).get(LEFT_OUT, 0)
    lost = SERIOUS if unplaced + sum(map(is_image, ignored)) > enough else NOTE
    for warning in facts.get("warnings") or ():
        severity = SERIOUS if "not for" in warning else lost if "left out" in warning else NOTE
        yield Finding(severity, warning if warning.endswith(".") else f"{warning}.")
    foreign = [name for name in ignored if name.lower().endswith(FOREIGN_SUFFIXES)]
    if foreign:
        kinds = ", ".join(sorted({name.rpartition(".")[2].lower() for name in foreign}))
        text = (
            f"{counted(len(foreign), 'picture is', 'pictures are')} of a kind that is not read "
            f"({kinds}), such as {foreign[0]}: save them as PNG or JPEG to use them."
        )
        yield Finding(SERIOUS if len(foreign) > enough else NOTE, text)
        ignored = [name for name in ignored if not name.lower().endswith(FOREIGN_SUFFIXES)]
    if ignored:
        text = f"{counted(len(ignored), 'other file was', 'other files were')} ignored"
        yield Finding(FINE, f"{text}, such as {ignored[0]}.")


def _summary(facts: Mapping[str, Any]) -> Iterable[Finding]:
    readable = facts.get("readable", 0)
    if not readable:
        return
    classes = facts.get("classes") or {}
    text = counted(readable, "image")
    text += f" in {counted(len(classes), 'class', 'classes')}" if classes else " without classes"
    vendi = (facts.get("diversity") or {}).get("vendi")
    if vendi and readable > 1:
        used = facts["diversity"]["images_used"]
        text += f"; {used:,} of them are as varied as {vendi:.1f} entirely different pictures"
    side = facts.get("resolution")
    if side:
        text += f"; {side} x {side} pixels are proposed"
    yield Finding(FINE, f"{text}.")
