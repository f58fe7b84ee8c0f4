"""One vocabulary: every cause has its words, and the guide says the same."""

import re
from pathlib import Path

from poise.stability.causes import CAUSES, guide, title

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "when-training-goes-wrong.md"
DRAWN = {path.stem.removeprefix("drill-") for path in (ROOT / "docs/figures").glob("drill-*.svg")}


def test_the_guide_is_what_the_causes_say() -> None:
    assert PAGE.read_text("utf-8").endswith(guide(DRAWN & set(CAUSES)))


def test_the_way_into_the_guide_leads_to_sections() -> None:
    links = re.findall(r"\]\(#([\w-]+)\)", PAGE.read_text("utf-8"))
    assert links and set(links) <= set(CAUSES)


def test_a_figure_is_shown_where_there_is_one() -> None:
    assert "(../figures/drill-ascent.svg)" in guide({"ascent"})
    assert "svg" not in guide()


def test_every_cause_has_all_its_words() -> None:
    for name, cause in CAUSES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name) and cause.name == name
        assert not cause.title.endswith(".")
        for words in (cause.looks, cause.why, cause.does, cause.do):
            assert words[-1] == "." and (words[0].isupper() or words[0] in "`"), (name, words)
        assert 0 <= cause.specificity <= 9
    titles = [cause.title for cause in CAUSES.values()]
    assert len(set(titles)) == len(titles)


def test_what_explains_more_comes_first() -> None:
    for better, worse in (
        ("non-finite-input", "non-finite-activation"),
        ("weights-damaged", "non-finite-activation"),
        ("non-finite-activation", "non-finite-gradient"),
        ("out-of-range-data", "bad-batch"),
        ("constant-data", "bad-batch"),
        ("ascent", "lr-too-high"),
        ("lr-drift", "lr-too-high"),
        ("stale-layer", "vanishing-gradients"),
        ("broken-band", "exploding-gradients"),
        ("repeated-batches", "memorisation"),
        ("ema-frozen", "ema-too-long"),
    ):
        assert CAUSES[better].specificity > CAUSES[worse].specificity, (better, worse)
    assert all(c.specificity > 0 for name, c in CAUSES.items() if name != "divergence")


def test_titles_of_other_events() -> None:
    assert title("ascent") == CAUSES["ascent"].title
    assert title("not_scored") == "Not scored"
