"""The model card: read back by a Markdown parser it says what the folder says, and nothing acts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from synthetic_run import about, audit, build, edit
from synthetic_scores import scores

from poise.artifacts import RunDir, append_jsonl, write_bytes, write_json
from poise.report import card
from poise.report.page import visible
from poise.report.report import write_report

HOSTILE = "a|b <img src=x> [c](http://d) `e` **f** &lt; $g$ www.h.org ~~i~~ ![j](k)\n# l\x1b\u202e"
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def card_of(run: RunDir) -> str:
    write_report(run)
    return (run.root / "model-card.md").read_text("utf-8")


def parsed(text: str) -> list[Any]:
    """All tokens, those inside of lines too."""
    tokens = PARSER.parse(text.split("---\n", 2)[-1])
    return [t for token in tokens for t in (token, *(token.children or []))]


def tables(text: str) -> list[list[list[str]]]:
    """Cells of every table, as a reader sees them."""
    found: list[list[list[str]]] = []
    tokens = PARSER.parse(text)
    for token, following in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type in ("td_open", "th_open"):
            found[-1][-1].append("".join(child.content for child in following.children))
    return found


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = build(tmp_path / "run", rows=40)
    made.snapshots.mkdir()
    (made.snapshots / "000000400000.safetensors").write_bytes(b"weights")
    return made


def test_what_the_folder_holds_is_on_the_card(run: RunDir) -> None:
    text = card_of(run)
    cells = {tuple(row[:2]) for table in tables(text) for row in table}
    for row in (
        ("source", "sklearn:digits"),
        ("split: train", "1,437"),
        ("fingerprint", "ab12" * 16),
        ("training.lr", "0.004"),
        ("images seen", "400 k of 400 k"),
        ("features", "pixels, digest " + "f00dfeed" * 4),
        ("command", "poise run digits --minutes 4"),
        ("torch", "2.13.0"),
        ("SHA-256 of config.toml", hashlib.sha256(run.config.read_bytes()).hexdigest()),
        ("SHA-256 of snapshots/000000400000.safetensors", hashlib.sha256(b"weights").hexdigest()),
    ):
        assert row in cells, row
    scored = next(table for table in tables(text) if table[0][0] == "Score")
    assert ["Fréchet distance", "0.741", "0.641 to 0.841", "0.713", "lower"] in scored
    assert "with 612 k parameters that draws grey images of 8 × 8 pixels in 10 classes" in text
    assert "- 1 file cannot be read" in text and "- Weak: The run met 1 error" in text
    assert "poise sample RUN --out new -n 64" in text
    assert "gradient spike" in text
    assert text.startswith("---\nlicense: fill in\n") and "- class-conditional\n" in text


def test_the_same_folder_gives_the_same_card(run: RunDir) -> None:
    assert card_of(run) == card_of(run)


def test_a_run_that_has_just_begun_has_one_too(tmp_path: Path) -> None:
    write_json(RunDir(tmp_path).run, {})
    text = card_of(RunDir(tmp_path))
    assert "The samples have not been scored." in text and "has not been audited" in text


def test_nothing_hostile_acts(run: RunDir) -> None:
    plain = [token.type for token in parsed(card_of(run))]
    facts = about()
    facts["data"] |= {"label_names": [HOSTILE] * 10, "fingerprint": HOSTILE, "channels": [HOSTILE]}
    facts |= {"source": HOSTILE, "preset": HOSTILE, "command": [HOSTILE], "status": HOSTILE}
    write_json(run.run, facts | {"environment": {HOSTILE: HOSTILE}, "seed": HOSTILE})
    write_json(run.audit, audit() | {"warnings": [HOSTILE], "verdict": [HOSTILE, "1. x", "- y"]})
    given = scores("test") | {"weights": HOSTILE, "samples": HOSTILE, "warnings": [HOSTILE]}
    given["metrics"][HOSTILE] = {"value": 1.0, "real": HOSTILE, "better": HOSTILE}
    given |= {
        "features": dict.fromkeys(("name", "digest"), HOSTILE),
        "guidance": {HOSTILE: HOSTILE},
    }
    write_json(run.scores("test"), given)
    row = {"images_seen": 5, "severity": "error", "kind": HOSTILE, "action": HOSTILE}
    append_jsonl(run.log("events"), row)
    text = card_of(run)
    types = {token.type for token in parsed(text)}
    acting = {"html_inline", "html_block", "link_open", "image", "em_open", "strong_open", "s_open"}
    assert types <= set(plain) | {"text_special"} and not types & acting
    assert all(len(row) == len(table[0]) for table in tables(text) for row in table)
    assert "\x1b" not in text and "\u202e" not in text and "http://" not in text
    heads = [t for t in parsed(text) if t.type == "heading_open" and t.tag == "h2"]
    assert len(heads) == 6
    assert " ".join(visible(HOSTILE).split()) in {c for t in tables(text) for row in t for c in row}


WORDS = st.one_of(st.text(max_size=80), st.text("\\`*_[]<>#|~$&-+=.1 ax\n", max_size=40))


@given(WORDS)
def test_any_text_is_read_back_as_it_was(words: str) -> None:
    wanted = " ".join(visible(words).split())
    table = tables(card._table(("A", "B"), [("x", words), ("y", "z")]))
    assert [row[1] for row in table[0]] == ["B", wanted, "z"]
    tokens = PARSER.parse(f"- {card._line('x' if not wanted else words)}\n- end")
    kinds = [token.type for token in tokens if token.type != "inline"]
    one = ["list_item_open", "paragraph_open", "paragraph_close", "list_item_close"]
    assert kinds == ["bullet_list_open", *one, *one, "bullet_list_close"]
    said = next(token for token in tokens if token.type == "inline").children
    assert "".join(child.content for child in said) == (wanted or "x")


def test_settings_of_another_version_do_not_stop_it(run: RunDir) -> None:
    write_bytes(run.config, b'[data]\nnew = "x"\n')
    edit(run.scores("test"), metrics=json.loads("[]"))
    assert "written by another version of Poise" in card_of(run)
