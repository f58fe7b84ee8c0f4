"""What each score means, in one sentence: by its exact name, else by a part of it."""

_NAMED: dict[str, tuple[str, str]] = {
    "frechet_distance": (
        "Fréchet distance",
        "How far the mean and spread of all samples lie from those of real images; it sees a "
        "shifted or narrowed collection, not a single bad image or a copied one.",
    ),
    "frechet_distance_infinite": (
        "Fréchet distance, many samples",
        "The Fréchet distance that endlessly many samples would have, extrapolated.",
    ),
    "kernel_distance": (
        "Kernel distance",
        "How well the two collections can be told apart by a smooth comparison of pairs; "
        "unbiased, so values around zero, even below it, mean no difference was found.",
    ),
    "kernel_distance_subsets": (
        "Kernel distance, subsets",
        "The kernel distance as it was first published, a mean over random subsets; for "
        "comparison with other reports.",
    ),
    "cmmd": (
        "CMMD",
        "The distance of the two collections under a wide Gaussian kernel, times 1000; few images "
        "raise it.",
    ),
    "inception_score": (
        "Inception score",
        "Whether single samples show one class clearly and all samples together show many; it "
        "looks at no real image.",
    ),
    "precision": (
        "Precision",
        "Share of samples that lie among real images: do single samples look right?",
    ),
    "density": (
        "Density",
        "How crowded the real images are around each sample; above the real value, samples keep "
        "to the most ordinary images.",
    ),
    "fine_detail": (
        "Fine detail",
        "Energy of the fine detail of samples, as a part of that of real images: 1 is alike, less "
        "is blurred, more is noisy.",
    ),
    "recall": (
        "Recall",
        "Share of real images that lie among samples: could the model have made them?",
    ),
    "coverage": (
        "Coverage",
        "Share of real images that have a sample close by: is the variety of the data there?",
    ),
    "vendi": (
        "Effective variety",
        "How many entirely different images the collection amounts to (Vendi score), beside as "
        "many real images.",
    ),
    "rarity": (
        "Rarity",
        "How unusual the samples are among real images: below the real value, the model keeps to "
        "what is common.",
    ),
    "groups_missed": (
        "Kinds missed",
        "Number of groups of similar real images that samples show too seldom.",
    ),
    "nearest_train_distance": (
        "Distance to the training set",
        "Median distance of a sample to its nearest training image; far below the value of "
        "held-out images, the model copies.",
    ),
    "copies": (
        "Copies",
        "Share of samples that a test calibrated on held-out images calls copies of training "
        "images.",
    ),
    "carlini_copies": (
        "Copies by ratio",
        "Share of samples that are far nearer to one training image than to the next ones.",
    ),
    "authentic": (
        "Authenticity",
        "Share of samples that are not nearer to a training image than that image's own nearest "
        "neighbour.",
    ),
    "c_t": (
        "Copying score C_T",
        "Whether samples lie nearer to training images than held-out images do, in standard "
        "errors: around 0 they do not, far below 0 they are copies.",
    ),
    "fld": (
        "Likelihood distance",
        "How unlikely held-out images are under a density that is put around the samples, beside "
        "training images (FLD).",
    ),
    "fld_gap": (
        "Likelihood gap",
        "How much better the density around the samples fits training images than held-out ones: "
        "far below 0 the model copies.",
    ),
    "class_agreement": (
        "Class agreement",
        "Share of samples in which a classifier sees the class that was asked for.",
    ),
    "class_balance_distance": (
        "Class balance",
        "Share of samples that would have to change their class to have the classes of real "
        "images.",
    ),
    "generalisation_gap": (
        "Gap to held-out images",
        "By how much the denoising error of held-out images exceeds that of training images, at "
        "the worst noise level: 0 means that nothing is learnt by heart.",
    ),
    "classifier": (
        "Told apart by a classifier",
        "How often a classifier can tell samples from real images; one half is chance.",
    ),
    "classes": (
        "",
        "How well the samples agree with the class that was asked for or with its share.",
    ),
}
_DENOISING = {
    "denoising_error": (
        "Denoising error",
        "Mean squared error of denoised {}, weighted over noise levels.",
    ),
    "denoising_psnr": (
        "Denoising PSNR",
        "Peak signal-to-noise ratio of denoised {}, in decibels.",
    ),
    "denoising_ssim": ("Denoising SSIM", "Structural similarity of denoised {} to the originals."),
}
_SPLITS = {"train": "training images", "val": "validation images", "test": "test images"}
for _name, (_title, _meaning) in _DENOISING.items():
    for _split, _images in _SPLITS.items():
        _NAMED[f"{_name}_{_split}"] = (f"{_title}, {_images}", _meaning.format(_images))

_PARTS: tuple[tuple[tuple[str, ...], str], ...] = (
    # parts of other names, and whose meaning they have; the first match counts
    (("nearest_train", "train_distance"), "nearest_train_distance"),
    (("frechet", "fid", "fd"), "frechet_distance"),
    (("kernel", "kid", "mmd"), "kernel_distance"),
    (("precision",), "precision"),
    (("recall",), "recall"),
    (("density",), "density"),
    (("coverage",), "coverage"),
    (("vendi", "effective"), "vendi"),
    (("classifier", "c2st", "detect"), "classifier"),
    (("class", "label"), "classes"),
    (("authentic", "authpct"), "authentic"),
)
_BETTER = {
    "lower": "Lower is better.",
    "higher": "Higher is better.",
    "match": "Best when it matches the real value.",
}


def title(name: str) -> str:
    """The name of a metric as shown; variants keep their own name in brackets."""
    shown = _NAMED.get(_like(name), ("", ""))[0]
    own = name.replace("_", " ")
    if not shown:
        return own[:1].upper() + own[1:]
    return shown if name in _NAMED or own.lower() == shown.lower() else f"{shown} ({own})"


def meaning(name: str, better: object) -> str:
    """One or two sentences: what it measures, and in which direction it improves."""
    what = _NAMED.get(_like(name), ("", ""))[1]
    return f"{what} {_BETTER.get(str(better), '')}".strip()


def find(names: list[str], part: str) -> str | None:
    """The first metric whose name means the same as `part`, such as `frechet`."""
    parts = next((parts for parts, _ in _PARTS if part in parts), (part,))
    return next((name for name in names if _matches(name, parts)), None)


def _like(name: str) -> str:
    """The known metric that has the meaning of `name`."""
    if name in _NAMED:
        return name
    return next((known for parts, known in _PARTS if _matches(name, parts)), "")


def _matches(name: str, parts: tuple[str, ...]) -> bool:
    words = name.lower().replace("-", "_").replace("é", "e").split("_")
    # Short abbreviations only as whole words: "fd" must not be found inside another name.
    return any(part in words if len(part) <= 4 else part in "_".join(words) for part in parts)
