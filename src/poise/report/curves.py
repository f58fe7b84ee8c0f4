"""The sections made of figures: training, validation, speed."""

from dataclasses import replace

from poise.report import figures, page, verdict
from poise.report.figures import IMAGES, SIGMA, Axis, Mark
from poise.report.folder import Row, RunFiles
from poise.report.incidents import told
from poise.report.page import Html
from poise.report.words import is_number, listed, number, plural, seconds, share


def training(files: RunFiles) -> list[Html]:
    """Error by noise band, and the signals that show a run going wrong."""
    rows, marks = files.metrics, _marks(files)
    if not rows:
        return [page.absent("No training has been logged yet.")]
    bands = figures.lines(figures.bands_over_training(rows), IMAGES, Axis("error", log=True), marks)
    small = [
        _signal(files, "loss", "Loss", Axis("loss"), _LOSS),
        _signal(files, "lr", "Learning rate", Axis("learning rate"), _RATE),
        _signal(files, "grad_norm", "Gradient norm", Axis("norm", log=True), _GRADIENT),
        _signal(files, "weight_rms", "Weight magnitude", Axis("root mean square"), _WEIGHTS),
        _signal(
            files, "update_ratio", "Relative update", Axis("update / weight", log=True), _UPDATE
        ),
        _signal(files, "error", "Error over all noise levels", Axis("error", log=True), _ERROR),
    ]
    return [
        page.paragraph(_gaps(files)),
        page.plot(
            "Error by noise level",
            bands,
            "Each line is the training error at one noise level σ; all should fall, and a line "
            "that rises alone shows where training is going wrong.",
        ),
        page.pair(small),
        *_magnitudes(files, marks),
        page.paragraph(
            "Dotted vertical lines are incidents, red where they were critical, with their number "
            "in the list below; the pointer on a number shows what it was."
            if marks
            else "",
            "soft",
        ),
    ]


def validation(files: RunFiles) -> list[Html]:
    """The denoising error on held-out images: over training, and over noise at the end."""
    rows = files.validation
    if not rows:
        return [page.absent("There has been no validation yet.")]
    over_time = figures.lines(
        figures.validation_over_training(rows),
        IMAGES,
        Axis("mean error", log=True),
        _marks(files),
        markers=True,
    )
    finals = [
        (
            title,
            figures.lines(figures.validation_over_noise(rows, key), SIGMA, axis, markers=True),
            told,
        )
        for key, title, axis, told in _FINAL
    ]
    ends = [
        (figures.weights_name(name), number(curve[-1][1]), number(min(curve, key=_loss)[1]))
        for name, curve in verdict.best_weights(rows).items()
    ]
    return [
        page.plot(
            "Over training",
            over_time,
            "Mean error on held-out images, for the raw weights and their averages (EMA): lower is "
            "better, and a line that turns upwards shows overfitting.",
        ),
        page.table(("Weights", "Error at the end", "Lowest error"), ends, "tnn"),
        page.pair(page.plot(title, figure, told) for title, figure, told in finals),
    ]


def speed(files: RunFiles) -> list[Html]:
    """Images per second over the run."""
    rates = [
        row["images_per_second"]
        for row in files.timing
        if is_number(row.get("images_per_second")) and row["images_per_second"] > 0
    ]
    if not rates:
        return [page.absent("No timing has been logged yet.")]
    middle = sorted(rates)[len(rates) // 2]
    total = files.latest(files.timing, "seconds")
    curve = figures.column(files.timing, "images_per_second", "images per second")
    figure = figures.lines([curve], IMAGES, Axis("images / s"), _marks(files))
    figure["layout"]["yaxis"]["rangemode"] = "tozero"
    return [
        page.paragraph(
            f"{plural(round(middle) if middle >= 10 else middle, 'image')} per second in the "
            f"middle of the run; {seconds(total)} of wall clock logged{_waited(files)}."
        ),
        page.plot(
            "Images per second",
            figure,
            "Training speed over the run: dips are validation, sampling, or another program.",
        ),
    ]


def _waited(files: RunFiles) -> str:
    """How much of the time went into waiting for images."""
    parts = [row["waited_share"] for row in files.timing if is_number(row.get("waited_share"))]
    if not parts:
        return ""
    return f", {share(sorted(parts)[len(parts) // 2])} of it waiting for images"


_LOSS = (
    "What is minimised, weighted by learned uncertainty: it may fall below zero, and only its "
    "trend has a meaning."
)
_RATE = "The step size as planned over the run: it rises, holds, and falls."
_GRADIENT = "How strongly each update pulls: single spikes pass, steady growth is a warning."
_WEIGHTS = "Typical size of a weight: with this network it should stay level."
_MAGNITUDES = (
    "Sizes of the activations on the way through the network, and of the weights: they should "
    "level off; a line that keeps climbing ends in numbers that are too large for the arithmetic."
)
_UPDATE = "Size of an update relative to the weights: it should follow the learning rate."
_ERROR = "Squared error with the weighting of EDM, always above zero: it should fall, then level."
_FINAL = (
    (
        "loss",
        "Error over noise",
        Axis("error", log=True),
        "Final held-out error at each noise level; the highest point is the weakest level.",
    ),
    (
        "psnr",
        "PSNR over noise",
        Axis("dB"),
        "Peak signal-to-noise ratio of the denoised image: higher is better, and it falls as "
        "noise hides the image.",
    ),
    (
        "ssim",
        "SSIM over noise",
        Axis("SSIM"),
        "Structural similarity of the denoised image to the original: 1 is identical.",
    ),
)


def _magnitudes(files: RunFiles, marks: list[Mark]) -> list[Html]:
    """Sizes of weights and activations at each validation, where they were measured."""
    names = {
        "activation_rms_highest": ("largest block", 2),
        "activation_rms": ("mean of the blocks", 1),
        "weight_rms": ("weights", 0),
    }
    drawn = [
        replace(figures.column(files.magnitudes, key, name), color=figures.shade(i, 3))
        for key, (name, i) in names.items()
        if any(is_number(row.get(key)) for row in files.magnitudes)
    ]
    if not drawn:
        return []
    figure = figures.lines(drawn, IMAGES, Axis("root mean square", log=True), marks, markers=True)
    return [page.plot("Magnitudes", figure, _MAGNITUDES)]


def _signal(files: RunFiles, key: str, title: str, y: Axis, caption: str) -> Html:
    curve = figures.column(files.metrics, key, title.lower())
    return page.plot(title, figures.lines([curve], IMAGES, y, _marks(files)), caption)


def _marks(files: RunFiles) -> list[Mark]:
    """Incidents over images seen; those too near to each other to be told apart are one mark."""
    rows = sorted(files.incidents, key=lambda pair: float(pair[1]["images_seen"]))
    near = max((float(row["images_seen"]) for row in files.metrics), default=0.0) / 150
    groups: list[list[tuple[int, Row]]] = []
    for n, row in rows:
        if groups and row["images_seen"] - groups[-1][0][1]["images_seen"] <= near:
            groups[-1].append((n, row))
        else:
            groups.append([(n, row)])
    marks = []
    for group in groups:
        worst = next((r for _, r in group if r["severity"] != "warning"), group[0][1])
        label = listed([str(n) for n, _ in group], 3)
        more = f" (and {len(group) - 1} more)" if len(group) > 1 else ""
        marks.append(
            Mark(group[0][1]["images_seen"], label, str(worst["severity"]), told(worst) + more)
        )
    return marks


def _gaps(files: RunFiles) -> str:
    """Values that could not be drawn are said, since a gap in a line is easily missed."""
    keys = ("loss", "error", "grad_norm")
    broken = sum(
        any(row.get(key) is not None and not is_number(row[key]) for key in keys)
        for row in files.metrics
    )
    if not broken:
        return ""
    return (
        f"{plural(broken, 'logged row')} held a value that is not finite; it is a gap in its line."
    )


def _loss(point: tuple[float, float]) -> float:
    return point[1]
