"""The page holds what the audit found, escaped, alone, bounded, and nothing that is empty."""

import html
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planted_page import facts_of, scan_of

from poise.audit.page.page import write_page
from poise.audit.scan import Scan
from poise.report.page import visible

HOSTILE = "<script>alert('1')</script>\"&\u202e"
CLASSES = ("cat", "dog", "owl")
LIMIT = 8_000_000
_ELEMENTS: dict[str, Counter[str]] = {}


def small(names: list[str], classes: tuple[str, ...] = CLASSES, **options: Any) -> Scan:
    chance = np.random.default_rng(0)
    shape = (len(names), 8, 8, 3)
    return scan_of(list(chance.integers(0, 256, shape, dtype=np.uint8)), names, classes, **options)


def page_of(facts: dict[str, Any], scan: Scan, folder: Path) -> str:
    path = folder / "audit.html"
    write_page(facts, scan, path)
    return path.read_text(encoding="utf-8")


def words_of(page: str) -> str:
    """What a reader reads."""
    page = re.sub(r"<style.*?</style>", " ", page, flags=re.S).replace("<wbr>", "")
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


def names(count: int) -> list[str]:
    return [f"set/{i:05d}.png" for i in range(count)]


@pytest.fixture
def scan() -> Scan:
    return small(names(12), broken=(11,))


def test_what_was_found_is_on_the_page(scan: Scan, tmp_path: Path) -> None:
    words = words_of(page_of(facts_of(scan), scan, tmp_path))
    for planted in (
        "12 files looked at, 11 readable; 3 classes; splits as given: train 8, test 4; "
        "proposed size for training 32 × 32 pixels.",
        "Grave Two files are broken. poise prepare A B Serious Near copies lie across splits.",
        "Fine Labels look right. 1 more line Fine The sixth line. poise audit again",
        "set/00011.png truncated It ends too early. away.png symlink Leads out.",
        "1 group of copies lies on two sides of a split",
        "Leak: test / train · Label conflict: cat / dog · near copies, 2 files",
        "near copies, 3 files",
        "Too dark: 2 flagged flagged 0 · cat set/00000.png flagged 1.50 · dog set/00001.png 3.00",
        "JPEG 9 PNG 3",
        "Sizes in pixels: all 32x32.",
        "owl 15 dog 8 cat 1",
        "worth 2.30 equal ones (entropy 1.20 of 2.00 bits)",
        "The largest is owl with 100 images. The smallest is cat with 1 image.",
        "Too small to learn from: cat.",
        "81 % of the images look most like others",
        "3 labels to look at cat → owl? (90 %) set/00000.png",
        "9 images with a caption, 4 different captions.",
        "a photo 5",
        "The set is 95 % cats where 50 % are wanted.",
        "dog 45 images Collect 45 dogs.",
        "as varied as 12.3 images that have nothing in common",
        "It still rises",
        "Region 0 · 10 images (10 %), mostly cat",
        "Near-empty regions Region 1",
        "3 regions Region Images Share Mostly Kind 0 10 10 % cat crowded 1 20 20 % cat near-empty",
        "Brightness 20.0 · 90.0 · 200",
    ):
        assert planted in words, planted


def test_the_verdict_comes_first_and_its_commands_can_be_copied(scan: Scan, tmp_path: Path) -> None:
    page = page_of(facts_of(scan), scan, tmp_path)
    assert page.index('<ul class="verdict">') < page.index("<section")
    assert "<code>poise prepare A B</code>" in page and "user-select:all" in page


def test_a_group_inside_a_larger_one_is_not_shown_again(scan: Scan, tmp_path: Path) -> None:
    facts = facts_of(scan)
    assert [len(group["paths"]) for group in facts["duplicates"]] == [2, 2, 3]
    page = page_of(facts, scan, tmp_path)
    assert len(re.findall(r'<div class="group[ "]', page)) == 2 + 2  # and two regions


def test_what_only_looks_alike_is_no_sure_leak_and_comes_last(scan: Scan, tmp_path: Path) -> None:
    facts = facts_of(scan)
    alike = {"kind": "feature", "paths": names(11)[8:10], "cross_class": True, "cross_split": True}
    facts["duplicates"].insert(0, alike)
    words = words_of(page_of(facts, scan, tmp_path))
    assert "1 group of copies lies on two sides" in words
    assert words.index("Leak: test / train") < words.index("Perhaps a leak: test / train")
    assert "Perhaps a label conflict: cat / owl" in words


def test_everything_hostile_is_escaped(tmp_path: Path) -> None:
    scan = small([f"{HOSTILE}/{i}" for i in range(12)], (HOSTILE, "dog"), broken=(11,))
    facts = facts_of(scan, HOSTILE)
    facts["files"].append({"path": HOSTILE, "problems": [{"kind": HOSTILE, "detail": HOSTILE}]})
    facts |= {"formats": {HOSTILE: 1, "PNG": 2}, "modes": {HOSTILE: 1}, "splits": {HOSTILE: 1}}
    facts["duplicates"][0]["kind"] = HOSTILE
    facts["duplicate_counts"][HOSTILE] = {"groups": 1, "files": 2}
    facts["captions"]["repeated"][0]["caption"] = HOSTILE
    facts["labels"]["note"] = HOSTILE
    facts["target"]["sentence"] = HOSTILE
    facts["target"]["parts"][1] |= {"name": HOSTILE, "mend": HOSTILE}
    facts["diversity"]["features"] = HOSTILE
    facts["diversity"]["clusters"][0] |= {"id": HOSTILE, "kind": "crowded"}
    facts["findings"][0] |= {"sentence": HOSTILE, "command": HOSTILE}
    page = page_of(facts, scan, tmp_path)
    assert "<script" not in page.lower() and "\u202e" not in page
    assert page.count(html.escape("<script>alert('1')</script>\"&\\u202e", quote=True)) > 40


@given(st.text(st.characters(), min_size=1, max_size=40))
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_is_shown_and_none_changes_the_page(tmp_path: Path, name: str) -> None:
    scan = small([name, *[f"{name}{i}" for i in range(1, 4)]], (name, "dog"), broken=(3,))
    facts = facts_of(scan, "photos")
    facts["findings"][0] |= {"sentence": f"see {name}", "command": f"poise {name}"}
    page = page_of(facts, scan, tmp_path)
    elements = Counter(re.findall(r"<([a-z0-9]+)", page.replace("<wbr>", "")))
    assert elements == _ELEMENTS.setdefault("of the first name", elements)
    assert html.escape(visible(name), quote=True) in page


def test_names_that_look_alike_can_be_told_apart() -> None:
    hidden = ["a.png", "a\u200b.png", "a\u202e.png", "a\x00.png", "a\n.png", "a\udce9.png"]
    shown = [visible(name) for name in hidden]
    assert len(set(shown)) == len(hidden) and all(text.isascii() for text in shown)
    assert visible("ünïcode 猫 ملف 👩\u200d🔬.png") == "ünïcode 猫 ملف 👩\u200d🔬.png"
    assert len(visible("x" * 5000)) < 310


def test_nothing_is_fetched_and_no_script_is_allowed(scan: Scan, tmp_path: Path) -> None:
    page = page_of(facts_of(scan), scan, tmp_path)
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert links and all(link.startswith(("data:image/", "#")) for link in links)
    assert "default-src 'none'" in page and "script" not in page
    assert "@import" not in page and "url(" not in page and "http:" not in page


def test_same_facts_same_bytes(scan: Scan, tmp_path: Path) -> None:
    assert page_of(facts_of(scan), scan, tmp_path) == page_of(facts_of(scan), scan, tmp_path)


@pytest.mark.parametrize(
    ("changes", "gone", "said"),
    [
        ({"labels": None, "classes": {}}, 'id="labels"', "labels (there are none)"),
        ({"captions": None}, 'id="captions"', "captions (there are none)"),
        ({"target": None}, 'id="target"', "a target (none was given"),
        ({"diversity": {}}, 'id="diversity"', "diversity"),
        ({"files": []}, 'id="broken"', "Nothing found: broken files."),
        (
            {"duplicates": [], "duplicate_counts": {"near": {"groups": 0, "files": 0}}},
            'id="duplicates"',
            "Nothing found: copies across splits or classes, duplicates.",
        ),
    ],
)
def test_a_part_that_is_missing_is_one_line(
    scan: Scan, tmp_path: Path, changes: dict[str, Any], gone: str, said: str
) -> None:
    whole = page_of(facts_of(scan), scan, tmp_path)
    assert gone in whole and said not in words_of(whole)
    page = page_of(facts_of(scan) | changes, scan, tmp_path)
    assert gone not in page and gone.replace('id="', 'href="#') not in page
    assert said in words_of(page)


def test_ten_clean_images_have_no_empty_section(tmp_path: Path) -> None:
    scan = small(names(10), ())
    facts = facts_of(scan) | {
        "files": [],
        "problem_counts": {},
        "duplicates": [],
        "duplicate_counts": {},
        "ranked": {},
        "captions": None,
        "target": None,
        "findings": [{"severity": 0, "sentence": "nothing to mend", "command": ""}],
    }
    page = page_of(facts, scan, tmp_path)
    words = words_of(page)
    assert "Nothing found: broken files, copies across splits or classes, duplicates, odd" in words
    for body in re.findall(r"<h2>.*?</h2>(.*?)</section>", page, flags=re.S):
        assert re.sub(r"<[^>]+>|\s", "", body)
    assert re.findall(r'<section id="(.*?)"', page) == ["sizes", "diversity", "spread"]


def test_no_facts_at_all_still_make_a_page(scan: Scan, tmp_path: Path) -> None:
    words = words_of(page_of({}, scan, tmp_path))
    assert "unnamed images" in words and "no classes" in words


def test_the_verdict_alone_is_enough(scan: Scan, tmp_path: Path) -> None:
    page = page_of({"verdict": ["cats <b> only"]}, scan, tmp_path)
    assert "cats &lt;b&gt; only" in page


def test_a_set_that_can_be_trained_on_says_so_first(scan: Scan, tmp_path: Path) -> None:
    facts = facts_of(scan)
    facts["findings"] = [{"severity": 1, "sentence": "two are dark.", "command": ""}]
    facts["verdict"] = ["Nothing stands against it. Train: `poise train photos`", "two are dark."]
    page = page_of(facts, scan, tmp_path)
    assert "Fine Nothing stands against it. poise train photos Note Two are" in words_of(page)
    assert "<code>poise train photos</code>" in page


def test_a_large_set_where_everything_is_wrong_stays_small(tmp_path: Path) -> None:
    """60,000 files of long names, all of them broken, copies, odd and suspect."""
    folder = "a folder with a long name " * 4
    chance = np.random.default_rng(0)
    pictures = list(chance.integers(0, 256, (600, 60, 60, 3), dtype=np.uint8))
    paths = [f"{folder}/{i}.png" for i in range(600)]
    scan = scan_of(pictures, paths, [f"class {i}" for i in range(1000)])
    facts = facts_of(scan)
    facts["files"] = [
        {"path": f"{folder}/{i}", "problems": [{"kind": kind, "detail": folder} for kind in kinds]}
        for i, kinds in enumerate([("truncated", "alpha", f"kind {i % 9}") for i in range(60_000)])
    ]
    pairs = [paths[i % 590 : i % 590 + 9] for i in range(5000)]
    facts["duplicates"] = [
        {"kind": "near", "paths": paths, "cross_class": True, "cross_split": i % 2 == 0}
        for i, paths in enumerate(pairs)
    ]
    for i, rows in enumerate(facts["ranked"].values()):
        rows[:] = [
            {"path": path, "value": 1.0, "flagged": True} for path in paths[50 * i : 50 * i + 48]
        ]
    facts["labels"]["suspects"] *= 100
    facts["labels"]["tiny"] = list(facts["classes"])
    facts["captions"] |= {"empty": paths * 50, "repeated": [{"caption": folder, "count": 2}] * 999}
    facts["target"]["parts"] *= 500
    facts["diversity"]["clusters"] *= 200
    facts["findings"] *= 100
    page = page_of(facts, scan, tmp_path)
    assert len(page.encode()) < LIMIT
    words = words_of(page)
    assert "more are in audit.json" in words and "truncated 60 k" in words
    assert "The 24 surest are shown." in words
