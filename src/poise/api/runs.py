"""Runs from Python: `poise.train`, `poise.load` and the `Run` they return."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from poise import pipeline
from poise.arguments import free_run_folder, label_indices, parse_count, parse_duration
from poise.artifacts import RunDir, read_json
from poise.averaging import Reconstruction, reconstruct
from poise.averaging import write as write_snapshot
from poise.build import load_snapshot
from poise.choosing import propose_noise, search_guidance, sweep_ema
from poise.console import Screen
from poise.diffusion.multistep import SOLVERS
from poise.diffusion.proposal import Proposal
from poise.errors import ArtifactError, UsageError, nearest
from poise.pictures import save_samples
from poise.report.evaluation import verdict_lines
from poise.report.report import write_report
from poise.report.sidebyside import write_side_by_side
from poise.report.study import write_study
from poise.sampling import (
    Guidance,
    Model,
    Weights,
    check_pictures,
    chosen_model,
    draw,
    named_weights,
    snapshot_model,
    weights_of_run,
)
from poise.scoring.tradeoff import trade_off


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
        self._model: Model | None = None
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
        return self._load().snapshot.facts.label_names

    @property
    def scores(self) -> dict[str, Any]:
        """The scores against the validation split, as `scores-val.json` holds them."""
        result: dict[str, Any] = read_json(self._run_dir().scores("val"))
        return result

    @property
    def verdict(self) -> list[str]:
        """What the scores against the validation split say, in words, worst first."""
        return verdict_lines(self.scores)

    def sample(
        self,
        n: int,
        *,
        labels: str | Sequence[int | str] = "all",
        steps: int | None = None,
        seed: int = 0,
        solver: str | None = None,
        guidance: float | None = None,
        weights: str | float | None = None,
    ) -> NDArray[Any]:
        """Draw images; image i depends on `seed`, i and its label alone.

        Args:
            n: how many.
            labels: "all", or class indices or names, repeated in turn; "0,3" works too.
            steps: noise levels the sampler visits; None: as the run was set.
            seed: other seeds draw other images.
            solver: "heun", "euler", "dpmpp_2m", "dpmpp_3m" or "unipc"; None: as the run was set.
            guidance: strength; 1 is none. None: as `poise guide` found best, else none. Without a
                choice, the guide is the model itself without labels.
            weights: "raw", a width such as 0.08, or a name such as "ema_0.080"; None: as
                `poise ema sweep` found best, else the best by validation error.

        Returns:
            uint8 [n, H, W, C]; a model of latents gives fp32.

        Raises:
            UsageError: an unknown class, solver or weights, or n below 1.
        """
        wanted = _Wanted(steps, solver, guidance, weights)
        images, _ = self._draw(n, labels, seed, wanted)
        return images.transpose(0, 2, 3, 1)

    def save_samples(
        self,
        out: str | Path,
        n: int,
        *,
        labels: str | Sequence[int | str] = "all",
        steps: int | None = None,
        seed: int = 0,
        solver: str | None = None,
        guidance: float | None = None,
        weights: str | float | None = None,
    ) -> Path:
        """Draw images into a folder of PNGs with labels.csv, or into an .npz file.

        The arguments are those of `sample`; `out` ends in .npz or names a folder.
        """
        wanted = _Wanted(steps, solver, guidance, weights)
        if Path(out).suffix != ".npz":
            check_pictures(self._load().snapshot.facts)
        images, indices = self._draw(n, labels, seed, wanted)
        save_samples(Path(out), images, indices, self.label_names)
        return Path(out)

    def evaluate(
        self,
        n: int | None = None,
        *,
        split: str = "val",
        features: str | None = None,
        feature_weights: str | Path | None = None,
    ) -> dict[str, Any]:
        """Score fresh samples against a split; the scores are also kept in the run folder.

        Args:
            n: samples to draw, at least 10; None: as many as there are held-out images, 100 to
                2,000.
            split: "val" or "test"; every look at the test split is recorded in events.jsonl.
            features: feature space, as for `poise.evaluate_samples`; None: as the run was set.
            feature_weights: file or folder with the weights of a pretrained network.

        Raises:
            UsageError: another split, or too few samples.
            ArtifactError: a snapshot without its run, or images that changed since.
        """
        changes = {"features": features, "feature_weights": feature_weights}
        given = {k: None if v is None else str(v) for k, v in changes.items()}
        if features is None:  # as the run was set; with others its weights have no meaning
            given = {k: v for k, v in given.items() if v is not None}
        return pipeline.score_again(
            self._run_dir(), self._screen, split=split, count=n, changes=given
        )

    def tradeoff(self, n: int = 300, steps: int | None = None) -> dict[str, Any]:
        """Fidelity and diversity over guidance strength and length of the average.

        The report shows it; the run's choice of either stays as it is.

        Args:
            n: samples of each point, at least 10.
            steps: of the sampler; None: as the run was set.
        """
        found = trade_off(pipeline.reopen(self._run_dir(), self._screen), self._screen, n, steps)
        self.report()
        return found

    def average(
        self, std: float, *, at: int | None = None, out: str | Path | None = None
    ) -> Reconstruction:
        """Make an average of another width than those that were tracked (EDM2, Section 3).

        Args:
            std: relative width; 0.08 averages over about 8 % of the training.
            at: images seen at its end; None: the newest snapshot.
            out: also write it there, as a snapshot that samples.

        Raises:
            UsageError: the run's snapshots cannot give this width well.
        """
        made = reconstruct(self._run_dir(), std, at=at)
        if out is not None:
            write_snapshot(made, Path(out))
        return made

    def sweep_ema(
        self, metric: str = "frechet_distance", n: int = 500, steps: int | None = None
    ) -> dict[str, Any]:
        """Find the average that samples best by `metric`; it is used from now on."""
        prepared = pipeline.reopen(self._run_dir(), self._screen)
        self._model = None
        return sweep_ema(prepared, self._screen, metric, n, steps)

    def guide(
        self, metric: str = "frechet_distance", n: int = 500, steps: int | None = None
    ) -> dict[str, Any]:
        """Find guidance by an earlier state of the run, or by no labels; it is used from now on."""
        prepared = pipeline.reopen(self._run_dir(), self._screen)
        self._model = None
        return search_guidance(prepared, self._screen, metric, n, steps)

    def propose_noise(self) -> Proposal:
        """P_mean and P_std for the next training on this data."""
        return propose_noise(pipeline.reopen(self._run_dir(), self._screen))

    def report(self, *others: "Run", out: str | Path | None = None) -> Path:
        """Write report.html and model-card.md anew from the run folder alone.

        Args:
            others: put these runs beside this one on a page of their own instead, from their files
                alone; `poise.compare` draws from the same seeds.
            out: that page; None: report-comparison.html in the current folder.

        Raises:
            UsageError: `out` without others, or one run twice.
        """
        if not others and out is not None:
            raise UsageError(
                f"{out} is a place for a page about several runs, and there is one.",
                expected="two runs or more with `out`; the report of one run lies in its folder",
            )
        if not others:
            if (self.path.parent / "study.json").exists():  # of which it is the best
                write_study(self.path.parent)
            return write_report(self._run_dir())
        runs = [run._run_dir() for run in (self, *others)]
        if len({run.root.resolve() for run in runs}) < len(runs):
            raise UsageError("A run was given twice.", expected="different run folders")
        return write_side_by_side(runs, Path(out or "report-comparison.html"))

    def _run_dir(self) -> RunDir:
        if not self.path.is_dir():
            raise ArtifactError(
                f"{self.path} is a snapshot, which has no data to compare with and no log.",
                expected="the run folder it came from",
            )
        return RunDir(self.path)

    def _load(self) -> Model:
        if self._model is None:
            if self.path.is_dir():
                self._model = chosen_model(RunDir(self.path))
            else:
                self._model = snapshot_model(self.path)
        return self._model

    def _draw(
        self, n: int, labels: str | Sequence[int | str], seed: int, wanted: "_Wanted"
    ) -> tuple[NDArray[Any], list[int] | None]:
        if n < 1:
            raise UsageError(f"{n} samples cannot be drawn.", expected="1 or more")
        if wanted.steps is not None and wanted.steps < 2:
            raise UsageError(f"steps = {wanted.steps} is too few.", expected="2 or more")
        model = self._as_wanted(wanted)
        indices = label_indices(labels, model.snapshot.facts.label_names, n)
        with self._screen.bar("sampling", n) as bar:
            images = draw(model, n, indices, seed, progress=bar.show)
        return images, indices

    def _as_wanted(self, wanted: "_Wanted") -> Model:
        model = self._load()
        if wanted.solver is not None and wanted.solver not in SOLVERS:
            raise UsageError(
                f"There is no solver {wanted.solver!r}. {nearest(wanted.solver, SOLVERS)}".rstrip(),
                expected="one of " + ", ".join(SOLVERS),
            )
        model = model.with_settings(steps=wanted.steps, solver=wanted.solver)
        if wanted.weights is not None:
            name, at = named_weights(str(wanted.weights)), model.snapshot.images_seen
            snapshot = (
                weights_of_run(RunDir(self.path), Weights(name, at))
                if self.path.is_dir()
                else load_snapshot(self.path, name)
            )
            settings = model.snapshot.config
            model = replace(model, snapshot=replace(snapshot, config=settings))
        if wanted.guidance == 1:
            return replace(model, guidance=None, guide=None)
        if wanted.guidance is not None:
            known = model.guidance or _without_labels(model)
            return replace(model, guidance=replace(known, strength=wanted.guidance))
        return model


@dataclass(frozen=True)
class _Wanted:
    """What was asked of a sampling; None: as the run has it."""

    steps: int | None
    solver: str | None
    guidance: float | None
    weights: str | float | None


def _without_labels(model: Model) -> Guidance:
    """Guidance by the model itself without labels, if it has learned to do without them.

    Raises:
        UsageError: it has not.
    """
    config = model.snapshot.config
    if not model.snapshot.facts.label_names or not config.training.label_dropout:
        raise UsageError(
            "This model cannot guide itself: it has no classes, or never saw an image without its "
            "class.",
            expected="a model with classes and training.label_dropout above 0",
            remedy="`poise guide RUN` guides any run by an earlier state of itself.",
        )
    return Guidance(1.0, None)


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
    """Open a run folder or a snapshot file to sample, evaluate or report.

    Of a study of `tune`, the run that it trained at its end.

    Raises:
        ArtifactError: a study that has trained none yet.
    """
    path = Path(run_or_snapshot)
    if not (path / "study.json").exists():
        return Run(path, quiet=quiet)
    if not (path / "best" / "run.json").exists():
        raise ArtifactError(
            f"The study in {path} has not trained its best settings yet.",
            expected="a study that is over",
            remedy=f"Go on with `poise tune SOURCE --run {path} --resume`, or open a trial: "
            f"{path / 'trials' / '0000'}.",
        )
    return Run(path / "best", quiet=quiet)
