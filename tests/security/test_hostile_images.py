"""Row D3: pictures that claim more than they hold, through all that reads pictures.

What single files do in the decoder is in `data/test_decode.py`, `data/test_clips.py` and
`audit/test_look.py`. Here they lie in one folder that is audited, prepared and trained on, and the
peak of the memory is watched.
"""

import gzip
import json
from pathlib import Path

import pytest
import tiny
from attacks import fits, gif, peak, photos, png, tree

from poise.data.clips import read_frames
from poise.data.dataset import load_dataset
from poise.data.decode import decode, decode_frames, quiet_pillow
from poise.errors import DataError
from poise.settings import DataConfig

MOST_MIB = 100
BOMB = "decompression bomb"
FRAMES = 10_000


@pytest.fixture(scope="module")
def bombs() -> dict[str, tuple[bytes, str]]:
    """Content and what is said of it; the second is below the limit of the library that decodes."""
    return {
        "40000.png": (png(40_000, 40_000, whole=False), BOMB),
        "13000.png": (png(13_000, 13_000, whole=True), BOMB),
        "9000.png": (png(9_000, 9_000, whole=False), BOMB),
        "wide.png": (png(2**31 - 1, 1, whole=False), BOMB),
        "nothing.png": (png(0, 0, whole=False), "header"),
        "sky.fits.png": (fits(40_000), "not a PNG, JPEG"),
        "sky.gz.png": (gzip.compress(fits(40_000) + bytes(2**20)), "not a PNG, JPEG"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bombs: dict[str, tuple[bytes, str]]) -> Path:
    root = photos(tmp_path_factory.mktemp("images") / "set", 20)
    for name, (content, _) in bombs.items():
        (root / name).write_bytes(content)
    (root / "film.gif").write_bytes(gif(FRAMES))
    return root


def test_every_bomb_is_named_by_its_header_before_training(
    folder: Path, bombs: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    with peak() as taken:
        data = load_dataset(folder, DataConfig(resolution=8, max_unreadable=0.5), store=tmp_path)
    assert taken.mib < MOST_MIB
    reasons = {file.name: file.reason for file in data.unreadable}
    assert reasons.keys() == bombs.keys()
    assert all(said in reasons[name] for name, (_, said) in bombs.items())
    assert len(data) == 21 and "film.gif" in data.names
    assert tree(tmp_path) == set()


def test_training_stops_where_most_files_are_bombs(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"13000\.png \(decompression bomb"):
        load_dataset(folder, DataConfig(), store=tmp_path)


def test_the_audit_names_every_bomb(
    folder: Path, bombs: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with peak() as taken:
        assert tiny.call("audit", str(folder), "--out", str(out), "--workers", "1") == 0
    facts = json.loads((out / "audit.json").read_text())
    kinds = {row["path"]: {p["kind"] for p in row["problems"]} for row in facts["files"]}
    for name, (_, said) in bombs.items():
        wanted = {"decompression-bomb"} if said == BOMB else {"unreadable", "truncated"}
        assert kinds[name] & wanted, name
    assert facts["readable"] == 21 and taken.mib < 2 * MOST_MIB  # the page's libraries are in it


def test_preparing_leaves_every_bomb_out_with_its_reason(
    folder: Path, bombs: dict[str, tuple[bytes, str]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with peak() as taken:
        assert tiny.call("prepare", str(folder), str(out), "--workers", "1") == 0
    dropped = {r["path"] for r in json.loads((out / "splits.json").read_text())["dropped"]}
    assert bombs.keys() <= dropped and taken.mib < 2 * MOST_MIB


def test_ten_thousand_frames_take_their_own_size() -> None:
    film = gif(FRAMES)
    with peak() as taken, quiet_pillow():
        assert decode(film).frames == FRAMES
        assert sum(1 for _ in decode_frames(film)) == FRAMES
        assert len(read_frames(film, 3)) == 3
    assert taken.mib < MOST_MIB


def test_frames_that_grow_beyond_the_first_are_refused() -> None:
    small, end = gif(1)[:-1], b";"
    huge = b"," + b"\0\0\0\0\xff\xff\xff\xff\0" + b"\x02\x02\x44\x01\x00"  # 65535 x 65535
    with peak() as taken, quiet_pillow():
        with pytest.raises(DataError):
            list(decode_frames(small + huge + end))
        with pytest.raises(DataError):
            read_frames(small + huge + end)
    assert taken.mib < MOST_MIB
