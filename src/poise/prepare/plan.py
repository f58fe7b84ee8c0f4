"""The decision as plain data: plan.json, written in full before the first image is."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from poise.audit.copies.duplicates import Closest
from poise.audit.copies.near import NEAR
from poise.audit.scan import Scan
from poise.data.splits import SPLITS
from poise.prepare.decide import Decision

Weigh = Callable[[Sequence[int], Sequence[str | None]], tuple[list[float], dict[str, float]]]


def plan_of(
    seen: Scan,
    decision: Decision,
    closest: Mapping[str, Closest],
    request: Mapping[str, Any],
    weigh: Weigh,
    shape: tuple[int, int, int, int],
) -> dict[str, Any]:
    """The decision as plain data, with weights, distances and everything people want to know.

    Args:
        seen: the scan.
        decision: of `settle`.
        closest: of `settle`.
        request: what was asked for, kept so that another request is noticed.
        weigh: from (files of training units, names of their classes) to a weight for each and what
            a class or cluster weighs.
        shape: of one entry: [T, C, H, W].
    """
    kept = decision.kept()
    names = seen.source.label_names
    labels = {
        i: None if (n := seen.source.items[decision.units[i].first].label) is None else names[n]
        for i in kept
    }
    train = [i for i in kept if decision.sides[i] == "train"]
    weights, parts = weigh([decision.units[i].first for i in train], [labels[i] for i in train])
    weight = dict(zip(train, weights, strict=True))
    rows = [_row(seen, decision, i, labels[i], weight.get(i, 1.0), shape[2]) for i in kept]
    losses = _losses(seen, decision)
    used = [name for name in names if name in set(labels.values())]
    return {
        "request": dict(request),
        "source": seen.source.name,
        "shape": list(shape),
        "label_names": used,
        "summary": {
            "entries": len(decision.units) + len(seen.source.refused),
            "kept": len(kept),
            "splits": {name: decision.sides.count(name) for name in SPLITS},
            "dropped": dict(Counter(row["cause"] for row in losses).most_common()),
            "classes": {
                name: dict(Counter(row["split"] for row in rows if row["label"] == name))
                for name in used
            },
            "weights": parts,
            "conflicts": len(decision.conflicts),
            "distances": {pair: _distance(seen, found) for pair, found in closest.items()},
        },
        "warnings": _warnings(seen, used, losses, closest, _one_sided(rows)),
        "ignored": list(seen.source.ignored),
        "conflicts": list(decision.conflicts),
        "dropped": losses,
        "items": rows,
    }


def _distance(seen: Scan, closest: Closest) -> dict[str, Any]:
    return {
        "distance": round(float(closest.distance), 6),
        "hamming": int(closest.hamming),
        "paths": [seen.looks[closest.first].name, seen.looks[closest.second].name],
    }


def _losses(seen: Scan, decision: Decision) -> list[dict[str, Any]]:
    """Everything that is dropped, with the files it consists of, then what was never opened."""
    found: list[dict[str, Any]] = []
    for index, (cause, reason) in sorted(decision.dropped.items()):
        unit = decision.units[index]
        digests = [seen.looks[file].sha256 for file in unit.files]
        row = {"path": unit.name, "reason": reason, "cause": cause}
        found.append({**row, "frames": [list(f) for f in unit.frames], "sha256": digests})
    for file in seen.source.refused:
        row = {"path": file.name, "reason": file.reason, "cause": "refused"}
        found.append({**row, "frames": [], "sha256": []})
    return found


def _row(
    seen: Scan, decision: Decision, index: int, label: str | None, weight: float, side: int
) -> dict[str, Any]:
    unit = decision.units[index]
    look, item = seen.looks[unit.first], seen.source.items[unit.first]
    shorter = min(look.width, look.height)
    return {
        "path": unit.name,
        "frames": [list(frame) for frame in unit.frames],
        "sha256": [seen.looks[file].sha256 for file in unit.files],
        "pixels": look.pixels,
        "size": [look.width, look.height],
        "mode": look.mode,
        "format": look.format,
        "label": label,
        "split": decision.sides[index],
        "group": decision.groups[index],
        "weight": weight,
        "caption": item.caption,
        **({"files": [seen.looks[file].name for file in unit.files]} if unit.sequence else {}),
        "cropped": round(1 - shorter**2 / (look.width * look.height), 6),
        "resized": [shorter, side],
    }


def _one_sided(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Classes of which no image is held out, though others have some; in order of their names."""
    sides: dict[str | None, set[str]] = {}
    for row in rows:
        sides.setdefault(row["label"], set()).add(row["split"])
    if all(found == {"train"} for found in sides.values()):
        return []
    return sorted(name for name, found in sides.items() if name and found == {"train"})


def _warnings(
    seen: Scan,
    used: Sequence[str],
    losses: Sequence[Mapping[str, str]],
    closest: Mapping[str, Closest],
    one_sided: Sequence[str],
) -> list[str]:
    found = list(seen.source.warnings)
    if one_sided:
        some = "1 class trains" if len(one_sided) == 1 else f"{len(one_sided)} classes train"
        found.append(
            f"{some} only, such as {one_sided[0]!r}: too small, or one family of copies or of a "
            "group; scores say nothing about it."
        )
    for name in seen.source.label_names:
        if name not in used:
            found.append(f"class {name!r} has 0 images that are kept: it is left out.")
    found += [
        f"{seen.looks[pair.first].name} and {seen.looks[pair.second].name} look like near copies "
        f"and lie on two sides ({name}): group them, or drop one."
        for name, pair in closest.items()
        if pair.distance <= NEAR
    ]
    if losses:
        were = "1 file was" if len(losses) == 1 else f"{len(losses)} files were"
        found.append(
            f"{were} left out when this data set was prepared, such as "
            f"{losses[0]['path']} ({losses[0]['reason']})."
        )
    return found
