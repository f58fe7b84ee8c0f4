"""Weights of published networks: where they lie, and how they are read.

No file is unpickled: safetensors are numbers, and the files of `torch.save` are read as data (see
`interop.pickles`).
"""

import hashlib
import importlib.util
import os
import re
import shutil
import struct
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from poise.artifacts import check_header
from poise.errors import ArtifactError, PoiseError
from poise.interop.tensors import open_checkpoint

_PATIENCE = 10.0  # seconds without an answer
_NAMED_HASH = r"-([0-9a-f]{8,64})\.[a-z]+"  # name-1234abcd.pth: how the hub of PyTorch names files
_INSTALL = "install what it needs with: pip install 'poise[pretrained]'"


@dataclass(frozen=True)
class Published:
    """A network whose weights others publish.

    Attributes:
        what: its name in messages.
        files: names that its file goes by, the preferred one first.
        url: where the first of them is downloaded; its name ends with the start of its SHA-256.
        repository: the place on the Hugging Face hub that has the files; without a url.
    """

    what: str
    files: tuple[str, ...]
    url: str = ""
    repository: str = ""


def find_weights(published: Published, given: Path | None = None) -> Path:
    """The file with a network's weights: the given one, else from a cache, else downloaded.

    The caches are those of PyTorch's hub (`torch.hub.get_dir()`) and of Hugging Face's. With
    HF_HUB_OFFLINE=1 in the environment nothing is downloaded.

    Args:
        published: what is looked for.
        given: a file under any name, or a folder that has one of the known names.

    Raises:
        ArtifactError: there is none, or its name promises other content.
    """
    if given is not None:
        path = _first([given / name for name in published.files] if given.is_dir() else [given])
        if path is None:
            raise ArtifactError(
                f"There are no weights of {published.what} in {given}.",
                expected=f"a file, or a folder with {' or '.join(published.files)}",
            )
    elif published.url:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        path = _first([folder / name for name in published.files])
        path = path or _from_url(published, folder / published.files[0])
    else:
        path = _from_hugging_face(published)
    _check_named_hash(path)
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a state_dict by name, in the types they are stored in.

    Args:
        path: safetensors, or a file of `torch.save`; told apart by how they start.

    Raises:
        ArtifactError: missing, of another kind, damaged, or with more in it than data.
    """
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
    if start[8:] == b"{":
        return _read_safetensors(path)
    if start.startswith((b"PK\x03\x04", b"\x80")):
        with open_checkpoint(path) as checkpoint:
            return checkpoint.state_dict(checkpoint.root)
    raise ArtifactError(
        f"{path} is no file of weights that Poise reads.",
        expected=".safetensors, or a state_dict saved by PyTorch (.pth, .pt, .bin)",
        remedy="Load it with the program that wrote it and save it as safetensors.",
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, struct.error) as error:
        # RuntimeError: also nesting without end
        raise ArtifactError(
            f"{path} is damaged: {str(error).rstrip('.')}.", remedy="Fetch it again."
        ) from None


def _first(paths: list[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _from_url(published: Published, path: Path) -> Path:
    """Download to `path`, whole and with the right content or not at all."""
    where = f"one of {', '.join(published.files)} in {path.parent}"
    if _offline():
        raise _none_found(published, where, "HF_HUB_OFFLINE is set")
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        answer = urllib.request.urlopen(published.url, timeout=_PATIENCE)
        with answer, part.open("wb") as file:
            shutil.copyfileobj(answer, file)
        _check_named_hash(part, path.name)
        return part.replace(path)
    except PoiseError:
        raise
    except Exception as error:  # connections break in many ways
        raise _none_found(published, where, str(error) or type(error).__name__) from None
    finally:
        part.unlink(missing_ok=True)


def _from_hugging_face(published: Published) -> Path:
    """From the hub's cache, else from the hub, which then keeps it there."""
    if importlib.util.find_spec("huggingface_hub") is None:
        where = "the cache of huggingface_hub"
        raise _none_found(published, where, "huggingface_hub is not installed", _INSTALL)
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    repository = published.repository
    for name in published.files:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    where = f"{repository} in {constants.HF_HUB_CACHE}"
    if _offline() or constants.HF_HUB_OFFLINE:
        raise _none_found(published, where, "HF_HUB_OFFLINE is set")
    if not _answers(constants.ENDPOINT):
        raise _none_found(published, where, f"{constants.ENDPOINT} does not answer")
    return _from_hub(published, where, hf_hub_download)


def _from_hub(published: Published, where: str, download: Callable[..., str]) -> Path:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    for name in published.files:
        try:
            return Path(download(published.repository, name, etag_timeout=_PATIENCE))
        except LocalEntryNotFoundError as error:  # the connection
            raise _none_found(published, where, str(error)) from None
        except EntryNotFoundError:
            continue  # published under the other name
        except Exception as error:  # of the library that it fetches with, which changes
            raise _none_found(published, where, str(error)) from None
    raise _none_found(published, where, f"{published.repository} has no {published.files[-1]}")


def _answers(url: str) -> bool:
    """Whether a server is there; the hub's own library tries for half a minute."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        with urllib.request.urlopen(request, timeout=_PATIENCE):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True  # it says no to this question, but it speaks
    except Exception:  # connections break in many ways
        return False


def _none_found(published: Published, where: str, why: str, first: str = "") -> ArtifactError:
    options = [first, "give a file with --feature-weights FILE", "connect to the network once"]
    remedy = ", or ".join(option for option in options if option)
    return ArtifactError(
        f"Found no weights of {published.what}: {why.splitlines()[0].rstrip('.')}.",
        expected=where,
        remedy=f"{remedy[0].upper()}{remedy[1:]}.",
    )


def _check_named_hash(path: Path, name: str | None = None) -> None:
    """Compare a file with the hash at the end of its name, if there is one.

    Raises:
        ArtifactError: the content is not the promised one.
    """
    name = name or path.name
    promised = re.search(rf"{_NAMED_HASH}$", name)
    if promised is None:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(promised[1]):
        raise ArtifactError(
            f"{path.with_name(name)} is damaged: its SHA-256 starts with "
            f"{found[: len(promised[1])]}.",
            expected=f"{promised[1]}, as its name says",
            remedy="Delete it and fetch it again; rename it if the weights are your own.",
        )
