"""Optimisers against torch's, stepped by hand; what is left out leaves every bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from tiny import same_bits
from torch import Tensor, nn

from poise.config import resolve
from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.errors import ArtifactError, UsageError
from poise.models.edm2 import Uncertainty, UNet
from poise.settings import TrainingConfig
from poise.training.loop import TrainState, update
from poise.training.muon import orthogonal
from poise.training.optim import (
    ClipState,
    apply_gradients,
    build_optimizer,
    clip_gradients_,
    optimizer_tensors,
    restore_optimizer,
    second_moments,
)

KINDS: list[dict[str, Any]] = [
    {"optimizer": "adam"},
    {"optimizer": "adamw", "weight_decay": 0.1},
    {"optimizer": "sgd"},
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "rmsprop"},
    {"optimizer": "rmsprop", "momentum": 0.5},
    {"optimizer": "muon"},
]
EXTRAS: list[dict[str, Any]] = [
    {},
    {"l1": 0.01, "l2": 0.1, "weight_decay": 0.2},
    {"update_clip": True},
]
YES, NO = torch.tensor(True), torch.tensor(False)


class Network(nn.Module):
    """A kernel and a matrix inside a block, one before it, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Module()
        self.network.first = nn.Linear(5, 6)
        self.network.dec = nn.ModuleDict({"8x8": nn.Module()})
        block = self.network.dec["8x8"]
        block.conv = nn.Conv2d(4, 6, 3, bias=False)
        block.conv.weight.data = block.conv.weight.data.contiguous(
            memory_format=torch.channels_last
        )
        block.matrix = nn.Linear(8, 3, bias=False)


def settings(**changes: Any) -> TrainingConfig:
    return TrainingConfig(**({"lr": 0.05} | changes))


def give_gradients(network: nn.Module, seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for w in network.parameters():
        w.grad = torch.empty_like(w).copy_(torch.randn(w.shape, generator=generator) * scale)


def weights_of(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters())


def everything(optimizer: torch.optim.Optimizer, network: nn.Module) -> dict[str, Tensor]:
    found = dict(weights_of(network)) | optimizer_tensors(optimizer, weights_of(network))
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def torch_twin(kind: dict[str, Any], network: nn.Module) -> torch.optim.Optimizer:
    weights = list(network.parameters())
    name, momentum = kind["optimizer"], kind.get("momentum")
    if name == "sgd":
        return torch.optim.SGD(weights, lr=1.0, momentum=0.9 if momentum is None else momentum)
    if name == "rmsprop":
        return torch.optim.RMSprop(weights, lr=1.0, alpha=0.99, momentum=momentum or 0.0)
    if name == "adamw":
        matrices = [w for w in weights if w.ndim >= 2]
        rest = [w for w in weights if w.ndim < 2]
        groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.99), weight_decay=0.1)
    return torch.optim.Adam(weights, lr=1.0, betas=(0.9, 0.99))


@pytest.mark.parametrize("kind", [k for k in KINDS if k["optimizer"] != "muon"])
def test_each_optimiser_is_torchs(kind: dict[str, Any]) -> None:
    ours, theirs = Network(), Network()
    optimizer, twin = build_optimizer(ours, settings(**kind)), torch_twin(kind, theirs)
    for step in range(5):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        apply_gradients(optimizer, 0.1 / (step + 1), YES)
        for group in twin.param_groups:
            group["lr"] = 0.1 / (step + 1)
        twin.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)


def test_the_default_is_bitwise_the_fused_adam_in_one_group() -> None:
    ours, theirs = Network(), Network()
    optimizer = build_optimizer(ours, TrainingConfig())
    twin = torch.optim.Adam(theirs.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8, fused=True)
    assert len(optimizer.param_groups) == 1
    for step in range(3):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        apply_gradients(optimizer, 0.01, YES)
        twin.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert same_bits(one.detach(), other.detach())


@pytest.mark.parametrize(
    ("kind", "extra"),
    [(k, e) for k in KINDS for e in EXTRAS if k["optimizer"] != "sgd" or "update_clip" not in e],
)
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_is_left_out_leaves_every_bit(
    kind: dict[str, Any], extra: dict[str, Any], before: int
) -> None:
    network = Network()
    with torch.no_grad():  # a negative zero is lost by adding zero
        network.network.first.weight[0] = -0.0
    optimizer = build_optimizer(network, settings(**(kind | extra)))
    for step in range(before):
        give_gradients(network, step)
        apply_gradients(optimizer, 0.05, YES)
    old = everything(optimizer, network)
    for poison in (torch.nan, torch.inf, 1e30):
        give_gradients(network, 7)
        for w in network.parameters():
            assert w.grad is not None
            w.grad[(0,) * w.ndim] = poison
        apply_gradients(optimizer, 0.05, NO)
    new = everything(optimizer, network)
    for name in weights_of(network):
        assert same_bits(old[name], new[name]), name
    for name in new.keys() - weights_of(network):
        # Adam has no state before its first step, and zeros after one that was left out
        assert same_bits(old.get(name, torch.zeros_like(new[name])), new[name]), name
    give_gradients(network, 8)
    apply_gradients(optimizer, 0.05, YES)
    after = everything(optimizer, network)
    assert all(not torch.equal(after[name], new[name]) for name in weights_of(network))
    assert all(tensor.isfinite().all() for tensor in after.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_optimiser_goes_on_bitwise(kind: dict[str, Any]) -> None:
    one, other = Network(), Network()
    first, second = build_optimizer(one, settings(**kind)), build_optimizer(other, settings(**kind))
    for step in range(3):
        give_gradients(one, step)
        apply_gradients(first, 0.05, YES)
    other.load_state_dict(one.state_dict())
    saved = {k: v.clone() for k, v in optimizer_tensors(first, weights_of(one)).items()}
    give_gradients(other, 99)  # what was there before is forgotten
    apply_gradients(second, 0.0, YES)
    restore_optimizer(second, weights_of(other), saved)
    for step in range(3, 6):
        for network, optimizer in ((one, first), (other, second)):
            give_gradients(network, step)
            apply_gradients(optimizer, 0.05, YES)
    left, right = everything(first, one), everything(second, other)
    assert left.keys() == right.keys()
    assert all(same_bits(left[name], right[name]) for name in left)


def test_an_incomplete_or_foreign_state_is_refused_by_name() -> None:
    network = Network()
    optimizer = build_optimizer(network, settings())
    weights = weights_of(network)
    assert optimizer_tensors(optimizer, weights) == {}
    give_gradients(network, 0)
    network.network.first.bias.grad = None  # never had a gradient: written all the same
    apply_gradients(optimizer, 0.05, YES)
    saved = optimizer_tensors(optimizer, weights)
    assert len(saved) == 3 * len(weights)
    lacking = {k: v for k, v in saved.items() if k != "exp_avg/network.first.bias"}
    with pytest.raises(ArtifactError, match=r"lacks 1 tensors \(exp_avg/network\.first\.bias\)"):
        restore_optimizer(optimizer, weights, lacking)
    with pytest.raises(ArtifactError, match=r"momentum_buffer/x"):
        restore_optimizer(optimizer, weights, saved | {"momentum_buffer/x": torch.zeros(1)})
    with pytest.raises(ArtifactError, match=r"shape \[2\]"):
        restore_optimizer(optimizer, weights, saved | {"step/network.first.bias": torch.zeros(2)})
    sgd = build_optimizer(network, settings(optimizer="sgd"))
    with pytest.raises(ArtifactError, match=r"training\.optimizer|another optimiser"):
        restore_optimizer(sgd, weights, saved)
    restore_optimizer(optimizer, weights, {})  # back before the first update
    assert optimizer_tensors(optimizer, weights) == {}


def test_second_moments_by_name_where_there_are_some() -> None:
    network = Network()
    weights = weights_of(network)
    adam = build_optimizer(network, settings())
    assert second_moments(adam, weights) is None
    give_gradients(network, 0)
    squares = [w.grad.square() * 0.01 for w in weights.values() if w.grad is not None]
    apply_gradients(adam, 0.01, YES)
    found = second_moments(adam, weights)
    assert found is not None
    for moment, square in zip(found, squares, strict=True):
        torch.testing.assert_close(moment, square, rtol=1e-4, atol=1e-8)
    assert second_moments(build_optimizer(network, settings(optimizer="sgd")), weights) is None
    muon = build_optimizer(network, settings(optimizer="muon"))
    give_gradients(network, 0)
    apply_gradients(muon, 0.01, YES)
    mixed = second_moments(muon, weights)
    assert mixed is not None
    none = {n for n, m in zip(weights, mixed, strict=True) if m.isnan().any()}
    assert none == {"network.dec.8x8.conv.weight", "network.dec.8x8.matrix.weight"}


def test_update_clipping_is_the_formula_of_stable_adamw() -> None:
    """Wortsman et al. 2023, Algorithm 2, in float64 by hand."""
    network = Network()
    s = settings(optimizer="adamw", weight_decay=0.1, update_clip=True, betas=(0.9, 0.95))
    optimizer = build_optimizer(network, s)
    names = list(weights_of(network))
    w = {n: p.detach().double() for n, p in weights_of(network).items()}
    m = {n: torch.zeros_like(w[n]) for n in names}
    v = {n: torch.zeros_like(w[n]) for n in names}
    factors = []
    for step in range(1, 7):
        give_gradients(network, step, 30.0 if step == 4 else 1.0)
        grads = {n: p.grad.double() for n, p in weights_of(network).items() if p.grad is not None}
        apply_gradients(optimizer, 0.05, YES)
        for n in names:
            m[n] = 0.9 * m[n] + 0.1 * grads[n]
            v[n] = 0.95 * v[n] + 0.05 * grads[n] ** 2
            m_hat, v_hat = m[n] / (1 - 0.9**step), v[n] / (1 - 0.95**step)
            rms = (grads[n] ** 2 / v_hat.clamp(min=1e-16)).mean().sqrt().item()
            rate = 0.05 / max(1.0, rms)
            decay = 0.1 if w[n].ndim >= 2 else 0.0
            w[n] = w[n] - rate * decay * w[n] - rate * m_hat / (v_hat.sqrt() + 1e-8)
            factors.append((step, 1 / max(1.0, rms)))
    assert all(f < 0.75 for step, f in factors if step == 4)  # the spike was seen
    assert any(f == 1 for _, f in factors)  # and ordinary steps were left alone
    for n, p in weights_of(network).items():
        torch.testing.assert_close(p.detach().double(), w[n], rtol=1e-5, atol=1e-6)


def test_penalties_are_added_to_the_gradient_of_matrices_alone() -> None:
    network = Network()
    s = settings(optimizer="sgd", momentum=0.0, l1=0.3, l2=0.7, weight_decay=0.5)
    optimizer = build_optimizer(network, s)
    before = {n: w.detach().clone() for n, w in weights_of(network).items()}
    for w in network.parameters():
        w.grad = torch.ones_like(w)
    apply_gradients(optimizer, 0.1, YES)
    for name, w in weights_of(network).items():
        old = before[name]
        wanted = old - 0.1
        if old.ndim >= 2:
            wanted = old * (1 - 0.1 * 0.5) - 0.1 * (1 + 0.3 * old.sign() + 0.7 * old)
        torch.testing.assert_close(w.detach(), wanted)


def test_weights_of_forced_size_are_never_penalised() -> None:
    denoiser = tiny_denoiser("D")
    optimizer = build_optimizer(denoiser, settings(weight_decay=0.1))
    free = {id(w) for g in optimizer.param_groups if g["decay"] for w in g["params"]}
    names = {n for n, w in denoiser.named_parameters() if id(w) in free}
    assert "network.out_conv.weight" in names and "uncertainty.linear.weight" not in names
    assert not any(name.endswith("gain") for name in names)


@pytest.mark.parametrize("shape", [(7, 7), (5, 12), (12, 5), (1, 9)])
def test_orthogonal_keeps_directions_and_evens_out_sizes(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    turned = u.mT @ orthogonal(matrix) @ vh.mT
    sizes = turned.diagonal()
    assert sizes.min() > 0.5 and sizes.max() < 1.25
    assert (turned - sizes.diag()).abs().max() < 1e-4
    assert torch.equal(orthogonal(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_muon_is_torchs_for_inner_matrices_and_adam_for_the_rest() -> None:
    ours, theirs = Network(), Network()
    optimizer = build_optimizer(ours, settings(optimizer="muon"))
    inner = {n: w for n, w in weights_of(theirs).items() if ".dec." in n}
    copies = {n: nn.Parameter(w.detach().reshape(len(w), -1).clone()) for n, w in inner.items()}
    muon = torch.optim.Muon(
        list(copies.values()), lr=0.05, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.Adam(
        [w for n, w in weights_of(theirs).items() if n not in inner], lr=0.05, betas=(0.9, 0.99)
    )
    for step in range(4):
        give_gradients(ours, step)
        give_gradients(theirs, step)
        for name, w in inner.items():
            assert w.grad is not None
            copies[name].grad = w.grad.reshape(len(w), -1).clone()
        apply_gradients(optimizer, 0.05, YES)
        muon.step()
        adam.step()
    for name, w in weights_of(ours).items():
        if name in copies:  # torch's is in bfloat16
            moved = (w - Network().get_parameter(name)).norm()
            assert (w.reshape(len(w), -1) - copies[name]).norm() < 0.03 * moved
        else:
            torch.testing.assert_close(w, theirs.get_parameter(name), rtol=2e-5, atol=2e-6)


def norms_of(network: nn.Module) -> Tensor:
    grads = [w.grad for w in network.parameters()]
    return torch.stack([torch.zeros(()) if g is None else g.norm() for g in grads])


def clipped(network: nn.Module, state: ClipState | None = None, **changes: Any) -> list[Tensor]:
    state = state or ClipState.fresh(torch.device("cpu"))
    clip_gradients_(network.parameters(), settings(**changes), state, norms_of(network))
    return [w.grad for w in network.parameters() if w.grad is not None]


@pytest.mark.parametrize("at", [0.3, 2.0, 1e6])
@pytest.mark.parametrize(
    ("kind", "oracle"),
    [("value", nn.utils.clip_grad_value_), ("norm", nn.utils.clip_grad_norm_)],
)
def test_clipping_by_value_and_norm_is_torchs(
    kind: str, oracle: Callable[..., Any], at: float
) -> None:
    ours, theirs = Network(), Network()
    give_gradients(ours, 0, 3.0)
    give_gradients(theirs, 0, 3.0)
    found = clipped(ours, grad_clip=kind, grad_clip_at=at)
    oracle(theirs.parameters(), at)
    for one, w in zip(found, theirs.parameters(), strict=True):
        torch.testing.assert_close(one, w.grad, rtol=1e-6, atol=0)


def test_adaptive_clipping_bounds_each_tensor_by_its_weights() -> None:
    network = Network()
    give_gradients(network, 0)
    with torch.no_grad():
        network.network.first.bias.zero_()  # the bound is that of a norm of 1e-3
        network.network.dec["8x8"].matrix.weight.mul_(1e4)  # and this one is far below its bound
    network.network.first.weight.grad = None
    raw = {n: w.grad.clone() for n, w in weights_of(network).items() if w.grad is not None}
    clipped(network, grad_clip="adaptive", grad_clip_at=0.1)
    for name, grad in raw.items():
        w = network.get_parameter(name)
        limit = 0.1 * max(w.norm().item(), 1e-3)
        wanted = grad * min(1.0, limit / grad.norm().item())
        torch.testing.assert_close(w.grad, wanted, rtol=1e-5, atol=1e-9)
    assert torch.equal(
        network.network.dec["8x8"].matrix.weight.grad, raw["network.dec.8x8.matrix.weight"]
    )


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    norms=st.lists(st.floats(1e-3, 1e3), min_size=0, max_size=300),
    quantile=st.floats(0.01, 0.99),
)
def test_the_quantile_is_that_of_the_last_256_norms(norms: list[float], quantile: float) -> None:
    state = ClipState.fresh(torch.device("cpu"))
    for norm in norms:
        state.take_(torch.tensor(norm))
        state.take_(torch.tensor(torch.nan))  # never enters
        state.take_(torch.tensor(1e9), NO)
    limit = state.limit(quantile)
    if len(norms) < 32:
        assert limit == torch.inf
    else:
        wanted = torch.tensor(norms[-256:]).quantile(quantile)
        torch.testing.assert_close(limit, wanted, rtol=1e-4, atol=1e-6)


def test_quantile_clipping_lowers_an_outlier_and_goes_on_from_a_checkpoint() -> None:
    network, state = Network(), ClipState.fresh(torch.device("cpu"))
    options = {"grad_clip": "quantile", "grad_clip_at": 0.5}
    norms = []
    for step in range(40):
        give_gradients(network, step)
        norms.append(norms_of(network).norm().item())
        clipped(network, state, **options)
    other = ClipState.fresh(torch.device("cpu"))
    other.restore({name: tensor.clone() for name, tensor in state.tensors().items()})
    give_gradients(network, 99, 100.0)
    direction = network.network.first.weight.grad.clone()
    clipped(network, other, **options)
    middle = torch.tensor(norms).quantile(0.5).item()
    assert norms_of(network).norm().item() == pytest.approx(middle, rel=1e-5)
    cosine = torch.cosine_similarity(
        direction.flatten(), network.network.first.weight.grad.flatten(), 0
    )
    assert cosine.item() == pytest.approx(1, abs=1e-5)
    give_gradients(network, 100, 1e-3)  # a small one is left alone
    small = network.network.first.weight.grad.clone()
    clipped(network, other, **options)
    assert torch.equal(network.network.first.weight.grad, small)


def test_a_normalised_gradient_has_norm_one_and_zero_stays_zero() -> None:
    network = Network()
    give_gradients(network, 0, 50.0)
    raw = [w.grad.clone() for w in network.parameters() if w.grad is not None]
    total = norms_of(network).norm()
    found = clipped(network, grad_normalise=True)
    for one, other in zip(found, raw, strict=True):
        torch.testing.assert_close(one, other / total)
    found = clipped(network, grad_normalise=True, grad_clip="value", grad_clip_at=0.01)
    assert max(g.abs().max().item() for g in found) == pytest.approx(0.01)
    give_gradients(network, 0, 0.0)
    assert all(not g.any() for g in clipped(network, grad_normalise=True))


def test_by_default_gradients_are_left_alone() -> None:
    network, state = Network(), ClipState.fresh(torch.device("cpu"))
    give_gradients(network, 0, 1e6)
    raw = [w.grad.clone() for w in network.parameters() if w.grad is not None]
    assert all(same_bits(a, b) for a, b in zip(clipped(network, state), raw, strict=True))
    assert state.count == 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"training.weight_decay": 0.1}, "brings every matrix back to unit size"),
        ({"training.l2": 0.1, "model.ladder": "E"}, r"training\.l2 = 0\.1 contradicts forced"),
        ({"training.l1": 0.1, "model.architecture": "mp_dit"}, "forced weight normalisation"),
        ({"training.momentum": 0.5}, "first of training.betas"),
        ({"training.update_clip": True, "training.optimizer": "sgd"}, "sgd has none"),
        ({"training.grad_clip_at": 1.0}, "training.grad_clip is none"),
        ({"training.grad_clip": "quantile", "training.grad_clip_at": 2.0}, "no quantile"),
        ({"training.grad_clip": "norm", "training.grad_normalise": True}, "makes it 1"),
        ({"training.decay_steps": [0.5, 0.2]}, "decay_steps"),
        ({"training.decay_steps": [0.0, 1.5]}, "decay_steps"),
    ],
)
def test_what_contradicts_itself_is_refused_and_said_why(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        resolve(None, changes)


def test_adamw_brings_its_decay_where_weights_are_free() -> None:
    adamw = {"training.optimizer": "adamw"}
    assert resolve(None, adamw).training.weight_decay == 0
    for network in ({"model.ladder": "D"}, {"model.architecture": "adm"}):
        assert resolve(None, adamw | network).training.weight_decay == 0.01
        own = adamw | network | {"training.weight_decay": 0.3}
        assert resolve(None, own).training.weight_decay == 0.3
        assert resolve(None, network).training.weight_decay == 0


def tiny_denoiser(ladder: Any) -> Denoiser:
    torch.manual_seed(0)
    network = UNet(
        resolution=8,
        channels_in=1,
        num_classes=0,
        channels=16,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
        channels_per_head=16,
        ladder=ladder,
    )
    return Denoiser(network, Uncertainty(), sigma_data=0.5)


@pytest.mark.parametrize(
    ("kind", "ladder", "lr"),
    [("rmsprop", "G", 0.01), ("muon", "G", 0.03), ("sgd", "D", 0.01)],
)
def test_a_network_learns_by_it(kind: str, ladder: str, lr: float) -> None:
    """The same batch sixty times: the error falls, with weights of forced size and of free."""
    changes = {"training.optimizer": kind, "model.ladder": ladder, "training.lr": lr}
    config = resolve(None, changes | {"training.batch": 16, "training.images": 960})
    state = TrainState.fresh(tiny_denoiser(ladder), config.training)
    assert type(state.optimizer) is type(build_optimizer(state.denoiser, config.training))
    ramp = torch.arange(64).reshape(1, 1, 8, 8) * 4
    images = (ramp + torch.arange(16).reshape(16, 1, 1, 1) * 16).remainder(256).to(torch.uint8)
    batch = Batch(images, None, torch.arange(16))
    errors = [update(state, batch, config).error.mean().item() for _ in range(60)]
    assert sum(errors[-20:]) / 20 < 0.85 * sum(errors[:5]) / 5
