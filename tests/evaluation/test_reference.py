"""Real images as one file: whole, readable by others, and refused where it is damaged."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from poise.errors import ArtifactError
from poise.evaluation.reference import Reference, is_reference, read_reference, write_reference


@pytest.fixture
def reference() -> Reference:
    f = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32).astype(np.float64)
    return Reference.of(f, {"features": "pixels", "features_digest": "abc", "images": 200})


def test_comes_back_as_it_was(tmp_path: Path, reference: Reference):
    write_reference(tmp_path / "r.npz", reference)
    again = read_reference(tmp_path / "r.npz")
    assert again.about == reference.about and again.moments.count == 200
    assert again.features is not None and reference.features is not None
    np.testing.assert_array_equal(again.features, reference.features)
    np.testing.assert_array_equal(again.moments.covariance, reference.moments.covariance)


def test_is_what_other_tools_read_and_write(tmp_path: Path, reference: Reference):
    write_reference(tmp_path / "r.npz", reference)
    with np.load(tmp_path / "r.npz", allow_pickle=False) as file:
        np.testing.assert_allclose(file["mu"], reference.moments.mean)
        np.testing.assert_allclose(file["sigma"], reference.moments.covariance)
    np.savez(tmp_path / "theirs.npz", mu=reference.moments.mean, sigma=np.eye(6))
    theirs = read_reference(tmp_path / "theirs.npz")
    assert theirs.features is None and theirs.about == {} and theirs.moments.count is None
    assert is_reference(tmp_path / "theirs.npz")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 4, 4), np.uint8))
    (tmp_path / "no.npz").write_bytes(b"no archive")
    for name in ("images.npz", "no.npz", "absent.npz", "r.png"):
        assert not is_reference(tmp_path / name)


def _with(path: Path, name: str, content: bytes) -> None:
    """The archive with one member replaced."""
    with zipfile.ZipFile(path) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    members[name] = content
    with zipfile.ZipFile(path, "w") as new:
        for member, data in members.items():
            new.writestr(member, data)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("member", "content"),
    [
        ("features.npy", _npy(np.zeros((200, 5), np.float32))),
        ("features.npy", _npy(np.zeros((200, 6), np.int64))),
        ("features.npy", _npy(np.zeros((200, 6), np.float32))[:300]),
        ("features.npy", _npy(np.zeros((2, 6), np.float32)).replace(b"(2, 6)", b"(-1,6)")),
        ("features.npy", _npy(np.array([{"code": 1}], dtype=object))),
        ("about.npy", _npy(np.frombuffer(b"[1]", np.uint8))),
        ("about.npy", _npy(np.frombuffer(b"{no json", np.uint8))),
        ("mu.npy", _npy(np.full(6, np.nan))),
    ],
)
def test_damage_is_refused(tmp_path: Path, reference: Reference, member: str, content: bytes):
    write_reference(tmp_path / "r.npz", reference)
    _with(tmp_path / "r.npz", member, content)
    with pytest.raises(ArtifactError):
        read_reference(tmp_path / "r.npz")


def test_claims_of_more_than_there_is_are_refused(tmp_path: Path, reference: Reference):
    write_reference(tmp_path / "r.npz", reference)
    content = _npy(np.zeros((200, 6), np.float32))
    huge = content.replace(b"(200, 6), }     ", b"(99999999, 6), }")
    assert len(huge) == len(content) and huge != content
    _with(tmp_path / "r.npz", "features.npy", huge)
    with pytest.raises(ArtifactError, match="damaged"):
        read_reference(tmp_path / "r.npz")
