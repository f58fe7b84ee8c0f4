"""Readings of a made-up healthy run that keeps Adam's invariants exactly; tests plant faults in it.

Errors fall and scatter, gradient norms scatter, weights walk, moments and averages follow them.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from poise.stability.detectors.all import step_detectors
from poise.stability.detectors.detector import Detector
from poise.stability.facts import Facts
from poise.stability.incident import Sign
from poise.stability.reading import Reading
from poise.training.ema import power_beta, profile_std
from poise.training.inputs import InputCheck

P_MEAN, P_STD, BANDS = -0.8, 1.4, 8
CENTRES = tuple(
    math.exp(P_MEAN - 2.5 * P_STD + (i + 0.5) * 5 * P_STD / BANDS) for i in range(BANDS)
)
BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Plan:
    """A healthy run."""

    updates: int = 400
    batch: int = 16
    tensors: int = 40
    train: int = 4000
    seed: int = 0
    error_noise: float = 0.45  # of one image
    common_noise: float = 0.05  # of a batch
    grad_noise: float = 0.5  # of a batch
    warmup: float = 0.05
    drop_at: int = 10**9  # a planned drop of the rate to a tenth
    flat_rate: float = 0.0
    copies: int = 1  # images that look alike
    flips: bool = False
    sigma_shift: float = 0.0
    fall: float = 150.0  # updates over which the error falls
    bump: tuple[int, int, float] = (0, 0, 1.0)  # at, for how many updates, factor
    left_out: tuple[int, ...] = ()  # updates that were not applied


def facts_of(plan: Plan) -> Facts:
    T = plan.tensors
    return Facts(
        names=tuple(f"network.enc.{i // 4}_block.layer{i % 4}.weight" for i in range(T)),
        forced=tuple(i % 5 != 0 for i in range(T)),
        betas=BETAS,
        train_images=plan.train,
        file_names=lambda i: f"set/shard{i // 500}/{i:06d}.png",
        profiles=("ema_0.050", "ema_0.100"),
        centres=CENTRES,
        num_classes=10,
        batch=plan.batch,
        total_images=plan.updates * plan.batch,
        warmup_images=int(plan.warmup * plan.updates * plan.batch),
        sigma_data=0.5,
        planned=lambda seen: schedule(plan, seen),
        weighted_draws=False,
        policy="repair",
    )


def schedule(plan: Plan, seen: int) -> float:
    rise = plan.warmup * plan.updates * plan.batch
    rate = 0.01 * (min(1.0, (seen + plan.batch) / rise) if rise else 1.0)
    return rate * (0.1 if seen >= plan.drop_at * plan.batch else 1.0)


@lru_cache(maxsize=4)
def healthy(plan: Plan) -> tuple[Reading, ...]:
    """The readings of `plan.updates` updates, in order."""
    return tuple(_readings(plan))


def _readings(plan: Plan) -> Iterator[Reading]:
    rng = np.random.default_rng(plan.seed)
    T, B = plan.tensors, plan.batch
    weights = rng.normal(0, 30, T).astype(np.float32)
    moments = np.full(T, np.nan, np.float32)
    scale = np.exp(rng.normal(-3, 1, T))
    stds = [profile_std(name) for name in facts_of(plan).profiles]
    averages = np.stack([weights, weights]).astype(np.float64)
    levels = np.array([0.7, 0.5, 0.4, 0.35, 0.4, 0.5, 0.65, 0.7])
    edges = (np.log(CENTRES)[1:] + np.log(CENTRES)[:-1]) / 2
    order: list[int] = []
    seen = 0
    for step in range(1, plan.updates + 1):
        while len(order) < B:
            order += rng.permutation(plan.train).tolist()
        last = step == plan.updates and B > 1
        n = B - B // 2 if last else B
        indices, order = np.array(order[:n], np.int64), order[n:]
        log_sigma = rng.normal(P_MEAN + plan.sigma_shift, P_STD, n)
        fallen = levels + (1 - levels) * math.exp(-step / plan.fall)
        error = fallen[np.searchsorted(edges, log_sigma)] * np.exp(
            plan.error_noise * rng.normal(size=n) + plan.common_noise * rng.normal()
        )
        at, length, factor = plan.bump
        gradient = scale * np.exp(plan.grad_noise * rng.normal() + 0.2 * rng.normal(size=T))
        if at <= step < at + length:
            error, gradient = error * factor, gradient * factor
        g = gradient.astype(np.float32)
        lr = schedule(plan, seen)
        applied = step not in plan.left_out
        after = (weights + lr * rng.normal(0, 5, T)).astype(np.float32) if applied else weights
        ema = averages.astype(np.float32) if step % 4 == 0 else None
        seen += n
        yield Reading(
            images_seen=seen,
            step=step,
            batch=n,
            lr=lr,
            schedule_lr=lr,
            used_lr=lr,
            applied=applied,
            reasons=frozenset() if applied else frozenset({"error-spike"}),
            loss=float(np.log(error).mean()),
            error=float(error.mean()),
            image_error=error.astype(np.float32),
            sigma=np.exp(log_sigma).astype(np.float32),
            grad_norm=float(np.sqrt((g.astype(np.float64) ** 2).sum())),
            grad_norms=g,
            moments=moments.copy(),
            before=weights,
            after=after,
            ema=ema,
            update_ratio=0.1 * lr if step % 10 == 0 else None,
            indices=indices,
            inputs=checked(plan, rng, indices),
            seconds=0.05,
            waited=0.001,
        )
        old = np.nan_to_num(moments.astype(np.float64), nan=0.0)
        b2 = BETAS[1]
        if applied:
            moments = (b2 * old + (1 - b2) * g.astype(np.float64) ** 2).astype(np.float32)
        for p, std in enumerate(stds):
            keep = power_beta(std or 0.1, seen, n)
            averages[p] = keep * averages[p] + (1 - keep) * after
        weights = after


def checked(plan: Plan, rng: np.random.Generator, indices: np.ndarray) -> InputCheck:
    n = len(indices)
    # the same images are flat each time; the same picture may stand behind several indices
    flat = (indices * 2654435761 % 10_000) < plan.flat_rate * 10_000
    flipped = rng.integers(0, 2, n) if plan.flips else 0
    prints = ((indices // plan.copies) * 2 + flipped) * 40503 % (2**32)
    return InputCheck(
        bad=np.zeros(n, bool),
        reasons=("",) * n,
        flat=flat,
        prints=np.where(flat, 7, prints).astype(np.uint32),
        low=0.0,
        high=255.0,
    )


Fault = Callable[[Reading], Reading]


def run(
    plan: Plan, fault: Fault | None = None, detectors: list[Detector] | None = None
) -> list[Sign]:
    """All signs that all detectors give."""
    detectors = detectors or step_detectors(facts_of(plan))
    signs = []
    for reading in healthy(plan):
        seen = fault(reading) if fault else reading
        for detector in detectors:
            signs += detector.look(seen)
    return signs


def serious(signs: list[Sign]) -> list[Sign]:
    """Without mere information."""
    return [s for s in signs if s.severity != "info"]


def marked(reading: Reading, reason: str, where: np.ndarray) -> Reading:
    """With images that the input check refuses."""
    reasons = tuple(reason if bad else "" for bad in where)
    inputs = replace(reading.inputs, bad=where, reasons=reasons)
    return replace(reading, inputs=inputs, applied=False, reasons=frozenset({"input"}))


def shaken(r: Reading) -> Reading:
    """With a little noise on all weights since the last update."""
    noise = 1 + 1e-3 * np.random.default_rng(r.step).normal(size=len(r.before))
    return replace(r, before=(r.before * noise).astype(np.float32))
