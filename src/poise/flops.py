"""How many multiply-adds a network costs, counted on its shapes without weights or data."""

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.models.layers import MPConv
from poise.runtime import Runtime
from poise.settings import Config

TRAINING_PASSES = 3  # a backward pass costs two forward passes
_PER_WEIGHT = 3  # to normalise a weight: square and add, divide, scale


def forward_macs(config: Config, facts: DataFacts, *, weights: bool = False) -> int:
    """Multiply-adds of one network call for one image.

    They are those of convolutions and matrix products, attention included; elementwise work is
    left out. Two floating-point operations each; a training step costs TRAINING_PASSES times.

    Args:
        config: the network.
        facts: the shape of the images and the number of classes.
        weights: add what normalising each weight costs, as the figures that EDM2 publishes do
            ("Gflops", a multiply-add counted as one). A batch shares that cost.

    Raises:
        UsageError: the network does not fit the resolution.
    """
    shapes = Runtime(torch.device("meta"), torch.float32)
    denoiser = build_denoiser(config, facts, shapes).eval()
    side = facts.resolution
    x = torch.empty(1, facts.channels, side, side, device="meta")
    labels: Tensor | None = None
    if facts.label_names:
        labels = torch.empty(1, len(facts.label_names), device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(x, torch.ones([], device="meta"), labels)
    macs = int(counter.get_total_flops()) // 2
    if weights:
        normalised = [m.weight for m in denoiser.modules() if isinstance(m, MPConv)]
        macs += _PER_WEIGHT * sum(w.numel() for w in normalised)
    return macs


def network_size(config: Config, side: int, channels: int, classes: int) -> tuple[int, int]:
    """Parameters, and multiply-adds of one call for one image, of a shape of data.

    Args:
        config: the network.
        side: of the images in pixels.
        channels: of the images.
        classes: 0: unconditional.
    """
    facts = DataFacts(side, channels, tuple(str(i) for i in range(classes)), 0.5)
    denoiser = build_denoiser(config, facts, Runtime(torch.device("meta"), torch.float32))
    return sum(p.numel() for p in denoiser.parameters()), forward_macs(config, facts, weights=True)
