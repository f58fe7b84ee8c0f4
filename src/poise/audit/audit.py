"""`poise audit`: read everything once, say what is wrong with it, change nothing.

The parts know their own question only; here they are asked in turn and their answers joined.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise.artifacts import write_json
from poise.audit import verdict
from poise.audit.content import diversity, labels, target
from poise.audit.content.features import choose_space, describe
from poise.audit.copies.duplicates import Group, find_duplicates
from poise.audit.look import Look, Problem
from poise.audit.page.page import write_page
from poise.audit.quality import flagged, proposed_resolution, ranked, soft_set, spread
from poise.audit.scan import Scan, scan
from poise.console import Screen
from poise.errors import UsageError

FORMAT = 1
_SCAN = ".scan"


@dataclass(frozen=True)
class Options:
    """How a source is audited."""

    target: Path | None = None  # the mix expected in use, see `audit.target`
    features: str = "auto"  # a name of `audit.features.describe`
    engine: str = "local"  # or ray
    workers: int | None = None  # None: one per core
    missing: str = "refuse"  # what NaN in arrays is worth: refuse or mask


def audit_source(source: str, out: Path, options: Options, screen: Screen) -> dict[str, Any]:
    """Audit `source` into OUT/audit.json and OUT/audit.html; the images are only read.

    Returns:
        What audit.json holds.

    Raises:
        UsageError: no such source, features or target; or `out` is a file.
        DataError: the source holds no image at all.
        ArtifactError: `out` cannot be written.
    """
    if os.path.exists(out) and not out.is_dir():
        raise UsageError(f"{out} is a file.", expected="a folder for audit.json and audit.html")
    wanted = None if options.target is None else target.read(options.target)
    seen = read_all(source, out / _SCAN, options, screen)
    facts = gather(source, seen, options, screen, wanted)
    write_json(out / "audit.json", facts)
    with screen.bar("writing the page", 1):
        write_page(facts, seen, out / "audit.html")
    shutil.rmtree(out / _SCAN, ignore_errors=True)  # only an interrupted audit needs it again
    return facts


def read_all(source: str, cache: Path, options: Options, screen: Screen) -> Scan:
    """Every file decoded once; flags that only the whole set can give are added."""
    with screen.bar("reading images", 1) as bar:
        seen = scan(
            source,
            engine=options.engine,
            workers=options.workers,
            cache=cache,
            missing=options.missing,
            progress=bar.show,
        )
    return flagged(seen)


def gather(
    source: str,
    seen: Scan,
    options: Options,
    screen: Screen,
    wanted: target.Target | None = None,
) -> dict[str, Any]:
    """All facts about the images that were read, as audit.json holds them."""
    whole = np.array([not look.broken for look in seen.looks], bool)
    features = describe(seen.thumbs, options.features)
    with screen.bar("looking for duplicates", 1) as bar:
        groups = find_duplicates(seen, features, bar.show).groups
    facts = _files(source, seen)
    facts |= {
        "ranked": ranked(seen),
        "spread": spread(seen),
        "soft": round(soft_set(seen), 4),
        "duplicates": [_group(group, seen) for group in groups],
        "duplicate_counts": _duplicate_counts(groups),
    }
    with screen.bar("comparing images", 1):
        facts |= _meaning(seen, features, whole, options, wanted)
    facts["findings"] = verdict.findings(facts)
    facts["verdict"] = verdict.verdict(facts)
    return facts


def _files(source: str, seen: Scan) -> dict[str, Any]:
    refused = [_row(file.name, [_refusal(file.reason)]) for file in seen.source.refused]
    rows = [_row(look.name, look.problems) for look in seen.looks] + refused
    kinds = Counter(problem["kind"] for row in rows for problem in row["problems"])
    readable = [look for look in seen.looks if not look.broken]
    items = [
        item for item, look in zip(seen.source.items, seen.looks, strict=True) if not look.broken
    ]
    names = seen.source.label_names
    classes = Counter(item.label for item in items if item.label is not None)
    return {
        "format": FORMAT,
        "source": source,
        "images": len(rows),
        "readable": len(readable),
        "resolution": proposed_resolution(seen.looks),
        "files": rows,
        "problem_counts": dict(kinds.most_common()),
        "formats": dict(Counter(look.format for look in readable).most_common()),
        "modes": dict(Counter(look.mode for look in readable).most_common()),
        "sizes": _sizes(readable),
        "classes": {name: classes.get(index, 0) for index, name in enumerate(names)},
        "splits": dict(Counter(item.split for item in items if item.split)),
        "ignored": list(seen.source.ignored),
        "warnings": list(seen.source.warnings),
    }


def _meaning(
    seen: Scan,
    features: NDArray[np.float32],
    whole: NDArray[np.bool_],
    options: Options,
    wanted: target.Target | None,
) -> dict[str, Any]:
    names = [look.name for look in seen.looks]
    items, label_names = seen.source.items, seen.source.label_names
    classes = (
        np.array([-1 if item.label is None else item.label for item in items], np.int64)
        if label_names
        else None
    )
    pixels = [look.pixels for look in seen.looks]
    return {
        "labels": labels.describe_labels(names, classes, label_names, features, whole, pixels),
        "captions": labels.describe_captions(names, [item.caption for item in items], whole),
        "diversity": diversity.describe_diversity(
            names, classes, label_names, features, whole, space=choose_space(options.features)
        ),
        "target": None
        if wanted is None
        else target.compare(wanted, classes, label_names, features, whole, options.features),
    }


def _row(path: str, problems: Sequence[Problem]) -> dict[str, Any]:
    return {"path": path, "problems": [{"kind": p.kind, "detail": p.detail} for p in problems]}


def _refusal(reason: str) -> Problem:
    return Problem("symlink" if "symbolic link" in reason else "refused", reason)


def _sizes(looks: Sequence[Look]) -> dict[str, int]:
    return dict(Counter(f"{look.width}x{look.height}" for look in looks).most_common(20))


def _group(group: Group, seen: Scan) -> dict[str, Any]:
    return {
        "kind": group.kind,
        "paths": [seen.looks[i].name for i in group.members],
        "cross_class": group.cross_class,
        "cross_split": group.cross_split,
    }


def _duplicate_counts(groups: Sequence[Group]) -> dict[str, dict[str, int]]:
    return {
        kind: {
            "groups": sum(group.kind == kind for group in groups),
            "files": sum(len(group.members) for group in groups if group.kind == kind),
        }
        for kind in ("bytes", "pixels", "near", "feature")
    }
