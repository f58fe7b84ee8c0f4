"""The run folder: the one contract between stages. Names, JSON lines, tensor files with checksums.

It knows where things lie and whether they are whole; what they mean is for those who read them.

    config.toml        resolved settings          metrics.jsonl      one line per logged update
    run.json           source, data facts,        timing.jsonl       wall clock beside it
                       environment, status        validation.jsonl   error by noise level
    audit.json         what the data looks like   events.jsonl       incidents, decisions
    splits.json        which image is where       samples/           grids over training
    checkpoints/       to resume                  scores-SPLIT.json  metrics of the samples
    snapshots/         to sample                  report.html        everything on one page
    choices.json       weights, guidance          magnitudes.jsonl   sizes of weights, activations
    tradeoff.json      what guidance costs        scores.jsonl       of snapshots while training
    preflight.json     checks before training     alive.json         while a process trains it
    tuning.json        the study it came from     model-card.md      the run in Markdown

A checkpoint that cannot be used is kept beside the others as *.damaged.
"""

import contextlib
import hashlib
import json
import os
import struct
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from poise.errors import ArtifactError, PoiseError

FORMAT = 1  # raised when an older Poise could no longer read the file
_CHECKPOINTS_KEPT = 2
_HEADER_BYTES = 8 * 2**20  # of a tensor file; that of the largest published network has 2 MB
_MOST_TENSORS = 20_000  # the same network with its optimiser and averages has some 5,000
_LARGEST_SIDE = 2**14  # pixels or channels of data that a model is trained on
_RUNS_CODE = {b"PK\x03\x04": "a zip, as torch.save writes them", b"\x80": "a pickle"}


@dataclass(frozen=True)
class DataFacts:
    """What a model must know of its data to be built and to sample without it."""

    resolution: int  # side in pixels
    channels: int
    label_names: tuple[str, ...]  # empty: no classes
    sigma_data: float  # standard deviation of the training pixels in [-1, 1]
    latents: bool = False  # what is drawn is decoded elsewhere: numbers, not pixels

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "DataFacts":
        """The facts that `dataclasses.asdict` wrote.

        Raises:
            ArtifactError: one is missing, or no data have it.
        """
        try:
            facts = cls(
                int(raw["resolution"]),
                int(raw["channels"]),
                tuple(str(name) for name in raw["label_names"]),
                float(raw["sigma_data"]),
                bool(raw.get("latents", False)),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ArtifactError(f"What a file says of its data cannot be used: {error}.") from None
        sides = (facts.resolution, facts.channels)
        if not all(0 < side <= _LARGEST_SIDE for side in sides) or not facts.sigma_data > 0:
            raise ArtifactError(
                f"A file claims data of {sides[0]} pixels, {sides[1]} channels and a deviation of "
                f"{facts.sigma_data}.",
                expected=f"1 to {_LARGEST_SIDE:,} of both, and a number above 0",
            )
        return facts

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RunDir:
    """The paths of one run and how its files are written."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def run(self) -> Path:
        return self.root / "run.json"

    @property
    def audit(self) -> Path:
        return self.root / "audit.json"

    @property
    def splits(self) -> Path:
        return self.root / "splits.json"

    @property
    def choices(self) -> Path:
        return self.root / "choices.json"

    @property
    def tradeoff(self) -> Path:
        return self.root / "tradeoff.json"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def alive(self) -> Path:
        """There while a process trains this run; one that was killed leaves it."""
        return self.root / "alive.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def snapshots(self) -> Path:
        return self.root / "snapshots"

    @property
    def samples(self) -> Path:
        return self.root / "samples"

    def log(self, name: str) -> Path:
        """`metrics`, `timing`, `validation`, `magnitudes`, `scores` or `events` as a path."""
        return self.root / f"{name}.jsonl"

    def scores(self, split: str) -> Path:
        """Scores against one split."""
        return self.root / f"scores-{split}.json"

    def checkpoint_at(self, images_seen: int) -> Path:
        """Where the state after `images_seen` images is kept."""
        return self.checkpoints / f"{images_seen:012d}.safetensors"

    def snapshot_at(self, images_seen: int) -> Path:
        """Where the averaged weights after `images_seen` images are kept."""
        return self.snapshots / f"{images_seen:012d}.safetensors"

    def snapshot_files(self) -> list[Path]:
        """All snapshots, oldest first."""
        return sorted(self.snapshots.glob("*.safetensors"))

    def checkpoint_files(self) -> list[Path]:
        """All checkpoints, oldest first; a file whose name is no number is none of ours."""
        files = self.checkpoints.glob("*.safetensors")
        return sorted(p for p in files if p.stem.isascii() and p.stem.isdecimal())

    def forget_old_checkpoints(self, proved: int | None = None) -> None:
        """Keep the last two, and the newest of at most `proved` images, or else the oldest."""
        files = self.checkpoint_files()
        good = [p for p in files if proved is not None and int(p.stem) <= proved]
        kept = good[-1:] or (files[:1] if proved is not None else [])
        for path in files[:-_CHECKPOINTS_KEPT]:
            if path not in kept:
                path.unlink()

    def truncate_logs(self, images_seen: int) -> None:
        """Cut every log and drop every later picture and snapshot: they will be written anew.

        Incidents and uses of the test split stay: they happened. Files that a killed process left
        half written go too.
        """
        for pattern in (".*.part", ".tmp*"):  # the second is where the safetensors library writes
            for path in self.root.rglob(pattern):
                path.unlink()
        for name in ("metrics", "timing", "validation", "magnitudes", "scores", "events"):
            path = self.log(name)
            if path.exists():
                rows = read_jsonl(path)
                kept = [r for r in rows if r["images_seen"] <= images_seen or _happened(r)]
                text = "".join(json.dumps(row, sort_keys=True) + "\n" for row in kept)
                write_bytes(path, text.encode())
        for path in [*self.samples.glob("*.png"), *self.snapshots.glob("*.safetensors")]:
            if path.stem.isdigit() and int(path.stem) > images_seen:
                path.unlink()


def _happened(row: Mapping[str, Any]) -> bool:
    """Whether an event stays true when the run goes back."""
    return "cause" in row or row.get("kind") == "test_split"


def write_bytes(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: to a neighbour first, flushed to disk, then renamed.

    Raises:
        ArtifactError: the disk is full or read-only; what was there before is untouched.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Write readable JSON, atomically. NaN and infinities are written as JavaScript knows them."""
    write_bytes(path, (json.dumps(value, indent=1, sort_keys=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ArtifactError: there is no such file, or it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtifactError(
            f"{path} does not exist.", remedy="Check the path, or train the run first."
        ) from None
    except (ValueError, RecursionError) as error:  # also numbers and nesting without end
        raise ArtifactError(f"{path} is not JSON: {error}.") from None


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line; never to another file that `path` links to.

    Raises:
        ArtifactError: the disk is full or read-only, or the file is a symbolic link.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8", opener=_unlinked) as file:
            file.write(json.dumps(row, sort_keys=True) + "\n")
    except OSError as error:
        raise _cannot_write(path, error) from None


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """All whole lines; a last line cut off by a crash is left out. An absent file has none."""
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            break  # only the last line can be cut; nothing after it was written
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and JSON `meta` as one safetensors file with a checksum over both, atomically.

    Raises:
        ArtifactError: the disk is full or read-only; what was there before is untouched.
    """
    flat = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(meta, sort_keys=True)
    header = {"poise": text, "format": str(FORMAT), "sha256": digest_of(flat, text)}
    with replacing(path) as temporary:
        save_file(flat, temporary, metadata=header)


def load_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of `save_tensors` and check it; nothing in it is run.

    The header is judged before the library reads it: its size, its names, their number.

    Raises:
        ArtifactError: missing, not written by Poise, from a newer Poise, or damaged.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist.", expected="a .safetensors file of a run")
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        digest = digest_of(tensors, header.get("poise", ""))
    except (SafetensorError, OSError, ValueError, TypeError, RuntimeError, struct.error) as error:
        raise _damaged(path, str(error)) from None  # RuntimeError: also nesting without end
    if "poise" not in header or "sha256" not in header:
        raise ArtifactError(
            f"{path} was not written by Poise.", expected="a snapshot or checkpoint"
        )
    version = header.get("format", "")
    readable = version.isascii() and version.isdecimal()
    if readable and (len(version) > 9 or int(version) > FORMAT):
        raise ArtifactError(f"{path} comes from a newer Poise.", remedy="Upgrade Poise.")
    if not readable or digest != header["sha256"]:
        raise _damaged(path, "its checksum does not match its content")
    try:
        meta = json.loads(header["poise"])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"what is said of its tensors is not JSON: {error}") from None
    if not isinstance(meta, dict):
        raise _damaged(path, f"what is said of its tensors is {type(meta).__name__}, no object")
    return tensors, meta


def check_header(path: Path) -> None:
    """Judge the header of a safetensors file before the library reads it.

    Raises:
        ArtifactError: a file that could run code.
        ValueError, RecursionError: a header that is larger than any of ours, is no JSON, or names
            a tensor twice.
    """
    with path.open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        content = file.read(size) if len(start) == 8 and size <= _HEADER_BYTES else b""
    for magic, kind in _RUNS_CODE.items():
        if start.startswith(magic) and size > _HEADER_BYTES:
            raise ArtifactError(
                f"{path} is {kind}, which can run code when it is loaded: it was not opened.",
                expected="a .safetensors file of a run",
                remedy="Do not load it elsewhere either, unless you trust who made it.",
            )
    if size > _HEADER_BYTES:
        raise ValueError(f"its header claims {size:,} bytes, more than {_HEADER_BYTES:,}")
    if content.count(b'"dtype"') > _MOST_TENSORS:
        raise ValueError(f"its header lists more than {_MOST_TENSORS:,} tensors")
    json.loads(content, object_pairs_hook=_once)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"its header names {name[:100]!r} twice")
        found[name] = value
    return found


def _damaged(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} is damaged: {why.rstrip('.')}.", remedy="Use an earlier file of the same run."
    )


def read_meta(path: Path) -> dict[str, Any]:
    """The plain data of a file of `save_tensors`, unchecked; empty where there is none to read."""
    try:
        check_header(path)
        with safe_open(path, framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("poise", "{}"))
    except (ArtifactError, SafetensorError, OSError, ValueError, RuntimeError, struct.error):
        return {}  # RuntimeError: also nesting without end
    return found if isinstance(found, dict) else {}


def digest_of(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    """SHA-256 in hex over `text` and the names, types, shapes and numbers of tensors on the CPU."""
    sha = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour of `path` that takes its place when the block succeeds."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.chmod(0o644)  # safetensors writes for its owner alone
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise _cannot_write(path, error) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _cannot_write(path: Path, error: Exception) -> PoiseError:
    return ArtifactError(
        f"Cannot write {path}: {error}.",
        expected="a folder with free space that may be written to",
        remedy="Free some space or choose another folder; what was saved before is intact.",
    )


def _unlinked(path: str, flags: int) -> int:
    """Open a file that is no symbolic link, as `open` does otherwise."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
