"""The rungs A to G of EDM2's ablation: each builds from settings and does what it claims."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import preset_named, resolve
from poise.data.batches import Batch
from poise.diffusion.denoiser import Denoiser
from poise.errors import UsageError
from poise.models.adm import ADM
from poise.models.edm2 import RUNGS, Block, BlockShape, UNet
from poise.models.layers import MPConv
from poise.runtime import Runtime
from poise.settings import Config
from poise.training.loop import TrainState, update
from poise.training.magnitudes import activation_rms

FACTS = DataFacts(8, 2, ("a", "b", "c"), 0.5)
SIGMA = torch.tensor([0.002, 0.5, 3.0, 80.0])
X = (
    torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    * (SIGMA**2 + 0.25)[:, None, None, None].sqrt()
)
LABELS = torch.tensor([0, 1, 2, 0])
SMALL = {
    "model.channels": 16,
    "model.channels_per_head": 16,
    "model.attn_resolutions": [4],
    "model.depth": 2,
    "training.precision": "fp32",
    "training.batch": 8,
    "training.images": 80,
    "training.warmup": 0,
}
ALL, NORMALISED = "ABCDEFG", "DEFG"


def configured(**more: object) -> Config:
    return resolve(None, SMALL | {key.replace("__", "."): value for key, value in more.items()})


def built(config: Config, dtype: torch.dtype = torch.float32, facts: DataFacts = FACTS) -> Denoiser:
    return build_denoiser(config, facts, Runtime(torch.device("cpu"), dtype))


def rung(letter: str, dtype: torch.dtype = torch.float32, **more: object) -> Denoiser:
    return built(configured(model__ladder=letter, **more), dtype)


@torch.no_grad()
def awake(denoiser: Denoiser) -> Denoiser:
    """The same with gains and weights where it starts from zero."""
    generator = torch.Generator().manual_seed(1)
    for w in denoiser.network.parameters():
        if w.ndim == 0:
            w.fill_(0.5)
        elif w.ndim > 1 and not w.any():
            w.normal_(std=w[0].numel() ** -0.5, generator=generator)
    return denoiser


def batch(position: int, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(position)
    images = torch.randint(0, 256, (count, 2, 8, 8), generator=generator, dtype=torch.uint8)
    return Batch(images, torch.arange(count) % 3, torch.arange(count))


def learned(denoiser: Denoiser) -> list[MPConv]:
    return [m for m in denoiser.network.modules() if isinstance(m, MPConv)]


def answer(denoiser: Denoiser) -> Tensor:
    """What the network says, without the skip around it."""
    spread = (SIGMA**2 + 0.25).sqrt()[:, None, None, None]
    y: Tensor = denoiser.network((X / spread).to(denoiser.dtype), SIGMA.log() / 4, LABELS)
    return y.float()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("letter", ALL)
def test_outputs_and_gradients_are_finite_and_bf16_follows_fp32(letter: str) -> None:
    outputs = []
    for dtype in (torch.float32, torch.bfloat16):
        denoiser = awake(rung(letter, dtype))
        D = denoiser(X, SIGMA, LABELS)
        assert D.dtype == torch.float32 and bool(D.isfinite().all())
        answer(denoiser).square().mean().backward()
        for name, w in denoiser.network.named_parameters():
            assert w.grad is not None and bool(w.grad.isfinite().all()), name
            assert bool(w.grad.any()), name
        outputs.append(answer(denoiser).detach())
    for one, other in zip(*outputs, strict=True):
        assert distance(other, one) < 0.05


@pytest.mark.parametrize("letter", ALL)
def test_an_untrained_network_is_silent_and_the_denoiser_exactly_the_skip(letter: str) -> None:
    denoiser = rung(letter)
    with torch.no_grad():
        assert not denoiser.network(X, SIGMA.log() / 4, LABELS).any()
        c = denoiser.formulation.coefficients(SIGMA[:, None, None, None])
        assert torch.equal(denoiser(X, SIGMA, LABELS), c.c_skip * X)


def test_letters_choose_the_network() -> None:
    assert {letter: type(rung(letter).network) for letter in ALL} == {
        **dict.fromkeys("AB", ADM),
        **dict.fromkeys("CDEFG", UNet),
    }
    for letter in "CDEFG":
        network = rung(letter).network
        assert isinstance(network, UNet) and network.shape.rung == RUNGS[letter]


def test_the_last_rung_is_the_network_without_a_ladder() -> None:
    one, other = awake(rung("G")), awake(built(configured()))
    assert torch.equal(one(X, SIGMA, LABELS), other(X, SIGMA, LABELS))
    assert configured(model__ladder="G").training == configured().training


def test_rung_c_has_neither_biases_nor_gains_nor_learned_norms() -> None:
    assert {w.ndim for w in rung("C").network.parameters()} == {2, 4}
    biased = {name for name, w in rung("B").network.named_parameters() if w.ndim == 1}
    assert any("bias" in name for name in biased) and any("norm" in name for name in biased)


@pytest.mark.parametrize("letter", NORMALISED)
def test_from_d_on_the_only_other_parameters_are_gains_that_start_at_zero(letter: str) -> None:
    network = rung(letter).network
    gains = {n: w for n, w in network.named_parameters() if w.ndim < 2}
    assert all(n.endswith("gain") and w.ndim == 0 and w == 0 for n, w in gains.items())
    blocks = sum(isinstance(m, Block) for m in network.modules())
    assert len(gains) == blocks + 1
    matrices = sum(w.ndim > 1 for w in network.parameters())
    assert matrices == len(learned(rung(letter)))


@pytest.mark.parametrize("letter", ALL)
def test_group_norm_ends_with_e(letter: str) -> None:
    norms = [m for m in rung(letter).network.modules() if isinstance(m, nn.GroupNorm)]
    assert bool(norms) == (letter in "ABCDE")
    assert all(bool(norm.affine) == (letter in "AB") for norm in norms)


@torch.no_grad()
@pytest.mark.parametrize("letter", "CDEFG")
def test_pixel_norm_in_the_encoder_begins_with_f(letter: str) -> None:
    """An encoder block then knows no scale of its input, a decoder block does."""
    network = awake(rung(letter)).network
    assert isinstance(network, UNet)
    x = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(2))
    emb = torch.randn(2, 32, generator=torch.Generator().manual_seed(3))
    block = network.enc["8x8_block0"]
    assert (distance(block(5 * x, emb), block(x, emb)) < 1e-3) == (letter in "FG")
    block = network.dec["4x4_in1"]
    x = torch.randn(2, 32, 4, 4, generator=torch.Generator().manual_seed(2))
    assert distance(block(5 * x, emb), block(x, emb)) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("letter", "CDEF")
@pytest.mark.parametrize("decoder", [False, True])
def test_a_block_equals_its_rung_written_out(letter: str, decoder: bool) -> None:
    torch.manual_seed(4)
    block = Block(8, 12, BlockShape(RUNGS[letter], 6), decoder=decoder)
    for w in block.parameters():
        nn.init.normal_(w, std=0.5)
    x, emb = torch.randn(3, 8, 4, 4), torch.randn(3, 6)
    weights = dict(block.named_parameters())

    def kernel(name: str) -> Tensor:
        w = weights[f"{name}.weight"]
        if letter == "C":
            return w
        rows = w.flatten(1)
        rows = rows / (1e-4 + rows.square().mean(1, keepdim=True).sqrt()) / rows.shape[1] ** 0.5
        return rows.reshape(w.shape)

    def group(v: Tensor) -> Tensor:
        return v if letter == "F" else F.group_norm(v, v.shape[1] // 4, eps=1e-5)

    found = block(x, emb)
    skip = kernel("conv_skip")
    if not decoder:
        x = F.conv2d(x, skip)
        if letter == "F":
            x = x / (1e-4 + x.square().mean(1, keepdim=True).sqrt())
    y = F.conv2d(F.silu(group(x)), kernel("conv_res0"), padding=1)
    gain = 1 if letter == "C" else weights["emb_gain"]
    scale = 1 + emb @ kernel("emb_linear").T * gain
    y = F.conv2d(F.silu(group(y) * scale[:, :, None, None]), kernel("conv_res1"), padding=1)
    torch.testing.assert_close(found, y + (F.conv2d(x, skip) if decoder else x))


@pytest.mark.parametrize("letter", NORMALISED)
def test_the_scale_of_a_weight_changes_nothing(letter: str) -> None:
    denoiser = awake(rung(letter))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        before = answer(denoiser)
        for module in learned(denoiser):
            rows = torch.rand(len(module.weight), generator=generator) * 5 + 0.5
            module.weight.mul_(rows.reshape(-1, *[1] * (module.weight.ndim - 1)))
        assert distance(answer(denoiser), before) < 0.005


def test_on_rung_c_it_does() -> None:
    denoiser = awake(rung("C"))
    with torch.no_grad():
        before = answer(denoiser)
        for w in denoiser.network.parameters():
            w.mul_(2)
        assert distance(answer(denoiser), before) > 0.5


@pytest.mark.parametrize("letter", NORMALISED)
def test_gradients_are_orthogonal_to_the_rows_of_weights(letter: str) -> None:
    denoiser = awake(rung(letter))
    answer(denoiser).square().mean().backward()
    for module in learned(denoiser):
        assert module.weight.grad is not None
        w, g = module.weight.detach().flatten(1), module.weight.grad.flatten(1)
        assert ((w * g).sum(1).abs() <= 1e-3 * w.norm(dim=1) * g.norm(dim=1) + 1e-9).all()


@pytest.mark.parametrize("letter", NORMALISED)
def test_from_e_on_an_update_leaves_weights_at_unit_magnitude(letter: str) -> None:
    config = configured(model__ladder=letter, training__lr=0.02)
    state = TrainState.fresh(awake(built(config)), config.training)
    for i in range(3):
        assert bool(update(state, batch(8 * i), config).applied)
    rms = torch.cat(
        [m.weight.detach().flatten(1).square().mean(1).sqrt() for m in learned(state.denoiser)]
    )
    off = (rms - 1).abs().max().item()
    assert off < 3e-4 if letter in "EFG" else off > 0.05


@pytest.mark.parametrize("name", ["silu", "relu", "leaky_relu", "elu"])
def test_on_rung_g_every_block_keeps_unit_magnitude(name: str) -> None:
    facts = DataFacts(16, 3, ("a", "b", "c", "d"), 0.5)
    wide = {"model.channels": 32, "model.channel_mult": [1, 2, 2], "model.num_blocks": 2}
    more = {"model.attn_resolutions": [8], "model.activation": name, "model.ladder": "G"}
    denoiser = built(resolve(None, SMALL | wide | more), facts=facts)
    generator = torch.Generator().manual_seed(1)
    sigma = (torch.randn(16, generator=generator) - 0.4).exp()
    x = torch.randn(16, 3, 16, 16, generator=generator)
    x = x * (sigma**2 + 0.25).sqrt()[:, None, None, None]
    found = activation_rms(denoiser, x, sigma, torch.arange(16) % 4)
    assert len(found) == 9 + 13
    assert found.min() > 0.7 and found.max() < 1.3


def test_only_rung_g_weighs_sums_and_scales_activations() -> None:
    a, b = torch.full((1, 4, 1, 1), 3.0), torch.full((1, 4, 1, 1), 5.0)
    for letter, one in RUNGS.items():
        joined = BlockShape(one, 8).join(a, b, 0.3)
        wanted = (0.7 * 3 + 0.3 * 5) / math.hypot(0.7, 0.3) if letter == "G" else 8.0
        torch.testing.assert_close(joined, torch.full_like(a, wanted))
        act = BlockShape(one, 8).act()(torch.ones(1)).item()
        silu = 1 / (1 + math.exp(-1))
        assert act == pytest.approx(silu / 0.596 if letter == "G" else silu)


# learning rate (of the preset where None), Adam's constants, decay, weighting
IMPLIED = {
    "A": (0.001, (0.9, 0.999), "constant", "edm"),
    "B": (0.001, (0.9, 0.99), "constant", "uncertainty"),
    "C": (0.001, (0.9, 0.99), "constant", "uncertainty"),
    "D": (None, (0.9, 0.99), "constant", "uncertainty"),
    "E": (None, (0.9, 0.99), "inverse_sqrt", "uncertainty"),
    "F": (None, (0.9, 0.99), "inverse_sqrt", "uncertainty"),
    "G": (None, (0.9, 0.99), "inverse_sqrt", "uncertainty"),
}
SAME = {"adm": "A", "edm2": "G", "mp_dit": "G"}


def training_of(config: Config) -> tuple[float | None, tuple[float, float], str, str]:
    settings = config.training
    return settings.lr, settings.betas, settings.decay, config.diffusion.weighting


@pytest.mark.parametrize("letter", ALL)
@pytest.mark.parametrize("preset", [None, "edm2-img512-xs"])
def test_a_rung_brings_its_training_along(letter: str, preset: str | None) -> None:
    chosen = preset_named(preset) if preset else None
    rate = resolve(chosen).training.lr
    lr, *rest = IMPLIED[letter]
    found = training_of(resolve(chosen, {"model.ladder": letter}))
    assert found == (rate if lr is None else lr, *rest)


@pytest.mark.parametrize("letter", ALL)
def test_what_the_user_sets_wins_over_rung_and_preset(letter: str) -> None:
    wanted = {
        "training.lr": 0.123,
        "training.betas": [0.5, 0.75],
        "training.decay": "cosine",
        "diffusion.weighting": "p2",
    }
    for preset in (None, preset_named("edm2-img512-xs")):
        config = resolve(preset, {"model.ladder": letter, **wanted})
        assert training_of(config) == (0.123, (0.5, 0.75), "cosine", "p2")


@pytest.mark.parametrize(("architecture", "letter"), SAME.items())
def test_an_architecture_brings_the_training_of_its_rung_along(
    architecture: str, letter: str
) -> None:
    lr, *rest = IMPLIED[letter]
    found = training_of(resolve(None, {"model.architecture": architecture}))
    assert found == (resolve(None).training.lr if lr is None else lr, *rest)


def test_a_transformer_brings_its_rate_along_and_its_preset_another() -> None:
    dit = resolve(None, {"model.architecture": "dit"}).training
    assert (dit.lr, dit.decay) == (0.0005, "constant")
    preset = resolve(preset_named("dit-s")).training
    assert (preset.lr, preset.decay) == (0.0001, "constant")
    # the preset's own rate was made for another network
    other = resolve(preset_named("edm2-img512-xs"), {"model.architecture": "dit"}).training
    assert other.lr == 0.0005


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model.init": "he"}, "model.ladder=C"),
        *[({"model.init": "he", "model.ladder": letter}, "model.ladder=C") for letter in "DEFG"],
        ({"model.init": "xavier", "model.architecture": "mp_dit"}, "model.architecture=dit"),
        *[({"model.ladder": x, "model.architecture": "dit"}, "A to G with edm2") for x in "ADG"],
        ({"model.ladder": "G", "model.architecture": "mp_dit"}, "none with a transformer"),
        *[({"model.ladder": x, "model.architecture": "adm"}, "A or B with adm") for x in "CG"],
        ({"model.architecture": "dit", "model.skips": False}, "model.skips=true"),
        ({"model.architecture": "mp_dit", "model.normalisation": "group"}, "normalisation=auto"),
        ({"model.resample_filter": [1, 2, 1]}, "[1, 3, 3, 1]"),
        ({"model.resample_filter": [1]}, "at least 2"),
        ({"model.ladder": "H"}, "'A'"),
        ({"model.architecture": "unet"}, "'edm2'"),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(
    settings: dict[str, object], words: str
) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(None, settings)
    assert words in str(caught.value)


@pytest.mark.parametrize("architecture", ["edm2", "adm", "dit", "mp_dit"])
@pytest.mark.parametrize("classes", [0, 3])
def test_every_architecture_trains(architecture: str, classes: int) -> None:
    config = configured(model__architecture=architecture)
    facts = DataFacts(8, 2, tuple("abc"[:classes]), 0.5)
    state = TrainState.fresh(built(config, facts=facts), config.training)
    for i in range(3):
        given = batch(8 * i)
        given = given if classes else Batch(given.images, None, given.indices)
        record = update(state, given, config)
        assert bool(record.applied) and bool(record.loss.isfinite().all())
    D = state.denoiser.eval()(X, SIGMA, LABELS if classes else None)
    c = state.denoiser.formulation.coefficients(SIGMA[:, None, None, None])
    assert bool(D.isfinite().all()) and not torch.equal(D, c.c_skip * X)


FORMULATIONS = [("edm", "cosine"), ("flow", "cosine")]
FORMULATIONS += [(target, s) for target in ("eps", "x0", "v") for s in ("linear", "cosine")]


@pytest.mark.parametrize(("formulation", "schedule"), FORMULATIONS)
@pytest.mark.parametrize("weighting", ["uncertainty", "edm", "target", "min_snr", "p2"])
def test_every_formulation_trains_with_every_weighting(
    formulation: str, schedule: str, weighting: str
) -> None:
    settings = {
        "model__channels": 8,
        "model__channels_per_head": 8,
        "model__channel_mult": [1],
        "diffusion__formulation": formulation,
        "diffusion__schedule": schedule,
        "diffusion__weighting": weighting,
    }
    config = configured(**settings)
    state = TrainState.fresh(built(config), config.training)
    for i, noise in enumerate(("log_normal", "logit_normal", "uniform")):
        record = update(state, batch(8 * i), configured(**settings, diffusion__noise=noise))
        assert bool(record.applied), noise
        assert bool(record.loss.isfinite().all() & record.error.isfinite().all()), noise
    assert bool(state.denoiser.eval()(X, SIGMA, LABELS).isfinite().all())
    gain = state.denoiser.network.get_parameter("out_gain")
    assert gain.item() != 0
