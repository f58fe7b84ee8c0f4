"""The networks of the presets are the published ones: every parameter and every operation."""

import pytest
import torch

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import Preset, preset_named, presets, resolve
from poise.flops import forward_macs, network_size
from poise.runtime import Runtime

META = Runtime(torch.device("meta"), torch.float32)
LOGVAR = 128  # parameters of the uncertainty beside the network's
WIDTHS = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}

# EDM2 networks at 64x64 with their uncertainty: latents (4 channels) and pixels (3), each with
# 1000 classes and without
COUNTS = {
    "xxs": (31_309_029, 31_053_029, 31_307_877, 31_051_877),
    "xs": (124_713_253, 124_201_253, 124_710_949, 124_198_949),
    "s": (280_212_837, 279_444_837, 280_209_381, 279_441_381),
    "m": (497_807_781, 496_783_781, 497_803_173, 496_779_173),
    "l": (777_498_085, 776_218_085, 777_492_325, 776_212_325),
    "xl": (1_119_283_749, 1_117_747_749, 1_119_276_837, 1_117_740_837),
    "xxl": (1_523_164_773, 1_521_372_773, 1_523_156_709, 1_521_364_709),
}
BUFFERS = {"xxs": 384, "xs": 512, "s": 640, "m": 768, "l": 896, "xl": 1024, "xxl": 1152}
SHAPES = [(4, 1000), (4, 0), (3, 1000), (3, 0)]

# multiply-adds of one call for one image of latents with 1000 classes
MACS = {
    "xxs": 11_525_215_924,
    "xs": 45_497_836_276,
    "s": 101_917_945_652,
    "m": 180_785_544_052,
    "l": 282_100_631_476,
    "xl": 405_863_207_924,
    "xxl": 552_073_273_396,
}

# rate, images until it falls, dropout and images of the published trainings (EDM2, Table 6)
MI = 2**20
LATENTS = {
    "xxs": (0.0170, 70_000 * 2048, 0.0, 2048 * MI),
    "xs": (0.0120, 70_000 * 2048, 0.0, 2048 * MI),
    "s": (0.0100, 70_000 * 2048, 0.0, 2048 * MI),
    "m": (0.0090, 70_000 * 2048, 0.1, 2048 * MI),
    "l": (0.0080, 70_000 * 2048, 0.1, 1792 * MI),
    "xl": (0.0070, 70_000 * 2048, 0.1, 1280 * MI),
    "xxl": (0.0065, 70_000 * 2048, 0.1, 896 * MI),
}
PIXELS = {
    "xs": (0.0120, 35_000 * 2048, 0.0, 1024 * MI),
    "s": (0.0100, 35_000 * 2048, 0.0, 1024 * MI),
    "m": (0.0090, 35_000 * 2048, 0.1, 2048 * MI),
    "l": (0.0080, 35_000 * 2048, 0.1, 1024 * MI),
    "xl": (0.0070, 35_000 * 2048, 0.1, 640 * MI),
}
PUBLISHED = [(f"edm2-img512-{size}", row, -0.4, 1.0, 4) for size, row in LATENTS.items()]
PUBLISHED += [(f"edm2-img64-{size}", row, -0.8, 1.6, 3) for size, row in PIXELS.items()]


def facts(side: int, channels: int, classes: int) -> DataFacts:
    return DataFacts(side, channels, tuple(str(i) for i in range(classes)), 0.5)


@pytest.mark.parametrize("size", COUNTS)
@pytest.mark.parametrize(("channels", "classes"), SHAPES)
def test_parameters_of_edm2_are_exact(size: str, channels: int, classes: int) -> None:
    config = resolve(preset_named(f"edm2-img512-{size}"))
    denoiser = build_denoiser(config, facts(64, channels, classes), META)
    wanted = COUNTS[size][SHAPES.index((channels, classes))]
    assert sum(w.numel() for w in denoiser.network.parameters()) == wanted - LOGVAR
    assert sum(w.numel() for w in denoiser.parameters()) == wanted
    assert sum(b.numel() for b in denoiser.buffers()) == BUFFERS[size]
    # 4 channels and 3 differ by the first and last convolution, labels by one matrix
    assert len(list(denoiser.parameters())) == (199 if classes else 198)


@pytest.mark.parametrize("size", MACS)
def test_operations_of_edm2_are_the_published_ones(size: str) -> None:
    config = resolve(preset_named(f"edm2-img512-{size}"))
    parameters, macs = network_size(config, 64, 4, 1000)
    assert parameters == COUNTS[size][0]
    assert macs == pytest.approx(MACS[size], rel=0.01)


def test_a_channel_costs_its_share_of_the_first_and_the_last_convolution() -> None:
    config = resolve(preset_named("nano"))
    less = forward_macs(config, facts(8, 4, 10)) - forward_macs(config, facts(8, 3, 10))
    assert less == 2 * 9 * config.model.channels * 8**2


@pytest.mark.parametrize(("name", "row", "P_mean", "P_std", "channels"), PUBLISHED)
def test_published_trainings_of_edm2(
    name: str, row: tuple[float, int, float, int], P_mean: float, P_std: float, channels: int
) -> None:
    preset = preset_named(name)
    config = resolve(preset)
    training, size = config.training, name.rpartition("-")[2]
    assert config.model.channels == WIDTHS[size]
    assert (training.lr, config.model.dropout, training.images) == (row[0], row[2], row[3])
    assert training.decay == "inverse_sqrt"
    assert training.decay_start * training.images == pytest.approx(row[1], rel=1e-4)
    assert training.warmup * training.images == pytest.approx(10e6, rel=1e-3)
    assert (training.batch, training.betas, training.label_dropout) == (2048, (0.9, 0.99), 0.0)
    assert (config.diffusion.P_mean, config.diffusion.P_std) == (P_mean, P_std)
    assert (config.diffusion.weighting, config.sampling.steps) == ("uncertainty", 32)
    assert preset.counted_at == (64, channels, 1000)


# millions of parameters and "Gflops" (multiply-adds) of DiT, patches of 2 (Peebles & Xie 2023,
# Table 4); theirs also predicts variances, which doubles the last layer
@pytest.mark.parametrize(
    ("size", "depth", "width", "heads", "millions", "gmacs"),
    [
        ("s", 12, 384, 6, 33, 6.06),
        ("b", 12, 768, 12, 130, 23.01),
        ("l", 24, 1024, 16, 458, 80.71),
        ("xl", 28, 1152, 16, 675, 118.64),
    ],
)
def test_dit_has_the_published_sizes(
    size: str, depth: int, width: int, heads: int, millions: float, gmacs: float
) -> None:
    preset = preset_named(f"dit-{size}")
    model = resolve(preset).model
    assert (model.depth, model.channels, model.patch) == (depth, width, 2)
    assert model.channels // model.channels_per_head == heads
    parameters, macs = network_size(resolve(preset), *preset.counted_at)
    assert parameters / 1e6 == pytest.approx(millions, rel=0.005)
    assert macs / 1e9 == pytest.approx(gmacs, rel=0.003)


@pytest.mark.parametrize("preset", presets(), ids=lambda preset: preset.name)
def test_every_preset_builds_where_it_is_counted(preset: Preset) -> None:
    side, channels, classes = preset.counted_at
    assert preset.resolutions[0] <= side <= preset.resolutions[1]
    denoiser = build_denoiser(resolve(preset), facts(side, channels, classes), META)
    assert denoiser.num_classes == classes


def test_published_networks_are_chosen_by_name_alone() -> None:
    by_hand = {p.name for p in presets() if not p.automatic}
    assert by_hand == {p.name for p in presets() if p.name.startswith(("edm2-", "dit-"))}
    assert [p.automatic for p in presets()] == sorted([p.automatic for p in presets()])[::-1]
