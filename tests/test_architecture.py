"""The rules of the house, read from the source. There is no list of exceptions."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "poise"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): ast.parse(
        path.read_text("utf-8")
    )
    for path in sorted(SOURCE.rglob("*.py"))
}
ROOMS = {name.split(".")[0] for name in MODULES} - {"__init__", "__main__"}
LAYERS = [  # imports go down; rooms on one line do not import each other
    {"cli"},
    {"api"},
    {"drill", "tuning"},
    {"pipeline", "prepare"},
    {"audit"},
    {"choosing", "learning"},
    {"scoring"},
    {"sampling"},
    {"averaging", "bench", "journal"},
    {"stability"},
    {"budget", "evaluation", "report"},
    {"training"},
    {"flops"},
    {
        "build",
        "console",
        "engines",
        "generate",
        "interop",
        "pictures",
        "resuming",
        "signals",
        "sinks",
    },
    {"diffusion", "models", "data"},
    {"arguments", "artifacts", "processes", "runtime"},
    {"config"},
    {"settings"},
    {"errors", "presets"},
]


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Modules of ours that are imported anywhere, `data.batches`, with the line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            module = node.module or ""
            if module == "poise" or module.startswith("poise."):
                package = module.removeprefix("poise").removeprefix(".")
                for alias in node.names:
                    inner = f"{package}.{alias.name}".strip(".")
                    yield (inner if inner in MODULES else package), node.lineno
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "poise":
                    yield alias.name.removeprefix("poise").removeprefix("."), node.lineno


def test_every_function_fits_on_one_screen() -> None:
    long = [
        f"{name}.{node.name}: {length} lines"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert long == []


def test_every_module_has_at_most_400_lines() -> None:
    lengths = {p.name: len(p.read_text("utf-8").splitlines()) for p in SOURCE.rglob("*.py")}
    assert {name: n for name, n in lengths.items() if n > 400} == {}


def test_no_module_is_named_after_nothing() -> None:
    empty = {"utils", "util", "common", "misc", "helpers", "helper"}
    assert [name for name in MODULES if empty & set(name.split("."))] == []


def test_every_room_has_its_layer() -> None:
    named = [room for layer in LAYERS for room in layer]
    assert sorted(named) == sorted(ROOMS)


def test_imports_go_down() -> None:
    depth = {room: i for i, layer in enumerate(LAYERS) for room in layer}
    wrong = []
    for name, tree in MODULES.items():
        room = name.split(".")[0]
        if room in ("__init__", "__main__"):
            continue
        for target, line in imports(tree):
            other = target.split(".")[0]
            if other not in depth:
                wrong.append(f"{name}:{line} imports {target or 'poise itself'}")
            elif other != room and depth[other] <= depth[room]:
                wrong.append(f"{name}:{line} imports {target}")
    assert wrong == []


def test_the_guard_knows_of_no_drill() -> None:
    """A guard that knew what is injected would prove nothing."""
    kept_apart = {"stability", "learning", "journal", "training", "report"}
    knowing = [
        f"{name} imports {target}"
        for name, tree in MODULES.items()
        for target, _ in imports(tree)
        if name.split(".")[0] in kept_apart and target.split(".")[0] == "drill"
    ]
    assert knowing == []
    words = {"Disturbance", "injected", "injector"}
    told = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if name.startswith("stability") and isinstance(node, ast.Name) and node.id in words
    ]
    assert told == []


def test_modules_of_one_package_import_each_other_without_cycles() -> None:
    graph = {name: {t for t, _ in imports(tree) if t in MODULES} for name, tree in MODULES.items()}
    graph.pop("__init__")
    while graph:
        free = {name for name, targets in graph.items() if not targets & graph.keys()}
        assert free, f"a cycle among {sorted(graph)}"
        graph = {name: targets for name, targets in graph.items() if name not in free}


def test_the_package_itself_imports_the_api_alone_and_late() -> None:
    tree = MODULES["__init__"]
    at_import = [n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)]
    assert {target for node in at_import for target, _ in imports(node)} == {"errors"}
    assert {target for target, _ in imports(tree)} == {"errors", "api"}


@pytest.mark.parametrize("module", ["poise", "poise.cli", "poise.config", "poise.errors"])
def test_asking_for_help_does_not_load_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'plotly' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_threads_that_wait_do_not_spin_for_long() -> None:
    code = "import os, poise; print(os.environ['GOMP_SPINCOUNT'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={}, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) <= 10_000


def test_no_class_of_ours_inherits_from_another_but_seams_errors_and_settings() -> None:
    bases = {
        node.name: [ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases]
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def roots(name: str) -> set[str]:
        return set().union(*map(roots, bases[name])) if bases.get(name) else {name}

    inheriting = {name: [b for b in parents if b in bases] for name, parents in bases.items()}
    wrong = {
        name: parents
        for name, parents in inheriting.items()
        if parents and not roots(name) & {"Exception", "BaseModel", "Protocol"}
    }
    assert any(inheriting.values())
    assert wrong == {}


def test_pickled_code_is_never_loaded() -> None:
    used = {
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(a.name == "pickle" for a in node.names))
        or (isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.load", "torch.save"))
        or (isinstance(node, ast.keyword) and ast.unparse(node) == "allow_pickle=True")
    }
    assert used == set()


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not written yet")
def test_the_map_names_every_room_and_nothing_else() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    block = re.search(r"^## The map\n.*?^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block is not None, "README.md has no fenced block under '## The map'"
    words = [line.split()[0].strip("/") for line in block[1].splitlines() if line.strip()]
    names = [word.removeprefix("src/poise").strip("/").removesuffix(".py") for word in words]
    assert {room for room in ROOMS if room not in names} == set()
    missing = {
        word
        for word, name in zip(words, names, strict=True)
        if name
        and not (SOURCE / name).exists()
        and not (SOURCE / f"{name}.py").exists()
        and not (ROOT / word).exists()
    }
    assert missing == set()
