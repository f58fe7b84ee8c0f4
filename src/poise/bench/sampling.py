"""Sampling to be timed: one call of the network, and all that a sampler does beside it."""

import torch
from torch import Tensor

from poise.bench.rig import Rig, Work
from poise.build import build_denoiser
from poise.diffusion.denoiser import Denoiser
from poise.generate import generate, sampling_levels
from poise.runtime import Runtime


def plain_call(rig: Rig) -> Work:
    """One evaluation of the network in fp32, in torch's own layout."""
    denoiser = build_denoiser(
        rig.config, rig.facts, Runtime(rig.runtime.device, torch.float32)
    ).eval()
    for weight in denoiser.parameters():
        weight.data = weight.data.contiguous()
    return _call(rig, denoiser, torch.contiguous_format)


def own_call(rig: Rig, denoiser: Denoiser) -> Work:
    """One evaluation as a run samples."""
    return _call(rig, denoiser, torch.channels_last)


def _call(rig: Rig, denoiser: Denoiser, layout: torch.memory_format) -> Work:
    device = rig.runtime.device
    x = rig.batch.images.to(device, torch.float32).contiguous(memory_format=layout)
    sigma = torch.ones([], device=device)
    labels = None if rig.batch.labels is None else rig.batch.labels.to(device)

    @torch.no_grad()
    def work() -> None:
        denoiser.eval()(x, sigma, labels)

    return work


def without_network(rig: Rig, denoiser: Denoiser) -> tuple[int, Work]:
    """How often a batch calls the network, and sampling with a network that does nothing."""
    settings = rig.config.sampling.model_copy(update={"batch": rig.images})
    levels = sampling_levels(settings, denoiser.formulation)
    labels = None if rig.batch.labels is None else rig.batch.labels.tolist()
    calls = 0

    def nothing(x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        nonlocal calls
        calls += 1
        return x

    def work() -> None:
        generate(
            nothing,
            count=rig.images,
            shape=(rig.facts.channels, rig.facts.resolution, rig.facts.resolution),
            labels=labels,
            settings=settings,
            seed=rig.config.seed,
            levels=levels,
            device=rig.runtime.device,
        )

    work()
    return calls, work
