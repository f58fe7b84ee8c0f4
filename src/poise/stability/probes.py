"""A look inside the network every so many updates: magnitudes, dead units, errors, averages.

All of it follows from the training state alone, under fixed noise on fixed images, so that two
probes differ by what was learned between them and by nothing else.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from poise.data.batches import to_unit
from poise.data.dataset import Dataset
from poise.data.splits import Splits
from poise.diffusion.denoiser import Denoiser
from poise.errors import UsageError
from poise.runtime import generator_at
from poise.settings import Config
from poise.stability.undisturbed import Hook, hooked, learned_layers, undisturbed
from poise.training.ema import profile_name
from poise.training.loop import TrainState, weights_of
from poise.training.magnitudes import named_blocks

_IMAGES = 8  # of each split; each is seen at one noise level
_LEVELS = (-0.5, 0.5, -1.5, 1.5)  # in deviations of ln(sigma) from its mean; medium noise first
_ENOUGH, _SAMPLE = 64, 4096  # weights of a tensor that is looked at bit by bit, and how many
_FLAT = 1e-5  # a channel that varies less than this share of its layer's liveliest one is constant


@dataclass(frozen=True)
class Rows:
    """Noisy images, one row each; image i is at noise level i modulo the number of levels."""

    clean: Tensor  # [N, C, H, W] in [-1, 1]
    x: Tensor  # [N, C, H, W], noisy
    sigma: Tensor  # [N]
    labels: Tensor | None  # [N]


@dataclass(frozen=True)
class ProbeKit:
    """The questions that every probe of a run asks."""

    val: Rows
    train: Rows
    shuffled: Tensor | None  # [N], other classes for the rows of `val`; None: without classes
    forced: tuple[str, ...]  # weights whose rows are kept at unit magnitude
    every: int  # updates between probes; averages take turns
    inputs: bool  # whether units can die of their activation function, behind the layer's output


@dataclass(frozen=True)
class Probe:
    """What one look found; plain numbers. An error that is not finite is nan."""

    images_seen: int
    step: int
    blocks: dict[str, float]  # root mean square of what each block gives out
    weights: dict[str, float]  # root mean square of each weight
    rows: dict[str, float]  # largest root mean square of a row of each forced weight; 1 is healthy
    coarse: float  # share of the weights that keep few bits, of those that are not 0
    dead: dict[str, float]  # share of each layer's units that are constant, 0 to 1
    attention: dict[str, float]  # largest logit by layer, where nothing in the network bounds it
    levels: list[float]  # [N], noise level of each row
    val: list[float]  # [N], weighted error of held-out images, raw weights
    train: list[float]  # [N], the same of training images
    ema: dict[str, list[float]]  # [N], error of the held-out images with the average whose turn
    # it is, and nan for every average that is damaged
    condition: float | None  # change of the output when classes are swapped, relative to it
    repeat: float  # largest difference between two forward passes, relative; 0: the same bits
    exact: bool  # whether this device promises the same bits

    def to_json(self) -> dict[str, Any]:
        """Plain data; numbers that are not finite become None."""
        row: dict[str, Any] = _plain(asdict(self))
        return row

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> "Probe":
        """The inverse of `to_json`; None becomes nan."""
        condition = row["condition"]
        whole = {key: _numbers(value) for key, value in row.items() if key != "condition"}
        return cls(**whole, condition=condition)


def make_kit(
    dataset: Dataset, splits: Splits, denoiser: Denoiser, config: Config, *, images: int = _IMAGES
) -> ProbeKit:
    """Fixed images, noise and classes; they follow from `config.seed` and the splits.

    Args:
        dataset: the images.
        splits: validation and training images are taken from it.
        denoiser: knows its noise levels, classes, device, and the weights that it normalises.
        config: noise levels lie around the mean that it trains on.
        images: of each split, at most.

    Raises:
        UsageError: no training or no validation images.
    """
    count = min(images, len(splits.val), len(splits.train))
    if count == 0:
        raise UsageError(
            f"A probe of {len(splits.train)} training and {len(splits.val)} validation images.",
            expected="at least one of each",
        )
    rows = {
        name: _rows(dataset, _chosen(splits.of(name), count, config.seed, name), denoiser, config)
        for name in ("val", "train")
    }
    labels, classes = rows["val"].labels, denoiser.num_classes
    shuffled = None
    if labels is not None and classes > 1:
        shift = torch.randint(1, classes, (count,), generator=_generator(config.seed, 0, "shift"))
        shuffled = (labels + shift.to(labels.device)) % classes
    forced = tuple(
        f"{name}.weight"
        for name, module in learned_layers(denoiser).items()
        if hasattr(module, "force_unit_weight") and getattr(module, "forced", False)
    )
    return ProbeKit(
        val=rows["val"],
        train=rows["train"],
        shuffled=shuffled,
        forced=forced,
        every=config.stability.probe_every,
        inputs=config.model.activation == "relu",
    )


def probe(state: TrainState, kit: ProbeKit) -> Probe:
    """Look at the state, which stays as it is to the last bit; about the cost of one update."""
    denoiser, val = state.denoiser, kit.val
    seen = _Seen()
    with undisturbed(denoiser, training=False), torch.no_grad():
        with hooked(_hooks(denoiser.network, seen, inputs=kit.inputs)):
            first = denoiser(val.x, val.sigma, val.labels)
        again = denoiser(val.x, val.sigma, val.labels)
        train, condition = _train_and_condition(denoiser, kit, first)
        ema = _ema_errors(state, kit)
        weights, rows = _weights(denoiser, kit.forced)
        return Probe(
            images_seen=state.images_seen,
            step=state.step,
            blocks=_floats(seen.blocks),
            weights=weights,
            rows=rows,
            coarse=_coarse_share(denoiser),
            dead=_floats(seen.dead),
            attention=_floats(seen.attention),
            levels=val.sigma.tolist(),
            val=_errors(denoiser, val, first),
            train=train,
            ema=ema,
            condition=condition,
            repeat=difference(first, again),
            exact=val.x.device.type == "cpu",
        )


def _coarse_share(denoiser: Denoiser) -> float:
    """Share of fp32 weights other than 0 whose last 12 bits are zero; by chance 1 in 4,096."""
    few, all_ = 0, 0
    for weight in denoiser.parameters():
        if weight.dtype == torch.float32 and weight.numel() >= _ENOUGH:
            bits = weight.detach().flatten()[:_SAMPLE].view(torch.int32)
            filled = (bits & 0x7FFFFFFF) != 0
            few += int((filled & ((bits & 0xFFF) == 0)).sum())
            all_ += int(filled.sum())
    return few / max(all_, 1)


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the size of `one`; 0 only for the same bits.

    Where both are equally not finite, they do not differ.
    """
    one, other = one.detach().float(), other.detach().float()
    same = (one == other) | (one.isnan() & other.isnan())
    if bool(same.all()):
        return 0.0
    gap = torch.where(same, 0.0, (one - other).abs()).amax().item()
    size = torch.where(one.isfinite(), one, 0.0).square().mean().sqrt().item()
    return gap / max(size, 1e-30) if math.isfinite(gap) else math.inf


class _Seen:
    """What the hooks noted, still on the device."""

    def __init__(self) -> None:
        self.blocks: dict[str, Tensor] = {}
        self.dead: dict[str, Tensor] = {}
        self.attention: dict[str, Tensor] = {}


def _hooks(network: nn.Module, seen: _Seen, *, inputs: bool) -> list[tuple[nn.Module, Hook]]:
    def block(name: str, module: nn.Module, given: object, output: Tensor) -> None:
        seen.blocks[name] = output.float().square().mean().sqrt()

    def layer(name: str, module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.dead[name] = _dead_share(output)
        if inputs:
            seen.dead[f"{name} (input)"] = _dead_share(given[0])

    def logits(name: str, heads: int, module: nn.Module, given: object, output: Tensor) -> None:
        seen.attention[name] = _largest_logit(output[:4], heads)

    found: list[tuple[nn.Module, Hook]] = []
    for name, module in learned_layers(network).items():
        found.append((module, partial(layer, name)))
        parent, _, last = name.rpartition(".")
        heads = getattr(network.get_submodule(parent), "heads", None)
        # the networks with forced weights give queries and keys unit magnitude
        if last == "qkv" and heads and isinstance(module, nn.Conv2d | nn.Linear):
            found.append((module, partial(logits, name, heads)))
    found += [(module, partial(block, name)) for name, module in named_blocks(network).items()]
    return found


def _dead_share(y: Tensor) -> Tensor:
    """Share of channels that are constant over images and positions, []."""
    flat = y.movedim(1, -1) if y.ndim == 4 else y
    flat = flat.reshape(-1, flat.shape[-1])
    spread = (flat.amax(0) - flat.amin(0)).float()
    share: Tensor = (spread <= _FLAT * spread.amax()).float().mean()
    return share


def _largest_logit(qkv: Tensor, heads: int) -> Tensor:
    """Of plain attention: max |q'k| / sqrt(c), from [B, 3C, H, W] or tokens [B, N, 3C]."""
    if qkv.ndim == 4:
        B, C3 = qkv.shape[:2]
        q, k = qkv.reshape(B, heads, C3 // (3 * heads), 3, -1).float().unbind(3)[:2]
    else:
        B, N = qkv.shape[:2]
        q, k = qkv.reshape(B, N, 3, heads, -1).permute(2, 0, 3, 4, 1).float().unbind(0)[:2]
    return (q.mT @ k).abs().amax() / math.sqrt(q.shape[2])


def _train_and_condition(
    denoiser: Denoiser, kit: ProbeKit, first: Tensor
) -> tuple[list[float], float | None]:
    """Errors of the training rows, and how much the output hears of the class; one call."""
    val, train = kit.val, kit.train
    if kit.shuffled is None:
        return _errors(denoiser, train, denoiser(train.x, train.sigma, train.labels)), None
    assert train.labels is not None
    D = denoiser(
        torch.cat([train.x, val.x]),
        torch.cat([train.sigma, val.sigma]),
        torch.cat([train.labels, kit.shuffled]),
    )
    c = denoiser.formulation.coefficients(val.sigma.reshape(-1, 1, 1, 1))
    output = (first - c.c_skip * val.x) / c.c_out
    change = (D[len(train.x) :] - first) / c.c_out
    ratio = change.square().mean().sqrt() / output.square().mean().sqrt()
    return _errors(denoiser, train, D[: len(train.x)]), _finite_or_none(ratio.item())


def _ema_errors(state: TrainState, kit: ProbeKit) -> dict[str, list[float]]:
    """Errors with one average, each in turn; damaged ones need no call to be known."""
    val, found = kit.val, {}
    turn = state.step // kit.every % len(state.ema.profiles)
    for i, (std, averages) in enumerate(state.ema.profiles.items()):
        name = profile_name(std)
        total = torch.nn.utils.get_total_norm(list(averages.values()))
        if not math.isfinite(total.item()):
            found[name] = [math.nan] * len(val.x)
        elif i == turn:
            given = (val.x, val.sigma, val.labels)
            D = torch.func.functional_call(state.denoiser, averages, given)
            found[name] = _errors(state.denoiser, val, D)
    return found


def _errors(denoiser: Denoiser, rows: Rows, D: Tensor) -> list[float]:
    """Weighted error of each image, about 1 where nothing is learned (EDM, Section 5)."""
    s, sd = rows.sigma, denoiser.sigma_data
    error = (s**2 + sd**2) / (s * sd) ** 2 * (D - rows.clean).square().mean(dim=(1, 2, 3))
    return [e if math.isfinite(e) else math.nan for e in error.tolist()]


def _weights(
    denoiser: Denoiser, forced: tuple[str, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Root mean squares of weights, and the largest of the rows of forced ones."""
    weights = {name: w.detach() for name, w in weights_of(denoiser).items()}
    norms = torch.stack(list(torch._foreach_norm(list(weights.values())))).tolist()
    rms = {
        name: norm / math.sqrt(w.numel())
        for (name, w), norm in zip(weights.items(), norms, strict=True)
    }
    largest = {
        name: torch.linalg.vector_norm(weights[name].flatten(1), dim=1).amax()
        / math.sqrt(weights[name][0].numel())
        for name in forced
        if name in weights
    }
    return rms, _floats(largest)


def _chosen(members: NDArray[np.int64], count: int, seed: int, name: str) -> NDArray[np.int64]:
    order = torch.randperm(len(members), generator=_generator(seed, 0, name))[:count]
    return np.sort(members[order.numpy()])


def _rows(dataset: Dataset, chosen: NDArray[np.int64], denoiser: Denoiser, config: Config) -> Rows:
    device = next(denoiser.parameters()).device
    clean = to_unit(torch.from_numpy(np.asarray(dataset.images[chosen])))
    level = torch.tensor(_LEVELS)[torch.arange(len(clean)) % len(_LEVELS)]
    sigma = (config.diffusion.P_mean + config.diffusion.P_std * level).exp()
    sigma = denoiser.formulation.nearest(sigma.to(device))
    noise = torch.stack(
        [
            torch.randn(image.shape, generator=_generator(config.seed, int(i), "noise"))
            for image, i in zip(clean, chosen, strict=True)
        ]
    )
    clean = clean.to(device)
    labels = None
    if dataset.labels is not None and denoiser.num_classes:
        labels = torch.from_numpy(dataset.labels[chosen]).to(device)
    x = clean + sigma[:, None, None, None] * noise.to(device)
    layout = torch.channels_last
    return Rows(clean, x.contiguous(memory_format=layout), sigma, labels)


def _generator(seed: int, position: int, stream: str) -> torch.Generator:
    return generator_at(seed, position, f"stability-{stream}")


def _floats(tensors: dict[str, Tensor]) -> dict[str, float]:
    """Read all at once: one wait for the device."""
    if not tensors:
        return {}
    return dict(zip(tensors, torch.stack(list(tensors.values())).tolist(), strict=True))


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return _finite_or_none(value) if isinstance(value, float) else value


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _numbers(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_numbers(part) for part in value]
    return math.nan if value is None else value
