"""The figures of the claim: how large weights and activations are, block by block."""

import pytest
import torch
from torch import Tensor, nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import resolve
from poise.diffusion.denoiser import Denoiser
from poise.models.adm import NoUncertainty
from poise.runtime import Runtime
from poise.training.magnitudes import activation_rms, weight_rms

FACTS = DataFacts(8, 1, ("a", "b"), 0.5)
SIGMA = torch.full((6,), 2.0)
SPREAD = (2.0**2 + 0.5**2) ** 0.5  # of images with that noise, which the network sees divided by it
X = SPREAD * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))


class Times(nn.Module):
    """A block that multiplies what it gets."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class Chain(nn.Module):
    """Blocks one after another, in one group or in two."""

    def __init__(self, **groups: list[float]) -> None:
        super().__init__()
        for name, factors in groups.items():
            blocks = [Times(f) for f in factors]
            named = {f"8x8_block{i}": block for i, block in enumerate(blocks)}
            self.add_module(
                name, nn.ModuleList(blocks) if name == "blocks" else nn.ModuleDict(named)
            )
        self.modes: list[bool] = []

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> Tensor:
        self.modes.append(self.training)
        for module in self.modules():
            if isinstance(module, Times):
                x = module(x)
        return x


def denoiser_of(network: nn.Module) -> Denoiser:
    return Denoiser(network, NoUncertainty(), sigma_data=0.5)


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ({"enc": [2.0, 3.0], "dec": [0.5]}, [2.0, 6.0, 3.0]),
        ({"blocks": [2.0, 3.0, 0.5]}, [2.0, 6.0, 3.0]),
        ({"other": [2.0]}, []),
    ],
)
def test_blocks_are_measured_in_their_order(
    groups: dict[str, list[float]], wanted: list[float]
) -> None:
    network = Chain(**groups)
    found = activation_rms(denoiser_of(network), X, SIGMA, None)
    rms = (X / SPREAD).square().mean().sqrt()
    torch.testing.assert_close(found, torch.tensor(wanted) * rms)
    assert network.modes == [False]
    assert not any(module._forward_hooks for module in network.modules())


def test_measuring_leaves_no_hook_behind_when_the_network_fails() -> None:
    network = Chain(enc=[1.0])
    network.enc.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError):
        activation_rms(denoiser_of(network), X, torch.ones(5), None)
    assert not any(module._forward_hooks for module in network.modules())


def test_weights_count_by_their_number() -> None:
    network = Chain(enc=[3.0, 4.0])
    network.matrix = nn.Parameter(torch.full((5, 2), 2.0))
    rms = ((9 + 16 + 10 * 4) / 12) ** 0.5
    assert weight_rms(denoiser_of(network)).item() == pytest.approx(rms)


@pytest.mark.parametrize(
    ("architecture", "blocks"), [("edm2", 4 + 7), ("adm", 4 + 7), ("dit", 3), ("mp_dit", 3)]
)
def test_every_block_of_every_architecture_is_measured(architecture: str, blocks: int) -> None:
    config = resolve(
        None,
        {
            "model.architecture": architecture,
            "model.channels": 16,
            "model.channels_per_head": 16,
            "model.attn_resolutions": [4],
            "model.depth": 3,
        },
    )
    denoiser = build_denoiser(config, FACTS, Runtime(torch.device("cpu"), torch.bfloat16))
    found = activation_rms(denoiser, X, SIGMA, torch.arange(6) % 2)
    # two levels of one block: first convolution, block, down, block; then in0, in1, 2, up, 2
    assert len(found) == blocks
    assert found.dtype == torch.float32 and bool((found > 0).all())
    if architecture in ("edm2", "mp_dit"):
        assert bool(((found > 0.7) & (found < 1.3)).all())
        assert weight_rms(denoiser).item() == pytest.approx(1, abs=0.02)
