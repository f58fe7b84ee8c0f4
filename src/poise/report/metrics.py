"""What each score means, in one sentence, found by a part of its name."""

_MEANINGS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    # parts of the name, name as shown, sentence; the first match counts
    (
        ("nearest_train", "train_distance"),
        "Distance to the training set",
        "Median distance of a sample to its nearest training image; far below the value of "
        "held-out images, the model copies.",
    ),
    (
        ("frechet", "fid", "fd"),
        "Fréchet distance",
        "How far the mean and spread of all samples lie from those of real images; it sees a "
        "shifted or narrowed collection, not a single bad image.",
    ),
    (
        ("kernel", "kid", "mmd"),
        "Kernel distance",
        "How well the two collections can be told apart by a smooth comparison of pairs; "
        "unbiased, so values around zero, even below it, mean no difference was found.",
    ),
    (
        ("precision",),
        "Precision",
        "Share of samples that lie among real images: do single samples look right?",
    ),
    (
        ("recall",),
        "Recall",
        "Share of real images that lie among samples: could the model have made them?",
    ),
    (
        ("density",),
        "Density",
        "How crowded the real images are around each sample; above the real value, samples "
        "keep to the most ordinary images.",
    ),
    (
        ("coverage",),
        "Coverage",
        "Share of real images that have a sample close by: is the variety of the data there?",
    ),
    (
        ("vendi", "effective"),
        "Effective variety",
        "How many clearly different images the collection amounts to.",
    ),
    (
        ("classifier", "c2st", "detect"),
        "Told apart by a classifier",
        "How often a classifier can tell samples from real images; one half is chance.",
    ),
    (
        ("class", "label"),
        "",
        "How well the samples agree with the class that was asked for or with its share.",
    ),
    (
        ("authentic", "authpct"),
        "Authenticity",
        "Share of samples that are not nearer to a training image than that image's own "
        "nearest neighbour.",
    ),
)
_BETTER = {
    "lower": "Lower is better.",
    "higher": "Higher is better.",
    "match": "Best when it matches the real value.",
}


def title(name: str) -> str:
    """The name of a metric as shown; variants keep their own name in brackets."""
    shown = next((row[1] for row in _MEANINGS if _matches(name, row[0])), "")
    own = name.replace("_", " ")
    if not shown:
        return own[:1].upper() + own[1:]
    if name == "nearest_train_distance":
        return shown
    known = shown.lower().replace("é", "e")
    return shown if own.lower() == known or known.startswith(own.lower()) else f"{shown} ({own})"


def meaning(name: str, better: object) -> str:
    """One or two sentences: what it measures, and in which direction it improves."""
    what = next((row[2] for row in _MEANINGS if _matches(name, row[0])), "")
    return f"{what} {_BETTER.get(str(better), '')}".strip()


def find(names: list[str], part: str) -> str | None:
    """The first metric whose name means the same as `part`, such as `frechet`."""
    parts = next((row[0] for row in _MEANINGS if part in row[0]), (part,))
    return next((name for name in names if _matches(name, parts)), None)


def _matches(name: str, parts: tuple[str, ...]) -> bool:
    words = name.lower().replace("-", "_").replace("é", "e").split("_")
    # Short abbreviations only as whole words: "fd" must not be found inside another name.
    return any(part in words if len(part) <= 4 else part in "_".join(words) for part in parts)
