"""Files of weights are read as data; what is not there is said, and never waited for."""

import hashlib
import io
import json
import struct
import urllib.request
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from poise.errors import ArtifactError
from poise.evaluation.extractors.weights import Published, find_weights, read_weights

HUB = Published("a network", ("model.safetensors", "pytorch_model.bin"), repository="some/network")


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(6, 4, generator=generator)
    return {
        "a.weight": base,
        "a.turned": base.T,  # a view: both share their numbers
        "a.half": base[2:, :3].half(),
        "b.count": torch.tensor(7),
        "b.bf16": base.bfloat16(),
        "c.empty": torch.empty(0, 3),
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(
        torch.equal(found[n], wanted[n]) and found[n].dtype == wanted[n].dtype for n in wanted
    )


@pytest.mark.parametrize("new", [True, False], ids=["zip", "before the zip"])
def test_a_state_dict_of_torch_is_read_without_unpickling(tmp_path: Path, new: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=new)
    assert same(read_weights(path), tensors())
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    torch.save(network.state_dict(), path, _use_new_zipfile_serialization=new)
    assert same(read_weights(path), dict(network.state_dict()))


def test_safetensors_are_read_whatever_the_file_is_called(tmp_path: Path) -> None:
    wanted = {n: t.contiguous().clone() for n, t in sorted(tensors().items())}
    save_file(wanted, tmp_path / "w.bin")
    found = read_weights(tmp_path / "w.bin")
    assert same({n: found[n] for n in wanted}, wanted)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("run",)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_file_is_refused(
    tmp_path: Path, new: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(2), "b": Evil()}, path, _use_new_zipfile_serialization=new)
    with pytest.raises(ArtifactError, match=r"asks for __builtin__\.print"):
        read_weights(path)
    assert "run" not in capsys.readouterr().out


def test_a_network_instead_of_its_state_dict_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors()}, tmp_path / "w.pt")
    with pytest.raises(ArtifactError, match="where a tensor should"):
        read_weights(tmp_path / "w.pt")


def test_a_file_before_the_zip_that_was_cut_or_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(tensors(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for broken in (whole[:-1], whole + b"\0", whole[:200], whole[:15] + b"M\0\0." + whole[19:]):
        path.write_bytes(broken)
        with pytest.raises(ArtifactError):
            read_weights(path)
    at = whole.rindex(struct.pack("<q", 24))  # the count before some of the numbers
    path.write_bytes(whole[:at] + struct.pack("<q", 25) + whole[at + 8 :])
    with pytest.raises(ArtifactError, match="not what it says"):
        read_weights(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        struct.pack("<Q", 2**40) + b"{",
        struct.pack("<Q", 40) + b'{"a":1,"a":2}' + b" " * 27,
        struct.pack("<Q", 9) + b"{" * 9,
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w").write_bytes(content)
    with pytest.raises(ArtifactError):
        read_weights(tmp_path / "w")
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_weights(tmp_path / "none")


def test_what_is_given_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "own.bin"
    file.write_bytes(b"x")
    assert find_weights(HUB, file) == file
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(ArtifactError, match=r"model\.safetensors or pytorch_model\.bin"):
        find_weights(HUB, folder)
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert find_weights(HUB, folder).name == "pytorch_model.bin"
    (folder / "model.safetensors").write_bytes(b"x")
    assert find_weights(HUB, folder).name == "model.safetensors"
    with pytest.raises(ArtifactError, match="no weights of a network"):
        find_weights(HUB, tmp_path / "none")


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Published:
    """A file 'on the network', and empty caches."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    content = b"the weights"
    name = f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (tmp_path / name).write_bytes(content)
    return Published("a network", (name, f"other-{name}"), url=(tmp_path / name).as_uri())


def test_a_download_is_kept_and_any_known_name_is_found(online: Published, tmp_path: Path) -> None:
    first = find_weights(online)
    assert first == tmp_path / "hub" / "checkpoints" / online.files[0]
    (tmp_path / online.files[0]).unlink()  # no more downloads
    assert find_weights(online) == first
    first.rename(first.with_name(online.files[1]))
    assert find_weights(online).name == online.files[1]


def test_other_content_than_the_name_promises_is_refused(online: Published, tmp_path: Path) -> None:
    served = tmp_path / online.files[0]
    served.write_bytes(b"other weights")
    with pytest.raises(ArtifactError, match="is damaged"):
        find_weights(online)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    with pytest.raises(ArtifactError, match="as its name says"):
        find_weights(online, served)


def test_without_a_network_it_says_what_to_do(
    online: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / online.files[0]).unlink()
    with pytest.raises(ArtifactError, match=r"(?s)checkpoints.*--feature-weights FILE"):
        find_weights(online)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(urllib.request, "urlopen", pytest.fail)
    for published in (online, HUB):
        with pytest.raises(ArtifactError, match="HF_HUB_OFFLINE is set"):
            find_weights(published)


def test_the_cache_of_hugging_face_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    home = tmp_path / "models--some--network"
    kept = home / "snapshots" / "abc" / "pytorch_model.bin"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    assert find_weights(HUB) == kept


def test_the_hub_is_asked_for_either_name_and_only_if_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(repository: str, name: str, **_: object) -> str:
        asked.append((repository, name))
        if name != "pytorch_model.bin":
            raise EntryNotFoundError("not this one")
        return str(tmp_path / name)

    def silent(*_: object, **__: object) -> None:
        raise urllib.request.URLError("no route")

    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(urllib.request, "urlopen", silent)
    with pytest.raises(ArtifactError, match="does not answer"):
        find_weights(HUB)
    assert asked == []
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    assert find_weights(HUB) == tmp_path / "pytorch_model.bin"
    assert asked == [("some/network", name) for name in HUB.files]


def test_the_header_is_judged_before_the_library_reads_it(tmp_path: Path) -> None:
    header = {
        f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_001)
    }
    text = json.dumps(header).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(ArtifactError, match=r"20,000 tensors"):
        read_weights(tmp_path / "w.safetensors")
