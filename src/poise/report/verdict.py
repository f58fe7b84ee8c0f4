"""What the files say about the run: findings, worst first, each with what to do about it."""

from typing import Any

from poise.report.figures import weights_name
from poise.report.finding import BROKEN, GOOD, NOTE, WEAK, Finding, worst_first
from poise.report.folder import Row, RunFiles, items
from poise.report.judgement import judge
from poise.report.page import visible
from poise.report.words import (
    cause,
    count,
    is_number,
    number,
    plain,
    plural,
    seconds,
    sentence,
    share,
)

# Where a value stops being unremarkable.
_STILL_FALLING, _RISEN = 0.02, 0.02  # relative change of the validation error
_SKIPPED_MANY = 0.01  # share of updates
_GROWN = 1.5  # times: sizes of weights or activations over the second half


def findings(files: RunFiles) -> list[Finding]:
    """Everything worth saying, worst first."""
    found = [
        *_status(files),
        *_scores(files),
        *_skipped(files),
        *_incidents(files),
        *_magnitudes(files),
        *_preflight(files),
        *_validation(files),
        *_averaging(files),
        *_audit(files),
        *[
            Finding(WEAK, problem, "Check the file in the run folder.")
            for problem in files.problems
        ],
    ]
    return worst_first(found)


def judged_scores(files: RunFiles) -> Row | None:
    """The scores to judge by: the test split if it was scored."""
    return files.scores[-1] if files.scores else None


def best_weights(rows: list[Row]) -> dict[str, list[tuple[float, float]]]:
    """(images seen, mean validation error) per kind of weights, finite values only."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if is_number(row.get("loss")):
            pair = (row["images_seen"], row["loss"])
            found.setdefault(str(row.get("weights")), []).append(pair)
    return found


def _status(files: RunFiles) -> list[Finding]:
    run = files.run
    status, seen, planned = run.get("status"), run.get("images_seen"), run.get("planned_images")
    where = f"after {count(seen)} of {plural(planned, 'planned image')}"
    if not is_number(planned):
        where = f"after {plural(seen, 'image')}"
    if status == "failed":
        return [
            Finding(
                BROKEN,
                f"The run failed {where}.",
                "Read the last incident below, change what it names, and resume from the last "
                "checkpoint.",
            )
        ]
    if status == "stopped":
        return [
            Finding(
                BROKEN,
                f"The guard stopped the run {where}.",
                "Read the last incident below, change what it names, and resume.",
            )
        ]
    if status == "interrupted":
        return [
            Finding(
                WEAK,
                f"The run was interrupted {where}.",
                "Resume it: it goes on from its last checkpoint as if it had never stopped.",
            )
        ]
    if status == "running":
        return [Finding(NOTE, f"The run is still going, {where}; all values are preliminary.")]
    if is_number(seen) and is_number(planned) and seen < 0.99 * planned:
        return [Finding(NOTE, f"The run ended {where}: its time or its own judgement ended it.")]
    return [Finding(GOOD, f"The run finished {where}, in {seconds(run.get('seconds'))}.")]


def _skipped(files: RunFiles) -> list[Finding]:
    skipped = files.latest(files.metrics, "skipped")
    step = files.latest(files.metrics, "step")
    if not is_number(skipped):
        return []
    if skipped == 0:
        return [Finding(GOOD, "Every update was finite; none had to be skipped.")]
    part = f" ({share(skipped / step)} of all)" if is_number(step) and step else ""
    many = is_number(step) and step and skipped / step > _SKIPPED_MANY
    return [
        Finding(
            WEAK if many else NOTE,
            f"{plural(skipped, 'update')} were not finite and were skipped{part}."
            if skipped != 1
            else f"1 update was not finite and was skipped{part}.",
            "Halve training.lr, or set training.precision=fp32." if many else "",
        )
    ]


def _incidents(files: RunFiles) -> list[Finding]:
    """All incidents in one line: how many, the last serious one, and what was done."""
    if not files.incidents:
        if not files.metrics or files.run.get("status") not in ("finished", "running"):
            return []
        return [Finding(GOOD, "No incident was recorded while training.")]
    errors = [row for _, row in files.incidents if row.get("severity") != "warning"]
    warnings = len(files.incidents) - len(errors)
    counts = [plural(n, word) for n, word in ((len(errors), "error"), (warnings, "warning")) if n]
    last = (errors or [files.incidents[-1][1]])[-1]
    text = sentence(visible(last.get("message", last.get("kind", "")), 300))
    done = last.get("action")
    acted = "" if done in (None, "", "none") else f" Action: {visible(cause(str(done)), 60)}."
    which = f"the last{' error' if errors and warnings else ''}"
    return [
        Finding(
            WEAK if errors else NOTE,
            f"The run met {' and '.join(counts)}; {which}, at {count(last['images_seen'])} images: "
            f"{text}{acted}",
            "See the incidents and what was done about each." if errors else "",
        )
    ]


def _magnitudes(files: RunFiles) -> list[Finding]:
    """Whether weights and activations kept their size over the second half."""
    rows = files.magnitudes
    grown = {}
    for key, words in (("activation_rms_highest", "activations"), ("weight_rms", "weights")):
        known = [(row["images_seen"], row[key]) for row in rows if is_number(row.get(key))]
        half = [pair for pair in known if 2 * pair[0] <= known[-1][0]]
        if half and half[-1][1] > 0:
            grown[words] = known[-1][1] / half[-1][1]
    if not grown:
        return []
    large = {words: times for words, times in grown.items() if times > _GROWN}
    if not large:
        told = f"{' and '.join(grown)} kept their size over the second half of the training."
        return [Finding(GOOD, sentence(told))]
    told = ", ".join(f"{words} to {number(times)} times" for words, times in large.items())
    return [
        Finding(
            NOTE,
            f"Sizes were still growing over the second half of the training: {told}.",
            "Watch the magnitudes in a longer run; a lower training.lr slows their growth.",
        )
    ]


def _preflight(files: RunFiles) -> list[Finding]:
    """What the checks before training warned of."""
    checks = [row for row in items(files.preflight, "checks") if isinstance(row, dict)]
    warned = [row for row in checks if row.get("verdict") in ("warn", "refuse")]
    return [
        Finding(NOTE, f"Before training: {_line(visible(row.get('sentence', ''), 400))}")
        for row in warned
    ]


def _scores(files: RunFiles) -> list[Finding]:
    scores = judged_scores(files)
    if scores is None:
        return [Finding(NOTE, "The samples have not been scored yet.")]
    return judge(scores)


def _validation(files: RunFiles) -> list[Finding]:
    curves = best_weights(files.validation)
    if not curves:
        return [Finding(NOTE, "There has been no validation yet.")]
    name = "raw" if len(curves) == 1 and "raw" in curves else sorted(set(curves) - {"raw"})[-1]
    curve = curves[name]
    if len(curve) < 3:
        return [Finding(NOTE, "There are too few validations yet to see a trend.")]
    (end, last), (best_at, best) = curve[-1], min(curve, key=lambda pair: pair[1])
    before = [loss for seen, loss in curve if seen <= 0.75 * end] or [curve[0][1]]
    fall = (before[-1] - last) / abs(before[-1]) if before[-1] else 0.0
    if best and (last - best) / abs(best) > _RISEN:
        return [
            Finding(
                WEAK,
                f"Validation error was lowest at {count(best_at)} images ({number(best)}) and has "
                f"risen to {number(last)} since: the model fits its training images too closely.",
                f"Use the snapshot nearest to {count(best_at)} images, or add images, flips or "
                "model.dropout.",
            )
        ]
    if fall > _STILL_FALLING:
        return [
            Finding(
                NOTE,
                f"Validation error was still falling at the end, by {share(fall)} over the last "
                "quarter: longer training should help.",
                "Train longer: raise training.images, for example to twice its value.",
            )
        ]
    return [Finding(GOOD, "Validation error has levelled off: longer training will gain little.")]


def _averaging(files: RunFiles) -> list[Finding]:
    """Whether the averaged weights that are sampled by default are the best ones at the end."""
    last = {name: curve[-1][1] for name, curve in best_weights(files.validation).items()}
    averaged = sorted(set(last) - {"raw"})
    if not averaged or len(last) < 2:
        return []
    used, best = averaged[-1], min(last, key=lambda name: last[name])
    if best == used or last[used] <= 0 or (last[used] - last[best]) / last[used] < _RISEN:
        return []
    remedy = "Train longer, or shorten training.ema_stds."
    if best == "raw":
        told = f"The raw weights ({number(last['raw'])}) beat every average of them"
        return [Finding(WEAK, f"{told}: the averages still hold early training.", remedy)]
    told = f"{weights_name(best)} has a lower validation error ({number(last[best])})"
    rest = f" than {weights_name(used)} ({number(last[used])}), which is sampled by default."
    return [Finding(NOTE, told + rest, f"Sample from {weights_name(best)}.")]


def _audit(files: RunFiles) -> list[Finding]:
    if files.audit is None:
        return [Finding(NOTE, "The data has not been audited yet.")]
    warnings = [_line(item) for item in items(files.audit, "warnings")]
    remedy = "Look at the images named under “The data”, and remove or repair them."
    if warnings:
        more = f" ({len(warnings) - 1} more under “The data”)" if len(warnings) > 1 else ""
        return [Finding(WEAK, f"The data: {warnings[0]}{more}", remedy)]
    verdict = [_line(item) for item in items(files.audit, "verdict")]
    return [Finding(GOOD, f"The data: {verdict[0]}")] if verdict else []


def _line(item: Any) -> str:
    return sentence(item if isinstance(item, str) else plain(item))
