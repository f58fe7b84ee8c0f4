"""Counts of multiply-adds against published figures and against a count by hand."""

import math

import pytest
import torch
from torch import Tensor, nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.flops import forward_macs
from poise.models.edm2 import SelfAttention
from poise.models.layers import MPConv
from poise.runtime import Runtime

EDM2 = {
    "model.channel_mult": [1, 2, 3, 4],
    "model.num_blocks": 3,
    "model.attn_resolutions": [16, 8],
}
LATENTS = DataFacts(64, 4, tuple(str(i) for i in range(1000)), 0.5)
SMALL = DataFacts(8, 3, ("a", "b"), 0.5)


# XS and S of Karras et al. 2024; a multiply-add is one
@pytest.mark.parametrize(("channels", "giga"), [(128, 45.5), (192, 101.9)])
def test_the_networks_of_edm2_cost_what_the_paper_says(channels: int, giga: float) -> None:
    config = resolve(None, EDM2 | {"model.channels": channels})
    products, all_in = (forward_macs(config, LATENTS, weights=w) / 1e9 for w in (False, True))
    assert all_in == pytest.approx(giga, rel=0.005)
    assert giga * 0.985 < products < all_in


def test_the_count_is_that_of_each_layer_by_hand() -> None:
    """Each output of a layer costs its fan-in; attention costs two products of pixels by pixels."""
    config = resolve(
        None,
        {"model.channels": 16, "model.channels_per_head": 8, "model.attn_resolutions": [4]},
    )
    denoiser = build_denoiser(config, SMALL, Runtime(torch.device("cpu"), torch.float32)).eval()
    found = []

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, MPConv):
            found.append(output.numel() * module.fan_in)
        else:
            found.append(2 * math.prod(output.shape[2:]) ** 2 * output.shape[1])

    for module in denoiser.network.modules():
        if isinstance(module, MPConv | SelfAttention):
            module.register_forward_hook(count)
    denoiser(torch.zeros(1, 3, 8, 8), torch.ones([]), torch.zeros(1, 2))
    assert forward_macs(config, SMALL) == sum(found)


@pytest.mark.parametrize("architecture", ["edm2", "adm", "dit", "mp_dit"])
@pytest.mark.parametrize("classes", [(), ("a", "b")])
def test_every_network_can_be_counted(architecture: str, classes: tuple[str, ...]) -> None:
    config = resolve(
        None,
        {"model.architecture": architecture, "model.channels_per_head": 8, "model.depth": 2},
    )
    small = forward_macs(config, DataFacts(8, 1, classes, 0.5))
    large = forward_macs(config, DataFacts(16, 1, classes, 0.5))
    assert 0 < small < large < 16 * small
