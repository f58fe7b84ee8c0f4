"""The Python front door: `poise.train`, `poise.load` and the `Run` they return."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from poise import pipeline
from poise.artifacts import RunDir, read_json
from poise.build import Snapshot, load_snapshot
from poise.config import parse_overrides
from poise.console import Screen
from poise.errors import ArtifactError, UsageError, nearest
from poise.pictures import save_samples
from poise.report.report import write_report
from poise.scoring import draw, newest_snapshot

_COUNTS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SECONDS = {"s": 1, "m": 60, "h": 3600}


class Run:
    """A trained model: a run folder, or one snapshot file that was copied out of it."""

    def __init__(self, path: Path, *, quiet: bool = True) -> None:
        """
        Args:
            path: a run folder or a snapshot (.safetensors).
            quiet: show no progress.

        Raises:
            ArtifactError: neither is there.
        """
        self.path, self._screen = path, Screen(quiet=quiet)
        self._snapshot: Snapshot | None = None
        if not path.exists():
            raise ArtifactError(f"{path} does not exist.", expected="a run folder or a snapshot")
        if path.is_dir() and not (path / "run.json").is_file():
            raise ArtifactError(
                f"{path} is no run folder: it holds no run.json.",
                expected="a folder that `poise train --run` has written",
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their indices; empty without classes."""
        return self._load().facts.label_names

    @property
    def scores(self) -> dict[str, Any]:
        """The scores against the validation split, as `scores-val.json` holds them."""
        result: dict[str, Any] = read_json(self._run_dir().scores("val"))
        return result

    def sample(
        self,
        n: int,
        *,
        labels: str | Sequence[int | str] = "all",
        steps: int | None = None,
        seed: int = 0,
    ) -> NDArray[np.uint8]:
        """Draw images; image i depends on `seed`, i and its label alone.

        Args:
            n: how many.
            labels: "all", or class indices or names, repeated in turn; "0,3" works too.
            steps: noise levels the sampler visits; None: as the run was set.
            seed: other seeds draw other images.

        Returns:
            uint8 [n, H, W, C].

        Raises:
            UsageError: an unknown class, n below 1.
        """
        images, _ = self._draw(n, labels, steps, seed)
        return images.transpose(0, 2, 3, 1)

    def save_samples(
        self,
        out: str | Path,
        n: int,
        *,
        labels: str | Sequence[int | str] = "all",
        steps: int | None = None,
        seed: int = 0,
    ) -> Path:
        """Draw images into a folder of PNGs with labels.csv, or into an .npz file.

        The arguments are those of `sample`; `out` ends in .npz or names a folder.
        """
        images, indices = self._draw(n, labels, steps, seed)
        save_samples(Path(out), images, indices, self.label_names)
        return Path(out)

    def evaluate(self, n: int | None = None, *, split: str = "val") -> dict[str, Any]:
        """Score fresh samples against a split; the scores are also kept in the run folder.

        Args:
            n: samples to draw, at least 10; None: as the run was set.
            split: "val" or "test".

        Raises:
            UsageError: another split, or too few samples.
            ArtifactError: a snapshot without its run, or images that changed since.
        """
        return pipeline.score_again(self._run_dir(), self._screen, split=split, count=n)

    def report(self) -> Path:
        """Write report.html anew from the run folder alone."""
        return write_report(self._run_dir())

    def _run_dir(self) -> RunDir:
        if not self.path.is_dir():
            raise ArtifactError(
                f"{self.path} is a snapshot, which has no data to compare with and no log.",
                expected="the run folder it came from",
            )
        return RunDir(self.path)

    def _load(self) -> Snapshot:
        if self._snapshot is None:
            if self.path.is_dir():
                self._snapshot = newest_snapshot(RunDir(self.path))
            else:
                self._snapshot = load_snapshot(self.path)
        return self._snapshot

    def _draw(
        self, n: int, labels: str | Sequence[int | str], steps: int | None, seed: int
    ) -> tuple[NDArray[np.uint8], list[int] | None]:
        if n < 1:
            raise UsageError(f"{n} samples cannot be drawn.", expected="1 or more")
        snapshot = self._load()
        if steps is not None and steps < 2:
            raise UsageError(f"steps = {steps} is too few.", expected="2 or more")
        indices = label_indices(labels, snapshot.facts.label_names, n)
        with self._screen.bar("sampling", n) as bar:
            images = draw(snapshot, n, indices, seed, steps=steps, progress=bar.show)
        return images, indices


def train(
    source: str | Path,
    *,
    run: str | Path | None = None,
    preset: str | None = None,
    budget: str | float | None = None,
    images: str | int | None = None,
    resume: bool = False,
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train on images, evaluate, and write the report.

    Args:
        source: "digits", a folder, a zip or an npz file.
        run: the run folder; None: a new one under runs/.
        preset: a name of `poise presets`; None: chosen by resolution and budget.
        budget: wall-clock time, such as "10m" or seconds; evaluation included.
        images: exact number of images seen, such as "2M"; not together with `budget`.
        resume: go on with the run in `run`.
        quiet: show no progress.
        **settings: settings by dotted name (`**{"training.lr": 0.01}`) or with two underscores
            for the dot (`training__lr=0.01`); `seed=1`.

    Raises:
        PoiseError: every failure, with its cause and remedy.
    """
    job = pipeline.Job(
        source=str(source),
        root=Path(run) if run is not None else free_run_folder(str(source)),
        preset=preset,
        budget_seconds=None if budget is None else parse_duration(budget),
        images=None if images is None else parse_count(images),
        resume=resume,
        overrides={key.replace("__", "."): value for key, value in settings.items()},
    )
    return train_job(job, quiet=quiet)


def train_job(job: pipeline.Job, *, quiet: bool) -> Run:
    """`train` for a job that is already put together."""
    if job.budget_seconds is not None and job.images is not None:
        raise UsageError(
            "A budget and a number of images were both given.", expected="one of them, or neither"
        )
    if job.resume and job.root == free_run_folder(job.source):
        raise UsageError(
            "--resume does not say which run.",
            expected="the folder of the run",
            remedy="Name it with --run, such as --run runs/digits-001.",
        )
    done = pipeline.train(job, Screen(quiet=quiet))
    return Run(done.root, quiet=quiet)


def dry_run(job: pipeline.Job) -> str:
    """The settings that `train_job` would use, as TOML, without training; nothing is written."""
    return pipeline.dry_run(job, Screen(quiet=True))


def load(run_or_snapshot: str | Path, *, quiet: bool = True) -> Run:
    """Open a run folder or a snapshot file to sample, evaluate or report."""
    return Run(Path(run_or_snapshot), quiet=quiet)


def free_run_folder(source: str) -> Path:
    """`runs/digits-001`: the first number that is not taken."""
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).stem).strip("-") or "run"
    number = 1
    while (folder := Path("runs") / f"{stem}-{number:03d}").exists():
        number += 1
    return folder


def parse_count(value: str | int) -> int:
    """`2M` as 2,000,000; suffixes k, M, G.

    Raises:
        UsageError: not a positive whole number.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmgKMG]?)\s*", str(value))
    count = float(match[1]) * _COUNTS[match[2].lower()] if match else 0.0
    if count < 1 or count != int(count):
        raise UsageError(
            f"{value!r} is no number of images.", expected="such as 500000, 500k or 2M"
        )
    return int(count)


def parse_duration(value: str | float) -> float:
    """`10m` as 600 seconds; suffixes s, m, h; a bare number is seconds.

    Raises:
        UsageError: not a positive length of time.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([smh]?)\s*", str(value))
    seconds = float(match[1]) * _SECONDS[match[2] or "s"] if match else 0.0
    if seconds <= 0:
        raise UsageError(f"{value!r} is no length of time.", expected="such as 90s, 20m or 1.5h")
    return seconds


def label_indices(
    labels: str | Sequence[int | str], names: Sequence[str], count: int
) -> list[int] | None:
    """Class indices of `count` images, the asked labels in turn; None for a model without classes.

    Raises:
        UsageError: a class that the model does not know.
    """
    if labels == "all":
        return [i % len(names) for i in range(count)] if names else None
    if not names:
        raise UsageError("This model has no classes.", remedy="Leave --labels away.")
    parts = labels.split(",") if isinstance(labels, str) else list(labels)
    asked = [_label_index(part, names) for part in parts]
    return [asked[i % len(asked)] for i in range(count)]


def _label_index(label: int | str, names: Sequence[str]) -> int:
    text = str(label).strip()
    if isinstance(label, str) and text in names:
        return list(names).index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise UsageError(
        f"There is no class {text!r}. {nearest(text, names)}".rstrip(),
        expected=f"an index below {len(names)} or one of: " + ", ".join(names[:20]),
    )


def settings_from_pairs(pairs: Sequence[str], seed: int | None) -> dict[str, Any]:
    """`--set` texts and `--seed` as overrides."""
    overrides = parse_overrides(pairs)
    return overrides if seed is None else {**overrides, "seed": seed}
