"""Averages of any width, made after training from the snapshots of a run.

A snapshot holds averages along a few profiles; a sum of them with the right weights stands for a
profile that nobody tracked (EDM2, Section 3.3). Files are read one at a time, each once for any
number of widths; the mathematics is in `training.ema`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from poise.artifacts import RunDir, load_tensors, save_tensors
from poise.build import Snapshot, snapshot_of
from poise.errors import ArtifactError, UsageError
from poise.training.ema import (
    noise_gain,
    profile_error,
    profile_name,
    profile_std,
    solve_posthoc,
    std_to_exp,
)

WORST_ERROR = 0.1  # of a profile; above, the result is not the average that was asked for
GOOD_ERROR = 0.01  # of a profile; the weights are then off by far less, as they move slowly
GOOD_GAIN = 50.0  # above, the rounding of stored weights can be seen in the sum
_NEGLIGIBLE = 1e-9  # share of a snapshot that fp32 weights cannot show
_WIDTHS = np.arange(1, 289) / 1000  # tried to say which widths are good


@dataclass(frozen=True)
class Newest:
    """What comes from the snapshot at the end of a profile alone."""

    raw: dict[str, Tensor]  # its unaveraged state, buffers included; perhaps buffers alone
    meta: Mapping[str, Any]  # settings and data facts among others


@dataclass(frozen=True)
class Reconstruction:
    """Averaged weights that no snapshot holds, and how far to trust them."""

    std: float  # relative width
    images_seen: int
    tensors: dict[str, Tensor]  # the parameters by name, fp32 on the CPU
    error: float  # distance to the wanted profile relative to it
    noise_gain: float  # at most how often the rounding of stored weights is multiplied
    snapshots: tuple[int, ...]  # images seen by the snapshots it was made from, oldest first
    warning: str  # what the user should know; empty where there is nothing
    newest: Newest

    @property
    def name(self) -> str:
        """What the weights are called: `ema_0.080`."""
        return profile_name(self.std)


@dataclass(frozen=True)
class _Inputs:
    """The averages that a run has stored up to some time, one row each."""

    end: int  # images seen
    paths: list[Path]  # [n], oldest first
    images: NDArray[np.int64]  # [n]
    stds: NDArray[np.float64]  # [n]
    damaged: list[str]  # sentences on files that were passed over


def reconstruct(run: RunDir, std: float, *, at: int | None = None) -> Reconstruction:
    """The average of relative width `std` as if it had been tracked; see `reconstruct_many`."""
    return reconstruct_many(run, [std], at=at)[0]


def reconstruct_many(
    run: RunDir, stds: Sequence[float], *, at: int | None = None
) -> list[Reconstruction]:
    """Averages of several widths, in one pass over the snapshots.

    Memory: one snapshot, and 8 bytes per parameter and width. A damaged snapshot is passed over
    and named in the warning; the error is that of what is left.

    Args:
        run: a run with snapshots.
        stds: relative widths, 0 < std < 0.2887.
        at: images seen by the snapshot at which the averages end; None: the newest.

    Raises:
        UsageError: a width that no profile has or that these snapshots cannot give, or no snapshot
            at `at`.
        ArtifactError: no whole snapshot, the one at `at` is damaged, or they differ in their
            network.
    """
    for std in stds:
        _check_width(std)
    without: dict[Path, str] = {}
    while True:
        inputs = _inputs(run, at, without)
        x, errors = _solve(run, inputs, stds)
        totals: list[dict[str, Tensor]] = [{} for _ in stds]
        needed = [p for p, row in zip(inputs.paths, x, strict=True) if row.any()]
        for path in dict.fromkeys([*needed, inputs.paths[-1]]):
            try:
                tensors, meta = _load(path)
            except ArtifactError as error:
                if int(path.stem) == at:
                    raise
                without[path] = error.found
                break  # and begin anew with what is left
            _add(totals, inputs, x, path, tensors)
            raw = _below(tensors, "raw/") if path == inputs.paths[-1] else {}
            tensors.clear()  # before the next is read
        else:
            return _results(inputs, list(stds), totals, x, errors, Newest(raw, meta))


def good_widths(run: RunDir, *, at: int | None = None) -> list[tuple[float, float]]:
    """Ranges of relative widths that the snapshots give well, narrowest first.

    Well means a profile error of at most 0.01 and a noise gain of at most 50. Reads names alone.

    Raises:
        UsageError, ArtifactError: as `reconstruct_many`.
    """
    return _good_ranges(_inputs(run, at, {}))


def averaged(run: RunDir, std: float, *, at: int | None = None) -> Snapshot:
    """A model ready to sample with the average of relative width `std`.

    Raises:
        UsageError, ArtifactError: as `reconstruct_many`.
    """
    return as_snapshot(reconstruct(run, std, at=at))


def as_snapshot(reconstruction: Reconstruction) -> Snapshot:
    """The denoiser with these weights, in evaluation mode, as `build.load_snapshot` gives it."""
    r = reconstruction
    return snapshot_of(r.newest.meta, r.newest.raw | r.tensors, r.name, r.images_seen)


def write(reconstruction: Reconstruction, out: Path) -> None:
    """An ordinary snapshot file: `build.load_snapshot(out)` gives these weights.

    It holds the raw weights of its time as well, and how the average was made.

    Raises:
        ArtifactError: the disk is full or read-only.
    """
    r, newest = reconstruction, reconstruction.newest
    tensors = {f"raw/{k}": v for k, v in newest.raw.items()}
    tensors |= {f"{r.name}/{k}": v for k, v in r.tensors.items()}
    made = {
        "std": r.std,
        "error": r.error,
        "noise_gain": r.noise_gain,
        "snapshots": list(r.snapshots),
    }
    weights = [name for name in newest.meta["weights"] if name == "raw"] + [r.name]
    save_tensors(out, tensors, {**newest.meta, "weights": weights, "reconstruction": made})


def keep(run: RunDir, std: float) -> None:
    """Store an average in the newest snapshot, beside what that holds: it outlives the others.

    Raises:
        UsageError, ArtifactError: as `reconstruct_many`; the disk is full or read-only.
    """
    found = reconstruct(run, std)
    path = run.snapshot_at(found.images_seen)
    tensors, meta = _load(path)
    if found.name not in meta["weights"]:
        tensors |= {f"{found.name}/{k}": v for k, v in found.tensors.items()}
        save_tensors(path, tensors, {**meta, "weights": [*meta["weights"], found.name]})


def _solve(
    run: RunDir, inputs: _Inputs, stds: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares of the stored averages [n, m], 0 where they cannot be seen, and errors [m].

    Raises:
        UsageError: an error above WORST_ERROR.
    """
    x = solve_posthoc(inputs.images, inputs.stds, inputs.end, stds)
    errors = profile_error(inputs.images, inputs.stds, x, inputs.end, stds)
    for std, error in zip(stds, errors, strict=True):
        if error > WORST_ERROR:
            raise _refusal(run, inputs, std, error)
    x[np.abs(x).max(axis=1) < _NEGLIGIBLE] = 0
    return x, errors


def _results(
    inputs: _Inputs,
    stds: list[float],
    totals: list[dict[str, Tensor]],
    x: NDArray[np.float64],
    errors: NDArray[np.float64],
    newest: Newest,
) -> list[Reconstruction]:
    used = sorted({int(image) for image, row in zip(inputs.images, x, strict=True) if row.any()})
    made = []
    for std, total, error, gain in zip(
        stds, totals, errors.tolist(), noise_gain(x).tolist(), strict=True
    ):
        for name in total:  # one by one: no second copy of all
            total[name] = total[name].float()
        warning = _warning(inputs, std, error, gain)
        made.append(
            Reconstruction(std, inputs.end, total, error, gain, tuple(used), warning, newest)
        )
    return made


def _inputs(run: RunDir, at: int | None, without: Mapping[Path, str]) -> _Inputs:
    """What is stored, from the names of files and tensors; nothing else is read."""
    damaged = dict(without)
    held: list[tuple[int, float, Path]] = []
    files = [p for p in run.snapshot_files() if p.stem.isdigit() and int(p.stem) > 0]
    if at is not None and at not in (times := [int(p.stem) for p in files]):
        raise _no_such_time(run, at, times)
    for path in files:
        if path in damaged or (at is not None and int(path.stem) > at):
            continue
        try:
            with safe_open(path, framework="pt") as file:
                heads = {key.partition("/")[0] for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            damaged[path] = f"{path} is damaged: {error}."
            continue
        stds = sorted(std for head in heads if (std := profile_std(head)) is not None)
        held += [(int(path.stem), std, path) for std in stds]
    if not held or (at is not None and held[-1][0] != at):
        raise ArtifactError(
            f"{run.root} holds no whole snapshot with averaged weights"
            + (f" after {at:,} images." if at is not None else ".")
            + "".join(f" {text}" for text in damaged.values()),
            expected="snapshots of a run, with averages beside the raw weights",
            remedy="Choose another snapshot, or train the run further.",
        )
    images, widths, paths = zip(*held, strict=True)
    return _Inputs(
        images[-1], list(paths), np.array(images), np.array(widths), list(damaged.values())
    )


def _load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, meta = load_tensors(path)
    if meta.get("kind") != "snapshot":
        raise ArtifactError(f"{path} is not a snapshot.")
    return tensors, meta


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _add(
    totals: list[dict[str, Tensor]],
    inputs: _Inputs,
    x: NDArray[np.float64],
    path: Path,
    tensors: Mapping[str, Tensor],
) -> None:
    """Add the averages of one file to the sum of each width, times their shares, in float64.

    Raises:
        ArtifactError: other names or shapes than before.
    """
    for other, std, shares in zip(inputs.paths, inputs.stds, x, strict=True):
        if other != path or not shares.any():
            continue
        averages = _below(tensors, f"{profile_name(std)}/")
        for total in totals:
            if not total:
                total |= {k: torch.zeros_like(v, dtype=torch.float64) for k, v in averages.items()}
        _check_network(totals[0], averages, path)
        for name, average in averages.items():
            exact = average.double()
            for total, share in zip(totals, shares, strict=True):
                total[name].add_(exact, alpha=float(share))


def _check_network(before: Mapping[str, Tensor], now: Mapping[str, Tensor], path: Path) -> None:
    old, new = ({k: v.shape for k, v in part.items()} for part in (before, now))
    if old != new:
        name = min(k for k in old.keys() | new.keys() if old.get(k) != new.get(k))
        raise ArtifactError(
            f"{path} belongs to another network than the snapshots before it: {name} differs.",
            expected="the snapshots of one training",
        )


def _good_ranges(inputs: _Inputs) -> list[tuple[float, float]]:
    tracked = inputs.stds[inputs.images == inputs.end]
    widths = np.union1d(_WIDTHS, tracked)
    x = solve_posthoc(inputs.images, inputs.stds, inputs.end, widths)
    error = profile_error(inputs.images, inputs.stds, x, inputs.end, widths)
    good = (error <= GOOD_ERROR) & (noise_gain(x) <= GOOD_GAIN)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
    return [(float(widths[a]), float(widths[b - 1])) for a, b in edges.reshape(-1, 2)]


def _good_words(inputs: _Inputs) -> str:
    """`0.046 to 0.054 or 0.093 to 0.108`."""
    return " or ".join(f"{a:g} to {b:g}" if a < b else f"{a:g}" for a, b in _good_ranges(inputs))


def _warning(inputs: _Inputs, std: float, error: float, gain: float) -> str:
    """What to know before the result is used; empty where it is good and nothing was damaged."""
    said = [f"Passed over: {text}" for text in inputs.damaged]
    if error > GOOD_ERROR:
        said.append(f"The profile of width {std:g} is off by {error:.1%}.")
    if gain > GOOD_GAIN:
        said.append(
            f"The sum for width {std:g} multiplies the rounding of the stored weights by up to "
            f"{gain:.0f}."
        )
    if error > GOOD_ERROR or gain > GOOD_GAIN:
        said.append(
            f"The {len(set(inputs.paths))} snapshots up to {inputs.end:,} images give widths of "
            f"{_good_words(inputs)} well."
        )
    return " ".join(said)


def _refusal(run: RunDir, inputs: _Inputs, std: float, error: float) -> UsageError:
    damaged = "".join(f" Passed over: {text}" for text in inputs.damaged)
    return UsageError(
        f"The {len(set(inputs.paths))} snapshots of {run.root} up to {inputs.end:,} images cannot "
        f"give an average of width {std:g}: its profile would be off by {error:.0%}.{damaged}",
        expected=f"a width of {_good_words(inputs)}",
        remedy="Choose such a width. For others, train with more snapshots (cadence.snapshots) or "
        "track the width itself (training.ema_stds).",
    )


def _check_width(std: float) -> None:
    try:
        std_to_exp(std)
    except ValueError as error:
        raise UsageError(
            str(error),
            expected="a relative width, such as 0.08 for 8% of the training",
        ) from None


def _no_such_time(run: RunDir, at: int, times: list[int]) -> UsageError:
    near = [f"{t:,}" for t in sorted(sorted(times, key=lambda t: abs(t - at))[:2])]
    return UsageError(
        f"{run.root} holds no snapshot after {at:,} images.",
        expected=f"{' or '.join(near)}, the nearest there are" if near else "a run with snapshots",
        remedy="Averages end at a snapshot; without a position it is the newest.",
    )
