"""Runs on damaged image files: the images of the drill as pictures, in a copy that is hurt."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from poise import pipeline
from poise.artifacts import RunDir
from poise.budget import Clock
from poise.config import documented
from poise.console import Screen
from poise.drill.file_faults import damage_files
from poise.drill.ground import Ended, Ground, attempt
from poise.drill.kind import Fault
from poise.drill.witness import Seen, Witness
from poise.errors import DataError, UsageError
from poise.settings import Config

_MOST = 600  # pictures in the folder
_UPDATES = 10  # after reading; what is wrong with files shows when they are read


def train_on_damaged(
    ground: Ground, faults: Sequence[Fault], name: str
) -> tuple[Path, Witness, Ended]:
    """A short training from a damaged folder, as `poise train` would read it.

    Args:
        ground: what runs have in common.
        faults: of files.
        name: of the run folder.

    Returns:
        the run folder, the witness, how it ended. A refusal of the images is an event, too: it is
        what the user is told, with the names of the files.

    Raises:
        UsageError: the images are neither grey nor in colour.
    """
    pictures = ground.root / "pictures"
    if not pictures.exists():
        _write(ground, pictures)
    hurt = ground.root / "runs" / f"{name}-pictures"
    shutil.rmtree(hurt, ignore_errors=True)
    shutil.copytree(pictures, hurt)
    for fault in faults:
        damage_files(hurt, fault)
    folder = ground.folder(name, whole=True)
    witness = Witness(RunDir(folder), tick=ground.tick)
    job = pipeline.Job(str(hurt), folder, overrides=_settings(ground.config))
    try:
        prepared = pipeline.prepare(job, Screen(quiet=True), Clock(None))
    except DataError as error:
        witness.events.append(_refusal(error))
        return folder, witness, Ended("failed", 0, f"refused: {error.found}")
    ended = attempt(ground, prepared, witness)
    witness.look()
    return folder, witness, ended


def _write(ground: Ground, folder: Path) -> None:
    """Images as PNGs, a folder for each class."""
    dataset = ground.dataset
    if dataset.channels not in (1, 3):
        raise UsageError(
            f"Images of {dataset.channels} channels are no pictures.", expected="1 or 3 channels"
        )
    members = np.linspace(0, len(dataset) - 1, min(_MOST, len(dataset))).astype(int)
    scratch = folder.with_suffix(".part")
    for index in members:
        label = 0 if dataset.labels is None else int(dataset.labels[index])
        place = scratch / f"{label:03d}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = dataset.images[index].transpose(1, 2, 0)
        picture = Image.fromarray(pixels[..., 0] if dataset.channels == 1 else pixels)
        picture.save(place / f"{index:06d}.png")
    scratch.rename(folder)


def _settings(config: Config) -> dict[str, Any]:
    given = {key: value for key, value, _ in documented(config) if value is not None}
    return {**given, "training.images": _UPDATES * config.training.batch}


def _refusal(error: DataError) -> Seen:
    row = {
        "images_seen": 0,
        "severity": "critical",
        "kind": "corrupt-files",
        "cause": getattr(error, "cause", "") or "corrupt-files",
        "message": error.found,
        "action": "refuse",
    }
    return Seen(row, 0)
