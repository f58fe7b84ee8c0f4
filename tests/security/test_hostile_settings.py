"""Rows D5 and D7: settings are data, nothing listens, and nothing evaluates text.

That every misspelt key is named with its neighbour is in `test_config.py`.
"""

import ast
from pathlib import Path

import pytest
import tiny
from attacks import peak, photos, tree

import poise
from poise.arguments import label_indices, parse_count, parse_duration
from poise.config import from_toml, parse_overrides, resolve
from poise.errors import PoiseError, UsageError

SOURCE = Path(poise.__file__).parent
MODULES = {p.relative_to(SOURCE): ast.parse(p.read_text("utf-8")) for p in SOURCE.rglob("*.py")}
NODES = [(str(path), node) for path, tree in MODULES.items() for node in ast.walk(tree)]
CALLS = [(path, node) for path, node in NODES if isinstance(node, ast.Call)]
SERVERS = {
    *("socket", "socketserver", "http", "wsgiref", "xmlrpc", "asyncio", "ssl", "smtpd"),
    *("flask", "fastapi", "starlette", "uvicorn", "aiohttp", "tornado", "websockets", "gradio"),
    *("bottle", "cherrypy", "django", "dash", "streamlit", "grpc", "zmq", "jupyter"),
}
READERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml", "runpy", "code"}
HOSTILE = {
    "_target_": ('_target_ = "os.system"', "_target_"),
    "_target_ in a section": ('[training]\n_target_ = "os.system"', "training._target_"),
    "a class": ('[model]\n__class__ = "os.system"', "model.__class__"),
    "a table for a section": ('[[training]]\n_target_ = "x"', "training"),
    "a text for a number": (
        '[training]\nlr = "!!python/object/apply:os.system [x]"',
        "training.lr",
    ),
    "infinity": ("[training]\nlr = 1e400", "training.lr"),
    "a huge network": ("[model]\nchannels = 1000000000", "model.channels"),
    "a deep network": ("[model]\ndepth = 99999999999", "model.depth"),
    "many levels": (f"[model]\nchannel_mult = [{'1,' * 10_000}1]", "model.channel_mult"),
    "a huge batch": (f"[training]\nbatch = 1{'0' * 18}", "training.batch"),
    "steps without end": ("[sampling]\nsteps = 1000000000000", "sampling.steps"),
    "a long number": ("seed = " + "9" * 5000, "digits"),
    "a long number in hex": ("seed = 0x" + "f" * 100_000, "seed"),
    "nesting": ("seed = " + "[" * 100_000, "nested without end"),
    "a key of 100,000 parts": ("a" + ".a" * 100_000 + " = 1", "points in a line"),
    "a long file": ("# " + "x" * 10**6, "characters"),
    "yaml": ("seed: !!python/object/apply:os.system ['touch canary']", "not valid TOML"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_settings_are_refused_by_name(kind: str) -> None:
    text, named = HOSTILE[kind]
    with peak() as taken, pytest.raises(UsageError) as caught:
        from_toml(text)
    assert named in str(caught.value) and len(str(caught.value)) < 1000
    assert taken.mib < 50


@pytest.mark.parametrize(
    "pair",
    [
        "_target_=os.system",
        "training._target_=os.system",
        "training.__class__=x",
        "training.lr=__import__('os')",
        "training.lr=" + "[" * 100_000,
        "seed=" + "9" * 5000,
        "seed=0x" + "f" * 5000,
        "model.channels=1000000000",
    ],
)
def test_hostile_overrides_are_refused_by_name(pair: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(None, parse_overrides([pair]))
    assert pair.partition("=")[0] in str(caught.value) and len(str(caught.value)) < 1000


def test_numbers_of_users_do_not_end_in_a_fault_of_python() -> None:
    for value in ("9" * 400, "9" * 20):
        with pytest.raises(UsageError):
            parse_count(value)
    with pytest.raises(UsageError):
        parse_duration("9" * 400)
    for label in ("9" * 5000, "\N{SUPERSCRIPT TWO}", "-1"):
        with pytest.raises(UsageError):
            label_indices(label, ("a", "b"), 1)


def test_a_config_of_others_is_refused_by_the_commands(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(photos(tmp_path / "set", 12))
    for text, named in (HOSTILE["_target_"], HOSTILE["yaml"], HOSTILE["nesting"]):
        root = tmp_path / "run"
        root.mkdir(exist_ok=True)
        (root / "run.json").write_text("{}")
        (root / "config.toml").write_text(text)
        assert tiny.call("train", source, "--run", str(root), "--resume") == 2
        err = capsys.readouterr().err
        assert named in err and "Traceback" not in err
    assert tree(root) == {"run.json", "config.toml"} and not Path("canary").exists()


@pytest.mark.parametrize(
    "text",
    ["classes: !!python/object/apply:os.system ['touch canary']", "classes:\n  cat: 1\n", ""],
)
def test_a_target_in_yaml_is_refused_by_its_name(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(photos(tmp_path / "set", 12))
    Path("mix.yaml").write_text(text)
    args = ["audit", source, "--out", "out", "--workers", "1", "--target", "mix.yaml"]
    assert tiny.call(*args) == 2
    err = capsys.readouterr().err
    assert "mix.yaml" in err and "Traceback" not in err
    assert not Path("canary").exists() and not Path("out").exists()


def imports(known: set[str]) -> dict[str, set[str]]:
    """Which of `known` packages the modules import, by the first part of their names."""
    found: dict[str, set[str]] = {}
    for path, node in NODES:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        if hits := known & {name.split(".")[0] for name in names}:
            found.setdefault(path, set()).update(hits)
    return found


def name_of(function: ast.expr) -> str:
    """`eval` or `os.system`; what is called in other ways has no name."""
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name):
        return f"{function.value.id}.{function.attr}"
    return function.id if isinstance(function, ast.Name) else ""


def test_no_module_serves_anything() -> None:
    """Processes that train together meet through torch, where their launcher says."""
    finds_a_free_port = {"drill/ranks.py": {"socket"}}
    assert imports(SERVERS).items() <= finds_a_free_port.items()
    serving = {"listen", "serve_forever", "create_server", "start_server", "accept"}
    called = [(n.func.attr, n) for _, n in CALLS if isinstance(n.func, ast.Attribute)]
    assert [ast.unparse(node) for name, node in called if name in serving] == []
    bound = [ast.unparse(node) for name, node in called if name == "bind"]
    assert all("('127.0.0.1', 0)" in text for text in bound)


def test_no_module_evaluates_text_or_reads_what_could_run() -> None:
    assert imports(READERS) == {}
    running = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load"}
    calls = {
        f"{path}:{node.lineno}"
        for path, node in CALLS
        if name_of(node.func) in running
        or any(
            k.arg in ("shell", "allow_pickle") and ast.unparse(k.value) != "False"
            for k in node.keywords
        )
    }
    assert calls == set()


def test_hostile_settings_are_errors_of_poise() -> None:
    """Not of the parser: no message tells of Python's own insides."""
    for text, _ in HOSTILE.values():
        with pytest.raises(PoiseError) as caught:
            from_toml(text)
        assert "Error" not in str(caught.value) and "Recursion" not in str(caught.value)
