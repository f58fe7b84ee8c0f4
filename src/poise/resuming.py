"""What must hold before a run folder is used: free for a new run, unchanged for a resumed one."""

import shlex
from collections.abc import Mapping
from typing import Any

from poise.artifacts import RunDir
from poise.config import resolve
from poise.data.dataset import Dataset
from poise.errors import ArtifactError, UsageError
from poise.settings import Config


def refuse_used_folder(run: RunDir, source: str) -> None:
    """A new run must not write into an old one."""
    if run.run.exists():
        raise UsageError(
            f"{run.root} already holds a run.",
            expected="a new folder, or --resume to go on with it",
            remedy=f"{shlex.join(['poise', 'train', source, '--run', str(run.root)])} --resume",
        )


def refuse_other_settings(config: Config, overrides: Mapping[str, Any], run: RunDir) -> None:
    """A resumed run keeps its settings; `overrides` may repeat them."""
    asked = resolve(None, overrides)
    for key in overrides:
        section, _, leaf = key.rpartition(".")
        was = getattr(getattr(config, section), leaf) if section else getattr(config, leaf)
        now = getattr(getattr(asked, section), leaf) if section else getattr(asked, leaf)
        if was != now:
            raise UsageError(
                f"The run in {run.root} was started with {key} = {was}, not {now}.",
                expected="the settings it was started with",
                remedy="Leave the setting away to resume, or start a new run with --run.",
            )


def refuse_other_plan(
    info: Mapping[str, Any], preset: str | None, budget_seconds: float | None, run: RunDir
) -> None:
    """A resumed run keeps its preset and its budget; both may be repeated or left away."""
    for name, asked, was in (
        ("--preset", preset, info["preset"]),
        ("--budget", budget_seconds, info["budget_seconds"]),
    ):
        if asked is not None and asked != was:
            raise UsageError(
                f"The run in {run.root} was started with {name} {was}, not {asked}.",
                remedy=f"Leave {name} away to resume, or start a new run with --run.",
            )


def refuse_other_data(info: Mapping[str, Any], dataset: Dataset, run: RunDir) -> None:
    """A run goes on, and is scored, with the images it was started with."""
    if info["data"]["fingerprint"] != dataset.fingerprint:
        raise ArtifactError(
            f"The images of {info['source']} are no longer those the run in {run.root} was "
            f"started with ({info['data']['images']:,} then, {len(dataset):,} now).",
            expected="the same files with the same content",
            remedy="Restore the images, or start a new run with --run.",
        )
