"""What becomes one entry of the data set, an image or a clip of frames; and who stays together."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from poise.audit.look import Look
from poise.audit.quality import proposed_resolution
from poise.audit.scan import Scan
from poise.data.clips import clips_of, find_clips, read_frames
from poise.errors import DataError, UsageError

_GRAY = ("1", "L", "LA", "La", "I")


@dataclass(frozen=True)
class Unit:
    """One entry: an image, or a clip."""

    name: str
    frames: tuple[tuple[int, int], ...]  # (index of the file, frame within the file)
    sequence: str | None = None  # where a clip was cut from; clips of one stay together
    fault: str | None = None  # why it is none after all

    @property
    def files(self) -> tuple[int, ...]:
        """Indices of its files, each once."""
        return tuple(dict.fromkeys(index for index, _ in self.frames))

    @property
    def first(self) -> int:
        """Index of its first file, which stands for it."""
        return self.frames[0][0]


def units_of(seen: Scan, length: int | None) -> list[Unit]:
    """One unit per image; or clips of `length` frames side by side, and a unit with a fault for
    every image and rest of a sequence that makes no clip. Every file is in one unit or more.
    """
    items = seen.source.items
    if length is None:
        return [Unit(item.name, ((index, 0),)) for index, item in enumerate(items)]
    found = find_clips(items)
    units: list[Unit] = []
    for sequence in found.sequences:
        frames = [(index, 0) for index in sequence.items]
        # Runs of one sequence with a gap between them differ in the number at the end.
        units += _cut(seen, frames, length, "folder " + sequence.name.rstrip("0123456789"))
    for index in found.single:
        look = seen.looks[index]
        if any(problem.kind == "animated" for problem in look.problems) and not look.broken:
            units += _animation(seen, index, length)
        else:
            units.append(Unit(look.name, ((index, 0),), None, "a single image, and no clip"))
    return sorted(units, key=lambda unit: unit.frames)


def _animation(seen: Scan, index: int, length: int) -> list[Unit]:
    name, content = seen.looks[index].name, seen.source.read(index)
    try:
        count = len(read_frames(content)) if isinstance(content, bytes) else 1
    except DataError as error:
        return [Unit(name, ((index, 0),), None, error.found)]
    return _cut(seen, [(index, frame) for frame in range(count)], length, "file " + name)


def _cut(seen: Scan, frames: list[tuple[int, int]], length: int, sequence: str) -> list[Unit]:
    """Clips without overlap, and what is left at the end."""
    ranges = clips_of(len(frames), length, length)
    units = [
        Unit(_span(seen, part), part, sequence)
        for part in (tuple(frames[r.start : r.stop]) for r in ranges)
    ]
    rest = tuple(frames[len(ranges) * length :])
    if rest:
        fault = f"{len(rest)} frames at the end, which do not fill a clip of {length}"
        units.append(Unit(_span(seen, rest), rest, sequence, fault))
    return units


def _span(seen: Scan, frames: tuple[tuple[int, int], ...]) -> str:
    """`walk/01.png..16.png`, or `walk.gif#0..15`."""
    (first, start), (last, stop) = frames[0], frames[-1]
    name = seen.looks[first].name
    if first == last:
        return f"{name}#{start}..{stop}"
    return f"{name}..{seen.looks[last].name.rpartition('/')[2]}"


def shape_of(
    seen: Scan, units: Sequence[Unit], resolution: int | None, length: int | None
) -> tuple[int, int, int, int]:
    """[T, C, H, W] of an entry; the side as training would choose it, unless it is given.

    Raises:
        DataError: arrays of different numbers of channels.
    """
    looks = [seen.looks[file] for unit in units for file in unit.files]
    animated = any(len(unit.frames) > len(unit.files) for unit in units)  # read as RGB
    found = sorted({channels_of(look) for look in looks} | ({3} if animated else set()))
    if len(found) > 1 and found != [1, 3]:
        raise DataError(
            f"{seen.source.name} holds images of {' and '.join(map(str, found))} channels.",
            expected="the same number of channels in all",
            remedy="Prepare them one kind at a time.",
        )
    side = resolution or proposed_resolution(looks)
    return (length or 1, found[-1], side, side)


def channels_of(look: Look) -> int:
    """Channels of what is decoded: 1 for all kinds of gray, what an array has, else 3."""
    if look.mode.endswith(" channels"):
        return int(look.mode.split()[0])
    return 1 if look.mode in _GRAY or look.mode.startswith("I;16") else 3


def user_groups(seen: Scan, units: Sequence[Unit], group_by: str | None) -> list[tuple[str, ...]]:
    """The groups that the metadata, and a regular expression on paths, put each unit in.

    Raises:
        UsageError: the expression groups nothing.
    """
    items = [seen.source.items[unit.first] for unit in units]
    found: list[str | None] = [None] * len(items)
    if group_by is not None:
        matches = [re.search(group_by, item.name) for item in items]
        found = [match and match[1 if match.re.groups else 0] for match in matches]
        if not any(found):
            raise UsageError(
                f"--group-by {group_by!r} groups nothing"
                + (f", not even {items[0].name!r}." if items else "."),
                expected="a regular expression that is found in paths, or a column of the metadata",
                remedy="Quote it for the shell, for example --group-by '^([^/_]+)_'.",
            )
    return [
        tuple(name for name in (own, item.group) if name)
        for own, item in zip(found, items, strict=True)
    ]
