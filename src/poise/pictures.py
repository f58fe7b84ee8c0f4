"""Images out of Poise: grids, folders of PNGs, npz files."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from poise.artifacts import write_bytes
from poise.errors import ArtifactError, UsageError

Pixels = NDArray[np.uint8]
_GRID_SIDE = 64  # tiny images are enlarged to about this many pixels, without smoothing


def to_image(pixels: Pixels) -> Image.Image:
    """[C, H, W] as a picture: of 1 or 2 channels the first in gray, else the first three as RGB."""
    if len(pixels) < 3:
        return Image.fromarray(pixels[0])
    return Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))


def save_grid(path: Path, images: Pixels, columns: int) -> None:
    """Write [N, C, H, W] as one PNG, row by row, with a thin gap."""
    n, channels, height, width = images.shape
    scale = max(1, _GRID_SIDE // max(height, width))
    gap, rows = 2, -(-n // columns)
    step_y, step_x = height * scale + gap, width * scale + gap
    sheet = np.full((channels, rows * step_y + gap, columns * step_x + gap), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + (i // columns) * step_y, gap + (i % columns) * step_x
        large = image.repeat(scale, axis=1).repeat(scale, axis=2)
        sheet[:, y : y + height * scale, x : x + width * scale] = large
    buffer = io.BytesIO()
    to_image(sheet).save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def save_samples(
    out: Path, images: Pixels, labels: Sequence[int] | None, label_names: Sequence[str]
) -> None:
    """Write [N, C, H, W] as `.npz` (arr_0 NHWC, arr_1 labels) or as PNGs with labels.csv.

    Raises:
        UsageError: `out` has another suffix, or is a folder and the images are no pictures.
        ArtifactError: the place cannot be written.
    """
    if out.suffix == ".npz":
        arrays = {"arr_0": images.transpose(0, 2, 3, 1)}
        if labels is not None:
            arrays["arr_1"] = np.asarray(labels, np.int64)
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(out, buffer.getvalue())
        return
    if out.suffix:
        raise UsageError(
            f"--out {out} is no format for samples.", expected="a folder or a .npz file"
        )
    if images.shape[1] not in (1, 3):
        raise UsageError(
            f"Images of {images.shape[1]} channels do not fit into PNG files.",
            expected="--out with the name of a .npz file",
        )
    if out.exists() and not out.is_dir():
        raise ArtifactError(f"{out} is a file.", expected="a folder or a .npz file")
    rows = [["file", "label", "name"]]
    for i, image in enumerate(images):
        buffer = io.BytesIO()
        to_image(image).save(buffer, "PNG")
        write_bytes(out / f"{i:06d}.png", buffer.getvalue())
        label = None if labels is None else labels[i]
        name = "" if label is None else label_names[label]
        rows.append([f"{i:06d}.png", "" if label is None else str(label), name])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_bytes(out / "labels.csv", text.getvalue().encode())
