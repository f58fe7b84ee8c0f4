"""What was planned or done, in lines for people."""

from collections.abc import Mapping
from typing import Any

from poise.report.page import visible
from poise.report.words import listed, plural

_CLASSES = 6  # named in one line
_CAUSES = 6
_NOTES = 5
_LONGEST = 300  # characters of a note


def report_lines(plan: Mapping[str, Any]) -> list[str]:
    """Five to ten lines from what `prepare_source` returned."""
    facts = plan["summary"]
    lines = [_head(plan, facts), _splits(facts), *_dropped(facts), *_classes(facts)]
    if facts["conflicts"]:
        many = facts["conflicts"] > 1
        lines.append(
            f"{plural(facts['conflicts'], 'picture')} {'lie' if many else 'lies'} in two classes "
            f"as exact copies, so a label of {'each' if many else 'it'} is wrong; they are named "
            "under conflicts in plan.json."
        )
    lines += [_closest(pair, found) for pair, found in facts["distances"].items() if found]
    lines += _notes(plan)
    if facts["weights"]:
        lines.append(f"Draws: {_weights(facts['weights'])}.")
    if "statistics" in plan:
        lines.append(
            f"sigma_data {plan['statistics']['sigma_data']:.4f}, from the training images alone."
        )
    return [*lines, _end(plan)]


def _head(plan: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    if "shape" in plan:
        frames, channels, height, width = plan["shape"]
    else:
        frames, channels, height, width = (
            plan[key] for key in ("frames", "channels", "height", "width")
        )
    kind = f"clips of {frames} frames" if frames > 1 else "images"
    return (
        f"{plan['source']}: {facts['kept']:,} of {facts['entries']:,} {kind} are kept, at "
        f"{width}x{height} pixels with {plural(channels, 'channel')}."
    )


def _splits(facts: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {count:,}" for name, count in facts["splits"].items())
    return f"Splits: {parts}."


def _dropped(facts: Mapping[str, Any]) -> list[str]:
    causes = [f"{count:,} {cause}" for cause, count in facts["dropped"].items()]
    return [f"Dropped: {listed(causes, _CAUSES)}."] if causes else ["Dropped: nothing."]


def _classes(facts: Mapping[str, Any]) -> list[str]:
    sizes = {name: sum(sides.values()) for name, sides in facts["classes"].items()}
    ranked = sorted(sizes, key=lambda name: (-sizes[name], name))
    named = [f"{visible(name, 60)} {sizes[name]:,}" for name in ranked]
    return [f"Classes: {listed(named, _CLASSES)}."] if named else []


def _closest(pair: str, found: Mapping[str, Any]) -> str:
    first, second = (visible(path, 80) for path in found["paths"])
    return (
        f"Closest across {pair.replace('-', ' and ')}: {first} and {second}, "
        f"{found['hamming']} of 64 bits apart, distance {found['distance']:.3g}."
    )


def _notes(plan: Mapping[str, Any]) -> list[str]:
    """What the source and the plan warn of; what is dropped has its own line."""
    found = list(plan["warnings"])
    if plan["summary"]["dropped"]:
        found.pop()  # see `plan.plan_of`: the last one counts what is dropped
    more = len(found) - _NOTES
    notes = [f"Note: {visible(text, _LONGEST)}" for text in found[:_NOTES]]
    return [*notes, f"Note: {more:,} more in plan.json."] if more > 0 else notes


def _weights(weights: Mapping[str, float]) -> str:
    ranked = sorted(weights, key=lambda name: (-weights[name], name))
    return listed([f"{visible(name, 60)} x{weights[name]:.2f}" for name in ranked], _CLASSES)


def _end(plan: Mapping[str, Any]) -> str:
    if plan["state"] == "planned":
        return "Nothing was written. Without --dry-run this is what will be done."
    done = "was ready before: nothing to do" if plan["state"] == "unchanged" else "is ready"
    return f"{plan['out']} {done}. Train on it: poise train {plan['out']}"
