"""Whether a file that decodes is whole: a decoder may not notice that its end is missing."""

import numpy as np
from PIL import Image

from poise.data.decode import decode_frames, decode_in_thread
from poise.errors import DataError

_FRAME_PIXELS = 2**28  # of an animation, that are decoded to check it
_END = b"\xff\xd9"  # of a JPEG
_GRAY = 128  # what a JPEG decoder fills in for blocks that are not in the file


def damage(content: bytes, kind: str, frames: int, image: Image.Image) -> str:
    """What is missing or damaged in a file whose first frame could be decoded; "" if nothing is.

    Args:
        content: the file.
        kind: its format as Pillow names it.
        frames: how many it claims to have.
        image: the decoded first frame, mode L or RGB.
    """
    if (kind == "PNG" and not _png_ends(content)) or (kind == "GIF" and not _gif_ends(content)):
        return "the end of the file is missing"
    if kind == "JPEG" and (problem := _jpeg(content, image)):
        return problem
    return _frames(content) if frames > 1 else ""


def _png_ends(content: bytes) -> bool:
    """Whether the chunks lead to the last one; their checksums are the decoder's business."""
    place = 8
    while place + 12 <= len(content):
        if content[place + 4 : place + 8] == b"IEND":
            return True
        place += 12 + int.from_bytes(content[place : place + 4], "big")
    return False


def _gif_ends(content: bytes) -> bool:
    """Whether the blocks lead to the trailer."""
    try:
        place = 13 + _table(content[10])
        while (block := content[place]) != 0x3B:
            if block == 0x21:  # an extension
                place = _after_parts(content, place + 2)
            elif block == 0x2C:  # a frame
                place = _after_parts(content, place + 11 + _table(content[place + 9]))
            else:
                place += 1  # padding, which decoders skip
    except IndexError:
        return False
    return True


def _table(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_parts(content: bytes, place: int) -> int:
    while content[place]:
        place += content[place] + 1
    return place + 1


def _jpeg(content: bytes, image: Image.Image) -> str:
    """No end marker after the picture, or an end marker put behind a cut."""
    end = content.find(_END, _scan_start(content))  # phones append films, which may hold anything
    if end < 0:
        return "the end of the file is missing"
    last = image.getpixel((image.width - 1, image.height - 1))
    if last not in (_GRAY, (_GRAY,) * 3):
        return ""
    # Gray may be the picture's own. If data are missing, zeros are taken for them and show.
    try:
        other = decode_in_thread(content[:end] + bytes(1024) + _END).image
    except DataError:
        return ""
    same = other.size != image.size or np.array_equal(np.asarray(other), np.asarray(image))
    return "" if same else "the picture ends early and is filled with gray"


def _scan_start(content: bytes) -> int:
    """Where the first scan of a JPEG begins, behind the header with its small preview."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF and content[place + 1] != 0xDA:
        if content[place + 1] == 0xFF:  # padding
            place += 1
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return place


def _frames(content: bytes) -> str:
    pixels = 0
    try:
        for frame in decode_frames(content):
            pixels += frame.width * frame.height
            if pixels > _FRAME_PIXELS:
                break
    except DataError as error:
        return error.found
    return ""
