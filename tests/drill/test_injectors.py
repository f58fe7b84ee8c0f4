"""Each kind of fault does what its sentence says, where it is told to and not before."""

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import torch
from fault_bench import (
    AT,
    BATCH,
    CLASSES,
    TRAIN,
    Bench,
    Story,
    healthy,
    left_out,
    nan_entries,
    rates,
    same_until,
    tell,
)

from poise.data.batches import to_unit
from poise.data.prefetch import Feed
from poise.drill.data_faults import shard
from poise.drill.disturbance import STARTS
from poise.drill.faults import fault
from poise.drill.place import layers
from poise.training.bands import band_centres
from poise.training.loop import weights_of


def _unit(story: Story, update: int = AT) -> torch.Tensor:
    return to_unit(story.batches[update].images)


def _true(story: Story, update: int = AT) -> torch.Tensor:
    return torch.from_numpy(story.bench.dataset.images)[story.batches[update].indices]


def _hits(story: Story, update: int = AT) -> list[int]:
    """Rows of a batch that hold something else than the data set does."""
    differ = story.batches[update].images.float() != _true(story, update).float()
    return differ.flatten(1).any(1).nonzero()[:, 0].tolist()


def _only_shard(story: Story, holds: Callable[[torch.Tensor], bool]) -> bool:
    """The same neighbours at each update from AT on, and nothing else, hold what they should."""
    chosen = shard(np.arange(TRAIN), story.bench.tamper.faults[0])
    met = 0
    for update in range(AT, len(story.batches)):
        batch = story.batches[update]
        rows = np.flatnonzero(np.isin(batch.indices.numpy(), chosen)).tolist()
        if _hits(story, update) != rows or not all(holds(batch.images[r]) for r in rows):
            return False
        met += len(rows)
    return met > 0 and bool((np.diff(chosen) == 1).all()) and not _hits(story, AT - 1)


def _dead_rows(weights: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    rows = {
        k: (~w.flatten(1).any(1)).nonzero()[:, 0].tolist()
        for k, w in weights.items()
        if w.ndim == 4
    }
    return {k: r for k, r in rows.items() if r}


def _check_dead(story: Story) -> bool:
    dead = [_dead_rows(weights) for weights in story.weights]
    ((name, rows),) = dead[AT].items()
    units = len(story.weights[AT][name])
    return not dead[AT - 1] and len(rows) == round(0.9 * units) and dead[AT:] == [dead[AT]] * 3


def _norms(story: Story, name: str) -> list[float]:
    return [float(weights[name].norm()) for weights in story.weights]


def _check_weight_growth(story: Story) -> bool:
    """Both the growth and that nothing brings them back; small beside it is what Adam adds."""
    sizes = _norms(story, "network.out_conv.weight")
    usual = _norms(healthy(), "network.out_conv.weight")
    ratio = sizes[-1] / sizes[AT - 1]
    return abs(usual[-1] / usual[AT - 1] - 1) < 1e-3 and 1.2**3 * 0.99 < ratio < 1.2**3 * 1.1


def _check_band(story: Story) -> bool:
    centres = torch.tensor(band_centres(story.bench.config.diffusion)).log()
    record = story.records[AT]
    band = (record.sigma.log()[:, None] - centres).abs().argmin(1)
    ratio = record.error / healthy().records[AT].error
    expected = torch.where(band == 4, 20.0, 1.0)
    return bool((expected > 1).any()) and torch.allclose(ratio, expected, rtol=1e-3)


def _still(story: Story, where: Callable[[str], bool]) -> set[str]:
    """Tensors that did not move from update AT on, apart from rounding as they are normalised."""
    first, last = story.weights[AT - 1], story.weights[-1]
    return {k for k in first if where(k) and torch.allclose(first[k], last[k], rtol=3e-3)}


def _moved(story: Story, update: int) -> float:
    """How far the averages went in one update, relative to the undisturbed run."""
    ours, theirs = (
        sum(float((b - a).norm()) for a, b in zip(x[0].values(), y[0].values(), strict=True))
        for x, y in ((s.averages[update - 1], s.averages[update]) for s in (story, healthy()))
    )
    return ours / theirs


def _bits(weight: torch.Tensor) -> int:
    """Bits after the leading one that the numbers of a tensor need."""
    mantissa = torch.frexp(weight).mantissa.abs() * 2
    return next(b for b in range(24) if bool((mantissa * 2**b == (mantissa * 2**b).round()).all()))


def _samples(bench: Bench) -> Any:
    return bench.journal.draw(None, count=6, labels=[0, 1, 2, 0, 1, 2])


def _jumped(story: Story, count: int) -> bool:
    """Weights were changed between updates AT - 1 and AT, so many tensors of them."""
    one, other = story.records[AT - 1].vitals, story.records[AT].vitals
    assert one is not None and other is not None
    return int((~(one.after == other.before)).sum()) == count


def _ratios(story: Story) -> list[float]:
    """Gradient norms over those of the undisturbed run."""
    pairs = zip(story.records, healthy().records, strict=True)
    return [float(a.grad_norm / b.grad_norm) for a, b in pairs]


def _moments(story: Story) -> float:
    """Adam's second moments before update AT."""
    vitals = story.records[AT].vitals
    assert vitals is not None
    return float(vitals.moments.nansum())


def _check_gradient(story: Story) -> bool:
    finite = [
        bool(torch.stack([g.isfinite().all() for g in gs.values()]).all()) for gs in story.grads
    ]
    bad = [k for k, g in story.grads[AT].items() if not g.isfinite().all()]
    numbers = int((~story.grads[AT][bad[0]].isfinite()).sum())
    return finite == [True, True, False, True, True] and len(bad) == 1 and numbers == 1


# what each kind does at AT and after it, with the parameters given here
CHECKS: dict[str, tuple[dict[str, Any], Callable[[Story], bool]]] = {
    "nan-pixel": (
        {},
        lambda s: int(s.batches[AT].images.isnan().sum()) == 1 and left_out(s) == [AT],
    ),
    "range-batch": (
        {"magnitude": 40},
        lambda s: (
            torch.allclose(_unit(s), _true(s).float() / 255 * 40, atol=1e-4) and left_out(s) == [AT]
        ),
    ),
    "range-image": (
        {},
        lambda s: len(_hits(s)) == 1 and float(_unit(s).max()) > 30 and left_out(s) == [AT],
    ),
    "range-shard": ({"share": 0.4}, lambda s: _only_shard(s, lambda x: float(x.max()) > 1000)),
    "black-shard": (
        {"share": 0.4},
        lambda s: (
            _only_shard(s, lambda x: not x.any()) and s.batches[AT].images.dtype == torch.uint8
        ),
    ),
    "nan-latents": ({"share": 0.4}, lambda s: _only_shard(s, lambda x: bool(x.isnan().all()))),
    "wide-latents": (
        {"share": 0.4},
        lambda s: _only_shard(s, lambda x: 6 < float(to_unit(x).std()) < 10),
    ),
    "noise-batch": (
        {},
        lambda s: len(_hits(s)) == BATCH and s.batches[AT].images.dtype == torch.uint8,
    ),
    "bad-label": (
        {"share": 0.25},
        lambda s: (
            int((cast(torch.Tensor, s.batches[AT].labels) >= CLASSES).sum()) == 2
            and left_out(s) == [AT]
        ),
    ),
    "small-data": (
        {"magnitude": 5},
        lambda s: (
            len({i for b in s.batches[AT:] for i in b.indices.tolist()}) == 5 and not _hits(s)
        ),
    ),
    "same-batch": (
        {},
        lambda s: (
            all(torch.equal(b.images, s.batches[AT].images) for b in s.batches[AT:])
            and torch.equal(s.batches[AT].indices, healthy().batches[AT].indices)
        ),
    ),
    "equal-workers": (
        {"magnitude": 2},
        lambda s: (
            [torch.equal(s.batches[i].indices, s.batches[i + 1].indices) for i in (1, 2, 3)]
            == [False, True, False]
        ),
    ),
    "slow-data": (
        {"magnitude": 0.02, "duration": 2},
        lambda s: (
            cast(Feed, s.bench.feed).waited_s >= 0.04
            and [r.seconds > 0.02 for r in s.records[AT : AT + 2]] == [True, True]
        ),
    ),
    "hung-loader": ({"magnitude": 0.05}, lambda s: cast(Feed, s.bench.feed).waited_s >= 0.05),
    "inf-gradient": (
        {},
        lambda s: _check_gradient(s) and bool(s.records[AT].loss.isfinite().all()),
    ),
    "nan-activation": (
        {},
        lambda s: left_out(s) == [AT] and bool(s.records[AT].loss.isnan().any()),
    ),
    "nan-weight": (
        {},
        lambda s: (
            sum(int(w.isnan().sum()) for w in s.weights[AT].values()) >= 1
            and _jumped(s, 1)
            and left_out(s) == [2, 3, 4]
        ),
    ),
    "huge-weight": (
        {"magnitude": 1e6, "tensor": "network.dec.8x8_block0.conv_res0.weight"},
        lambda s: _jumped(s, 1),
    ),
    "layer-reinitialised": ({}, lambda s: _jumped(s, 1) and not left_out(s)),
    "overflow": ({}, lambda s: left_out(s) == [2, 3, 4]),
    "flaky-layer": (
        {"magnitude": 0.1},
        lambda s: len(set(s.notes[AT])) == 2 and len(set(s.notes[1])) == 1,
    ),
    "bf16-stagnation": (
        {"magnitude": 4},
        lambda s: (
            _bits(s.weights[AT]["network.dec.8x8_block0.conv_res0.weight"]) <= 4
            and _bits(s.weights[AT - 1]["network.dec.8x8_block0.conv_res0.weight"]) > 15
        ),
    ),
    "lr-jump": ({"magnitude": 7}, lambda s: np.allclose(rates(s), [1, 1, 7, 7, 7])),
    "lr-drift": ({"magnitude": 0.5}, lambda s: np.allclose(rates(s), [1, 1, 1.5, 2.25, 3.375])),
    "second-moment-shrunk": (
        {"magnitude": 1e-3},
        lambda s: math.isclose(_moments(s), 1e-3 * _moments(healthy()), rel_tol=1e-4),
    ),
    "optimizer-state-lost": ({}, lambda s: s.notes[:4] == [1, 2, 1, 2]),
    "gradient-flipped": (
        {},
        lambda s: all(torch.equal(g, -healthy().grads[AT][k]) for k, g in s.grads[AT].items()),
    ),
    "layer-dropped": (
        {},
        lambda s: (
            _still(s, lambda k: ".dec." in k) == {k for k in s.weights[0] if ".dec." in k}
            and not _still(s, lambda k: ".enc." in k)
            and float(s.records[AT].grad_norm) == float(healthy().records[AT].grad_norm)
        ),
    ),
    "vanishing": ({}, lambda s: s.notes[AT] < 1e-4 < s.notes[AT - 1]),
    "exploding": (
        {"magnitude": 1e4},
        lambda s: (
            _ratios(s)[AT] > 30 and torch.equal(s.records[AT].error, healthy().records[AT].error)
        ),
    ),
    "dead-units": ({}, _check_dead),
    "weight-growth": ({"magnitude": 0.2}, _check_weight_growth),
    "log-variance-runaway": (
        {"magnitude": 1.0},
        lambda s: 2 < _ratios(s)[AT] < 4 and _ratios(s)[3] > 6 and _ratios(s)[4] > 16,
    ),
    "activation-growth": (
        {"magnitude": 0.5, "tensor": "last"},
        lambda s: s.notes[AT:] == [1.5, 2.25, 3.375],
    ),
    "band-error": ({"band": 4}, _check_band),
    "labels-zeroed": ({}, lambda s: [n > 0 for n in s.notes] == [True, True, False, False, False]),
    "one-seed": (
        {},
        lambda s: [len({x.tobytes() for x in n}) for n in s.notes] == [6, 6, 3, 3, 3],
    ),
    "ema-frozen": ({}, lambda s: [_moved(s, i) for i in (AT, 3, 4)] == [0, 0, 0]),
    "ema-nan": (
        {},
        lambda s: nan_entries(s.averages[1]) == [0, 0] and min(nan_entries(s.averages[AT])) == 1,
    ),
    "ema-long": ({"magnitude": 10}, lambda s: math.isclose(_moved(s, AT), 0.1, rel_tol=1e-3)),
    "catapult": (
        {},
        lambda s: (
            s.batches[AT].images.dtype == torch.uint8
            and s.batches[AT].images.float().std() > 1.2 * _true(s).float().std()
            and not left_out(s)
        ),
    ),
    "grayscale": ({"at": 0}, lambda s: not left_out(s)),
}


def _layer_size(role: str) -> Callable[[Bench], float]:
    """Size of what a block gives out for the same input and fresh weights, as a note."""
    reference: list[float] = []

    def note(bench: Bench) -> float:
        ((_, layer),) = layers(bench.place(), fault("vanishing", tensor=role)).items()
        found: list[torch.Tensor] = []
        handle = layer.register_forward_hook(lambda m, i, y: found.append(y.detach()))
        before = bench.weights()
        with torch.no_grad():
            for name, weight in weights_of(bench.state.denoiser).items():
                weight.copy_(_START[name])
            bench.state.denoiser.eval()(torch.ones(1, 1, 8, 8), torch.ones(1), None)
            for name, weight in weights_of(bench.state.denoiser).items():
                weight.copy_(before[name])
        handle.remove()
        reference.append(float(found[0].norm()))
        return round(reference[-1] / reference[0], 5)

    return note


_START = Bench().weights()


def _twice(bench: Bench) -> tuple[float, ...]:
    with torch.no_grad():
        x = torch.ones(1, 1, 8, 8)
        return tuple(float(bench.state.denoiser(x, torch.ones(1), None).sum()) for _ in range(2))


def _effect_of_labels(bench: Bench) -> float:
    with torch.no_grad():
        x, sigma = torch.ones(2, 1, 8, 8), torch.ones(2)
        one, other = (bench.state.denoiser(x, sigma, torch.tensor([i, i])) for i in (0, 1))
    return float((one - other).norm())


def _count_of_adam(bench: Bench) -> int:
    return int(next(iter(bench.state.optimizer.state.values()))["step"])


NOTES: dict[str, Callable[[], Callable[[Bench], Any]]] = {
    "flaky-layer": lambda: _twice,
    "labels-zeroed": lambda: _effect_of_labels,
    "one-seed": lambda: _samples,
    "optimizer-state-lost": lambda: _count_of_adam,
    "activation-growth": lambda: _layer_size("last"),
    "vanishing": lambda: _layer_size("middle"),
}


@pytest.mark.parametrize("kind", list(STARTS))
def test_kind_does_what_its_sentence_says(kind: str) -> None:
    given, check = CHECKS[kind]
    note = NOTES[kind]() if kind in NOTES else lambda bench: None
    story = tell(fault(kind, **{"at": AT, **given}), note=note)
    assert same_until(story, AT), "it acts before its time"
    assert check(story)
