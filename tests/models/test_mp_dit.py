"""What the magnitude-preserving transformer promises: sizes of activations, weights, gradients."""

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser
from poise.errors import UsageError
from poise.models.dit import patchify, unpatchify
from poise.models.edm2 import Uncertainty
from poise.models.layers import MPConv, mp_sum
from poise.models.mp_dit import Block, MPDiT, Scale, balance_at, rotate, rotations


def tiny(**changes: object) -> MPDiT:
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
    return MPDiT(**(settings | changes))  # type: ignore[arg-type]


def awake(network: MPDiT, gain: float = 0.5) -> MPDiT:
    """The same network with gains where it starts from zero, as after some training."""
    for name, weight in network.named_parameters():
        if name.endswith("gain"):
            nn.init.constant_(weight, 1.0 if name == "out_gain" else gain)
    return network


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def magnitudes(network: MPDiT, x: Tensor, c_noise: Tensor, labels: Tensor | None) -> list[float]:
    """The root mean square of the tokens: at the input, and after each block."""
    found: list[float] = []

    def note(_module: object, _inputs: object, output: Tensor) -> None:
        found.append(output.float().square().mean().sqrt().item())

    watched = [network.patch_in, *network.blocks]
    handles = [module.register_forward_hook(note) for module in watched]
    with torch.no_grad():
        network(x, c_noise, labels)
    for handle in handles:
        handle.remove()
    return found


# --- activations ---


@pytest.mark.parametrize("gain", [0.0, 1.0, 30.0])
@pytest.mark.parametrize(("depth", "channels"), [(4, 64), (4, 384), (28, 64), (28, 128)])
def test_tokens_keep_unit_magnitude(depth: int, channels: int, gain: float) -> None:
    network = awake(tiny(depth=depth, channels=channels, channels_per_head=32), gain)
    x, c_noise, labels = randn(4, 3, 16, 16), randn(4, seed=2) / 4, torch.arange(4)
    found = magnitudes(network, x, c_noise, labels)
    assert len(found) == depth + 1
    assert all(0.7 < size < 1.3 for size in found), found


@pytest.mark.parametrize(
    "labels", [None, torch.arange(4), torch.zeros(4, 4), 100 * torch.ones(4, 4), randn(4, 4) * 1000]
)
@pytest.mark.parametrize("c_noise", [-2.0, 0.0, 3.0, 1000.0])
def test_no_label_and_no_noise_level_is_loud(labels: Tensor | None, c_noise: float) -> None:
    network = awake(tiny(depth=4, channels=128, channels_per_head=32), gain=5.0)
    found = magnitudes(network, randn(4, 3, 16, 16), torch.full((4,), c_noise), labels)
    assert all(0.7 < size < 1.3 for size in found), found
    with torch.no_grad():
        emb = network._embedding(torch.full((4,), c_noise), labels)
    assert emb.square().mean(dim=1).sqrt().tolist() == pytest.approx([1.0] * 4, abs=0.2)


def test_depth_does_not_amplify_loud_images() -> None:
    network = tiny(depth=4, channels=128, channels_per_head=32)
    found = magnitudes(network, 50 * randn(4, 3, 16, 16), torch.zeros(4), None)
    assert found[0] > 30
    assert all(0.7 < size < 1.3 for size in found[1:]), found


def test_activations_stay_within_the_clamp() -> None:
    network = tiny(clip_act=0.5)
    biggest: list[float] = []
    for module in network.blocks:
        module.register_forward_hook(lambda _m, _i, y: biggest.append(y.abs().max().item()))
    with torch.no_grad():
        network(10 * torch.ones(1, 3, 16, 16), torch.zeros(1), torch.tensor([0]))
    assert biggest == [0.5, 0.5]


@pytest.mark.parametrize("gain", [0.0, 0.3, -2.0, 1e4])
def test_the_scale_has_unit_magnitude_for_any_gain(gain: float) -> None:
    torch.manual_seed(0)
    scale = Scale(256, 512)
    nn.init.constant_(scale.gain, gain)
    with torch.no_grad():
        y = scale(randn(64, 256))
    assert y.shape == (64, 1, 512)
    assert y.square().mean().sqrt().item() == pytest.approx(1, abs=0.02)
    assert gain or torch.equal(y, torch.ones(64, 1, 512))


def test_positions_are_told_at_unit_magnitude_and_turns_keep_it() -> None:
    network = tiny(resolution=32, patch=4)
    assert network.positions.square().mean(dim=1).tolist() == pytest.approx([1.0] * 64, abs=1e-3)
    x = randn(2, 64, 2, 3, 16)
    torch.testing.assert_close(rotate(x, network.turns).norm(dim=4), x.norm(dim=4))


def test_products_of_turned_vectors_depend_on_the_offset_alone() -> None:
    side, channels = 4, 8
    q, k = randn(channels).double(), randn(channels, seed=2).double()
    turns = rotations(side, channels).double()
    turned = [rotate(vector.expand(1, side**2, 1, 1, -1), turns)[0, :, 0, 0] for vector in (q, k)]
    found = turned[0] @ turned[1].T
    # as complex numbers: Re sum_j conj(q_j) k_j exp(i w_j offset_j)
    product = torch.complex(*q.chunk(2)).conj() * torch.complex(*k.chunk(2))
    freqs = torch.tensor([1.0, 0.1]).double()  # 1 and 1/sqrt(100)
    for i in range(side**2):
        for j in range(side**2):
            rows, columns = j // side - i // side, j % side - i % side
            angles = torch.cat([freqs * rows, freqs * columns])
            wanted = (product * torch.polar(torch.ones(4).double(), angles)).real.sum()
            assert found[i, j].item() == pytest.approx(wanted.item(), abs=1e-6)


def test_a_block_equals_its_formulas_written_out() -> None:
    channels, heads, tokens = 16, 2, 9
    torch.manual_seed(0)
    block = Block(channels, heads, 4 * channels, res_balance=0.2, attn_balance=0.4)
    for scale, gain in ((block.attn_scale, 0.7), (block.mlp_scale, -1.5)):
        nn.init.constant_(scale.gain, gain)
    x, emb = 3 * randn(2, tokens, channels), randn(2, channels, seed=2)
    turns = rotations(3, channels // heads)

    def unit(v: Tensor) -> Tensor:  # unit root mean square of each row
        return v / v.square().mean(dim=-1, keepdim=True).sqrt()

    def linear(v: Tensor, layer: MPConv) -> Tensor:
        return v @ F.normalize(layer.weight, dim=1).T

    def scaled(v: Tensor, scale: Scale) -> Tensor:
        factor = 1 + scale.gain * linear(emb, scale.linear)
        return v * factor[:, None] / (1 + scale.gain**2).sqrt()

    with torch.no_grad():
        found = block(x, emb, turns)
        x = unit(x)
        qkv = linear(scaled(x, block.attn_scale), block.qkv).unflatten(2, (3, heads, -1))
        q, k, v = (unit(part) for part in qkv.unbind(2))
        q, k = rotate(q[:, :, None], turns)[:, :, 0], rotate(k[:, :, None], turns)[:, :, 0]
        mixed = torch.empty(2, tokens, heads, channels // heads)
        for b in range(2):
            for h in range(heads):
                logits = q[b, :, h] @ k[b, :, h].T / math.sqrt(channels // heads)
                mixed[b, :, h] = logits.softmax(dim=1) @ v[b, :, h]
        x = (0.6 * x + 0.4 * linear(mixed.flatten(2), block.proj)) / math.hypot(0.6, 0.4)
        y = F.silu(linear(scaled(x, block.mlp_scale), block.mlp0)) / 0.596
        x = (0.8 * x + 0.2 * linear(y, block.mlp1)) / math.hypot(0.8, 0.2)
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("balance", [0.0, 0.1, 0.3, 0.7])
def test_balances_leave_the_same_share_of_the_input_at_any_depth(balance: float) -> None:
    x, y = torch.eye(2)  # two signals that have nothing in common

    def kept(depth: int) -> float:
        share = 1.0
        for _ in range(2 * depth):
            share *= float(mp_sum(x, y, balance_at(depth, balance))[0])
        return share

    assert [balance_at(depth, balance) for depth in (1, 3, 6)] == [balance] * 3
    assert [kept(depth) for depth in (7, 12, 28)] == pytest.approx([kept(6)] * 3, rel=1e-4)


@pytest.mark.parametrize("depth", [6, 28])
def test_a_deep_network_still_sees_its_input(depth: int) -> None:
    network = tiny(depth=depth, channels=128, channels_per_head=32)
    ends: list[Tensor] = []
    for module in (network.blocks[0], network.blocks[-1]):
        module.register_forward_hook(lambda _m, i, y: ends.extend([i[0], y]))
    with torch.no_grad():
        network(randn(4, 3, 16, 16), torch.zeros(4), torch.arange(4))
    likeness = F.cosine_similarity(ends[0], ends[-1], dim=2).mean().item()
    assert likeness > 0.3  # 0.36 by orthogonal branches


# --- weights and gradients ---


def test_gradients_are_orthogonal_to_every_weight() -> None:
    network = awake(tiny())
    y = network(randn(4, 3, 16, 16), torch.linspace(-1, 1, 4), torch.arange(4))
    (y * randn(*y.shape, seed=3)).sum().backward()
    layers = {name: m for name, m in network.named_modules() if isinstance(m, MPConv)}
    assert len(layers) == 4 + 2 * 6
    for name, layer in layers.items():
        w, g = layer.weight, layer.weight.grad
        assert g.norm() > 0, name
        overlap = (w * g).sum(dim=1).abs().max() / (w.norm(dim=1) * g.norm(dim=1).max()).max()
        assert overlap < 1e-3, name


def test_drifted_weights_change_nothing_and_are_brought_back() -> None:
    network = awake(tiny(depth=4))
    denoiser = Denoiser(network, Uncertainty(), sigma_data=0.5)
    denoiser.normalize_weights_()
    before = {name: w.detach().clone() for name, w in network.named_parameters()}
    x, sigma, labels = randn(4, 3, 16, 16), torch.logspace(-2, 1, 4), torch.arange(4)
    with torch.no_grad():
        D = denoiser(x, sigma, labels)
        for w in network.parameters():
            if w.ndim == 2:
                w.mul_(0.3 + 5 * torch.rand(len(w), 1, generator=torch.Generator().manual_seed(1)))
        torch.testing.assert_close(denoiser(x, sigma, labels), D, rtol=1e-3, atol=1e-3)
        denoiser.normalize_weights_()
    for name, w in network.named_parameters():
        torch.testing.assert_close(w, before[name], rtol=1e-3, atol=1e-3)
        if w.ndim == 2:
            sizes = w.square().mean(dim=1).sqrt()
            assert sizes.tolist() == pytest.approx([1.0] * len(w), abs=1e-3)


def test_every_matrix_is_normalised_and_the_rest_are_gains() -> None:
    network = tiny()
    forced = {id(m.weight) for m in network.modules() if hasattr(m, "force_unit_weight")}
    rest = {name for name, w in network.named_parameters() if id(w) not in forced}
    gains = {f"blocks.{i}.{branch}_scale.gain" for i in range(2) for branch in ("attn", "mlp")}
    assert rest == gains | {"out_gain"}


@pytest.mark.parametrize("num_classes", [0, 7])
def test_parameter_count(num_classes: int) -> None:
    d, depth, pixels = 32, 3, 3 * 4**2
    network = tiny(depth=depth, num_classes=num_classes)
    block = 3 * d**2 + d**2 + 4 * d**2 + 4 * d**2 + 2 * (d**2 + 1)
    wanted = (pixels + 1) * d + d**2 + num_classes * d + depth * block + d * pixels + 1
    assert sum(w.numel() for w in network.parameters()) == wanted


def test_an_untrained_network_is_silent_and_the_denoiser_is_the_skip() -> None:
    sd, network = 0.5, tiny()
    x, sigma = randn(4, 3, 16, 16), torch.tensor([0.002, 0.5, 3.0, 80.0])
    with torch.no_grad():
        assert not network(x, torch.zeros(4), torch.arange(4)).any()
        D = Denoiser(network, Uncertainty(), sigma_data=sd)(x, sigma, torch.arange(4))
    s = sigma[:, None, None, None]
    torch.testing.assert_close(D, sd**2 / (s**2 + sd**2) * x)


# --- as a network ---


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


def test_the_order_of_tokens_counts_in_both_ways() -> None:
    network = awake(tiny(resolution=8, patch=2))
    order = torch.randperm(16, generator=torch.Generator().manual_seed(2))
    x = randn(2, 3, 8, 8)
    moved = unpatchify(patchify(x, 2)[:, order], 2)

    def moved_alike(network: MPDiT) -> bool:
        with torch.no_grad():
            y, z = network(x, torch.zeros(2)), network(moved, torch.zeros(2))
        return torch.allclose(patchify(y, 2)[:, order], patchify(z, 2), atol=1e-4)

    turns, positions = network.turns.clone(), network.positions.clone()
    assert not moved_alike(network)
    network.positions.zero_()
    assert not moved_alike(network)  # the turns tell
    network.turns.copy_(rotations(1, 16).expand_as(turns))
    assert moved_alike(network)
    network.positions.copy_(positions)
    assert not moved_alike(network)  # the positions tell


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"resolution": 18}, "18 pixels cannot be cut into patches of 4"),
        ({"channels": 40}, "40 channels do not make whole heads of 16"),
        ({"channels": 24, "channels_per_head": 2}, "Heads of 2 channels cannot be turned"),
        ({"channels": 36, "channels_per_head": 18}, "Heads of 18 channels cannot be turned"),
    ],
)
def test_impossible_shapes_are_refused_with_a_remedy_that_works(
    changes: dict[str, object], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason) as caught:
        tiny(**changes)
    assert caught.value.expected
    for setting, value in re.findall(r"set \w+\.(\w+)=(\d+)", caught.value.remedy):
        tiny(**(changes | {setting: int(value)}))


def test_dropout_acts_in_training_alone() -> None:
    network, plain = awake(tiny(dropout=0.5)), awake(tiny())
    x, c_noise = randn(2, 3, 16, 16), torch.zeros(2)
    with torch.no_grad():
        assert not torch.equal(network(x, c_noise), network(x, c_noise))
        assert torch.equal(network.eval()(x, c_noise), plain(x, c_noise))


def test_the_three_forms_of_labels_agree() -> None:
    network = awake(tiny())
    x, c_noise = randn(3, 3, 16, 16), torch.zeros(3)
    index = torch.tensor([2, 0, 3])
    rows = F.one_hot(index, 4).float()
    with torch.no_grad():
        by_index = network(x, c_noise, index)
        torch.testing.assert_close(by_index, network(x, c_noise, rows))
        none = network(x, c_noise)
        torch.testing.assert_close(none, network(x, c_noise, torch.zeros(3, 4)), atol=1e-3, rtol=0)
        rows[1] = 0  # as label dropout leaves it
        mixed = network(x, c_noise, rows)
    torch.testing.assert_close(mixed[[0, 2]], by_index[[0, 2]])
    torch.testing.assert_close(mixed[1], none[1], atol=1e-3, rtol=0)
    assert (none - by_index).abs().amax(dim=(1, 2, 3)).min() > 0.01


def test_bf16_follows_fp32() -> None:
    network = awake(tiny(channels=64, channels_per_head=32))
    x, c_noise, labels = randn(4, 3, 16, 16), torch.linspace(-1.5, 1, 4), torch.arange(4)
    with torch.no_grad():
        exact, rough = (network(x.to(d), c_noise, labels) for d in (torch.float32, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).square().mean().sqrt() < 0.05 * exact.square().mean().sqrt()


def test_training_fits_a_batch_and_learns_what_labels_mean() -> None:
    means = torch.tensor([-0.6, -0.2, 0.2, 0.6])
    clean = (means[:, None, None, None] + 0.1 * randn(4, 3, 8, 8)).repeat(5, 1, 1, 1)
    labels = torch.eye(4).repeat(5, 1)
    labels[16:] = 0  # one image in five has no label
    denoiser = Denoiser(tiny(resolution=8), Uncertainty(), sigma_data=0.5)
    denoiser.normalize_weights_()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
    losses = []
    for i in range(80):
        generator = torch.Generator().manual_seed(i)
        sigma = 30 ** torch.rand(20, generator=generator)
        noise = torch.randn(20, 3, 8, 8, generator=generator)
        D = denoiser(clean + sigma[:, None, None, None] * noise, sigma, labels)
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        loss = (weight * (D - clean).square().mean(dim=(1, 2, 3))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        denoiser.normalize_weights_()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    noise = 20 * randn(1, 3, 8, 8, seed=3).expand(4, -1, -1, -1)  # where only the label can tell
    with torch.no_grad():
        D = denoiser(noise, torch.tensor(20.0), torch.arange(4)).mean(dim=(1, 2, 3))
        none = denoiser(noise, torch.tensor(20.0)).mean(dim=(1, 2, 3))
    assert D.tolist() == pytest.approx(means.tolist(), abs=0.2)
    assert none.tolist() == pytest.approx([0.0] * 4, abs=0.2)
    found = magnitudes(denoiser.network, randn(4, 3, 8, 8), torch.zeros(4), None)  # type: ignore[arg-type]
    assert all(0.5 < size < 2 for size in found), found  # what is learned adds up a little
