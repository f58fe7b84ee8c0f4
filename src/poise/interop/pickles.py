"""Pickles read as data: nothing in them is imported, called or compiled.

A pickle is a program for a small machine with a stack. Python's own machine runs what it names;
this one has instructions for data alone. Where a file asks for a class or a function, a closed
table says which inert record takes its place, and every other name is refused. What the records
mean as numbers is for `tensors`.

Source: PEP 307, PEP 3154 and the instructions as `pickletools` describes them.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, Literal, NoReturn, cast

from poise.errors import ArtifactError

POINTER = "persistent id"  # the name of a `Made` that points to numbers beside the pickle
_OBJECT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
_STORAGES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
_MOST_INSTRUCTIONS = 5_000_000  # the largest training state has some 50,000

# how a name may be used: made with or without arguments, filled with a state, or only passed on
_Use = Literal["dict", "set", "object", "call", "text", "token"]
_NAMES: dict[tuple[str, str], _Use] = {
    ("dnnlib.util", "EasyDict"): "dict",
    ("collections", "OrderedDict"): "dict",
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): "call",
    ("torch._utils", "_rebuild_tensor_v2"): "call",
    ("torch._utils", "_rebuild_parameter"): "call",
    ("torch._utils", "_rebuild_parameter_with_state"): "call",
    ("torch.storage", "_load_from_bytes"): "call",
    ("numpy", "ndarray"): "token",
    ("numpy", "dtype"): "object",
    ("__builtin__", "set"): "set",  # protocol 2 has no instruction for sets and for bytes
    ("_codecs", "encode"): "text",
    **{("torch.nn.modules.container", name): "object" for name in CONTAINERS},
    **{("torch", f"{name}Storage"): "token" for name in _STORAGES},
    **{
        (f"numpy.{core}.multiarray", name): "object"
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}

_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
}
_SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle mentions, by name; there is nothing behind it."""

    name: str
    use: _Use


@dataclass(eq=False)
class Made:
    """What a pickle would have made by a call: who was to be called, and with what."""

    name: str
    args: tuple[Any, ...]
    use: _Use
    state: Any = None


def read_pickle(file: IO[bytes], source: str, *, persistent: bool = False) -> Any:
    """The data of one pickle; the file is left behind its last instruction.

    Args:
        file: a file, or bytes in memory, that cannot read beyond its end.
        source: what to call it in errors.
        persistent: whether it may point to numbers that lie beside it.

    Returns:
        None, bools, numbers, text, bytes, lists, tuples, dicts, sets, `Name`s and `Made`s.

    Raises:
        ArtifactError: it names a class, function or instruction that data does not need, or is
            damaged.
    """
    return _Machine(source, persistent).run(file)


class _Machine:
    """The stack, the marks on it, and the memo."""

    def __init__(self, source: str, persistent: bool) -> None:
        self.source, self.persistent = source, persistent
        self.at = 0  # byte of the current instruction
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self, file: IO[bytes]) -> Any:
        try:
            for count, (opcode, arg, at) in enumerate(pickletools.genops(file)):
                self.at = at or 0
                if count > _MOST_INSTRUCTIONS:
                    self.refuse(f"more than {_MOST_INSTRUCTIONS:,} instructions")
                if opcode.name == "STOP":
                    return self.pop()
                self.step(opcode.name, arg)
        except (ValueError, OverflowError, MemoryError) as error:  # of genops: cut off or no pickle
            raise self.damaged(str(error)) from None
        raise self.damaged("it has no end")

    def step(self, opcode: str, arg: Any) -> None:
        """One instruction; those that are not listed are refused."""
        if opcode in _LITERALS:
            self.stack.append(arg)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _EMPTY:
            self.stack.append(_EMPTY[opcode]())
        elif opcode in _SHORT_TUPLES:
            items = [self.pop() for _ in range(_SHORT_TUPLES[opcode])]
            self.stack.append(tuple(reversed(items)))
        elif opcode == "BINPERSID" and self.persistent:
            self.stack.append(Made(POINTER, (self.pop(),), "call"))
        else:
            self.step_with_memory(opcode, arg)

    def step_with_memory(self, opcode: str, arg: Any) -> None:
        match opcode:
            case "PROTO" | "FRAME":
                pass  # how it was cut into pieces does not matter here
            case "MARK":
                self.marks.append(len(self.stack))
            case "TUPLE":
                self.stack.append(tuple(self.since_mark()))
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINPUT" | "LONG_BINPUT":
                self.memo[arg] = self.top()
            case "BINGET" | "LONG_BINGET":
                if arg not in self.memo:
                    raise self.damaged(f"there is no memo {arg}")
                self.stack.append(self.memo[arg])
            case "APPEND" | "APPENDS":
                items = [self.pop()] if opcode == "APPEND" else self.since_mark()
                self.filled(list).extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self.pop(), self.pop()][::-1] if opcode == "SETITEM" else self.since_mark()
                if len(items) % 2:
                    raise self.damaged("a key has no value")
                keys = [self.key(key) for key in items[::2]]
                self.filled(dict).update(zip(keys, items[1::2], strict=True))
            case "ADDITEMS":
                items = [self.key(key) for key in self.since_mark()]
                self.filled(set).update(items)
            case "GLOBAL" | "INST":
                module, _, name = arg.partition(" ")
                self.stack.append(self.named(module, name))
                if opcode == "INST":
                    self.refuse("the instruction INST", arg)
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.stack.append(self.named(module, name))
            case "REDUCE" | "NEWOBJ":
                args, call = self.pop(), self.pop()
                self.stack.append(self.made(call, args))
            case "BUILD":
                self.build(self.pop())
            case _:
                self.refuse(f"the instruction {opcode}", arg)

    def named(self, module: Any, name: Any) -> Name:
        """A class or function of the table."""
        if type(module) is not str or type(name) is not str:
            parts = [x if type(x) is str else f"a {type(x).__name__}" for x in (module, name)]
            self.refuse("a name that it computes", ".".join(parts))
        use = _NAMES.get((module, name))
        if use is None:
            self.refuse(f"{module}.{name}")
        return Name(f"{module}.{name}", use)

    def made(self, call: Any, args: Any) -> Any:
        """In place of a call."""
        if type(call) is not Name or call.use == "token":
            self.refuse("a call of " + (call.name if type(call) is Name else "what is no name"))
        if type(args) is not tuple:
            raise self.damaged(f"the arguments of {call.name} are no tuple")
        if call.use == "dict":
            if args:
                self.refuse(f"{call.name} with arguments")
            return {}
        if call.use == "text":
            if len(args) != 2 or type(args[0]) is not str or args[1] != "latin1":
                self.refuse(f"{call.name} with other arguments than text and latin1")
            return args[0].encode("latin1")
        if call.use == "set":
            if len(args) != 1 or type(args[0]) is not list:
                self.refuse(f"{call.name} of something else than a list")
            return {self.key(key) for key in args[0]}
        return Made(call.name, args, call.use)

    def build(self, state: Any) -> None:
        """Note a state; nobody's attributes are set."""
        target = self.top()
        if type(target) is dict:
            # a state_dict carries the versions of its layers as an attribute
            keys = list(state) if type(state) is dict else [f"a {type(state).__name__}"]
            if keys not in ([], ["_metadata"]):
                self.refuse("attributes of a dict", keys[:5])
        elif type(target) is not Made or target.use != "object" or target.state is not None:
            self.refuse("the state of " + (target.name if type(target) is Made else "plain data"))
        else:
            target.state = state

    def key(self, key: Any) -> Any:
        """A key of a dict or a member of a set: hashing it must be harmless, and it no trick."""
        if type(key) not in (str, int):
            self.refuse(f"a key that is a {type(key).__name__}")
        if type(key) is str and key.startswith("__") and key.endswith("__"):
            self.refuse(f"the attribute {key}")
        return key

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise self.damaged("it takes from an empty stack")
        return self.stack[-1]

    def since_mark(self) -> list[Any]:
        if not self.marks:
            raise self.damaged("a mark is missing")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def filled(self, kind: type) -> Any:
        """The container on top of the stack, of exactly this kind."""
        if type(self.top()) is not kind:
            self.refuse(f"to fill something else than a {kind.__name__}")
        return self.top()

    def refuse(self, what: str, detail: Any = None) -> NoReturn:
        more = "" if detail is None else f" ({str(detail)[:100]})"
        raise ArtifactError(
            f"{self.source} asks for {what[:200]}{more} at byte {self.at:,}; it is refused.",
            expected="network weights, which need none of this",
            remedy="Nothing of the file was run. Do not open it with a program that would.",
        )

    def damaged(self, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self.source} is damaged or no pickle: {why[:200]} (byte {self.at:,}).",
            expected="a network snapshot or a training state of the reference implementation",
            remedy="Fetch the file again and compare its size with the original.",
        )


def is_object(value: Any) -> bool:
    """Whether a value is a network, a loss or an encoder that the reference pickled as an object.

    Its class and its attributes are data; its source text lies beside them and is never looked at.
    """
    if type(value) is not Made or value.name != _OBJECT:
        return False
    meta = value.args[0] if len(value.args) == 1 else None
    return (
        type(meta) is dict
        and type(meta.get("class_name")) is str
        and type(meta.get("state")) is dict
    )


def class_of(record: Made) -> str:
    """The class name of an `is_object`."""
    return cast(str, record.args[0]["class_name"])


def attributes_of(record: Made) -> dict[str, Any]:
    """The attributes of an `is_object`."""
    return cast(dict[str, Any], record.args[0]["state"])
