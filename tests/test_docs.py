"""The documents are true: examples run, command lines parse, links lead somewhere."""

import os
import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

import poise
from poise import api, arguments
from poise.cli import app
from poise.config import parse_overrides, resolve
from poise.tuning.space import load_space

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
TINY = {
    "model__channels": 8,
    "model__channels_per_head": 8,
    "model__channel_mult": [1],
    "training__batch": 32,
    "cadence__checkpoints": 1,
    "cadence__snapshots": 1,
    "cadence__validations": 1,
    "cadence__grids": 1,
    "cadence__evaluations": 0,
    "stability__preflight": False,
    "validation__images": 8,
    "sampling__steps": 2,
    "evaluation__samples": 10,
}


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, *languages: str) -> list[str]:
    """The fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S)
    return [text for language, text in found if language in languages]


def commands(page: Path) -> list[str]:
    """Every line of a shell block, and every `poise ...` between backticks outside of blocks."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S)
    inline = re.findall(r"`(poise [a-z][^`]*)`", text)
    lines = [line for block in blocks(page, "sh", "bash", "console") for line in block.splitlines()]
    return [line for line in (*lines, *inline) if line.strip()]


def tiny_train(source: Any, *, run: Any, resume: bool = False, **settings: Any) -> poise.Run:
    """`poise.train` on almost nothing; the settings of the document are checked first."""
    for key in ("budget", "images", "preset"):
        settings.pop(key, None)
    resolve(None, {key.replace("__", "."): value for key, value in settings.items()})
    settings = {} if resume else {**TINY, **settings}
    return api.train(source, run=run, images=64, resume=resume, quiet=True, **settings)


def tiny_tune(source: Any, *, run: Any, **given: Any) -> tuple[dict[str, Any], Path]:
    """`poise.tune` with two trials of almost nothing; budget and space are checked."""
    arguments.parse_duration(given.pop("budget"))
    load_space(given.pop("space"), resolve(None, {}))
    Path("one-rung.toml").write_text("training.lr = true\n[study]\nrungs = [1]\n", "utf-8")
    small = {"space": "one-rung.toml", "trials": 2, "images": 64, "seeds": 1, "quiet": True}
    return api.tune(source, run=run, **{**given, **small, **TINY})


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with `photos/` of two classes, where `poise.train` and `poise.tune` take seconds."""
    folder = tmp_path_factory.mktemp("documents")
    generator = np.random.default_rng(0)
    for kind in ("cat", "dog"):
        (folder / "photos" / kind).mkdir(parents=True)
        for index in range(120):
            pixels = generator.integers(0, 256, (8, 8), np.uint8)
            Image.fromarray(pixels).save(folder / "photos" / kind / f"{index}.png")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(poise, "train", tiny_train, raising=False)
        patch.setattr(poise, "tune", tiny_tune, raising=False)
        os.chdir(folder)
        yield folder
        os.chdir(before)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 150


def test_python_examples_run_in_the_order_of_reading(sandbox: Path) -> None:
    for page in (ROOT / "README.md", *GUIDES):
        for number, text in enumerate(blocks(page, "python"), start=1):
            exec(compile(text, f"{page.name}, example {number}", "exec"), {})
    with np.load("runs/first/eights.npz") as file:
        assert file["arr_0"].shape == (100, 8, 8, 1)
        assert file["arr_1"].tolist() == [8] * 100
    assert Path("runs/first/report.html").is_file()


def test_digits_example(sandbox: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "digits.py"))
    share = example["main"]("runs/demo", samples=20)
    assert 0 <= share <= 1
    accuracy = example["fit_judge"](Path("runs/demo"))[1]
    assert accuracy > 0.95  # the judge is worth something only if it knows real digits
    assert capsys.readouterr().out.rstrip().endswith("runs/demo/report.html")
    assert example["place"](Path("runs/demo")) == (Path("runs/demo-002"), False)


def test_own_images_example(sandbox: Path) -> None:
    example = runpy.run_path(str(ROOT / "examples" / "own_images.py"))
    example["main"]("photos")
    assert len(list((sandbox / "runs" / "own" / "new").glob("*.png"))) == 100


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_parse(page: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M)
    for line in commands(page):
        words = shlex.split(line.replace("[", " ").replace("]", " "), comments=True)
        assert words[0] in ("poise", "make", "pip"), line
        if words[0] == "make":
            assert words[1] in targets, line
        elif words[0] == "poise":
            check_poise(words[1:], line)


def check_poise(words: list[str], line: str) -> None:
    """The line is one that the command line would take."""
    if words == ["--help"]:
        return
    tree: Any = get_command(app).commands
    assert words[0] in tree, line
    command = tree[words[0]]
    optional = [re.sub(r"\bkey=value\b", "seed=1", word) for word in words[1:]]
    known = {n for o in command.params for n in (*o.opts, *o.secondary_opts)}
    assert {word for word in optional if word.startswith("-")} <= known, line
    if len(optional) == 0 and command.params:
        return  # `poise train` as a name
    context = command.make_context(words[0], [re.sub(r"\b[NM]\b", "1", w) for w in optional])
    resolve(None, parse_overrides(context.params.get("settings") or []))
    if context.params.get("budget"):
        arguments.parse_duration(context.params["budget"])
    if context.params.get("images"):
        arguments.parse_count(context.params["images"])


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if "://" not in target and not target.startswith("#"):
            assert (page.parent / target.partition("#")[0]).exists(), target
