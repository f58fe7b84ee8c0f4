"""Files that want more than to be read: each is refused by name, and what it planted stays away."""

import io
import os
import pickle
import pickletools
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import snapshots
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from snapshots import Record, pickled, saved, write
from test_state_dicts import TINY, edm2

from poise.errors import ArtifactError, PoiseError
from poise.interop.checkpoints import import_checkpoint
from poise.interop.pickles import Made, Name, read_pickle
from poise.interop.tensors import open_checkpoint

PLANT = "planted"  # a file that every attack tries to leave in the current folder
COMMAND = f"touch {PLANT}"


@pytest.fixture(autouse=True)
def field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Call:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


class Pushed:
    """Pickles as `dict()` with a state, whatever it is."""

    def __init__(self, make: Callable[..., Any], state: Any) -> None:
        self.make, self.state = make, state

    def __reduce__(self) -> Any:
        return self.make, (), self.state


def text(value: str) -> bytes:
    raw = value.encode()
    return b"\x8c" + bytes([len(raw)]) + raw


def name(module: str, attribute: str) -> bytes:
    return text(module) + text(attribute) + b"\x93"


def program(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


def refuse(content: bytes, named: str, suffix: str = ".pkl") -> None:
    """It is refused, by name, and nothing happened."""
    path = write(Path(f"evil{suffix}"), content)
    before = set(sys.modules)
    with pytest.raises(ArtifactError, match=named):
        import_checkpoint(path, Path("out.safetensors"))
    assert not Path(PLANT).exists()
    assert not Path("out.safetensors").exists()
    assert not {
        m for m in set(sys.modules) - before if m.split(".")[0] in ("dnnlib", "antigravity")
    }


def read(content: bytes, **options: Any) -> Any:
    return read_pickle(io.BytesIO(content), "the file", **options)


# --- the attacks are live -----------------------------------------------------------------------


def test_the_attacks_of_this_file_work_on_python_itself() -> None:
    pickle.loads(pickled(Call(os.system, COMMAND)))
    assert Path(PLANT).exists()


# --- globals ------------------------------------------------------------------------------------

GLOBALS = {
    "os.system": (program(name("os", "system") + text(COMMAND) + b"\x85R"), r"os\.system"),
    "posix.system": (pickled(Call(os.system, COMMAND)), r"posix\.system"),
    "protocol 0": (b"cos\nsystem\n(S'" + COMMAND.encode() + b"'\ntR.", r"os\.system"),
    "protocol 1": (pickled(Call(os.system, COMMAND), 1), r"posix\.system"),
    "protocol 2": (pickled(Call(os.system, COMMAND), 2), r"posix\.system"),
    "eval": (pickled(Call(eval, f"open({PLANT!r}, 'w')")), r"builtins\.eval"),
    "exec": (pickled(Call(exec, f"open({PLANT!r}, 'w')")), r"builtins\.exec"),
    "getattr": (pickled(getattr), r"builtins\.getattr"),
    "import": (program(name("builtins", "__import__")), r"builtins\.__import__"),
    "a module's side effect": (program(name("antigravity", "geohash")), r"antigravity\.geohash"),
    "dots in the attribute": (program(name("torch", "_utils.os.system")), r"torch\._utils\.os"),
    "dots to an allowed name": (
        program(name("torch", "_utils._rebuild_tensor_v2")),
        r"torch\._utils\._rebuild",
    ),
    "attributes of a function": (
        program(name("torch.storage", "_load_from_bytes.__globals__")),
        "__globals__",
    ),
    "torch.load": (pickled(Call(torch.load, "x")), r"torch\.serialization\.load"),
    "other layers": (pickled(torch.nn.Linear(1, 1)), r"torch\.nn\.modules\.linear\.Linear"),
    "numpy.load": (program(name("numpy", "load")), r"numpy\.load"),
    "codecs": (program(name("_codecs", "decode")), r"_codecs\.decode"),
    "the reader itself": (program(name("poise.interop.pickles", "Made")), r"pickles\.Made"),
    "old instruction INST": (
        b"\x80\x02(S'" + COMMAND.encode() + b"'\nios\nsystem\n.",
        r"STRING|os\.system",
    ),
    "INST alone": (b"\x80\x02(ios\nsystem\n.", r"os\.system"),
    "INST of an allowed name": (b"\x80\x02(idnnlib.util\nEasyDict\n.", "INST"),
    "OBJ": (program(b"(" + name("dnnlib.util", "EasyDict") + b"o"), "OBJ"),
    "OBJ of os.system": (program(b"(" + name("os", "system") + text(COMMAND) + b"o"), "system"),
    "NEWOBJ_EX": (
        program(name("dnnlib.util", "EasyDict") + b")}\x92"),
        "NEWOBJ_EX",
    ),
    "an extension code": (program(b"\x82\x01"), "EXT1"),
    "a large extension code": (program(b"\x84\x01\x00\x00\x00"), "EXT4"),
    "a persistent id": (program(text("x") + b"Q"), "BINPERSID"),
    "a persistent id in text": (program(b"Pevil\n"), r"PERSID \(evil\)"),
    "a name by concatenation": (
        program(
            text("os") + name("_codecs", "encode") + text("system") + text("latin1") + b"\x86R\x93"
        ),
        r"computes \(os\.a bytes\)",
    ),
    "a name that is a list": (program(text("os") + b"]\x93"), "computes"),
    "a name from the memo": (
        program(text("os") + b"\x94" + text("system") + b"\x94h\x00h\x01\x93"),
        r"os\.system",
    ),
    "a call of a call": (
        program(name("_codecs", "encode") + text("a") + text("latin1") + b"\x86R)R"),
        "a call of what is no name",
    ),
    "a call of a token": (program(name("numpy", "ndarray") + b")R"), r"a call of numpy\.ndarray"),
    "a dict with arguments": (
        program(name("collections", "OrderedDict") + text("x") + b"\x85R"),
        "OrderedDict with arguments",
    ),
    "another encoding": (
        program(name("_codecs", "encode") + text("a") + text("zlib") + b"\x86R"),
        r"_codecs\.encode",
    ),
    "a bytearray": (program(b"\x96" + struct.pack("<Q", 1) + b"x"), "BYTEARRAY8"),
    "a buffer beside it": (program(b"\x97"), "NEXT_BUFFER"),
}


@pytest.mark.parametrize("attack", GLOBALS)
def test_a_name_that_weights_do_not_need_is_refused(attack: str) -> None:
    content, named = GLOBALS[attack]
    refuse(content, named)


@pytest.mark.parametrize("attack", [k for k, v in GLOBALS.items() if v[0][:1] == b"\x80"])
def test_the_same_inside_of_a_training_state(attack: str) -> None:
    content, named = GLOBALS[attack]
    if "persistent" in attack or "PERSID" in named:
        return  # torch.save points to its numbers in this way
    refuse(rezipped(saved({"net": {}}), content), named, ".pt")


def test_what_torch_itself_saved_with_a_call_is_refused() -> None:
    state = {"net": {"a": torch.zeros(1)}, "state": Call(os.system, COMMAND)}
    refuse(saved(state), r"posix\.system", ".pt")


def test_the_first_refusal_comes_before_anything_else_is_looked_at() -> None:
    with pytest.raises(ArtifactError, match=r"os\.system at byte 14;"):
        read(program(name("os", "system") + b"\xff\xff\xff"))


# --- states -------------------------------------------------------------------------------------

STATES = {
    "a class": (torch.nn.ModuleDict, {"__class__": Call}, "__class__"),
    "a reduction": (torch.nn.ModuleDict, {"__reduce__": 1}, "__reduce__"),
    "a setter": (torch.nn.ModuleDict, {"__setstate__": 1}, "__setstate__"),
    "attributes of a dict": (OrderedDict, {"items": 1}, r"attributes of a dict \(\['items'\]\)"),
    "a dict's class": (OrderedDict, {"__class__": 1}, "__class__"),
    "a dict's own dict": (OrderedDict, {"__dict__": {}}, "__dict__"),
    "slots": (OrderedDict, (None, {"items": 1}), r"attributes of a dict \(\['a tuple'\]\)"),
}


@pytest.mark.parametrize("attack", STATES)
def test_a_state_is_noted_and_never_set(attack: str) -> None:
    make, state, named = STATES[attack]
    if isinstance(state, dict) and state.get("__class__") is Call:
        state = {"__class__": 1}
    refuse(pickled({"ema": Pushed(make, state)}), named)


@pytest.mark.parametrize("target", [b"}", b"]", text("x"), b"K\x01", name("numpy", "dtype"), b")"])
def test_plain_data_has_no_state(target: bytes) -> None:
    with pytest.raises(ArtifactError, match=r"attributes|state of plain data"):
        read(program(target + b"}" + text("a") + b"K\x01sb"))


def test_a_state_is_given_once_and_only_to_objects() -> None:
    module = name("torch.nn.modules.container", "ModuleDict") + b")\x81"
    assert read(program(module + b"}b")).state == {}
    with pytest.raises(ArtifactError, match=r"the state of .*ModuleDict"):
        read(program(module + b"}b}b"))
    with pytest.raises(ArtifactError, match=r"the state of .*_rebuild_tensor_v2"):
        read(program(name("torch._utils", "_rebuild_tensor_v2") + b")R}b"))


@pytest.mark.parametrize("key", ["__class__", "__reduce__", "__init_subclass__"])
def test_no_key_is_the_name_of_python_machinery(key: str) -> None:
    weights, _ = edm2()
    value = snapshots.snapshot(weights, TINY)
    value["ema"] = Record("Precond", {**vars(value["ema"]), key: 1})
    refuse(pickled(value), f"the attribute {key}")


# --- source text --------------------------------------------------------------------------------


def test_the_source_text_in_a_file_is_never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    source = f"open({PLANT!r}, 'w').write('ran')\nimport os\nos.system({COMMAND!r})"
    weights, _ = edm2()
    value = snapshots.snapshot(weights, TINY, source=source)
    value["encoder"] = Record("StandardRGBEncoder", {"_init_kwargs": {}}, source)
    path = write(Path("x.pkl"), pickled(value))
    assert source.encode() in path.read_bytes()
    import_checkpoint(path, Path("x.safetensors"))  # what torch compiles at first use is compiled

    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("code of the file, or of Python's own reader")

    with monkeypatch.context() as patch:
        for module, function in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            patch.setattr(module, function, forbidden)
        for function in ("load", "save"):
            patch.setattr(torch, function, forbidden)
        for function in ("eval", "compile"):
            patch.setattr(f"builtins.{function}", forbidden)
        import_checkpoint(path, Path("x.safetensors"))
    assert not Path(PLANT).exists()
    assert "torch_utils" not in sys.modules and "dnnlib" not in sys.modules


# --- numbers inside of tensors ------------------------------------------------------------------


def blob_of(value: torch.Tensor) -> bytes:
    """PyTorch's format before the zip, as tensors carry it inside of a pickle."""
    buffer = io.BytesIO()
    torch.save(value.untyped_storage(), buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def with_blob(change: Callable[[bytes], bytes]) -> bytes:
    """A snapshot in which the numbers of one tensor were changed."""
    weights, _ = edm2()
    content = pickled(snapshots.snapshot(weights, TINY))
    blobs = [
        (arg, at)
        for op, arg, at in pickletools.genops(content)
        if op.name in ("BINBYTES", "SHORT_BINBYTES") and len(arg) > 300 and at is not None
    ]
    old, at = blobs[0]
    start = content.index(old, at)
    header = start - at
    other = change(old)
    new = b"B" + struct.pack("<I", len(other)) + other
    assert header in (2, 5)
    # without frames, whose lengths would no longer be right
    return content[:at] + new + content[start + len(old) :]


def parts(blob: bytes) -> list[bytes]:
    """The five pickles of a blob, and the rest."""
    file, found = io.BytesIO(blob), []
    for _ in range(5):
        start = file.tell()
        list(pickletools.genops(file))
        found.append(blob[start : file.tell()])
    return [*found, file.read()]


def test_an_untouched_tensor_passes() -> None:
    path = write(Path("x.pkl"), with_blob(lambda blob: b"".join(parts(blob))))
    import_checkpoint(path, Path("x.safetensors"))


@pytest.mark.parametrize("where", range(5))
def test_an_attack_inside_of_a_tensor_is_refused(where: int) -> None:
    evil = pickled(Call(os.system, COMMAND), 2)

    def change(blob: bytes) -> bytes:
        found = parts(blob)
        found[where] = evil
        return b"".join(found)

    refuse(with_blob(change), r"inside of a tensor\) asks for posix\.system")


def test_a_zip_inside_of_a_tensor_is_refused() -> None:
    refuse(with_blob(lambda _: saved(Call(os.system, COMMAND))), "damaged")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda blob: blob[:-1], "do not make"),
        (lambda blob: blob + b"\0", "do not make"),
        (lambda blob: b"", "damaged"),
        (lambda blob: blob[:40], "damaged"),
        (lambda blob: blob.replace(b"HalfStorage", b"EvilStorage"), r"torch\.EvilStorage"),
        (lambda blob: blob.replace(b"HalfStorage", b"BoolStorage"), "do not make"),
        (lambda blob: blob.replace(b"\x88", b"\x89", 1), "big-endian"),
        (lambda blob: blob.replace(b"storage", b"mystery", 1), "no type"),
    ],
)
def test_a_damaged_tensor_is_refused(change: Callable[[bytes], bytes], named: str) -> None:
    refuse(with_blob(change), named)


def tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Made:
    args = (storage, offset, size, stride, False, {})
    return Made("torch._utils._rebuild_tensor_v2", args, "call")


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (1, 3)),
        (0, (10**12,), (0,)),
        (0, (2**40, 2**40), (0, 0)),
        (-1, (1,), (1,)),
        (0, (4,), (-1,)),
        (0, (4,), (1, 1)),
        (0, (2.0,), (1,)),
        (0, [2], (1,)),
        (0, (True,), (1,)),
        ("0", (1,), (1,)),
    ],
    ids=str,
)
def test_a_tensor_stays_within_its_numbers(offset: Any, size: Any, stride: Any) -> None:
    blob = Made("torch.storage._load_from_bytes", (numbers_blob(4),), "call")
    with open_checkpoint(write(Path("x.pkl"), program(b"}") + bytes(100))) as file:
        assert file.tensor(tensor(blob, 0, (2, 2), (1, 2))).tolist() == [[0, 2], [1, 3]]
        with pytest.raises(ArtifactError, match=r"larger than its numbers|no proper shape"):
            file.tensor(tensor(blob, offset, size, stride))


def numbers_blob(count: int) -> bytes:
    value = pickled_tensor(torch.arange(float(count)))
    return next(a for op, a, _ in pickletools.genops(value) if op.name.endswith("BINBYTES"))


def pickled_tensor(value: torch.Tensor) -> bytes:
    return pickle.dumps(value, 4)


def test_tensors_that_share_their_numbers_do_not_outgrow_the_file() -> None:
    blob = Made("torch.storage._load_from_bytes", (numbers_blob(64),), "call")
    shared = {str(i): tensor(blob, 0, (64,), (1,)) for i in range(10)}
    with open_checkpoint(write(Path("x.pkl"), program(b"}") + bytes(1000))) as file:
        file.state_dict({"0": shared["0"]})
        with pytest.raises(ArtifactError, match="more numbers than the file"):
            file.state_dict(shared)


# --- bombs and damage ---------------------------------------------------------------------------


def rezipped(content: bytes, root: bytes) -> bytes:
    """The same zip once more, with another data.pkl."""
    buffer = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(content)) as old,
        zipfile.ZipFile(buffer, "w") as new,
    ):
        for member in old.namelist():
            other = root is not None and member.endswith("/data.pkl")
            new.writestr(member, root if other and root is not None else old.read(member))
    return buffer.getvalue()


def test_a_zip_bomb_is_refused_before_it_is_opened() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", program(b"}"))
        archive.writestr("archive/data/0", bytes(50_000_000))
    refuse(buffer.getvalue(), "archive/data.pkl is compressed", ".pt")


def test_a_zip_that_claims_too_much_is_refused() -> None:
    content = bytearray(saved({"net": {"a": torch.zeros(100)}}))
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(b"/data/0"))
    content[at + 20 : at + 28] = struct.pack("<II", 2**31, 2**31)
    refuse(bytes(content), "larger than the file", ".pt")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_two_pickles_is_refused() -> None:
    for second in ("archive/data.pkl", "other/data.pkl"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", program(b"}"))
            archive.writestr(second, pickled(Call(os.system, COMMAND)))
        refuse(buffer.getvalue(), "more than one", ".pt")


@pytest.mark.parametrize("key", ["../data.pkl", "99", "", "0/../../x"])
def test_numbers_are_looked_for_in_their_folder_alone(key: str) -> None:
    content = saved({"net": {"a": torch.zeros(100)}})
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        root = archive.read("archive/data.pkl")
    old, new = b"X\x01\x00\x00\x000", b"X" + struct.pack("<I", len(key)) + key.encode()
    assert old in root
    refuse(rezipped(content, root.replace(old, new)), "no numbers|no item", ".pt")


def test_a_damaged_member_of_a_zip_is_refused() -> None:
    content = bytearray(saved({"net": {"a": torch.full((1000,), 7.0)}}))
    at = content.index(struct.pack("<f", 7.0) * 10)
    content[at] ^= 1
    refuse(bytes(content), "Bad CRC", ".pt")


BOMBS = {
    "a huge text": b"\x8d" + struct.pack("<Q", 2**62),
    "huge bytes": b"\x8e" + struct.pack("<Q", 2**62),
    "more than there is": b"B" + struct.pack("<I", 2**32 - 1) + b"x",
    "a huge number": b"\x8b" + struct.pack("<i", 2**31 - 1),
    "a huge memo": b"Kr\xff\xff\xff\xff" * 3 + b"j\xfe\xff\xff\xff",
    "an empty stack": b"R",
    "a missing mark": b"K\x01t",
    "a mark in the way": b"K\x01(b",
    "a key without value": b"}(K\x01u",
    "a key that is a tuple": b"}" + b")" + b"\x85" * 50_000 + b"K\x01s",
    "a key that is a number with a point": b"}G" + bytes(8) + b"K\x01s",
    "a set of lists": b"\x8f(]\x90",
    "no end": b"K\x01",
    "no instruction": b"\xff",
    "broken text": b"\x8c\x01\xff",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_does_not_go_off(bomb: str) -> None:
    end = b"" if bomb == "no end" else b"."
    refuse(b"\x80\x04" + BOMBS[bomb] + end, "evil")


def test_a_deep_nest_is_data_and_no_crash() -> None:
    refuse(program(b"}" + text("net") + b"]" * 50_000 + b"a" * 49_999 + b"s"), "holds no network")


def test_too_many_instructions_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poise.interop.pickles._MOST_INSTRUCTIONS", 1000)
    refuse(program(b"N" * 2000), "instructions")


def test_a_module_that_holds_itself_many_times_is_refused() -> None:
    module: Any = Record("Precond", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    for _ in range(12):
        children = {str(i): module for i in range(10)}
        module = Record("Precond", {"_parameters": {}, "_buffers": {}, "_modules": children})
    refuse(saved({"net": module}), "modules", ".pt")
    state: dict[str, Any] = {"_parameters": {}, "_buffers": {}, "_modules": {}}
    state["_modules"]["self"] = Record("Precond", state)
    refuse(saved({"net": Record("Precond", state)}), "no module", ".pt")


@pytest.fixture(scope="module")
def good() -> bytes:
    small = {"unet.out_gain": torch.tensor(1.0), "unet.emb_fourier.freqs": torch.ones(4)}
    return pickled(snapshots.snapshot(small, TINY))


def test_a_file_that_was_cut_off_is_refused(good: bytes) -> None:
    for length in range(0, len(good), 199):
        refuse(good[:length], "evil")


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_no_change_of_a_file_gets_anything_but_an_answer(good: bytes, data: st.DataObject) -> None:
    content = bytearray(good)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path = write(Path("x.pkl"), bytes(content))
    with pytest.raises(PoiseError):  # two tensors are no network
        import_checkpoint(path, Path("x.safetensors"))


# --- what is read, is read right ----------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_plain_data_is_what_it_was(protocol: int) -> None:
    long = "long " * 100
    value = {
        "a": [1, -1, 300, 70_000, 2**40, -(2**70), 1.5, True, None, "word", long, b"\x00\xff"],
        3: ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "d": {"set": {1, 2, 3}, "empty": set(), "ordered": OrderedDict(a=1, b=[])},
        "again": (long, long),
    }
    if protocol == 3:  # its name for sets is in no file of the reference
        value["d"] = {}
    assert read(pickle.dumps(value, protocol)) == value


def test_a_class_is_a_name_and_an_array_is_a_record() -> None:
    found = read(pickle.dumps([np.ndarray, np.arange(3), np.float64(2)], 4))
    assert found[0] == Name("numpy.ndarray", "token")
    assert [type(value) for value in found[1:]] == [Made, Made]
