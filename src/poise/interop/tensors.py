"""Checkpoint files of PyTorch and of pickled networks, as data and numbers.

Three containers are known: a plain pickle that carries each tensor's numbers inside, the zip of
`torch.save` that carries them beside its pickle, and what `torch.save` wrote before 2020, with the
numbers behind several pickles. None is unpickled: see `pickles`.
"""

import io
import math
import mmap
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from poise.errors import ArtifactError
from poise.interop.pickles import (
    CONTAINERS,
    POINTER,
    Made,
    Name,
    attributes_of,
    is_object,
    read_pickle,
)

_DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
_BLOB = "torch.storage._load_from_bytes"
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of PyTorch's format before the zip
_BEFORE_THE_ZIP = b"\x80\x02\x8a\x0a" + _MAGIC.to_bytes(10, "little") + b"."  # how it starts
_LARGEST_PICKLE = 16 * 2**30  # bytes; the largest published network has 3 GB
_DEEPEST, _MOST_MODULES = 16, 10_000  # modules within modules, and all of them
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, EOFError)


class CheckpointFile:
    """An open file: its data, and the numbers of the tensors in it."""

    def __init__(self, path: Path, root: Any, beside: Callable[[str], bytes] | None = None) -> None:
        """
        Args:
            path: the file, for its size and for errors.
            root: what `read_pickle` gave.
            beside: gives the numbers that lie beside the pickle by their key, or raises KeyError
                or an error of the zip; None where all lie inside.
        """
        self.path, self.root, self._beside = path, root, beside
        self._left = path.stat().st_size  # bytes that tensors may still have
        self._modules_left = _MOST_MODULES

    def tensor(self, value: Any) -> Tensor:
        """The numbers of one tensor or parameter, in the type they are stored in.

        Raises:
            ArtifactError: it is no tensor, or claims numbers that the file does not hold.
        """
        if type(value) is Made and value.name in _PARAMETERS and value.args:
            value = value.args[0]
        if type(value) is not Made or value.name != _TENSOR or len(value.args) < 4:
            raise self._broken("something stands where a tensor should")
        storage, offset, size, stride = value.args[:4]
        if not (_is_counts((offset,)) and _is_counts(size) and _is_counts(stride)):
            raise self._broken("a tensor has no proper shape")
        numbers = self._storage(storage)
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False))
        if len(size) != len(stride) or count > len(numbers) or (count and last >= len(numbers)):
            raise self._broken(f"a tensor of shape {list(size)[:8]} is larger than its numbers")
        self._left -= count * numbers.itemsize
        if self._left < 0:
            raise self._broken("its tensors have more numbers than the file")
        return numbers.as_strided(size, stride, offset)

    def state_dict(self, value: Any) -> dict[str, Tensor]:
        """The tensors of a state_dict or of a pickled network, by name.

        Raises:
            ArtifactError: as `tensor`; or it is neither.
        """
        if type(value) is dict:
            return {str(name): self.tensor(entry) for name, entry in value.items()}
        return {name: self.tensor(entry) for name, entry in self._walk(value, "", 0)}

    def _walk(self, module: Any, prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
        """Parameters, buffers and what the submodules have, as `nn.Module.state_dict` names it."""
        if is_object(module):
            state: Any = attributes_of(module)
        else:
            named = type(module) is Made and module.name.split(".")[-1] in CONTAINERS
            state = module.state if named else None
        kinds = ("_parameters", "_buffers", "_modules")
        known = type(state) is dict and any(kind in state for kind in kinds)
        parts = [state.get(kind, {}) for kind in kinds] if known else []
        self._modules_left -= 1
        if self._modules_left < 0:
            raise self._broken(f"it has more than {_MOST_MODULES:,} modules")
        if depth > _DEEPEST or not parts or any(type(part) is not dict for part in parts):
            raise self._broken(f"{prefix[:100] or 'the network'} is no module")
        parameters, buffers, modules = parts
        hidden = state.get("_non_persistent_buffers_set")
        hidden = hidden if type(hidden) is set else set()
        for name, value in {**parameters, **buffers}.items():
            if value is not None and name not in hidden:
                yield f"{prefix}{name}", value
        for name, value in modules.items():
            if value is not None:
                yield from self._walk(value, f"{prefix}{name}.", depth + 1)

    def _storage(self, value: Any) -> Tensor:
        """The numbers that a tensor is a view of, [n]."""
        if type(value) is Made and value.name == _BLOB:
            blob = value.args[0] if len(value.args) == 1 else None
            if type(blob) is not bytes:
                raise self._broken("a tensor has no numbers")
            return self._storage_of_blob(blob)
        dtype, key, count = _pointed(value, self.path)
        if self._beside is None or not re.fullmatch(r"[0-9]{1,18}", key):
            raise self._broken(f"there are no numbers {key[:50]!r}")
        try:
            raw = self._beside(key)
        except (KeyError, *_ZIP_ERRORS) as error:
            raise self._broken(str(error)) from None
        return self._numbers(raw, dtype, count)

    def _storage_of_blob(self, blob: bytes) -> Tensor:
        """Numbers in the format before the zip, of one tensor alone."""
        file = io.BytesIO(blob)
        value, keys = _read_before_the_zip(file, self.path, f"{self.path} (inside of a tensor)")
        dtype, key, count = _pointed(value, self.path)
        stored = int.from_bytes(file.read(8), "little")
        if keys != [key] or stored != count:
            raise self._broken("a tensor's numbers are not what it says")
        return self._numbers(file.read(), dtype, count)

    def _numbers(self, raw: bytes, dtype: torch.dtype, count: int) -> Tensor:
        if len(raw) != count * dtype.itemsize:
            raise self._broken(f"{count} numbers of {dtype} do not make {len(raw)} bytes")
        if not raw:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(raw), dtype=dtype)

    def _broken(self, why: str) -> ArtifactError:
        return _damaged(self.path, why)


@contextmanager
def open_checkpoint(path: Path) -> Iterator[CheckpointFile]:
    """Open a pickled network or a zip of `torch.save`, told apart by their first bytes.

    Raises:
        ArtifactError: missing, of another kind, damaged, or with more in it than data.
    """
    with ExitStack() as stack:
        try:
            found = _open(path, stack)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
        except _ZIP_ERRORS as error:
            raise _damaged(path, str(error)) from None
        yield found


def _open(path: Path, stack: ExitStack) -> CheckpointFile:
    file = stack.enter_context(path.open("rb"))
    start = file.read(len(_BEFORE_THE_ZIP))
    if start.startswith(b"PK\x03\x04"):
        return _open_zip(path, stack.enter_context(zipfile.ZipFile(file)))
    size = path.stat().st_size
    if not 0 < size <= _LARGEST_PICKLE:
        raise ArtifactError(
            f"{path} has {size:,} bytes.",
            expected="a network snapshot (.pkl) or a training state (.pt)",
        )
    content = stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if start == _BEFORE_THE_ZIP:
        return _open_before_the_zip(path, content)
    return CheckpointFile(path, read_pickle(cast(IO[bytes], content), str(path)))


def _open_zip(path: Path, archive: zipfile.ZipFile) -> CheckpointFile:
    """The data of a zip whose members are stored as they are, so that none can swell."""
    members = archive.infolist()
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise _damaged(path, f"{member.filename[:100]} is compressed, as PyTorch never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _damaged(path, "its members claim to be larger than the file")
    names = [member.filename for member in members]
    found = [name for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(found) != 1 or len(set(names)) != len(names):
        raise _damaged(path, "it has no data.pkl or more than one")
    folder = found[0].removesuffix("data.pkl")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise _damaged(path, "its numbers are big-endian")
    pickled = io.BytesIO(archive.read(found[0]))
    root = read_pickle(pickled, f"{path} (data.pkl)", persistent=True)
    return CheckpointFile(path, root, lambda key: archive.read(f"{folder}data/{key}"))


def _open_before_the_zip(path: Path, content: mmap.mmap) -> CheckpointFile:
    """Several pickles, then for each key a count and the raw numbers."""
    root, keys = _read_before_the_zip(cast(IO[bytes], content), path, str(path))
    pointers = [_pointed(value, path) for value in _pointers(root)]
    kinds = {key: (dtype, count) for dtype, key, count in pointers}
    if any(kinds[key] != (dtype, count) for dtype, key, count in pointers):
        raise _damaged(path, "the same numbers have two types")
    if any(type(key) is not str for key in keys) or sorted(keys) != sorted(kinds):
        raise _damaged(path, "its numbers are not those that its tensors point to")
    spans, at = {}, content.tell()
    for key in keys:
        dtype, count = kinds[key]
        if int.from_bytes(content[at : at + 8], "little") != count:
            raise _damaged(path, "a tensor's numbers are not what it says")
        spans[key] = slice(at + 8, at + 8 + count * dtype.itemsize)
        at = spans[key].stop
    if at != len(content):
        raise _damaged(path, f"it has {len(content):,} bytes instead of {at:,}")
    return CheckpointFile(path, root, lambda key: content[spans[key]])


def _read_before_the_zip(file: IO[bytes], path: Path, source: str) -> tuple[Any, list[Any]]:
    """The data, and the keys of the numbers in their order; the file is left before these."""
    magic, protocol, system = (read_pickle(file, source) for _ in range(3))
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or type(system) is not dict:
        raise _damaged(path, "its numbers are in a format that PyTorch does not write")
    if system.get("little_endian") is not True:
        raise _damaged(path, "its numbers are big-endian")
    root = read_pickle(file, source, persistent=True)
    keys = read_pickle(file, source)
    if type(keys) is not list:
        raise _damaged(path, "it does not list its numbers")
    return root, keys


def _pointers(root: Any) -> Iterator[Made]:
    """Every place of the data that points to numbers beside it."""
    todo, seen = [root], set()
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is Made and value.name == POINTER:
            yield value
        elif type(value) is Made:
            todo += [value.args, value.state]
        elif type(value) is dict:
            todo += value.values()
        elif type(value) in (list, tuple):
            todo += value


def _pointed(value: Any, path: Path) -> tuple[torch.dtype, str, int]:
    """Type, key and count of numbers that a pickle points to."""
    pointer = value.args[0] if type(value) is Made and value.name == POINTER else None
    if type(pointer) is not tuple or len(pointer) not in (5, 6) or pointer[5:] not in ((), (None,)):
        raise _damaged(path, "a tensor has no numbers")
    kind, storage, key, _, count = pointer[:5]
    dtype = _DTYPES.get(storage.name) if type(storage) is Name else None
    if kind != "storage" or dtype is None or type(key) is not str or not _is_counts((count,)):
        raise _damaged(path, "a tensor's numbers have no type")
    return dtype, key, count


def _is_counts(value: Any) -> bool:
    return type(value) is tuple and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged or was tampered with: {why}.",
        expected="a file as the reference implementation writes it",
        remedy="Fetch it again and compare its size with the original.",
    )
