"""What the EDM2 network promises beyond the reference numbers."""

import re

import pytest
import torch
from torch import Tensor

from poise.diffusion.denoiser import Denoiser
from poise.errors import UsageError
from poise.models.edm2 import Block, Uncertainty, UNet


def tiny(**changes: object) -> UNet:
    settings: dict[str, object] = {
        "resolution": 16,
        "channels_in": 3,
        "num_classes": 4,
        "channels": 16,
        "channel_mult": (1, 2),
        "num_blocks": 1,
        "attn_resolutions": (8,),
        "channels_per_head": 16,
    }
    torch.manual_seed(0)
    return UNet(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resolution": 20, "channel_mult": (1, 1, 1, 1)}, "20 pixels cannot be halved"),
        ({"resolution": 2, "channel_mult": (1, 1, 1, 1)}, "2 pixels cannot be halved"),
        ({"resolution": 15}, "15 pixels cannot be halved"),
        ({"channels": 16, "channels_per_head": 64}, "8x8 has 32 channels"),
        ({"channels": 100, "channels_per_head": 64}, "8x8 has 200 channels"),
        ({"channels": 8, "attn_resolutions": (16,)}, "16x16 has 8 channels"),
        ({"num_blocks": 0}, "num_blocks = 0"),
        ({"channel_mult": (0, 1)}, r"channel_mult = \[0, 1\]"),
    ],
)
def test_impossible_shapes_are_refused_with_the_reason(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        tiny(**changes)
    assert caught.value.expected


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 20, "channel_mult": (1, 1, 1, 1)},
        {"channels": 100, "channels_per_head": 64},
        {"channels": 16, "channels_per_head": 64},
        {"channels": 24, "attn_resolutions": (16, 8), "channels_per_head": 32},
    ],
)
def test_the_remedy_in_the_message_works(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError) as caught:
        tiny(**changes)
    found = re.search(r"set \w+\.(\w+)=(\d+)", caught.value.remedy)
    assert found is not None
    tiny(**(changes | {found[1]: int(found[2])}))


def test_a_width_that_is_no_multiple_of_the_head_gets_wider_heads() -> None:
    network = tiny(channels=48, channels_per_head=64)  # 96 channels attend at 8x8
    block = network.dec["8x8_in0"]
    assert isinstance(block, Block)
    assert block.attention is not None
    assert block.attention.heads == 1


def test_every_block_keeps_unit_magnitude_at_the_start() -> None:
    network = tiny(channels=32, channel_mult=(1, 2, 2), attn_resolutions=(8,), num_blocks=2)
    found: dict[str, float] = {}
    for side, modules in (("enc", network.enc), ("dec", network.dec)):
        for name, module in modules.items():

            def note(_m: object, _i: object, output: Tensor, name: str = f"{side}.{name}") -> None:
                found[name] = output.square().mean().sqrt().item()

            module.register_forward_hook(note)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 3, 16, 16, generator=generator)
    c_noise = torch.randn(16, generator=generator) / 4
    labels = torch.randint(4, (16,), generator=generator)
    with torch.no_grad():
        network(x, c_noise, labels)
    assert len(found) == len(network.enc) + len(network.dec)
    assert {name: rms for name, rms in found.items() if not 0.7 < rms < 1.3} == {}


def test_embedding_has_unit_magnitude_whatever_the_label() -> None:
    network = tiny(num_classes=10, channels=64)
    c_noise = torch.linspace(-1.5, 1, 200)
    labels = torch.arange(200) % 10
    with torch.no_grad():
        emb = network._embedding(c_noise, labels)
    assert emb.square().mean().sqrt().item() == pytest.approx(1, abs=0.1)


def test_two_forward_passes_before_one_backward_pass() -> None:
    network = tiny()
    torch.nn.init.ones_(network.out_gain)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(4, 3, 16, 16, generator=generator)
    c_noise, labels = torch.randn(4, generator=generator), torch.arange(4)
    first, second = network(x, c_noise, labels), network(-x, c_noise, labels)
    (first.square().sum() + second.square().sum()).backward()
    together = [w.grad.clone() for w in network.parameters()]
    network.zero_grad()
    for signed in (x, -x):
        network(signed, c_noise, labels).square().sum().backward()
    for a, w in zip(together, network.parameters(), strict=True):
        torch.testing.assert_close(a, w.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels_in", [1, 2, 4, 5])
def test_any_number_of_image_channels(channels_in: int) -> None:
    network = tiny(channels_in=channels_in)
    torch.nn.init.ones_(network.out_gain)
    x = torch.randn(2, channels_in, 16, 16, generator=torch.Generator().manual_seed(0))
    x.requires_grad_(True)
    y = network(x, torch.zeros(2), torch.tensor([0, 1]))
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[0].square().sum(), x)
    assert (gradient[0].abs().amax((1, 2)) > 0).all()  # each channel counts
    assert (gradient[1] == 0).all()  # and no image sees another


def test_unconditional_network_takes_no_labels() -> None:
    network = tiny(num_classes=0)
    torch.nn.init.ones_(network.out_gain)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = network(x, torch.zeros(2))
        assert torch.equal(plain, network(x, torch.zeros(2), None))
    assert plain.square().mean() > 0.1
    assert not [name for name, _ in network.named_parameters() if "label" in name]


def test_an_untrained_denoiser_is_exactly_the_skip() -> None:
    sd = 0.5
    denoiser = Denoiser(tiny(), Uncertainty(), sigma_data=sd)
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0])
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        D = denoiser(x, sigma, torch.arange(4))
    s = sigma[:, None, None, None]
    total = (s**2 + sd**2).sqrt()
    assert torch.equal(D, sd**2 / total**2 * x)


def test_activations_stay_within_the_clamp() -> None:
    network = tiny(clip_act=0.5)
    biggest: list[float] = []
    for module in network.modules():
        if isinstance(module, Block):
            module.register_forward_hook(lambda _m, _i, y: biggest.append(y.abs().max().item()))
    with torch.no_grad():
        network(10 * torch.ones(1, 3, 16, 16), torch.zeros(1), torch.tensor([0]))
    assert max(biggest) == 0.5


@pytest.mark.parametrize(
    ("channels", "channels_in", "num_classes", "wanted"),
    [
        (128, 4, 1000, 124_713_253),
        (128, 4, 0, 124_201_253),
        (128, 3, 1000, 124_710_949),
        (192, 4, 1000, 280_212_837),
    ],
    ids=["XS", "XS without labels", "XS pixels", "S"],
)
def test_parameter_counts_of_the_published_networks(
    channels: int, channels_in: int, num_classes: int, wanted: int
) -> None:
    with torch.device("meta"):
        network = UNet(
            resolution=64,
            channels_in=channels_in,
            num_classes=num_classes,
            channels=channels,
            channel_mult=(1, 2, 3, 4),
            num_blocks=3,
            attn_resolutions=(16, 8),
        )
        denoiser = Denoiser(network, Uncertainty(), sigma_data=0.5)
    assert sum(w.numel() for w in denoiser.parameters()) == wanted
    assert sum(b.numel() for b in denoiser.buffers()) == 2 * channels + 256
