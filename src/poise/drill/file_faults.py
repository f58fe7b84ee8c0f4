"""Faults of image files, before a run reads them: only ever done to a copy."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from poise.drill.kind import Fault
from poise.errors import DataError
from poise.runtime import generator_at

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
_PAGE = b"<!DOCTYPE html>\n<html><head><title>404</title></head><body>Not found</body></html>\n"
_ORIENTATION = 0x0112  # the EXIF tag; 6: to be shown turned right by a quarter


def damage_files(folder: Path, fault: Fault) -> list[Path]:
    """Do to the images of a folder what the fault says.

    Args:
        folder: a copy, with images at any depth; it is changed.
        fault: of a kind whose stage is "files"; `magnitude` files or the share `share` are chosen.

    Returns:
        The files that were changed, sorted, as they are called now.

    Raises:
        DataError: there are fewer images than files to change.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES and p.is_file())
    by_share = "share" in fault.used
    count = max(1, round(fault.share * len(files))) if by_share else round(fault.magnitude)
    if count > len(files):
        raise DataError(
            f"{folder} holds {len(files)} images.",
            expected=f"at least {count} for {fault.kind}",
        )
    generator = generator_at(fault.seed, 0, fault.kind)
    chosen = torch.randperm(len(files), generator=generator)[:count].tolist()
    change = _CHANGES[fault.kind]
    return sorted(change(files[index], place) for place, index in enumerate(chosen))


def _truncate(path: Path, place: int) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def _empty(path: Path, place: int) -> Path:
    path.write_bytes(b"")
    return path


def _web_page(path: Path, place: int) -> Path:
    path.write_bytes(_PAGE)
    return path


def _other_mode(path: Path, place: int) -> Path:
    """One of five ways in turn; a JPEG takes the place of a file of another kind."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    path.unlink()
    jpeg, png = path.with_suffix(".jpg"), path.with_suffix(".png")
    way = place % 5
    if way == 0:
        image.convert("RGBA").save(png)
    elif way == 1:
        image.convert("P", palette=Image.Palette.ADAPTIVE).save(png)
    elif way == 2:
        image.convert("L").convert("I").point(lambda value: value * 257).convert("I;16").save(png)
    elif way == 3:
        image.convert("CMYK").save(jpeg, quality=95)
    else:
        exif = Image.Exif()
        exif[_ORIENTATION] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(jpeg, quality=95, exif=exif)
    return jpeg if way >= 3 else png


_CHANGES: dict[str, Callable[[Path, int], Path]] = {
    "truncated-files": _truncate,
    "zero-byte": _empty,
    "html-file": _web_page,
    "corrupt-share": _truncate,
    "mixed-modes": _other_mode,
}
