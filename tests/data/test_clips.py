"""Sequences with planted gaps, and animations whose frames are known."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pictures import encoded, noise, png_bomb
from PIL import Image

from poise.data.clips import clips_of, find_clips, read_frames
from poise.data.layout import Item
from poise.errors import DataError, UsageError


def items(*names: str) -> list[Item]:
    return [Item(name, None, None) for name in names]


def test_folders_of_numbered_frames() -> None:
    names = [f"a/frame_{n}.png" for n in (10, 11, 8, 9)]  # 10 comes before 9 among names
    names += [f"b/{n:04d}.jpg" for n in (1, 2, 3, 4, 6, 7, 8, 9, 12)]
    names += [f"c/x{n}.png" for n in range(3)]  # too few
    names += ["d/1.png", "d/2.png", "d/3.png", "d/4.png", "d/cover.png"]  # one has no number
    names += [f"e/{stem}-{n}.png" for n in range(4) for stem in "pq"]
    found = find_clips(items(*names))
    assert [[names[i] for i in frames.items] for frames in found.sequences] == [
        [f"a/frame_{n}.png" for n in (8, 9, 10, 11)],
        [f"b/{n:04d}.jpg" for n in (1, 2, 3, 4)],
        [f"b/{n:04d}.jpg" for n in (6, 7, 8, 9)],
        [f"e/p-{n}.png" for n in range(4)],
        [f"e/q-{n}.png" for n in range(4)],
    ]
    assert [f.name for f in found.sequences] == ["a/frame_", "b/1", "b/6", "e/p-", "e/q-"]
    assert found.warnings == ("b/: frames 5, 10 to 11 are missing; no clip spans them.",)
    assert [names[i] for i in found.single] == [
        "b/0012.jpg",
        *(f"c/x{n}.png" for n in range(3)),
        *("d/1.png", "d/2.png", "d/3.png", "d/4.png", "d/cover.png"),
    ]


def test_a_sequence_ends_where_the_class_changes_and_numbers_are_numbers() -> None:
    rows = [Item(f"{n}.png", int(n > 4), None) for n in range(1, 9)]
    found = find_clips(rows)
    assert [f.items for f in found.sequences] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert found.warnings == ()
    assert find_clips(items("1.png", "01.png", "2.png", "3.png", "4.png")).sequences == ()
    assert find_clips([]).sequences == ()


@given(st.lists(st.text("a1/.9_", min_size=1, max_size=30), unique=True, max_size=30))
def test_every_item_is_in_one_sequence_or_single(names: list[str]) -> None:
    found = find_clips(items(*names))
    inside = [i for frames in found.sequences for i in frames.items]
    assert sorted([*inside, *found.single]) == list(range(len(names)))
    assert all(len(frames.items) >= 4 for frames in found.sequences)


@given(st.integers(0, 60), st.integers(1, 20), st.integers(1, 20))
def test_clips_have_one_length_and_leave_less_than_one_clip(frames, length, stride) -> None:
    clips = clips_of(frames, length, stride)
    assert [clip.start for clip in clips] == [n * stride for n in range(len(clips))]
    assert all(len(clip) == length and clip.stop <= frames for clip in clips)
    assert len(clips) * stride + length > frames


def test_clips_of_nothing() -> None:
    for length, stride in ((0, 1), (1, 0), (-1, 1)):
        with pytest.raises(UsageError):
            clips_of(9, length, stride)


def animation(kind: str, frames: list[Image.Image], **options: object) -> bytes:
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:], duration=50, **options)
    return buffer.getvalue()


FLAT = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue", "black", "white")]


@pytest.mark.parametrize(("kind", "options"), [("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": 1})])
def test_frames_of_animations(kind: str, options: dict, tmp_path) -> None:
    content = animation(kind, FLAT, **options)
    frames = read_frames(content)
    assert [(f.mode, f.size) for f in frames] == [("RGB", (9, 7))] * 5
    for frame, planted in zip(frames, FLAT, strict=True):
        assert np.array_equal(np.asarray(frame), np.asarray(planted))
    assert len(read_frames(content, limit=2)) == 2


def test_still_pictures_and_transparency() -> None:
    (frame,) = read_frames(encoded(noise(1)))
    assert np.array_equal(np.asarray(frame), noise(1))
    clear = Image.new("RGBA", (4, 4), (9, 9, 9, 0))
    assert np.asarray(read_frames(encoded(clear))[0]).min() == 255


def test_too_many_pixels_and_bad_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="bomb"):
        read_frames(png_bomb(40_000, 40_000))
    with pytest.raises(DataError, match="not a GIF"):
        read_frames(b"text")
    monkeypatch.setattr("poise.data.clips.MAX_PIXELS", 3 * 63)
    with pytest.raises(DataError, match="4 frames of 9x7"):
        read_frames(animation("GIF", FLAT))
    assert len(read_frames(animation("GIF", FLAT), limit=3)) == 3


@given(st.data())
def test_no_damage_to_an_animation_is_a_crash(data) -> None:
    content = bytearray(animation("GIF", FLAT))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        frames = read_frames(bytes(content[: data.draw(st.integers(0, len(content)))]), limit=9)
    except DataError:
        return
    assert all(frame.mode == "RGB" for frame in frames)
