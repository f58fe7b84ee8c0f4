"""What the diffusion transformer promises: the paper's sizes, its start, its tokens, its labels."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.errors import UsageError
from poise.models.dit import (
    Block,
    DiT,
    grid_positions,
    mlp_activation,
    noise_features,
    patchify,
    unpatchify,
)
from poise.models.edm2 import Uncertainty


def tiny(**changes: object) -> DiT:
    settings: dict[str, object] = {
        "resolution": 16,
        "channels_in": 3,
        "num_classes": 4,
        "channels": 32,
        "depth": 2,
        "channels_per_head": 16,
        "patch": 4,
    }
    torch.manual_seed(0)
    return DiT(**(settings | changes))  # type: ignore[arg-type]


def awake(network: DiT) -> DiT:
    """The same network with weights where it starts from zero, as after some training."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in network.named_parameters():
        if "modulation" in name or name.startswith("out."):
            torch.nn.init.normal_(weight, std=0.2, generator=generator)
    return network


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- sizes ---


SIZES = {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}


def counted(depth: int, d: int, patch: int, channels_in: int, classes: int) -> int:
    """Parameters from the paper's figure 3, layer by layer; `d` is the width of a token."""
    linear = lambda a, b: a * b + b  # noqa: E731
    pixels = channels_in * patch**2
    block = linear(d, 6 * d) + linear(d, 3 * d) + linear(d, d) + linear(d, 4 * d) + linear(4 * d, d)
    noise = linear(256, d) + linear(d, d)
    labels = (classes + 1) * d if classes else 0
    return linear(pixels, d) + noise + labels + depth * block + linear(d, 2 * d) + linear(d, pixels)


@pytest.mark.parametrize("patch", [2, 4, 8])
@pytest.mark.parametrize("size", SIZES)
def test_parameter_counts_of_the_published_networks(size: str, patch: int) -> None:
    depth, channels, heads = SIZES[size]
    with torch.device("meta"):
        network = DiT(
            resolution=32,
            channels_in=4,
            num_classes=1000,
            channels=channels,
            depth=depth,
            channels_per_head=channels // heads,
            patch=patch,
        )
    found = sum(w.numel() for w in network.parameters())
    assert found == counted(depth, channels, patch, 4, 1000)
    # closed form: 18 d^2 + 15 d a block, (1 + 2) d^2 and the rest around them
    d, pixels = channels, 4 * patch**2
    assert found == (18 * depth + 3) * d**2 + (15 * depth + 1 + 256 + 1 + 1 + 1001 + 2) * d + (
        2 * pixels * d + pixels
    )
    # the published count has the learned sigma, which doubles the output, and the stored positions
    published = found + pixels * d + pixels + (32 // patch) ** 2 * d
    wanted = {"S": (33, 33, 33), "B": (130, 130, 131), "L": (458, 458, 459), "XL": (675, 675, 676)}
    millions = wanted[size][(2, 4, 8).index(patch)]  # the paper's Table 4, without decimals
    assert published / 1e6 == pytest.approx(millions, abs=0.6)
    if (size, patch) == ("XL", 2):
        assert published == 675_129_632


def test_parameters_without_labels() -> None:
    network = tiny(num_classes=0)
    assert sum(w.numel() for w in network.parameters()) == counted(2, 32, 4, 3, 0)
    assert not [name for name, _ in network.named_parameters() if "label" in name]


# --- tokens ---


@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 99)
)
def test_patches_are_cut_row_by_row_and_put_back(
    batch: int, channels: int, side: int, patch: int, seed: int
) -> None:
    x = randn(batch, channels, side * patch, side * patch, seed=seed)
    tokens = patchify(x, patch)
    assert torch.equal(tokens, F.unfold(x, patch, stride=patch).mT)
    assert torch.equal(unpatchify(tokens, patch), x)


def test_positions_know_the_offset_in_both_directions() -> None:
    side, channels = 5, 32
    positions = grid_positions(side, channels).double()
    freqs = torch.tensor([10_000.0 ** (-4 * i / channels) for i in range(channels // 4)]).double()
    wanted = torch.empty(side**2, side**2, dtype=torch.float64)
    for i in range(side**2):
        for j in range(side**2):
            rows, columns = i // side - j // side, i % side - j % side
            wanted[i, j] = ((freqs * rows).cos() + (freqs * columns).cos()).sum()
    torch.testing.assert_close(positions @ positions.T, wanted, rtol=1e-5, atol=1e-5)
    assert positions.square().mean(dim=1) == pytest.approx(0.5, abs=1e-6)
    assert not torch.equal(positions[1], positions[side])  # a row is not a column


@pytest.mark.parametrize(("resolution", "patch"), [(8, 1), (8, 2), (16, 4), (32, 4), (64, 8)])
@pytest.mark.parametrize("channels_in", [1, 4])
def test_any_size_and_number_of_channels(resolution: int, patch: int, channels_in: int) -> None:
    network = awake(tiny(resolution=resolution, patch=patch, channels_in=channels_in))
    x = randn(2, channels_in, resolution, resolution).requires_grad_(True)
    y = network(x, torch.zeros(2), torch.tensor([0, 1]))
    assert y.shape == x.shape
    (gradient,) = torch.autograd.grad(y[0].square().sum(), x)
    assert (gradient[0] != 0).all()  # each pixel counts
    assert (gradient[1] == 0).all()  # and no image sees another


def test_blocks_do_not_know_the_order_of_tokens_but_the_network_does() -> None:
    network = awake(tiny(resolution=8, patch=2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    tokens, emb = randn(2, 16, 32), randn(2, 32, seed=3)
    block = network.blocks[0]
    with torch.no_grad():
        torch.testing.assert_close(block(tokens, emb)[:, order], block(tokens[:, order], emb))
        x = randn(2, 3, 8, 8)
        moved = unpatchify(patchify(x, 2)[:, order], 2)
        y, z = network(x, torch.zeros(2)), network(moved, torch.zeros(2))
    assert (patchify(y, 2)[:, order] - patchify(z, 2)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resolution": 18}, "18 pixels cannot be cut into patches of 4"),
        ({"resolution": 2}, "2 pixels cannot be cut"),
        ({"patch": 0}, "patches of 0"),
        ({"channels": 40}, "40 channels do not make whole heads of 16"),
        ({"channels": 8}, "8 channels do not make whole heads"),
        ({"channels": 30, "channels_per_head": 15}, "positions in two directions"),
        ({"channels": 0}, "0 channels"),
        ({"channels_per_head": 0}, "channels_per_head = 0"),
        ({"depth": 0}, "depth = 0"),
    ],
)
def test_impossible_shapes_are_refused_with_a_remedy_that_works(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        tiny(**changes)
    assert caught.value.expected
    found = re.search(r"set \w+\.(\w+)=(\d+)", caught.value.remedy)
    if found is not None:
        tiny(**(changes | {found[1]: int(found[2])}))


# --- blocks ---


def test_a_block_equals_the_paper_written_out() -> None:
    channels, heads = 32, 2
    torch.manual_seed(0)
    block = Block(channels, heads, 4 * channels, act=mlp_activation("gelu", preserve=False))
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3)
    attention = nn.MultiheadAttention(channels, heads, batch_first=True)
    attention.load_state_dict(
        {
            "in_proj_weight": block.qkv.weight,
            "in_proj_bias": block.qkv.bias,
            "out_proj.weight": block.proj.weight,
            "out_proj.bias": block.proj.bias,
        }
    )
    norm = nn.LayerNorm(channels, eps=1e-6, elementwise_affine=False)
    x, emb = randn(3, 9, channels), randn(3, channels, seed=2)
    six = emb @ block.modulation.weight.T + block.modulation.bias
    beta1, gamma1, alpha1, beta2, gamma2, alpha2 = six[:, None].split(channels, dim=2)
    with torch.no_grad():
        found = block(x, emb)
        y = norm(x) * (1 + gamma1) + beta1
        x = x + alpha1 * attention(y, y, y, need_weights=False)[0]
        y = (norm(x) * (1 + gamma2) + beta2) @ block.mlp0.weight.T + block.mlp0.bias
        y = 0.5 * y * (1 + (math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)).tanh())
        x = x + alpha2 * (y @ block.mlp1.weight.T + block.mlp1.bias)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4)


def test_every_block_starts_as_the_identity_and_the_denoiser_as_the_skip() -> None:
    sd = 0.5
    network = tiny()
    tokens, emb = randn(2, 16, 32), randn(2, 32, seed=3)
    sigma = torch.tensor([0.002, 0.5, 3.0, 80.0])
    x = randn(4, 3, 16, 16)
    with torch.no_grad():
        for block in network.blocks:
            assert torch.equal(block(tokens, emb), tokens)
        assert not network(x, torch.zeros(4), torch.arange(4)).any()
        D = Denoiser(network, Uncertainty(), sigma_data=sd)(x, sigma, torch.arange(4))
    s = sigma[:, None, None, None]
    torch.testing.assert_close(D, sd**2 / (s**2 + sd**2) * x)


def test_dropout_acts_in_training_and_in_the_mlp_alone() -> None:
    network = awake(tiny(dropout=0.5))
    x, c_noise = randn(2, 3, 16, 16), torch.zeros(2)
    with torch.no_grad():
        assert not torch.equal(network(x, c_noise), network(x, c_noise))
        network.eval()
        assert torch.equal(network(x, c_noise), network(x, c_noise))
        plain = awake(tiny())
        assert torch.equal(network(x, c_noise), plain(x, c_noise))
        network.train()
        for block in network.blocks:  # the gate of the MLP is the last of the six
            block.modulation.weight[-32:] = 0
            block.modulation.bias[-32:] = 0
        assert torch.equal(network(x, c_noise), network(x, c_noise))


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "leaky_relu", "elu"])
def test_activations_and_their_unit_magnitude(name: str) -> None:
    z = torch.linspace(-10, 10, 200_001, dtype=torch.float64)
    density = (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)
    y = mlp_activation(name, preserve=True)(z)
    assert torch.trapezoid(y.square() * density, z).item() == pytest.approx(1, abs=2e-3)
    plain = mlp_activation(name, preserve=False)(z)
    assert (plain / y)[0].item() == pytest.approx((plain / y)[-1].item()) or not plain[0]
    with torch.no_grad():
        x = randn(1, 3, 16, 16)
        same = torch.equal(
            awake(tiny(activation=name))(x, torch.zeros(1)), awake(tiny())(x, torch.zeros(1))
        )
    assert same == (name == "gelu")


def test_bf16_follows_fp32_and_keeps_the_weights() -> None:
    network = awake(tiny(channels=64, channels_per_head=32))
    x, c_noise, labels = randn(4, 3, 16, 16), torch.linspace(-1.5, 1, 4), torch.arange(4)
    with torch.no_grad():
        exact, rough = (network(x.to(d), c_noise, labels) for d in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).square().mean().sqrt() < 0.03 * exact.square().mean().sqrt()
    rough = network(x.bfloat16(), c_noise, labels)
    rough.float().square().sum().backward()
    assert all(w.grad is not None and w.grad.dtype == torch.float32 for w in network.parameters())


# --- noise level and labels ---


def test_noise_features_separate_neighbouring_levels() -> None:
    ln_sigma = torch.arange(-8, 8, 0.01)  # levels that differ by 1 %
    features = noise_features(ln_sigma / 4).double()
    near = (features[1:] - features[:-1]).square().sum(dim=1)
    freqs = 10_000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    wanted = (2 - 2 * (freqs * 1000 / 16 * 0.01).cos()).sum()  # 1000 steps over 16 units of ln
    assert near.tolist() == pytest.approx([wanted.item()] * len(near), rel=0.02)
    assert wanted > 0.02 * 128  # their size is sqrt(128)
    assert features.square().sum(dim=1).tolist() == pytest.approx([128.0] * 1600)
    apart = torch.cdist(features, features) + 1e9 * torch.eye(len(features))
    assert (apart.argmin(dim=1) - torch.arange(1600)).abs().max() == 1  # no two levels are confused


def test_the_output_depends_on_the_noise_level() -> None:
    network = awake(tiny())
    x = randn(1, 3, 16, 16).expand(2, -1, -1, -1)
    with torch.no_grad():
        y = network(x, torch.tensor([0.2, 0.25]))
    assert (y[0] - y[1]).square().mean().sqrt() > 0.01 * y.square().mean().sqrt()


def test_the_three_forms_of_labels_agree() -> None:
    network = awake(tiny())
    torch.nn.init.normal_(network.label_table.weight)
    x, c_noise = randn(3, 3, 16, 16), torch.zeros(3)
    index = torch.tensor([2, 0, 3])
    rows = F.one_hot(index, 4).float()
    with torch.no_grad():
        by_index, by_row = network(x, c_noise, index), network(x, c_noise, rows)
        assert torch.equal(by_index, by_row)
        assert torch.equal(by_index, network(x, c_noise, rows.bfloat16()))
        none = network(x, c_noise)
        assert torch.equal(none, network(x, c_noise, torch.zeros(3, 4)))
        rows[1] = 0  # as label dropout leaves it
        mixed = network(x, c_noise, rows)
    assert torch.equal(mixed[[0, 2]], by_index[[0, 2]])
    assert torch.equal(mixed[1], none[1])
    assert (none - by_index).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_each_row_of_the_label_table_learns_from_its_own_images() -> None:
    network = awake(tiny())
    x, rows = randn(2, 3, 16, 16), torch.tensor([[0.0, 1, 0, 0], [0, 0, 0, 0]])
    network(x, torch.zeros(2), rows).square().sum().backward()
    learned = network.label_table.weight.grad.abs().amax(dim=1) > 0
    assert learned.tolist() == [False, True, False, False, True]


def test_an_unconditional_network_takes_no_labels() -> None:
    network = awake(tiny(num_classes=0))
    x = randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(x, torch.zeros(2)), network(x, torch.zeros(2), None))


def test_training_fits_a_batch_and_learns_what_labels_mean() -> None:
    means = torch.tensor([-0.6, -0.2, 0.2, 0.6])
    clean = (means[:, None, None, None] + 0.1 * randn(4, 3, 8, 8)).repeat(5, 1, 1, 1)
    labels = torch.eye(4).repeat(5, 1)
    labels[16:] = 0  # one image in five has no label
    denoiser = Denoiser(tiny(resolution=8), Uncertainty(), sigma_data=0.5)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-3)
    losses = []
    for i in range(240):
        generator = torch.Generator().manual_seed(i)
        sigma = 30 ** torch.rand(20, generator=generator)
        noise = torch.randn(20, 3, 8, 8, generator=generator)
        D = denoiser(clean + sigma[:, None, None, None] * noise, sigma, labels)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        loss = (weight * (D - clean).square().mean(dim=(1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    noise = 20 * randn(1, 3, 8, 8, seed=3).expand(4, -1, -1, -1)  # where only the label can tell
    with torch.no_grad():
        D = denoiser(noise, torch.tensor(20.0), torch.arange(4)).mean(dim=(1, 2, 3))
        none = denoiser(noise, torch.tensor(20.0)).mean(dim=(1, 2, 3))
    assert D.argsort().tolist() == [0, 1, 2, 3]
    assert D.tolist() == pytest.approx(means.tolist(), abs=0.3)
    assert none.tolist() == pytest.approx([0.0] * 4, abs=0.2)
