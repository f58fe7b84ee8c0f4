"""The audit against a thousand files of which everything is known."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from auditbench import BROKEN, NEAR, Truth, make, pairs_of, score_pairs

from poise.audit.copies.duplicates import Duplicates, Group, Kind, find_duplicates
from poise.audit.quality import flagged
from poise.audit.scan import Scan, scan
from poise.prepare.decide import settle
from poise.prepare.options import Options
from poise.prepare.units import units_of

LEAKS = ("leak-bytes", "leak-pixels", "leak-jpeg", "leak-mirror")


@dataclass(frozen=True)
class Audited:
    """What was planted and what was found."""

    truth: Truth
    scan: Scan
    duplicates: Duplicates

    @property
    def groups(self) -> list[Group]:
        return self.duplicates.groups

    def found(self, *kinds: Kind) -> list[list[str]]:
        """Groups of paths."""
        names = [item.name for item in self.scan.source.items]
        return [[names[i] for i in group.members] for group in self.groups if group.kind in kinds]

    def with_problem(self, kind: str) -> set[str]:
        """Paths with a problem of that kind."""
        return {
            look.name
            for look in self.scan.looks
            if any(problem.kind == kind for problem in look.problems)
        }


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Audited:
    truth = make(tmp_path_factory.mktemp("bench") / "images", seed=0, originals=42, splits=True)
    found = flagged(scan(truth.folder, workers=1))
    return Audited(truth, found, find_duplicates(found))


def test_it_is_a_thousand_files_and_all_are_accounted_for(audited: Audited) -> None:
    assert len(audited.truth.files) >= 1000
    looked = {look.name for look in audited.scan.looks}
    refused = {file.name for file in audited.scan.source.refused}
    assert looked | refused >= set(audited.truth.files)
    assert refused == set(audited.truth.of("symlink"))


def test_every_broken_file_is_found_and_nothing_else(audited: Audited) -> None:
    broken = {look.name for look in audited.scan.looks if look.broken}
    assert broken == set(audited.truth.of(*BROKEN))


def test_exact_copies(audited: Audited) -> None:
    truth = audited.truth
    same_bytes = ("original", "bytes", "label-bytes", "leak-bytes")
    for kinds, found in (
        (same_bytes, audited.found("bytes")),
        ((*same_bytes, "pixels", "leak-pixels"), audited.found("bytes", "pixels")),
    ):
        planted = truth.of(*kinds)
        groups: dict[int, list[str]] = {}
        for path in planted:
            groups.setdefault(truth.files[path].group, []).append(path)
        assert set(pairs_of(found)) == set(pairs_of(groups.values()))


def test_near_copies(audited: Audited) -> None:
    scores = score_pairs(audited.found("bytes", "pixels", "near"), audited.truth)
    assert scores.precision >= 0.99, scores.wrong
    kinds = (*NEAR, "label-near", "exif-rotated", *LEAKS)
    assert {k: v for k in kinds if (v := scores.recall[k]) < 0.98} == {}, scores.missed


def test_conflicts_of_labels_and_leaks_come_first(audited: Audited) -> None:
    truth = audited.truth
    conflicts = {truth.files[p].group for p in truth.of("label-bytes")}
    leaks = {truth.files[p].group for p in truth.of(*LEAKS)}
    names = [item.name for item in audited.scan.source.items]
    near = [g for g in audited.groups if g.kind == "near"]
    of = {truth.files[names[g.members[0]]].group: g for g in near}
    assert {n for n, g in of.items() if g.cross_split} == leaks
    assert {n for n, g in of.items() if g.cross_class} == conflicts
    order = [(g.cross_split, g.cross_class) for g in audited.groups]
    assert order == sorted(order, reverse=True)


def test_blur(audited: Audited) -> None:
    blurred = audited.with_problem("blurred")
    planted = audited.truth.of("blur2", "blur4")
    clean = audited.truth.of("clean")
    assert sum(path in blurred for path in planted) >= 0.95 * len(planted)
    assert sum(path in blurred for path in clean) <= 0.01 * len(clean)


def test_every_oddity_is_named(audited: Audited) -> None:
    truth = audited.truth
    for kind, problem in (
        ("exif-rotated", "exif-rotated"),
        ("rgba", "alpha"),
        *(("cmyk", "cmyk"), ("16-bit", "16-bit"), ("palette", "palette"), ("icc", "icc")),
        ("wrong-extension", "wrong-extension"),
        ("animated", "animated"),
        *(("flat", "flat"), ("dark", "too-dark"), ("light", "too-light")),
    ):
        planted = set(truth.of(kind))
        assert planted, kind
        assert planted <= audited.with_problem(problem), kind


@pytest.mark.parametrize("given", [True, False])
def test_after_the_split_no_copy_lies_on_two_sides(audited: Audited, given: bool) -> None:
    seen, truth = audited.scan, audited.truth
    if not given:
        items = tuple(replace(item, split=None) for item in seen.source.items)
        seen = replace(seen, source=replace(seen.source, items=items))
    decision, closest = settle(seen, audited.duplicates, units_of(seen, None), Options())
    kinds = ("original", "bytes", "pixels", *NEAR, "label-near", "exif-rotated", *LEAKS)
    graded = set(truth.of(*kinds))
    sides: dict[int, set[str]] = {}
    for unit, side in zip(decision.units, decision.sides, strict=True):
        if side is not None and unit.name in graded:
            sides.setdefault(truth.files[unit.name].group, set()).add(side)
    assert {side for found in sides.values() for side in found} >= {"train", "test"}
    assert {group: found for group, found in sides.items() if len(found) > 1} == {}
    assert all(pair.distance > 0 for pair in closest.values())


def test_the_truth_depends_on_the_seed_alone(tmp_path: Path) -> None:
    one, two, other = (
        make(tmp_path / str(i), seed=s, originals=2) for i, s in enumerate((5, 5, 6))
    )
    assert one.files == two.files
    content = [
        {p: (t.folder / p).read_bytes() for p in t.of("original")} for t in (one, two, other)
    ]
    assert content[0] == content[1] != content[2]
