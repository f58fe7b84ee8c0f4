"""Denoising errors against ideal denoisers, whose floor is known, and one that memorises."""

import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from poise.errors import UsageError
from poise.evaluation.denoising import (
    Band,
    BandError,
    denoising_curves,
    denoising_error,
    gap_summary,
    generalisation_gap,
    noise_levels,
    trivial_error,
)
from poise.evaluation.estimate import Estimate
from poise.runtime import generator_at

sys.path.insert(0, str(Path(__file__).parents[1] / "diffusion"))

from mixture import SHAPE, three_groups

SD = 0.5


def _ideal(x, sigma, labels):
    """The posterior mean of N(0, SD^2 I)."""
    s2 = sigma.view(-1, 1, 1, 1) ** 2
    return x * SD**2 / (SD**2 + s2)


def _gaussian_images(n, side=16):
    return SD * torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_noise_levels_are_log_spaced():
    s = noise_levels(5, 0.02, 20.0)
    np.testing.assert_allclose(s, np.geomspace(0.02, 20, 5), rtol=1e-12)


def test_the_ideal_denoiser_of_a_gaussian_has_its_exact_error():
    sigmas = noise_levels(6, 0.05, 10)
    found = denoising_error(_ideal, _gaussian_images(200), None, sigmas, seed=3, sigma_data=SD)
    n = 200 * 3 * 16 * 16
    for s, band in zip(sigmas.tolist(), found, strict=True):
        mse = s**2 * SD**2 / (s**2 + SD**2)
        assert band.sigma == s
        # The squared error is mse times a chi-square of n degrees, divided by n.
        assert abs(band.mse / mse - 1) < 4 * math.sqrt(2 / n)
        assert band.loss == pytest.approx(band.mse / mse, rel=1e-5)  # lambda is 1 / mse here


def test_bits_do_not_depend_on_the_batch_size():
    images, sigmas = _gaussian_images(37, 12).clamp(-1, 1), noise_levels(3, 0.1, 5)
    labels = torch.arange(37)

    def denoise(x, sigma, c):
        return _ideal(x, sigma, c) + 0.001 * c.view(-1, 1, 1, 1)

    runs = [
        denoising_error(denoise, images, labels, sigmas, seed=1, sigma_data=SD, batch=batch)
        for batch in (1, 5, 36, 128)
    ]
    assert all(run == runs[0] for run in runs)


def test_noise_follows_the_documented_stream():
    images, sigmas, seen = torch.zeros(3, 1, 4, 4), torch.tensor([0.5, 2.0]), []

    def denoise(x, sigma, c):
        assert sigma.shape == (len(x),) and c is None
        seen.append(x / sigma[0])
        return x

    denoising_error(denoise, images, None, sigmas, seed=9, sigma_data=SD, batch=2)
    noise = torch.randn(1, 4, 4, generator=generator_at(9, 2 * 2 + 1, "validation"))
    torch.testing.assert_close(seen[3][0], noise)


def test_psnr_and_ssim_see_the_clamped_estimate_and_a_mean_of_images():
    images = torch.ones(2, 3, 12, 12)
    errors = torch.tensor([0.1, 0.01]).view(2, 1, 1, 1)

    def constant(shift):
        band = denoising_error(
            lambda x, s, c: images + shift, images, None, torch.ones(1), seed=0, sigma_data=1.0
        )
        return band[0]

    below, above = constant(-errors), constant(errors)
    assert below.psnr == pytest.approx(
        (10 * math.log10(400) + 10 * math.log10(40000)) / 2, rel=1e-4
    )
    assert above.psnr == pytest.approx(100) and above.ssim == pytest.approx(1)
    assert above.mse == pytest.approx(below.mse, rel=1e-5)
    assert above.loss == pytest.approx(2 * above.mse)


def test_a_diverged_network_shows_as_nan():
    band = denoising_error(
        lambda x, s, c: x * torch.nan,
        torch.zeros(2, 1, 4, 4),
        None,
        torch.ones(1),
        seed=0,
        sigma_data=SD,
    )[0]
    assert isinstance(band, BandError) and math.isnan(band.loss) and math.isnan(band.psnr)


def test_the_noise_of_a_validation_probe_is_cheap():
    images, sigmas = torch.zeros(256, 3, 32, 32), noise_levels(8, 0.02, 20)
    from poise.evaluation.denoising import _noise

    start = time.process_time()
    for j in range(len(sigmas)):
        _noise(0, range(j, 256 * 8, 8), images, "validation")
    assert time.process_time() - start < 2  # measured: 0.2 s


def test_bad_input_is_refused():
    good = torch.zeros(2, 1, 4, 4)
    with pytest.raises(UsageError, match="noise levels from"):
        noise_levels(8, 1.0, 0.5)
    for images, labels, sigmas in (
        (good.byte(), None, torch.ones(1)),
        (good[:0], None, torch.ones(1)),
        (good, torch.zeros(3), torch.ones(1)),
        (good, None, torch.zeros(1)),
    ):
        with pytest.raises(UsageError):
            denoising_error(lambda x, s, c: x, images, labels, sigmas, seed=0, sigma_data=SD)


def _cells(x):
    """[B, 1, 4, 4] -> its quarters [4 B, 1, 2, 2]."""
    return x.unflatten(2, (2, 2)).unflatten(4, (2, 2)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def _joined(cells):
    """Undo `_cells`."""
    x = cells.reshape(-1, 2, 2, *SHAPE)
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


class _World:
    """Images of four independent draws from a mixture: the exact denoiser works by quarters."""

    def __init__(self):
        self.mixture = three_groups()
        self.scale = self.mixture.rms

    def images(self, n, seed):
        return _joined(self.mixture.sample(4 * n, torch.Generator().manual_seed(seed)))

    def denoise(self, x, sigma, labels):
        return _joined(self.mixture.denoise(_cells(x), sigma.repeat_interleave(4)))

    def curves(self, denoise, sigmas, n, seed):
        splits = {
            "train": (self.images(n, 2 * seed), None),
            "val": (self.images(n, 2 * seed + 1), None),
        }
        return denoising_curves(denoise, splits, sigmas, seed=seed, sigma_data=self.scale)


def test_the_world_of_quarters_keeps_its_images():
    x = torch.arange(32.0).reshape(2, 1, 4, 4)
    assert torch.equal(_joined(_cells(x)), x)
    assert _cells(x)[1].flatten().tolist() == [2, 3, 6, 7]


def test_the_exact_denoiser_meets_its_floor_at_every_level():
    world, sigmas = _World(), torch.tensor([0.05, 0.1, 0.2, 0.5, 1, 2, 5], dtype=torch.float64)
    curves = world.curves(world.denoise, sigmas, 400, seed=1)
    for split in ("train", "val"):
        for s, band in zip(sigmas.tolist(), curves[split], strict=True):
            floor = world.mixture.floor(s)
            assert band.sigma == s and band.images == 400 and band.ms_ssim is None
            assert abs(band.mse.value - floor) < 4 * band.mse.samples_error < 0.3 * floor
            assert floor < trivial_error(s, world.scale)


def test_a_curve_has_the_figures_of_the_validation_and_their_standard_errors():
    images, sigmas, seen = _gaussian_images(30).clamp(-1, 1), noise_levels(3, 0.1, 5), []

    def denoise(x, sigma, labels):
        seen.append(x)
        return _ideal(x, sigma, labels)

    arguments = {"seed": 5, "sigma_data": SD}
    bands = denoising_error(denoise, images, None, sigmas, **arguments)
    splits = {"val": (images, None), "train": (images, None)}
    curves = denoising_curves(denoise, splits, sigmas, **arguments, batch=7)
    for band, error in zip(curves["val"], bands, strict=True):
        means = {name: getattr(band, name).value for name in ("loss", "mse", "psnr", "ssim")}
        assert means == pytest.approx({name: getattr(error, name) for name in means})
    assert all(a.mse.value != b.mse.value for a, b in zip(*curves.values(), strict=True))
    first = (_ideal(seen[0], sigmas[:1].float(), None) - images).square().mean((1, 2, 3)).double()
    expected = first.std().item() / 30**0.5
    assert curves["val"][0].mse.samples_error == pytest.approx(expected, rel=1e-5)
    weight = (0.1**2 + SD**2) / (0.1 * SD) ** 2
    assert curves["val"][0].loss.samples_error == pytest.approx(weight * expected, rel=1e-5)


def test_large_images_get_the_multi_scale_similarity_too():
    images = _gaussian_images(2, 161).clamp(-1, 1)
    splits = {"test": (images, None)}
    curves = denoising_curves(_ideal, splits, torch.tensor([0.01, 1.0]), seed=0, sigma_data=SD)
    low, high = curves["test"]
    assert 0.99 < low.ms_ssim.value <= 1 and high.ms_ssim.value < 0.9


def _memoriser(train):
    """The ideal denoiser of the training images themselves."""

    def denoise(x, sigma, labels):
        d2 = torch.cdist(x.flatten(1), train.flatten(1)).square()
        share = (-d2 / (2 * sigma[:, None] ** 2)).softmax(1)
        return (share @ train.flatten(1)).view_as(x)

    return denoise


def test_a_memoriser_shows_a_gap_at_low_levels_and_none_at_high_ones():
    world = _World()
    low, high = (0.05, 0.1, 0.2, 0.5), (4.0, 8.0)
    sigmas = world.scale * torch.tensor(low + high, dtype=torch.float64)
    curves = world.curves(_memoriser(world.images(256, 14)), sigmas, 256, seed=7)
    gaps = generalisation_gap(curves)
    assert curves["train"][0].mse.value < 1e-12 and curves["val"][0].mse.value > 0.05
    assert [gap.significant for gap in gaps] == [True] * len(low) + [False] * len(high)
    assert all(gap.ratio.value > 1 for gap in gaps[: len(low)])
    assert all(low < 0 < high for low, high in (gap.ratio.interval() for gap in gaps[len(low) :]))
    summary = gap_summary(gaps)
    assert summary.significant == sigmas[: len(low)].tolist()
    assert summary.largest == max(gaps, key=lambda gap: gap.ratio.value)


def test_an_ideal_denoiser_has_no_gap():
    """At a level of 5 % over all noise levels, 20 tries give more than 4 alarms in 0.3 %."""
    world, sigmas = _World(), torch.tensor([0.05, 0.3, 1.0, 3.0], dtype=torch.float64)
    alarms, inside = 0, 0
    for seed in range(20):
        gaps = generalisation_gap(world.curves(world.denoise, sigmas, 50, 100 + seed))
        alarms += any(gap.significant for gap in gaps)
        inside += sum(gap.ratio.interval()[0] < 0 < gap.ratio.interval()[1] for gap in gaps)
    assert alarms <= 4
    assert inside >= 68  # of 80 intervals of 95 %: fewer in less than 0.1 %


def _band(error, spread, images, sigma=1.0):
    one = Estimate(1.0, samples_error=0.1)
    return Band(sigma, images, one, Estimate(error, samples_error=spread), one, one, None)


def test_the_gap_is_welchs_test_and_the_delta_method():
    from scipy.stats import ttest_ind_from_stats

    curves = {"train": [_band(2.0, 0.06, 25)], "test": [_band(2.4, 0.1, 40)]}
    (gap,) = generalisation_gap(curves, "test")
    expected = ttest_ind_from_stats(2.4, 0.1 * 40**0.5, 40, 2.0, 0.06 * 5, 25, equal_var=False)
    assert gap.p == pytest.approx(expected.pvalue, rel=1e-9) and gap.significant
    assert gap.ratio.value == pytest.approx(0.2)
    # d(h / t) = dh / t - h dt / t^2
    assert gap.ratio.samples_error == pytest.approx(math.hypot(0.1 / 2, 2.4 * 0.06 / 4))


def test_significance_allows_for_the_number_of_levels_and_a_sign():
    def gaps(held, levels):
        train = [_band(1.0, 0.05, 1000)] * levels
        return generalisation_gap({"train": train, "val": [_band(held, 0.05, 1000)] * levels})

    assert gaps(1.17, 1)[0].significant and not gaps(1.17, 8)[0].significant  # p is 0.016
    assert gaps(0.5, 8)[0].significant and gap_summary(gaps(0.5, 8)).significant == []


def test_gaps_beside_an_error_of_nothing_or_no_number():
    def gap(train, held):
        return generalisation_gap({"train": [train], "val": [held]})[0]

    perfect = gap(_band(0.0, 0.0, 9), _band(1.0, 0.1, 9))
    assert perfect.ratio.value == math.inf and perfect.significant
    assert gap_summary([perfect]).largest == perfect
    assert gap(_band(0.0, 0.0, 9), _band(0.0, 0.0, 9)).ratio.value == 0
    for train in (_band(math.nan, math.nan, 9), _band(1.0, math.nan, 1)):
        broken = gap(train, _band(1.0, 0.1, 9))
        assert math.isnan(broken.p) and not broken.significant
    assert gap_summary([gap(_band(math.nan, math.nan, 9), _band(1.0, 0.1, 9))]).largest is None


def test_gaps_need_both_splits_and_one_set_of_levels():
    with pytest.raises(UsageError, match="without the split train"):
        generalisation_gap({"val": []})
    with pytest.raises(UsageError, match="different noise levels"):
        generalisation_gap({"train": [_band(1, 0.1, 9)], "val": [_band(1, 0.1, 9, sigma=2.0)]})


def test_the_trivial_error_is_that_of_the_best_scaling():
    rng = np.random.default_rng(0)
    y = rng.exponential(size=400_000) - 1  # any data of standard deviation 1
    for s in (0.3, 1.0, 4.0):
        x = y + s * rng.normal(size=y.shape)
        best = np.square(y - x * (x @ y) / (x @ x)).mean()
        assert trivial_error(s, 1.0) == pytest.approx(best, rel=0.02)
        weight = (s**2 + SD**2) / (s * SD) ** 2
        assert weight * trivial_error(s, SD) == pytest.approx(1)
