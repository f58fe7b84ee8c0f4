"""Image sequences: folders of numbered frames and animations, cut into clips of fixed length."""

import io
import re
import struct
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from poise.data.decode import MAX_PIXELS, MAX_SIDE, quiet_pillow
from poise.data.layout import Item
from poise.errors import DataError, UsageError

_FORMATS = ("GIF", "WEBP", "PNG")  # what can hold an animation
_FEWEST = 4  # frames in a row that make a sequence
_NUMBERED = re.compile(r"(?s)(.*?)([0-9]{1,18})(\.[^./]*)?")


@dataclass(frozen=True)
class Frames:
    """Consecutive frames of one sequence."""

    name: str  # the common start of the files' paths, with the first number if there are several
    items: tuple[int, ...]  # positions in the list of items, in order of the frame numbers


@dataclass(frozen=True)
class Found:
    """All sequences of a source, and the rest."""

    sequences: tuple[Frames, ...]  # in order of their names
    single: tuple[int, ...]  # positions of the items that are in none
    warnings: tuple[str, ...]  # gaps in the numbers, by name


def find_clips(items: Sequence[Item]) -> Found:
    """Sequences: folders whose files are all numbered, `stem` + number + suffix.

    Files of one folder with different stems are different sequences. A sequence ends where a
    number is missing or the class, split or group changes; runs of fewer than 4 frames are none.
    """
    folders: dict[str, list[int]] = defaultdict(list)
    for position, item in enumerate(items):
        folders[item.name.rpartition("/")[0]].append(position)
    sequences: list[Frames] = []
    warnings: list[str] = []
    for folder in sorted(folders):
        parts = {p: _NUMBERED.fullmatch(items[p].name) for p in folders[folder]}
        stems: dict[tuple[str, str], dict[int, int]] = defaultdict(dict)
        numbered = True
        for position, match in parts.items():
            if match is None:
                numbered = False
                break
            key, number = (match[1], match[3] or ""), int(match[2])
            numbered = numbered and number not in stems[key]  # 1.png and 01.png: no sequence
            stems[key][number] = position
        if numbered:
            for (stem, _), frames in sorted(stems.items()):
                found, gaps = _runs(items, stem, frames)
                sequences += found
                warnings += gaps
    inside = {position for frames in sequences for position in frames.items}
    single = tuple(position for position in range(len(items)) if position not in inside)
    return Found(tuple(sequences), single, tuple(warnings))


def _runs(
    items: Sequence[Item], stem: str, frames: dict[int, int]
) -> tuple[list[Frames], list[str]]:
    """The runs without a gap among frames {number: position}; and the gaps, in words."""
    runs: list[list[int]] = []
    gaps: list[str] = []
    last = None
    for number in sorted(frames):
        item = items[frames[number]]
        facts = (item.label, item.split, item.group)
        if last is None or number != last[0] + 1 or facts != last[1]:
            if last is not None and number != last[0] + 1:
                missing = f"{last[0] + 1} to {number - 1}"
                gaps.append(missing if number > last[0] + 2 else str(number - 1))
            runs.append([])
        runs[-1].append(number)
        last = (number, facts)
    kept = [run for run in runs if len(run) >= _FEWEST]
    sequences = [
        Frames(stem + (str(run[0]) if len(kept) > 1 else ""), tuple(frames[n] for n in run))
        for run in kept
    ]
    if not kept or not gaps:
        return sequences, []
    text = ", ".join(gaps[:5]) + (", ..." if len(gaps) > 5 else "")
    return sequences, [f"{stem}: frames {text} are missing; no clip spans them."]


def clips_of(frames: int, length: int, stride: int) -> list[range]:
    """Clips of `length` consecutive frames that begin every `stride` frames.

    Args:
        frames: of the sequence; those after the last whole clip are in none.
        length: frames of a clip, at least 1.
        stride: from the first frame of a clip to that of the next, at least 1.

    Raises:
        UsageError: a length or stride below 1.
    """
    if length < 1 or stride < 1:
        raise UsageError(
            f"Clips of {length} frames every {stride} frames.", expected="at least 1 of both"
        )
    return [range(first, first + length) for first in range(0, frames - length + 1, stride)]


def read_frames(content: bytes, limit: int | None = None) -> list[Image.Image]:
    """The frames of a GIF, animated WebP or animated PNG as RGB, transparency laid on white.

    Every frame is the whole picture as it is shown. A still picture has one. Not for threads,
    because Pillow's warnings are silenced for the whole process meanwhile.

    Args:
        content: the file.
        limit: at most so many frames, from the first.

    Raises:
        DataError: it is no such file, is damaged, or its frames have too many pixels together.
    """
    frames: list[Image.Image] = []
    try:
        with quiet_pillow(), Image.open(io.BytesIO(content), formats=_FORMATS) as image:
            while limit is None or len(frames) < limit:
                try:
                    image.seek(len(frames))
                except EOFError:
                    break
                _refuse_large(image.size, len(frames) + 1)
                frames.append(_on_white(image))
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from None
    except UnidentifiedImageError:
        raise DataError(
            "not a GIF, WebP or PNG image",
            expected="an animation",
            remedy="Remove the file, or save the animation anew.",
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error) as error:
        raise DataError(
            f"damaged or truncated: {error}",
            expected="a whole animation",
            remedy="Copy or download the file again.",
        ) from None
    return frames


def _on_white(image: Image.Image) -> Image.Image:
    """A copy of the current frame."""
    if image.mode != "RGBA" and not image.has_transparency_data:
        return image.convert("RGB")
    shown = image.convert("RGBA")
    white = Image.new("RGB", shown.size, "white")
    white.paste(shown.convert("RGB"), mask=shown.getchannel("A"))
    return white


def _refuse_large(size: tuple[int, int], frames: int) -> None:
    width, height = size
    if width * height * frames > MAX_PIXELS or max(size) > MAX_SIDE:
        raise _too_large(f"{frames} frames of {width}x{height} pixels")


def _too_large(text: str) -> DataError:
    return DataError(
        f"decompression bomb: {text.rstrip('.')}",
        expected=f"at most {MAX_PIXELS} pixels in all frames and {MAX_SIDE} per side",
        remedy="Make the animation shorter or smaller if it is genuine; remove it if not.",
    )
