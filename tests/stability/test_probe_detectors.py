"""Each detector names its planted fault and stays quiet beside it."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import probe_rig as rig
import pytest
import torch
from torch import Tensor, nn

from poise.stability.causes import CAUSES
from poise.stability.detectors.probes_all import ProbeDetector, probe_detectors
from poise.stability.detectors.probes_grid import DiversityCollapse
from poise.stability.detectors.probes_history import jitter, trend
from poise.stability.detectors.probes_learning import Memorisation
from poise.stability.detectors.probes_network import Stagnation
from poise.stability.incident import Sign
from poise.stability.probes import Probe, probe
from poise.training.loop import update

LEVELS = [0.4, 1.0, 0.1, 2.0] * 3
Change = Callable[[int, Probe], Probe]


def healthy(count: int, seed: int = 0, noise: float = 0.03, last: float = 0.3) -> list[Probe]:
    """Probes of a run that learns: errors fall to `last`, magnitudes wander by a few per cent."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 0.4, (2, len(LEVELS)))
    found = []
    for k in range(count):
        base = math.log(last + (1 - last) * math.exp(-k / 5)) + rng.normal(0, noise)
        val, train = np.exp(base + image + rng.normal(0, 0.01, image.shape))
        ema = np.exp(np.log(val) - 0.05 + 0.1 * math.exp(-k / 4))
        wander = np.exp(rng.normal(0, 0.04, 5))
        found.append(
            Probe(
                images_seen=400 * k,
                step=50 * k,
                blocks={
                    f"enc.{i}": float((0.3 if k == 0 else 1 + i) * w) for i, w in enumerate(wander)
                },
                weights={"a.weight": 1.0, "b.weight": 0.01 + 0.2 * (1 - math.exp(-k / 8))},
                rows={"a.weight": 0.9999},
                coarse=0.0002,
                dead={
                    "start": 1.0 if k == 0 else 0.0,
                    "other": 0.0,
                    "act (input)": min(k / 60, 0.2),
                },
                attention={"qkv": 1 + 4 * (1 - math.exp(-k / 9))},
                levels=LEVELS,
                val=val.tolist(),
                train=train.tolist(),
                ema={f"ema_{0.05 * (1 + k % 2):.3f}": ema.tolist()},
                condition=0.0 if k == 0 else float(0.4 * (1 - math.exp(-k / 3)) * wander[0]),
                repeat=0.0,
                exact=True,
            )
        )
    return found


def watch(
    probes: list[Probe], change: Change | None = None, at: int = 16
) -> list[tuple[int, Sign]]:
    """Signs with the number of the probe; halfway the detectors go through JSON."""
    detectors = probe_detectors(rig.facts_of(total_images=400 * len(probes)))
    signs = []
    for k, one in enumerate(probes):
        planted = change(k - at, one) if change and k >= at else one
        signs += [(k, s) for d in detectors for s in d.look(planted)]
        if k == len(probes) // 2:
            states = json.loads(json.dumps([d.state() for d in detectors], allow_nan=False))
            detectors = probe_detectors(rig.facts_of(total_images=400 * len(probes)))
            for d, state in zip(detectors, states, strict=True):
                d.restore(state)
    for k, sign in signs:
        assert sign.cause in CAUSES and sign.images_seen == 400 * k and sign.since <= 400 * k
        json.dumps(vars(sign), allow_nan=False)
    return signs


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.1])
def test_runs_that_learn_are_left_alone(noise: float) -> None:
    for seed in range(10):
        assert watch(healthy(60, seed, noise)) == []


def scaled(name: str, factor: float) -> Change:
    def change(k: int, p: Probe) -> Probe:
        return replace(p, blocks={n: v * (factor if n == name else 1) for n, v in p.blocks.items()})

    return change


def creeping(k: int, p: Probe) -> Probe:
    return replace(p, blocks=p.blocks | {"enc.2": 3 * 1.3**k})


def swollen(k: int, p: Probe) -> Probe:
    return replace(p, weights=p.weights | {"b.weight": 0.3 * 1.4**k})


def worse_averages(k: int, p: Probe) -> Probe:
    gap = 0.15 * 1.1**k
    return replace(p, ema={n: [e * math.exp(gap) for e in p.val] for n in p.ema})


def ema_times(factor: float) -> Change:
    return lambda k, p: replace(p, ema={n: [e * factor for e in v] for n, v in p.ema.items()})


PLANTED: list[tuple[str, Change, int, dict[str, Any]]] = [
    ("activation-growth", scaled("enc.3", 6.0), 0, {"layers": ["enc.3"]}),
    ("activation-growth", scaled("enc.1", 2.2), 1, {"layers": ["enc.1"]}),
    ("activation-growth", creeping, 6, {"layers": ["enc.2"]}),
    ("vanishing-gradients", scaled("enc.0", 1e-5), 0, {"layers": ["enc.0"]}),
    (
        "weight-growth",
        lambda k, p: replace(p, rows={"a.weight": 1.0005}),
        0,
        {"tensors": ["a.weight"]},
    ),
    ("weight-growth", swollen, 10, {"tensors": ["b.weight"]}),
    ("dead-units", lambda k, p: replace(p, dead=p.dead | {"other": 0.5}), 0, {"layers": ["other"]}),
    ("dead-units", lambda k, p: replace(p, dead=p.dead | {"start": 1.0}), 0, {"layers": ["start"]}),
    ("dead-units", lambda k, p: replace(p, dead=p.dead | {"new": 0.9}), 0, {"layers": ["new"]}),
    (
        "attention-collapse",
        lambda k, p: replace(p, attention={"qkv": 300.0}),
        2,
        {"layers": ["qkv"]},
    ),
    ("condition-ignored", lambda k, p: replace(p, condition=1e-6), 0, {}),
    ("condition-ignored", lambda k, p: replace(p, condition=0.02), 1, {}),
    ("ema-damaged", ema_times(math.nan), 0, {}),
    ("ema-damaged", ema_times(4.0), 0, {}),
    ("ema-too-long", worse_averages, 16, {}),
    ("unrepeatable-result", lambda k, p: replace(p, repeat=1e-6), 0, {}),
]


@pytest.mark.parametrize(("cause", "change", "delay", "culprit"), PLANTED)
def test_what_is_planted_is_named_in_time_and_nothing_else(
    cause: str, change: Change, delay: int, culprit: dict[str, Any]
) -> None:
    signs = watch(healthy(40), change)
    assert signs and {s.cause for _, s in signs} == {cause}
    first, sign = signs[0]
    assert 16 <= first <= 16 + delay
    assert sign.culprit | culprit == sign.culprit
    assert sign.since >= 400 * 15 - 400 * 2  # averages take turns


def test_weights_of_few_bits_are_named_once() -> None:
    detector, probe = Stagnation(rig.facts_of(total_images=400)), healthy(1)[0]
    assert detector.look(probe) == []
    (sign,) = detector.look(replace(probe, coarse=0.97))
    assert sign.cause == "precision-stagnation" and "97%" in sign.sentence
    assert detector.look(replace(probe, coarse=0.97)) == []


def test_a_device_without_exact_results_may_round() -> None:
    rounding = watch(healthy(20), lambda k, p: replace(p, repeat=5e-4, exact=False))
    assert rounding == []
    assert watch(healthy(20), lambda k, p: replace(p, repeat=5e-3, exact=False))


def test_the_overflow_of_a_steady_growth_is_foretold() -> None:
    signs = [s for _, s in watch(healthy(40), creeping)]
    at = signs[-1].evidence["fp16_overflow_at"]
    wanted = 400 * (16 + math.log(65504 / 3) / math.log(1.3))
    assert at == pytest.approx(wanted, rel=0.02)


def overfit(k: int, p: Probe) -> Probe:
    up = 1 + 0.012 * k
    return replace(p, val=[e * up for e in p.val], train=[e / up for e in p.train])


def test_memorisation_is_named_with_its_band_and_not_when_both_get_worse() -> None:
    def middle(k: int, p: Probe) -> Probe:
        up = [1 + 0.03 * k * (s == 1.0) for s in p.levels]
        val = [e * u for e, u in zip(p.val, up, strict=True)]
        return replace(p, val=val, train=[e / u for e, u in zip(p.train, up, strict=True)])

    signs = watch(healthy(60, noise=0.01), overfit, at=25)
    assert [s.cause for _, s in signs] == ["memorisation"]
    assert signs[0][0] <= 25 + 8
    (_, sign), *_ = watch(healthy(60, noise=0.01), middle, at=25)
    assert sign.cause == "memorisation" and sign.culprit == {"band": 1.0}

    def both(k: int, p: Probe) -> Probe:
        up = 1 + 0.02 * k
        return replace(p, val=[e * up for e in p.val], train=[e * up for e in p.train])

    assert watch(healthy(60, noise=0.01), both, at=25) == []


class Errors:
    """As much of a reading as memorisation reads."""

    def __init__(self, rng: np.random.Generator, level: float, applied: bool = True) -> None:
        self.sigma = np.exp(rng.normal(-0.8, 1.4, 64))
        self.image_error = np.exp(level + rng.normal(0, 0.3, 64))
        self.image_error[0] = math.nan
        self.applied = applied


@pytest.mark.parametrize("kept", [0.0, 0.01])
def test_images_that_were_just_trained_on_count_too(kept: float) -> None:
    rng = np.random.default_rng(0)
    detector = Memorisation(rig.facts_of())
    signs = []
    for k, one in enumerate(healthy(60, noise=0.01)):
        late = max(0, k - 30)
        for _ in range(25):
            level = float(np.log(one.val).mean()) - kept * late * 2
            detector.read(Errors(rng, level))  # type: ignore[arg-type]
        detector.read(Errors(rng, 9.0, applied=False))  # type: ignore[arg-type]
        up = 1 + kept * late
        signs += detector.look(
            replace(one, val=[e * up for e in one.val], train=[e * up for e in one.train])
        )
    assert [s.evidence["of"] for s in signs] == (["stream"] if kept else [])


def test_a_grid_of_one_picture_is_no_diversity() -> None:
    rng = np.random.default_rng(0)
    data = rig.pictures()
    labels = data.labels
    assert labels is not None
    asked = [0, 0, 1, 1, 2, 2] * 3
    real = np.stack([data.images[labels == c][j] for j, c in enumerate(asked)])
    noisy = np.clip(real + rng.normal(0, 3, real.shape), 0, 255).astype(np.uint8)
    same = np.stack([data.images[labels == c][0] for c in asked])
    near = np.clip(same + rng.normal(0, 5, real.shape), 0, 255).astype(np.uint8)
    pale = np.clip(127 + rng.normal(0, 1, real.shape), 0, 255).astype(np.uint8)

    def judged(images: np.ndarray, seen: int, first: np.ndarray | None = None) -> list[str]:
        detector = DiversityCollapse(data.images, labels, 4000)
        if first is not None:
            assert detector.look(first, asked, 10) == []
            again = DiversityCollapse(data.images, labels, 4000)
            again.restore(json.loads(json.dumps(detector.state())))
            detector = again
        return [s.severity for s in detector.look(images, asked, seen)]

    assert judged(real, 4000) == judged(noisy, 4000) == []
    assert judged(pale, 100) == []  # it has hardly begun
    assert judged(same, 100) == ["critical"]
    assert judged(near, 100) == [] and judged(near, 3000) == ["warning"]
    assert judged(near, 100, first=noisy) == ["warning"]
    alone = DiversityCollapse(data.images, None, 4000)
    assert alone.look(real, None, 4000) == [] and alone.look(real[:1], None, 4000) == []
    assert alone.look(np.repeat(real[:1], 9, 0), None, 4000)


def test_trends_and_jitter_are_those_of_their_formulas() -> None:
    x = np.arange(9.0)
    assert trend((2 * x).tolist()) == (2.0, math.inf) and trend([3.0] * 5)[1] == 0
    y = 2 * x + np.array([1, -1] * 4 + [0])
    slope, t = trend(y.tolist())
    fit, cov = np.polyfit(x, y, 1, cov=True)
    assert slope == pytest.approx(fit[0]) and t == pytest.approx(fit[0] / cov[0, 0] ** 0.5)
    noise = np.random.default_rng(0).normal(0, 0.2, 4000) + np.arange(4000) * 1e-3
    assert jitter(noise.tolist()) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize("architecture", ["edm2", "adm"])
def test_short_real_runs_are_quiet_until_a_fault_is_planted(architecture: str) -> None:
    config = rig.configured(model__architecture=architecture, stability__probe_every=5)
    state = rig.fresh(config)
    kit, stream = rig.kit_of(config, state), rig.stream(config)
    detectors: list[ProbeDetector] = probe_detectors(rig.facts_of(state))

    def go(updates: int) -> list[Sign]:
        signs = []
        for i in range(updates):
            update(state, next(stream), config)
            if i % 5 == 4:
                found = probe(state, kit)
                signs += [s for d in detectors for s in d.look(found)]
        return signs

    assert go(40) == []
    block = "8x8_in1"
    first = "conv_res0" if architecture == "edm2" else "conv0"
    layer = state.denoiser.network.get_submodule(f"dec.{block}.{first}")

    def kill(module: nn.Module, given: object, output: Tensor) -> Tensor:
        return output * (torch.arange(output.shape[1]) > 10)[:, None, None]

    handle = layer.register_forward_hook(kill)
    signs = go(5)
    assert [(s.cause, s.culprit) for s in signs] == [
        ("dead-units", {"layers": [f"dec.{block}.{first}"]})
    ]
    handle.remove()
    state.denoiser.network.get_submodule(f"dec.{block}").register_forward_hook(
        lambda m, given, output: output * 9
    )
    assert {s.cause for s in go(10)} >= {"activation-growth"}
